"""How MLflow's page shows the experiment of the pipeline: trainings, in the columns that matter."""

from __future__ import annotations

import json
import time

from loraline.tracking.tags import MODEL_VERSION, PROFILE, RESULT, STEP

SAVED = "mlflow.sharedViewState."
"""Prefix of the tags in which MLflow's page keeps saved views of an experiment's runs."""

TRAININGS = "trainings"
"""The view's key: `…/#/experiments/ID/runs?viewStateShareKey=trainings` opens it."""

METRICS = (
    "tuned_bleu",
    "base_bleu",
    "tuned_levenshtein",
    "tuned_exact_match",
    "tuned_perplexity",
    "eval_loss",
    "train_tokens_per_second",
    "peak_memory_gib",
)
PARAMS = ("r", "learning_rate", "num_train_epochs")
TAGS = (PROFILE, RESULT, MODEL_VERSION)
ATTRIBUTES = ("Created", "Duration", "Dataset", "Models")


def columns() -> list[str]:
    """The table's columns in MLflow's own notation."""
    named = {"attributes": ATTRIBUTES, "tags": TAGS, "metrics": METRICS, "params": PARAMS}
    return [f"{group}.`{name}`" for group, names in named.items() for name in names]


def tags() -> dict[str, str]:
    """Tags of a new experiment: one of trainings, not of a chat's traces, with a saved view."""
    state = {
        "searchFilter": f"tags.`{STEP}` = 'train_qlora'",
        "orderByKey": "attributes.start_time",
        "orderByAsc": False,
        "selectedColumns": columns(),
    }
    now = int(time.time() * 1000)
    view = {
        "name": "Trainings",
        "createdAt": now,
        "updatedAt": now,
        "state": json.dumps(state),
    }
    return {
        "mlflow.experimentKind": "custom_model_development",
        f"{SAVED}{TRAININGS}": json.dumps(view),
    }
