"""Facts about rows, as arrays: what splits, comparisons and the report need of all rows."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

from loraline.data import checks
from loraline.records import SPLITS, Record

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from loraline.data.work import Candidate

FLAGS = list(checks.CHECKS)
"""Checks by their bit in a row's flags."""


def normalised(row: Record) -> str:
    """A row's text without regard to case and spaces."""
    texts = [content for _, content in row.messages]
    if row.details or row.tools:
        texts += beyond_texts(row)
    text = " ".join(texts).casefold()
    # A text that prints has no other spaces, and mostly none to take away.
    if text.isprintable() and "  " not in text and text.strip(" ") == text:
        return text
    return " ".join(text.split())


def turn_ends(row: Record) -> bytes:
    """Where turns end in the row's text, counted in words: other turns of one text are no
    repetition."""
    return str([len(content.split()) for _, content in row.messages]).encode()


def beyond_texts(row: Record) -> list[str]:
    """What a row holds beside its texts and media: tools, calls, and which turns are learnt."""
    return [row.tools, *(f"{number} {list(detail)}" for number, detail in row.details.items())]


def answer_of(row: Record) -> str:
    """A row's answer with its calls."""
    detail = row.details.get(len(row.messages) - 1)
    return row.answer + detail.calls if detail else row.answer


def facts_of(
    rows: Sequence[Candidate],
    texts: Sequence[str],
    tokens: Sequence[tuple[int, int]],
    named: str | None,
    source: int,
    group_by: str,
) -> dict[str, NDArray[Any]]:
    """What the merge needs to know of each row, as arrays with an entry a row or a medium.

    `named` is the split that their file names, and `source` the number of their source.
    """
    import numpy as np
    import orjson

    digests = [
        hashlib.sha256(
            orjson.dumps(
                [
                    row.record.messages,
                    [medium.sha.hex() for medium in row.media],
                    *(beyond_texts(row.record) if row.record.details or row.record.tools else ()),
                ]
            )
        ).digest()
        for row in rows
    ]
    shas = [b"".join(medium.sha for medium in row.media) for row in rows]
    keys = [
        hashlib.sha256(text.encode() + b"\0" + turn_ends(row.record) + sha).digest()
        for row, text, sha in zip(rows, texts, shas, strict=True)
    ]
    if group_by == "answer":
        groups = [hashlib.sha256(answer_of(row.record).encode()).digest() for row in rows]
    elif group_by == "row":
        groups = digests
    else:
        groups = [
            hashlib.sha256((row.draft.group or "").encode("utf-8", "replace")).digest()
            for row in rows
        ]
    media = list(chain.from_iterable(row.media for row in rows))
    split = SPLITS.index(named) if named else -1
    return {
        "digest": np.frombuffer(b"".join(digests), np.uint8).reshape(-1, 32),
        "key": first_eight(keys),
        "group": first_eight(groups),
        "pick": np.array([row.pick for row in rows], np.uint64),
        "tokens": np.array([row for row, _ in tokens], np.int32),
        "answer": np.array([answer for _, answer in tokens], np.int32),
        "number": np.array([row.number for row in rows], np.int32),
        "line": np.array([row.line for row in rows], np.int32),
        "turns": np.array([len(row.record.messages) for row in rows], np.int16),
        "flags": np.array([flags_of(row.flagged) for row in rows], np.uint32),
        "split": np.full(len(rows), split, np.int8),
        "source": np.full(len(rows), source, np.int16),
        "media_row": np.repeat(np.arange(len(rows)), [len(row.media) for row in rows]),
        "media_sha": first_eight([medium.sha for medium in media]),
        "media_near": np.array([medium.near for medium in media], np.uint64),
        "media_pixels": np.array([medium.height * medium.width for medium in media], np.int64),
    }


def flags_of(names: Sequence[str]) -> int:
    """A bit for each check that is named."""
    flags = 0
    for check in names:
        flags |= 1 << FLAGS.index(check)
    return flags


def first_eight(digests: Sequence[bytes]) -> NDArray[Any]:
    """The first eight bytes of each digest, as uint64."""
    import numpy as np

    joined = b"".join(digest[:8] for digest in digests)
    return np.frombuffer(joined, ">u8").astype(np.uint64)


def join(groups: Sequence[dict[str, NDArray[Any]]]) -> dict[str, NDArray[Any]]:
    """Facts of neighbouring groups of rows as one; rows of media are counted on."""
    import numpy as np

    groups = groups or [facts_of([], [], [], None, 0, "row")]
    starts = np.cumsum([0, *(len(group["key"]) for group in groups)])
    return {
        name: np.concatenate(
            [
                group[name] + start if name == "media_row" else group[name]
                for group, start in zip(groups, starts, strict=False)
            ]
        )
        for name in groups[0]
    }
