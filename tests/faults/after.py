"""What a step has left behind, and whether the line is as one that met no fault."""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path
from typing import Any

from provoke import Storage
from stage import MODEL, SEARCHED, Ended, Stage

RUN_OF = {
    "prepare_data": "prepare_data",
    "train_qlora": "train_qlora",
    "evaluate": "evaluate",
    "quality_gate": "quality_gate",
    "deploy_vllm": "deploy_vllm",
    "promote": "quality_gate",
}

PENDING = 1
"""MLflow's number for a logged model that was not finalized."""


def rows(stage: Stage) -> dict[str, set[Any]]:
    """What of the store a fault may leave: runs, logged models, versions, aliases, locks."""
    return {
        "run": set(stage.query("SELECT run_uuid, status FROM runs")),
        "logged model pending": set(
            stage.query(
                "SELECT model_id FROM logged_models "
                "WHERE status = ? AND lifecycle_stage = 'active'",
                PENDING,
            )
        ),
        "version": set(
            stage.query(
                "SELECT name, version FROM model_versions "
                "WHERE current_stage <> 'Deleted_Internal' AND name = ?",
                MODEL,
            )
        ),
        "alias": set(
            stage.query("SELECT alias, version FROM registered_model_aliases WHERE name = ?", MODEL)
        ),
        "lock": set(stage.query("SELECT name FROM registered_models WHERE name LIKE '%.lock%'")),
        "prompt": set(
            stage.query(
                "SELECT name FROM registered_models WHERE name <> ? AND name NOT LIKE '%.lock%'",
                MODEL,
            )
        ),
        "temporary files": set((stage.place / "tmp").iterdir()),
    }


def left(stage: Stage, before: dict[str, set[Any]], step: str) -> set[str]:
    """What is there that was not there before, in the table's words."""
    result = set()
    for thing, entries in rows(stage).items():
        for entry in entries - before[thing]:
            if thing == "run":
                result.add(f"run {entry[1]}")
            elif thing == "alias":
                result.add(f"alias {entry[0]}")
            else:
                result.add(thing)
    if (stage.place / "out" / step / "run-id").exists():
        result.add("outputs")
    return result


def unswept(stage: Stage, step: str) -> set[str]:
    """What a rerun that ended with 0 should have swept away."""
    now = rows(stage)
    result = {f"run {status}" for _, status in now["run"] if status == "RUNNING"}
    result |= {thing for thing in ("logged model pending", "lock") if now[thing]}
    parts = [*(stage.place / "out").rglob("*.part"), *(stage.place / "out").rglob(".*.part")]
    return result | {f"file {part.name}" for part in parts}


def whole(stage: Stage, step: str) -> dict[str, Any]:
    """The result of a step that ended with 0, to be held against that of an undisturbed one."""
    run_id = (stage.place / "out" / step / "run-id").read_text()
    tags = dict(stage.query("SELECT key, value FROM tags WHERE run_uuid = ?", run_id))
    ((status,),) = stage.query("SELECT status FROM runs WHERE run_uuid = ?", run_id)
    result: dict[str, Any] = {"status": status, "step": tags["loraline.step"]}
    if step == "prepare_data":
        result["digest"] = tags["loraline.dataset.sha256"]
    if step == "train_qlora":
        result["digest"] = tags["loraline.adapter.sha256"]
    if step == "evaluate":
        # What was measured, and not how long it took.
        result["metrics"] = sorted(
            stage.query(
                "SELECT key, value FROM latest_metrics WHERE (key LIKE '%eval_loss%' OR "
                "key LIKE '%bleu%') AND run_uuid = ?",
                run_id,
            )
        )
    if step in ("quality_gate", "promote"):
        now = rows(stage)
        result["registry"] = sorted(now["version"]), sorted(now["alias"])
    if step == "deploy_vllm":
        result["manifest"] = (stage.place / "out" / step / "vllm.yaml").read_text()
    return result


def shown_secrets(stage: Stage, *ended: Ended, storage: Storage | None = None) -> list[str]:
    """Where a secret of the environment can be seen: streams, files, the database, an S3.

    Databases are looked through as bytes.
    """
    result = [
        name
        for each in ended
        for name, text in (("stdout", each.stdout), ("stderr", each.stderr))
        if has_secret(text.encode())
    ]
    for file in stage.place.rglob("*"):
        if file.is_file() and not file.is_symlink() and has_secret(file.read_bytes()):
            result.append(str(file.relative_to(stage.place)))
    if storage:
        result += [f"s3://{name}" for name, content in storage.objects() if has_secret(content)]
    return result


def has_secret(content: bytes) -> bool:
    return any(secret in content for secret in SEARCHED)


def record(**entry: Any) -> None:
    """Add an outcome to LORALINE_FAULT_OUTCOMES, which docs/reliability.md is made from.

    Several processes may add to the file at once.
    """
    if "LORALINE_FAULT_OUTCOMES" not in os.environ:
        return
    file = Path(os.environ["LORALINE_FAULT_OUTCOMES"])
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a") as outcomes:
        fcntl.flock(outcomes, fcntl.LOCK_EX)
        outcomes.write(json.dumps(entry) + "\n")
