"""What the gate hands to the closing table of a local run."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from loraline.evaluation import plugins
from loraline.tracking import store
from loraline.tracking.registry import CANDIDATE
from loraline.tracking.tags import CHAMPION, MODEL_NAME, MODEL_VERSION, REASON, RESULT, UPSTREAM

if TYPE_CHECKING:
    from mlflow.entities import Run

FILE = "scorecard.json"
COST = ("train_seconds", "train_tokens_per_second", "peak_memory_gib")
"""Metrics of a training's cost in the closing table; there is no peak without a GPU."""

METRICS = ("bleu", "levenshtein", "exact_match", "perplexity")


def intervals(eval_run: Run) -> dict[str, dict[str, list[float | None]]]:
    """[value, low, high] of each metric, ours and the user's, by metric and model.

    None is a number that is not defined, as the ends of one row's interval: JSON has no NaN.
    """
    logged = eval_run.data.metrics
    numbers = {name: value if math.isfinite(value) else None for name, value in logged.items()}
    return {
        name: {
            model: [numbers.get(f"{model}_{name}{end}") for end in ("", "_low", "_high")]
            for model in ("base", "tuned", "champion")
            if f"{model}_{name}" in numbers
        }
        for name in (*METRICS, *plugins.directions(eval_run.data.tags))
    }


def of(train_run: Run, eval_run: Run, gate_run: Run) -> dict[str, Any]:
    """The scorecard of a verdict; each number is [value, low, high] of its 95% interval."""
    numbers, verdict = eval_run.data.metrics, gate_run.data.tags
    plugged = plugins.directions(eval_run.data.tags)
    return {
        "metrics": intervals(eval_run),
        "better": {name: "higher" if higher else "lower" for name, higher in plugged.items()},
        "champion": eval_run.data.tags.get(CHAMPION),
        "rows": numbers.get("rows"),
        "cost": {name: train_run.data.metrics.get(name) for name in COST},
        "evaluate": eval_run.info.run_id,
        "train": eval_run.data.tags[UPSTREAM],
        "experiment": eval_run.info.experiment_id,
        "result": verdict[RESULT],
        "reason": verdict[REASON],
        "model": verdict.get(MODEL_NAME),
        "version": verdict.get(MODEL_VERSION),
        "alias": CANDIDATE,
        "store": store.uri(),
    }
