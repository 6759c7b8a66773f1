"""The fault matrix: each fault, step and moment, and how the step must end.

A moment is the step's n-th call of that name to MLflow (see harm.CALLS), or the n-th request of that
path to its server.
"""

from __future__ import annotations

import signal
from collections.abc import Iterable, Mapping
from typing import Any

from cells import Cell

MOMENTS = {
    "prepare_data": (
        *("search_runs 1", "create_run 1", "set_tag 1", "create_registered_model 1"),
        *("create_model_version 1", "log_artifacts 1", "log_batch 1", "log_inputs 1"),
        *("set_terminated 1", "hand_over 1"),
    ),
    "train_qlora": (
        *("search_runs 1", "create_registered_model 1", "create_run 1"),
        *("delete_registered_model 1", "log_artifact 1", "log_batch 3", "log_artifacts 1"),
        *("create_logged_model 1", "finalize_logged_model 1", "log_artifact 3", "set_tag 4"),
        *("set_terminated 1", "hand_over 1"),
    ),
    "evaluate": (
        *("search_runs 1", "create_run 1", "download 2", "logged_adapter 1", "log_batch 1"),
        *("set_tag 1", "log_artifact 1", "log_batch 3", "log_artifact 4", "set_terminated 1"),
        "hand_over 1",
    ),
    "quality_gate": (
        *("search_runs 1", "create_registered_model 1", "create_run 1", "log_artifact 1"),
        *("set_tag 2", "set_tag 6", "create_registered_model 2", "create_model_version 1"),
        *("set_logged_model_tags 1", "update_model_version 1", "set_model_version_tag 3"),
        *("set_tag 12", "set_registered_model_alias 1", "set_terminated 1"),
        *("delete_registered_model 1", "hand_over 1"),
    ),
    "deploy_vllm": (
        *("search_runs 1", "create_run 1", "logged_adapter 1", "log_artifact 1", "log_batch 1"),
        *("set_terminated 1", "hand_over 1"),
    ),
    "promote": (
        *("create_registered_model 1", "set_registered_model_tag 1", "set_model_version_tag 1"),
        *("set_model_version_tag 2", "set_registered_model_alias 1", "delete_registered_model 1"),
        *("get_model_version 1", "hand_over 1"),
    ),
}

REQUESTS = {
    "prepare_data": (
        *("runs/create 1", "runs/set-tag 1", "mlflow-artifacts/artifacts 1", "runs/log-batch 1"),
        "runs/update 1",
    ),
    "train_qlora": (
        *("runs/create 1", "runs/log-batch 2", "logged-models 1", "mlflow-artifacts/artifacts 2"),
        "runs/update 1",
    ),
    "evaluate": (
        *("runs/create 1", "runs/log-batch 2", "runs/set-tag 1"),
        *("mlflow-artifacts/artifacts 1", "runs/update 1"),
    ),
    "quality_gate": (
        *("registered-models/create 1", "runs/create 1", "runs/set-tag 4"),
        *("model-versions/create 1", "model-versions/set-tag 2", "registered-models/alias 1"),
        *("runs/update 1", "registered-models/delete 1"),
    ),
    "deploy_vllm": (
        *("runs/create 1", "mlflow-artifacts/artifacts 1", "runs/log-batch 1", "runs/update 1"),
    ),
    "promote": (
        *("registered-models/create 1", "registered-models/set-tag 1", "model-versions/set-tag 1"),
        *("registered-models/alias 1", "registered-models/delete 1"),
    ),
}

STEPS = tuple(MOMENTS)

LEFT = {
    "prepare_data": "run {}, prompt, temporary files",
    "train_qlora": "run {}, logged model pending, lock, temporary files",
    "evaluate": "run {}, temporary files",
    "quality_gate": "run {}, version, alias candidate, lock, temporary files",
    "deploy_vllm": "run {}, temporary files",
    "promote": "alias champion, lock, temporary files",
}


def rows(
    fault: str,
    steps: Mapping[str, Iterable[str]],
    exit_code: int,
    sentence: str = "",
    **but: Any,
) -> list[Cell]:
    """Cells of a fault that ends all steps alike, but for those that `but` names.

    `but` holds what else a Cell says, and by "STEP, MOMENT" or "STEP" a dictionary for some.
    """
    special = but.pop("special", {})
    cells = []
    for step, moments in steps.items():
        for moment in moments:
            said = {"exit_code": exit_code, "sentence": sentence, **but}
            said |= special.get(step, {}) | special.get(f"{step}, {moment}", {})
            cells.append(Cell(fault, step, moment, **said))
    return cells


CELLS: list[Cell] = [
    *rows("SIGKILL", MOMENTS, -signal.SIGKILL),
    *rows("SIGTERM", MOMENTS, 75, "stopped by SIGTERM; start it again"),
    *rows("Ctrl-C", MOMENTS, 130, "interrupted"),
    *rows("answer lost", REQUESTS, 0),
    *rows("answer 500 once", REQUESTS, 0),
    *rows("answer 429 once", REQUESTS, 0),
    *rows("connection reset once", REQUESTS, 0),
    *rows("server killed and started again", REQUESTS, 0),
    *rows("server killed for good", REQUESTS, 75),
]
