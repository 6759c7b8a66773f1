"""The loss of a training over its steps, as the page draws it, from what is in MLflow so far."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from loraline.evaluation import report
from loraline.tracking import runs, tags

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

STEP, NODE = "train_qlora", "train-qlora"

MOST_POINTS = 400
"""Of one curve: the page draws it 600 units wide."""

INFINITE = 1e300
"""MLflow's SQL stores keep an infinite value as the largest number of 64 bits."""

Points = Sequence[tuple[int, float]]


def of(client: MlflowClient, workflow: str, status: Mapping[str, Any]) -> dict[str, Any]:
    """Training and validation loss of a workflow's training; no points before the first is logged.

    `drawn` is the geometry of the evaluation's report: an SVG of 600 by 200.
    """
    run = run_of(client, workflow, status)
    logged = report.curves(client, run) if run else {}
    finite = {
        label: [point for point in points if math.isfinite(point[1]) and abs(point[1]) < INFINITE]
        for label, points in logged.items()
    }
    points = {label: thinned(each) for label, each in finite.items() if each}
    return {
        "run_id": run.info.run_id if run else None,
        "points": points,
        "drawn": report.curve_lines(points),
        "not_finite": sum(map(len, logged.values())) - sum(map(len, finite.values())),
        "tokens_per_second": run.data.metrics.get("tokens_per_second") if run else None,
    }


def run_of(client: MlflowClient, workflow: str, status: Mapping[str, Any]) -> Run | None:
    """The training run of a workflow: its own, or an earlier one that its step has handed over."""
    its_own = f"tags.`{tags.WORKFLOW_NAME}` = '{workflow}'"
    for run in runs.latest_runs(client, STEP, its_own, 1):
        return run
    for run_id in handed_over(status):
        return client.get_run(run_id)
    return None


def handed_over(status: Mapping[str, Any]) -> Iterator[str]:
    """Run IDs that a workflow's training steps have as their output."""
    for node in (status.get("nodes") or {}).values():
        if node["displayName"].startswith(NODE):
            for parameter in (node.get("outputs") or {}).get("parameters") or ():
                if parameter["name"] == "run-id" and parameter.get("value"):
                    yield parameter["value"]


def thinned(points: Points) -> Points:
    """At most MOST_POINTS of a curve: its ends, and of each stretch the lowest and the highest, so
    that no peak is lost."""
    if len(points) <= MOST_POINTS:
        return points
    length = math.ceil(len(points) / (MOST_POINTS // 2 - 1))
    kept = {points[0], points[-1]}
    for start in range(0, len(points), length):
        stretch = points[start : start + length]
        kept |= {
            min(stretch, key=lambda point: point[1]),
            max(stretch, key=lambda point: point[1]),
        }
    return sorted(kept)
