from pathlib import Path

import mlflow
import pytest
import yaml

from loraline import tracking


@pytest.fixture
def gate_run(step, workplace: Path, candidate) -> str:
    step("quality_gate", "--run-id", candidate())
    return (workplace / "outputs" / "run-id").read_text()


def test_the_manifest_pins_the_registered_version(step, workplace: Path, gate_run: str) -> None:
    assert step("deploy_vllm", "--run-id", gate_run).exit_code == 0
    text = (workplace / "outputs" / "vllm.yaml").read_text()
    kinds = {document["kind"]: document for document in yaml.safe_load_all(text)}
    assert set(kinds) == {"ConfigMap", "Deployment", "Service"}
    annotations = kinds["Deployment"]["metadata"]["annotations"]
    assert annotations["loraline/registered-version"] == "models:/mistral-7b-lora/1"
    assert "@candidate" not in text
    deployed = (workplace / "outputs" / "run-id").read_text()
    assert mlflow.artifacts.load_text(f"runs:/{deployed}/vllm.yaml") == text


def test_the_same_version_renders_the_same_bytes(step, workplace: Path, gate_run: str) -> None:
    step("deploy_vllm", "--run-id", gate_run)
    first = (workplace / "outputs" / "vllm.yaml").read_bytes()
    assert "reused" in step("deploy_vllm", "--run-id", gate_run).stdout
    assert (workplace / "outputs" / "vllm.yaml").read_bytes() == first
    step("deploy_vllm", "--run-id", gate_run, "--force")
    assert (workplace / "outputs" / "vllm.yaml").read_bytes() == first


def test_a_rejected_candidate_is_not_deployed(step, workplace: Path, candidate) -> None:
    step("quality_gate", "--run-id", candidate(tuned_perplexity=5.0))
    gate_run = (workplace / "outputs" / "run-id").read_text()
    result = step("deploy_vllm", "--run-id", gate_run)
    assert result.exit_code == 2
    assert "rejected its candidate (tuned_perplexity 5.0 is not at most 2)" in result.stderr
    assert not (workplace / "outputs" / "vllm.yaml").exists()


def test_the_manifest_names_the_server_but_no_credential(
    step, workplace: Path, gate_run: str, monkeypatch: pytest.MonkeyPatch, script
) -> None:
    from loraline.settings import Settings

    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@mlflow:5000")
    monkeypatch.setenv("MLFLOW_S3_ENDPOINT_URL", "http://s3:9000")
    found = script("steps/deploy_vllm.py").fetch_environment(Settings())
    assert found == {
        "MLFLOW_TRACKING_URI": "http://mlflow:5000",
        "MLFLOW_S3_ENDPOINT_URL": "http://s3:9000",
    }


def test_the_training_run_tells_what_is_deployed(step, workplace: Path, gate_run: str) -> None:
    step("deploy_vllm", "--run-id", gate_run)
    client = mlflow.MlflowClient()
    train = tracking.ancestor(client, client.get_run(gate_run), "train_qlora")
    assert train.data.tags["loraline.deployed"] == "models:/mistral-7b-lora/1"
