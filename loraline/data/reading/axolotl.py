"""The datasets of axolotl's configuration files, in our words.

Its simple forms are read: `path`, `data_files`, `type` (alpaca, sharegpt, chat_template, or names
of columns), and names of a turn's keys and roles. The rest is refused by name. Prompts are written
by the base's chat template, whatever `type` and `chat_template` say of it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from loraline.data.reading.conversations import LEARNT, ROLES
from loraline.data.reading.layouts import CONVERSATIONS
from loraline.data.reading.readers import holds_rows
from loraline.data.reading.registries import renamed_columns
from loraline.errors import UserError

TYPES = ("alpaca", "sharegpt", "chat_template")

COLUMNS = {
    "field_instruction": "instruction",
    "field_input": "input",
    "field_output": "output",
    "field_system": "system",
    "field_tools": "tools",
}
"""Their keys that name a column, to our names of it."""

KEYS = {
    "message_field_role": "role",
    "message_field_content": "content",
}
"""Their older keys that name a key of a turn."""

PLAIN = {
    "format": ("{instruction}\n{input}", "{instruction} {input}"),
    "no_input_format": ("{instruction}",),
    "system_prompt": (),
    "trust_remote_code": (),
    "drop_system_message": (),
    "roles_to_train": (["assistant"], ["gpt"]),
    "train_on_eos": ("turn", "last"),
    "split": ("train",),
}
"""Their keys whose usual values change nothing; others are refused, and nothing is always usual."""

READ_OR_HARMLESS = {
    "path",
    "type",
    "data_files",
    "revision",
    "ds_type",
    "conversation",
    "chat_template",
    "preprocess_shards",
    "field_messages",
    "message_property_mappings",
    "message_field_training",
    "roles",
    *COLUMNS,
    *KEYS,
    *PLAIN,
}
"""Axolotl's keys that are read here, or do not concern the rows."""

HUB = re.compile(r"[\w.-]+/[\w.-]+")

FILE_KEYS = ("train_on_inputs", "rl", "pretraining_dataset", "default_system_message")
"""Keys of the whole file that change what is learnt."""


def is_configuration(content: Any) -> bool:
    """Whether a YAML file is a configuration with a list of datasets."""
    return isinstance(content, Mapping) and isinstance(content.get("datasets"), list)


def translated(file: Path, content: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Datasets with the fields of an Entry; their names are numbers. Raises UserError."""
    for key in FILE_KEYS:
        if content.get(key):
            raise UserError(f"{file} says {key}: {str(content[key])[:60]!r}, which is not read")
    entries: list[dict[str, Any]] = []
    for key, split in (("datasets", None), ("test_datasets", "validation")):
        for item in content.get(key) or ():
            if not isinstance(item, Mapping) or not isinstance(item.get("path"), str):
                raise UserError(f"{file}: one of `{key}` has no path")
            entries += [
                fields | ({"split": split} if split else {}) for fields in dataset(file, item)
            ]
    return {str(number): fields for number, fields in enumerate(entries, 1)}


def dataset(file: Path, item: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """One of the datasets as one entry, or as one for each of its files."""
    shape = item.get("type")
    settings = dict(item) | (dict(shape) if isinstance(shape, Mapping) else {})
    where = f"{file}: {item['path']}"
    if not isinstance(shape, Mapping) and shape not in TYPES:
        raise UserError(
            f"{where} has the type {str(shape)[:40]!r}, which is not read; accepted: "
            f"{', '.join(TYPES)}, or names of columns"
        )
    for key, value in settings.items():
        usual = PLAIN.get(key, (value,)) if key in READ_OR_HARMLESS else ()
        if value and value not in usual and not (key == "split" and is_hub(file, item["path"])):
            raise UserError(f"{where} says {key}: {str(value)[:60]!r}, which is not read")
    named = turns(where, settings)
    fields = columns(settings) | ({"turns": named} if named else {})
    files = settings.get("data_files") or [None]
    for name in files if isinstance(files, list) else [files]:
        yield fields | {"uri": address(file, item, name)}


def is_hub(file: Path, path: str) -> bool:
    is_local = Path(path).exists() or (file.parent / path).exists()
    return not is_local and not holds_rows(path) and HUB.fullmatch(path) is not None


def address(file: Path, item: Mapping[str, Any], name: str | None) -> str:
    """Where a dataset lies: from the working directory, the file's folder, or on the hub."""
    path = str(item["path"])
    if path in ("json", "csv", "parquet", "arrow") and name:
        path = name
    elif name:
        path = f"{path}/{name}"
    if is_hub(file, path):
        revision = f"@{item['revision']}" if item.get("revision") else ""
        split = f":{item['split']}" if item.get("split") else ""
        return f"hf://{path}{revision}{split}"
    return str(Path(path).absolute()) if Path(path).exists() else path


def columns(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The field `columns` of an Entry: our names of columns to theirs, where they differ."""
    named = {ours: settings[key] for key, ours in COLUMNS.items() if settings.get(key)}
    messages = settings.get("field_messages")
    if messages and messages not in CONVERSATIONS:
        named["conversations"] = messages
    return renamed_columns(named)


def turns(where: str, settings: Mapping[str, Any]) -> dict[str, str]:
    """Our names of a turn's keys and roles to theirs. Raises UserError for what has none."""
    mapped = dict(settings.get("message_property_mappings") or {})
    named = {ours: mapped.pop(ours) for ours in ("role", "content") if mapped.get(ours)}
    named |= {ours: settings[key] for key, ours in KEYS.items() if settings.get(key)}
    unread = [f"{ours}: {theirs}" for ours, theirs in mapped.items() if ours != theirs]
    learnt = settings.get("message_field_training")
    if learnt and learnt not in LEARNT:
        unread.append(f"message_field_training: {learnt}")
    for ours, listed in (settings.get("roles") or {}).items():
        unknown = [
            theirs
            for theirs in (listed if isinstance(listed, list) else [listed])
            if ROLES.get(theirs) is None or ROLES[theirs] != ROLES.get(ours)
        ]
        if len(unknown) > 1 or ours not in ROLES:
            unread.append(f"roles: {ours}: {unknown}")
        elif unknown:
            named[str(ours)] = unknown[0]
    if unread:
        raise UserError(f"{where} says {unread[0][:80]!r}, which is not read")
    return named
