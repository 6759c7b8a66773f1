import pytest

from loraline.errors import UserError
from loraline.records import from_prompt
from loraline.serving import agreement
from loraline.serving.client import Served

ROWS = [
    {"row": 0, "tuned": "b", "tuned_tokens": [1, 2], "base": "a", "base_tokens": [9]},
    {"row": 1, "tuned": "d", "tuned_tokens": [3], "base": "c", "base_tokens": [8, 7]},
]
TUNED = [[1, 2], [3]]
BASE = [[9], [8, 7]]


def served(*answers: list[int]) -> list[Served]:
    return [Served(tokens, str(tokens), [], 0.1) for tokens in answers]


TABLE = {
    "columns": ["row", "tuned", "tuned_tokens", "base", "base_tokens"],
    "data": [list(row.values()) for row in ROWS],
}


def test_a_table_of_all_held_out_rows_is_what_was_measured() -> None:
    records = [from_prompt("{question}", text, "") for text in "ab"]
    expected = [row | {"record": record} for row, record in zip(ROWS, records, strict=True)]
    assert agreement.measured_rows(TABLE, records) == expected


@pytest.mark.parametrize(
    "table",
    [
        {},
        [],
        None,
        TABLE | {"data": []},
        TABLE | {"data": TABLE["data"][:1]},
        TABLE | {"data": TABLE["data"][::-1]},
        TABLE | {"data": TABLE["data"] * 2},
        TABLE | {"data": [[0], [1]]},
        TABLE | {"columns": ["row", "tuned", "x", "base", "base_tokens"]},
        TABLE | {"data": [[0, "b", "1 2", "a", [9]], [1, "d", [3], "c", [8, 7]]]},
    ],
)
def test_a_table_of_less_or_other_rows_verifies_nothing(table: object) -> None:
    records = [from_prompt("{question}", text, "") for text in "ab"]
    with pytest.raises(UserError, match=r"what evaluate measured is not what is here"):
        agreement.measured_rows(table, records)


def test_the_measured_answers_leave_nothing_to_say() -> None:
    answers = {"tuned": served(*TUNED), "base": served(*BASE)}
    assert agreement.answer_problems(ROWS, answers, 1.0) == []
    assert agreement.agreements(ROWS, answers) == {
        "tuned_agreement": 1.0,
        "base_agreement": 1.0,
    }
    assert agreement.differences(ROWS, answers) == []


def test_the_first_answer_that_differs_is_told() -> None:
    answers = {"tuned": served([1, 2], [4])}
    assert agreement.answer_problems(ROWS, answers, 0.5) == []
    message = agreement.answer_problems(ROWS, answers, 0.6)
    assert message == [
        "50% of the tuned answers are the measured ones, below 60%; row 1 first: measured 'd', "
        "served '[4]'"
    ]


def test_an_adapter_that_answers_as_its_base_has_no_effect() -> None:
    answers = {"tuned": served(*BASE), "base": served(*BASE)}
    assert "so the adapter has no effect" in agreement.answer_problems(ROWS, answers, 0.0)[0]


def test_a_refused_row_is_told_unless_it_had_no_answer_when_measured() -> None:
    refused = Served([], "", [], 0.0, "http://127.0.0.1:8000 answers 400: too long")
    answers = {"tuned": [*served(TUNED[0]), refused], "base": [*served(BASE[0]), refused]}
    message = agreement.refusals(ROWS, answers)
    assert message[0].startswith("the server refuses 1 of 2 rows to tuned; row 1 first: http://")
    assert len(message) == 2
    assert agreement.differences(ROWS, answers)[0]["served"] == refused.refusal
    none = {"tuned": [refused] * 2, "base": [refused] * 2}
    assert not agreement.answer_problems(ROWS, none, 0)
    without = [row | {"tuned_tokens": [], "base_tokens": []} for row in ROWS]
    assert agreement.refusals(without, answers) == []


@pytest.mark.parametrize(("tokens", "place"), [([1, 5], 1), ([5], 0), ([1], 1), ([1, 2, 3], 2)])
def test_the_first_other_token_is_found(tokens: list[int], place: int) -> None:
    result = agreement.differences(ROWS[:1], {"tuned": served(tokens)})
    assert result[0]["first_other_token"] == place
