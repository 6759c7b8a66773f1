import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loraline.evaluation import bootstrap, metrics
from loraline.evaluation.metrics import Metric


def share(values) -> Metric:
    """A mean of the values, higher is better."""
    rows = np.stack([values, np.ones(len(values))], axis=1)
    return Metric(rows, metrics.ratio, True, metrics.extremes_of_share(rows))


def loss(nll, tokens) -> Metric:
    return metrics.eval_loss(nll, tokens)


def edits(rng: np.random.Generator, rows: int) -> Metric:
    """A ratio of sums like the normalised edit distance: lengths vary, distances follow them."""
    longest = rng.integers(5, 60, rows)
    counts = np.stack([rng.binomial(longest, 0.3), longest], axis=1).astype(float)
    return Metric(counts, metrics.ratio, False, metrics.extremes_of_share(counts))


def losses(rng: np.random.Generator, rows: int) -> Metric:
    tokens = rng.integers(3, 40, rows)
    return metrics.eval_loss(rng.gamma(tokens, 0.5), tokens)


def perplexities(rng: np.random.Generator, rows: int) -> Metric:
    tokens = rng.integers(3, 40, rows)
    return metrics.perplexity(rng.gamma(tokens, 0.5), tokens)


def matches(rng: np.random.Generator, rows: int) -> Metric:
    return share(rng.binomial(1, 0.6, rows).astype(float))


TRUTH = {edits: 0.3, losses: 0.5, perplexities: math.exp(0.5), matches: 0.6}


@pytest.mark.parametrize("rows", [50, 200])
@pytest.mark.parametrize("draw", TRUTH, ids=lambda draw: draw.__name__)
def test_a_95_percent_interval_covers_the_truth_95_percent_of_the_time(draw, rows: int) -> None:
    rng = np.random.default_rng(1)
    runs = 2000
    inside = 0
    for _ in range(runs):
        result = bootstrap.interval(draw(rng, rows))
        inside += result.low <= TRUTH[draw] <= result.high
    assert 0.93 <= inside / runs <= 0.97


def mostly_right(rng: np.random.Generator, rows: int, wrong: float) -> Metric:
    """Edit distances of answers of which few are wrong, by 30% of their characters."""
    longest = rng.integers(5, 60, rows)
    distance = rng.binomial(longest, 0.3) * (rng.random(rows) < wrong)
    counts = np.stack([distance, longest], axis=1).astype(float)
    return Metric(counts, metrics.ratio, False, metrics.extremes_of_share(counts))


@pytest.mark.parametrize("wrong", [0.01, 0.02, 0.05, 0.1, 0.3])
@pytest.mark.parametrize("rows", [20, 50, 72, 200])
def test_errors_too_rare_to_be_seen_are_within_the_interval(rows: int, wrong: float) -> None:
    rng = np.random.default_rng(5)
    runs = 500
    matched = edited = 0
    for _ in range(runs):
        result = bootstrap.interval(share(rng.binomial(1, 1 - wrong, rows).astype(float)))
        matched += result.low <= 1 - wrong <= result.high
        result = bootstrap.interval(mostly_right(rng, rows, wrong))
        edited += result.low <= 0.3 * wrong <= result.high
    assert min(matched, edited) / runs >= 0.93


@pytest.mark.parametrize(("won", "lost"), [(0.03, 0.03), (0.06, 0.02), (0.2, 0.1)])
@pytest.mark.parametrize("rows", [50, 200])
def test_the_interval_of_a_gain_by_few_rows_covers_the_true_gain(
    rows: int, won: float, lost: float
) -> None:
    rng = np.random.default_rng(6)
    runs = 500
    inside = 0
    for _ in range(runs):
        drawn = rng.random(rows)
        base = (drawn >= won).astype(float)
        tuned = ((drawn < won) | (drawn >= won + lost)).astype(float)
        result = bootstrap.gain(share(tuned), share(base))
        inside += result.low <= won - lost <= result.high
    assert inside / runs >= 0.93


def test_four_rows_won_and_none_lost_are_no_sure_gain() -> None:
    """A sign test would say 0.125."""
    base = np.array([0.0] * 4 + [1.0] * 68)
    assert bootstrap.gain(share(np.ones(72)), share(base)).low < 0
    base[:8] = 0
    assert bootstrap.gain(share(np.ones(72)), share(base)).low > 0


@pytest.mark.parametrize("rows", [20, 72, 500])
def test_all_right_is_within_the_rule_of_three(rows: int) -> None:
    """Of no error in n rows, the upper limit at 97.5% is 3.7 / n (Hanley 1983)."""
    result = bootstrap.interval(share(np.ones(rows)))
    assert result.high == 1
    assert 1 - result.low == pytest.approx(3.7 / (rows + 3.7), rel=0.15)


@pytest.mark.parametrize("rows", [50, 200])
def test_the_interval_of_a_paired_gain_covers_the_true_gain(rows: int) -> None:
    rng = np.random.default_rng(2)
    runs = 2000
    inside = 0
    for _ in range(runs):
        tokens = rng.integers(3, 40, rows)
        difficulty = rng.gamma(tokens, 0.5)
        base = loss(difficulty + rng.gamma(tokens, 0.2), tokens)
        tuned = loss(difficulty + rng.gamma(tokens, 0.1), tokens)
        result = bootstrap.gain(tuned, base)
        inside += result.low <= 0.1 <= result.high
    assert 0.93 <= inside / runs <= 0.97


def test_bleu_intervals_cover_the_corpus_that_the_rows_were_drawn_from() -> None:
    rng = np.random.default_rng(3)
    words = np.array(["a", "b", "c", "d"])
    wanted = [" ".join(rng.choice(words, rng.integers(4, 12))) for _ in range(3000)]
    result = [
        " ".join(word if rng.random() < 0.8 else "x" for word in line.split()) for line in wanted
    ]
    population = metrics.bleu(result, wanted, "prose")
    runs, inside = 300, 0
    for _ in range(runs):
        drawn = rng.choice(3000, 60, replace=False)
        sample = replace(population, rows=population.rows[drawn])
        interval = bootstrap.interval(sample)
        inside += interval.low <= population.value <= interval.high
    assert 0.93 <= inside / runs <= 0.97


@given(st.lists(st.floats(0, 1), min_size=2, max_size=40))
def test_intervals_hold_their_value_and_are_the_same_each_time(values) -> None:
    first = bootstrap.interval(share(np.array(values)))
    assert first == bootstrap.interval(share(np.array(values)))
    assert first.low <= first.value + 1e-9 and first.value - 1e-9 <= first.high


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=2, max_size=20))
def test_a_gain_turned_around_is_its_negative(pairs) -> None:
    one, other = (share(np.array(values)) for values in zip(*pairs, strict=True))
    there, back = bootstrap.gain(one, other), bootstrap.gain(other, one)
    assert there.value == pytest.approx(-back.value)
    assert there.low == pytest.approx(-back.high)


def test_a_gain_is_positive_for_the_better_model_whichever_way_the_metric_points() -> None:
    wanted = ["a b c d e f"] * 80
    good, bad = wanted, ["a x c d e f"] * 80
    for metric in (metrics.bleu, metrics.levenshtein, metrics.exact_match):
        result = bootstrap.gain(metric(good, wanted, "prose"), metric(bad, wanted, "prose"))
        assert result.low > 0


def test_pairing_the_rows_makes_a_gain_surer_than_two_intervals() -> None:
    rng = np.random.default_rng(4)
    difficulty = rng.random(100)
    one, other = share(difficulty), share(difficulty - 0.01 - 0.001 * rng.random(100))
    paired = bootstrap.gain(one, other)
    assert paired.low > 0
    assert bootstrap.interval(other).high > bootstrap.interval(one).low


def test_a_model_gains_nothing_over_itself() -> None:
    metric = share(np.array([0.0, 1.0, 1.0]))
    result = bootstrap.gain(metric, metric)
    assert result.value == 0 and result.low == pytest.approx(-result.high)
    losses = loss([1.0, 2.0, 3.0], [1, 1, 1])
    assert bootstrap.gain(losses, losses) == bootstrap.Interval(0.0, 0.0, 0.0)


@pytest.mark.parametrize("values", [[1.0], [1.0, math.inf], [1.0, math.nan]])
def test_what_has_no_interval_gets_none_instead_of_a_wrong_one(values: list[float]) -> None:
    result = bootstrap.interval(loss(values, [1] * len(values)))
    assert math.isnan(result.low) and math.isnan(result.high)


@pytest.mark.parametrize(("rows", "others"), [(3, 2), (2, 3)])
def test_rows_that_cannot_be_paired_are_refused(rows: int, others: int) -> None:
    with pytest.raises(ValueError, match=f"{rows} rows cannot be paired with {others}"):
        bootstrap.gain(share(np.ones(rows)), share(np.ones(others)))


def test_another_process_draws_the_same_rows() -> None:
    metric = share(np.array([0.0, 1.0, 1.0, 0.5, 0.25]))
    first = bootstrap.interval(metric)
    bootstrap._draws.cache_clear()
    bootstrap._pseudo_rows.cache_clear()

    assert bootstrap.interval(metric) == first


def test_a_value_that_some_resamples_make_infinite_has_no_interval() -> None:
    # exp(600) is a number; where the bad row is drawn twice, exp(1200) is none.
    result = bootstrap.interval(metrics.perplexity([*[0.0] * 9, 6000.0], [1] * 10))

    assert math.isfinite(result.value)
    assert math.isnan(result.low) and math.isnan(result.high)


def test_ten_rows_leave_out_what_students_t_asks_for() -> None:
    # In the tables t(0.025) with 9 degrees of freedom is -2.262; sqrt(10 / 9) of it is -2.385, and
    # 0.0085 of a normal distribution lies below.
    assert bootstrap.expanded_tail(10) == pytest.approx(0.0085, abs=1e-4)
    assert bootstrap.expanded_tail(10**6) == pytest.approx(0.025, abs=1e-4)
