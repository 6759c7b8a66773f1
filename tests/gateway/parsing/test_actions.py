"""An action is what its tool can do, where the screenshot is, or it is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway import tasks
from gateway.parsing import Parsed, parse

TASKS = tasks.load(None)


def read(task: str, text: str, family: str = "qwen3-vl") -> Parsed:
    return parse(
        TASKS[task],
        text,
        family=family,
        finish_reason="stop",
        original=(2000, 1000),
        resized=(1000, 500),
    )


def called(name: str, **arguments: Any) -> str:
    call = json.dumps({"name": name, "arguments": arguments})
    return f"<tool_call>\n{call}\n</tool_call>"


@pytest.mark.parametrize(
    "arguments",
    [
        {"action": "key", "keys": ["ctrl", "s"]},
        {"action": "type", "text": "hello"},
        {"action": "mouse_move", "coordinate": [1, 2]},
        {"action": "left_click", "coordinate": [1, 2]},
        {"action": "left_click"},
        {"action": "left_click_drag", "coordinate": [1, 2]},
        {"action": "triple_click", "coordinate": [1, 2]},
        {"action": "scroll", "pixels": -5},
        {"action": "hscroll", "pixels": 5, "coordinate": [1, 2]},
        {"action": "wait", "time": 2},
        {"action": "terminate", "status": "failure"},
        {"action": "answer", "text": "42"},
    ],
)
def test_what_a_computer_can_do_is_taken(arguments: dict[str, Any]) -> None:
    parsed = read("computer", called("computer_use", **arguments))
    assert parsed.problems == []
    assert parsed.value["action"] == arguments["action"]


@pytest.mark.parametrize(
    "arguments",
    [
        {"action": "click", "coordinate": [1, 2]},
        {"action": "long_press", "coordinate": [1, 2], "time": 1},
        {"action": "swipe", "coordinate": [1, 2], "coordinate2": [3, 4]},
        {"action": "type", "text": "hello"},
        {"action": "open", "text": "Maps"},
        {"action": "key", "text": "volume_up"},
        {"action": "system_button", "button": "Back"},
        {"action": "wait", "time": 2.5},
        {"action": "terminate", "status": "success"},
        {"action": "answer", "text": "42"},
    ],
)
def test_what_a_phone_can_do_is_taken(arguments: dict[str, Any]) -> None:
    assert read("mobile", called("mobile_use", **arguments)).problems == []


@pytest.mark.parametrize(
    ("task", "text", "why"),
    [
        ("mobile", called("mobile_use", action="swipe", coordinate=[1, 2]), "coordinate2 is miss"),
        ("computer", called("computer_use", action="rm"), "the action is not one of the tool's"),
        ("computer", called("computer_use", action="key", keys="ctrl"), "keys is not what the"),
        ("computer", called("computer_use", action="key", keys=[]), "keys is not what the"),
        ("computer", called("mobile_use", action="click"), "the tool is not computer_use"),
        ("computer", called("computer_use", action="left_click", coordinate=[1]), "coordinate is"),
        ("computer", called("computer_use", action="left_click", coordinate=["1", "2"]), "coordin"),
        ("computer", called("computer_use", action="mouse_move", coordinate=[1, 1001]), "beyond"),
        ("computer", called("computer_use", action="mouse_move", coordinate=[-1, 1]), "coordinate"),
        ("computer", called("computer_use", action="wait", time=1e9), "time is not what"),
        ("computer", called("computer_use", action="wait", time=1, then="rm"), "an argument that"),
        ("mobile", called("mobile_use", action="system_button", button="Off"), "button is not"),
        ("mobile", '{"name": "mobile_use", "arguments": "click"}', "its arguments are no object"),
        ("mobile", called("mobile_use", action="click", coordinate=[1, 2])[:-20], "was cut"),
    ],
)
def test_anything_else_is_refused_with_the_reason(task: str, text: str, why: str) -> None:
    parsed = read(task, text)
    assert parsed.value is None
    assert [item["kind"] for item in parsed.items] == ["text"]
    (refusal,) = [message for message in parsed.problems if message.startswith("refused:")]
    assert why in refusal


def test_places_are_those_of_the_screenshot_in_every_family() -> None:
    swipe = called("mobile_use", action="swipe", coordinate=[0, 0], coordinate2=[999, 333])
    item = read("mobile", swipe).items[0]
    assert (item["point_pixels"], item["end_pixels"]) == ([0, 0], [1999, 333])
    click = called("computer_use", action="left_click", coordinate=[500, 250])
    assert read("computer", click).items[0]["point_pixels"] == [1000, 250]
    assert read("computer", click, "qwen2.5-vl").items[0]["point_pixels"] == [1000, 500]


def test_only_the_first_of_several_actions_is_taken() -> None:
    text = called("computer_use", action="wait", time=1) * 2
    parsed = read("computer", text)
    assert parsed.value == {"action": "wait", "time": 1}
    assert parsed.problems == ["several: 2 actions were given; the first is taken"]


def test_words_without_an_action_are_words() -> None:
    parsed = read("mobile", "I do not know what to tap.")
    assert parsed.value is None
    assert parsed.items == [{"kind": "text", "text": "I do not know what to tap."}]


@pytest.mark.parametrize(
    ("task", "tool", "last"), [("computer", "left_click", 1000), ("mobile", "click", 999)]
)
def test_a_click_at_the_edge_is_on_the_last_pixel(task: str, tool: str, last: int) -> None:
    """The screenshot is 2000 wide: its pixels go from 0 to 1999."""
    value = read(task, called(f"{task}_use", action=tool, coordinate=[last, last])).value
    assert value["coordinate"] == [1999, 999]
    value = read(task, called(f"{task}_use", action=tool, coordinate=[0, 0])).value
    assert value["coordinate"] == [0, 0]
