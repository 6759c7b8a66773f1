"""Intervals of metrics by resampling rows, and paired gains of one model over another.

The bootstrap (Efron 1979) draws as many rows as there are, with replacement, and recomputes the
metric from the drawn rows' sums. All metrics of equally many rows use the same draws, so a gain is
the difference on the same drawn rows (paired bootstrap, Koehn 2004).

Where most rows are right, resampling shows nothing of the errors that these rows happen to be
without: 72 right answers would make an interval from 1 to 1. So every resample also holds two
pseudo-rows, one that is all wrong and one that is all right, each as heavy as an exponential draw.
For a share of right answers that is Laplace's rule of succession (1814), a Beta(right + 1, wrong +
1). They weigh as much less as rows lie between the extremes, where the rows themselves show how
values spread.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from loraline.evaluation.metrics import FloatArray, Metric

RESAMPLES = 1000
LEVEL = 0.95
SEED = 0


@dataclass(frozen=True)
class Interval:
    """A value and the ends of its 95% interval; NaN where the value is not finite."""

    value: float
    low: float
    high: float


def interval(metric: Metric) -> Interval:
    """The metric and its interval; `low` and `high` are NaN for a single row."""
    return _interval(metric.value, _resampled(metric, _pseudo_rows()), len(metric.rows))


def gain(metric: Metric, other: Metric) -> Interval:
    """How much better `metric` is than `other`, in the metric's units: positive is better.

    Both are the same metric on the same rows in the same order. The two models are assumed to
    disagree on the two pseudo-rows of a resample: where one is wrong the other is right.
    """
    if len(metric.rows) != len(other.rows):
        raise ValueError(f"{len(metric.rows)} rows cannot be paired with {len(other.rows)}")
    sign = 1 if metric.higher_is_better else -1
    with np.errstate(invalid="ignore"):
        favour_wrong = _pseudo_rows()
        favour_right = favour_wrong[:, ::-1]
        pessimistic = _resampled(metric, favour_wrong) - _resampled(other, favour_right)
        optimistic = _resampled(metric, favour_right) - _resampled(other, favour_wrong)
        gains = sign * np.concatenate([pessimistic, optimistic])
        value = sign * float(np.subtract(metric.value, other.value))
    return _interval(value, gains, len(metric.rows))


def _resampled(metric: Metric, pseudo_rows: FloatArray) -> FloatArray:
    with np.errstate(invalid="ignore"):
        sums = _draws(len(metric.rows)) @ metric.rows
        if metric.extremes is not None:
            sums += metric.at_extremes * pseudo_rows @ metric.extremes
        return metric.of_sums(sums)


@functools.lru_cache(maxsize=1)
def _draws(rows: int) -> FloatArray:
    """How often each resample draws each row, (resamples, rows)."""
    rng = np.random.default_rng(SEED)
    return rng.multinomial(rows, np.full(rows, 1 / rows), size=RESAMPLES).astype(float)


@functools.lru_cache(maxsize=1)
def _pseudo_rows() -> FloatArray:
    """Weights of the all-wrong and the all-right row of each resample, (resamples, 2)."""
    return np.random.default_rng(SEED + 1).exponential(size=(RESAMPLES, 2))


def _interval(value: float, drawn: FloatArray, rows: int) -> Interval:
    if rows < 2 or not (math.isfinite(value) and np.isfinite(drawn).all()):
        return Interval(value, math.nan, math.nan)
    tail = expanded_tail(rows)
    low, high = np.quantile(drawn, [tail, 1 - tail])
    return Interval(value, min(float(low), value), max(float(high), value))


def expanded_tail(rows: int) -> float:
    """Share of resamples to leave out at each end.

    Plain percentiles are too narrow for few rows; Hesterberg 2015 ("What teachers should know
    about the bootstrap", section 5.3) widens them by Student's t and sqrt(n / (n - 1)).
    """
    from scipy.stats import t

    quantile = float(t.ppf((1 - LEVEL) / 2, rows - 1))
    return NormalDist().cdf(math.sqrt(rows / (rows - 1)) * quantile)
