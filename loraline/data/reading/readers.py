"""Data files as raw rows, one at a time: JSONL, JSON, CSV, Parquet, Arrow and tar shards.

A row that cannot be read is given as the BadRow that says why, so that its place is counted.
"""

from __future__ import annotations

import csv
import json
import posixpath
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from loraline.data.checks import BadRow
from loraline.errors import UserError

KINDS = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".arrow", ".tar")
"""Endings of the files that hold rows."""

Raw = Any
"""A parsed row, a BadRow, or None for a blank line."""

BATCH, BATCH_BYTES = 256, 32 * 2**20
"""Rows of a column file that are in memory at once, and bytes, since they may hold images."""

JSON_MEMBERS, TEXT_MEMBERS = (".json",), (".txt", ".caption", ".text")
IMAGE_MEMBERS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
VIDEO_MEMBERS = (".mp4", ".webm", ".mkv", ".avi", ".mov")


def rows(path: Path, start: int, stop: int | None, row_bytes: int) -> Iterator[Raw]:
    """Rows of a file, or of its bytes (JSONL), row groups (Parquet) or rows (Arrow) in a range."""
    kind = path.suffix.lower()
    if kind == ".jsonl":
        return json_lines(path, start, stop, row_bytes)
    if kind == ".json":
        return json_array(path, row_bytes)
    if kind in (".csv", ".tsv"):
        return csv_rows(path, "\t" if kind == ".tsv" else ",", row_bytes)
    if kind == ".tar":
        return tar_rows(path, row_bytes)
    return column_rows(path, start, stop)


def lines(file: IO[bytes], stop: int | None, most: int) -> Iterator[bytes | BadRow]:
    """Lines that begin before byte `stop`; one longer than `most` is skipped in bounded memory."""
    position = file.tell()
    while stop is None or position < stop:
        line = file.readline(most + 1)
        if not line:
            return
        if len(line) <= most:
            position += len(line)
            yield line
            continue
        while line and not line.endswith(b"\n"):
            line = file.readline(2**20)
        position = file.tell()
        yield BadRow("unreadable", f"is longer than {most} bytes (limit row_bytes)")


def json_lines(path: Path, start: int, stop: int | None, row_bytes: int) -> Iterator[Raw]:
    with path.open("rb") as file:
        if start:
            # The line that begins before `start` belongs to the part before this one.
            file.seek(start - 1)
            while (line := file.readline(2**20)) and not line.endswith(b"\n"):
                if stop is not None and file.tell() >= stop:
                    return
        for found in lines(file, stop, row_bytes):
            yield found if isinstance(found, BadRow) else parse(found)


def parse(line: bytes) -> Raw:
    """One JSON document; orjson reads it, and the standard library says what is wrong with it."""
    import orjson

    if line.isspace():
        return None
    try:
        return orjson.loads(line)
    except orjson.JSONDecodeError:
        pass
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        return BadRow("unreadable", f"is not valid JSON: {error.msg} at column {error.colno}")
    except UnicodeDecodeError:
        return BadRow("unreadable", "is not UTF-8")
    except RecursionError:
        return BadRow("unreadable", "is nested too deeply")
    except ValueError as error:
        # A number of thousands of digits.
        return BadRow("unreadable", f"is not JSON that can be read: {error}")


class Guarded:
    """A file for ijson that ends in a UserError when one row does not end."""

    def __init__(self, path: Path, file: IO[bytes], most: int) -> None:
        self.path, self.file, self.most, self.since = path, file, most, 0

    def read(self, size: int) -> bytes:
        self.since += size
        if self.since > self.most + 2 * size:
            raise UserError(
                f"{self.path} holds a row longer than {self.most} bytes (limit row_bytes)"
            )
        return self.file.read(size)


def json_array(path: Path, row_bytes: int) -> Iterator[Raw]:
    """Rows of a JSON array, streamed; a file that begins with an object is read line by line."""
    import ijson

    with path.open("rb") as file:
        first = file.read(64).lstrip()[:1]
        if first == b"{":
            yield from json_lines(path, 0, None, row_bytes)
            return
        if first != b"[":
            raise UserError(f"{path} is neither a JSON array of rows nor one JSON object a line")
        file.seek(0)
        guarded, number = Guarded(path, file, row_bytes), 0
        try:
            for row in ijson.items(guarded, "item", use_float=True):
                number += 1
                guarded.since = 0
                yield row
        except (ijson.JSONError, UnicodeDecodeError) as error:
            reason = " ".join(str(error).split())[:120]
            raise UserError(f"{path} is not valid JSON after row {number}: {reason}") from error


def csv_rows(path: Path, delimiter: str, row_bytes: int) -> Iterator[Raw]:
    csv.field_size_limit(row_bytes)
    with path.open("rb") as file:

        def text() -> Iterator[str]:
            for line in lines(file, None, row_bytes):
                if isinstance(line, BadRow):
                    raise UserError(f"{path} holds a line that {line.clause}")
                yield line.decode(
                    "utf-8-sig" if not file.tell() - len(line) else "utf-8", "surrogateescape"
                )

        reader = csv.DictReader(text(), delimiter=delimiter, restkey="(no header)", strict=True)
        header(path, reader, delimiter)
        while True:
            try:
                row = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield BadRow("unreadable", f"is not valid CSV: {error}")
                continue
            if any(isinstance(value, str) and not is_utf8(value) for value in row.values()):
                yield BadRow("unreadable", "is not UTF-8")
            elif "(no header)" in row:
                yield BadRow("unreadable", "has more fields than the header")
            else:
                yield {key: value for key, value in row.items() if value not in (None, "")}


def header(path: Path, reader: csv.DictReader[str], delimiter: str) -> None:
    """Read the names of the columns; a UserError if rows could not be told by them."""
    try:
        names = [name or "" for name in reader.fieldnames or ()]
    except csv.Error as error:
        raise UserError(f"{path} has a header that is not valid CSV: {error}") from error
    if not all(map(is_utf8, names)):
        raise UserError(f"{path} is not UTF-8; convert it")
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"{path} has two columns named {twice[0]!r}; rename one")
    other = next((mark for mark in ";\t,|" if mark != delimiter and mark in "".join(names)), None)
    if len(names) == 1 and other:
        raise UserError(
            f"{path} has one column, {names[0][:80]!r}; fields of a {path.suffix} are separated by "
            f"{delimiter!r}, here they seem to be by {other!r}"
        )


def is_utf8(text: str) -> bool:
    """Whether text decoded with surrogateescape was UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def column_rows(path: Path, start: int, stop: int | None) -> Iterator[Raw]:
    """Rows of row groups `start` to `stop` of a Parquet file, or of these rows of an Arrow file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        if path.suffix.lower() == ".arrow":
            with pa.memory_map(str(path)) as source:
                table = pa.ipc.open_stream(source).read_all()
                part = table.slice(start, None if stop is None else stop - start)
                for batch in part.to_batches(max_chunksize=at_once(part.nbytes, len(part))):
                    yield from batch.to_pylist()
            return
        with pq.ParquetFile(path) as file:
            for number in range(start, file.num_row_groups if stop is None else stop):
                group = file.metadata.row_group(number)
                size = at_once(group.total_byte_size, group.num_rows)
                for batch in file.iter_batches(size, row_groups=[number]):
                    yield from batch.to_pylist()
    except (pa.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path} is broken: {reason}") from error


def at_once(held: int, rows: int) -> int:
    """Rows that fit the memory, from the bytes that so many take."""
    return max(1, min(BATCH, BATCH_BYTES * rows // max(1, held)))


def tar_rows(path: Path, row_bytes: int) -> Iterator[Raw]:
    """Samples of a tar shard, as in WebDataset: neighbours with one name but for its ending."""
    key, members = None, dict[str, bytes | BadRow]()
    try:
        with tarfile.open(path, "r:", errorlevel=1) as archive:
            for member in archive:
                if not member.isreg() or member.issparse():
                    continue
                folder, base = posixpath.split(member.name)
                stem, _, ending = base.partition(".")
                if (folder, stem) != key and members:
                    yield sample(members)
                    members = {}
                key = (folder, stem)
                ending = f".{ending.lower()}"
                if not ending.endswith(
                    (*JSON_MEMBERS, *TEXT_MEMBERS, *IMAGE_MEMBERS, *VIDEO_MEMBERS)
                ):
                    continue
                if member.size > row_bytes or len(members) >= 64:
                    members[ending] = BadRow(
                        "unreadable", f"member {base[:80]!r} is over the limit row_bytes"
                    )
                else:
                    file = archive.extractfile(member)
                    members[ending] = file.read() if file else b""
    except (tarfile.TarError, EOFError, OSError) as error:
        raise UserError(f"{path} is not a whole tar archive: {error}") from error
    if members:
        yield sample(members)


def sample(members: dict[str, bytes | BadRow]) -> Raw:
    """One row from the members of a tar shard that share a name."""
    row: dict[str, Any] = {}
    images: list[bytes] = []
    videos: list[bytes] = []
    for ending, content in sorted(members.items()):
        if isinstance(content, BadRow):
            return content
        if ending.endswith(JSON_MEMBERS):
            parsed = parse(content)
            if not isinstance(parsed, dict):
                return (
                    parsed
                    if isinstance(parsed, BadRow)
                    else BadRow("format", "its .json is no object")
                )
            row |= parsed
        elif ending.endswith(TEXT_MEMBERS):
            try:
                row["text"] = content.decode()
            except UnicodeDecodeError:
                return BadRow("unreadable", f"its {ending} is not UTF-8")
        else:
            (images if ending.endswith(IMAGE_MEMBERS) else videos).append(content)
    for names, found in ((("images", "image", "file_name"), images), (("videos", "video"), videos)):
        if found:
            row = {key: value for key, value in row.items() if key not in names} | {names[0]: found}
    return row
