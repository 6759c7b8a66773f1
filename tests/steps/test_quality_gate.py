import json
import math
from pathlib import Path

import mlflow
import pytest
from mlflow.exceptions import MlflowException

from loraline import profiles, tracking

MODEL = "mistral-7b-lora"


def versions() -> list[str]:
    client = mlflow.MlflowClient()
    return sorted(str(found.version) for found in client.search_model_versions(f"name='{MODEL}'"))


def alias() -> str:
    return str(mlflow.MlflowClient().get_model_version_by_alias(MODEL, "candidate").version)


def test_a_good_candidate_is_registered_with_the_alias(step, workplace: Path, candidate) -> None:
    result = step("quality_gate", "--run-id", candidate())
    assert result.exit_code == 0
    assert (workplace / "outputs" / "result").read_text() == "passed"
    assert versions() == [alias()] == ["1"]
    found = mlflow.MlflowClient().get_model_version(MODEL, "1")
    assert found.run_id == tracking_run(workplace, "train_qlora").info.run_id
    assert found.tags[tracking.RESULT] == "passed"
    assert "tuned_perplexity 1.5, limit at most 2" in found.description


def tracking_run(workplace: Path, step_name: str):
    gate = mlflow.get_run((workplace / "outputs" / "run-id").read_text())
    return tracking.ancestor(mlflow.MlflowClient(), gate, step_name)


@pytest.mark.parametrize("value", [2.1, math.nan])
def test_a_bad_candidate_is_a_result_and_not_an_error(
    step, workplace: Path, candidate, value: float
) -> None:
    result = step("quality_gate", "--run-id", candidate(tuned_perplexity=value))
    assert result.exit_code == 0
    assert (workplace / "outputs" / "result").read_text() == "failed"
    assert versions() == []
    with pytest.raises(MlflowException):
        mlflow.MlflowClient().get_registered_model(MODEL)
    for name in ("quality_gate", "train_qlora"):
        tags = tracking_run(workplace, name).data.tags
        assert tags[tracking.RESULT] == "failed"
        assert "tuned_perplexity" in tags[tracking.REASON]


@pytest.mark.parametrize(
    ("weight", "told"),
    [(0.0, "all lora_B weights are zero"), (math.inf, "holds NaN or infinity")],
)
def test_an_adapter_that_vllm_would_serve_wrong_is_rejected(
    step, workplace: Path, candidate, weight: float, told: str
) -> None:
    assert step("quality_gate", "--run-id", candidate(weight=weight)).exit_code == 0
    assert (workplace / "outputs" / "result").read_text() == "failed"
    assert told in tracking_run(workplace, "train_qlora").data.tags[tracking.REASON]
    assert versions() == []


def test_a_rejected_candidate_keeps_the_old_alias(step, candidate) -> None:
    step("quality_gate", "--run-id", candidate(name="good"))
    step("quality_gate", "--run-id", candidate(name="bad", tuned_perplexity=3.0))
    assert (versions(), alias()) == (["1"], "1")


def test_a_better_candidate_takes_the_alias(step, candidate) -> None:
    step("quality_gate", "--run-id", candidate(name="one"))
    step("quality_gate", "--run-id", candidate(name="two"))
    assert (versions(), alias()) == (["1", "2"], "2")


def test_the_gate_registers_once_however_often_it_runs(step, candidate) -> None:
    run_id = candidate()
    for extra in ((), (), ("--force",), ("--force",)):
        assert step("quality_gate", "--run-id", run_id, *extra).exit_code == 0
    assert (versions(), alias()) == (["1"], "1")


def test_an_unchanged_gate_is_reused(step, workplace: Path, candidate) -> None:
    run_id = candidate()
    step("quality_gate", "--run-id", run_id)
    first = (workplace / "outputs" / "run-id").read_text()
    assert "reused" in step("quality_gate", "--run-id", run_id).stdout
    assert (workplace / "outputs" / "run-id").read_text() == first


def test_a_verdict_whose_alias_moved_on_is_not_reused(step, candidate) -> None:
    one, two = candidate(name="one"), candidate(name="two")
    for run_id in (one, two):
        step("quality_gate", "--run-id", run_id)
    step("quality_gate", "--run-id", one)
    assert (versions(), alias()) == (["1", "2"], "1")


def test_todays_limits_count(step, workplace: Path, candidate) -> None:
    run_id = candidate()
    step("quality_gate", "--run-id", run_id)
    (workplace / "lora_profiles").unlink()
    (workplace / "lora_profiles").mkdir()
    stricter = "r: 8\nlora_alpha: 16\ntarget_modules: [q_proj]\ngate: {max_perplexity: 1.2}\n"
    (workplace / "lora_profiles" / "standard.yaml").write_text(stricter)
    step("quality_gate", "--run-id", run_id)
    assert (workplace / "outputs" / "result").read_text() == "failed"


def test_a_missing_metric_keeps_no_limit(script) -> None:
    gate = script("steps/quality_gate.py")
    verdicts = gate.judge({"tuned_eval_loss": 0.5}, profiles.Gate())
    assert [(v.metric, v.passed) for v in verdicts] == [
        ("tuned_eval_loss", True),
        ("tuned_perplexity", False),
    ]


def test_a_value_on_the_limit_passes(script) -> None:
    gate = script("steps/quality_gate.py")
    limits = profiles.Gate(min_bleu=70, max_levenshtein=0.1)
    metrics = {
        "tuned_eval_loss": 1.0,
        "tuned_perplexity": 2.0,
        "tuned_bleu": 70.0,
        "tuned_levenshtein": 0.1,
    }
    assert all(verdict.passed for verdict in gate.judge(metrics, limits))


def test_the_scorecard_holds_base_beside_tuned(step, workplace: Path, candidate) -> None:
    step("quality_gate", "--run-id", candidate())
    card = json.loads((workplace / "outputs" / "scorecard.json").read_text())
    assert card["metrics"]["bleu"] == {"base": 10.0, "tuned": 70.0}
    assert (card["model"], card["version"], card["result"]) == (MODEL, "1", "passed")


def test_a_run_of_another_step_is_refused(step, workplace: Path, candidate) -> None:
    evaluate = mlflow.get_run(candidate())
    wrong = evaluate.data.tags[tracking.UPSTREAM]
    result = step("quality_gate", "--run-id", wrong)
    assert result.exit_code == 2
    assert "is a run of train_qlora, expected one of evaluate" in result.stderr
    assert not (workplace / "outputs").exists()
