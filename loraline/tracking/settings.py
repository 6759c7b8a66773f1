"""Infrastructure, from the environment alone; training choices live in profiles and flags."""

from __future__ import annotations

from pathlib import Path

from pydantic import AliasChoices, Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """Where the services are and which workflow this is; every field is an environment variable."""

    model_config = SettingsConfigDict(
        frozen=True, extra="ignore", env_prefix="LORALINE_", env_ignore_empty=True
    )

    tracking_uri: str = Field("", validation_alias=AliasChoices("MLFLOW_TRACKING_URI"))
    """MLflow server or SQL store; empty means a SQLite store in mlruns/ of the current folder."""

    experiment: str = Field(
        "vllm-lora-training", validation_alias=AliasChoices("MLFLOW_EXPERIMENT_NAME"), min_length=1
    )
    """MLflow experiment that all runs of the pipeline go to."""

    s3_endpoint: str = Field("", validation_alias=AliasChoices("MLFLOW_S3_ENDPOINT_URL"))
    """S3-compatible endpoint of MLflow's artifacts; empty means AWS, or none at all."""

    workflow_name: str = ""
    """Name of the Argo workflow or of the local run."""

    workflow_uid: str = ""
    """Unique ID of the Argo workflow or of the local run."""

    image: str = ""
    """Container image that the step runs in."""

    git_sha: str = ""
    """Commit that the image was built from; a checkout is asked when it is empty."""

    def store_uri(self) -> str:
        return self.tracking_uri or f"sqlite:///{local_store() / 'mlflow.db'}"


def local_store() -> Path:
    """Folder of the MLflow store that is used when none is named."""
    return Path("mlruns").resolve()
