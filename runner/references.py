"""Values of references while a workflow runs, and texts in which they are filled in."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from runner.reader import REFERENCE, text


class NodeError(Exception):
    """A node cannot start; the workflow goes on as after a failure."""


def substitute(source: str, values: Mapping[str, str]) -> str:
    """Fill in the references; one that has no value ends its node in Error."""

    def value_of(reference: re.Match[str]) -> str:
        if (name := reference[1].strip()) not in values:
            raise NodeError(f"{reference[0]} has no value")
        return values[name]

    return REFERENCE.sub(value_of, source)


def items_of(found: list[Any] | str, values: Mapping[str, str]) -> list[Any]:
    """The items to fan out over: those in the file, or those in the JSON text of a reference."""
    if isinstance(found, list):
        filled = json.loads(substitute_json(json.dumps(found), values))
    else:
        try:
            filled = json.loads(substitute(found, values))
        except json.JSONDecodeError as error:
            raise NodeError(f"withParam is not a JSON list: {error}") from error
    if not isinstance(filled, list):
        raise NodeError(f"withParam is not a JSON list but {type(filled).__name__}")
    return filled


def substitute_json(source: str, values: Mapping[str, str]) -> str:
    """Fill in references inside the strings of a JSON text."""
    quoted = {name: json.dumps(value)[1:-1] for name, value in values.items()}
    return substitute(source, quoted)


def of_item(item: Any) -> dict[str, str]:
    """`item`, and for a mapping `item.<key>`; a text in them is escaped, as Argo passes it on."""
    values = {"item": escaped(item)}
    if isinstance(item, dict):
        values |= {f"item.{key}": escaped(value) for key, value in item.items()}
    return values


def escaped(item: Any) -> str:
    """An item as text: as it stands between the quotes of JSON."""
    return json.dumps(item, ensure_ascii=False)[1:-1] if isinstance(item, str) else text(item)


def label(index: int, item: Any) -> str:
    """What Argo puts behind the name of a node that an item made."""
    if isinstance(item, dict):
        told = ",".join(f"{key}:{escaped(item[key])}" for key in sorted(item))
    else:
        told = escaped(item)
    return f"({index}:{re.sub('[()]', '', told)})"


def gathered(values: list[str]) -> str:
    """A fan-in's list: of lists if each value is one in JSON, else of the values as strings."""
    members: list[Any] = []
    for value in values:
        with suppress(json.JSONDecodeError):
            members.append(json.loads(value))
    if len(members) < len(values) or not all(isinstance(member, list) for member in members):
        members = list(values)
    found = json.dumps(members, separators=(",", ":"), ensure_ascii=False)
    # As Go writes JSON, safe to stand in HTML.
    return re.sub("[<>&]", lambda sign: f"\\u{ord(sign[0]):04x}", found)
