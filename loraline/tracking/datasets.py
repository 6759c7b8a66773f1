"""Which dataset a run has made or used, where MLflow's own pages and search look for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlflow.entities import Run


def log_prepared(name: str, version: str, source: str, tags: dict[str, str]) -> None:
    """Name a dataset as the current run's, with the first of the addresses that it came from."""
    import mlflow
    from mlflow.data.code_dataset_source import CodeDatasetSource
    from mlflow.data.meta_dataset import MetaDataset

    dataset = MetaDataset(
        CodeDatasetSource(tags={"mlflow.source.name": source}), name=name, digest=version
    )
    mlflow.log_input(dataset, tags=tags)


def log_dataset(data_run: Run, run: Run, use: str) -> None:
    """Name the dataset of a prepare_data run as another run's, for `training` or `evaluation`.

    MLflow's table of runs has a column for it, and its search finds runs by it.
    """
    import mlflow
    from mlflow.entities import DatasetInput, InputTag
    from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT

    tag = InputTag(MLFLOW_DATASET_CONTEXT, use)
    datasets = [DatasetInput(each.dataset, [tag]) for each in data_run.inputs.dataset_inputs]
    mlflow.MlflowClient().log_inputs(run.info.run_id, datasets)
