"""Sources that the flags name, in a registry or by address, each with its settings."""

from __future__ import annotations

import codecs
import json
import posixpath
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from loraline.data.reading import axolotl, registries
from loraline.errors import UserError
from loraline.profiles.layered_yaml import read_yaml_text
from loraline.profiles.preparation import Entry, SourceSettings

REGISTRY = "datasets.yaml"

FLAG = re.compile(
    r"(?P<uri>.+?)(?:%(?P<percent>\d+(?:\.\d+)?)|#(?P<rows>\d+))?(?:\*(?P<weight>\d+(?:\.\d+)?))?"
)


def entries(
    flags: Sequence[str | Entry],
    encoding: str = "",
    defaults: SourceSettings | None = None,
    defaults_from: str = "the recipe",
) -> list[Entry]:
    """The sources of flags, each a registry file, a name in a registry, or a URI, with settings.

    `encoding` is that of text files whose registry entry names none; `defaults` hold for entries
    that say nothing of a key. `defaults_from` is what messages call their place.
    """
    registry = read_registry(Path(REGISTRY)) if Path(REGISTRY).is_file() else {}
    listed: list[Entry] = []
    for flag in flags:
        address = flag if isinstance(flag, str) else flag.uri
        settings = {} if isinstance(flag, str) else settings_of(flag)
        named = [entry.model_copy(update=settings) for entry in addressed(address, registry)]
        if "columns" in settings:
            named = [
                entry.with_columns_from(f"prepare.sources of {defaults_from}") for entry in named
            ]
        listed += named
    usual = {"encoding": encoding} if encoding else {}
    if defaults is not None:
        usual = {key: getattr(defaults, key) for key in given_keys(defaults)} | usual
    listed = [completed(entry, usual, defaults_from) for entry in listed]
    for entry in listed:
        try:
            codecs.lookup(entry.encoding or "utf-8")
        except LookupError:
            raise UserError(
                f"encoding {entry.encoding!r} is unknown; write it as utf-16, cp1252, gbk or so"
            ) from None
    return listed


def completed(entry: Entry, usual: Mapping[str, Any], defaults_from: str) -> Entry:
    """An entry, completed by the usual settings for keys that it does not set."""
    missing = {key: value for key, value in usual.items() if key not in given_keys(entry)}
    updated = entry.model_copy(update=missing)
    if "columns" in missing:
        return updated.with_columns_from(f"prepare.columns of {defaults_from}")
    return updated


def given_keys(settings: SourceSettings) -> set[str]:
    """Keys of the settings that were given and not left to their defaults."""
    fields_set = settings.model_fields_set & set(SourceSettings.model_fields)
    return {key for key in fields_set if key != "encoding" or settings.encoding}


def settings_of(entry: Entry) -> dict[str, Any]:
    """The settings that a profile gives a source beside its address."""
    return {key: getattr(entry, key) for key in entry.model_fields_set - {"uri"}}


def addressed(flag: str, named: Mapping[str, Entry]) -> list[Entry]:
    """The sources that an address stands for; `named` are those of the folder's registry."""
    file, _, chosen_names = flag.partition(".json:") if ".json:" in flag else (flag, "", "")
    if is_registry(flag):
        return list(read_registry(Path(flag)).values())
    if not (chosen_names and is_registry(f"{file}.json")):
        return [entry_of(flag, named)]
    registry = read_registry(Path(f"{file}.json"))
    chosen = []
    for name in chosen_names.split(","):
        if name not in registry:
            accepted = ", ".join(list(registry)[:5])
            raise UserError(f"{file}.json has no dataset {name[:40]!r}; it has {accepted}")
        chosen.append(registry[name])
    return chosen


def entry_of(flag: str, registry: Mapping[str, Entry]) -> Entry:
    """A name in a registry or a URI, with a sample and a weight after it."""
    match = FLAG.fullmatch(flag)
    if Path(flag).exists() or match is None:
        return registry.get(flag) or Entry(uri=flag)
    uri, percent, rows, weight = match.group("uri", "percent", "rows", "weight")
    entry = registry.get(uri) or Entry(uri=uri)
    if percent or rows:
        entry = entry.model_copy(update={"sample": f"%{percent}" if percent else f"#{rows}"})
    if weight:
        entry = entry.model_copy(update={"weight": float(weight)})
    if percent and not 0 < float(percent) <= 100:
        raise UserError(f"--data {flag!r}: a sample of %{percent} is not between 0 and 100")
    if rows and not int(rows):
        raise UserError(f"--data {flag!r} asks for a sample of no rows")
    if entry.weight <= 0:
        raise UserError(f"--data {flag!r}: a weight of {weight} is not above 0")
    return entry


def is_registry(flag: str) -> bool:
    """Whether a flag names a registry: ours, LLaMA-Factory's or ms-swift's."""
    return flag.endswith((".yaml", ".yml")) or posixpath.basename(flag) == registries.FILE


def read_json_text(text: str) -> Any:
    """What a text of JSON holds; ValueError for a key that is given twice, as in YAML."""

    def with_keys_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        content = dict(pairs)
        if len(content) < len(pairs):
            keys = [key for key, _ in pairs]
            twice = next(key for key in keys if keys.count(key) > 1)
            raise ValueError(f"key {twice!r} is given twice")
        return content

    return json.loads(text, object_pairs_hook=with_keys_once)


def read_registry(file: Path) -> dict[str, Entry]:
    """Named sources of a registry; relative paths count from its folder."""
    import yaml

    try:
        text = file.read_text(encoding="utf-8-sig")
        content = read_json_text(text) if file.suffix == ".json" else read_yaml_text(text)
    except FileNotFoundError as error:
        raise UserError(f"registry {file} does not exist") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        language = "JSON" if file.suffix == ".json" else "YAML"
        raise UserError(
            f"{file} is not valid {language}: {' '.join(str(error).split())[:160]}"
        ) from error
    if file.suffix == ".json":
        content = registries.translated(file, content)
    elif axolotl.is_configuration(content):
        content = axolotl.translated(file, content)
    registries.refuse_configuration(file, content)
    if not isinstance(content, dict) or not content:
        raise UserError(f"{file} must hold names of datasets, each with a uri")
    registry = {}
    for name, fields in content.items():
        try:
            entry = Entry(**fields) if isinstance(fields, dict) else Entry(uri=fields)
        except ValidationError as error:
            wrong = error.errors()[0]
            key = ".".join(str(part) for part in wrong["loc"])
            accepted = ", ".join(Entry.model_fields)
            raise UserError(
                f"{file}: dataset {name!r}, key {key!r}: {wrong['msg'].lower()} (keys: {accepted})"
            ) from error
        if "://" not in entry.uri:
            entry = entry.model_copy(update={"uri": str(file.parent / entry.uri)})
            if entry.media and (file.parent / entry.media).is_dir():
                entry = entry.model_copy(update={"media": str(file.parent / entry.media)})
        registry[str(name)] = entry.with_columns_from(f"columns in {file}")
    return registry
