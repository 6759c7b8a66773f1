"""The formats that datasets come in, recognised by their keys, and the one draft made of them.

Key names are those of OpenAI's chat format, ShareGPT, Alpaca, TRL, LLaMA-Factory, ms-swift, LLaVA
and the image folders of Hugging Face.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from loraline.data.checks import BadRow
from loraline.data.reading import calls, columns, conversations, transcripts
from loraline.data.reading.contents import text_alone
from loraline.data.reading.drafts import (
    Draft,
    add_media,
    images_in_text,
    place_tags,
    put_first,
    refuse_named_media,
)
from loraline.data.reading.keys import SETTINGS, filled, unused, unused_keys
from loraline.data.reading.layouts import (
    ANSWERS,
    CONVERSATIONS,
    FORMATS,
    QUESTION_COLUMNS,
    QUESTIONS,
    Layout,
    first_of,
    layout,
)
from loraline.data.reading.meanings import GOOD_HALF
from loraline.data.reading.preferences import CHOSEN, RANKED, REJECTED, good_half, labels_of
from loraline.data.reading.values import (
    LISTS_OF_ANSWERS,
    LONGEST_NOTHING,
    NOT_A_NUMBER,
    is_missing_value,
    is_written,
    listed,
    missing,
    only_text,
    python_value,
    structure,
    type_name,
    unpacked,
    written,
)
from loraline.errors import UserError
from loraline.records import Detail

LISTS = (*CONVERSATIONS, "history")
"""Columns that are lists, whose text may be one as Python writes it."""

NUMBERS = (bool, int, float)


@dataclass(frozen=True)
class Reading:
    """How rows are read: the prompt, and what the registry says of their source."""

    prompt: str | None
    """Template of questions, or the instruction that goes with each image."""

    columns: Mapping[str, str] = field(default_factory=dict)
    """Our name of a column to the source's name of it, or to a template of several."""

    columns_from: str = "`columns`"
    """Where the names were given, for messages."""

    group_by: str = "answer"
    ignore: Sequence[str] = ()
    """Columns that are left out on purpose."""

    preference: Literal["good"] | None = None
    """Whether the good half of preference data is learnt."""

    learn: Literal["all", "last"] = "all"
    """Answers of a conversation that are learnt."""

    turns: Mapping[str, str] = field(default_factory=dict)
    """Our names of a turn's keys and roles to the source's."""

    vision: bool = False
    """Whether text may name images in tags."""


def draft(raw: Any, reading: Reading) -> Draft:
    """Recognise a row's format and draft it; BadRow says what was expected and found.

    Raises LeftOut for a row that `preference: good` leaves out.
    """
    if not isinstance(raw, dict):
        raise BadRow("format", f"expected an object with named fields, found {type_name(raw)}")
    row = raw
    sources: set[str] = set()
    replaced: list[str] = []
    if reading.columns:
        row, sources, replaced = columns.renamed(raw, reading.columns, reading.columns_from)
    if reading.ignore:
        replaced += [key for key in reading.ignore if filled(row.get(key))]
        row = {key: value for key, value in row.items() if key not in reading.ignore}
    row_layout = layout(tuple(row))
    sides = [(key, row[key]) for key in row_layout.sides] if row_layout.sides else ()
    if absent := [key for key, value in sides if is_missing_value(value)]:
        replaced += absent
        row = {key: value for key, value in row.items() if key not in absent}
        row_layout = layout(tuple(row))
    if "chat" in row and (chat := transcripts.glaive(row)) is not None:
        row, sources = chat, sources | {"chat", "system"}
        row_layout = layout(tuple(row))
    for key in row_layout.cells:
        if isinstance(row[key], str):
            parsed = unpacked(row[key])
            if key in LISTS and row[key][:2] in ("[{", "[["):
                parsed = python_value(parsed)
            if parsed is not row[key] and is_structure(key, parsed):
                row = {**row, key: parsed}
    good = reading.preference == "good"
    if good:
        row = good_half(row)
        row_layout = layout(tuple(row))
    if (result := conversation(row, row_layout, reading)) is None:
        result = single(row, row_layout, reading, raw)
        if reading.learn == "last":
            # A history, or a question that is a dialogue, has answers of its own.
            conversations.learn_only_last(result.turns, result.details)
    for key in row_layout.systems:
        if (text := text_alone(row[key])) is not None:
            result.used.add(key)
            if text.strip():
                put_first(result, key, text)
    if reading.vision and not result.images:
        images_in_text(result)
    if result.format not in ("conversations", "messages"):
        place_tags(result)
    refuse_named_media(result)
    if reading.group_by not in ("answer", "row"):
        if not filled(group := row.get(reading.group_by, raw.get(reading.group_by))):
            raise BadRow("format", f"column {reading.group_by!r} of --group-by is missing or empty")
        # pandas makes floats of a column of numbers with a gap.
        if isinstance(group, float) and group.is_integer():
            group = int(group)
        result.group = str(group).strip()
        result.used.add(reading.group_by)
    for key in row_layout.tools:
        if filled(row[key]) and not result.tools:
            result.tools = calls.tools(row[key])
            result.used.add(key)
    if "objects" in row and isinstance(row["objects"], dict):
        result.objects = row["objects"]
        result.used.add("objects")
    result.used |= sources
    if good:
        labels = labels_of(row)
        result.listed += [*filter(lambda key: filled(row.get(key)), REJECTED), *labels]
        result.used.update(REJECTED, labels)
    if unread_keys := row.keys() - result.used:
        keys = sorted(unread_keys, key=str) if len(unread_keys) > 1 else unread_keys
        result.listed += unused_keys(
            row,
            keys,
            result.turns,
            row_layout.questions[:1],
            bool(result.images or result.videos),
        )
    if replaced:
        result.listed += replaced
    return result


def is_structure(key: str, parsed: Any) -> bool:
    """Whether JSON in a cell is what its column holds; a prompt may be a text that is JSON."""
    if key == "objects":
        return isinstance(parsed, dict)
    if not isinstance(parsed, list):
        return False
    if key in CONVERSATIONS or key == "history":
        return True
    return bool(parsed) and all(isinstance(turn, dict) and "role" in turn for turn in parsed)


def conversation(row: Mapping[str, Any], row_layout: Layout, reading: Reading) -> Draft | None:
    """A row that holds its turns as a list."""
    if not row_layout.conversations and "prompt" not in row:
        return None
    lists = {
        key: value for key in row_layout.conversations if type(value := listed(row[key])) is list
    }
    for key, turns in lists.items():
        if not turns and key == next(reversed(lists)):
            raise BadRow("format", f"{key} holds no turns")
        if turns:
            used, named = {key}, key
            break
    else:
        if isinstance(row.get("prompt"), list) and isinstance(row.get("completion"), list):
            turns = [*row["prompt"], *row["completion"]]
            used, named = {"prompt", "completion"}, "messages"
            if not turns:
                raise BadRow("format", "prompt and completion hold no turns")
        else:
            return None
    result = Draft("messages", [], used=used)
    add_media(result, row, row_layout)
    reader = conversations.TurnReader(reading.turns, reading.ignore, result.images, result.videos)
    reader.has_tools = any(filled(row[name]) for name in row_layout.tools)
    of_columns = [(media, len(media)) for media in (result.images, result.videos) if media]
    reader.read(turns)
    if any(len(media) > count for media, count in of_columns):
        raise BadRow(
            "tags", "its turns name media, and so does a column; say in one place what is shown"
        )
    result.format, result.turns, result.details = reader.format, reader.turns, reader.details
    result.shows = reader.parts.shows
    if reader.leftover.names:
        result.listed += [f"{named}[].{key}" for key in sorted(reader.leftover.names)]
    if reading.learn == "last":
        conversations.learn_only_last(result.turns, result.details)
    if result.details:
        conversations.cut_after_last_learnt(result.turns, result.details)
    if not result.turns:
        raise BadRow("format", "messages holds no turns with text")
    for role, text in result.turns:
        if len(text) <= LONGEST_NOTHING and text in NOT_A_NUMBER and role != "tool":
            result.missing = missing(f"the {role} turn", text)
    return result


def single(
    row: Mapping[str, Any], row_layout: Layout, reading: Reading, raw: Mapping[str, Any]
) -> Draft:
    """A row of one question or one instruction for its media, and the answer.

    `raw` is the row as its source has it, for messages.
    """
    result = Draft("pairs", [])
    add_media(result, row, row_layout)
    question_column = first_of(named_first(row_layout.questions, reading), row) or first_of(
        ("input",), row
    )
    if question_column:
        result.format = QUESTIONS.get(question_column, "question_answer")
    has_media = bool(result.images or result.videos)
    names = ANSWERS[result.format]
    if (
        question_column is None
        and len(filled_names := [name for name in names if filled(row.get(name))]) > 1
    ):
        raise BadRow(
            "format",
            f"{' and '.join(filled_names)} stand beside the image; say which asks, as in "
            f"columns: {{question: {filled_names[0]}}}",
        )
    answer_column = first_of(named_first(names, reading), row)
    if question_column and "tools" in row and filled(row["tools"]) and filled(row.get("answers")):
        return called(result, row, question_column)
    asked_text = written(row[question_column]) if question_column else ""
    answer = only_text(row[answer_column], answer_column) if answer_column else None
    if asked_text is None or answer is None or not (question_column or has_media):
        format_name = result.format if question_column or has_media else None
        if (column := nothing_in(row, format_name, question_column, answer_column)) is not None:
            raise BadRow("empty", f"{reading.columns.get(column, column)} is empty")
        raise columns.lacks_named_column(raw, reading.columns, reading.columns_from) or expected(
            row, format_name, question_column, answer_column
        )
    result.used.update((question_column, answer_column) if question_column else (answer_column,))  # type: ignore[arg-type]
    if answer_column and isinstance(row[answer_column], NUMBERS):
        result.number = f"{answer_column} is {type_name(row[answer_column])}, expected text"
    for column in filter(None, (question_column, answer_column)):
        if is_missing_value(row[column]):
            result.missing = missing(column, row[column])
    if filled(row.get("input")) and result.format in ("alpaca", "prompt_completion"):
        if (input_text := written(row["input"])) is None:
            raise BadRow("format", f"input is {type_name(row['input'])}, expected text")
        asked_text = f"{asked_text}\n{input_text}" if asked_text else input_text
        result.used.add("input")
    if before := transcripts.turns_of_dialogue_question(asked_text):
        result.turns = [*before, ("assistant", answer)]
    else:
        result.turns = [
            ("user", question(asked_text, question_column is not None, reading)),
            ("assistant", answer),
        ]
    if "history" not in row:
        return result
    history = row["history"] or []
    for pair in reversed(history if isinstance(history, list) else [history]):
        texts = [written(text) for text in pair] if isinstance(pair, list | tuple) else []
        if len(texts) != 2 or None in texts:
            raise BadRow("format", "history is not a list of questions with answers")
        result.turns[:0] = [("user", texts[0] or ""), ("assistant", texts[1] or "")]
    if history:
        result.used.add("history")
    return result


def named_first(names: Sequence[str], reading: Reading) -> Sequence[str]:
    """Columns of one use, those before the others that the registry gives a name."""
    return sorted(names, key=lambda name: name not in reading.columns) if reading.columns else names


def called(result: Draft, row: Mapping[str, Any], key: str) -> Draft:
    """A question whose answers are calls of the row's tools, as xLAM's sets have them."""
    if (asked_text := written(row[key])) is None:
        raise BadRow("format", f"{key} is {type_name(row[key])}, expected text")
    result.turns = [("user", asked_text), ("assistant", "")]
    result.details = {1: Detail(calls=conversations.encoded(calls.Calls().parsed(row["answers"])))}
    result.used |= {key, "answers"}
    return result


def question(asked_text: str, has_column: bool, reading: Reading) -> str:
    """The user turn of a row: its question in the prompt, or the prompt alone."""
    if not has_column:
        if reading.prompt is None:
            raise UserError(
                "prompt.txt is missing: it holds the instruction that goes with each image; "
                "put it beside the data, or give --prompt"
            )
        return reading.prompt.replace("{question}", "")
    if reading.prompt is not None and "{question}" not in reading.prompt:
        raise UserError("the prompt must contain {question}, the place of the row's question")
    return (reading.prompt or "{question}").replace("{question}", asked_text)


def expected(
    row: Mapping[str, Any],
    format_name: str | None,
    question_column: str | None,
    answer_column: str | None,
) -> BadRow:
    """What a row that fits no format should hold, and what it holds."""
    if preferred := next((column for column in CHOSEN if filled(row.get(column))), None):
        return unused(preferred, GOOD_HALF)
    for column in (question_column, answer_column):
        value = row[column] if column else None
        value = structure(value) if column in LISTS_OF_ANSWERS else value
        if column and filled(value) and written(value) is None:
            remedy = ""
            if column == answer_column and isinstance(value, list) and all(map(is_written, value)):
                remedy = (
                    f'; {SETTINGS}, columns: {{{column}: "{{{column}[0]}}"}} takes the first '
                    f'and "{{{column}:lines}}" all'
                )
            return BadRow("format", f"{column} is {type_name(value)}, expected text{remedy}")
    if ranked := next((column for column in RANKED if isinstance(row.get(column), list)), None):
        return unused(ranked, GOOD_HALF)
    for column in CONVERSATIONS:
        if not question_column and filled(row.get(column)):
            return BadRow(
                "format", f"{column} is {type_name(row[column])}, expected a list of turns"
            )
    names = [str(column)[:30] for column in row if filled(row[column])]
    listed_names = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
    formats = FORMATS[format_name] if format_name else "; ".join(FORMATS.values())
    return BadRow(
        "format",
        f"expected strings {formats}, found {listed_names or 'nothing'}; other names: "
        "prepare.columns in the recipe, or columns in datasets.yaml",
    )


def nothing_in(
    row: Mapping[str, Any],
    format_name: str | None,
    question_column: str | None,
    answer_column: str | None,
) -> str | None:
    """A column of the question, the answer or the turns that a row has, and that holds nothing.

    None where the row lacks such a column.
    """
    if format_name is None:
        question_columns = [column for column in (*QUESTION_COLUMNS, "input") if column in row]
        if not question_columns:
            return next((column for column in CONVERSATIONS if row.get(column, 0) is None), None)
        format_name = QUESTIONS.get(question_columns[0], "question_answer")
    else:
        question_columns = [question_column] if question_column else []
    answers = (
        [answer_column] if answer_column else [each for each in ANSWERS[format_name] if each in row]
    )
    sides = (*question_columns[:1], *answers[:1]) if answers else ()
    return next((column for column in sides if not filled(row[column])), None)
