"""Parsers take any text: none raises, none takes a second, and what they give back is in order."""

from __future__ import annotations

import itertools
import json
import random
import time
from collections.abc import Iterator
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from recorded_answers import TEXTS

from gateway import overlay, tasks
from gateway.parsing import CODES, Parsed, parse

TASKS = tasks.load(None)
FAMILIES = ("qwen2-vl", "qwen2.5-vl", "qwen3-vl", "text", "default")
SIZES = (None, (1280, 960), (1, 1), (3, 4000))

PIECES = [
    *'[]{}()<>"\'`,:;-=/\\\n\t ',
    "[[", "{{", "}]", "]}", "```json\n", "```", '{"bbox_2d": [', '"bbox_2d"', "'bbox'",
    "[1, 2, 3, 4]", "(1,2),(3,4)", "<|box_start|>", "<|box_end|>", "<|quad_start|>",
    "<|object_ref_start|>", "<|object_ref_end|>", "<ref>", "</ref>", "<box>", '"label": "a"',
    "<points ", 'x1="1" ', "y1='2' ", "</points>", "1,2,3,4 cat\n", "1e999", "-0", "NaN",
    "99999999999999999999999999", "0.000001", "true", "None", "\\u0041", "\\ud83d", "\\", "\ud83d",
    "<tool_call>", "</tool_call>", '{"name": "mobile_use", "arguments": ', '"action": "click"',
    '"coordinate": [1, 2]', "Thought: ", "Action: ", "00:01 - 00:02", "64.0 - 72.0 seconds",
    '"start_time": 1', '"end_time": "1:2"', "<h1 ", 'data-bbox="1 2 3 4"', ">", "</h1>",
    'data-polygon="1 2 3 4 5 6"', "<table><tr><td>", "<div>", "</div>", "<script>", "<svg>", "<a ",
    "<!-- Table (1, 2, 3, 4) -->", "<!--", "-->", "<!", "<![", "&#", "&lt;", "![a](http://x)",
    "cat ", "é", "\u202e", "\0", "\x85", "中文", "🙂", "|", "---", "<b>", "<p>", "<?",
]  # fmt: skip


def read(
    text: str, task: str, family: str, reason: str, original: tuple[int, int] | None
) -> Parsed:
    return parse(
        TASKS[task],
        text,
        family=family,
        finish_reason=reason,
        original=original,
        resized=original,
    )


def check(parsed: Parsed) -> None:
    """What holds of every answer."""
    json.dumps([parsed.value, parsed.items], allow_nan=False).encode()
    assert all(problem.partition(":")[0] in CODES for problem in parsed.problems)
    for item in parsed.items:
        for place in ("box_unit", "point_unit", "end_unit"):
            assert all(0 <= share <= 1 for share in item.get(place) or ())
        if box := item.get("box_unit"):
            assert box[0] < box[2] and box[1] < box[3]


def seconds_to_read(
    text: str, task: str, family: str, reason: str, original: tuple[int, int] | None
) -> float:
    """CPU seconds of reading a text and checking what is read, the least of up to three times.

    A slow parser is slow every time. A machine that does something else, such as collecting the
    garbage of all tests, is slow once.
    """
    least = float("inf")
    for _ in range(3):
        began = time.thread_time()
        check(read(text, task, family, reason, original))
        least = min(least, time.thread_time() - began)
        if least < 1:
            break
    return least


def texts(seed: int) -> Iterator[str]:
    """Recorded answers changed at random places, pieces thrown together, and noise; endless."""
    pick = random.Random(seed)
    while True:
        how = pick.random()
        if how < 0.5:
            text = list(pick.choice(TEXTS))
            for _ in range(pick.randint(1, 6)):
                at, length = pick.randint(0, len(text)), pick.choice([0, 0, 1, 1, 5, 30])
                text[at : at + length] = pick.choice(PIECES) if pick.random() < 0.7 else ""
            yield "".join(text)
        elif how < 0.9:
            yield "".join(pick.choices(PIECES, k=pick.randint(1, 60)))
        else:
            yield "".join(chr(pick.randrange(0x3000)) for _ in range(pick.randint(1, 200)))


def run(count: int, seed: int) -> None:
    pick = random.Random(seed)
    names = sorted(TASKS)
    for text in itertools.islice(texts(seed), count):
        arguments = (
            pick.choice(names),
            pick.choice(FAMILIES),
            pick.choice(["stop", "length", ""]),
            pick.choice(SIZES),
        )
        seconds = seconds_to_read(text, *arguments)
        assert seconds < 1, f"{seconds:.2f} s for {text[:200]!r}"


def test_two_thousand_answers_are_read_without_an_exception() -> None:
    run(2000, seed=0)


@pytest.mark.slow
def test_a_hundred_thousand_answers_are_read_without_an_exception() -> None:
    run(100_000, seed=1)


LONG = [piece * (2**18 // len(piece)) for piece in PIECES] + [
    first * (2**17 // len(first)) + second * (2**17 // len(second))
    for first, second in itertools.pairwise(PIECES[::3])
]


@pytest.mark.slow
@pytest.mark.parametrize("task", sorted(TASKS))
def test_no_long_answer_takes_a_second(task: str) -> None:
    slowest = ("", 0.0)
    for text in LONG:
        seconds = seconds_to_read(text, task, "qwen2-vl", "length", (1280, 960))
        slowest = max(slowest, (text[:80], seconds), key=lambda each: each[1])
    assert slowest[1] < 1, slowest


@pytest.mark.parametrize("task", sorted(TASKS))
def test_answers_without_an_end_are_read_in_time(task: str) -> None:
    for piece in ("[", "{", '{"a":', "<a ", "<div>", '[{"bbox_2d": [1, 2, 3, 4]},', '"', "1,2 "):
        text = piece * (2**16 // len(piece))
        assert seconds_to_read(text, task, "qwen3-vl", "length", (1280, 960)) < 1, piece


@given(st.text(max_size=300), st.sampled_from(sorted(TASKS)), st.sampled_from(FAMILIES))
@settings(max_examples=300)
def test_any_text_is_read(text: str, task: str, family: str) -> None:
    check(read(text, task, family, "stop", (640, 480)))


def test_the_value_keeps_to_the_schema_or_a_problem_says_so() -> None:
    for text, name in itertools.product(itertools.islice(texts(3), 60), sorted(TASKS)):
        parsed = read(text, name, "qwen3-vl", "stop", (1280, 960))
        message = any(problem.startswith("schema:") for problem in parsed.problems)
        assert parsed.value is None or message == (not TASKS[name].is_valid(parsed.value))


def test_every_overlay_is_well_formed() -> None:
    for text in itertools.islice(texts(4), 500):
        parsed = read(text, "spatial-boxes", "qwen3-vl", "stop", (1280, 960))
        ElementTree.fromstring(overlay.svg((1280, 960), parsed.items))  # noqa: S314 - our own
