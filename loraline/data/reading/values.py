"""Values of cells: JSON in a text, numbers and truth values as they are written."""

from __future__ import annotations

import ast
import io
import json
import math
import tokenize
from decimal import Decimal
from typing import Any

from loraline.data.checks import BadRow

NOT_A_NUMBER = frozenset(["nan", "NaN", "<NA>", "#N/A", "\\N"])
"""How tables write a missing value; nobody writes these as an answer."""

NOTHING = NOT_A_NUMBER | {"null", "NULL", "None", "<noinput>", "<nooutput>"}
"""How tables write a cell that holds nothing."""

LISTS_OF_ANSWERS = ("answers", "targets")
"""Columns that list answers, whose text may be a list."""

LONGEST_NOTHING = max(map(len, NOTHING))

TYPES = {dict: "an object", list: "a list", bytes: "bytes", int: "a number", float: "a number"}


class Spelt(float):
    """A number that is not whole, with its digits as they were written: 12.50 is no 12.5."""

    __slots__ = ("text",)
    text: str

    def __new__(cls, text: str | Decimal) -> Spelt:
        number = super().__new__(cls, text)
        number.text = str(text)
        return number


def written(value: Any) -> str | None:
    """A text, or a number or truth value as JSON writes it; else None."""
    if isinstance(value, str):
        return value
    if isinstance(value, Spelt):
        return value.text if math.isfinite(value) else None
    if isinstance(value, bool | int) or (isinstance(value, float) and math.isfinite(value)):
        return json.dumps(value)
    return None


def only_text(value: Any, name: str) -> str | None:
    """An answer as it is written, be it alone in a list, or in SQuAD's `answers`."""
    if name in LISTS_OF_ANSWERS:
        value = structure(value)
    if isinstance(value, str):
        return value
    answers = value
    if isinstance(value, dict) and "answer_start" in value:
        answers = value.get("text")
    if not isinstance(answers, list | tuple):
        return written(value)
    texts = {text for text in map(written, answers) if text is not None}
    if not answers:
        raise BadRow("empty", f"{name} holds no answer")
    if len(texts) == 1 and len(answers) == sum(map(is_written, answers)):
        return texts.pop()
    return None


def is_written(value: Any) -> bool:
    return written(value) is not None


def type_name(value: Any) -> str:
    """A value's type for people."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true or false"
    return TYPES.get(type(value), "a text" if isinstance(value, str) else type(value).__name__)


def unpacked(value: Any) -> Any:
    """The value of a text that is JSON; every other value as it is."""
    if isinstance(value, str) and value[:100].lstrip()[:1] in ("[", "{"):
        try:
            return json.loads(value, object_pairs_hook=without_repetition)
        except (ValueError, RecursionError):
            pass
    return value


def without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON; BadRow where it has a key twice with different values."""
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result and result[key] != value:
            raise repeated_key(key)
        result[key] = value
    return result


def repeated_key(key: str) -> BadRow:
    return BadRow("unreadable", f"has the key {key[:40]!r} twice, with different values")


def is_missing_value(value: Any) -> bool:
    """Whether a value is a text with which tables write a cell that holds nothing."""
    return isinstance(value, str) and len(value) <= LONGEST_NOTHING and value in NOTHING


def missing(where: str, text: str) -> str:
    return (
        f"{where} is {text!r}, as tables write a missing value; --on missing=drop leaves such rows "
        "out, --on missing=keep takes it as text"
    )


def structure(value: Any) -> Any:
    """The list or object of a text that is JSON or a Python literal; every other value as it is."""
    if not isinstance(value, str) or value.lstrip()[:1] not in ("[", "{"):
        return value
    parsed = unpacked(value)
    parsed = python_value(value) if parsed is value else parsed
    return parsed if isinstance(parsed, list | dict) else value


def listed(value: Any) -> Any:
    """A list of objects that is written as an object of lists, as datasets writes sequences."""
    columns = list(value.values()) if isinstance(value, dict) else []
    if not columns or not all(isinstance(column, list) for column in columns):
        return value
    if len({len(column) for column in columns}) > 1:
        return value
    return [dict(zip(value, items, strict=True)) for items in zip(*columns, strict=True)]


def objects(value: Any, name: str) -> list[dict[str, Any]]:
    """A list of objects, also as JSON text, one alone, or one after the other in a text."""
    if isinstance(value, str):
        value = documents_in(value, name)
    items = value if isinstance(value, list) else [value]
    items = [unpacked(item) for item in items]
    if not all(isinstance(item, dict) for item in items):
        raise BadRow("format", f"{name} is not a list of objects")
    return items


def documents_in(text: str, name: str) -> Any:
    """JSON documents that follow each other in a text: one as it is, several as a list."""
    decoder, documents, place = json.JSONDecoder(), [], 0
    text = text.strip()
    try:
        while place < len(text):
            document, end = decoder.raw_decode(text, place)
            documents.append(document)
            place = end + len(text[end:]) - len(text[end:].lstrip(" \r\n\t,"))
    except (ValueError, RecursionError):
        raise BadRow("format", f"{name} is no JSON") from None
    return documents[0] if len(documents) == 1 else documents


def python_value(value: Any) -> Any:
    """A list or an object as Python writes it, which pandas puts into a CSV; else the value."""
    if not isinstance(value, str) or joins_texts(value):
        return value
    try:
        return ast.literal_eval(value.strip())
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return value


def joins_texts(text: str) -> bool:
    """Whether two texts of a list stand side by side without a comma, as NumPy writes arrays.

    Python would make one text of them.
    """
    before = -1
    try:
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type == tokenize.STRING and before == tokenize.STRING:
                return True
            if token.type not in (tokenize.NL, tokenize.COMMENT):
                before = token.type
    except (tokenize.TokenError, SyntaxError):
        pass
    return False
