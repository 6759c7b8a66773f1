"""One training row: a conversation that ends with the answer, and the images it shows."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

IMAGE = "<image>"
"""Stands for one image in a user turn; images are taken in order."""

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Record:
    """A canonical row: (role, content) turns, the last one the answer, and encoded images."""

    messages: tuple[tuple[str, str], ...]
    images: tuple[bytes, ...] = ()

    @property
    def answer(self) -> str:
        return self.messages[-1][1]

    @property
    def question(self) -> str:
        """The last user turn as text."""
        return self.messages[-2][1]

    def prompt(self) -> list[dict[str, Any]]:
        """Turns before the answer, in the form that chat templates take."""
        return [
            {"role": role, "content": parts(content) if self.images else content}
            for role, content in self.messages[:-1]
        ]


def parts(content: str) -> list[dict[str, str]]:
    """A turn's text with image tags, as the list of parts that vision templates take."""
    found: list[dict[str, str]] = []
    for index, text in enumerate(content.split(IMAGE)):
        if index:
            found.append({"type": "image"})
        if text:
            found.append({"type": "text", "text": text})
    return found


def from_prompt(prompt: str, question: str, answer: str, image: bytes | None = None) -> Record:
    """One question or image asked with the prompt template; `{question}` is replaced."""
    text = prompt.replace("{question}", question)
    user = ("user", text if image is None else IMAGE + text)
    return Record((user, ("assistant", answer)), () if image is None else (image,))


def write(path: Path, records: Iterable[Record]) -> None:
    """Write rows as one Parquet shard."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema(
        {
            "messages": pa.list_(pa.struct({"role": pa.string(), "content": pa.string()})),
            "images": pa.list_(pa.binary()),
        }
    )
    rows = [
        {
            "messages": [{"role": role, "content": text} for role, text in record.messages],
            "images": list(record.images),
        }
        for record in records
    ]
    pq.write_table(pa.Table.from_pylist(rows, schema), path)


def read(path: Path) -> list[Record]:
    """Read the rows of one Parquet shard."""
    import pyarrow.parquet as pq

    return [
        Record(
            tuple((turn["role"], turn["content"]) for turn in row["messages"]),
            tuple(row["images"]),
        )
        for row in pq.read_table(path).to_pylist()
    ]
