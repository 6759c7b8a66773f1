"""What whoever may write tags brings about: a sentence, and never a file lost or a file served."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import attacks
import changes
import pytest
from mlflow import MlflowClient

from loraline import contract
from loraline.errors import TryAgain, UserError
from loraline.evaluation import champion
from loraline.tracking import lock, registry, runs, signature, store, tags
from loraline.training import checkpoint, curves, resume

MODEL = "mistral-7b-lora"


@pytest.mark.parametrize("name", ["absolute", "upwards", "step-1/../../..", ""])
def test_a_checkpoint_that_is_none_costs_no_file(workplace: Path, name: str) -> None:
    """A tag that leads out of the folder for checkpoints is put aside, and nothing is removed."""
    precious = workplace / "precious"
    (precious / "scratch" / checkpoint.FOLDER).mkdir(parents=True)
    (precious / "file").write_text("mine")
    client = store.connect()
    with runs.open_run("train_qlora", name="t", fingerprint="t") as run:
        named = {"absolute": str(precious), "upwards": "../.."}.get(name, name)
        client.set_tag(run.info.run_id, tags.CHECKPOINT, named)
    broken = client.get_run(run.info.run_id)
    assert checkpoint.fetch(client, broken, precious / "scratch") is None
    assert (precious / "file").read_text() == "mine"
    assert (precious / "scratch" / checkpoint.FOLDER).is_dir()


GARBAGE = ["{", "null", "[1]", "7", "", "x:y", "\u00b2", "[" * 3000]


@pytest.mark.parametrize(
    "tag", [tags.INPUTS, tags.LEASE, tags.PROCESS, tags.CHECKPOINTS_ASIDE, tags.SPENT]
)
def test_a_training_begins_whatever_an_earlier_one_says(workplace: Path, tag: str) -> None:
    """An unfinished run of the same inputs with a tag that nobody can read."""
    client = store.connect()
    inputs = {"dataset": "d"}
    for number, text in enumerate(GARBAGE):
        profile = f"p{number}"
        stopped = {tags.PROFILE: profile, tags.CHECKPOINT: "step-1", **resume.identity(inputs)}
        with (
            suppress(TryAgain),
            runs.open_run("train_qlora", name="t", fingerprint=profile, tags=stopped) as run,
        ):
            raise TryAgain("stopped")
        client.set_tag(run.info.run_id, tag, text)
        if tag in (tags.LEASE, tags.PROCESS):
            client.update_run(run.info.run_id, status="RUNNING")
        if tag == tags.LEASE:
            client.set_tag(run.info.run_id, tags.PROCESS, "elsewhere:1:2")
        earlier = resume.choose(client, profile, inputs, None, False)
        assert (earlier is None) == (tag == tags.INPUTS)
        if earlier is not None:
            assert checkpoint.fetch(client, earlier, workplace / "scratch") is None
            assert curves.spent_before(earlier) == {}
            runs.end_dead(client, "train_qlora", profile, client.get_run(run.info.run_id))


def test_a_lock_of_nobody_is_waited_for_and_then_taken(workplace: Path) -> None:
    client = store.connect()
    here = lock.pid_namespace()
    for holder in ("x", f"{here}:x:y", f"{here}:{2**70}:y"):
        client.create_registered_model(f"{MODEL}.lock", {lock.HOLDER: holder})
        lock.clear_dead(client, MODEL)
        with lock.locked(client, MODEL, lease_seconds=1.5):
            assert lock.holder_of(client, f"{MODEL}.lock") != holder
        assert client.search_registered_models() == []


def evil_of(step: Callable, candidate: Callable) -> tuple[MlflowClient, str, str]:
    """A version that a gate passed, and the address of a logged model that none has seen."""
    step("quality_gate", "--run-id", candidate())
    client = store.connect()
    other = client.get_run(candidate(name="evil", weight=9.0)).data.tags[tags.UPSTREAM]
    evil = client.get_run(other).data.tags[tags.MODEL_ID]
    return client, Path("outputs/run-id").read_text(), f"models:/{evil}"


def test_a_registered_model_that_was_made_anew_has_no_judged_version(step, candidate) -> None:
    """Its versions are counted from 1 again, so that a judged one's number can be had."""
    client, _, evil = evil_of(step, candidate)
    judged = client.get_model_version(MODEL, "1")
    client.delete_registered_model(MODEL)
    client.create_registered_model(MODEL)
    client.create_model_version(MODEL, evil, judged.run_id, tags=dict(judged.tags))
    client.set_model_version_tag(MODEL, "1", registry.PROMOTED_GATE, judged.tags[tags.GATE_RUN])
    client.set_registered_model_alias(MODEL, "candidate", "1")
    result = step("promote", "--model", MODEL)
    assert result.exit_code == 2
    assert "version 1 of 'mistral-7b-lora' has tags that no gate wrote" in result.stderr
    assert registry.version_of(client, MODEL, "champion") is None
    with pytest.raises(UserError):
        registry.promoting_gate_run_of(client, client.get_model_version(MODEL, "1"))


def test_a_gate_run_that_names_another_version_deploys_nothing(step, candidate) -> None:
    client, gate_run, evil = evil_of(step, candidate)
    judged = client.get_model_version(MODEL, "1")
    client.create_model_version(MODEL, evil, judged.run_id, tags=dict(judged.tags))
    client.set_tag(gate_run, tags.MODEL_VERSION, "2")
    result = step("deploy_vllm", "--run-id", gate_run, "--gpu", "cpu", "--out-dir", "deployed")
    assert result.exit_code == 2
    assert "version 2 of 'mistral-7b-lora' has tags that no gate wrote" in result.stderr
    assert not Path("deployed/vllm.yaml").exists()


def test_a_champion_whose_digest_was_removed_is_held_to_its_trainings(
    step, candidate, workplace: Path
) -> None:
    """Worse files in its place would be easy to beat."""
    run_id = candidate()
    step("quality_gate", "--run-id", run_id)
    client = store.connect()
    adapter = attacks.Candidate(workplace, run_id).adapter
    champion.expect_judged(client.get_model_version(MODEL, "1"), contract.folder_digest(adapter))
    client.delete_model_version_tag(MODEL, "1", tags.ADAPTER_DIGEST)
    champion.expect_judged(client.get_model_version(MODEL, "1"), contract.folder_digest(adapter))
    changes.louder(adapter)
    with pytest.raises(UserError, match="the champion, version 1, has digest"):
        champion.expect_judged(
            client.get_model_version(MODEL, "1"), contract.folder_digest(adapter)
        )


def test_what_was_fetched_without_a_signature_is_no_signed_adapter(
    step, candidate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pod that is given the public key later, over a folder that stayed."""
    from test_signature import pair

    step("quality_gate", "--run-id", candidate())
    digest = store.connect().get_model_version(MODEL, "1").tags[tags.ADAPTER_DIGEST]
    fetch = ("--model", f"models:/{MODEL}/1", "--sha256", digest, "--out-dir", "fetched")
    assert step("fetch_adapter", *fetch).exit_code == 0
    monkeypatch.setenv(signature.VERIFY_KEY, pair()[1])
    result = step("fetch_adapter", *fetch)
    assert result.exit_code == 2
    assert "is not signed" in result.stderr
