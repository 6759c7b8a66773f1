"""Answers as HTML. A model's words are a stranger's: all are escaped, and a document is shown in a
frame that can do nothing."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from itertools import count
from typing import Any

from gateway.ui.pictures import Picture

COLOURS = ("#d62728", "#1f77b4", "#2ca02c", "#9467bd", "#ff7f0e", "#e377c2", "#17becf", "#8c564b")
MOST_MARKS = 2000
LONGEST_LABEL = 80
LONGEST_CELL = 2000

FRAME_CSP = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
FRAME_STYLE = (
    "body{font:14px/1.5 system-ui,sans-serif;margin:1rem;color:#111;background:#fff}"
    "table{border-collapse:collapse}td,th{border:1px solid #999;padding:.2rem .4rem}"
)

ELEMENT = re.compile(r"<[A-Za-z]")

Item = Mapping[str, Any]


def result(answer: Mapping[str, Any], picture: Picture | None) -> str:
    """An answer to a task: its marks on the picture beside the list of them, and what was noted."""
    items = [item for item in answer.get("items") or [] if isinstance(item, dict)][:MOST_MARKS]
    value = answer.get("value")
    parts = [notes(answer.get("notes") or ())]
    left = overlay(picture, items) if picture else ""
    right = []
    if any(item.get("kind") == "event" for item in items):
        right.append(timeline(items))
    if isinstance(value, str) and answer.get("task", "").startswith("document"):
        right.append(document(value))
    if items:
        right.append(listed(items, picture))
    elif isinstance(value, dict | list) and value:
        right.append(facts(value))
    if left or right:
        parts.append(f'<div class="ll-result"><div>{left}</div><div>{"".join(right)}</div></div>')
    return "".join(parts)


def overlay(picture: Picture, items: Sequence[Item]) -> str:
    """The upright picture with its marks, in its own pixels whatever its size on the screen."""
    width, height = picture.width, picture.height
    size = max(width, height) / 40
    colours = colours_of(items)
    drawn = "".join(one_mark(at, item, picture, size, colours[at]) for at, item in enumerate(items))
    return (
        f'<div class="ll-stage" style="aspect-ratio:{width}/{height}">'
        f'<img src="{picture.uri}" width="{width}" height="{height}" '
        f'alt="The picture of the question, upright">'
        f'<svg viewBox="0 0 {width} {height}" role="group" aria-label="What was found" '
        f'font-size="{size:g}">{drawn}</svg></div>'
    )


def one_mark(at: int, item: Item, picture: Picture, size: float, colour: str) -> str:
    """An item's shape; empty for one without a place. Places are shares of the picture."""

    def pixels(point: Sequence[float]) -> tuple[float, float]:
        return point[0] * picture.width, point[1] * picture.height

    pen = (
        f'fill="{colour}" fill-opacity="0.08" stroke="{colour}" vector-effect="non-scaling-stroke"'
    )
    if box := item.get("box_unit"):
        (x, y), (right, bottom) = pixels(box[:2]), pixels(box[2:])
        shape = f'<rect x="{x:g}" y="{y:g}" width="{right - x:g}" height="{bottom - y:g}" {pen}/>'
    elif polygon := item.get("polygon_unit"):
        corners = [pixels(point) for point in polygon]
        (x, y) = corners[0]
        points = " ".join(f"{a:g},{b:g}" for a, b in corners)
        shape = f'<polygon points="{points}" {pen}/>'
    elif point := item.get("point_unit"):
        x, y = pixels(point)
        shape = f'<circle cx="{x:g}" cy="{y:g}" r="{size / 3:g}" {pen}/>'
        if end := item.get("end_unit"):
            right, bottom = pixels(end)
            shape += f'<line x1="{x:g}" y1="{y:g}" x2="{right:g}" y2="{bottom:g}" {pen}/>'
            shape += f'<circle cx="{right:g}" cy="{bottom:g}" r="{size / 6:g}" {pen}/>'
    else:
        return ""
    name = label_of(item)
    text = (
        f'<text x="{x:g}" y="{max(y - size / 4, size):g}" fill="{colour}">{escape(name)}</text>'
        if name
        else ""
    )
    spoken = escape(f"{item.get('kind', '')} {name}".strip())
    return (
        f'<g data-item="{at}" tabindex="0" role="img" aria-label="{spoken}">'
        f"<title>{spoken}</title>{shape}{text}</g>"
    )


def listed(items: Sequence[Item], picture: Picture | None) -> str:
    """The items as a table; a row and its mark light up together."""
    rows = []
    colours = colours_of(items)
    for at, item in enumerate(items):
        place = place_of(item, picture)
        name = label_of(item, LONGEST_CELL)
        dot = f'<span class="ll-dot" style="background:{colours[at]}"></span>'
        rows.append(
            f'<tr data-item="{at}" tabindex="0"><td>{dot}{escape(str(item.get("kind", "")))}</td>'
            f"<td>{escape(name)}</td><td>{escape(place)}</td></tr>"
        )
    number = next(NUMBERS)
    return (
        f'<label for="filter-{number}">Filter</label>'
        f'<input class="ll-filter" id="filter-{number}" type="search">'
        '<div class="ll-scroll" tabindex="0" role="region" aria-label="Items">'
        '<table class="ll-table">'
        f"<thead><tr><th>Kind</th><th>What</th><th>Where</th></tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


NUMBERS = count(1)
"""IDs of a page's elements differ, so that each label belongs to its own field."""


def label_of(item: Item, longest: int = LONGEST_LABEL) -> str:
    arguments = item.get("arguments")
    action = str(arguments.get("action", "")) if isinstance(arguments, dict) else ""
    words = next(
        (
            str(item[name])
            for name in ("label", "text", "description", "tag")
            if isinstance(item.get(name), str) and item[name]
        ),
        action,
    )
    short = " ".join(words.split())
    return short if len(short) <= longest else short[: longest - 1] + "…"


def colours_of(items: Sequence[Item]) -> list[str]:
    """A colour for each item, the same for each label, in the order in which they come."""
    labels = [label_of(item) for item in items]
    places = {label: at for at, label in enumerate(dict.fromkeys(labels))}
    return [COLOURS[places[label] % len(COLOURS)] for label in labels]


def place_of(item: Item, picture: Picture | None) -> str:
    """Where an item is: seconds, or pixels of the upright original."""
    if item.get("kind") == "event":
        return f"{clock(item['start'])} to {clock(item['end'])}"
    for name in ("box", "point", "polygon"):
        if (unit := item.get(f"{name}_unit")) and picture:
            flat = [unit] if name == "point" else unit
            if name == "box":
                flat = [unit[:2], unit[2:]]
            return " ".join(
                f"{round(x * picture.width)},{round(y * picture.height)}" for x, y in flat
            )
    return ""


def clock(seconds: float) -> str:
    hundredths = round(seconds * 100)
    return f"{hundredths // 6000}:{hundredths % 6000 / 100:05.2f}"


def timeline(items: Sequence[Item]) -> str:
    """Events as bars on one line of time."""
    events = [(at, item) for at, item in enumerate(items) if item.get("kind") == "event"]
    last = max((float(item["end"]) for _, item in events), default=0) or 1.0
    bars = []
    for row, (at, item) in enumerate(events):
        x, width = 1000 * item["start"] / last, 1000 * (item["end"] - item["start"]) / last
        name = escape(label_of(item))
        bars.append(
            f'<g data-item="{at}" tabindex="0" role="img" aria-label="{name}"><title>{name}</title>'
            f'<rect x="{x:g}" y="{row * 26 + 2}" width="{max(width, 3):g}" height="20" '
            f'fill="{COLOURS[row % len(COLOURS)]}"/></g>'
        )
    return (
        f'<svg class="ll-time" viewBox="0 0 1000 {26 * len(events)}" preserveAspectRatio="none" '
        f'role="group" aria-label="Time line of {clock(last)}">{"".join(bars)}</svg>'
    )


def document(html: str) -> str:
    """A model's page in a frame without scripts, forms, addresses or an origin.

    Markdown, which has no element, keeps its lines.
    """
    style = FRAME_STYLE if ELEMENT.search(html) else f"{FRAME_STYLE}body{{white-space:pre-wrap}}"
    page = (
        f'<meta http-equiv="Content-Security-Policy" content="{FRAME_CSP}">'
        f"<style>{style}</style>{html}"
    )
    return (
        f'<iframe class="ll-document" title="The document as it was read" sandbox="" '
        f'srcdoc="{escape(page)}"></iframe>'
    )


def facts(value: Any) -> str:
    """An object, or a list of them, as a table."""
    rows = [value] if isinstance(value, dict) else value
    if all(isinstance(row, dict) for row in rows) and len(rows) > 1:
        names = list(dict.fromkeys(str(name) for row in rows for name in row))[:50]
        head = "".join(f"<th>{escape(name)}</th>" for name in names)
        table_rows = "".join(
            "<tr>" + "".join(f"<td>{cell(row.get(name))}</td>" for name in names) + "</tr>"
            for row in rows[:MOST_MARKS]
        )
    elif len(rows) == 1 and isinstance(rows[0], dict):
        head = "<th>Name</th><th>Value</th>"
        table_rows = "".join(
            f"<tr><td>{escape(str(name))}</td><td>{cell(each)}</td></tr>"
            for name, each in list(rows[0].items())[:MOST_MARKS]
        )
    else:
        head = "<th>Value</th>"
        table_rows = "".join(f"<tr><td>{cell(each)}</td></tr>" for each in rows[:MOST_MARKS])
    return (
        '<div class="ll-scroll" tabindex="0" role="region" aria-label="Values">'
        f'<table class="ll-table"><thead><tr>{head}</tr></thead>'
        f"<tbody>{table_rows}</tbody></table></div>"
    )


def cell(value: Any) -> str:
    if value is None:
        return ""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return escape(text if len(text) <= LONGEST_CELL else text[: LONGEST_CELL - 1] + "…")


def notes(problems: Iterable[str]) -> str:
    """What the gateway noted while it read the answer, without the codes before the sentences."""
    lines = [str(note).partition(": ")[2] or str(note) for note in problems]
    if not lines:
        return ""
    return '<ul class="ll-notes">' + "".join(f"<li>{escape(line)}</li>" for line in lines) + "</ul>"


def sentence(text: str, *, wrong: bool = False) -> str:
    """One line of the page; screen readers announce an error."""
    role = "alert" if wrong else "status"
    return f'<p class="ll-line{" ll-wrong" if wrong else ""}" role="{role}">{escape(text)}</p>'


def conversation(history: Sequence[Mapping[str, Any]]) -> str:
    """The turns before the last question, folded; empty while there are none."""
    before = history[:-2]
    if not before:
        return ""
    turns = "".join(
        f'<div class="ll-turn ll-{escape(str(turn["role"]))}">{escape(str(turn["text"]))}</div>'
        for turn in before
    )
    return f"<details><summary>{len(before)} turns before</summary>{turns}</details>"
