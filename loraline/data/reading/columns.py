"""Columns by the names that a registry gives them, and questions made of several columns.

    columns:
      question: "{context}\n\n{question}\n{choices}"
      answer: "{choices[answer]}"

`{choices}` prints a list, or the columns of `{A,B,C,D}`, as lines that begin with letters.
`{choices[answer]}` is the choice that the column `answer` names by its number from 0, its letter,
or its text; `{answer:letter}` writes a number from 0 as a letter.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from string import ascii_uppercase
from typing import Any

from loraline.data.checks import BadRow
from loraline.data.reading.values import written

PLACE = re.compile(r"\{(?P<columns>[^{}\[\]:]+)(?:\[(?P<choice>[^{}\[\]]+)\]|:(?P<form>letter))?\}")
"""A place of a column in a template."""


def is_template(named: str) -> bool:
    return PLACE.search(named) is not None


def columns_of(named: str) -> list[str]:
    """Columns that a registry's value names: itself, or those that a template has places for."""
    if not is_template(named):
        return [named]
    places: list[str] = []
    for match in PLACE.finditer(named):
        places += match["columns"].split(",")
        places += [match["choice"]] if match["choice"] else []
    return places


def renamed(
    raw: Mapping[str, Any], columns: Mapping[str, str]
) -> tuple[dict[str, Any], set[str], list[str]]:
    """A row under our names, the source's columns in use, and those that `columns` replaces.

    The registry wins: a row's own column of a name that `columns` gives is not used. Raises BadRow
    where a column is missing that a template needs, or that stands for one of the row's own.
    """
    sources = {name for named in columns.values() for name in columns_of(named)}
    row = {key: value for key, value in raw.items() if key not in columns and key not in sources}
    for ours, named in columns.items():
        if is_template(named):
            row[ours] = filled_in(raw, ours, named)
        elif named in raw:
            row[ours] = raw[named]
        elif ours in raw:
            raise BadRow("format", f"has no column {named!r}, which `columns` names for {ours}")
    replaced = [key for key in columns if key in raw and key not in sources]
    return row, sources, replaced


def filled_in(raw: Mapping[str, Any], ours: str, template: str) -> str:
    """A template with a row's columns in their places."""

    def value(name: str) -> Any:
        if name not in raw:
            raise BadRow("format", f"has no column {name!r}, which `columns` names for {ours}")
        return raw[name]

    def place(match: re.Match[str]) -> str:
        names = match["columns"].split(",")
        found = value(names[0]) if len(names) == 1 else [value(name) for name in names]
        if match["form"]:
            return letter(found)
        if match["choice"]:
            return chosen(choices(found), value(match["choice"]), match["choice"])
        if isinstance(found, list | dict):
            lines = enumerate(choices(found))
            return "\n".join(f"{ascii_uppercase[index]}. {text}" for index, text in lines)
        return written(found) or ""

    return PLACE.sub(place, template)


def choices(found: Any) -> list[str]:
    """Choices as a list of texts, or as `{"text": [...], "label": [...]}`, or by letter."""
    if isinstance(found, Mapping):
        found = found["text"] if isinstance(found.get("text"), list) else list(found.values())
    texts = [written(item) for item in found] if isinstance(found, list) else [None]
    if not 0 < len(texts) <= len(ascii_uppercase) or None in texts:
        raise BadRow("format", "choices are not a list of up to 26 texts")
    return [text for text in texts if text is not None]


def letter(found: Any) -> str:
    """A number from 0 as a letter; a letter as it is."""
    text = str(found).strip()
    if text.isdecimal() and int(text) < len(ascii_uppercase):
        return ascii_uppercase[int(text)]
    if len(text) == 1 and text.upper() in ascii_uppercase:
        return text.upper()
    raise BadRow("format", f"{text[:40]!r} is neither a letter nor a number from 0 to 25")


def chosen(texts: Sequence[str], found: Any, name: str) -> str:
    """The choice that a number from 0, a letter, or its own text names."""
    if str(found) in texts:
        return str(found)
    index = ascii_uppercase.index(letter(found))
    if index >= len(texts):
        raise BadRow("format", f"{name} {str(found)[:40]!r} is none of {len(texts)} choices")
    return texts[index]
