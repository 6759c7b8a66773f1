"""The good half of preference data: what a label says is read, and nothing else is learnt."""

from __future__ import annotations

from typing import Any

import pytest

from loraline.data.checks import BadRow
from loraline.data.reading import formats
from loraline.data.reading.formats import Reading
from loraline.data.reading.preferences import LeftOut

LABELS = (
    "label",
    "kto_tag",
    "is_good",
    "is_chosen",
    "is_preferred",
    "is_correct",
    "desirable",
    "thumbs_up",
    "upvoted",
    "human_label",
    "verdict",
)
GOOD = Reading(None, preference="good")
ROW = {"prompt": "Where?", "completion": "Here."}
TURNS = [("user", "Where?"), ("assistant", "Here.")]


def answer(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


ASKED = {"role": "user", "content": "Where?"}


@pytest.mark.parametrize("key", LABELS)
@pytest.mark.parametrize("value", [True, 1, 1.0, "true", "TRUE", "1", "good"], ids=repr)
def test_a_good_answer_is_learnt(key: str, value: object) -> None:
    made = formats.draft({**ROW, key: value}, GOOD)
    assert made.turns == TURNS
    assert made.listed == [key]


@pytest.mark.parametrize("key", LABELS)
@pytest.mark.parametrize("value", [False, 0, 0.0, -1, "False", "FALSE", "0", "bad"], ids=repr)
def test_a_bad_answer_is_left_out(key: str, value: object) -> None:
    with pytest.raises(LeftOut):
        formats.draft({**ROW, key: value}, GOOD)


@pytest.mark.parametrize("value", [2, 0.5, "toxic", [1]], ids=repr)
def test_a_label_that_says_neither_is_refused(value: object) -> None:
    with pytest.raises(BadRow, match=r"'label' would not be used.* is neither good nor bad") as bad:
        formats.draft({**ROW, "label": value}, GOOD)
    assert bad.value.check == "unused"


@pytest.mark.parametrize(
    ("prompt", "chosen"),
    [
        ("Where?", [answer("Here.")]),
        ("Where?", [ASKED, answer("Here.")]),
        (" Where?\n", [ASKED, answer("Here.")]),
        ([ASKED], [answer("Here.")]),
        ([ASKED], [ASKED, answer("Here.")]),
        (None, [ASKED, answer("Here.")]),
        ("", [ASKED, answer("Here.")]),
        ("Where?", "Here."),
    ],
)
def test_a_prompt_stands_once_before_the_chosen_answer(prompt: object, chosen: object) -> None:
    row: dict[str, Any] = {"prompt": prompt, "chosen": chosen, "rejected": "There."}
    assert formats.draft(row, GOOD).turns == TURNS


def test_a_prompt_that_the_chosen_turns_do_not_ask_is_refused() -> None:
    row = {"prompt": "Who?", "chosen": [ASKED, answer("Here.")], "rejected": []}
    with pytest.raises(BadRow, match=r"'prompt' would not be used.*chosen asks something else"):
        formats.draft(row, GOOD)


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ([{"text": "There.", "score": 1}, {"text": "Here.", "score": 2.5}], "Here."),
        ([{"text": "Here.", "rank": 1}, {"text": "There.", "rank": 2}], "Here."),
        (["Here.", "There."], "Here."),
    ],
)
def test_the_best_of_several_answers_is_learnt(answers: list[Any], expected: str) -> None:
    made = formats.draft({"prompt": "Where?", "answers": answers}, GOOD)
    assert made.turns[-1] == ("assistant", expected)


@pytest.mark.parametrize("score", [float("nan"), None, True, "9"], ids=repr)
def test_a_score_that_is_no_number_ranks_nothing(score: object) -> None:
    answers = [{"text": "There.", "score": score}, {"text": "Here.", "score": 1}]
    with pytest.raises(BadRow, match="'answers' would not be used"):
        formats.draft({"prompt": "Where?", "answers": answers}, GOOD)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("scores", [1, 9]),
        ("rankings", [2, 1]),
        ("reward_scores", [0.1, 0.9]),
        ("best", 1),
        ("chosen_index", 1),
        ("better_response_id", 1),
        ("winner", "b"),
    ],
)
def test_the_first_of_several_answers_is_not_taken_where_a_column_says_another_is_best(
    key: str, value: object
) -> None:
    row = {"prompt": "Where?", "responses": ["There.", "Here."]}
    assert formats.draft(row, GOOD).turns[-1] == ("assistant", "There.")
    with pytest.raises(BadRow, match=f"'{key}' would not be used"):
        formats.draft({**row, key: value}, GOOD)
    left_out = Reading(None, preference="good", ignore=(key,))
    assert formats.draft({**row, key: value}, left_out).turns[-1] == ("assistant", "There.")
