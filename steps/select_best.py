"""Pick the best of a sweep's evaluated candidates.

Reads: the metrics of the evaluate runs.
Writes: a run with the ranking; hands over the ID of the winner's evaluate run.

    python steps/select_best.py --run-ids '["9f2c", "4b7e"]'
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import click

from loraline import tracking
from loraline.errors import UserError
from loraline.step import step


@step
@click.option("--run-ids", required=True, help="MLflow runs of evaluate, as a JSON list.")
@click.option("--metric", default="tuned_eval_loss", show_default=True, help="Lowest value wins.")
def select_best(run_ids: str, metric: str, out_dir: Path, force: bool) -> None:
    """Hand over the evaluate run with the lowest value of a metric."""
    client = tracking.connect()
    runs = [tracking.upstream_run(client, run_id, "evaluate") for run_id in read_ids(run_ids)]
    values = {run.info.run_id: run.data.metrics.get(metric, math.nan) for run in runs}
    finite = {run_id: value for run_id, value in values.items() if math.isfinite(value)}
    if not finite:
        raise UserError(f"none of {len(values)} runs has a finite {metric}")
    best = min(finite, key=lambda run_id: finite[run_id])
    for run in runs:
        client.set_tag(run.info.run_id, "loraline.sweep.best", str(run.info.run_id == best).lower())
        click.echo(f"{run.info.run_name}: {metric} {values[run.info.run_id]:.4g}")
    tracking.hand_over(out_dir, best)


def read_ids(run_ids: str) -> list[str]:
    try:
        found = json.loads(run_ids)
    except json.JSONDecodeError as error:
        raise UserError(f"--run-ids {run_ids!r} is not JSON: {error.msg}") from error
    if not isinstance(found, list) or not found:
        raise UserError(f"--run-ids {run_ids!r} is not a list of at least one run ID")
    return [str(run_id) for run_id in found if run_id]


if __name__ == "__main__":
    select_best()
