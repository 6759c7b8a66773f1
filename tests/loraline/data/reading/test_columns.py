"""Templates of a registry: each place says what its column says, or the row is refused."""

from __future__ import annotations

import datetime
import decimal
from typing import Any

import pytest

from loraline.data.checks import BadRow
from loraline.data.reading import formats
from loraline.data.reading.formats import Reading

CHOICES = {"question": "{question}\n{choices}", "answer": "{choices[key]}"}


def turns(row: dict[str, Any], columns: dict[str, str]) -> list[str]:
    return [text for _, text in formats.draft(row, Reading(None, columns=columns)).turns]


@pytest.mark.parametrize("key", ["B", "b", "(B)", "B.", "b)", "east", 1, 1.0, "1", " B "], ids=repr)
def test_a_choice_is_named_by_letter_text_or_number(key: object) -> None:
    row = {"question": "Where?", "choices": ["west", "east"], "key": key}
    assert turns(row, CHOICES) == ["Where?\nA. west\nB. east", "east"]


@pytest.mark.parametrize("key", [True, [1], 2, -1, 1.5, "C", "north", "1.0"], ids=repr)
def test_what_names_no_choice_is_refused(key: object) -> None:
    row = {"question": "Where?", "choices": ["west", "east"], "key": key}
    with pytest.raises(BadRow, match="is none of 2 choices"):
        turns(row, CHOICES)


@pytest.mark.parametrize("key", [None, float("nan")], ids=repr)
def test_an_answer_that_is_left_empty_is_no_choice(key: object) -> None:
    row = {"question": "Where?", "choices": ["west", "east"], "key": key}
    with pytest.raises(BadRow, match="key is empty") as bad:
        turns(row, CHOICES)
    assert bad.value.check == "empty"


@pytest.mark.parametrize(
    "choices",
    [
        ["A. west", "B. east"],
        ["A) west", "B)east"],
        ["(A) west", "(B) east"],
        {"A": "west", "B": "east"},
        {"text": ["west", "east"], "label": ["A", "B"]},
        '["west", "east"]',
        "['west', 'east']",
        '{"A": "west", "B": "east"}',
    ],
    ids=str,
)
def test_choices_are_printed_with_their_letters_once(choices: object) -> None:
    row = {"question": "Where?", "choices": choices, "key": "B"}
    assert turns(row, CHOICES) == ["Where?\nA. west\nB. east", "east"]


@pytest.mark.parametrize(
    "choices", [["A. west", "C. east"], ["A.I.", "B.C."], ["A) west"]], ids=str
)
def test_letters_that_do_not_number_the_choices_are_text(choices: list[str]) -> None:
    row = {"question": "Where?", "choices": choices, "key": 0}
    assert turns(row, CHOICES)[1] == choices[0]


@pytest.mark.parametrize("empty", [None, "", float("nan")], ids=repr)
def test_an_empty_column_leaves_no_empty_lines_around_the_question(empty: object) -> None:
    row = {"question": "Where?", "context": empty, "answer": "Here."}
    assert turns(row, {"question": "{context}\n\n{question}"}) == ["Where?", "Here."]
    assert turns(row, {"question": "{question}\n\n{context}"}) == ["Where?", "Here."]


def test_an_empty_column_cuts_no_lines_off_the_others() -> None:
    row = {"question": "Where?\n", "context": None, "answer": "\n    Here.\n"}
    columns = {"question": "{context}\n{question}\n{context}", "answer": "{context}{answer}"}
    assert turns(row, columns) == ["Where?\n", "\n    Here.\n"]


def test_lines_of_a_filled_column_are_kept() -> None:
    row = {"question": "Where?", "context": "\n  low", "answer": "Here."}
    assert turns(row, {"question": "{context}\n{question}"})[0] == "\n  low\nWhere?"


@pytest.mark.parametrize(
    "value",
    [b"low", datetime.date(2026, 1, 2), decimal.Decimal("1.50"), float("inf")],
    ids=["bytes", "date", "decimal", "inf"],
)
def test_a_value_that_is_no_text_is_not_left_out_of_a_template(value: object) -> None:
    row = {"question": "Where?", "context": value, "answer": "Here."}
    with pytest.raises(BadRow, match=r"context is .*, which has no place in a template"):
        turns(row, {"question": "{context}\n\n{question}"})


def test_choices_as_numpy_writes_them_are_not_joined_to_one() -> None:
    row = {"question": "Where?", "choices": "['west' 'east']", "key": 0}
    with pytest.raises(BadRow, match="choices are not a list of up to 26 texts"):
        turns(row, CHOICES)


def test_a_text_that_is_json_stays_a_text_where_no_choices_are_meant() -> None:
    row = {"question": "Sum it up.", "context": '["west", "east"]', "answer": "Both."}
    columns = {"question": "{question}\n{context}"}
    assert turns(row, columns)[0] == 'Sum it up.\n["west", "east"]'


def test_a_column_that_stands_for_another_is_no_longer_itself() -> None:
    how = Reading(None, columns={"question": "image"})
    made = formats.draft({"image": "Where?", "answer": "Here."}, how)
    assert made.turns == [("user", "Where?"), ("assistant", "Here.")]
    assert made.images == []


def test_a_column_that_another_replaces_is_listed() -> None:
    how = Reading(None, columns={"question": "asked"})
    made = formats.draft({"asked": "Where?", "question": "When?", "answer": "Here."}, how)
    assert made.turns[0] == ("user", "Where?")
    assert "question" in made.listed


@pytest.mark.parametrize(
    ("columns", "own"),
    [
        ({"prompt": "ask", "completion": "reply"}, {"question": "Who?", "answer": "He."}),
        ({"answer": "reply", "query": "ask"}, {"question": "Who?", "solution": "He."}),
        ({"instruction": "ask", "output": "reply"}, {"question": "Who?", "response": "He."}),
    ],
)
def test_a_named_column_comes_before_a_rows_own_of_another_name(
    columns: dict[str, str], own: dict[str, str]
) -> None:
    row = {**own, "ask": "Where?", "reply": "Here."}
    made = formats.draft(row, Reading(None, columns, ignore=tuple(own)))
    assert made.turns == [("user", "Where?"), ("assistant", "Here.")]
    with pytest.raises(BadRow, match=f"'({'|'.join(own)})' would not be used"):
        formats.draft(row, Reading(None, columns))
