"""One version a logged model and a right alias, whatever happens to how many gates."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlflow
import pytest

from loraline.tracking import registry, tags
from loraline.tracking.runs import ancestor

ROOT = Path(__file__).parents[2]
MODEL = "mistral-7b-lora"

Gates = Callable[..., list[int]]


@pytest.fixture(scope="module")
def processes() -> Iterator[subprocess.Popen[str]]:
    script = Path(__file__).with_name("gate_processes.py")
    started = subprocess.Popen(
        [sys.executable, script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    yield started
    assert started.stdin
    started.stdin.close()
    started.wait(30)


@pytest.fixture(params=["sqlite", pytest.param("server", marks=pytest.mark.slow)])
def gates(
    request: pytest.FixtureRequest, processes, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> Gates:
    """Run gates on evaluate runs at once, each in its own process; return their exit codes."""
    store = f"sqlite:///{workplace}/mlruns/mlflow.db"
    if request.param == "server":
        store = request.getfixturevalue("mlflow_server")
        monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", workplace.name)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    mlflow.set_tracking_uri(store)

    def run(*run_ids: str, **options: Any) -> list[int]:
        job = {"cwd": str(workplace), "store": store, **options}
        jobs = [
            {**job, "run_id": run_id, "out_dir": f"outputs/{number}"}
            for number, run_id in enumerate(run_ids)
        ]
        processes.stdin.write(json.dumps(jobs) + "\n")
        processes.stdin.flush()
        return json.loads(processes.stdout.readline())

    yield run
    forget()


def forget() -> None:
    """Make the registry empty."""
    client = mlflow.MlflowClient()
    for result in client.search_registered_models():
        client.delete_registered_model(result.name)


def model_of(evaluate_run: str) -> str:
    client = mlflow.MlflowClient()
    run = ancestor(client, client.get_run(evaluate_run), "train_qlora")
    return run.data.tags[tags.MODEL_ID]


def state() -> tuple[dict[str, str], str | None, str | None]:
    """Versions by logged model, `candidate` and `previous`, both as the logged model they mean."""
    client = mlflow.MlflowClient()
    assert [result.name for result in client.search_registered_models()] == [MODEL]
    versions = {
        str(result.version): result.source.removeprefix("models:/")
        for result in client.search_model_versions(f"name='{MODEL}'")
    }
    assert len(set(versions.values())) == len(versions)
    aliases = [registry.version_of(client, MODEL, alias) for alias in ("candidate", "previous")]
    candidate, previous = (alias and versions[str(alias.version)] for alias in aliases)
    return {model: version for version, model in versions.items()}, candidate, previous


def test_two_gates_on_one_candidate_register_it_once(gates: Gates, candidate) -> None:
    run_id = candidate()
    for _ in range(4):
        assert gates(run_id, run_id) == [0, 0]
        versions, named, previous = state()
        assert versions == {model_of(run_id): "1"}
        assert (named, previous) == (model_of(run_id), None)
        forget()


def test_two_gates_on_two_candidates_make_one_the_candidate_and_the_other_previous(
    gates: Gates, candidate
) -> None:
    runs = [candidate(name="one"), candidate(name="two")]
    models = {model_of(run_id) for run_id in runs}
    for _ in range(4):
        assert gates(*runs) == [0, 0]
        versions, named, previous = state()
        assert set(versions) == {named, previous} == models
        forget()


@pytest.mark.slow
def test_a_gate_killed_anywhere_and_run_again_leaves_no_trace(gates: Gates, candidate) -> None:
    old, new = candidate(name="old"), candidate(name="new")
    killed = 0
    while True:
        version = mlflow.register_model(f"models:/{model_of(old)}", MODEL).version
        mlflow.MlflowClient().set_registered_model_alias(MODEL, "candidate", str(version))
        (code,) = gates(new, die_before=killed + 1)
        if code == 0:
            break
        assert code == -signal.SIGKILL
        killed += 1
        assert gates(new) == [0]
        versions, named, previous = state()
        assert versions == {model_of(old): "1", model_of(new): "2"}
        assert (named, previous) == (model_of(new), model_of(old))
        forget()
    assert killed > 10


@pytest.mark.slow
def test_twenty_runs_of_a_gate_leave_one_version(gates: Gates, candidate) -> None:
    run_id = candidate()
    for _ in range(20):
        assert gates(run_id) == [0]
    versions, named, previous = state()
    assert versions == {model_of(run_id): "1"}
    assert (named, previous) == (model_of(run_id), None)
