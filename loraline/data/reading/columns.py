"""Columns by the names that a registry gives them, and questions made of several columns.

    columns:
      question: "{context}\n\n{question}\n{choices}"
      answer: "{choices[answer]}"

`{choices}` prints a list, or the columns of `{A,B,C,D}`, as lines that begin with letters.
`{choices[answer]}` is the choice that the column `answer` names by its label, its letter, its text
or its number from 0; `{answer:letter}` writes a number from 0 as a letter. `{answers[0]}` is the
first of a list, `{answers:lines}` is all of it in lines, and `{answer:json}` a value as JSON.
"""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from string import ascii_uppercase
from typing import Any

from loraline.data.checks import BadRow
from loraline.data.reading.keys import filled
from loraline.data.reading.layouts import ANSWERS, SIDES
from loraline.data.reading.meanings import CHOOSE, meaning
from loraline.data.reading.values import NOTHING, structure, type_name, written

PLACE = re.compile(
    r"\{(?P<columns>[^{}\[\]:]+)(?:\[(?P<choice>[^{}\[\]]+)\]|:(?P<form>letter|lines|json))?\}"
)
"""A place of a column in a template."""


LETTER = re.compile(r"\(?([A-Za-z])[.):]")
"""A letter as `(B)` or `B.`."""

MARK = re.compile(r"\(?([A-Z])(?:[):]\s*|\.\s+)(?=\S)")
"""The letter that a choice may begin with, as in `A) near the river`."""

ANSWER_COLUMNS = frozenset(name for names in ANSWERS.values() for name in names)


def is_template(named: str) -> bool:
    return PLACE.search(named) is not None


def columns_of(named: str) -> list[str]:
    """Columns that a registry's value names: itself, or those that a template has places for."""
    if not is_template(named):
        return [named]
    places: list[str] = []
    for match in PLACE.finditer(named):
        places += match["columns"].split(",")
        if match["choice"] and not match["choice"].isdecimal():
            places.append(match["choice"])
    return places


def renamed(
    raw: Mapping[str, Any], columns: Mapping[str, str], columns_from: str
) -> tuple[dict[str, Any], set[str], list[str]]:
    """A row under our names, the source's columns in use, and those that `columns` replaces.

    The registry wins: a row's own column of a name that `columns` gives is not used. Raises BadRow
    where a column is missing that a template needs, or that stands for one of the row's own.
    """
    sources = {name for named in columns.values() for name in columns_of(named)}
    row = {key: value for key, value in raw.items() if key not in columns and key not in sources}
    for ours, named in columns.items():
        if is_template(named):
            row[ours] = filled_in(raw, ours, named, columns_from)
        elif named in raw:
            row[ours] = raw[named]
        elif ours in raw:
            raise lacks(raw, named, ours, columns_from)
    replaced = [key for key in columns if filled(raw.get(key)) and key not in sources]
    return row, sources, replaced


def lacks(raw: Mapping[str, Any], named: str, ours: str, columns_from: str) -> BadRow:
    """A row without the column that `columns_from` names, and the columns that it has."""
    names = [str(name)[:30] for name in raw]
    near = difflib.get_close_matches(named, names, n=1)
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return BadRow(
        "format",
        f"has no column {named[:40]!r}, which {columns_from} names for {ours}; it has "
        f"{', '.join(names[:8])}{more}" + (f"; did you mean {near[0]!r}?" if near else ""),
    )


def lacks_named_column(
    raw: Mapping[str, Any], columns: Mapping[str, str], columns_from: str
) -> BadRow | None:
    """A row without a column of those that `columns` names, if they are not all there.

    Columns that are optional beside question and answer may be missing.
    """
    for ours, named in columns.items():
        if ours not in SIDES and not is_template(named) and named not in raw:
            return lacks(raw, named, ours, columns_from)
    return None


def filled_in(raw: Mapping[str, Any], ours: str, template: str, columns_from: str) -> str:
    """A template with a row's columns in their places."""

    def value(name: str) -> Any:
        if name not in raw:
            raise lacks(raw, name, ours, columns_from)
        return raw[name]

    def place(match: re.Match[str]) -> str:
        names = match["columns"].split(",")
        cell = value(names[0]) if len(names) == 1 else [value(name) for name in names]
        if len(names) == 1 and meaning(names[0]) == CHOOSE:
            cell = structure(cell)
        if is_empty(cell) and (match["form"] in ("letter", "lines") or match["choice"]):
            raise BadRow("empty", f"{names[0]} is empty")
        if match["form"] == "letter":
            return letter(cell)
        if match["form"] == "json":
            return json.dumps(cell, ensure_ascii=False)
        if match["form"] == "lines":
            return "\n".join(texts_of(cell, names[0]))
        if match["choice"] and match["choice"].isdecimal() and match["choice"] not in raw:
            return numbered(texts_of(cell, names[0]), int(match["choice"]), names[0])
        if match["choice"]:
            return chosen(choices(cell), labels(cell), value(match["choice"]), match["choice"])
        if isinstance(cell, list | dict):
            if ours in ANSWER_COLUMNS:
                raise BadRow(
                    "format",
                    f"{names[0]} is {type_name(cell)}, which a template prints with letters; "
                    f"{{{names[0]}[0]}} is its first, {{{names[0]}:lines}} all of it",
                )
            return "\n".join(map(". ".join, zip(labels(cell), choices(cell), strict=True)))
        text = written(cell)
        if text is None and not is_empty(cell):
            raise BadRow(
                "format", f"{names[0]} is {type_name(cell)}, which has no place in a template"
            )
        if not text or text in NOTHING:
            empty.append(names[0])
            return ""
        return text

    empty: list[str] = []
    pieces: list[tuple[str, bool]] = []
    end = 0
    for match in PLACE.finditer(template):
        pieces += [(template[end : match.start()], False), (place(match), True)]
        end = match.end()
    pieces.append((template[end:], False))
    if empty:
        # An empty column leaves no empty lines before or after the others.
        pieces = without_lines(pieces, lambda text: text.lstrip("\n"))
        pieces = without_lines(pieces[::-1], lambda text: text.rstrip("\n"))[::-1]
    return "".join(text for text, _ in pieces)


def without_lines(
    pieces: Sequence[tuple[str, bool]], cut: Callable[[str], str]
) -> list[tuple[str, bool]]:
    """Pieces of a template, columns (True) and what is between them, cut up to the first that says
    something."""
    kept = list(pieces)
    for number, (text, is_column) in enumerate(pieces):
        if not is_column:
            text = cut(text)
            kept[number] = (text, False)
        if text:
            break
    return kept


def is_empty(cell: Any) -> bool:
    """Whether a cell holds nothing: null, or NaN, which pandas writes for it."""
    return cell is None or (isinstance(cell, float) and math.isnan(cell))


def choices(cell: Any) -> list[str]:
    """Choices as a list of texts, or as `{"text": [...], "label": [...]}`, or by letter."""
    cell = structure(cell)
    if isinstance(cell, Mapping):
        cell = cell["text"] if isinstance(cell.get("text"), list) else list(cell.values())
    texts = [written(item) for item in cell] if isinstance(cell, list) else [None]
    if not 0 < len(texts) <= len(ascii_uppercase) or None in texts:
        raise BadRow("format", "choices are not a list of up to 26 texts")
    listed = [text for text in texts if text is not None]
    marks = [MARK.match(text) for text in listed]
    if len(listed) > 1 and all(
        mark and mark[1] == ascii_uppercase[n] for n, mark in enumerate(marks)
    ):
        return [text[mark.end() :] for text, mark in zip(listed, marks, strict=True) if mark]
    return listed


def labels(cell: Any) -> list[str]:
    """What choices are called: by their own labels, or by letters."""
    cell, named = structure(cell), None
    if isinstance(cell, Mapping):
        named = cell.get("label") if isinstance(cell.get("text"), list) else list(cell)
    texts = choices(cell)
    if named is None:
        return list(ascii_uppercase[: len(texts)])
    if not isinstance(named, list) or len(named) != len(texts):
        raise BadRow("format", "labels of choices are not as many as the choices")
    return [str(label) for label in named]


def texts_of(cell: Any, name: str) -> list[str]:
    """The texts of a list, or of SQuAD's `answers`."""
    cell = structure(cell)
    listed = cell.get("text") if isinstance(cell, Mapping) else cell
    texts = [written(item) for item in listed] if isinstance(listed, list) else [None]
    if None in texts:
        raise BadRow("format", f"{name} is not a list of texts")
    return [text for text in texts if text is not None]


def numbered(texts: Sequence[str], index: int, name: str) -> str:
    """One text of a list by its number from 0."""
    if index >= len(texts):
        raise BadRow("empty", f"{name} holds {len(texts)} texts and none of number {index}")
    return texts[index]


def letter(cell: Any) -> str:
    """A number from 0 as a letter; a letter as it is."""
    text = str(cell).strip()
    if text.isdecimal() and int(text) < len(ascii_uppercase):
        return ascii_uppercase[int(text)]
    if len(text) == 1 and text.upper() in ascii_uppercase:
        return text.upper()
    raise BadRow("format", f"{text[:40]!r} is neither a letter nor a number from 0 to 25")


def chosen(texts: Sequence[str], named: Sequence[str], answer: Any, name: str) -> str:
    """The choice that a label, a letter, its own text or a number from 0 names.

    A number is a number. Raises BadRow where a text could mean two different choices.
    """
    if is_empty(answer):
        raise BadRow("empty", f"{name} is empty")
    if isinstance(answer, float) and answer.is_integer():
        # pandas makes floats of a column of numbers with a gap.
        answer = int(answer)
    if isinstance(answer, int) and not isinstance(answer, bool):
        lettered = list(named) == list(ascii_uppercase[: len(named)])
        if not lettered and str(answer) in named:
            return texts[named.index(str(answer))]
        if answer not in range(len(texts)):
            raise BadRow("format", f"{name} {answer} is none of {len(texts)} choices from 0")
        return texts[answer]
    text = str(answer).strip()
    if match := LETTER.fullmatch(text):
        text = match[1]
    by_label = [texts[named.index(label)] for label in (text, text.upper()) if label in named]
    by_text = [text] if text in texts else []
    by_number = []
    if text.isdecimal() and not by_label and int(text) < len(texts):
        by_number = [texts[int(text)]]
    candidates = dict.fromkeys([*by_label, *by_text, *by_number])
    if len(candidates) > 1:
        raise BadRow(
            "format", f"{name} {text[:40]!r} may mean the choice {' or '.join(candidates)[:80]}"
        )
    if not candidates:
        raise BadRow("format", f"{name} {text[:40]!r} is none of {len(texts)} choices")
    return next(iter(candidates))
