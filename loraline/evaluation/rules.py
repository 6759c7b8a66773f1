"""The gate's rules: what a candidate must keep, as verdicts that a person can read."""

from __future__ import annotations

import math
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeGuard

import yaml
from pydantic import ValidationError

from loraline.errors import UserError
from loraline.evaluation import plugins
from loraline.evaluation.metrics import HEADLINE, HIGHER_IS_BETTER
from loraline.profiles.layered_yaml import read_yaml
from loraline.profiles.limits import Gate, check_metrics
from loraline.profiles.loading import complaints
from loraline.tracking.tags import CHAMPION, CHAMPION_AGAIN, CHAMPION_REFUSED, MEASURED

REQUIRED = tuple(f"{model}_{name}" for model in ("base", "tuned") for name in HEADLINE)
"""Metrics that every measured candidate has."""


@dataclass(frozen=True)
class Verdict:
    """The verdict of one rule: its metric, the value, the limit, and whether it passed."""

    metric: str
    value: float | None
    relation: Literal["at least", "at most", "above"]
    limit: float
    passed: bool
    detail: str = ""
    """Explanation for a reviewer of a rule that failed, or had nothing to judge."""

    def cells(self) -> tuple[str, str, str, str]:
        """Rule, value, limit and verdict as text."""
        nothing = "-" if self.passed else "missing"
        value = nothing if self.value is None else number(self.value, self.limit)
        verdict = "passed" if self.passed else "FAILED"
        return self.metric, value, f"{self.relation} {self.limit:g}", verdict


def load(path: Path | None, defaults: Gate, user_metrics: Collection[str] = ()) -> Gate:
    """The profile's limits, overridden by those of the policy file, which may name its metrics.

    Raises UserError for a file that cannot be read, an unknown key or a value out of bounds.
    """
    if path is None:
        return defaults
    try:
        content = read_yaml(path)
    except OSError as error:
        raise UserError(f"policy {path} cannot be read: {error.strerror}") from error
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"policy {path} cannot be read: {reason}") from error
    if not isinstance(content, dict):
        raise UserError(f"policy {path} must hold keys and values, found {content!r}")
    try:
        limits = Gate.model_validate(defaults.model_dump() | content)
        check_metrics(limits, user_metrics)
    except ValidationError as error:
        reason = "; ".join(complaints(error, Gate))
        raise UserError(f"policy {path}: {reason}") from error
    except ValueError as error:
        raise UserError(f"policy {path}: {error}") from error
    return limits


def judge(
    metrics: Mapping[str, float],
    tags: Mapping[str, str],
    limits: Gate,
    champion: str | None,
) -> list[Verdict]:
    """A verdict for each rule, by an evaluation's metrics and tags; `champion` is today's version.

    A value that is missing or not finite keeps no rule.
    """
    verdicts = [measured(metrics, tags), at_least("rows", metrics, limits.min_rows)]
    verdicts += [
        at_most(name, metrics, limit)
        for name, limit in (
            ("tuned_eval_loss", limits.max_eval_loss),
            ("tuned_perplexity", limits.max_perplexity),
            ("tuned_levenshtein", limits.max_levenshtein),
        )
        if limit is not None
    ]
    if limits.min_bleu is not None:
        verdicts.append(at_least("tuned_bleu", metrics, limits.min_bleu))
    higher_is_better = HIGHER_IS_BETTER | plugins.directions(tags)
    for name, limit in limits.limits.items():
        judged = at_least if higher_is_better.get(name, True) else at_most
        verdicts.append(judged(f"tuned_{name}", metrics, limit))
    if changes_nothing(metrics):
        detail = "every answer token is as likely as without the adapter"
        verdicts.append(Verdict("adapter_changes", 0, "above", 0, False, detail))
    if limits.min_gain_over_base is not None:
        name = f"gain_over_base_{limits.compare_on}_low"
        verdicts.append(above(name, metrics, limits.min_gain_over_base))
    if limits.min_gain_over_champion is not None:
        name = f"gain_over_champion_{limits.compare_on}_low"
        margin = limits.min_gain_over_champion
        verdicts.append(against_champion(name, margin, metrics, tags, champion))
    return verdicts


def measured(metrics: Mapping[str, float], tags: Mapping[str, str]) -> Verdict:
    """Whether every metric is present and finite, and the measured data are known."""
    lacking = [name for name in REQUIRED if not is_finite(metrics.get(name))]
    prints = [f"{MEASURED}.{part}" for part in ("tokenizer", "template", "rows")]
    lacking += [name for name in prints if not tags.get(name)]
    detail = f"missing or not finite: {', '.join(lacking)}" if lacking else ""
    return Verdict("unmeasured", len(lacking), "at most", 0, not lacking, detail)


def at_least(name: str, metrics: Mapping[str, float], limit: float) -> Verdict:
    value = metrics.get(name)
    passed = is_finite(value) and value >= limit
    return Verdict(name, value, "at least", limit, passed)


def above(name: str, metrics: Mapping[str, float], limit: float) -> Verdict:
    value = metrics.get(name)
    return Verdict(name, value, "above", limit, is_finite(value) and value > limit)


def changes_nothing(metrics: Mapping[str, float]) -> bool:
    """Whether the adapter leaves the held-out rows' loss exactly as the base's.

    A margin below zero would let it pass, though there is nothing to serve.
    """
    ends = [metrics.get(f"gain_over_base_eval_loss{end}") for end in ("", "_low", "_high")]
    return ends == [0, 0, 0]


def at_most(name: str, metrics: Mapping[str, float], limit: float) -> Verdict:
    value = metrics.get(name)
    passed = is_finite(value) and value <= limit
    return Verdict(name, value, "at most", limit, passed)


def against_champion(
    name: str,
    margin: float,
    metrics: Mapping[str, float],
    tags: Mapping[str, str],
    champion: str | None,
) -> Verdict:
    """Whether the candidate's gain over the champion exceeds the margin, interval included.

    Gains over another version, or with another tokenizer, template or prompt, do not count.
    """
    if champion is None:
        return Verdict(name, None, "above", margin, True, "there is no other champion")
    against = tags.get(CHAMPION)
    if against != champion:
        detail = (
            f"the champion is version {champion}, compared with {against or 'none'}: evaluate again"
        )
        return Verdict(name, None, "above", margin, False, detail)
    if CHAMPION_AGAIN in tags:
        detail = f"it is version {champion}, the champion itself, trained once more"
        return Verdict(name, None, "above", margin, True, detail)
    if CHAMPION_REFUSED in tags:
        detail = (
            f"version {champion} cannot be compared: {tags[CHAMPION_REFUSED]}; a policy "
            "with min_gain_over_champion: null judges without it"
        )
        return Verdict(name, None, "above", margin, False, detail)
    return above(name, metrics, margin)


def number(value: float, limit: float) -> str:
    """A metric for people, with enough digits to differ from its limit."""
    if not is_finite(value):
        return "-inf" if value < 0 else "nan" if math.isnan(value) else "inf"
    for digits in range(4, 18):
        text = f"{value:.{digits}g}"
        if text != f"{limit:g}":
            return text
    return f"{value:.4g}"


def is_finite(value: float | None) -> TypeGuard[float]:
    """Whether a metric is present and finite; MLflow stores infinity as the largest float."""
    return value is not None and abs(value) < sys.float_info.max


def table(verdicts: Sequence[Verdict]) -> str:
    """The verdicts as aligned lines, one for each rule, with its detail below it."""
    rows = [("rule", "value", "limit", "verdict"), *(verdict.cells() for verdict in verdicts)]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = []
    for row, verdict in zip(rows, [None, *verdicts], strict=True):
        lines.append("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)))
        if verdict is not None and verdict.detail:
            lines.append(f"  {verdict.detail}")
    return "\n".join(line.rstrip() for line in lines)


def markdown(verdicts: Sequence[Verdict]) -> str:
    """The verdicts as a Markdown table."""
    lines = ["| rule | value | limit | verdict |", "|---|---|---|---|"]
    return "\n".join([*lines, *(f"| {' | '.join(verdict.cells())} |" for verdict in verdicts)])


def reasons(verdicts: Sequence[Verdict]) -> str:
    """Why the candidate is rejected, in one line."""
    broken = []
    for verdict in verdicts:
        if not verdict.passed:
            metric, value, limit, _ = verdict.cells()
            detail = f" ({verdict.detail})" if verdict.detail else ""
            broken.append(f"{metric} {value} is not {limit}{detail}")
    return "; ".join(broken) or "all rules kept"
