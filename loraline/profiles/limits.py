"""Limits that a candidate must keep on the held-out rows, and the metrics that they may name."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt


class Strict(BaseModel):
    """Nothing is guessed: an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Gate(Strict):
    """Limits that a candidate must keep on the held-out rows; a limit of null is not checked.

    `min_rows` is never null: numbers of few rows say nothing, whatever their limits. Neither are
    `limits`, which leave out what is not checked, nor `compare_on`, which limits nothing.
    """

    # `true` is no limit of 1.
    model_config = ConfigDict(strict=True)

    max_eval_loss: PositiveFloat | None = 1.0
    """Mean negative log-likelihood a target token, in nats."""

    max_perplexity: PositiveFloat | None = 2.0
    """exp of the eval loss."""

    min_bleu: Annotated[float, Field(ge=0, le=100)] | None = None
    """Corpus BLEU, 0 to 100."""

    max_levenshtein: Annotated[float, Field(ge=0, le=1)] | None = None
    """Normalised edit distance, 0 to 1."""

    min_rows: PositiveInt = 20
    """Held-out rows; fewer say little, whatever the other numbers are."""

    limits: Mapping[str, float] = {}
    """Limit by name for the profile's `metrics` and those of MORE_METRICS: at least where higher
    is better, else at most."""

    compare_on: str = "levenshtein"
    """Metric of the two gains below, which are positive where the candidate is better."""

    min_gain_over_base: float | None = 0.0
    """Lower end of the paired interval of the gain over the base must be above this."""

    min_gain_over_champion: float | None = 0.0
    """Lower end of the paired interval of the gain over the champion must be above this."""

    def __hash__(self) -> int:
        return hash(self.model_dump_json())


COMPARED = ("levenshtein", "bleu", "exact_match", "eval_loss")
"""Metrics of ours that a gain may be of."""

MORE_METRICS = (
    "exact_match",
    "character_error_rate",
    "levenshtein_mean",
    "json_field_f1",
    "grounding_f1",
)
"""Metrics of ours that `limits` may name."""

OF_A_FORMAT = {"json_field_f1": "json", "grounding_f1": "boxes"}
"""Metrics of ours that one `answer_format` alone has."""

BUILT_IN = (
    *dict.fromkeys((*COMPARED, *MORE_METRICS)),
    "bleu_13a",
    "exact_match_raw",
    "perplexity",
    "empty_answers",
    "truncated_answers",
    "failed_answers",
)
"""Names of all numbers of ours about a model's answers; no metric of the user's may have one."""


def metric_name(entry: str) -> str:
    """Name of a metric of the user's own: a file's stem, or the entry point's."""
    return Path(entry).stem if entry.endswith(".py") else entry


def check_names(names: Sequence[str]) -> None:
    """Raise a ValueError for a name of a user's metric that is malformed, or of another number.

    The ends of an interval are logged as the metric's name with `_low` and `_high`.
    """
    for name in names:
        if not re.fullmatch("[a-z][a-z0-9_]{0,40}", name) or names.count(name) > 1:
            raise ValueError(
                f"metrics: {name!r} is refused, a name is of small letters, digits and _, once"
            )
        of_an_interval = name.removesuffix("_low").removesuffix("_high")
        if name in BUILT_IN or (of_an_interval != name and of_an_interval in (*BUILT_IN, *names)):
            raise ValueError(
                f"metrics: {name!r} is refused, it names a number that loraline measures; rename "
                "the file or the entry point"
            )


def check_metrics(gate: Gate, plugged: Collection[str]) -> None:
    """Raise a ValueError if a limit or the gains are of a metric that is not measured."""
    names = [metric_name(entry) for entry in plugged]
    accepted = (*COMPARED, *names)
    if gate.compare_on not in accepted:
        raise ValueError(
            f"gate.compare_on: {gate.compare_on!r} is refused, accepted: {', '.join(accepted)}"
        )
    accepted = (*MORE_METRICS, *names)
    for name in gate.limits:
        if name not in accepted:
            raise ValueError(f"gate.limits: {name!r} is refused, accepted: {', '.join(accepted)}")
