"""Values have the spelling that Go gives them."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.values import (
    Item,
    NoJson,
    decoded,
    dumps,
    elements,
    gathered,
    json_number,
    parameter_text,
    quoted,
    survives_quoting,
)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1e-4, "0.0001"),
        (5e-5, "0.00005"),
        (1.0, "1"),
        (100000000.0, "100000000"),
        (12345678901234567890, "12345678901234567000"),
        (-0.0, "-0"),
        (True, "true"),
        (2, "2"),
        ("12:30", "12:30"),
        ([1, "two"], ""),
        ({"a": 1}, ""),
        (None, ""),
    ],
)
def test_a_parameter_of_the_file_as_text(value: object, text: str) -> None:
    assert parameter_text(value) == text


@pytest.mark.parametrize(
    ("number", "text"),
    [(1e22, "1e+22"), (2e-7, "2e-7"), (1e20, "100000000000000000000"), (1.5e-10, "1.5e-10"),
     (1e-6, "0.000001"), (123456789012345678, "123456789012345680"), (-0.0, "-0"), (0.1, "0.1")],
)  # fmt: skip
def test_a_number_in_json(number: float, text: str) -> None:
    assert json_number(float(number)) == text


@pytest.mark.parametrize(
    ("raw", "text", "label"),
    [
        ("1e-4", "1e-4", "1e-4"),
        ("0.10", "0.10", "0.10"),
        ('"\\u00e9"', "\\u00e9", "\\u00e9"),
        ('"q\\" <x>"', 'q\\" <x>', 'q\\" <x>'),
        ("null", "null", "[]"),
        ("[1, 2]", "[1,2]", "[1 2]"),
        ('["a", "b c"]', '["a","b c"]', "[a b c]"),
        ('{"b": 1, "a": "<"}', '{"a":"\\u003c","b":1}', "a:<,b:1"),
        ('{"k": {"b": 1, "a": 2}}', '{"k":{"b":1,"a":2}}', 'k:{"b":1,"a":2}'),
        ('"f(x)"', "f(x)", "fx"),
        ("{}", "{}", ""),
    ],
)
def test_items_keep_their_spelling(raw: str, text: str, label: str) -> None:
    item = Item(raw)

    assert item.references()["item"] == text
    assert item.label() == label


def test_members_of_a_mapping_are_references() -> None:
    item = Item('{"lr": 1e-4, "none": null, "t": true, "l": [ "x" ], "s": "a\\nb"}')

    assert {k: v for k, v in item.references().items() if k != "item"} == {
        "item.lr": "1e-4",
        "item.none": "null",
        "item.t": "true",
        "item.l": '["x"]',
        "item.s": "a\\nb",
    }


@pytest.mark.parametrize(
    ("texts", "list_"),
    [
        (["[1.0, 2.50]", "[1e-4]"], "[[1,2.5],[0.0001]]"),
        (["[12345678901234567890]"], "[[12345678901234567000]]"),
        (["[NaN]", "[1]"], '["[NaN]","[1]"]'),
        (['{"b": 1, "a": "<"}'], '[{"a":"\\u003c","b":1}]'),
        (["1", "2"], '["1","2"]'),
        (["x", "[]"], '["x","[]"]'),
        (["[1e999]"], '["[1e999]"]'),
    ],
)
def test_a_fan_in_is_a_list_of_lists_where_each_is_one(texts: list[str], list_: str) -> None:
    assert gathered(texts) == list_


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**62), 2**62) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=6,
)


@given(JSON)
def test_json_says_what_it_was_made_of(value: object) -> None:
    assert json.loads(dumps(value)) == value
    assert [json.loads(item.raw) for item in elements(dumps([value, value]))] == [value, value]


@pytest.mark.parametrize("raw", ["", "no", "{}", "1", "[1", '["a\nb"]'])
def test_what_is_no_list_is_said(raw: str) -> None:
    with pytest.raises(NoJson):
        elements(raw)


def test_null_is_an_empty_list() -> None:
    assert elements(" null ") == []


def test_an_item_may_be_a_number_that_no_float_holds() -> None:
    assert [item.text for item in elements("[1e400, -1E999, 1.0]")] == ["1e400", "-1E999", "1.0"]
    assert gathered(["[1e400]", "[1]"]) == '["[1e400]","[1]"]'


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"a\xe2\x82z", "a\ufffd\ufffdz"),
        (b"\xff\xfe\xf0\x9f\x98z", "\ufffd" * 5 + "z"),
        ("é\r\n".encode(), "é\r\n"),
    ],
)
def test_each_byte_that_is_no_utf_8_is_a_sign_of_its_own(content: bytes, text: str) -> None:
    assert decoded(content) == text


@pytest.mark.parametrize(
    ("text", "survives"),
    [
        ("é \n\t\r\b\f\u2028\u200b", True),
        ("\\a \\x1b \\U", True),
        ("\x1b[31m", False),
        ("\x7f", False),
        ("\a", False),
        ("\v", False),
        ("\0", False),
        ("\U000e0067", False),
        ("😀", True),
    ],
)
def test_signs_that_argo_cannot_hand_on(text: str, survives: bool) -> None:
    assert survives_quoting(text) is survives
    try:
        assert json.loads(quoted(text)) == text
    except json.JSONDecodeError:
        assert not survives
