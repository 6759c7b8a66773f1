"""Inputs and results of the workers of prepare_data."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from loraline.data.checks import Policy
from loraline.data.reading.drafts import Draft
from loraline.data.reading.media import Limits
from loraline.data.reading.sources import Source
from loraline.profiles.profile import Profile
from loraline.records import Record

EXAMPLES = 5
"""Rows of each check that are shown."""


@dataclass(frozen=True)
class Part:
    """A range of a data file: bytes of JSONL, row groups of Parquet, rows of Arrow, or all."""

    number: int
    source: int
    file: str
    split: str | None
    start: int = 0
    stop: int | None = None


@dataclass(frozen=True)
class Work:
    """All that a worker needs to know."""

    sources: tuple[Source, ...]
    parts: tuple[Part, ...]
    prompt: str | None
    group_by: str
    actions: Policy
    limits: Limits
    recipe: Profile
    tokenizer: Path | None
    """Folder with the base's tokenizer; None when it is out of reach."""

    boxes: str | None
    """Coordinates that boxes are converted to."""

    folder: Path

    def file(self, part: Part, ending: str) -> Path:
        return self.folder / f"{part.number:06d}{ending}"


class Medium(NamedTuple):
    """What is known of an image or a video."""

    sha: bytes
    """SHA-256 of its content, 32 bytes."""

    near: int
    """Perceptual hash, 64 bits."""

    height: int
    width: int


@dataclass
class Candidate:
    """A row that passed the checks that need no other row."""

    number: int
    record: Record
    draft: Draft
    pick: int
    media: list[Medium] = field(default_factory=list)

    flagged: list[str] = field(default_factory=list)
    """Checks that the row did not pass and that let it stay, repaired or as it is."""

    line: int = 0
    """Line of its file at which it begins; 0 where it is not known."""


@dataclass
class Tally:
    """Counts and examples of one part."""

    lines: int = 0
    """Lines of the part, blank ones included, or its rows."""

    rows: int = 0
    formats: Counter[str] = field(default_factory=Counter)
    counts: Counter[str] = field(default_factory=Counter)
    """Rows by `check action`."""

    examples: list[dict[str, Any]] = field(default_factory=list)
    unused: Counter[str] = field(default_factory=Counter)
    """Rows in which a column is filled that is not used, by the column."""

    tools: int = 0
    """Rows with tools."""

    present: list[str] = field(default_factory=list)
    """Columns that `columns` names and that a row has."""

    def add(
        self, check: str, action: str, number: int, clause: str, content: Any, line: int
    ) -> None:
        """Count a row that did not pass a check, and keep the first EXAMPLES of each action."""
        self.counts[f"{check} {action}"] += 1
        if self.counts[f"{check} {action}"] <= EXAMPLES:
            text = content if isinstance(content, str) else repr(content)[:2000]
            self.examples.append(
                {
                    "check": check,
                    "action": action,
                    "row": number,
                    "line": line,
                    "clause": clause,
                    "text": text[:300],
                }
            )
