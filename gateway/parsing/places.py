"""Boxes, points and polygons in all forms that Qwen-VL models write them.

| form | of |
|---|---|
| `<|object_ref_start|>cat<|object_ref_end|><|box_start|>(x1,y1),(x2,y2)<|box_end|>` | Qwen2-VL |
| `<ref>cat</ref><box>(x1,y1),(x2,y2)</box>`, `cat(x1,y1),(x2,y2)` | Qwen-VL, tokens skipped |
| `<|quad_start|>(x,y),(x,y),(x,y),(x,y)<|quad_end|>` | Qwen2-VL |
| `[{"bbox_2d": [x1, y1, x2, y2], "label": "cat"}]` | Qwen2.5-VL, Qwen3-VL |
| `<points x1="x" y1="y" x2=… alt="pins">pins</points>` | Qwen2.5-VL, Qwen3-VL |
| `x1,y1,x2,y2 cat` | Qwen2.5-VL, plain mode |
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from gateway.parsing.answer import MOST_ITEMS, Answer, Item, first, segments, words_item
from gateway.parsing.lenient import Block, Object, Unsure, blocks, plain, well_formed

BOXES = ("bbox_2d", "bbox", "box_2d", "box", "bboxes", "bounding_box")
POINTS = ("point_2d", "point", "points", "coordinate", "coordinates")
POLYGONS = ("polygon", "polygon_2d", "quad")
PLACES = {**dict.fromkeys(BOXES, "box"), **dict.fromkeys(POINTS, "point"), "bbox_3d": "box_3d"}
PLACES |= dict.fromkeys(POLYGONS, "polygon")
LABELS = ("label", "name", "name_en", "object_name", "category", "class", "names", "object")
TEXTS = ("text_content", "text", "content", "transcription")

N = r"[ \t]{0,8}(-?\d{1,9}(?:\.\d{0,9})?)[ \t]{0,8}"
PAIR = rf"\({N},{N}\)"
COMMA = r"[ \t]{0,8},[ \t]{0,8}"
PLACE = re.compile(
    rf"(?:<\|quad_start\|>|<quad>)?{COMMA.join([PAIR] * 4)}(?:<\|quad_end\|>|</quad>)?"
    rf"|(?:<\|box_start\|>|<box>)?{PAIR}[ \t]{{0,8}},?[ \t]{{0,8}}{PAIR}(?:<\|box_end\|>|</box>)?"
)
REF = re.compile(
    r"<\|object_ref_start\|>([^<]{0,500})<\|object_ref_end\|>|<ref>([^<]{0,500})</ref>"
)
TOKEN = re.compile(r"<\|(?:object_ref|box|quad)_(?:start|end)\|>|</?(?:ref|box|quad)>")
BEGUN = re.compile(r"<\|(?:box|quad)_start\|>|<box>|<quad>")
ENDED = re.compile(r"<\|(?:box|quad)_end\|>|</box>|</quad>")
LINE = re.compile(rf"^{N},{N},{N},{N}(?:[ \t]+(\S[^\n]*))?$", re.MULTILINE)
POINTS_TAG = re.compile(r"<points?\s([^<>]*)(?:>(?:([^<]{0,500})</points?>)?|\Z)")
COORDINATE = re.compile(rf"""\b([xy])(\d{{0,5}})\s{{0,8}}=\s{{0,8}}["']{N}["']""")
ALT = re.compile(r"""\balt\s{0,8}=\s{0,8}["']([^"'<>]{0,500})["']""")

Names = dict[str, Any]
"""`label`, `text`, `unsure` and `fields` of an item: what is said of its place."""


class Row(NamedTuple):
    """What a model wrote of one thing."""

    pairs: list[tuple[str, Any]]
    whole: bool
    """Whether it was closed, before the answer was cut."""


def parse_places(answer: Answer) -> tuple[Any, list[Item]]:
    """Boxes, points and polygons, and what was said beside them.

    The value has a row for each: its label or text, its place in pixels of the original (`box`,
    `point` or `polygon`), and the other fields that the model wrote.
    """
    items: list[Item] = []
    leftover: list[str] = []
    for segment in segments(answer.text):
        rest = take_tags(answer, segment, items)
        rest = take_json(answer, rest, items)
        rest = take_tokens(answer, rest, items)
        leftover.append(take_lines(answer, rest, items))
    return [row_of(item) for item in items], items + words_item("\n".join(leftover))


def row_of(item: Item) -> dict[str, Any]:
    """An item as a row of the value."""
    place_type = item["kind"]
    place = item["numbers"] if place_type == "box_3d" else item[f"{place_type}_pixels"]
    named = {name: item[name] for name in ("label", "text") if name in item}
    return {**item.get("fields", {}), **named, place_type: place}


def take_tags(answer: Answer, text: str, items: list[Item]) -> str:
    """Read the points written as XML; returns the rest of the text."""

    def add_point(match: re.Match[str]) -> str:
        alt = ALT.search(match.group(1))
        label = (match.group(2) or "").strip() or (alt.group(1).strip() if alt else "")
        axes: dict[str, dict[str, float]] = {"x": {}, "y": {}}
        for axis, index, digits in COORDINATE.findall(match.group(1)):
            axes[axis][index] = float(digits)
        if not match.group().endswith(">"):
            answer.note("cut")
        elif axes["x"].keys() != axes["y"].keys():
            answer.note("malformed")
        for index, x in axes["x"].items():
            if index in axes["y"]:
                add(
                    answer, items, "point", [x, axes["y"][index]], {"label": label} if label else {}
                )
        return " "

    return POINTS_TAG.sub(add_point, text)


def take_json(answer: Answer, text: str, items: list[Item]) -> str:
    """Read the rows of JSON blocks; returns the text without the blocks that had rows."""
    kept, end = [], 0
    for block in blocks(text):
        rows = list(rows_of(block, of_points=answer.task.parser == "points"))
        for row in rows:
            take_row(answer, row, items)
        if rows and any(map(is_placeless, block.value)):
            answer.note("malformed")
        if rows or block.value == [] or not block.value.whole:
            kept.append(text[end : block.start])
            end = block.end
            if not block.value.whole:
                answer.note("cut")
            elif block.mended:
                answer.note("repaired")
    return "".join([*kept, text[end:]])


def rows_of(block: Block, *, of_points: bool) -> Iterator[Row]:
    """Objects with a place, and lists that are only a place.

    Two numbers are a point only where points were asked for: prose has brackets, too.
    """
    bare = (2, 4) if of_points else (4,)
    waiting: list[tuple[Any, bool]] = [(block.value, True)]
    while waiting:
        node, may_be_bare = waiting.pop()
        below: list[tuple[Any, bool]] = []
        if isinstance(node, Object):
            yield from split(node)
            below = [(value, False) for key, value in node if key.lower() not in PLACES]
        elif may_be_bare and len(node) in bare and all(map(is_number, node)):
            yield Row([("box" if len(node) == 4 else "point", node)], node.whole)
        else:
            below = [(value, may_be_bare) for value in node]
        waiting += [entry for entry in reversed(below) if isinstance(entry[0], list)]


def is_placeless(entry: Any) -> bool:
    """Whether an entry of a list is an object that names a thing, and not where it is."""
    return (
        isinstance(entry, Object)
        and entry.whole
        and any(key.lower() in (*LABELS, *TEXTS) for key, _ in entry)
        and not any(key.lower() in PLACES or isinstance(value, list) for key, value in entry)
    )


def split(node: Object) -> Iterator[Row]:
    """The rows of an object: one, or one for each time that its keys begin anew."""
    rows: list[list[tuple[str, Any]]] = [[]]
    keys: set[str] = set()
    for key, value in node:
        if key in keys:
            rows.append([])
            keys.clear()
        rows[-1].append((key, value))
        keys.add(key)
    for index, pairs in enumerate(rows):
        if any(key.lower() in PLACES for key, _ in pairs):
            yield Row(pairs, node.whole or index < len(rows) - 1)


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def take_row(answer: Answer, row: Row, items: list[Item]) -> None:
    """Add the items of a row, unless the end cut it."""
    if not row.whole:
        answer.note("cut")
        return
    names = names_of(
        {well_formed(key): plain(v) for key, v in row.pairs if key.lower() not in PLACES}
    )
    if any(isinstance(value, Unsure) for _, value in row.pairs):
        names["unsure"] = True
        answer.note("unsure")
    for key, value in row.pairs:
        place_type = PLACES.get(key.lower())
        if place_type is None:
            continue
        nested = place_type != "polygon" and isinstance(value, list) and value
        for place in value if nested and isinstance(value[0], list) else [value]:
            add(answer, items, place_type, place, names)


def names_of(fields: dict[str, Any]) -> Names:
    """Label and text of a row, and its other fields as they are."""
    names: Names = {}
    label = first(fields, LABELS)
    if isinstance(label, dict):
        label = label.get("en") or next(iter(label.values()), None)
    for name, value in (("label", label), ("text", first(fields, TEXTS))):
        if isinstance(value, str | int | float):
            names[name] = str(value)
    others = {key: value for key, value in fields.items() if key.lower() not in ("label", *TEXTS)}
    return {**names, "fields": others} if others else names


def take_tokens(answer: Answer, text: str, items: list[Item]) -> str:
    """Read places in round brackets with the names before them; returns the other words."""
    leftover: list[str] = []
    label = ""
    for line in text.split("\n"):
        places = list(PLACE.finditer(line))
        if not places:
            label = next((a or b for a, b in reversed(REF.findall(line))), "")
            leftover.append(REF.sub(lambda match: match.group(1) or match.group(2) or "", line))
            continue
        tail = line[places[-1].end() :]
        # Words on both sides make a sentence with a box in it, not a name and its box.
        is_prose = bool(words(tail))
        end = 0
        for match in places:
            lead = line[end : match.start()]
            end = match.end()
            if refs := REF.findall(lead):
                label = refs[-1][0] or refs[-1][1]
                lead = REF.sub("", lead)
            elif words(lead):
                label = "" if is_prose else words(lead)
            if is_prose or refs:
                leftover.append(words(lead))
            take_place(answer, match, label.strip(), items)
        leftover.append(tail)
        label = ""
    return unfinished(answer, "\n".join(leftover))


def words(text: str) -> str:
    return TOKEN.sub("", text).strip(" \t,;:-")


def take_place(answer: Answer, match: re.Match[str], label: str, items: list[Item]) -> None:
    """Add the box or the four-sided polygon of a match."""
    numbers = [float(digits) for digits in match.groups() if digits is not None]
    name = "text" if answer.task.parser == "lines" else "label"
    names = {name: label} if label else {}
    if len(numbers) == 8:
        corners = [list(corner) for corner in zip(numbers[::2], numbers[1::2], strict=True)]
        add(answer, items, "polygon", corners, names)
    else:
        add(answer, items, "box", numbers, names)


def unfinished(answer: Answer, text: str) -> str:
    """The text without a place that the end cut, and without tokens; others are noted."""
    begun = [match.start() for match in BEGUN.finditer(text)]
    if begun and not ENDED.search(text, begun[-1]):
        text = text[: begun.pop()]
        answer.note("cut")
    if begun:
        answer.note("malformed")
    return TOKEN.sub("", text)


def take_lines(answer: Answer, text: str, items: list[Item]) -> str:
    """Read lines of four numbers and a name, the plain mode; returns the rest."""
    last = len(text.rstrip())

    def add_box(match: re.Match[str]) -> str:
        if not (answer.cut and match.end() >= last):
            name = (match.group(5) or "").strip()
            numbers = [float(digits) for digits in match.groups()[:4]]
            add(answer, items, "box", numbers, {"label": name} if name else {})
        return ""

    return LINE.sub(add_box, text)


def add(answer: Answer, items: list[Item], place_type: str, written: Any, names: Names) -> None:
    """Add a place with its names; invalid numbers are noted and left out."""
    if len(items) >= MOST_ITEMS:
        answer.note("too_long", f"only the first {MOST_ITEMS:,} items were read")
        return
    item: Item | None
    if place_type == "polygon":
        item = polygon(answer, written)
    else:
        numbers = numbers_of(written, {"box": 4, "point": 2, "box_3d": 9}[place_type])
        if numbers is None:
            answer.note("malformed")
            return
        item = {"box": box, "point": point, "box_3d": box_3d}[place_type](answer, numbers)
    if item is not None:
        items.append({**item, **names})


def numbers_of(written: Any, count: int) -> list[float] | None:
    """`count` finite numbers, which may be written as texts; None otherwise."""
    if not isinstance(written, list) or len(written) != count:
        return None
    numbers: list[float] = []
    for entry in written:
        try:
            number = float(entry) if is_number(entry) or isinstance(entry, str) else math.nan
        except (ValueError, OverflowError):
            return None
        if not abs(number) < 1e9:
            return None
        numbers.append(number)
    return numbers


def box(answer: Answer, numbers: Sequence[float]) -> Item | None:
    """A box with its corners in order, clipped to the image; None if nothing is left."""
    left, top, right, bottom = numbers
    if left > right or top > bottom:
        answer.note("reordered")
        left, right = sorted((left, right))
        top, bottom = sorted((top, bottom))
    first_corner, second_corner = answer.place((left, top)), answer.place((right, bottom))
    if left == right or top == bottom:
        answer.note("flat")
        return None
    if first_corner is None or second_corner is None:
        return {"kind": "box", "box_unit": None, "box_pixels": None, "numbers": list(numbers)}
    corners = [*clipped(answer, first_corner), *clipped(answer, second_corner)]
    if corners[0] >= corners[2] or corners[1] >= corners[3]:
        answer.note("flat", "a box outside of the image is left out")
        return None
    ends = answer.pixels(*corners[:2]), answer.pixels(*corners[2:])
    return {
        "kind": "box",
        "box_unit": [round(share, 6) for share in corners],
        "box_pixels": [*ends[0], *ends[1]] if ends[0] and ends[1] else None,
        "numbers": list(numbers),
    }


def point(answer: Answer, numbers: Sequence[float]) -> Item:
    """A point within the image."""
    place = answer.place((numbers[0], numbers[1]))
    within = clipped(answer, place) if place else None
    return {
        "kind": "point",
        "point_unit": [round(share, 6) for share in within] if within else None,
        "point_pixels": answer.pixels(*within) if within else None,
        "numbers": list(numbers),
    }


def polygon(answer: Answer, written: Any) -> Item | None:
    """A polygon of three corners or more, written as pairs or as one list of numbers."""
    if isinstance(written, list) and written and not isinstance(written[0], list):
        written = [written[index : index + 2] for index in range(0, len(written), 2)]
    corners = [numbers_of(pair, 2) for pair in written] if isinstance(written, list) else []
    if len(corners) < 3 or len(corners) > MOST_ITEMS or not all(corners):
        answer.note("malformed")
        return None
    points = [point(answer, corner) for corner in corners if corner]
    placed = all(vertex["point_unit"] for vertex in points)
    return {
        "kind": "polygon",
        "polygon_unit": [vertex["point_unit"] for vertex in points] if placed else None,
        "polygon_pixels": (
            [vertex["point_pixels"] for vertex in points] if placed and answer.original else None
        ),
        "numbers": [vertex["numbers"] for vertex in points],
    }


def box_3d(_: Answer, numbers: Sequence[float]) -> Item:
    """A box in metres and radians before the camera, as data: drawing it needs the camera."""
    return {"kind": "box_3d", "numbers": list(numbers)}


def clipped(answer: Answer, place: tuple[float, float]) -> list[float]:
    """A place within the image."""
    within = [min(max(share, 0.0), 1.0) for share in place]
    if within != list(place):
        answer.note("clipped")
    return within
