"""Meanings of keys that no format uses: none is left unused in silence.

A key is used by the row's format, or listed in the report as not used, or refused by the check
`unused` since elsewhere it carries what the row is about.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from loraline.data.checks import BadRow
from loraline.data.reading.meanings import (
    BOXES,
    MEDIA,
    has_no_effect,
    holds_a_sound,
    holds_media,
    is_a_box,
    is_another_answer,
    is_of_a_turn,
    meaning,
    names_media,
    names_sound,
)

HARMLESS = frozenset(
    [
        "id",
        "ids",
        "_id",
        "idx",
        "index",
        "uid",
        "uuid",
        "guid",
        "hash",
        "key",
        "qid",
        "question_id",
        "prompt_id",
        "sample_id",
        "conversation_id",
        "message_id",
        "parent_id",
        "source",
        "sources",
        "dataset",
        "dataset_name",
        "origin",
        "url",
        "urls",
        "link",
        "license",
        "licence",
        "lang",
        "language",
        "locale",
        "category",
        "categories",
        "domain",
        "task",
        "tasks",
        "task_name",
        "task_type",
        "type",
        "subject",
        "topic",
        "full_topic",
        "tags",
        "difficulty",
        "level",
        "split",
        "model",
        "model_name",
        "generator",
        "date",
        "created",
        "created_at",
        "timestamp",
        "time",
        "author",
        "user_id",
        "meta",
        "metadata",
        "info",
        "version",
        "turn",
        "num_turns",
        "tokens",
        "token_count",
        "num_tokens",
        "length",
        "height",
        "width",
        "md5",
        "sha256",
    ]
)
"""Keys about a row's origin and properties, on which the answer does not depend."""

SETTINGS = "under prepare in the recipe, or in datasets.yaml"
"""Where it is said how rows are read."""

REPEATS = frozenset(
    [
        "instruction",
        "prompt",
        "query",
        "question",
        "input",
        "text",
        "caption",
        "completion",
        "output",
        "response",
        "answer",
        "answers",
        "system",
        "system_prompt",
        "messages",
        "conversations",
        "conversation",
        "problem",
        "solution",
        "inputs",
        "target",
        "targets",
        "content",
        "value",
    ]
)
"""Keys of other formats. They are harmless only if they repeat a text of the row."""

OF_ANSWERS = frozenset(
    ["completion", "output", "response", "answer", "answers", "solution", "target", "targets"]
)
"""Those of them that hold an answer."""

ENDS = " \t\r\n.!}$"
"""Characters that may follow a result at the end of an answer."""


def filled(value: Any) -> bool:
    """Whether a cell holds a value; pandas writes NaN for none."""
    if isinstance(value, float) and value != value:
        return False
    return value is not None and value != "" and value != [] and value != {}


def unused_keys(
    row: Mapping[str, Any],
    keys: Iterable[str],
    turns: Sequence[tuple[str, str]],
    question_column: Sequence[str],
    has_media: bool = False,
) -> list[str]:
    """Those of some keys of a row that are filled, for the report: the row's format has no use.

    Raises BadRow of the check `unused` for one that carries meaning elsewhere, and of `modality`
    for sounds. `question_column` is the column of the question, if there is one; `has_media` says
    that the row has media.
    """
    listed = []
    for key in keys:
        value = row[key]
        if value is None or value == "" or not filled(value):
            continue
        name = str(key)
        listed.append(name)
        if name in HARMLESS or has_no_effect(name, value):
            continue
        is_number = isinstance(value, int | float)
        if (names_sound(name) and not is_number) or holds_a_sound(value):
            raise BadRow("modality", f"holds {name}, and no base here hears")
        remedy = meaning(name)
        if remedy == MEDIA and is_number:
            continue
        if remedy is None and not has_media and (names_media(name) or holds_media(value)):
            remedy = MEDIA
        if remedy is None and has_media and is_a_box(name):
            remedy = BOXES
        if remedy is not None:
            raise unused(name, remedy.format(key=name, asked=[*question_column, "question"][0]))
        if (name in REPEATS or is_another_answer(name)) and not repeats(name, value, turns):
            raise unused(name, f"columns: {{answer: {name}}} or so says what it is")
    return listed


def repeats(name: str, value: Any, turns: Sequence[tuple[str, str]]) -> bool:
    """Whether a text only repeats a turn, or writes out the last two turns.

    What is called an answer has to end one.
    """
    if not isinstance(value, str):
        return not turns
    text = value.strip()
    if all(turn_text.strip() in text for _, turn_text in turns[-2:]):
        return True
    if name in OF_ANSWERS or is_another_answer(name):
        answers = [turn_text.rstrip(ENDS) for role, turn_text in turns if role == "assistant"]
        return any(turn_text.endswith(text.rstrip(ENDS)) for turn_text in answers)
    return any(text in turn_text.strip() for _, turn_text in turns)


def unused(key: str, remedy: str = "", why: str = "") -> BadRow:
    """A key that carries meaning and has no use, with a line of a registry that gives it one."""
    remedy = f"{remedy}, and " if remedy else ""
    because = f" ({why})" if why else ""
    return BadRow(
        "unused",
        f"{key[:40]!r} would not be used; {SETTINGS}, {remedy}ignore: [{key[:40]}] "
        f"leaves it out{because}",
    )


class Leftover:
    """Keys of a conversation's turns that nothing reads; `ignore` are those that nothing has to."""

    def __init__(self, ignore: Sequence[str]) -> None:
        self.ignore = ignore
        self.names: set[str] = set()
        """Those that are filled; the report lists them."""

    def add(self, key: str, value: Any) -> None:
        """Note a key of a turn that is not used; BadRow where it carries meaning elsewhere."""
        if not filled(value):
            return
        if key in self.ignore:
            self.names.add(key)
            return
        if names_sound(key) or holds_a_sound(value):
            raise BadRow("modality", f"a turn holds {key}, and no base here hears")
        if not has_no_effect(key, value) and (
            meaning(key) is not None
            or is_of_a_turn(key)
            or names_media(key)
            or key in REPEATS
            or holds_media(value)
        ):
            raise unused(key, why="nothing reads it in such a turn")
        self.names.add(key)
