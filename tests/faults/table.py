"""The fault matrix: each fault, step and moment, and how the step must end.

A moment is the step's n-th call of that name to MLflow (see harm.CALLS), or the n-th request of
that path to its server.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
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
        *("log_inputs 1", "delete_registered_model 1", "log_artifact 1", "log_batch 3"),
        "log_artifacts 1",
        *("create_logged_model 1", "finalize_logged_model 1", "log_artifact 3", "set_tag 4"),
        *("set_terminated 1", "hand_over 1"),
    ),
    "evaluate": (
        *("search_runs 1", "create_run 1", "log_inputs 1", "download 2", "logged_adapter 1"),
        *("log_batch 1", "set_tag 1", "log_artifact 1", "log_batch 3", "log_artifact 4"),
        *("set_terminated 1", "hand_over 1"),
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
        *("runs/create 1", "runs/log-batch 2", "logged-models 1", "runs/set-tag 2"),
        "runs/update 1",
    ),
    "evaluate": (
        *("runs/create 1", "runs/log-batch 2", "runs/set-tag 1"),
        *("runs/set-tag 3", "runs/update 1"),
    ),
    "quality_gate": (
        *("registered-models/create 1", "runs/create 1", "runs/set-tag 4"),
        *("model-versions/create 1", "model-versions/set-tag 2", "registered-models/alias 1"),
        *("runs/update 1", "registered-models/delete 1"),
    ),
    "deploy_vllm": ("runs/search 1", "runs/create 1", "runs/update 1"),
    "promote": (
        *("registered-models/create 1", "registered-models/set-tag 1", "model-versions/set-tag 1"),
        *("registered-models/alias 1", "registered-models/delete 1"),
    ),
}

STEPS = tuple(MOMENTS)

STARTS = {
    "prepare_data": ("search_runs 1", "log_artifacts 1"),
    "train_qlora": ("search_runs 1", "log_batch 3"),
    "evaluate": ("search_runs 1", "log_batch 1"),
    "quality_gate": ("search_runs 1", "create_model_version 1"),
    "deploy_vllm": ("search_runs 1", "log_artifact 1"),
    "promote": ("create_registered_model 1", "set_registered_model_alias 1"),
}
"""A moment near the start of each step, and one in the middle of its writes."""

ADAPTER_CHANGES = (
    *("louder", "scaled", "other_weights", "other_prompt", "other_template", "no_text"),
    *("garbage", "another_file", "no_base_config"),
)
DATASET_CHANGES = ("lost", "all_lost", "cut", "swapped", "added", "asked", "listed", "unlisted")

CHECKPOINT_HARMS = (
    "lost",
    *(
        f"{harm} {file}"
        for harm in ("cut", "lost")
        for file in (
            "weights.safetensors",
            "optimizer.safetensors",
            "optimizer.json",
            "scheduler.json",
            "random-0.safetensors",
            "best.safetensors",
            "trainer_state.json",
            "sealed.json",
        )
    ),
)

S3 = "S3 as artifact store"

S3_TROUBLES = (
    *("well", "away", "403, always", "500, always", "500, once", "reset, once", "lost, once"),
)

LEFT = {
    "prepare_data": "run {}, prompt, outputs, temporary files",
    "train_qlora": "run {}, logged model pending, outputs",
    "evaluate": "run {}, outputs",
    "quality_gate": "run {}, version, alias candidate, outputs",
    "deploy_vllm": "run {}, outputs",
    "promote": "alias champion, outputs",
}
"""What a step may leave, whatever happens; `rows` puts in the states of runs."""


def rows(
    fault: str,
    steps: Mapping[str, Iterable[str]],
    exit_code: int,
    sentence: str = "",
    *,
    runs: Sequence[str] = ("FAILED", "FINISHED", "KILLED"),
    more: str = "",
    special: Mapping[str, Mapping[str, Any]] = MappingProxyType({}),
    **but: Any,
) -> list[Cell]:
    """Cells of a fault that ends all steps alike, but for those that `special` names.

    `runs` are the states that the step's run may be left in, `more` what else may stay behind.
    `special` holds by "STEP" or "STEP, MOMENT" what else a Cell says there.
    """
    cells = []
    for step, moments in steps.items():
        states = ", ".join(f"run {state}" for state in runs)
        stays = LEFT[step].replace("run {}", states) + (f", {more}" if more else "")
        for moment in moments:
            said = {"exit_code": exit_code, "sentence": sentence, "left": stays, **but}
            said |= {**special.get(step, {}), **special.get(f"{step}, {moment}", {})}
            cells.append(Cell(fault, step, moment, **said))
    return cells


def each(steps: Iterable[str], moments: Iterable[str]) -> dict[str, tuple[str, ...]]:
    return {step: tuple(moments) for step in steps}


def but_promote(moments: Mapping[str, Iterable[str]]) -> dict[str, Iterable[str]]:
    return {step: those for step, those in moments.items() if step != "promote"}


WRITELESS = ("RUNNING", "FAILED", "FINISHED", "KILLED")
"""The states of a run whose end could not be written, perhaps."""

TRAINED = {"exit_code": 0, "sentence": ""}
"""A training that has done its last step when it is told to stop ends as if it were not."""

CELLS: list[Cell] = [
    *rows("SIGKILL", MOMENTS, -9, runs=("RUNNING", "FINISHED"), more="lock, temporary files"),
    *rows(
        "SIGTERM",
        MOMENTS,
        75,
        "stopped by SIGTERM; start it again",
        special={
            f"train_qlora, {moment}": TRAINED
            for moment in MOMENTS["train_qlora"][MOMENTS["train_qlora"].index("log_artifacts 1") :]
        },
    ),
    *rows("Ctrl-C", MOMENTS, 130, "interrupted"),
    *rows("answer lost", REQUESTS, 0),
    *rows("answer 500 once", REQUESTS, 0),
    *rows("answer 429 once", REQUESTS, 0),
    *rows("connection reset once", REQUESTS, 0),
    *rows("server killed and started again", REQUESTS, 0),
    *rows(
        "server killed for good",
        REQUESTS,
        75,
        "run it again",
        runs=("RUNNING", "FINISHED"),
        more="lock",
    ),
    *rows("each answer takes two seconds", each(STEPS, ["all 0"]), 0),
    *rows(
        "database read-only",
        STARTS,
        2,
        "attempt to write a readonly database",
        runs=WRITELESS,
        more="lock",
    ),
    *rows(
        "disk of the store full",
        STARTS,
        75,
        "the disk is full",
        runs=WRITELESS,
        more="lock",
    ),
    *rows("database held by another program", STARTS, 75, "locked", runs=WRITELESS, more="lock"),
    *rows("out of memory", STARTS, -9, runs=("RUNNING", "FINISHED"), more="lock, temporary files"),
    *rows("clock an hour ahead", STARTS, 0),
    *rows("clock a day back", STARTS, 0),
    *rows("no file over 64 KiB", STARTS, 75, "ulimit -f", runs=WRITELESS, more="lock"),
    *rows("disk for outputs full", each(STEPS, ["nothing"]), 75, "the disk is full"),
    *rows("disk for temporary files full", each(STEPS[:5], ["nothing"]), 75, "the disk is full"),
    *rows(
        "disk for artifacts full",
        each(STEPS[:5], ["nothing"]),
        75,
        "the disk is full",
        rerun="",
    ),
    *rows(
        "adapter changed",
        each(("evaluate", "quality_gate", "deploy_vllm"), ADAPTER_CHANGES),
        2,
        "is not what is here",
        rerun_code=2,
        rerun="is not what is here",
    ),
    *rows(
        "dataset changed",
        each(("train_qlora",), DATASET_CHANGES),
        2,
        "what prepare_data logged is not what is here",
        rerun_code=2,
        rerun="what prepare_data logged is not what is here",
    ),
    *rows(
        "dataset changed",
        each(("evaluate",), ("all_lost", "cut", "swapped", "listed", "unlisted")),
        2,
        "what prepare_data logged is not what is here",
        rerun_code=2,
        rerun="what prepare_data logged is not what is here",
        special={
            "evaluate, swapped": {"exit_code": 0, "sentence": "", "rerun_code": 0, "rerun": ""}
        },
    ),
    *rows(
        "two at once",
        {
            step: [moments[0 if step in ("quality_gate", "promote") else 1]]
            for step, moments in STARTS.items()
        },
        0,
        special={
            "prepare_data": {"exit_code": 75, "sentence": "with the same choices is at work here"},
            "train_qlora": {"exit_code": 75, "sentence": "is being trained by process"},
        },
    ),
    # The training that made the checkpoint was killed.
    *rows("checkpoint damaged", {"train_qlora": CHECKPOINT_HARMS}, 0, more="temporary files"),
    *rows(
        S3,
        each(STEPS[:5], S3_TROUBLES),
        0,
        special={
            f"{step}, {trouble}": {"exit_code": code, "sentence": sentence}
            for step in STEPS[:5]
            for trouble, code, sentence in (
                ("away", 75, "run it again"),
                ("403, always", 2, "the artifact store of MLflow"),
                ("500, always", 75, "run it again"),
            )
        },
    ),
]
