"""One identity for what is trained, measured, judged, rendered and served: digests, kept as tags.

A step that makes something tags its run with the digest; every later step compares what it has
downloaded with the tags of the runs before it, before it works.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loraline.contract import sha256
from loraline.errors import UserError
from loraline.tracking.tags import DATASET_DIGEST, STEP

if TYPE_CHECKING:
    from mlflow.entities import Run

VERBS = {
    "prepare_data": "logged",
    "train_qlora": "trained",
    "evaluate": "measured",
    "quality_gate": "judged",
    "deploy_vllm": "rendered",
}
"""What each step did with the object whose digest its run keeps, for messages."""


def expect(run: Run, tag: str, digest: str, name: str) -> None:
    """Compare the digest of a downloaded object with a run's; raises UserError if they differ."""
    step = run.data.tags.get(STEP, "")
    expected = recorded(run, tag)
    if expected is None:
        raise UserError(
            f"run {run.info.run_id} of {step} keeps no digest of {name}: it is of an earlier "
            f"version, or its tag {tag} was removed; run {step} again with --force"
        )
    if expected != digest:
        raise UserError(
            changed(step, f"{name} has digest {digest}, run {run.info.run_id} {expected}")
        )


def recorded(run: Run, tag: str) -> str | None:
    """A digest that a run logged: as a parameter, which MLflow never changes, or else as a tag."""
    value: str | None = run.data.params.get(tag, run.data.tags.get(tag))
    return value


def changed(step: str, difference: str) -> str:
    """The sentence for what was changed in the store between two steps."""
    return f"what {step} {VERBS.get(step, 'used')} is not what is here: {difference}"


def values_digest(values: Mapping[str, Any]) -> str:
    """Digest of a JSON object, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def check_dataset(folder: Path, run: Run, split: str | None = None) -> None:
    """Check a downloaded dataset, or one split, against its manifest, and that against its run.

    Raises UserError for a file that is another, missing or too many.
    """
    file = folder / "manifest.json"
    if not file.is_file():
        raise UserError(changed("prepare_data", "dataset/manifest.json is missing"))
    expect(run, DATASET_DIGEST, sha256(file), "dataset/manifest.json")
    try:
        manifest = json.loads(file.read_bytes())
        listed = {
            shard["file"]: shard["sha256"]
            for shard in manifest["shards"]
            if split in (None, shard["split"])
        }
        template = manifest["prompt"]["template"].encode()
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(changed("prepare_data", "dataset/manifest.json is no manifest")) from error
    # A split is a folder with the same ending.
    present = {
        path.relative_to(folder).as_posix(): path
        for path in folder.rglob("*.parquet")
        if path.is_file()
    }
    for name in sorted({*listed, *present}):
        if name not in present:
            difference = "is missing"
        elif name not in listed:
            difference = "is not in its manifest"
        elif (digest := sha256(present[name])) != listed[name]:
            difference = f"has digest {digest}, its manifest says {listed[name]}"
        else:
            continue
        raise UserError(changed("prepare_data", f"dataset/{name} {difference}"))
    prompt = folder / "prompt.txt"
    if split is None and (not prompt.is_file() or prompt.read_bytes() != template):
        raise UserError(changed("prepare_data", "dataset/prompt.txt is not its manifest's prompt"))
