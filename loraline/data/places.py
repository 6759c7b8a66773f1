"""Places of rows for people: a file and a line or row of it."""

from __future__ import annotations

from loraline.data.reading import readers, streams
from loraline.data.work import Part, Work

CHUNK = 2**20
"""Bytes in which lines are counted at once."""


class Places:
    """Counts what stands before each part in its file, so that a row has the number it has there.

    A share of the data has not read what stands before its parts. That is counted when the place
    of a row is needed for a message.
    """

    def __init__(self, work: Work) -> None:
        self.work = work
        self.before: dict[int, int] = {}
        """Lines or rows of the same file before a part, by the part's number."""

        self.ends: dict[tuple[int, str], tuple[int | None, int]] = {}
        """Where the parts read without a gap from a file's start end, and their lines or rows."""

    def add(self, part: Part, lines: int) -> None:
        """Note a part that was read; parts come in order."""
        key = (part.source, part.file)
        end, total = self.ends.get(key, (0, 0))
        if part.start == end:
            self.before[part.number] = total
            self.ends[key] = (part.stop, total + lines)

    def of(self, part: Part, number: int, line: int = 0) -> str:
        """The place of a part's row by its number in the part, from 1, and its line if known."""
        if part.number not in self.before:
            self.before[part.number] = self.counted(part)
        source = self.work.sources[part.source]
        bucket = source.bucket
        path = (
            f"s3://{bucket.name}/{bucket.prefix}{part.file}"
            if bucket
            else str(source.root / part.file)
        )
        unit = "line" if streams.ending_of(path) == ".jsonl" else "row"
        place = f"{path} {unit} {self.before[part.number] + number}"
        return f"{place} (line {line})" if line else place

    def counted(self, part: Part) -> int:
        """Lines or rows of a file before a part of it that begins later."""
        path = self.work.sources[part.source].path(part.file)
        ending = streams.ending_of(path.name)
        if ending == ".arrow":
            return part.start
        if ending == ".parquet":
            return readers.rows_of_groups(path, part.start)
        # A line that begins before the part is not of it, nor is the end of the line before it.
        count, remaining = 1, part.start - 1
        with path.open("rb") as file:
            while remaining > 0 and (content := file.read(min(CHUNK, remaining))):
                count += content.count(b"\n")
                remaining -= len(content)
        return count
