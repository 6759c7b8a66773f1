"""Values of cells: JSON in a text, numbers and truth values as they are written."""

from __future__ import annotations

import ast
import json
import math
from typing import Any

from loraline.data.checks import BadRow

TYPES = {dict: "an object", list: "a list", bytes: "bytes", int: "a number", float: "a number"}


def written(value: Any) -> str | None:
    """A text, number or truth value as JSON writes it, a text without quotes; else None."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool | int) or (isinstance(value, float) and math.isfinite(value)):
        return json.dumps(value)
    return None


def type_name(value: Any) -> str:
    """A value's type for people."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true or false"
    return TYPES.get(type(value), "a text" if isinstance(value, str) else type(value).__name__)


def unpacked(value: Any) -> Any:
    """JSON in a text as what it says; every other value as it is."""
    if isinstance(value, str) and value[:100].lstrip()[:1] in ("[", "{"):
        try:
            return json.loads(value)
        except ValueError:
            pass
    return value


def objects(value: Any, name: str) -> list[dict[str, Any]]:
    """A list of objects, also as JSON text, one alone, or one after the other in a text."""
    if isinstance(value, str):
        value = several(value, name)
    found = value if isinstance(value, list) else [value]
    found = [unpacked(item) for item in found]
    if not all(isinstance(item, dict) for item in found):
        raise BadRow("format", f"{name} is not a list of objects")
    return found


def several(text: str, name: str) -> Any:
    """JSON documents that follow each other in a text: one as it is, several as a list."""
    decoder, found, place = json.JSONDecoder(), [], 0
    text = text.strip()
    try:
        while place < len(text):
            document, end = decoder.raw_decode(text, place)
            found.append(document)
            place = end + len(text[end:]) - len(text[end:].lstrip(" \r\n\t,"))
    except (ValueError, RecursionError):
        raise BadRow("format", f"{name} is no JSON") from None
    return found[0] if len(found) == 1 else found


def python_value(value: Any) -> Any:
    """A list or an object as Python writes it, which pandas puts into a CSV; else the value."""
    if not isinstance(value, str):
        return value
    try:
        return ast.literal_eval(value.strip())
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return value
