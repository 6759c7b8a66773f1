"""Trainings at the desk: the real runner on a small workflow, and the form of a profile."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from loraline import profiles
from loraline.errors import TryAgain, UserError
from loraline_cli.desk import forms
from loraline_cli.desk.training import Going, Trainings

WORKFLOW = """
apiVersion: argoproj.io/v1alpha1
kind: Workflow
metadata: {generateName: small-}
spec:
  entrypoint: main
  arguments:
    parameters:
    - {name: profile, value: ""}
    - {name: data, value: ""}
    - {name: set, value: ""}
  templates:
  - name: main
    dag:
      tasks:
      - name: first
        template: say
        arguments: {parameters: [{name: words, value: "{{workflow.parameters.set}}"}]}
      - {name: last, template: wait, dependencies: [first]}
  - name: say
    inputs: {parameters: [{name: words}]}
    container:
      image: x
      command: [python, -c]
      args: ["import sys; print('said', sys.argv[1:])", "{{inputs.parameters.words}}"]
  - name: wait
    container:
      image: x
      command: [python, -c]
      args:
      - |
        import pathlib, time
        while not pathlib.Path("go").exists():
            time.sleep(0.02)
"""


class Small(Trainings):
    """Trainings of the small workflow instead of the pipeline."""

    def file(self, profile: str) -> Path:
        return Path("small.yaml")


@pytest.fixture
def trainings(workplace: Path) -> Iterator[Small]:
    (workplace / "small.yaml").write_text(WORKFLOW)
    result = Small()
    yield result
    if result.is_going():
        assert result.going is not None
        result.going.process.kill()
        result.going.process.wait()


def until(there: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + 60
    while not (result := there()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return result


def phases(found: dict[str, Any]) -> dict[str, str]:
    return {node["name"]: node["phase"] for node in found["nodes"]}


def test_a_training_is_started_watched_stopped_and_resumed(
    trainings: Small, workplace: Path
) -> None:
    name = trainings.start("smoke-text", "", ["r=16", "base=a b"])

    until(lambda: phases(trainings.status(name)).get("last") == "Running")
    result = trainings.status(name)
    assert result["phase"] == "Running" and result["running"]
    assert any("said" in line and "r=16" in line for line in result["log"])
    with pytest.raises(TryAgain, match="runs here already"):
        trainings.start("smoke-text", "", [])

    trainings.stop(name)
    until(lambda: not trainings.is_going())
    assert trainings.status(name)["phase"] != "Succeeded"
    assert not trainings.status(name)["running"]

    (workplace / "go").touch()
    assert trainings.resume(name) == name
    until(lambda: not trainings.is_going())
    result = trainings.status(name)
    assert result["phase"] == "Succeeded"
    assert phases(result) == {"first": "Succeeded", "last": "Succeeded"}
    assert [each["name"] for each in trainings.listed()] == [name]


def test_a_started_training_has_a_status(
    trainings: Small, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The runner makes the folder of a run a moment before its status."""
    folder = workplace / "outputs" / "small-1"
    folder.mkdir(parents=True)
    (folder.parent / "latest").symlink_to("small-1")
    log = folder.parent / ".desk.log"
    log.touch()
    waits = 0

    def write_status(_: float) -> None:
        nonlocal waits
        waits += 1
        (folder / "status.json").write_text('{"status": {"phase": "Running", "nodes": {}}}')

    monkeypatch.setattr(time, "sleep", write_status)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        assert trainings.named(Going(process, log, time.time())) == "small-1"
        assert process.stdin is not None
        process.stdin.close()
    assert waits == 1


@pytest.mark.parametrize("name", ["none", "../x", ".desk", "latest/.."])
def test_a_run_that_is_none_is_refused(name: str, trainings: Small) -> None:
    for act in (trainings.status, trainings.stop, trainings.resume):
        with pytest.raises(UserError, match="no run"):
            act(name)


@pytest.mark.parametrize(
    ("profile", "overrides", "words"),
    [("none", [], "none"), ("smoke-text", ["r=0"], "r"), ("smoke-text", ["x=1"], "x")],
)
def test_what_is_no_recipe_starts_nothing(
    profile: str, overrides: list[str], words: str, trainings: Small, workplace: Path
) -> None:
    with pytest.raises(UserError, match=words):
        trainings.start(profile, "", overrides)
    assert not trainings.is_going()


def test_a_workflow_that_cannot_start_says_why(trainings: Small, workplace: Path) -> None:
    (workplace / "small.yaml").write_text("kind: Nothing")
    with pytest.raises(UserError, match="did not start"):
        trainings.start("smoke-text", "", [])


def test_the_form_has_every_key_with_one_value_its_bounds_and_its_words(workplace: Path) -> None:
    result = {each["name"]: each for each in forms.form("smoke-text")["fields"]}

    for name, field in profiles.Profile.model_fields.items():
        if field.annotation in (int, float, bool, str):
            assert name in result, name
    assert (result["r"]["minimum"], result["r"]["maximum"]) == (1, 512)
    assert result["modality"]["choices"] == ["text", "vision"]
    assert result["gate.min_rows"]["type"] == "integer"
    assert [name for name, each in result.items() if not each["doc"]] == []
    assert result["r"]["value"] == profiles.load("smoke-text").r


def test_the_data_are_checked_before_anything_starts(trainings: Small, workplace: Path) -> None:
    (workplace / "broken").mkdir()
    result = trainings.check("smoke-text", "broken", [])
    assert not result["well"]
    assert any("broken" in line for line in result["lines"])
    assert "128 tokens" in result["plan"][0]
    peaks = [line.split()[1] for line in result["plan"] if "peak" in line]
    assert len(peaks) == 2 and float(peaks[1]) <= float(peaks[0])
