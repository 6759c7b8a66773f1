"""An adapter that vLLM would refuse is refused in the same words wherever a step meets it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlflow
import pytest

from loraline import contract
from loraline.serving import adapter_config
from loraline.tracking import runs, tags
from loraline.training import trained_contract

MODEL = "mistral-7b-lora"
WORDS = "cannot be served: "


def spoil(adapter: Path) -> None:
    """What vLLM refuses, in two settings."""
    file = adapter / adapter_config.CONFIG
    file.write_text(json.dumps(json.loads(file.read_text()) | {"use_dora": True, "bias": "all"}))


def spoil_logged(run_id: str) -> str:
    """Change the adapter that a run was made of, and what the runs know of it; its digest."""
    client = mlflow.MlflowClient()
    train = runs.ancestor(client, client.get_run(run_id), "train_qlora")
    logged = mlflow.get_logged_model(train.data.tags[tags.MODEL_ID])
    adapter = Path(logged.artifact_location.removeprefix("file://")) / runs.ADAPTER
    spoil(adapter)
    digest = contract.folder_digest(adapter)
    for known in (train.info.run_id, run_id):
        client.set_tag(known, tags.ADAPTER_DIGEST, digest)
    for version in client.search_model_versions(f"name = '{MODEL}'"):
        client.set_model_version_tag(MODEL, version.version, tags.ADAPTER_DIGEST, digest)
    return digest


@pytest.fixture
def at_the_end_of_training(step, data_run: str, quick, monkeypatch: pytest.MonkeyPatch) -> str:
    """A training whose adapter is spoilt once it is written."""
    writes = trained_contract.write

    def write(adapter: Path, *arguments: Any) -> contract.Contract:
        spoil(adapter)
        return writes(adapter, *arguments)

    monkeypatch.setattr(trained_contract, "write", write)
    return refusal(step("train_qlora", "--run-id", data_run, "--profile", quick("one")))


@pytest.fixture
def in_the_gate(step, candidate) -> str:
    evaluated = candidate(name="spoilt")
    spoil_logged(evaluated)
    return refusal(step("quality_gate", "--run-id", evaluated))


@pytest.fixture
def behind_the_gate(step, workplace: Path, candidate) -> tuple[str, str]:
    """In deploy_vllm and in the pod's init container, of what the gate had let through."""
    assert step("quality_gate", "--run-id", candidate(name="sound")).exit_code == 0
    gate_run = (workplace / "outputs/run-id").read_text()
    digest = spoil_logged(gate_run)
    deployed = refusal(step("deploy_vllm", "--run-id", gate_run))
    version = ("--model", f"models:/{MODEL}/1", "--sha256", digest, "--out-dir", "served")
    fetched = refusal(step("fetch_adapter", *version))
    assert not (workplace / "served").exists()
    return deployed, fetched


def refusal(result) -> str:
    """What a step says of the adapter, whose name differs."""
    assert result.exit_code == 2, result.stderr
    assert WORDS in result.stderr, result.stderr
    return str(result.stderr.partition(WORDS)[2].strip())


def test_training_gate_deployment_and_pod_say_the_same(
    in_the_gate: str, behind_the_gate: tuple[str, str], at_the_end_of_training: str
) -> None:
    assert "use_dora: is True, which vLLM refuses" in in_the_gate
    assert "bias: " in in_the_gate
    assert {at_the_end_of_training, *behind_the_gate} == {in_the_gate}


def test_what_a_servers_pod_reads_with_makes_no_experiment(
    step, workplace: Path, candidate, monkeypatch: pytest.MonkeyPatch
) -> None:
    step("quality_gate", "--run-id", candidate())
    client = mlflow.MlflowClient()
    digest = client.get_model_version(MODEL, "1").tags[tags.ADAPTER_DIGEST]
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "of the pod")
    fetch = ("--model", f"models:/{MODEL}/1", "--sha256", digest, "--out-dir", "fetched")
    assert step("fetch_adapter", *fetch).exit_code == 0
    assert (workplace / "fetched" / contract.FILE).is_file()
    assert client.get_experiment_by_name("of the pod") is None
