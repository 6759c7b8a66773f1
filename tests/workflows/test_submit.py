"""What is wrong is found out before a workflow is submitted; the rest is in tests/cluster."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from loraline.errors import UserError

ROOT = Path(__file__).parents[2]


def submit(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "workflows/submit.py", *arguments],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("resources=gpu", "is none of cpu, gpu-large"),
        ("profil=x", "-p profil=x sets no parameter"),
    ],
)
def test_what_argo_would_take_and_fail_of_is_refused(given: str, message: str) -> None:
    ended = submit("workflows/pipeline.yaml", "-p", given)
    assert ended.returncode == 2
    assert message in ended.stderr


def test_without_argo_it_says_so(tmp_path: Path) -> None:
    ended = submit("workflows/pipeline.yaml", "-p", "profile=smoke-text", PATH=str(tmp_path))
    assert ended.returncode == 2
    assert "argo, the command line of Argo Workflows, is not installed" in ended.stderr


ARGO = """#!/bin/sh
case $1 in
submit) echo workflow.argoproj.io/pipeline-1 ;;
watch) echo drawn anew ;;
get) cat ended.json ;;
esac
"""


@pytest.mark.parametrize(("phase", "code"), [("Succeeded", 0), ("Failed", 1)])
def test_it_ends_with_the_runs_and_the_verdict(tmp_path: Path, phase: str, code: int) -> None:
    (tmp_path / "argo").write_text(ARGO.replace("ended.json", str(tmp_path / "ended.json")))
    (tmp_path / "argo").chmod(0o755)
    nodes = [
        {"displayName": "quality-gate", "type": "Retry", "finishedAt": "2026-11-26T15:00:02Z",
         "outputs": {"parameters": [{"name": "run-id", "value": "ab" * 16},
                                    {"name": "result", "value": "passed"}]}},
        {"displayName": "quality-gate(0)", "type": "Pod",
         "outputs": {"parameters": [{"name": "run-id", "value": "ab" * 16}]}},
        {"displayName": "evaluate", "type": "Retry", "finishedAt": "2026-11-26T15:00:01Z",
         "outputs": {"parameters": [{"name": "run-id", "value": "cd" * 16}]}},
        {"displayName": "deploy-vllm", "type": "Retry", "finishedAt": None},
    ]  # fmt: skip
    status = {"phase": phase, "nodes": {str(i): node for i, node in enumerate(nodes)}}
    (tmp_path / "ended.json").write_text(json.dumps({"status": status}))
    place = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    ended = submit("workflows/pipeline.yaml", "-p", "profile=smoke-text", PATH=place)

    assert ended.returncode == code, ended.stderr
    assert ended.stdout.splitlines() == [
        f"evaluate  run  {'cd' * 16}",
        f"quality-gate  run  {'ab' * 16}  passed",
        f"pipeline-1  {phase}",
    ]


@pytest.mark.parametrize("get", ["exit 1", """echo '{"status": {"phase": "Running"}}'"""])
def test_a_cluster_that_is_lost_meanwhile_is_no_end_of_the_workflow(
    tmp_path: Path, get: str
) -> None:
    (tmp_path / "argo").write_text(ARGO.replace("cat ended.json", get))
    (tmp_path / "argo").chmod(0o755)
    place = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    ended = submit("workflows/pipeline.yaml", "-p", "profile=smoke-text", PATH=place)

    assert ended.returncode == 75
    assert ended.stderr.splitlines()[-1] == (
        "submit: pipeline-1 goes on unseen; see how: argo watch --namespace loraline pipeline-1"
    )
    assert "Traceback" not in ended.stderr


@pytest.fixture
def source(script, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "workflows")
    return script("workflows/submit.py")


MINE = "extends: smoke-text\nregistered_model: mine-lora\nr: 4\n"
PIPELINE = ROOT / "workflows/pipeline.yaml"


def test_a_recipe_that_no_image_holds_is_sent_with_the_workflow(
    source: ModuleType, workplace: Path
) -> None:
    (workplace / "mine.yaml").write_text(MINE)
    file, given = source.with_recipes(PIPELINE, ["profile=mine.yaml", "set=gate.min_rows=3"])
    values = dict(parameter.partition("=")[::2] for parameter in given)
    sent = yaml.safe_load(values["recipes"])["mine"]

    assert (values["profile"], values["set"]) == ("mine", "gate.min_rows=3")
    assert (sent["registered_model"], sent["r"]) == ("mine-lora", 4)
    assert sent["base"] == "test_data/text/base"
    assert "extends" not in sent
    assert file == Path("outputs/workflows/pipeline.yaml")
    # The registry's mutex is that of the recipe's model.
    assert "'mine':'mine-lora'" in file.read_text()


def dry_run(file: Path, parameters: Sequence[str]) -> str:
    """What a local run of a workflow prints that it would run."""
    words = [word for parameter in parameters for word in ("-p", parameter)]
    return subprocess.run(
        [sys.executable, "-m", "runner.run_local", file, "--dry-run", *words],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    ).stdout


def test_the_steps_of_a_sent_recipe_are_given_it(source: ModuleType, workplace: Path) -> None:
    (workplace / "mine.yaml").write_text(MINE)
    printed = dry_run(*source.with_recipes(PIPELINE, ["profile=mine.yaml"]))
    for step in ("prepare-data", "train-qlora", "quality-gate"):
        command = printed.partition(f"{step}: ")[2].partition("--out-dir")[0]
        assert "--recipes 'mine:" in command
        assert "registered_model: mine-lora" in command


def test_a_recipe_with_dollars_arrives_as_it_was_written(
    source: ModuleType, workplace: Path
) -> None:
    columns = {"answer": "$${latex}$$", "question": "What is $(HF_HOME)?"}
    recipe = {**yaml.safe_load(MINE), "prepare": {"columns": columns}}
    (workplace / "mine.yaml").write_text(yaml.safe_dump(recipe))
    printed = dry_run(*source.with_recipes(PIPELINE, ["profile=mine.yaml"]))
    command = shlex.split(printed.partition("prepare-data: ")[2].partition("train-qlora: ")[0])
    arrived = yaml.safe_load(command[command.index("--recipes") + 1])
    assert arrived["mine"]["prepare"]["columns"] == columns


def test_a_recipe_of_ours_goes_as_it_is_on_this_machine(source: ModuleType) -> None:
    file, given = source.with_recipes(PIPELINE, ["profile=smoke-text"])
    assert file == PIPELINE
    assert "smoke-text:\n" in given[-1]


def test_each_member_of_a_sweep_is_sent(source: ModuleType, workplace: Path) -> None:
    sweep = ROOT / "workflows/sweep.yaml"
    _, given = source.with_recipes(
        sweep, ["profile=smoke-text", 'profiles=["smoke-text", "standard"]']
    )
    assert set(yaml.safe_load(given[-1].removeprefix("recipes="))) == {"smoke-text", "standard"}


def test_the_members_of_a_sweep_are_sent_without_a_profile_as_well(source: ModuleType) -> None:
    _, given = source.with_recipes(ROOT / "workflows/sweep.yaml", ['profiles=["standard"]'])
    values = dict(parameter.partition("=")[::2] for parameter in given)
    assert values["profile"] == "smoke-vision", "the workflow's default, whose data is prepared"
    assert set(yaml.safe_load(values["recipes"])) == {"smoke-vision", "standard"}


SHARES = ROOT / "workflows/prepare_shares.yaml"


def test_a_recipe_is_sent_with_the_shares_of_a_dataset(source: ModuleType, workplace: Path) -> None:
    (workplace / "mine.yaml").write_text(MINE)
    file, given = source.with_recipes(SHARES, ["profile=mine.yaml"])
    values = dict(parameter.partition("=")[::2] for parameter in given)
    assert values["profile"] == "mine" and "mine:" in values["recipes"]
    assert file == Path("outputs/workflows/prepare_shares.yaml")
    workflow, committed = yaml.safe_load(file.read_text()), yaml.safe_load(SHARES.read_text())
    (profile, *rest), (ours, *others) = (
        each["spec"]["arguments"]["parameters"] for each in (workflow, committed)
    )
    assert set(profile["enum"]) - set(ours["enum"]) == {"mine"}
    assert rest == others
    assert workflow["spec"]["templates"] == committed["spec"]["templates"]


def test_the_shares_of_a_dataset_take_classes_of_the_cluster(
    source: ModuleType, workplace: Path
) -> None:
    classes = workplace / "classes.yaml"
    sizes = {"cpu": "2", "memory": "8Gi", "memory_limit": "8Gi"}
    classes.write_text(yaml.safe_dump({"mine": sizes}))
    file, _ = source.with_recipes(SHARES, ["resources=mine"], classes)
    parameters = yaml.safe_load(file.read_text())["spec"]["arguments"]["parameters"]
    resources = next(each for each in parameters if each["name"] == "resources")
    assert "mine" in resources["enum"]


def test_a_workflow_of_others_is_not_rendered_again(source: ModuleType, workplace: Path) -> None:
    (workplace / "mine.yaml").write_text(MINE)
    other = workplace / "other.yaml"
    other.write_text(PIPELINE.read_text())
    with pytest.raises(UserError, match="other is no workflow of this project: it cannot be"):
        source.with_recipes(other, ["profile=mine.yaml"])


@pytest.mark.parametrize(
    ("workflow", "given", "message"),
    [
        ("pipeline", ["profile=none.yaml"], "profile=none.yaml: there is no such file"),
        ("pipeline", ["profile=unknown"], "unknown profile 'unknown'; accepted: "),
        ("pipeline", ["profile=smoke-text", "set=lora_alfa=3"], "unknown key 'lora_alfa'"),
        ("pipeline", ["profile=smoke-text", "set=r='8"], "set=r='8 cannot be read: No closing"),
        ("sweep", ["profile=smoke-text", 'profiles=["nobody"]'], "unknown profile 'nobody'"),
        ("sweep", ["profile=smoke-text", "profiles=smoke-text"], "is not a JSON list of profiles"),
        ("sweep", ["profile=smoke-text", "profiles=[]"], "names no profile"),
        (
            "sweep",
            ["profile=smoke-text", 'profiles=["smoke-text", "mine", "smoke-text"]'],
            "names smoke-text twice",
        ),
    ],
)
def test_a_wrong_recipe_is_refused_before_anything_is_submitted(
    source: ModuleType, workplace: Path, workflow: str, given: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        source.with_recipes(ROOT / f"workflows/{workflow}.yaml", given)


@pytest.mark.parametrize(
    ("words", "parameters"),
    [
        (["WORKFLOW=pipeline", "PROFILE=mine"], ["profile=mine", "data=", "set="]),
        (["WORKFLOW=sweep", "PROFILE=a"], ["profile=a", "data=", 'profiles=["a"]', "set="]),
        (["WORKFLOW=promote", "PARAMS=model=m version=1"], ["model=m", "version=1"]),
    ],
)
def test_make_passes_what_the_workflow_has(words: list[str], parameters: list[str]) -> None:
    printed = subprocess.run(
        ["make", "-n", "-o", ".venv/.installed", "submit", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert [part.split("'")[0] for part in printed.split("-p '")[1:]] == parameters


@pytest.mark.parametrize(
    ("members", "sentence"),
    [
        ('["smoke-text", "nope"]', "submit: unknown profile 'nope'; accepted: aggressive"),
        ("smoke-text", "submit: -p profiles=smoke-text is not a JSON list of profiles"),
    ],
)
def test_the_members_of_a_sweep_are_looked_at_before_anything_runs(
    members: str, sentence: str
) -> None:
    given = ("-p", "profile=smoke-text", "-p", f"profiles={members}")
    ended = submit("workflows/sweep.yaml", "--check", *given)
    assert ended.returncode == 2
    assert ended.stderr.startswith(sentence)
    assert len(ended.stderr.splitlines()) == 1


def test_a_check_submits_nothing(tmp_path: Path) -> None:
    given = ("-p", "profile=smoke-text", "-p", 'profiles=["smoke-text"]')
    ended = submit("workflows/sweep.yaml", "--check", *given, PATH=str(tmp_path))
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")
