import pytest

from loraline.client import Served

ROWS = [
    {"row": 0, "tuned": "b", "tuned_tokens": [1, 2], "base": "a", "base_tokens": [9]},
    {"row": 1, "tuned": "d", "tuned_tokens": [3], "base": "c", "base_tokens": [8, 7]},
]
TUNED = [[1, 2], [3]]
BASE = [[9], [8, 7]]


@pytest.fixture(scope="module")
def verify(script):
    return script("steps/verify_serving.py")


def served(*answers: list[int]) -> list[Served]:
    return [Served(tokens, str(tokens), [], 0.1) for tokens in answers]


def test_the_measured_answers_leave_nothing_to_say(verify) -> None:
    answers = {"tuned": served(*TUNED), "base": served(*BASE)}
    assert verify.other_answers(ROWS, answers, 1.0) == []
    assert verify.agreements(ROWS, answers) == {"tuned_agreement": 1.0, "base_agreement": 1.0}
    assert verify.differences(ROWS, answers) == []


def test_the_first_answer_that_differs_is_told(verify) -> None:
    answers = {"tuned": served([1, 2], [4])}
    assert verify.other_answers(ROWS, answers, 0.5) == []
    told = verify.other_answers(ROWS, answers, 0.6)
    assert told == [
        "50% of the tuned answers are the measured ones, below 60%; row 1 first: measured 'd', "
        "served '[4]'"
    ]


def test_an_adapter_that_answers_as_its_base_has_no_effect(verify) -> None:
    answers = {"tuned": served(*BASE), "base": served(*BASE)}
    assert "so the adapter has no effect" in verify.other_answers(ROWS, answers, 0.0)[0]


@pytest.mark.parametrize(("tokens", "place"), [([1, 5], 1), ([5], 0), ([1], 1), ([1, 2, 3], 2)])
def test_the_first_other_token_is_found(verify, tokens: list[int], place: int) -> None:
    found = verify.differences(ROWS[:1], {"tuned": served(tokens)})
    assert found[0]["first_other_token"] == place
