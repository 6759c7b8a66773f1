"""Actions of a computer or a phone, checked against their tool. Nothing is ever executed.

The tools are those of Qwen's cookbooks (`computer_use`, `mobile_use`). An action that is
unfinished, unknown, lacks an argument or points beyond the screenshot is refused, never mended: a
click in the wrong place is worse than none.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from gateway.parsing.answer import Answer, Item
from gateway.parsing.lenient import Object, blocks, plain
from loraline.data.boxes import Point

CALL = re.compile(r"<tool_call>|</tool_call>")
THOUGHT = re.compile(r"^[ \t]*Thought:[ \t]*([^\n]{1,4000})", re.MULTILINE)
SENTENCE = re.compile(r"^[ \t]*Action:[ \t]*([^\n]{1,4000})", re.MULTILINE)

Coordinate = Annotated[list[Annotated[float, Field(ge=0)]], Field(min_length=2, max_length=2)]
Text = Annotated[str, Field(max_length=10_000)]
Seconds = Annotated[float, Field(ge=0, le=3600)]
Key = Annotated[str, Field(min_length=1, max_length=40)]


class Arguments(BaseModel):
    """An action has no other fields; a number written as text is not accepted."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


class Keys(Arguments):
    action: Literal["key"]
    keys: Annotated[list[Key], Field(min_length=1, max_length=8)]


class Typing(Arguments):
    action: Literal["type"]
    text: Text


class Pointing(Arguments):
    action: Literal["mouse_move", "left_click_drag"]
    coordinate: Coordinate


class MouseClick(Arguments):
    """Where the pointer is, unless it says where."""

    action: Literal["left_click", "right_click", "middle_click", "double_click", "triple_click"]
    coordinate: Coordinate | None = None


class Scrolling(Arguments):
    action: Literal["scroll", "hscroll"]
    pixels: Annotated[float, Field(ge=-100_000, le=100_000)]
    coordinate: Coordinate | None = None


class Waiting(Arguments):
    action: Literal["wait"]
    time: Seconds


class Ending(Arguments):
    action: Literal["terminate"]
    status: Literal["success", "failure"]


class Answering(Arguments):
    action: Literal["answer"]
    text: Text


class Tap(Arguments):
    action: Literal["click"]
    coordinate: Coordinate


class LongPress(Arguments):
    action: Literal["long_press"]
    coordinate: Coordinate
    time: Seconds


class Swipe(Arguments):
    action: Literal["swipe"]
    coordinate: Coordinate
    coordinate2: Coordinate


class PhoneKey(Arguments):
    action: Literal["key", "open"]
    text: Annotated[str, Field(min_length=1, max_length=200)]


class SystemButton(Arguments):
    action: Literal["system_button"]
    button: Literal["Back", "Home", "Menu", "Enter"]


Computer = Keys | Typing | Pointing | MouseClick | Scrolling | Waiting | Ending | Answering
Phone = Tap | LongPress | Swipe | Typing | PhoneKey | SystemButton | Waiting | Ending | Answering
TOOLS: dict[str, TypeAdapter[Any]] = {
    "computer_use": TypeAdapter(Annotated[Computer, Field(discriminator="action")]),
    "mobile_use": TypeAdapter(Annotated[Phone, Field(discriminator="action")]),
}
PLACES = ("coordinate", "coordinate2")


def parse_action(answer: Answer) -> tuple[Any, list[Item]]:
    """The action, with its places in pixels of the screenshot, and what was thought before it.

    The value is the action's arguments, or None where there is none or it is refused.
    """
    tool = answer.task.parser
    calls = [
        block
        for segment in CALL.split(answer.text)
        for block in blocks(segment)
        if isinstance(block.value, Object) and is_call(plain(block.value))
    ]
    if not calls:
        text = answer.text
        return None, [{"kind": "text", "text": text}] if text else []
    if len(calls) > 1:
        answer.note("several", f"{len(calls)} actions were given; the first is taken")
    if not calls[0].value.whole:
        return refuse(answer, "the answer was cut within its action")
    call = plain(calls[0].value)
    if call.get("name", tool) != tool:
        return refuse(answer, f"the tool is not {tool}")
    arguments = call.get("arguments", call)
    try:
        checked = TOOLS[tool].validate_python(arguments).model_dump(exclude_none=True)
    except ValidationError as error:
        return refuse(answer, complaint(error))
    item: Item = {"kind": "action", "tool": tool, "arguments": checked, **said_before(answer.text)}
    value = dict(checked)
    for name in PLACES:
        if name in checked:
            place = answer.place(tuple(checked[name]))
            if place and max(place) > 1:
                return refuse(answer, f"{name} lies beyond the screenshot")
            point = {"coordinate": "point", "coordinate2": "end"}[name]
            item[f"{point}_unit"] = [round(share, 6) for share in place] if place else None
            item[f"{point}_pixels"] = value[name] = pixel(answer, place) if place else None
    return value, [item]


def pixel(answer: Answer, place: Point) -> list[int] | None:
    """The pixel to point at: the last one for a place on the edge, behind which there is none."""
    pixels = answer.pixels(*place)
    if pixels is None or answer.original is None:
        return None
    height, width = answer.original
    return [min(pixels[0], width - 1), min(pixels[1], height - 1)]


def is_call(row: Any) -> bool:
    return "arguments" in row or "action" in row


def refuse(answer: Answer, why: str) -> tuple[None, list[Item]]:
    answer.note("refused", why)
    return None, [{"kind": "text", "text": answer.text}]


def complaint(error: ValidationError) -> str:
    """What is wrong with an action, in words of ours: a model's go into no message."""
    first = error.errors(include_input=False, include_url=False)[0]
    place = [str(part) for part in first["loc"][1:]]
    if first["type"] in ("union_tag_invalid", "union_tag_not_found"):
        return "the action is not one of the tool's"
    if first["type"] == "missing":
        return f"{'.'.join(place)} is missing"
    if first["type"] == "extra_forbidden":
        return "it has an argument that the action does not take"
    if not place:
        return "its arguments are no object"
    return f"{'.'.join(place)} is not what the action takes"


def said_before(text: str) -> Item:
    """What the model thought, and its action in a sentence, where it gave them."""
    thought, sentence = THOUGHT.search(text), SENTENCE.search(text)
    matches = {"thought": thought, "description": sentence}
    return {name: match.group(1).strip().strip('"') for name, match in matches.items() if match}
