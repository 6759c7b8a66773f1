"""Registries of other tools, in our words: LLaMA-Factory's and ms-swift's `dataset_info.json`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from loraline.errors import UserError

FILE = "dataset_info.json"

ALPACA = {"prompt": "instruction", "query": "input", "response": "output"}
"""LLaMA-Factory's names of columns to ours, where they differ."""

SAME = ("history", "system", "tools", "images", "videos", "audios", "chosen", "rejected")

TAGS = {
    "role_tag": "role",
    "content_tag": "content",
    "user_tag": "user",
    "assistant_tag": "assistant",
    "observation_tag": "tool",
    "function_tag": "call",
    "system_tag": "system",
}

UNDERSTOOD = {
    "file_name",
    "hf_hub_url",
    "ms_hub_url",
    "formatting",
    "columns",
    "tags",
    "num_samples",
    "ranking",
    "split",
}

SWIFT = {
    "dataset_name": (),
    "dataset_path": (),
    "ms_dataset_id": (),
    "ms_revision": (),
    "hf_dataset_id": (),
    "columns": (),
    "tags": (),
    "help": (),
    "huge_dataset": (),
    "subsets": (["default"],),
    "split": (["train"],),
}
"""ms-swift's keys that are read or do not concern the rows, some with the only values accepted."""


CONFIGURATIONS = ("base_model", "model_name", "model_name_or_path", "model", "dataset_dir")
"""Keys of files that say how to train: LLaMA-Factory's, Unsloth's, TRL's, ms-swift's."""


def refuse_configuration(file: Path, content: Any) -> None:
    """A UserError for a file that says how to train, and is no registry of datasets."""
    key = next(
        (key for key in CONFIGURATIONS if isinstance(content, Mapping) and key in content), ""
    )
    if (
        not key
        or isinstance(content[key], Mapping)
        or (key == "model" and "dataset" not in content)
    ):
        return
    remedy = "name its datasets with --data"
    if isinstance(names := content.get("dataset"), str) and "dataset_dir" in content:
        remedy = (
            f"--data {content['dataset_dir']}/{FILE}:{names.replace(' ', '')[:80]} names its own"
        )
    raise UserError(f"{file} says how to train ({key}) and is no registry of datasets; {remedy}")


def translated(file: Path, content: Any) -> dict[str, dict[str, Any]]:
    """Names of datasets with the fields of an Entry.

    Raises UserError for a file of this name that datasets writes beside its own data.
    """
    if isinstance(content, list):
        return {name_of(item): swift(file, item) for item in content}
    if not isinstance(content, dict) or "features" in content:
        raise UserError(f"{file} describes one dataset and is no registry; give its folder")
    return {str(name): llama_factory(file, name, item) for name, item in content.items()}


def llama_factory(file: Path, name: str, item: Any) -> dict[str, Any]:
    """An entry of LLaMA-Factory's registry."""
    if not isinstance(item, dict):
        raise UserError(f"{file}: dataset {name!r} is no object")
    if unknown := item.keys() - UNDERSTOOD:
        raise UserError(f"{file}: dataset {name!r} has {sorted(unknown)[0]!r}, which is not read")
    if "file_name" in item:
        uri = item["file_name"]
    elif "hf_hub_url" in item:
        split = f":{item['split']}" if item.get("split") else ""
        uri = f"hf://{item['hf_hub_url']}{split}"
    else:
        raise UserError(f"{file}: dataset {name!r} names neither file_name nor hf_hub_url")
    columns: dict[str, str] = {}
    for theirs, column in (item.get("columns") or {}).items():
        if theirs == "messages":
            columns["conversations"] = column
        elif theirs == "kto_tag":
            columns["label"] = column
        elif theirs in ALPACA or theirs in SAME:
            columns[ALPACA.get(theirs, theirs)] = column
        else:
            raise UserError(f"{file}: dataset {name!r} has a column {theirs!r}, which is not read")
    fields: dict[str, Any] = {"uri": uri, **renamed_columns(columns)}
    if item.get("tags"):
        if unknown := item["tags"].keys() - TAGS.keys():
            raise UserError(
                f"{file}: dataset {name!r} has a tag {sorted(unknown)[0]!r}, which is not read"
            )
        fields["turns"] = {TAGS[tag]: value for tag, value in item["tags"].items()}
    if item.get("num_samples"):
        fields["sample"] = f"#{item['num_samples']}"
    return fields


def renamed_columns(columns: Mapping[str, str]) -> dict[str, Any]:
    """The field `columns` of an Entry: those that go by another name than ours, if there are any.

    A source that names none leaves it to the profile.
    """
    renamed = {ours: theirs for ours, theirs in columns.items() if ours != theirs}
    return {"columns": renamed} if renamed else {}


def name_of(item: Any) -> str:
    names = ("dataset_name", "dataset_path", "ms_dataset_id", "hf_dataset_id")
    name = (
        next((item[key] for key in names if item.get(key)), None)
        if isinstance(item, dict)
        else None
    )
    return str(name)


def swift(file: Path, item: Any) -> dict[str, Any]:
    """An entry of ms-swift's registry, whose columns are theirs to ours."""
    if not isinstance(item, dict):
        raise UserError(f"{file}: an entry is no object")
    if item.get("dataset_path"):
        uri = item["dataset_path"]
    elif item.get("hf_dataset_id"):
        uri = f"hf://{item['hf_dataset_id']}"
    else:
        raise UserError(
            f"{file}: {name_of(item)[:60]!r} has neither dataset_path nor hf_dataset_id"
        )
    for key, value in item.items():
        if key not in SWIFT or (SWIFT[key] and value not in SWIFT[key]):
            raise UserError(
                f"{file}: {name_of(item)[:60]!r} says {key}: {str(value)[:40]!r}, which is not read"
            )
    columns = {ours: theirs for theirs, ours in (item.get("columns") or {}).items()}
    return {"uri": str(uri), **renamed_columns(columns)}
