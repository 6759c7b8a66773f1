"""JSON values of any shape, from answers that are nearly JSON."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from gateway import tasks
from gateway.parsing import Parsed, lenient, parse

TASK = tasks.load(None)["key-facts"]


def read(text: str, reason: str = "stop") -> Parsed:
    return parse(
        TASK, text, family="qwen3-vl", finish_reason=reason, original=(100, 100), resized=(100, 100)
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


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=30),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=12,
)


@given(
    st.lists(VALUES, max_size=4) | st.dictionaries(st.text(max_size=5), VALUES),
    st.booleans(),
    st.integers(0, 200),
    st.sampled_from(["", '"', "]", "x", "\\"]),
)
@example(["a string that is longer than that"], True, 200, "")
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_block_is_read_the_same_wherever_its_beginning_ends(
    monkeypatch: pytest.MonkeyPatch, value: Any, ascii_only: bool, at: int, damage: str
) -> None:
    """Only its first characters are tried at first; a longer one, whole or damaged, is the same."""
    text = json.dumps(value, ensure_ascii=ascii_only) + " and more than that"
    text = text[:at] + damage + text[at:] if at < len(text) else text
    read_at_once = lenient.strict(text, 0) if text[0] in "[{" else None
    with monkeypatch.context() as patch:
        patch.setattr(lenient, "WINDOW", 24)
        assert read_at_once == (lenient.strict(text, 0) if text[0] in "[{" else None)


def test_many_blocks_that_are_no_json_take_time_by_their_length(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The decoder counts the lines before an error: no more than it was given."""
    given_to_it = []
    decode = lenient.STRICT.raw_decode
    monkeypatch.setattr(
        lenient.STRICT, "raw_decode", lambda text: given_to_it.append(len(text)) or decode(text)
    )
    assert len(list(lenient.blocks("![a](x)" * 20_000))) == 20_000
    assert max(given_to_it) <= lenient.WINDOW
