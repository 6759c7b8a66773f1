"""What the keys of a row mean that no format takes: nothing is left unused in silence.

A key is used by the row's format, or listed in the report as not used, or refused by the check
`unused` since elsewhere it carries what the row is about.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from loraline.data.checks import BadRow

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
        "image_id",
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
"""Where a row comes from and what it is like; the answer does not depend on it."""

IN_THE_QUESTION = 'columns: {{question: "{{{key}}}\\n\\n{{{asked}}}"}} asks with it'
CHOOSE = 'columns: {{question: "{{{asked}}}\\n{{{key}}}"}} asks with it'
GOOD_HALF = "preference: good learns the good half"
TURNS_ONLY = "nothing reads it, since it belongs to a turn"

MEANS: dict[str, str] = (
    dict.fromkeys(
        [
            "context",
            "contexts",
            "passage",
            "passages",
            "document",
            "documents",
            "paragraph",
            "article",
            "background",
            "story",
            "knowledge",
            "evidence",
            "hint",
            "lecture",
            "history",
        ],
        IN_THE_QUESTION,
    )
    | dict.fromkeys(["choices", "options", "A", "B", "C", "D", "E"], CHOOSE)
    | dict.fromkeys(
        [
            "chosen",
            "rejected",
            "label",
            "kto_tag",
            "accept",
            "accepted",
            "preference",
            "rejected_response",
            "rejected_messages",
            "rejected_images",
            "rejected_output",
        ],
        GOOD_HALF,
    )
    | dict.fromkeys(
        [
            "weight",
            "loss",
            "loss_weight",
            "loss_scale",
            "train",
            "training",
            "reasoning_content",
            "reasoning",
            "thinking",
            "tool_calls",
            "function_call",
            "refusal",
        ],
        TURNS_ONLY,
    )
    | dict.fromkeys(
        [
            "objects",
            "bbox",
            "bboxes",
            "boxes",
            "mask",
            "masks",
            "segmentation",
            "points",
            "keypoints",
        ],
        "boxes: pixels reads the boxes of `objects`",
    )
    | dict.fromkeys(
        [
            "image",
            "images",
            "file_name",
            "video",
            "videos",
            "images_path",
            "image_path",
            "video_path",
        ],
        "columns: {{image: {key}}} names the media",
    )
)
"""Keys that carry meaning elsewhere, each with what to do about it."""

SOUNDS = frozenset(["audio", "audios", "speech", "sound", "sounds", "input_audio", "wav"])
"""Keys of what no base here can hear."""

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
    ]
)
"""Keys of other formats. They often repeat what the row says already, and else say more."""

SWITCHES = frozenset(["weight", "loss", "loss_weight", "loss_scale", "train", "training"])


def filled(value: Any) -> bool:
    """Whether a column says anything in a row."""
    return value is not None and value != "" and value != [] and value != {}


def left_over(
    row: Mapping[str, Any],
    keys: Iterable[str],
    turns: Sequence[tuple[str, str]],
    asked: Sequence[str],
) -> list[str]:
    """Those of some keys of a row that are filled, for the report: the row's format has no use.

    Raises BadRow of the check `unused` for one that carries meaning elsewhere, and of `modality`
    for sounds. `asked` is the column of the question, if there is one.
    """
    listed = []
    for key in keys:
        value = row[key]
        if value is None or value == "" or not filled(value):
            continue
        name = str(key)
        listed.append(name)
        if name in HARMLESS:
            continue
        if name in SOUNDS:
            raise BadRow("modality", f"holds {name}, and no base here hears")
        if name in SWITCHES and value in (1, True):
            continue
        if name in MEANS:
            raise unused(name, MEANS[name].format(key=name, asked=[*asked, "question"][0]))
        if name in REPEATS and not repeats(value, [text for _, text in turns]):
            raise unused(name, "columns says what it is")
    return listed


def repeats(value: Any, texts: Sequence[str]) -> bool:
    """Whether a text says nothing that the turns do not say, or is all of them written out."""
    turns = [text.strip() for text in texts]
    if not isinstance(value, str):
        return not turns
    text = value.strip()
    return any(text in turn for turn in turns) or all(turn in text for turn in turns[-2:])


def unused(key: str, remedy: str) -> BadRow:
    return BadRow(
        "unused",
        f"{key[:40]!r} would not be used; in datasets.yaml, {remedy}, and ignore: [{key[:40]}] "
        "leaves it out",
    )
