import shutil
from pathlib import Path

import mlflow
import pytest
from safetensors.torch import load_file, save_file

from loraline import tracking
from loraline.encoding import Row
from loraline.generation import Answer
from loraline.records import from_prompt

NAMES = ("bleu", "levenshtein", "exact_match", "eval_loss", "perplexity")


def test_base_and_tuned_are_measured_side_by_side(step, workplace, data_run, quick, train) -> None:
    train_id = train(data_run, quick("one"))
    result = step("evaluate", "--run-id", train_id)
    assert result.exit_code == 0
    run = mlflow.get_run((workplace / "outputs" / "run-id").read_text())
    train_run = mlflow.get_run(train_id)
    model = mlflow.get_logged_model(train_run.data.tags[tracking.MODEL_ID])
    on_model = {metric.key: metric.value for metric in model.metrics}
    for key in (f"{model}_{name}" for model in ("base", "tuned") for name in NAMES):
        assert run.data.metrics[key] == train_run.data.metrics[key] == on_model[key]
    assert run.data.metrics["tuned_eval_loss"] < run.data.metrics["base_eval_loss"]
    table = mlflow.artifacts.load_dict(f"runs:/{run.info.run_id}/predictions.json")
    assert {"question", "reference", "base", "tuned", "tuned_tokens"} <= set(table["columns"])
    assert len(table["data"]) == run.data.metrics["rows"] == 72
    assert "reused" in step("evaluate", "--run-id", train_id).stdout


def test_another_base_in_its_place_is_refused(
    step, workplace: Path, data_run, quick, train
) -> None:

    shutil.copytree(workplace / "test_data" / "text" / "base", workplace / "mine")
    train_id = train(data_run, quick("one", base="mine"))
    weights = load_file(workplace / "mine" / "model.safetensors")
    weights["lm_head.weight"] += 1
    save_file(weights, workplace / "mine" / "model.safetensors", {"format": "pt"})
    result = step("evaluate", "--run-id", train_id, "--out-dir", "evaluated")
    assert result.exit_code == 2
    assert "the adapter was trained on sha256:" in result.stderr
    assert not (workplace / "evaluated").exists()


def test_empty_and_cut_answers_count_against_the_model(script) -> None:
    evaluate = script("steps/evaluate.py")
    held_out = [from_prompt("{question}", "q", answer) for answer in ("yes it is so", "no")]
    rows = [Row([1], [2, 3]), Row([1], [2])]
    answers = [Answer("", [], False), Answer("no", [5], True)]
    found = evaluate.score(evaluate.Measurement(answers, [2.0, 1.0]), held_out, rows, "prose")
    assert (found["empty_answers"], found["truncated_answers"]) == (1, 1)
    assert found["exact_match"] == 0.5
    assert found["levenshtein"] == pytest.approx(12 / 14)
    assert found["eval_loss"] == pytest.approx(1.0)
