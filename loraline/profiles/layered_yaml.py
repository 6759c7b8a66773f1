"""YAML files that build on one another: each key once, an heir's before its parent's."""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import yaml

from loraline.errors import UserError

NUMBER = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+")


class KeysOnce(yaml.SafeLoader):
    """Refuses a key that is given twice, of which YAML's usual readers silently take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for (key, _), name in zip(node.value, keys, strict=True):
            if keys.count(name) > 1:
                raise yaml.MarkedYAMLError(
                    None, None, f"key {name!r} is given twice", key.start_mark
                )
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> Any:
    """A file's content; raises yaml.YAMLError with the place of what is wrong."""
    with path.open("rb") as file:
        return loaded(file)


def read_yaml_text(text: str) -> Any:
    """What a text holds; raises yaml.YAMLError as for a file."""
    return loaded(text)


def loaded(source: IO[bytes] | str) -> Any:
    """What a file or a text holds; yaml.YAMLError for whatever is wrong with it."""
    try:
        return yaml.load(source, KeysOnce)
    except RecursionError as error:
        raise yaml.MarkedYAMLError(None, None, "it is nested too deeply") from error
    # Of a date in a 13th month, or of a number of thousands of digits.
    except ValueError as error:
        raise yaml.MarkedYAMLError(None, None, str(error)) from error


def merge(parent: Mapping[str, Any], heir: Mapping[str, Any]) -> dict[str, Any]:
    """The heir's keys before the parent's; blocks such as `gate` are merged key by key."""
    merged = {**parent, **heir}
    for key in parent.keys() & heir.keys():
        if isinstance(parent[key], dict) and isinstance(heir[key], dict):
            merged[key] = merge(parent[key], heir[key])
    return merged


def override(content: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """A profile's keys, those that KEY=VALUE texts name replaced; a KEY may be `gate.min_bleu`."""
    changed = dict(content)
    for text in overrides:
        key, equals, value = text.partition("=")
        if not (key and equals):
            raise UserError(f"--set {text!r} is not KEY=VALUE, such as learning_rate=1e-4")
        try:
            parsed = read_yaml_text(value)
        except yaml.YAMLError as error:
            problem = getattr(error, "problem", None)
            reason = f" ({problem})" if problem else ""
            raise UserError(f"--set {text!r}: {value!r} is not a value of YAML{reason}") from error
        # YAML 1.1 reads 1e-4, which has no point, as text.
        if isinstance(parsed, str) and NUMBER.fullmatch(parsed):
            parsed = float(parsed)
        *blocks, last = key.split(".")
        nested: dict[str, Any] = {last: parsed}
        for block in reversed(blocks):
            nested = {block: nested}
        changed = merge(changed, nested)
    return changed
