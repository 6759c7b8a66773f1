"""One training row: a conversation that ends with the answer, and the media it shows."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import pyarrow as pa

IMAGE = "<image>"
"""Stands for one image in a user turn; images are taken in order."""

VIDEO = "<video>"
"""Stands for one video in a user turn; videos are taken in order."""

TAGS = re.compile(f"({IMAGE}|{VIDEO})")

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Video:
    """A decoded video: its sampled frames as encoded images, and how many of them make a second."""

    frames: tuple[bytes, ...]
    fps: float


class Detail(NamedTuple):
    """What a turn holds beside its text."""

    calls: str = ""
    """JSON list of an answer's calls: id, type and function, whose arguments are an object."""

    reasoning: str = ""
    """What an answer was reasoned out with, where the chat template puts it."""

    learnt: bool = True
    """Whether an answer is learnt, or context alone."""

    call: str = ""
    """ID of the call that a tool's turn is the result of."""

    name: str = ""
    """Name of the tool."""


@dataclass(frozen=True)
class Record:
    """A canonical row: (role, content) turns, the last one the answer, and encoded media."""

    messages: tuple[tuple[str, str], ...]
    images: tuple[bytes, ...] = ()
    videos: tuple[Video, ...] = ()
    tools: str = ""
    """JSON list of the tools that may be called."""

    details: Mapping[int, Detail] = field(default_factory=dict, hash=False)
    """By the number of its turn."""

    @property
    def answer(self) -> str:
        return self.messages[-1][1]

    @property
    def question(self) -> str:
        """The last user turn as text; results of tools may follow it."""
        return next(text for role, text in reversed(self.messages) if role == "user")

    @property
    def context(self) -> str:
        """What a reader needs to judge the answer: the question, or all turns before the answer."""
        before = self.messages[:-1]
        if len(before) == 1:
            return self.question
        return "\n".join(f"[{role}] {content}" for role, content in before)

    def until(self, turn: int) -> Record:
        """The conversation as it was when a turn was its answer."""
        messages = self.messages[: turn + 1]
        images = sum(text.count(IMAGE) for _, text in messages) if self.images else 0
        videos = sum(text.count(VIDEO) for _, text in messages) if self.videos else 0
        details = {number: detail for number, detail in self.details.items() if number <= turn}
        return Record(messages, self.images[:images], self.videos[:videos], self.tools, details)

    def prompt(self) -> list[dict[str, Any]]:
        """Turns before the answer, in the form that chat templates take."""
        has_media = bool(self.images or self.videos)
        turns: list[dict[str, Any]] = [
            {"role": role, "content": content_parts(content) if has_media else content}
            for role, content in self.messages[:-1]
        ]
        for number, detail in self.details.items():
            if number < len(turns):
                turns[number] |= template_keys(detail)
        return turns

    def answer_turn(self) -> dict[str, Any]:
        """The answer, in the form that chat templates take."""
        turn = {"role": "assistant", "content": self.answer}
        detail = self.details.get(len(self.messages) - 1)
        return turn | template_keys(detail) if detail else turn

    def tool_list(self) -> list[dict[str, Any]] | None:
        """The tools as chat templates take them; None if there are none."""
        return list(json.loads(self.tools)) if self.tools else None

    def learnt_turns(self) -> list[int]:
        """Numbers of the turns that are learnt, the last one among them."""
        return [
            number
            for number, (role, _) in enumerate(self.messages)
            if role == "assistant"
            and not (number in self.details and not self.details[number].learnt)
        ]


def template_keys(detail: Detail) -> dict[str, Any]:
    """Keys of a turn, as chat templates name them."""
    named = {
        "tool_calls": json.loads(detail.calls) if detail.calls else None,
        "reasoning_content": detail.reasoning,
        "tool_call_id": detail.call,
        "name": detail.name,
    }
    return {key: value for key, value in named.items() if value}


def content_parts(content: str) -> list[dict[str, str]]:
    """A turn's text with media tags, as the list of parts that vision templates take."""
    kinds = {IMAGE: {"type": "image"}, VIDEO: {"type": "video"}}
    return [
        dict(kinds.get(text) or {"type": "text", "text": text})
        for text in TAGS.split(content)
        if text
    ]


def from_prompt(prompt: str, question: str, answer: str, image: bytes | None = None) -> Record:
    """One question or image asked with the prompt template; `{question}` is replaced."""
    text = prompt.replace("{question}", question)
    user = ("user", text if image is None else IMAGE + text)
    return Record((user, ("assistant", answer)), () if image is None else (image,))


def schema() -> pa.Schema:
    """Columns of a shard; `tokens` is the row's length, answer included, null when unknown."""
    import pyarrow as pa

    video = pa.struct({"frames": pa.list_(pa.large_binary()), "fps": pa.float64()})
    turn = pa.struct(
        {
            "role": pa.string(),
            "content": pa.string(),
            "tool_calls": pa.string(),
            "reasoning_content": pa.string(),
            "tool_call_id": pa.string(),
            "name": pa.string(),
            "train": pa.bool_(),
        }
    )
    return pa.schema(
        {
            "messages": pa.list_(turn),
            "images": pa.list_(pa.large_binary()),
            "videos": pa.list_(video),
            "tools": pa.string(),
            "tokens": pa.int32(),
        }
    )


def batch(rows: Sequence[Record], tokens: Sequence[int | None] | None = None) -> pa.RecordBatch:
    """Rows as one Arrow batch, built from flat columns: ten times faster than row by row."""
    import pyarrow as pa

    turns = list(chain.from_iterable(row.messages for row in rows))
    videos = list(chain.from_iterable(row.videos for row in rows))
    messages = pa.StructArray.from_arrays(
        [
            pa.array([role for role, _ in turns], pa.string()),
            pa.array([content for _, content in turns], pa.string()),
            *detail_columns(rows, len(turns)),
        ],
        ["role", "content", "tool_calls", "reasoning_content", "tool_call_id", "name", "train"],
    )
    frames = list_column(
        [len(video.frames) for video in videos],
        pa.array(chain.from_iterable(video.frames for video in videos), pa.large_binary()),
    )
    video_structs = pa.StructArray.from_arrays(
        [frames, pa.array([video.fps for video in videos], pa.float64())], ["frames", "fps"]
    )
    images = pa.array(chain.from_iterable(row.images for row in rows), pa.large_binary())
    columns = [
        list_column([len(row.messages) for row in rows], messages),
        list_column([len(row.images) for row in rows], images),
        list_column([len(row.videos) for row in rows], video_structs),
        pa.array([row.tools or None for row in rows], pa.string()),
        pa.array(tokens or [None] * len(rows), pa.int32()),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=schema())


def detail_columns(rows: Sequence[Record], turns: int) -> list[Any]:
    """What turns hold beside their text, a column a field; null where a turn holds nothing."""
    import pyarrow as pa

    types = [*[pa.string()] * 4, pa.bool_()]
    if not any(row.details for row in rows):
        return [pa.nulls(turns, column) for column in types]
    details = [row.details.get(turn) for row in rows for turn in range(len(row.messages))]
    columns = [
        [getattr(detail, name) or None if detail else None for detail in details]
        for name in ("calls", "reasoning", "call", "name")
    ]
    learnt = [False if detail and not detail.learnt else None for detail in details]
    return [pa.array(column, of) for column, of in zip([*columns, learnt], types, strict=True)]


def list_column(sizes: list[int], values: Any) -> Any:
    """A list column from the sizes of its lists and their joined values."""
    import pyarrow as pa

    offsets = pa.array([0, *accumulate(sizes)], pa.int32())
    return pa.ListArray.from_arrays(offsets, values)


def write(path: Path, rows: Iterable[Record]) -> None:
    """Write rows as one Parquet shard."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_batches([batch(list(rows))]), path)


def iterate(path: Path) -> Iterator[Record]:
    """Rows of a split, one row group in memory at a time: `path` is a shard or a folder of them."""
    import pyarrow.parquet as pq

    for shard in sorted(path.glob("*.parquet")) if path.is_dir() else [path]:
        with pq.ParquetFile(shard) as file:
            for group in range(file.num_row_groups):
                yield from map(from_columns, file.read_row_group(group).to_pylist())


def read(path: Path) -> list[Record]:
    """All rows of a split."""
    return list(iterate(path))


def from_columns(row: dict[str, Any]) -> Record:
    """A row of a shard; those of earlier releases hold no details and no tools."""
    details = {
        number: Detail(
            turn["tool_calls"] or "",
            turn["reasoning_content"] or "",
            turn["train"] is not False,
            turn["tool_call_id"] or "",
            turn["name"] or "",
        )
        for number, turn in enumerate(row["messages"])
        if len(turn) > 2 and has_detail(turn)
    }
    return Record(
        tuple((turn["role"], turn["content"]) for turn in row["messages"]),
        tuple(row["images"]),
        tuple(Video(tuple(video["frames"]), video["fps"]) for video in row.get("videos") or ()),
        row.get("tools") or "",
        details,
    )


def has_detail(turn: Mapping[str, Any]) -> bool:
    """Whether a turn of a shard holds more than role and text."""
    return any(value is not None for key, value in turn.items() if key not in ("role", "content"))
