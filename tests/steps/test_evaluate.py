import json
import shutil
from pathlib import Path

import mlflow
import pytest
from safetensors.torch import load_file, save_file

from loraline.tracking import description, tags

MODEL = "tiny-mistral-lora"
NAMES = ("bleu", "levenshtein", "exact_match", "eval_loss", "perplexity")


def test_base_and_tuned_are_measured_side_by_side(step, workplace, data_run, quick, train) -> None:
    train_id = train(data_run, quick("one"))
    result = step("evaluate", "--run-id", train_id)
    assert result.exit_code == 0
    run = mlflow.get_run((workplace / "outputs" / "run-id").read_text())
    train_run = mlflow.get_run(train_id)
    model = mlflow.get_logged_model(train_run.data.tags[tags.MODEL_ID])
    on_model = {metric.key: metric.value for metric in model.metrics}
    for key in (f"{model}_{name}" for model in ("base", "tuned") for name in NAMES):
        low, high = (run.data.metrics[f"{key}_{end}"] for end in ("low", "high"))
        assert low <= run.data.metrics[key] <= high
        assert run.data.metrics[key] == train_run.data.metrics[key] == on_model[key]
    assert run.data.metrics["tuned_eval_loss"] < run.data.metrics["base_eval_loss"]
    table = mlflow.artifacts.load_dict(f"runs:/{run.info.run_id}/predictions.json")
    assert {"question", "reference", "base", "tuned", "tuned_tokens"} <= set(table["columns"])
    assert len(table["data"]) == run.data.metrics["rows"] == 72
    details = mlflow.artifacts.load_dict(f"runs:/{run.info.run_id}/measurements.json")
    assert details["bleu_signature"].startswith("nrefs:1|case:mixed|eff:yes|tok:13a|")
    for part, print_ in details["fingerprints"].items():
        assert run.data.tags[f"{tags.MEASURED}.{part}"] == print_
    assert details["gains"]["base"]["eval_loss"]["low"] > 0
    assert run.data.metrics["tuned_failed_answers"] == 0
    (prepared,) = mlflow.get_run(data_run).inputs.dataset_inputs
    asked_with = mlflow.get_run(data_run).data.params["prompt_uri"]
    for use, user in (("training", train_run), ("evaluation", run)):
        (prompt,) = json.loads(user.data.tags["mlflow.linkedPrompts"])
        assert asked_with == f"prompts:/{prompt['name']}/{prompt['version']}"
        (input_,) = user.inputs.dataset_inputs
        assert input_.dataset == prepared.dataset
        assert {tag.key: tag.value for tag in input_.tags} == {"mlflow.data.context": use}
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


@pytest.fixture
def champion(step, workplace: Path, data_run, quick, train) -> str:
    """A promoted model; returns its training run's ID."""
    train_id = train(data_run, quick("one", seed=1))
    model = mlflow.get_run(train_id).data.tags[tags.MODEL_ID]
    version = mlflow.register_model(f"models:/{model}", MODEL).version
    mlflow.MlflowClient().set_registered_model_alias(MODEL, "champion", str(version))
    return train_id


def test_the_champion_answers_the_same_rows(
    step, workplace: Path, data_run, quick, train, champion: str
) -> None:
    two = train(data_run, quick("two", seed=2))
    result = step("evaluate", "--run-id", two)
    assert "gain over champion" in result.stdout
    run = mlflow.get_run((workplace / "outputs" / "run-id").read_text())
    assert run.data.tags[tags.CHAMPION] == "1"
    assert tags.CHAMPION_REFUSED not in run.data.tags
    gain = run.data.metrics["gain_over_champion_eval_loss"]
    better = run.data.metrics["champion_eval_loss"] - run.data.metrics["tuned_eval_loss"]
    assert gain == pytest.approx(better) and gain != 0
    card = mlflow.get_run(two).data.tags[tags.NOTE]
    assert "- champion: version 1\n" in card
    assert "| metric | base | tuned | champion | gain over base | gain over champion |" in card
    step("evaluate", "--run-id", champion)
    own = mlflow.get_run((workplace / "outputs" / "run-id").read_text())
    assert tags.CHAMPION not in own.data.tags
    assert own.data.metrics["tuned_eval_loss"] == run.data.metrics["champion_eval_loss"]
    model = mlflow.get_run(champion).data.tags[tags.MODEL_ID]
    copied = mlflow.register_model(f"models:/{model}", MODEL).version
    mlflow.MlflowClient().set_registered_model_alias(MODEL, "champion", str(copied))
    step("evaluate", "--run-id", two)
    anew = mlflow.get_run((workplace / "outputs" / "run-id").read_text())
    # The gate takes no numbers against another version than today's champion.
    assert anew.data.tags[tags.CHAMPION] == str(copied)


def test_the_champions_adapter_trained_once_more_is_the_champion_and_no_candidate(
    step, workplace: Path, data_run, quick, train, champion: str
) -> None:
    again = train(data_run, quick("one", seed=1), "--force")
    assert again != champion
    step("evaluate", "--run-id", again)
    run = mlflow.get_run((workplace / "outputs" / "run-id").read_text())
    assert run.data.tags[tags.CHAMPION_AGAIN] == "1"
    assert "champion_bleu" not in run.data.metrics
    open_to_all = ("min_gain_over_base", "max_eval_loss", "max_perplexity")
    open_to_all += ("max_levenshtein", "min_bleu")
    (workplace / "p.yaml").write_text("".join(f"{limit}: null\n" for limit in open_to_all))
    step("quality_gate", "--run-id", run.info.run_id, "--policy", "p.yaml")
    gate = mlflow.get_run((workplace / "outputs" / "run-id").read_text())
    assert gate.data.tags[tags.RESULT] == "passed", gate.data.tags[tags.REASON]
    assert gate.data.tags[tags.MODEL_VERSION] == "1"
    model = mlflow.MlflowClient().get_registered_model(MODEL)
    assert {alias: str(version) for alias, version in model.aliases.items()} == {"champion": "1"}
    assert len(mlflow.MlflowClient().search_model_versions(f"name = '{MODEL}'")) == 1


def test_a_champion_on_another_template_is_not_compared_and_the_reason_is_kept(
    step, workplace: Path, data_run, quick, train, champion: str
) -> None:
    shutil.copytree(workplace / "test_data" / "text" / "base", workplace / "mine")
    template = workplace / "mine" / "chat_template.jinja"
    template.write_text(template.read_text().replace("user", "User") + "{# other #}")
    two = train(data_run, quick("two", base="mine"))
    step("evaluate", "--run-id", two)
    run = mlflow.get_run((workplace / "outputs" / "run-id").read_text())
    assert run.data.tags[tags.CHAMPION_REFUSED] == "it has another template"
    assert "champion_bleu" not in run.data.metrics
    step("quality_gate", "--run-id", run.info.run_id)
    assert (workplace / "outputs" / "result").read_text() == "failed"
    gate = mlflow.get_run((workplace / "outputs" / "run-id").read_text())
    assert "version 1 cannot be compared" in gate.data.tags[tags.REASON]


def test_a_champion_that_was_asked_with_another_prompt_is_not_compared(
    step, workplace: Path, data_run, quick, train, champion: str
) -> None:
    (workplace / "other.txt").write_text("Say it quickly. {question}")
    again = step("prepare_data", "--profile", quick("data"), "--prompt", workplace / "other.txt")
    assert again.exit_code == 0, again.output
    two = train((workplace / "outputs" / "run-id").read_text(), quick("two", seed=2))
    step("evaluate", "--run-id", two)
    run = mlflow.get_run((workplace / "outputs" / "run-id").read_text())
    assert run.data.tags[tags.CHAMPION_REFUSED] == "it has another prompt"
    card = mlflow.get_run(two).data.tags[tags.NOTE]
    assert "- champion: version 1, not measured: it has another prompt\n" in card
    assert "champion_bleu" not in run.data.metrics


def test_measured_again_the_description_keeps_the_verdict(
    step, workplace: Path, data_run, quick, train
) -> None:
    train_id = train(data_run, quick("one"))
    step("evaluate", "--run-id", train_id)
    step("quality_gate", "--run-id", (workplace / "outputs" / "run-id").read_text())
    before = mlflow.get_run(train_id).data.tags[tags.NOTE]
    step("evaluate", "--run-id", train_id, "--force")
    after = mlflow.get_run(train_id).data.tags[tags.NOTE]
    assert description.verdict(after) == description.verdict(before) != ""
    assert description.card(after).startswith("# ")


def test_limits_that_were_set_for_a_training_are_for_the_gate_alone(
    step, workplace: Path, data_run, quick, train
) -> None:
    train_id = train(data_run, quick("one"), "--set", "gate.min_rows=1")
    evaluated = step("evaluate", "--run-id", train_id)
    assert evaluated.exit_code == 0, evaluated.stderr
    judged = ("--run-id", (workplace / "outputs" / "run-id").read_text())
    assert step("quality_gate", *judged).exit_code == 2
    assert step("quality_gate", *judged, "--set", "gate.min_rows=1").exit_code == 0


@pytest.mark.slow
def test_a_base_in_fp8_is_measured_as_it_was_trained_and_not_beside_another_one(
    step, workplace: Path, data_run, quick, train, champion: str
) -> None:
    two = train(data_run, quick("two", quantization="fp8", serve_dtype="bfloat16"))
    step("evaluate", "--run-id", two)
    run = mlflow.get_run((workplace / "outputs" / "run-id").read_text())
    assert run.data.params["quantization"] == "fp8"
    assert run.data.tags[tags.CHAMPION_REFUSED] == "it has another quantization of its base"
    assert run.data.metrics["tuned_eval_loss"] < run.data.metrics["base_eval_loss"]
