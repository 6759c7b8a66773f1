"""JSON values of any shape, from answers that are nearly JSON."""

from __future__ import annotations

from typing import Any

import pytest

from gateway import tasks
from gateway.parsing import Parsed, parse

TASK = tasks.load(None)["key-facts"]


def read(text: str, reason: str = "stop") -> Parsed:
    return parse(
        TASK, text, family="qwen3-vl", finish_reason=reason, original=(100, 100), shown=(100, 100)
    )


@pytest.mark.parametrize(
    ("text", "value", "codes"),
    [
        ('{"a": 1}', {"a": 1}, []),
        ("{'a': None, 'b': True, 'c': (1, 2)}", {"a": None, "b": True, "c": [1, 2]}, ["repaired"]),
        ('{"a": 1, "a": 2}', {"a": 2}, []),
        ('{"a": "one\ntwo"}', {"a": "one\ntwo"}, []),
        ('{a: "x", b: y}', {"a": "x", "b": "y"}, ["repaired"]),
        ('{"a": "x" "b": 2}', {"a": "x", "b": 2}, ["repaired"]),
        ('{"a": {"b": [1, 2}}', {"a": {"b": [1, 2]}}, ["repaired"]),
        ('{"a": 1e999, "b": NaN}', {"a": None, "b": None}, []),
        ('{"a": "\\ud83d\\ude42 \\ud83d"}', {"a": "🙂 \ufffd"}, []),
        ('see [1] and {"a": 1}', {"a": 1}, []),
        ('{"a": 1}\n{"b": 2}', {"a": 1}, ["several"]),
        ('[1, 2]', [1, 2], ["schema"]),
        ("no value here", None, []),
    ],
)  # fmt: skip
def test_a_value_is_read(text: str, value: Any, codes: list[str]) -> None:
    parsed = read(text)
    assert parsed.value == value
    assert [problem.partition(":")[0] for problem in parsed.problems] == codes


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"company": "A", "total": 17', {"company": "A"}),
        ('{"company": "A", "total": "17.0', {"company": "A"}),
        ('{"company": "A", "total": ', {"company": "A"}),
        ('{"company": "A", "paid": tru', {"company": "A"}),
        ('{"items": [{"n": 1}, {"n": 2', {"items": [{"n": 1}]}),
    ],
)
def test_what_the_end_cut_is_left_out(text: str, value: Any) -> None:
    for reason in ("length", "stop"):
        parsed = read(text, reason)
        assert parsed.value == value
        assert parsed.problems[0].startswith("cut:")
