"""Preference data: the half that was preferred, as a row to be learnt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from loraline.data.reading.keys import filled, unused
from loraline.data.reading.layouts import (
    ANSWERS,
    CONVERSATIONS,
    QUESTION_COLUMNS,
    QUESTIONS,
    first_of,
)
from loraline.data.reading.meanings import is_a_label, is_poor, words_of
from loraline.data.reading.transcripts import dialogue
from loraline.data.reading.values import objects, unpacked

REJECTED = [
    "rejected",
    "reject",
    "rejected_response",
    "rejected_messages",
    "rejected_images",
    "rejected_output",
    "response_rejected",
    "non_preferred_output",
    "margin",
    "score_chosen",
    "score_rejected",
]
"""Columns of preference data that tell of the half that is not learnt."""

CHOSEN = ("chosen", "chosen_response", "response_chosen", "preferred_output", "accepted", "accept")
"""Names of the answer that was preferred."""

RANKED = ("output", "completions", "responses", "answers")
"""Columns that list several answers to one question."""

SCORES = ("overall_score", "score", "rating", "reward")
"""Keys of an answer that are higher for a better one."""

RANKS = ("rank", "ranking")
"""Keys of an answer that are lower for a better one."""

ORDER = frozenset(
    [
        "score",
        "scores",
        "rating",
        "ratings",
        "reward",
        "rewards",
        "rank",
        "ranks",
        "ranking",
        "rankings",
    ]
)
CHOICE = frozenset(["best", "better", "chosen", "preferred", "winner", "selected"])
"""Words of columns that put several answers in an order, and that name one of them."""

GOOD, BAD = (
    ("true", "1", "good", "yes", "desirable", "up", "positive"),
    ("false", "0", "-1", "bad", "no", "undesirable", "down", "negative"),
)
"""Labels of a good and of a bad answer."""


class LeftOut(Exception):
    """A row of preference data that holds nothing good."""


def good_half(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of preference data as one of the answer that was preferred."""
    row = dict(row)
    if any(not is_good(key, row[key]) for key in labels_of(row)):
        raise LeftOut
    if isinstance(cell := row.get("input"), dict) and isinstance(cell.get("messages"), list):
        # OpenAI's form keeps the conversation and the tools under `input`.
        row |= {"prompt": cell["messages"], "tools": cell.get("tools")}
        del row["input"]
    name = next((key for key in CHOSEN if filled(row.get(key))), None)
    if name and name != "chosen":
        row["chosen"] = row.pop(name)
    chosen = row.get("chosen")
    if (
        isinstance(chosen, str)
        and (turns := dialogue(chosen))
        and first_of(QUESTION_COLUMNS, row) is None
    ):
        chosen = row["chosen"] = turns
    if isinstance(chosen, dict) and isinstance(prompt_turns := turns_of(row), list):
        row["messages"] = [*prompt_turns, row.pop("chosen")]
        row.pop("conversations", None)
    elif isinstance(chosen, list):
        row["messages"] = after_prompt(row.pop("prompt", None), chosen)
        del row["chosen"]
    elif isinstance(chosen, str):
        row[answer_column(row)] = row.pop("chosen")
    elif chosen is None:
        ranked = next((key for key in RANKED if isinstance(row.get(key), list)), None)
        if ranked:
            answers = row.pop(ranked)
            if all(isinstance(answer, str) for answer in answers):
                refuse_other_order(row, ranked, len(answers))
            row[answer_column(row)] = best(answers, ranked)
    return row


def refuse_other_order(row: Mapping[str, Any], name: str, count: int) -> None:
    """Raise BadRow for a column that says which of `count` texts is the best: it may not be the
    first."""
    for key, value in row.items():
        words = words_of(str(key))
        is_order = isinstance(value, list) and len(value) == count and bool(words & ORDER)
        if filled(value) and (is_order or words & CHOICE):
            raise unused(str(key), f'columns: {{answer: "{{{name}[0]}}"}} takes the first')


def labels_of(row: Mapping[str, Any]) -> list[str]:
    """Columns of a row that say whether its answer is a good one."""
    return [
        key
        for key, value in row.items()
        if filled(value) and is_a_label(str(key)) and key not in CHOSEN
    ]


def is_good(key: str, value: Any) -> bool:
    """Whether a label calls its answer a good one; BadRow where it says something else."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    label = str(value).strip().lower()
    if label not in GOOD + BAD:
        raise unused(key, why=f"{label[:20]!r} is neither good nor bad")
    return (label in GOOD) != is_poor(key)


def after_prompt(prompt: Any, chosen: list[Any]) -> list[Any]:
    """The turns of the preferred half with the prompt before them, which they may repeat.

    Raises BadRow where they begin with another question than the prompt.
    """
    if prompt is None or prompt == "":
        return chosen
    if isinstance(prompt, list):
        return chosen if chosen[: len(prompt)] == prompt else [*prompt, *chosen]
    texts = [turn.get("content", turn.get("value")) for turn in chosen if isinstance(turn, dict)]
    if len(texts) == 1:
        return [{"role": "user", "content": prompt}, *chosen]
    if isinstance(prompt, str) and prompt.strip() not in map(str.strip, map(str, texts)):
        raise unused("prompt", why="chosen asks something else")
    return chosen


def answer_column(row: Mapping[str, Any]) -> str:
    """The name of the answer that goes with a row's question."""
    question_key = first_of(QUESTION_COLUMNS, row)
    return ANSWERS[QUESTIONS.get(question_key, "question_answer") if question_key else "pairs"][0]


def turns_of(row: Mapping[str, Any]) -> list[Any] | None:
    """The list of turns of a row that holds one."""
    for key in CONVERSATIONS:
        if isinstance(row.get(key), list):
            return list(row[key])
    return None


def best(answers: Sequence[Any], name: str) -> Any:
    """The best of several answers: by their scores or ranks, or the first of a list of texts.

    Raises BadRow where the answers do not say which of them is the best.
    """
    if answers and all(
        isinstance(answer, str) and unpacked(answer) is answer for answer in answers
    ):
        return answers[0]
    listed = objects(list(answers), name)
    for keys, sign in ((SCORES, 1), (RANKS, -1)):
        for key in keys:
            values = [float(answer[key]) for answer in listed if is_number(answer.get(key))]
            if values and len(values) == len(listed):
                order = [sign * value for value in values]
                answer = listed[order.index(max(order))]
                return next(
                    (
                        answer[key]
                        for key in ("response", "text", "answer", "content", "output")
                        if isinstance(answer.get(key), str)
                    ),
                    None,
                )
    raise unused(name, f'columns: {{answer: "{{{name}[0]}}"}} takes the first')


def is_number(value: Any) -> bool:
    """Whether a score is one, and not a truth value or NaN."""
    return isinstance(value, int | float) and not isinstance(value, bool) and value == value
