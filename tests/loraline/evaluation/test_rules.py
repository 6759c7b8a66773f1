import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from loraline.errors import UserError
from loraline.evaluation import rules
from loraline.profiles.limits import Gate

MEASURED = {f"loraline.measured.{part}": "x" for part in ("tokenizer", "template", "rows")}
LIMITS = Gate(min_bleu=70, max_levenshtein=0.1, min_rows=20)
ON_THE_LIMIT = dict.fromkeys(rules.REQUIRED, 0.0) | {
    "rows": 20.0,
    "tuned_eval_loss": 1.0,
    "tuned_perplexity": 2.0,
    "tuned_bleu": 70.0,
    "tuned_levenshtein": 0.1,
    # A gain is sure when its lower end is above the limit, not at it.
    "gain_over_base_levenshtein_low": 1e-9,
}


def test_a_value_on_the_limit_passes() -> None:
    assert all(verdict.passed for verdict in rules.judge(ON_THE_LIMIT, MEASURED, LIMITS, None))


def test_each_rule_breaks_by_itself() -> None:
    worse = {
        "rows": 19.0,
        "tuned_eval_loss": 1.01,
        "tuned_perplexity": 2.01,
        "tuned_bleu": 69.9,
        "tuned_levenshtein": 0.11,
        "gain_over_base_levenshtein_low": 0.0,
    }
    for name, value in worse.items():
        verdicts = rules.judge(ON_THE_LIMIT | {name: value}, MEASURED, LIMITS, None)
        assert [verdict.metric for verdict in verdicts if not verdict.passed] == [name]
        assert name in rules.reasons(verdicts)


def test_no_metrics_keep_no_rule_but_the_absent_champions() -> None:
    verdicts = rules.judge({}, {}, LIMITS, None)
    assert [verdict.metric for verdict in verdicts if verdict.passed] == [
        "gain_over_champion_levenshtein_low"
    ]


def test_a_rule_set_to_null_is_not_judged() -> None:
    limits = Gate(min_gain_over_base=None, min_gain_over_champion=None)
    names = [verdict.metric for verdict in rules.judge(ON_THE_LIMIT, MEASURED, limits, "3")]
    assert names == ["unmeasured", "rows", "tuned_eval_loss", "tuned_perplexity"]


def test_every_limit_but_the_rows_can_be_switched_off() -> None:
    kept = ("min_rows", "compare_on", "limits")
    limits = {name: None for name in Gate.model_fields if name not in kept}
    verdicts = rules.judge(ON_THE_LIMIT, MEASURED, Gate(**limits), "3")
    assert [verdict.metric for verdict in verdicts] == ["unmeasured", "rows"]
    with pytest.raises(ValidationError):
        Gate(min_rows=None)


def test_reasons_name_an_infinite_value_as_the_table_does() -> None:
    # MLflow gives an infinite metric back as the largest float.
    metrics = ON_THE_LIMIT | {"tuned_eval_loss": sys.float_info.max, "tuned_bleu": 12.345678}
    verdicts = rules.judge(metrics, MEASURED, LIMITS, None)
    message = rules.reasons(verdicts)
    assert "tuned_eval_loss inf is not at most 1" in message
    assert "tuned_bleu 12.35 is not at least 70" in message
    assert "1.79" not in message + rules.table(verdicts) + rules.markdown(verdicts)


@given(
    st.floats(0.01, 100).map(lambda limit: float(f"{limit:g}")), st.floats(1e-9, 1), st.booleans()
)
def test_a_broken_limit_is_never_shown_as_its_value(limit: float, by: float, above: bool) -> None:
    value = limit * (1 + by if above else 1 - by)
    shown = rules.number(value, limit)
    assert shown != f"{limit:g}"
    assert float(shown) == pytest.approx(value, rel=1e-3)


def test_gains_are_judged_on_the_metric_that_the_policy_names() -> None:
    limits = Gate(compare_on="bleu", min_gain_over_base=5)
    metrics = ON_THE_LIMIT | {"gain_over_base_bleu_low": 4.9}
    broken = [v.metric for v in rules.judge(metrics, MEASURED, limits, None) if not v.passed]
    assert broken == ["gain_over_base_bleu_low"]


def test_an_adapter_that_changes_nothing_does_not_pass_under_any_margin() -> None:
    ends = ("", "_low", "_high")
    nothing = {f"gain_over_base_{m}{e}": -0.0 for m in ("levenshtein", "eval_loss") for e in ends}
    broken = [
        v for v in rules.judge(ON_THE_LIMIT | nothing, MEASURED, LIMITS, None) if not v.passed
    ]
    assert [v.metric for v in broken] == ["adapter_changes", "gain_over_base_levenshtein_low"]
    lenient = Gate(**LIMITS.model_dump() | {"min_gain_over_base": -1})
    broken = [
        v for v in rules.judge(ON_THE_LIMIT | nothing, MEASURED, lenient, None) if not v.passed
    ]
    assert [v.metric for v in broken] == ["adapter_changes"]
    assert "as likely as without the adapter" in rules.reasons(broken)


def test_the_champions_own_adapter_did_not_lose_to_itself() -> None:
    tags = MEASURED | {"loraline.champion": "3", "loraline.champion.again": "3"}
    verdicts = rules.judge(ON_THE_LIMIT, tags, LIMITS, "3")
    assert all(verdict.passed for verdict in verdicts)
    assert "it is version 3, the champion itself, trained once more" in rules.table(verdicts)
    (broken,) = [v for v in rules.judge(ON_THE_LIMIT, tags, LIMITS, "4") if not v.passed]
    assert broken.detail == "the champion is version 4, compared with 3: evaluate again"


CHAMPION_LOW = "gain_over_champion_levenshtein_low"
AGAINST_2 = MEASURED | {"loraline.champion": "2"}


@pytest.mark.parametrize(
    ("metrics", "tags", "margin", "detail"),
    [
        ({CHAMPION_LOW: 0.2}, AGAINST_2, 0.1, None),
        ({CHAMPION_LOW: 0.1}, AGAINST_2, 0.1, ""),
        ({CHAMPION_LOW: 0.05}, AGAINST_2, 0.1, ""),
        ({}, AGAINST_2, 0.1, ""),
        ({CHAMPION_LOW: 0.2}, MEASURED, 0.1, "compared with none: evaluate again"),
        (
            {CHAMPION_LOW: 0.2},
            MEASURED | {"loraline.champion": "1"},
            0.1,
            "the champion is version 2, compared with 1: evaluate again",
        ),
        (
            {CHAMPION_LOW: 0.2},
            AGAINST_2 | {"loraline.champion.refused": "another prompt"},
            0.1,
            "version 2 cannot be compared: another prompt",
        ),
    ],
)
def test_a_champion_is_beaten_by_more_than_the_margin_or_not_at_all(
    metrics: dict[str, float], tags: dict[str, str], margin: float, detail: str | None
) -> None:
    limits = Gate(min_gain_over_champion=margin)
    verdicts = rules.judge(ON_THE_LIMIT | metrics, tags, limits, "2")
    broken = [verdict for verdict in verdicts if not verdict.passed]

    if detail is None:
        assert broken == []
    else:
        (verdict,) = broken
        assert (verdict.metric, verdict.limit) == (CHAMPION_LOW, margin)
        assert detail in verdict.detail


@pytest.mark.parametrize("part", ["tokenizer", "template", "rows"])
def test_an_evaluation_that_does_not_say_what_it_measured_is_none(part: str) -> None:
    tags = {name: value for name, value in MEASURED.items() if not name.endswith(part)}
    (verdict,) = [v for v in rules.judge(ON_THE_LIMIT, tags, LIMITS, None) if not v.passed]

    assert verdict.metric == "unmeasured"
    assert verdict.detail == f"missing or not finite: loraline.measured.{part}"


@pytest.mark.parametrize("value", [sys.float_info.max, -sys.float_info.max, float("nan")])
def test_what_is_not_finite_was_not_measured(value: float) -> None:
    metrics = ON_THE_LIMIT | {"base_bleu": value}
    broken = [v.metric for v in rules.judge(metrics, MEASURED, LIMITS, None) if not v.passed]

    assert broken == ["unmeasured"]


@pytest.mark.parametrize(
    ("value", "shown"), [(float("inf"), "inf"), (-float("inf"), "-inf"), (float("nan"), "nan")]
)
def test_what_is_no_number_is_named(value: float, shown: str) -> None:
    assert rules.number(value, 1.0) == shown


def test_a_policy_changes_the_limits_that_it_names(tmp_path: Path) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text("min_rows: 30\nmin_bleu: null\n")

    assert rules.load(policy, LIMITS) == LIMITS.model_copy(
        update={"min_rows": 30, "min_bleu": None}
    )
    assert rules.load(None, LIMITS) == LIMITS


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("[1]", r"must hold keys and values, found \[1\]"),
        ("", "must hold keys and values"),
        ("min_row: 30", "min_row"),
        ("min_rows: none", "min_rows"),
        ("min_rows: [", "cannot be read"),
        (b"\xff\xfe\x00", "cannot be read"),
        ("min_bleu: 2024-13-45", "cannot be read: month must be in 1..12"),
        (f"min_rows: {'9' * 5000}", "cannot be read"),
        (f"limits: {'[' * 3000}{']' * 3000}", "cannot be read: it is nested too deeply"),
    ],
)
def test_a_policy_that_is_none_is_refused(
    tmp_path: Path, content: str | bytes, reason: str
) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_bytes(content.encode() if isinstance(content, str) else content)

    with pytest.raises(UserError, match=rf"policy \S*policy.yaml.*{reason}"):
        rules.load(policy, LIMITS)


def test_a_policy_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"absent\.yaml cannot be read: No such file"):
        rules.load(tmp_path / "absent.yaml", LIMITS)
