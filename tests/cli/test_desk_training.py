"""Trainings at the desk: the real runner on a small workflow, and the form of a profile."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow.entities import Metric
from starlette.testclient import TestClient

from loraline.errors import TryAgain, UserError
from loraline.profiles.loading import load_profile
from loraline.profiles.profile import Profile
from loraline.tracking import runs, store, tags
from loraline_cli.desk import forms, loss
from loraline_cli.desk.app import create_app
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
    result = trainings.status(name)
    assert not result["running"] and "interrupted" in "".join(result["log"])

    (workplace / "go").touch()
    assert trainings.resume(name) == name
    until(lambda: not trainings.is_going())
    result = trainings.status(name)
    assert result["phase"] == "Succeeded"
    assert phases(result) == {"first": "Succeeded", "last": "Succeeded"}
    assert [each["name"] for each in trainings.listed()] == [name]
    assert "interrupted" not in "".join(result["log"]), "the log is of the run before"
    assert any("last" in line and "Succeeded" in line for line in result["log"]), result["log"]
    assert list((workplace / "outputs").glob(".desk-*")) == []


def test_a_training_outlives_its_desk_and_is_seen_by_the_next_one(
    trainings: Small, workplace: Path
) -> None:
    name = trainings.start("smoke-text", "", [])
    until(lambda: phases(trainings.status(name)).get("last") == "Running")

    next_desk = Small()
    result = next_desk.status(name)
    assert (result["phase"], result["running"]) == ("Running", True)
    with pytest.raises(UserError, match="was not started by this desk"):
        next_desk.stop(name)

    assert trainings.going is not None
    trainings.going.process.kill()
    trainings.going.process.wait()
    # A container outlives a killed runner, and ends by itself.
    (workplace / "go").touch()
    until(lambda: next_desk.status(name)["phase"] == "Stopped")
    assert not next_desk.status(name)["running"]


def test_a_training_goes_on_while_another_run_is_the_latest(
    trainings: Small, workplace: Path
) -> None:
    """A run of a terminal moves the link `latest`."""
    name = trainings.start("smoke-text", "", [])
    until(lambda: phases(trainings.status(name)).get("last") == "Running")
    latest = workplace / "outputs/latest"
    latest.unlink()
    latest.symlink_to("of-a-terminal")

    result = trainings.status(name)
    assert (result["phase"], result["running"]) == ("Running", True)
    trainings.stop(name)
    until(lambda: not trainings.is_going())
    assert trainings.resume(name) == name
    assert trainings.status(name)["running"]


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
        assert trainings.named(Going(process, log, None)) == "small-1"
        assert process.stdin is not None
        process.stdin.close()
    assert waits == 1


def test_a_status_that_is_none_hides_no_other_run(trainings: Small, workplace: Path) -> None:
    run_folder(workplace, "pipeline-1")
    for number, content in enumerate(("", "[]", "{}", '{"status": []}')):
        folder = workplace / "outputs" / f"other-{number}"
        folder.mkdir()
        (folder / "status.json").write_text(content)
        with pytest.raises(UserError, match="no run"):
            trainings.status(folder.name)
    assert [each["name"] for each in trainings.listed()] == ["pipeline-1"]


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


def test_a_profile_of_ones_own_runs_the_scripts_where_they_are(workplace: Path) -> None:
    """The desk may run in any folder, and its workflow is rendered for the profile."""
    profiles = workplace / "lora_profiles"
    profiles.unlink()
    profiles.mkdir()
    (profiles / "mine.yaml").write_text("extends: smoke-text\n")
    rendered = Trainings().file("mine").read_text()
    assert "      - mine\n" in rendered
    scripts = re.findall(r"- (\S*steps/\w+\.py)\n", rendered)
    assert scripts and all(Path(script).is_file() for script in scripts), scripts


def test_the_form_has_every_key_with_one_value_its_bounds_and_its_words(workplace: Path) -> None:
    result = {each["name"]: each for each in forms.form("smoke-text")["fields"]}

    for name, field in Profile.model_fields.items():
        if field.annotation in (int, float, bool, str):
            assert name in result, name
    assert (result["r"]["minimum"], result["r"]["maximum"]) == (1, 512)
    assert result["modality"]["choices"] == ["text", "vision"]
    assert result["gate.min_rows"]["type"] == "integer"
    assert [name for name, each in result.items() if not each["doc"]] == []
    assert result["r"]["value"] == load_profile("smoke-text").r


def test_the_data_are_checked_before_anything_starts(trainings: Small, workplace: Path) -> None:
    (workplace / "broken").mkdir()
    result = trainings.check("smoke-text", "broken", [])
    assert not result["well"]
    assert any("broken" in line for line in result["lines"])
    assert "128 tokens" in result["plan"][0]
    peaks = [line.split()[1] for line in result["plan"] if "peak" in line]
    assert len(peaks) == 2 and float(peaks[1]) <= float(peaks[0])


def logged(workflow: str, name: str = "one", **curves: dict[int, float]) -> str:
    """A training run of a workflow with these values by step; its ID."""
    store.connect()
    given = {tags.WORKFLOW_NAME: workflow}
    with runs.open_run("train_qlora", name=name, fingerprint=name, tags=given) as run:
        points = [
            Metric(key, value, 1000 + step, step)
            for key, values in curves.items()
            for step, value in values.items()
        ]
        mlflow.MlflowClient().log_batch(run.info.run_id, points)
    return str(run.info.run_id)


def run_folder(workplace: Path, name: str, handed_over: str = "") -> None:
    """A run of the desk's folder whose training step has handed this over."""
    node = {"displayName": "train-qlora(0)", "type": "Pod", "phase": "Running"}
    node |= {"outputs": {"parameters": [{"name": "run-id", "value": handed_over}]}}
    folder = workplace / "outputs" / name
    folder.mkdir(parents=True)
    status = {"phase": "Running", "nodes": {"a": node}}
    (folder / "status.json").write_text(json.dumps({"status": status}))


def test_the_loss_of_a_training_comes_from_its_run(workplace: Path) -> None:
    run_folder(workplace, "pipeline-1")
    desk = TestClient(create_app(None))
    assert desk.get("/runs/pipeline-1/loss").json()["points"] == {}

    logged("pipeline-0", "zero", loss={1: 9.0})
    speed = {1: 700.0, 2: 800.0}
    run = logged("pipeline-1", loss={1: 4.0, 2: 2.0}, eval_loss={2: 3.0}, tokens_per_second=speed)
    answer = desk.get("/runs/pipeline-1/loss").json()

    assert answer["run_id"] == run
    assert answer["points"] == {"training": [[1, 4.0], [2, 2.0]], "validation": [[2, 3.0]]}
    assert answer["drawn"]["lines"] == {
        "training": "300.0,0.0 600.0,100.0",
        "validation": "600.0,50.0",
    }
    assert (answer["drawn"]["last"], answer["drawn"]["highest"]) == (2, 4.0)
    assert answer["tokens_per_second"] == 800.0
    refused = desk.get("/runs/none/loss")
    assert refused.status_code == 422 and "no run" in refused.json()["detail"]


def test_a_training_that_was_there_already_shows_the_loss_that_it_had(workplace: Path) -> None:
    """The step hands over the finished run of an earlier workflow."""
    run = logged("pipeline-0", loss={1: 4.0})
    run_folder(workplace, "pipeline-1", run)
    answer = TestClient(create_app(None)).get("/runs/pipeline-1/loss").json()
    assert (answer["run_id"], answer["points"]["training"]) == (run, [[1, 4.0]])


def test_a_loss_that_is_no_number_is_counted_and_not_drawn(workplace: Path) -> None:
    run_folder(workplace, "pipeline-1")
    logged("pipeline-1", loss={1: 4.0, 2: math.nan, 3: math.inf, 4: 3.0})
    answer = TestClient(create_app(None)).get("/runs/pipeline-1/loss").json()
    assert answer["points"] == {"training": [[1, 4.0], [4, 3.0]]}
    assert (answer["not_finite"], answer["drawn"]["highest"]) == (2, 4.0)


def test_a_long_curve_keeps_its_ends_and_its_peaks() -> None:
    points = [(step, 100.0 if step == 5003 else 1.0 + 1 / step) for step in range(1, 20_001)]
    kept = loss.thinned(points)
    assert len(kept) <= loss.MOST_POINTS
    assert kept == sorted(kept) and set(kept) <= set(points)
    assert (kept[0], kept[-1]) == (points[0], points[-1])
    assert (5003, 100.0) in kept
    assert loss.thinned(points[:50]) == points[:50]
