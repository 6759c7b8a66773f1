import json
from pathlib import Path

import mlflow
import pytest

from loraline.tracking import tags
from loraline.tracking.runs import ancestor


def edits(value: float, low: float, high: float, **more: float) -> dict[str, float]:
    return {
        "tuned_levenshtein": value,
        "tuned_levenshtein_low": low,
        "tuned_levenshtein_high": high,
        **more,
    }


@pytest.fixture
def select(step, workplace: Path):
    def run(*run_ids: str, metric: str = "levenshtein"):
        result = step("select_best", "--run-ids", json.dumps(run_ids), "--metric", metric)
        assert result.exit_code == 0, result.output
        return (workplace / "outputs" / "run-id").read_text()

    return run


def place(evaluate_run: str) -> str:
    client = mlflow.MlflowClient()
    train = ancestor(client, client.get_run(evaluate_run), "train_qlora")
    return train.data.tags[tags.SELECTED]


def test_the_surest_good_value_wins_over_a_lucky_one(candidate, select, workplace: Path) -> None:
    lucky = candidate(name="lucky", **edits(0.09, 0.01, 0.30))
    sure = candidate(name="sure", **edits(0.10, 0.08, 0.12))
    poor = candidate(name="poor", **edits(0.50, 0.45, 0.55))
    assert select(lucky, "", sure, poor) == sure
    assert (workplace / "outputs" / "result").read_text() == "passed"
    assert place(sure).startswith("1 of 3 by levenshtein 0.1 (0.08 to 0.12), selection ")
    assert place(lucky).startswith("2 of 3") and place(lucky).endswith(
        "not told apart from the best"
    )
    assert place(poor).startswith("3 of 3") and "not told apart" not in place(poor)


def test_members_are_judged_by_what_the_workflow_sets(candidate, step, workplace: Path) -> None:
    one = json.dumps([candidate(name="one", **edits(0.1, 0.08, 0.12))])
    for words, result in ((("--set", "gate.min_bleu=99"), "failed"), (("--set", ""), "passed")):
        assert step("select_best", "--run-ids", one, *words).exit_code == 0
        assert (workplace / "outputs" / "result").read_text() == result


def test_higher_is_better_where_it_is(candidate, select) -> None:
    numbers = {"tuned_bleu_low": 60.0, "tuned_bleu_high": 80.0}
    one = candidate(name="one", **numbers)
    two = candidate(name="two", **(numbers | {"tuned_bleu_low": 65.0}))
    assert select(one, two, metric="bleu") == two


def test_a_metric_that_no_run_measured_ranks_nothing(step, candidate) -> None:
    given = json.dumps([candidate()])
    result = step("select_best", "--run-ids", given, "--metric", "json_field_f1")
    assert result.exit_code == 2
    assert "--metric json_field_f1: none of the runs has measured it" in result.stderr


def test_a_selection_is_reused_until_another_took_its_place(candidate, select) -> None:
    bleu = {"tuned_bleu_low": 60.0, "tuned_bleu_high": 80.0}
    one = candidate(name="one", **edits(0.2, 0.2, 0.2), **bleu)
    select(one)
    message = place(one)
    select(one)
    assert place(one) == message
    select(one, metric="bleu")
    select(one)
    assert place(one).startswith("1 of 1 by levenshtein")


def test_a_member_that_the_gate_would_reject_does_not_win(candidate, select) -> None:
    best = candidate(name="best", **edits(0.01, 0.005, 0.02, tuned_perplexity=9.0))
    good = candidate(name="good", **edits(0.10, 0.08, 0.12))
    assert select(best, good) == good


def test_a_sweep_in_which_none_would_pass_hands_over_the_best_for_the_gate_to_reject(
    candidate, select, step, workplace: Path
) -> None:
    runs = [
        candidate(name=name, **edits(value, value, value, tuned_perplexity=9.0))
        for name, value in (("one", 0.2), ("two", 0.1))
    ]
    assert select(*runs) == runs[1]
    assert (workplace / "outputs" / "result").read_text() == "failed"
    step("quality_gate", "--run-id", runs[1])
    assert (workplace / "outputs" / "result").read_text() == "failed"


def test_the_best_can_be_gated_at_once(candidate, select, step, workplace: Path) -> None:
    runs = [candidate(name=n, **edits(v, v, v)) for n, v in (("one", 0.2), ("two", 0.1))]
    select(*runs)
    step("quality_gate", "--run-id", (workplace / "outputs" / "run-id").read_text())
    version = mlflow.MlflowClient().get_model_version_by_alias("mistral-7b-lora", "candidate")
    client = mlflow.MlflowClient()
    train = ancestor(client, client.get_run(runs[1]), "train_qlora")
    assert version.run_id == train.info.run_id


def test_todays_champion_is_not_the_best_of_a_sweep(
    candidate, select, step, workplace: Path
) -> None:
    champion = candidate(name="champion", **edits(0.1, 0.08, 0.12))
    step("quality_gate", "--run-id", champion)
    mlflow.MlflowClient().set_registered_model_alias("mistral-7b-lora", "champion", "1")
    unlike = candidate(name="unlike", **edits(0.01, 0.01, 0.01))
    gain = {"gain_over_champion_levenshtein_low": 0.01}
    better = candidate(name="better", tags={tags.CHAMPION: "1"}, **edits(0.09, 0.07, 0.2, **gain))
    assert select(champion, unlike, better) == better
    assert (workplace / "outputs" / "result").read_text() == "passed"
    assert place(champion).startswith("3 of 3")
    assert select(champion, unlike) == unlike
    assert (workplace / "outputs" / "result").read_text() == "failed"


def test_the_ranking_says_what_was_looked_at_and_no_more(candidate, step) -> None:
    good, poor = candidate(name="good", weight=0.0), candidate(name="poor", tuned_perplexity=9.0)
    given = json.dumps([good, poor])
    printed = step("select_best", "--run-ids", given).stdout.splitlines()
    assert printed[0].startswith("1. lora-good: ") and printed[0].endswith(" keeps its limits")
    assert printed[1].endswith(" tuned_perplexity 9 is not at most 2")


def test_the_ranking_is_kept_in_a_run_of_its_own_and_made_once(candidate, select) -> None:
    runs = [candidate(name=n, **edits(v, v, v)) for n, v in (("one", 0.2), ("two", 0.1))]
    for _ in range(2):
        select(*runs)
    (run,) = mlflow.search_runs(["1"], f"tags.`{tags.STEP}` = 'select_best'", output_format="list")
    ranking = mlflow.artifacts.load_dict(f"runs:/{run.info.run_id}/ranking.json")["ranking"]
    assert [entry["run_id"] for entry in ranking] == runs[::-1]


@pytest.mark.parametrize("part", ["tokenizer", "template", "rows"])
def test_runs_measured_on_something_else_are_not_compared(step, candidate, part: str) -> None:
    runs = [candidate(name="one"), candidate(name="two", tags={f"{tags.MEASURED}.{part}": "x"})]
    result = step("select_best", "--run-ids", json.dumps(runs))
    assert result.exit_code == 2
    assert f"measured with different {part}, so they cannot be compared" in result.stderr


@pytest.mark.parametrize(
    ("run_ids", "message"),
    [
        ("nonsense", "is not a JSON list of run IDs"),
        ("[1]", "is not a JSON list of run IDs"),
        ('["", ""]', "names no run; in a sweep, all of its members have failed"),
    ],
)
def test_what_is_no_list_of_runs_is_refused(
    step, workplace: Path, run_ids: str, message: str
) -> None:
    result = step("select_best", "--run-ids", run_ids)
    assert result.exit_code == 2
    assert message in result.stderr


def test_a_run_that_is_no_evaluation_is_refused_by_its_flag(step, candidate) -> None:
    wrong = mlflow.get_run(candidate()).data.tags[tags.UPSTREAM]
    result = step("select_best", "--run-ids", json.dumps([wrong]))
    assert result.exit_code == 2
    assert f"--run-ids {wrong} is a run of train_qlora, expected one of evaluate" in result.stderr


def test_an_unknown_metric_is_refused_with_the_known_ones(step, candidate) -> None:
    result = step("select_best", "--run-ids", json.dumps([candidate()]), "--metric", "blue")
    assert result.exit_code == 2
    assert "unknown --metric 'blue'; accepted: bleu, bleu_13a" in result.stderr
