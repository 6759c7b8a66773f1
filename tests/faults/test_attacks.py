"""An adapter, a store, a dataset or a base that was made to do harm: exit code 2 and a sentence."""

from __future__ import annotations

import json
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import attacks
import mlflow
import pytest

from loraline import contract
from loraline.serving import expressions
from loraline.tracking import store, tags

MODEL = "mistral-7b-lora"


def refused(result, sentence: str) -> None:
    assert result.exit_code == 2, result.output
    message = result.stderr.splitlines()[-1]
    assert sentence in message
    assert len(message) < 1000
    assert "Traceback" not in result.output


@pytest.mark.parametrize("name", attacks.ADAPTER)
def test_a_malicious_adapter_is_not_registered(
    step, candidate, workplace: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(expressions, "SECONDS", 2.0)
    attack, sentence = attacks.ADAPTER[name]
    place = attacks.Candidate(workplace, candidate())
    attack(place)
    refused(step("quality_gate", "--run-id", place.eval_run), sentence)
    assert store.connect().search_registered_models() == []


@pytest.mark.parametrize("name", attacks.STORE)
def test_a_run_whose_tags_were_tampered_with_passes_no_gate(
    step, candidate, workplace: Path, name: str
) -> None:
    attack, sentence = attacks.STORE[name]
    place = attacks.Candidate(workplace, candidate())
    store.connect().log_param(place.train_run, "profile", "standard")
    attack(place)
    refused(step("quality_gate", "--run-id", place.eval_run), sentence)
    assert store.connect().search_registered_models() == []


POLICIES = {
    "no number": "min_bleu: .nan\n",
    "endless": "max_perplexity: .inf\nmin_bleu: .nan\n",
    "of another type": "min_bleu: [0]\n",
    "code": "min_bleu: !!python/object/apply:os.system ['id']\n",
    "aliases without end": "a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\nmin_bleu: *c\n",
    "key twice": "min_bleu: 60\nmin_bleu: 0\n",
    "rule of nobody": "passes: true\n",
}
"""Policies that somebody may hand to the gate: each is refused, and none lets anything pass."""


@pytest.mark.parametrize("name", POLICIES)
def test_a_malicious_policy_lets_nothing_pass(step, candidate, workplace: Path, name: str) -> None:
    (workplace / "policy.yaml").write_text(POLICIES[name])
    result = step("quality_gate", "--run-id", candidate(), "--policy", "policy.yaml")
    refused(result, "policy policy.yaml")
    assert store.connect().search_registered_models() == []


def test_who_is_called_the_champion_without_being_it_passes_no_gate(
    step, candidate, workplace: Path
) -> None:
    step("quality_gate", "--run-id", candidate())
    client = store.connect()
    client.set_registered_model_alias(MODEL, "champion", "1")
    called = {tags.CHAMPION: "1", tags.CHAMPION_AGAIN: "1"}
    result = step("quality_gate", "--run-id", candidate(name="two", weight=2.0, tags=called))
    refused(result, "it is not served as version 1 of 'mistral-7b-lora'")
    assert [str(outcome.version) for outcome in client.search_model_versions("")] == ["1"]


@pytest.mark.slow
@pytest.mark.parametrize("name", attacks.DATASET)
def test_a_malicious_dataset_is_not_trained_on(step, data_run: str, quick, name: str) -> None:
    change, sentence = attacks.DATASET[name]
    stored = Path(mlflow.get_run(data_run).info.artifact_uri.removeprefix("file://"), "dataset")
    manifest = json.loads((stored / "manifest.json").read_text())
    change(manifest)
    (stored / "manifest.json").write_text(json.dumps(manifest))
    digest = contract.sha256(stored / "manifest.json")
    store.connect().set_tag(data_run, tags.DATASET_DIGEST, digest)
    with closing(sqlite3.connect("mlruns/mlflow.db", isolation_level=None)) as database:
        # Of a dataset of an earlier version, whose digest is a tag alone.
        database.execute("DELETE FROM params WHERE key = ?", [tags.DATASET_DIGEST])
    refused(step("train_qlora", "--run-id", data_run, "--profile", quick("one")), sentence)


@pytest.mark.slow
@pytest.mark.parametrize("name", attacks.BASE)
def test_a_malicious_base_runs_nothing(
    step, data_run: str, quick, workplace: Path, name: str
) -> None:
    attack, sentence = attacks.BASE[name]
    base = shutil.copytree("test_data/text/base", workplace / "base")
    attack(base)
    evil = workplace / "evil"
    (base / "evil.py").write_text(f"open({str(evil)!r}, 'w').close()\n")
    result = step("train_qlora", "--run-id", data_run, "--profile", quick("evil", base=str(base)))
    refused(result, sentence)
    assert not evil.exists()


@pytest.mark.parametrize(
    "run_id",
    ["../../etc/passwd", "0" * 32, "'; DROP TABLE runs; --", "models:/x/1", "x" * 500],
    ids=["path", "unknown", "statement", "model", "long"],
)
def test_a_run_that_is_none_is_refused(step, workplace: Path, run_id: str) -> None:
    refused(step("quality_gate", "--run-id", run_id), "is not a run of MLflow")
