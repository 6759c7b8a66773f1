"""The sixty recorded answers are read as they were meant."""

from __future__ import annotations

from collections import Counter
from itertools import chain

import pytest
from recorded_answers import ORIGINAL, QWEN2, QWEN2_5, QWEN3, SHOWN, Recorded

from gateway import tasks
from gateway.parsing import Parsed, parse

TASKS = tasks.load(None)

ALL = [
    pytest.param(family, case, id=f"{family}-{number}")
    for family, cases in (("qwen2-vl", QWEN2), ("qwen2.5-vl", QWEN2_5), ("qwen3-vl", QWEN3))
    for number, case in enumerate(cases, start=1)
]


def read(family: str, case: Recorded) -> Parsed:
    return parse(
        TASKS[case.task],
        case.text,
        family=family,
        finish_reason="length" if case.cut else "stop",
        original=ORIGINAL,
        resized=SHOWN,
    )


def test_there_are_sixty() -> None:
    assert [len(cases) for cases in (QWEN2, QWEN2_5, QWEN3)] == [20, 20, 20]


@pytest.mark.parametrize(("family", "case"), ALL)
def test_an_answer_is_read_as_it_was_meant(family: str, case: Recorded) -> None:
    parsed = read(family, case)
    items = [item for item in parsed.items if item["kind"] != "text"]
    texts = [item["text"] for item in parsed.items if item["kind"] == "text"]
    assert Counter(item["kind"] for item in items) == case.kinds
    assert [problem.partition(":")[0] for problem in parsed.problems] == list(case.codes)
    if case.said is ...:
        assert texts == [case.text]
    else:
        assert texts == ([case.said] if case.said is not None else [])
    if case.names is not None:
        names = [item.get("text") if "text" in item else item.get("label") for item in items]
        assert names == list(case.names)
    if case.pixels is not None:
        places = [
            item.get("box_pixels") or item.get("point_pixels") or item["polygon_pixels"]
            for item in items
        ]
        assert places == [list(place) for place in case.pixels]
    if case.value is not ...:
        assert parsed.value == case.value


def test_shares_and_pixels_say_the_same() -> None:
    for case in (QWEN2[0], QWEN2[9], QWEN2[14]):
        for item in read("qwen2-vl", case).items:
            unit = item.get("box_unit") or list(chain(*item["polygon_unit"]))
            pixels = item.get("box_pixels") or list(chain(*item["polygon_pixels"]))
            scale = [1280, 960] * (len(unit) // 2)
            assert pixels == [round(share * side) for share, side in zip(unit, scale, strict=True)]


def test_what_was_thought_comes_with_the_action() -> None:
    (item,) = read("qwen3-vl", QWEN3[13]).items
    assert item["thought"] == "I tap the search bar."
    assert item["description"] == "Tap search."
    assert item["point_unit"] == [round(447 / 999, 6), round(81 / 999, 6)]


def test_a_cut_answer_is_known_without_its_finish_reason() -> None:
    for case in (QWEN2[4], QWEN2_5[4], QWEN2_5[5], QWEN2_5[13], QWEN3[19]):
        family = "qwen2-vl" if case is QWEN2[4] else "qwen2.5-vl"
        parsed = parse(
            TASKS[case.task],
            case.text,
            family=family,
            finish_reason="stop",
            original=ORIGINAL,
            resized=SHOWN,
        )
        assert any(problem.startswith("cut:") for problem in parsed.problems), case.text
