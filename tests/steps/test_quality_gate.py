import json
import math
import re
from importlib import metadata
from pathlib import Path

import mlflow
import pytest
from mlflow.exceptions import MlflowException

from loraline.answering import pyfunc
from loraline.tracking import lock, registry, runs, tags
from loraline.tracking.tags import CHAMPION, CHAMPION_REFUSED, MEASURED, REASON, RESULT, UPSTREAM

MODEL = "mistral-7b-lora"


def versions() -> list[str]:
    client = mlflow.MlflowClient()
    return sorted(str(result.version) for result in client.search_model_versions(f"name='{MODEL}'"))


def alias() -> str:
    return str(mlflow.MlflowClient().get_model_version_by_alias(MODEL, "candidate").version)


def test_a_good_candidate_is_registered_with_the_alias(step, workplace: Path, candidate) -> None:
    result = step("quality_gate", "--run-id", candidate())
    assert result.exit_code == 0
    assert (workplace / "outputs" / "result").read_text() == "passed"
    assert versions() == [alias()] == ["1"]
    outcome = mlflow.MlflowClient().get_model_version(MODEL, "1")
    assert outcome.run_id == tracking_run(workplace, "train_qlora").info.run_id
    assert outcome.tags[RESULT] == "passed"
    assert "| tuned_perplexity | 1.5 | at most 2 | passed |" in outcome.description


def tracking_run(workplace: Path, step_name: str):
    gate = mlflow.get_run((workplace / "outputs" / "run-id").read_text())
    return runs.ancestor(mlflow.MlflowClient(), gate, step_name)


def test_a_logged_model_pins_what_loading_it_needs(candidate) -> None:
    evaluated = mlflow.get_run(candidate())
    model = mlflow.get_run(evaluated.data.tags[tags.UPSTREAM]).data.tags[tags.MODEL_ID]
    stored = mlflow.MlflowClient().get_logged_model(model).artifact_location
    pinned = Path(stored.removeprefix("file://"), "requirements.txt").read_text().splitlines()
    versions = dict(line.split("==") for line in pinned)
    # The last for `model_config={"quantize": True}`.
    needed = {"torch", "transformers", "peft", "safetensors", "bitsandbytes"}
    assert needed <= versions.keys()
    assert metadata.version("torch").startswith(versions["torch"])
    assert "torchvision" in {line.split("==")[0] for line in pyfunc.requirements("vision")}


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
        assert tags[RESULT] == "failed"
        assert "tuned_perplexity" in tags[REASON]


@pytest.mark.parametrize(
    ("weight", "message"),
    [(0.0, "all lora_B weights are zero"), (math.inf, "holds NaN or infinity")],
)
def test_an_adapter_that_vllm_would_serve_wrong_ends_the_gate(
    step, workplace: Path, candidate, weight: float, message: str
) -> None:
    result = step("quality_gate", "--run-id", candidate(weight=weight))
    assert result.exit_code == 2
    assert re.search(r"the adapter of run \w{32} cannot be served: ", result.stderr)
    assert message in result.stderr
    assert not (workplace / "outputs" / "result").exists()
    assert versions() == []


def test_a_rejected_candidate_keeps_the_old_alias(step, candidate) -> None:
    step("quality_gate", "--run-id", candidate(name="good"))
    step("quality_gate", "--run-id", candidate(name="bad", tuned_perplexity=3.0))
    assert (versions(), alias()) == (["1"], "1")


def test_a_candidate_that_is_rejected_after_all_loses_the_alias(
    step, workplace: Path, candidate
) -> None:
    run_id = candidate()
    step("quality_gate", "--run-id", run_id)
    (workplace / "strict.yaml").write_text("min_bleu: 99\n")
    step("quality_gate", "--run-id", run_id, "--policy", "strict.yaml")
    assert versions() == ["1"]
    assert registry.version_of(mlflow.MlflowClient(), MODEL, "candidate") is None
    tags = mlflow.MlflowClient().get_model_version(MODEL, "1").tags
    assert tags[RESULT] == "failed"
    assert "tuned_bleu" in tags[REASON]


def test_a_versions_description_says_the_verdict_that_its_tags_say(
    step, workplace: Path, candidate
) -> None:
    run_id = candidate()
    (workplace / "strict.yaml").write_text("min_bleu: 99\n")
    for policy, result in (((), "passed"), (("--policy", "strict.yaml"), "failed"), ((), "passed")):
        step("quality_gate", "--run-id", run_id, *policy)
        version = mlflow.MlflowClient().get_model_version(MODEL, "1")
        assert version.tags[RESULT] == result
        verdict = version.description.partition("## Quality gate")[2].strip()
        assert verdict.startswith(f"{result}: {version.tags[REASON]}\n")
        assert ("| tuned_bleu | 70 | at least 99 | FAILED |" in verdict) == (result == "failed")


def test_a_verdict_that_a_later_gate_replaced_is_given_anew(
    step, workplace: Path, candidate
) -> None:
    run_id = candidate()
    (workplace / "strict.yaml").write_text("min_bleu: 99\n")
    for policy in ((), ("--policy", "strict.yaml"), ()):
        assert "reused" not in step("quality_gate", "--run-id", run_id, *policy).stdout
    assert (versions(), alias()) == (["1"], "1")
    assert tracking_run(workplace, "train_qlora").data.tags[RESULT] == "passed"
    assert mlflow.MlflowClient().get_model_version(MODEL, "1").tags[RESULT] == "passed"


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


def test_the_tags_of_a_run_set_no_limits(step, workplace: Path, candidate) -> None:
    run_id = candidate()
    client = mlflow.MlflowClient()
    train = runs.ancestor(client, client.get_run(run_id), "train_qlora").info.run_id
    client.set_tag(train, tags.OVERRIDES, '["gate.min_bleu=0", "r=8", "gate={min_rows: 2}"]')
    refused = step("quality_gate", "--run-id", run_id)
    assert refused.exit_code == 2
    assert (
        f"run {train} was trained with the limits gate.min_bleu=0, gate={{min_rows: 2}}, which "
        "anyone who may set its tags can change: give this step the limits that shall count with "
        "--set, or --set '' for the profile's own"
    ) in refused.stderr
    assert client.search_registered_models() == []
    assert step("quality_gate", "--run-id", run_id, "--set", "").exit_code == 0
    client.set_tag(train, tags.OVERRIDES, '["r=8"]')
    assert step("quality_gate", "--run-id", run_id).exit_code == 0


def test_what_the_workflow_sets_and_sends_counts_instead_of_the_file(
    step, workplace: Path, candidate
) -> None:
    run_id = candidate()
    recipe = "standard: {r: 8, lora_alpha: 16, target_modules: [q_proj], gate: {min_rows: 21}}"

    def judged(*options: str) -> str:
        result = step("quality_gate", "--run-id", run_id, *options)
        assert result.exit_code == 0, result.stderr
        return (workplace / "outputs" / "result").read_text()

    assert judged() == "passed"
    assert judged("--set", "gate.min_bleu=99") == "failed"
    assert judged("--set", "gate.min_bleu=5") == "passed"
    assert judged("--set", "", "--recipes", recipe) == "failed"
    assert judged("--set", "gate.min_rows=2", "--recipes", recipe) == "passed"
    assert judged("--set", "", "--recipes", "") == "passed"


@pytest.mark.parametrize(
    ("recipes", "message"),
    [
        ("- a", "must hold the keys of each profile by its name"),
        ("standard: 3", "must hold the keys of each profile by its name"),
        ("standard: [", "--recipes is not YAML"),
        ("standard: {}\nstandard: {}", "key 'standard' is given twice"),
        ("standard: {lora_alfa: 3}", "profile 'standard' of --recipes: unknown key 'lora_alfa'"),
    ],
)
def test_recipes_that_are_none_are_refused_in_one_sentence(
    step, candidate, recipes: str, message: str
) -> None:
    result = step("quality_gate", "--run-id", candidate(), "--recipes", recipes)
    assert result.exit_code == 2
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"tuned_perplexity": math.nan}, "not finite: tuned_perplexity"),
        ({"base_bleu": math.inf}, "not finite: base_bleu"),
        ({"without": "tuned_exact_match"}, "missing or not finite: tuned_exact_match"),
        ({"tags": {f"{MEASURED}.rows": ""}}, "not finite: loraline.measured.rows"),
        ({"rows": 3.0}, "rows 3 is not at least 20"),
        (
            {"gain_over_base_levenshtein_low": -0.01},
            "gain_over_base_levenshtein_low -0.01 is not above 0",
        ),
        (
            {"without": "gain_over_base_levenshtein_low"},
            "gain_over_base_levenshtein_low missing is not above 0",
        ),
    ],
)
def test_a_run_that_says_too_little_is_refused_with_its_reason(
    step, workplace: Path, candidate, changed: dict, message: str
) -> None:
    result = step("quality_gate", "--run-id", candidate(**changed))
    assert result.exit_code == 0
    assert (workplace / "outputs" / "result").read_text() == "failed"
    for name in ("quality_gate", "train_qlora"):
        tags = tracking_run(workplace, name).data.tags
        assert message in tags[REASON]
        assert message in tags["mlflow.note.content"]
    assert versions() == []


def test_fail_on_reject_ends_with_1_and_still_hands_over(step, workplace: Path, candidate) -> None:
    bad = candidate(rows=3.0)
    for _ in range(2):
        assert step("quality_gate", "--run-id", bad, "--fail-on-reject").exit_code == 1
        assert (workplace / "outputs" / "result").read_text() == "failed"
    good = candidate(name="good")
    assert step("quality_gate", "--run-id", good, "--fail-on-reject").exit_code == 0


def test_each_rule_is_printed_with_value_limit_and_verdict(step, candidate) -> None:
    printed = step("quality_gate", "--run-id", candidate(tuned_perplexity=2.5)).stdout
    lines = [line.split() for line in printed.splitlines()]
    assert ["rule", "value", "limit", "verdict"] in lines
    assert ["tuned_perplexity", "2.5", "at", "most", "2", "FAILED"] in lines
    assert ["rows", "20", "at", "least", "20", "passed"] in lines
    assert ["preflight_findings", "0", "at", "most", "0", "passed"] in lines
    assert printed.endswith("verdict: failed\n")


def test_a_policy_file_replaces_single_rules_of_the_profile(
    step, workplace: Path, candidate
) -> None:
    run_id = candidate()
    (workplace / "strict.yaml").write_text("min_bleu: 90\n")
    printed = step("quality_gate", "--run-id", run_id, "--policy", "strict.yaml").stdout
    assert "tuned_bleu" in printed
    assert (workplace / "outputs" / "result").read_text() == "failed"
    assert "tuned_perplexity" in printed
    (workplace / "lenient.yaml").write_text("min_rows: 2\nmin_gain_over_base: null\n")
    run_id = candidate(name="few", rows=3.0, gain_over_base_levenshtein_low=-1.0)
    step("quality_gate", "--run-id", run_id, "--policy", "lenient.yaml")
    assert (workplace / "outputs" / "result").read_text() == "passed"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("max_loss: 1", "unknown key 'max_loss' (accepted: compare_on, limits, max_eval_loss"),
        ("min_rows: 0", "min_rows: 0 is refused"),
        ("- a", "must hold keys and values"),
        ("max_eval_loss: .inf", "max_eval_loss: inf is refused, write null for a limit"),
        ("min_rows: null", "min_rows: None is refused"),
        ("1: 2", "key '1' has to be a text"),
        ("a: [", 'in "p.yaml", line 1, column 5'),
        ("min_bleu: 80\nmin_bleu: 10", "key 'min_bleu' is given twice"),
        ("min_bleu: true", "min_bleu: True is refused"),
        (None, "cannot be read: No such file or directory"),
    ],
)
def test_a_file_that_is_no_policy_is_refused_in_one_sentence(
    step, workplace: Path, candidate, content: str | None, message: str
) -> None:
    if content is not None:
        (workplace / "p.yaml").write_text(content)
    result = step("quality_gate", "--run-id", candidate(), "--policy", "p.yaml")
    assert result.exit_code == 2
    assert "policy p.yaml" in result.stderr and message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


GAIN = {"gain_over_champion_levenshtein_low": 0.5}


def promote(version: str = "1") -> None:
    mlflow.MlflowClient().set_registered_model_alias(MODEL, "champion", version)


def against(version: str, **more: str) -> dict[str, str]:
    return {CHAMPION: version, **more}


def test_the_first_candidate_needs_no_champion(step, candidate) -> None:
    printed = step("quality_gate", "--run-id", candidate()).stdout
    assert "there is no other champion" in printed
    assert alias() == "1"


@pytest.mark.parametrize(("low", "result"), [(0.01, "passed"), (0.0, "failed"), (-0.1, "failed")])
def test_a_candidate_must_be_surely_better_than_the_champion(
    step, workplace: Path, candidate, low: float, result: str
) -> None:
    step("quality_gate", "--run-id", candidate())
    promote()
    gain = {"gain_over_champion_levenshtein_low": low}
    run_id = candidate(name="two", tags=against("1"), **gain)
    step("quality_gate", "--run-id", run_id)
    assert (workplace / "outputs" / "result").read_text() == result
    assert alias() == ("2" if result == "passed" else "1")


@pytest.mark.parametrize(
    ("tags", "message"),
    [
        ({}, "the champion is version 1, compared with none: evaluate again"),
        (against("7"), "the champion is version 1, compared with 7: evaluate again"),
        (
            against("1", **{CHAMPION_REFUSED: "it has another tokenizer"}),
            "version 1 cannot be compared: it has another tokenizer",
        ),
    ],
)
def test_numbers_that_cannot_be_compared_with_the_champion_are_refused(
    step, workplace: Path, candidate, tags: dict[str, str], message: str
) -> None:
    step("quality_gate", "--run-id", candidate())
    promote()
    run_id = candidate(name="two", tags=tags, gain_over_champion_levenshtein_low=0.5)
    step("quality_gate", "--run-id", run_id)
    assert (workplace / "outputs" / "result").read_text() == "failed"
    assert message in tracking_run(workplace, "train_qlora").data.tags[REASON]


def test_a_champion_that_is_promoted_while_the_gate_works_is_the_one_that_counts(
    step, workplace: Path, candidate, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("one", "two"):
        step("quality_gate", "--run-id", candidate(name=name))
    promote("1")
    gain = {"gain_over_champion_levenshtein_low": 0.5}
    run_id = candidate(name="three", tags=against("1"), **gain)
    locked = lock.locked

    def promoted_before(*arguments):
        promote("2")
        return locked(*arguments)

    with monkeypatch.context() as late:
        late.setattr(lock, "locked", promoted_before)
        step("quality_gate", "--run-id", run_id)
    assert (workplace / "outputs" / "result").read_text() == "failed"
    message = "the champion is version 2, compared with 1: evaluate again"
    assert message in tracking_run(workplace, "train_qlora").data.tags[REASON]
    assert (versions(), alias()) == (["1", "2"], "2")
    assert "reused" in step("quality_gate", "--run-id", run_id).stdout


def test_the_champion_itself_is_not_compared_with_itself(step, workplace: Path, candidate) -> None:
    run_id = candidate()
    step("quality_gate", "--run-id", run_id)
    promote()
    step("quality_gate", "--run-id", run_id, "--force")
    assert (workplace / "outputs" / "result").read_text() == "passed"


def test_a_verdict_on_the_champion_trained_again_is_reused(
    step, workplace: Path, candidate
) -> None:
    step("quality_gate", "--run-id", candidate())
    promote()
    step("quality_gate", "--run-id", candidate(name="two", **GAIN, tags=against("1")))
    assert alias() == "2"
    again = candidate(name="three", tags=against("1", **{tags.CHAMPION_AGAIN: "1"}))
    for message in ("verdict: passed", "(reused): passed"):
        assert message in step("quality_gate", "--run-id", again).stdout
    assert (versions(), alias()) == (["1", "2"], "2")


def test_previous_is_the_candidate_before_until_there_is_a_champion(step, candidate) -> None:
    client = mlflow.MlflowClient()
    for name in ("one", "two"):
        step("quality_gate", "--run-id", candidate(name=name))
    assert str(client.get_model_version_by_alias(MODEL, "previous").version) == "1"
    promote("2")
    gain = {"gain_over_champion_levenshtein_low": 0.1}
    step("quality_gate", "--run-id", candidate(name="three", tags=against("2"), **gain))
    assert alias() == "3"
    assert str(client.get_model_version_by_alias(MODEL, "previous").version) == "1"


def test_a_registered_model_says_how_its_versions_are_promoted(step, candidate) -> None:
    step("quality_gate", "--run-id", candidate())
    client = mlflow.MlflowClient()
    about = client.get_registered_model(MODEL).description
    assert f"promote.py --model {MODEL} --version N" in about
    client.update_registered_model(MODEL, "Ours.")
    step("quality_gate", "--run-id", candidate(name="two", weight=2.0))
    assert client.get_registered_model(MODEL).description == "Ours."


def test_the_gate_leaves_no_lock_behind(step, candidate) -> None:
    step("quality_gate", "--run-id", candidate())
    assert [result.name for result in mlflow.MlflowClient().search_registered_models()] == [MODEL]


def test_the_scorecard_holds_base_beside_tuned(step, workplace: Path, candidate) -> None:
    step("quality_gate", "--run-id", candidate())
    card = json.loads((workplace / "outputs" / "scorecard.json").read_text())
    assert card["metrics"]["bleu"]["base"][0] == 10.0
    assert card["metrics"]["bleu"]["tuned"][0] == 70.0
    assert card["champion"] is None
    assert (card["model"], card["version"], card["result"]) == (MODEL, "1", "passed")


def test_a_run_of_another_step_is_refused(step, workplace: Path, candidate) -> None:
    evaluate = mlflow.get_run(candidate())
    wrong = evaluate.data.tags[UPSTREAM]
    result = step("quality_gate", "--run-id", wrong)
    assert result.exit_code == 2
    assert "is a run of train_qlora, expected one of evaluate" in result.stderr
    assert not (workplace / "outputs").exists()


def test_a_run_that_was_deleted_is_refused(step, workplace: Path, candidate) -> None:
    run_id = candidate()
    mlflow.MlflowClient().delete_run(run_id)
    result = step("quality_gate", "--run-id", run_id)
    assert result.exit_code == 2
    assert f"--run-id {run_id} of evaluate was deleted: restore it with" in result.stderr
    assert versions() == []
