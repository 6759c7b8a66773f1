"""What every step imports of others' packages: once in a run, by the process that it forks from.

None of our own modules: a step reads those as they are when it begins.
"""

from __future__ import annotations

import os

# As loraline.tracking.store does it; a thread of MLflow's would keep the process from forking.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

import mlflow
import mlflow.store.model_registry.sqlalchemy_store
import mlflow.store.tracking.sqlalchemy_store

__all__ = ["mlflow"]
