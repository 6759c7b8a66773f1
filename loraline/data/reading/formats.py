"""The formats that datasets come in, recognised by their keys, and the one draft made of them.

Key names are those of OpenAI's chat format, ShareGPT, Alpaca, TRL, ms-swift, LLaVA and the image
folders of Hugging Face.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from loraline.data.checks import BadRow
from loraline.errors import UserError
from loraline.records import IMAGE, TAGS, VIDEO

ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "system": "system",
}

FORMATS = {
    "messages": "messages",
    "conversations": "conversations",
    "alpaca": "instruction and output",
    "prompt_completion": "prompt and completion",
    "question_answer": "question and answer",
    "pairs": "file_name or image, and text",
}
"""Names of the formats, with the keys that a row of each must have."""

CONVERSATIONS = ("messages", "conversations", "conversation")
QUESTIONS = {"instruction": "alpaca", "prompt": "prompt_completion", "query": "prompt_completion"}
ASKED = ("question", *QUESTIONS)
ANSWERS = {
    "alpaca": ("output", "response"),
    "prompt_completion": ("completion", "response", "answer"),
    "question_answer": ("answer",),
    "pairs": ("text", "caption", "answer"),
}
IMAGES = ("images", "image", "file_name")
VIDEOS = ("videos", "video")

Media = str | bytes | Sequence[str]
"""A path inside the source or a data URI; the content itself; a video's frames as paths."""


@dataclass
class Draft:
    """A row in the making: turns with tags, and media that are not yet loaded."""

    format: str
    turns: list[tuple[str, str]]
    images: list[Media] = field(default_factory=list)
    videos: list[Media] = field(default_factory=list)
    group: str | None = None
    """Value of the column that keeps rows together in one split."""

    objects: Mapping[str, Any] | None = None
    """Boxes in a column of their own, for `<bbox>` placeholders."""


@dataclass(frozen=True)
class Reading:
    """How rows are read: the prompt, and the names that a source's columns go by."""

    prompt: str | None
    """Template of questions, or the instruction that goes with each image."""

    columns: Mapping[str, str] = field(default_factory=dict)
    """Our name of a column to the source's name of it."""

    group_by: str = "answer"


def draft(raw: Any, how: Reading) -> Draft:
    """Recognise a row's format and draft it; BadRow says what was expected and found."""
    if not isinstance(raw, dict):
        raise BadRow("format", f"expected an object with named fields, found {type(raw).__name__}")
    row = raw
    if how.columns:
        for own, source in how.columns.items():
            if own in raw and source not in raw:
                raise BadRow("format", f"has no column {source!r}, which `columns` names for {own}")
        named = {source: own for own, source in how.columns.items()}
        row = {named.get(key, key): value for key, value in raw.items()}
    made = conversation(row) or single(row, how)
    if made.format not in ("conversations", "messages"):
        place_tags(made)
    if how.group_by not in ("answer", "row"):
        if row.get(how.group_by) is None:
            raise BadRow("format", f"column {how.group_by!r} of --group-by is missing")
        made.group = str(row[how.group_by])
    if isinstance(row.get("objects"), dict):
        made.objects = row["objects"]
    return made


def conversation(row: Mapping[str, Any]) -> Draft | None:
    """A row that holds its turns as a list."""
    for key in CONVERSATIONS:
        turns = row.get(key)
        if isinstance(turns, list):
            if not turns:
                raise BadRow("format", f"{key} holds no turns")
            break
    else:
        if isinstance(row.get("prompt"), list) and isinstance(row.get("completion"), list):
            turns = [*row["prompt"], *row["completion"]]
        else:
            return None
    name = "conversations" if isinstance(turns[0], dict) and "from" in turns[0] else "messages"
    made = Draft(name, [], media(row, IMAGES), media(row, VIDEOS))
    for turn in turns:
        if not isinstance(turn, dict):
            raise BadRow("format", f"a turn of {name} is not an object")
        role = turn.get("role", turn.get("from"))
        if not isinstance(role, str) or role not in ROLES:
            raise BadRow("roles", f"unknown role {role!r}; accepted: {', '.join(ROLES)}")
        content = turn.get("content", turn.get("value"))
        if isinstance(content, list):
            content = from_parts(content, made)
        if not isinstance(content, str):
            raise BadRow("format", f"content of a {role} turn is not text")
        made.turns.append((ROLES[role], content))
    if isinstance(row.get("system"), str) and made.turns[0][0] != "system":
        made.turns.insert(0, ("system", row["system"]))
    return made


def from_parts(content: list[Any], made: Draft) -> str:
    """Text with tags of a turn written as a list of parts; media named in parts go to the draft."""
    text = ""
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text" and isinstance(part.get("text"), str):
            text += part["text"]
        elif kind in ("image", "image_url", "video", "video_url"):
            named = part.get(kind)
            named = named.get("url") if isinstance(named, dict) and "url" in named else named
            is_image = kind.startswith("image")
            text += IMAGE if is_image else VIDEO
            if named is not None:
                (made.images if is_image else made.videos).append(one(named))
        else:
            raise BadRow("format", f"a part of type {kind!r} is not text, image or video")
    return text


def single(row: Mapping[str, Any], how: Reading) -> Draft:
    """A row of one question or one instruction for its media, and the answer."""
    images, videos = media(row, IMAGES), media(row, VIDEOS)
    key = first_of(ASKED, row)
    name = QUESTIONS.get(key, "question_answer") if key else "pairs"
    answered = first_of(ANSWERS[name], row)
    asked, answer = row[key] if key else "", row[answered] if answered else None
    if not isinstance(asked, str) or not isinstance(answer, str) or not (key or images or videos):
        expected = FORMATS[name] if key or images or videos else "; ".join(FORMATS.values())
        raise BadRow(
            "format", f"expected strings {expected}, found {', '.join(map(str, row)) or 'nothing'}"
        )
    if name == "alpaca" and row.get("input"):
        asked = f"{asked}\n{row['input']}"
    if key is None:
        if how.prompt is None:
            raise UserError(
                "prompt.txt is missing: it holds the instruction that goes with each image; "
                "put it beside the data, or give --prompt"
            )
        text = how.prompt.replace("{question}", "")
    else:
        if how.prompt is not None and "{question}" not in how.prompt:
            raise UserError("the prompt must contain {question}, the place of the row's question")
        text = (how.prompt or "{question}").replace("{question}", asked)
    turns = [("user", text), ("assistant", answer.strip())]
    history = row.get("history") or []
    for pair in reversed(history if isinstance(history, list) else [history]):
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise BadRow("format", "history is not a list of questions with answers")
        turns[:0] = [("user", str(pair[0])), ("assistant", str(pair[1]))]
    if isinstance(row.get("system"), str) and row["system"]:
        turns.insert(0, ("system", row["system"]))
    return Draft(name, turns, images, videos)


def first_of(names: Sequence[str], row: Mapping[str, Any]) -> str | None:
    for name in names:
        if name in row:
            return name
    return None


def place_tags(made: Draft) -> None:
    """Put media before the question where these formats do not say where they go."""
    index = len(made.turns) - 2
    role, text = made.turns[index]
    if (made.images or made.videos) and not any(TAGS.search(turn) for _, turn in made.turns):
        made.turns[index] = (role, IMAGE * len(made.images) + VIDEO * len(made.videos) + text)


def media(row: Mapping[str, Any], names: Sequence[str]) -> list[Media]:
    """Media of a row's columns, one or several."""
    for name in names:
        found = row.get(name)
        if found is None or found == "" or found == []:
            continue
        return [one(item) for item in (found if isinstance(found, list | tuple) else [found])]
    return []


def one(item: Any) -> Media:
    """One medium, as text columns, Parquet columns of Hugging Face and message parts hold it."""
    if isinstance(item, dict):
        item = item.get("bytes") or item.get("path") or item.get("url")
    if isinstance(item, str | bytes) and item:
        return item
    if isinstance(item, list | tuple) and item and all(isinstance(name, str) for name in item):
        return list(item)
    raise BadRow("format", "an image or video is neither a path nor its content")
