"""Pick the best of a sweep's evaluations that keeps its profile's limits, for the gate to judge.

The gate asks for more: the rules of its --policy, and an adapter that vLLM would take.

Reads: the metrics of evaluate runs.
Writes: `ranking.json`, tags on the training runs; the best evaluate run as `run-id`.

    python steps/select_best.py --run-ids '["RUN_ID", "RUN_ID"]' --metric levenshtein
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from loraline.errors import UserError
from loraline.step import limits_option, recipes_option, step
from loraline.tracking import fingerprints, run_profile, store
from loraline.tracking import runs as tracking_runs
from loraline.tracking.tags import MEASURED, MODEL_ID, SELECTED

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

BEST = "loraline.selected.run_id"


@dataclass(frozen=True)
class Entry:
    """A member of the sweep, its metric with the interval, and which limits it breaks."""

    run_id: str
    train_run_id: str
    name: str
    value: float
    low: float
    high: float
    broken: str
    champion: bool

    def rank(self, higher_is_better: bool) -> tuple[bool, bool, float]:
        """Sorts the best first: those that keep their limits, and of those the best at its worse
        end. Today's champion is last: there is nothing to promote in it."""
        worst = -self.low if higher_is_better else self.high
        return self.champion, bool(self.broken), worst if math.isfinite(worst) else math.inf

    def standing(self) -> str:
        """What the ranking says of the member beside its metric."""
        return "is the champion" if self.champion else self.broken or "keeps its limits"

    def __str__(self) -> str:
        return f"{self.value:.4g} ({self.low:.4g} to {self.high:.4g})"


@step
@click.option(
    "--run-ids", required=True, help="JSON list of evaluate runs; empty ones are skipped."
)
@click.option("--metric", default="levenshtein", show_default=True, help="Metric to rank by.")
@limits_option
@recipes_option
def select_best(
    run_ids: str,
    metric: str,
    overrides: tuple[str, ...] | None,
    recipes: dict[str, Any],
    out_dir: Path,
    force: bool,
) -> None:
    """Rank a sweep by the worse end of a metric's interval, and hand over the best evaluation.

    If no member keeps its limits, the best of all is handed over, and the gate rejects it. Today's
    champion comes last. A member is marked "not told apart from the best" where their intervals
    overlap. The intervals are those of single members, not of the differences between them, so the
    mark is set too often rather than too seldom.
    """
    from loraline.evaluation import metrics, plugins

    evaluations = parsed(run_ids)
    client = store.connect()
    runs = [
        tracking_runs.upstream_run(client, run_id, "evaluate", "--run-ids")
        for run_id in evaluations
    ]
    refuse_unlike(runs)
    directions = dict(metrics.HIGHER_IS_BETTER)
    for run in runs:
        directions |= plugins.directions(run.data.tags)
    if metric not in directions:
        accepted = ", ".join(sorted(directions))
        raise UserError(f"unknown --metric {metric!r}; accepted: {accepted}")
    entries = sorted(
        (entry(client, run, metric, overrides, recipes) for run in runs),
        key=lambda member: member.rank(directions[metric]),
    )
    if not any(math.isfinite(member.value) for member in entries):
        raise UserError(f"--metric {metric}: none of the runs has measured it")
    ranking = [asdict(member) for member in entries]
    fingerprint = fingerprints.fingerprint(__file__, {"metric": metric, "ranking": ranking})
    finished = None if force else tracking_runs.finished_run(client, "select_best", fingerprint)
    best = entries[0]
    if finished and is_tagged_with(client, best.train_run_id, finished):
        click.echo(f"selection of run {finished.info.run_id} (reused):")
    else:
        log(client, entries, metric, fingerprint)
    for place, member in enumerate(entries, start=1):
        click.echo(f"{place}. {member.name}: {metric} {member} {member.standing()}")
    tracking_runs.hand_over(
        out_dir, best.run_id, result="failed" if best.broken or best.champion else "passed"
    )


def is_tagged_with(client: MlflowClient, train_run_id: str, selection: Run) -> bool:
    """Whether a training run's tag is from this selection, and not from a later one."""
    tags = client.get_run(train_run_id).data.tags
    return f"selection {selection.info.run_id}" in tags.get(SELECTED, "")


def parsed(run_ids: str) -> list[str]:
    """The run IDs of a JSON list; members of a sweep that failed have left empty ones."""
    try:
        listed = json.loads(run_ids)
    except ValueError:
        listed = None
    if not isinstance(listed, list) or not all(isinstance(run_id, str) for run_id in listed):
        raise UserError(f"--run-ids {run_ids!r} is not a JSON list of run IDs")
    evaluations = list(dict.fromkeys(filter(None, listed)))
    if not evaluations:
        raise UserError(
            f"--run-ids {run_ids!r} names no run; in a sweep, all of its members have failed"
        )
    return evaluations


def refuse_unlike(runs: Sequence[Run]) -> None:
    """A UserError if the runs were not measured on one tokenizer, template and set of rows."""
    for part in ("tokenizer", "template", "rows"):
        values = {run.data.tags.get(f"{MEASURED}.{part}") for run in runs}
        if len(values) > 1 or None in values:
            raise UserError(
                f"the runs were measured with different {part}, so they cannot be compared: "
                + ", ".join(run.info.run_id for run in runs)
            )


def entry(
    client: MlflowClient,
    run: Run,
    metric: str,
    overrides: tuple[str, ...] | None,
    recipes: dict[str, Any],
) -> Entry:
    """A run's place in the ranking, judged by the rules of its own profile."""
    from loraline.evaluation import rules
    from loraline.tracking import registry

    train_run = tracking_runs.ancestor(client, run, "train_qlora")
    limits = run_profile.as_today(train_run, overrides, recipes).gate
    name = run_profile.of_training(client, train_run).registered_model
    model_id = train_run.data.tags[MODEL_ID]
    champion = registry.version_of(client, name, registry.CHAMPION)
    itself = champion is not None and champion.source == f"models:/{model_id}"
    against = str(champion.version) if champion and not itself else None
    verdicts = rules.judge(run.data.metrics, run.data.tags, limits, against)
    value, low, high = (
        run.data.metrics.get(f"tuned_{metric}{end}", math.nan) for end in ("", "_low", "_high")
    )
    broken = "" if all(verdict.passed for verdict in verdicts) else rules.reasons(verdicts)
    ids = run.info.run_id, train_run.info.run_id
    return Entry(*ids, str(train_run.info.run_name), value, low, high, broken, itself)


def log(client: MlflowClient, entries: Sequence[Entry], metric: str, fingerprint: str) -> None:
    """Log the ranking in a run of its own, and each member's place on its training run."""
    import mlflow

    best = entries[0]
    with tracking_runs.open_run(
        "select_best",
        name=f"best of {len(entries)} by {metric}",
        fingerprint=fingerprint,
        upstream=client.get_run(best.run_id),
        tags={BEST: best.run_id},
    ) as run:
        mlflow.log_dict({"metric": metric, "ranking": list(map(asdict, entries))}, "ranking.json")
        for place, member in enumerate(entries, start=1):
            # Intervals that overlap do not tell two members apart, and the tag says so.
            apart = member.low > best.high or member.high < best.low
            rank = f"{place} of {len(entries)} by {metric} {member}, selection {run.info.run_id}"
            alike = place > 1 and not apart
            rank += "; not told apart from the best" if alike else ""
            client.set_tag(member.train_run_id, SELECTED, rank)


if __name__ == "__main__":
    select_best()
