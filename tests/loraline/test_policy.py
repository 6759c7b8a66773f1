from loraline import policy
from loraline.profiles import Gate

MEASURED = {f"loraline.measured.{part}": "x" for part in ("tokenizer", "template", "rows")}
LIMITS = Gate(min_bleu=70, max_levenshtein=0.1, min_rows=20)
ON_THE_LIMIT = dict.fromkeys(policy.REQUIRED, 0.0) | {
    "rows": 20.0,
    "tuned_eval_loss": 1.0,
    "tuned_perplexity": 2.0,
    "tuned_bleu": 70.0,
    "tuned_levenshtein": 0.1,
    "gain_over_base_levenshtein_low": 0.0,
}


def test_a_value_on_the_limit_passes() -> None:
    assert all(verdict.passed for verdict in policy.judge(ON_THE_LIMIT, MEASURED, LIMITS, None))


def test_each_rule_breaks_by_itself() -> None:
    worse = {
        "rows": 19.0,
        "tuned_eval_loss": 1.01,
        "tuned_perplexity": 2.01,
        "tuned_bleu": 69.9,
        "tuned_levenshtein": 0.11,
        "gain_over_base_levenshtein_low": -0.001,
    }
    for name, value in worse.items():
        verdicts = policy.judge(ON_THE_LIMIT | {name: value}, MEASURED, LIMITS, None)
        assert [verdict.metric for verdict in verdicts if not verdict.passed] == [name]
        assert name in policy.reasons(verdicts)


def test_no_metrics_keep_no_rule_but_the_absent_champions() -> None:
    verdicts = policy.judge({}, {}, LIMITS, None)
    assert [verdict.metric for verdict in verdicts if verdict.passed] == [
        "gain_over_champion_levenshtein_low"
    ]


def test_a_rule_set_to_null_is_not_judged() -> None:
    limits = Gate(min_gain_over_base=None, min_gain_over_champion=None)
    names = [verdict.metric for verdict in policy.judge(ON_THE_LIMIT, MEASURED, limits, "3")]
    assert names == ["unmeasured", "rows", "tuned_eval_loss", "tuned_perplexity"]


def test_gains_are_judged_on_the_metric_that_the_policy_names() -> None:
    limits = Gate(compare_on="bleu", min_gain_over_base=5)
    metrics = ON_THE_LIMIT | {"gain_over_base_bleu_low": 4.9}
    broken = [v.metric for v in policy.judge(metrics, MEASURED, limits, None) if not v.passed]
    assert broken == ["gain_over_base_bleu_low"]
