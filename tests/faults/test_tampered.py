"""What is measured, judged, rendered and fetched is what was trained; else nothing moves."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import attacks
import changes
import mlflow
import pytest
from cells import Cell

from loraline import contract
from loraline.errors import UserError
from loraline.tracking import identity, runs, store, tags

MODEL = "mistral-7b-lora"


def adapter_of(eval_run: str) -> Path:
    """The stored files of an evaluation's adapter."""
    client = store.connect()
    train = runs.ancestor(client, client.get_run(eval_run), "train_qlora")
    place = client.get_logged_model(train.data.tags[tags.MODEL_ID]).artifact_location
    return Path(place.removeprefix("file://"), "artifacts", "adapter")


@pytest.mark.parametrize("change", changes.ADAPTER, ids=lambda change: change.__name__)
def test_an_adapter_that_was_changed_moves_nothing(
    step, candidate, workplace: Path, change: Callable[[Path], None]
) -> None:
    eval_run = candidate()
    adapter = adapter_of(eval_run)
    kept = shutil.copytree(adapter, workplace / "kept")
    change(adapter)
    judged = Cell(
        "adapter changed", "quality_gate", "after evaluate", 2, "what train_qlora trained"
    )
    result = step("quality_gate", "--run-id", eval_run)
    assert result.exit_code == judged.exit_code
    assert judged.sentence + " is not what is here: the adapter has digest" in result.stderr
    assert store.connect().search_registered_models() == []

    shutil.rmtree(adapter)
    shutil.copytree(kept, adapter)
    assert step("quality_gate", "--run-id", eval_run).exit_code == 0
    gate_run = (workplace / "outputs" / "run-id").read_text()
    change(adapter)
    result = step("deploy_vllm", "--run-id", gate_run, "--gpu", "cpu", "--out-dir", "deployed")
    assert result.exit_code == 2
    assert "is not what is here: the adapter has digest" in result.stderr
    assert not (workplace / "deployed").exists()

    digest = mlflow.get_run(gate_run).data.tags[tags.ADAPTER_DIGEST]
    fetch = ("--model", f"models:/{MODEL}/1", "--sha256", digest, "--out-dir", "fetched/v1")
    result = step("fetch_adapter", *fetch)
    assert result.exit_code == 2
    assert "what quality_gate judged is not what is here: " in result.stderr
    assert not (workplace / "fetched" / "v1").exists()


def test_digests_that_were_changed_together_are_those_of_no_measurement(
    step, candidate, workplace: Path
) -> None:
    eval_run = candidate()
    changes.other_weights(adapter_of(eval_run))
    client = store.connect()
    train = runs.ancestor(client, client.get_run(eval_run), "train_qlora")
    digest = contract.folder_digest(adapter_of(eval_run))
    client.set_tag(train.info.run_id, tags.ADAPTER_DIGEST, digest)
    result = step("quality_gate", "--run-id", eval_run)
    assert result.exit_code == 2
    assert "what evaluate measured is not what is here: " in result.stderr


def test_a_run_without_a_digest_is_refused(step, candidate) -> None:
    eval_run = candidate()
    store.connect().delete_tag(eval_run, tags.ADAPTER_DIGEST)
    result = step("quality_gate", "--run-id", eval_run)
    assert result.exit_code == 2
    assert f"run {eval_run} of evaluate keeps no digest of the adapter" in result.stderr


@pytest.mark.parametrize("value", ["", "m-0123"], ids=["gone", "wrong"])
def test_a_run_without_its_logged_model_is_refused(step, candidate, value: str) -> None:
    eval_run = candidate()
    client = store.connect()
    train = runs.ancestor(client, client.get_run(eval_run), "train_qlora").info.run_id
    client.set_tag(train, tags.MODEL_ID, value) if value else client.delete_tag(
        train, tags.MODEL_ID
    )
    result = step("quality_gate", "--run-id", eval_run)
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    "content", [{"registered_model": "another-lora"}, {"registered_model": "../x"}, {"r": "many"}]
)
def test_another_profile_registers_nothing(step, candidate, content: dict[str, str]) -> None:
    eval_run = candidate()
    client = store.connect()
    train = runs.ancestor(client, client.get_run(eval_run), "train_qlora")
    file = Path(train.info.artifact_uri.removeprefix("file://"), "profile.json")
    file.write_text(json.dumps(json.loads(file.read_text()) | content))
    result = step("quality_gate", "--run-id", eval_run)
    assert result.exit_code == 2
    assert "what train_qlora trained is not what is here: profile.json has digest" in result.stderr
    assert client.search_registered_models() == []


def dataset_of(data_run: str) -> Path:
    place = store.connect().get_run(data_run).info.artifact_uri
    return Path(place.removeprefix("file://"), "dataset")


@pytest.mark.parametrize(
    "change",
    changes.DATASET,
    ids=lambda change: change.__name__,
)
def test_a_dataset_that_was_changed_is_not_used(
    step, data_run: str, workplace: Path, quick, change: Callable[[Path], None]
) -> None:
    change(dataset_of(data_run))
    result = step("train_qlora", "--run-id", data_run, "--profile", quick("one"))
    assert result.exit_code == 2, result.output
    assert "what prepare_data logged is not what is here: " in result.stderr
    client = store.connect()
    run = client.get_run(data_run)
    if change in (changes.all_lost, changes.cut, changes.listed, changes.unlisted):
        with pytest.raises(UserError, match="what prepare_data logged is not what is here"):
            runs.download_dataset(client, run, workplace / "again", "test")
    else:
        runs.download_dataset(client, run, workplace / "again", "test")


def test_a_dataset_that_stayed_is_used(data_run: str, workplace: Path) -> None:
    client = store.connect()
    run = client.get_run(data_run)
    with runs.dataset(client, run) as folder:
        identity.check_dataset(folder, run)


def test_a_version_that_a_later_gate_rejected_is_deployed_on_demand_alone(
    step, candidate, workplace: Path
) -> None:
    eval_run = candidate()
    step("quality_gate", "--run-id", eval_run)
    gate_run = (workplace / "outputs" / "run-id").read_text()
    (workplace / "strict.yaml").write_text("min_bleu: 99\n")
    step("quality_gate", "--run-id", eval_run, "--policy", "strict.yaml")
    deploy = ("--run-id", gate_run, "--gpu", "cpu", "--out-dir", "deployed")
    result = step("deploy_vllm", *deploy)
    assert result.exit_code == 2
    assert "was rejected by a later gate: tuned_bleu" in result.stderr
    assert "add --although-rejected" in result.stderr
    result = step("deploy_vllm", *deploy, "--although-rejected")
    assert result.exit_code == 0, result.output
    assert "warning: version 1 of 'mistral-7b-lora' was rejected by a later gate" in result.stderr


def test_a_champion_that_was_promoted_by_its_gate_run_is_deployed_with_a_warning(
    step, candidate, workplace: Path
) -> None:
    eval_run = candidate()
    step("quality_gate", "--run-id", eval_run)
    step("promote", "--model", MODEL, "--out-dir", "promoted")
    gate_run = (workplace / "promoted" / "run-id").read_text()
    (workplace / "strict.yaml").write_text("min_bleu: 99\n")
    step("quality_gate", "--run-id", eval_run, "--policy", "strict.yaml")
    result = step("deploy_vllm", "--run-id", gate_run, "--gpu", "cpu")
    assert result.exit_code == 0, result.output
    assert "was rejected by a later gate" in result.stderr


def test_a_champion_trained_once_more_is_deployed_with_its_own_files(
    step, candidate, workplace: Path
) -> None:
    """Both are served alike, and differ in the name that the prompt is kept under."""
    step("quality_gate", "--run-id", candidate())
    step("promote", "--model", MODEL)
    champion = store.connect().get_model_version(MODEL, "1").tags[tags.ADAPTER_DIGEST]
    called = {tags.CHAMPION: "1", tags.CHAMPION_AGAIN: "1"}
    again = attacks.Candidate(workplace, candidate(name="two", tags=called))
    changes.agreed(again.adapter, prompt_uri="prompts:/other/2")
    again.agree()
    assert step("quality_gate", "--run-id", again.eval_run).exit_code == 0
    gate_run = mlflow.get_run((workplace / "outputs" / "run-id").read_text())
    assert gate_run.data.tags[tags.ADAPTER_DIGEST] != champion
    result = step("deploy_vllm", "--run-id", gate_run.info.run_id, "--gpu", "cpu")
    assert result.exit_code == 0, result.output
    assert champion in (workplace / "outputs" / "vllm.yaml").read_text()


@pytest.mark.parametrize("gone", ["version", "model"])
def test_a_version_that_was_deleted_is_not_deployed(
    step, candidate, workplace: Path, gone: str
) -> None:
    step("quality_gate", "--run-id", candidate())
    gate_run = (workplace / "outputs" / "run-id").read_text()
    client = store.connect()
    if gone == "version":
        client.delete_model_version(MODEL, "1")
    else:
        client.delete_registered_model(MODEL)
    result = step("deploy_vllm", "--run-id", gate_run, "--gpu", "cpu")
    assert result.exit_code == 2
    assert f"version 1 of registered model {MODEL!r}" in result.stderr
    assert "was deleted" in result.stderr
