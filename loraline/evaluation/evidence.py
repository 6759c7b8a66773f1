"""Checks of the gate before it judges: whether an evaluation's numbers are those it measured.

Who may write to MLflow can log a metric again, name another dataset, or call any adapter the
champion. Parameters and old values of metrics cannot be changed, and show it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from loraline.errors import UserError
from loraline.tracking import identity, runs
from loraline.tracking.tags import CHAMPION_AGAIN, DATASET_DIGEST

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run


def check_dataset(eval_run: Run, train_run: Run, data_run: Run) -> None:
    """Raise a UserError if the evaluation's rows are not those of the dataset as it is now, or the
    dataset is not that of the training."""
    digest = identity.recorded(data_run, DATASET_DIGEST) or "none"
    for run in (train_run, eval_run):
        identity.expect(run, DATASET_DIGEST, digest, "the dataset")
    version, logged = train_run.data.params.get("data_version"), data_run.data.params.get("version")
    if version != logged:
        difference = f"it was trained on the dataset {version}, and comes from a run with {logged}"
        raise UserError(identity.changed("train_qlora", difference))


def check_logged_once(client: MlflowClient, eval_run: Run, names: Sequence[str]) -> None:
    """Raise a UserError for a metric with several values: an evaluation logs each one once."""
    for name in names:
        if name in eval_run.data.metrics:
            history = client.get_metric_history(eval_run.info.run_id, name)
            values = list(dict.fromkeys(str(entry.value) for entry in history))
            if len(values) > 1:
                difference = f"its metric {name} was logged as {' and as '.join(values)}"
                raise UserError(identity.changed("evaluate", difference))


def check_champion_again(eval_run: Run, name: str, adapter: Path) -> None:
    """Raise a UserError if the evaluation calls an adapter the champion's own and it is not."""
    if version := eval_run.data.tags.get(CHAMPION_AGAIN):
        runs.check_same_adapter("evaluate", name, version, adapter)
