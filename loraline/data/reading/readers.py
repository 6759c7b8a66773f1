"""Data files as raw rows, one at a time: JSONL, JSON, CSV, Parquet, Arrow and tar shards.

A row that cannot be read is given as the BadRow that says why, so that its place is counted.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loraline.data.checks import BadRow
from loraline.data.reading import json_files, streams, tar_files
from loraline.errors import UserError

ENDINGS = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".arrow", ".tar")
"""Endings of the files that hold rows."""

MORE_ENDINGS = (*streams.SAME_ENDING, ".tgz")

Raw = Any
"""A parsed row, a BadRow, or None for a blank line."""

BATCH, BATCH_BYTES = 256, 32 * 2**20
"""Rows of a column file that are in memory at once, and bytes, since they may hold images."""

DELIMITERS = ",;\t|"

SEPARATOR = re.compile(r"sep=(.)\r?\n?")
"""A line that Excel writes before the header, and reads."""

SPACE_BEFORE_QUOTE = re.compile(r'\s+".*"\s*', re.DOTALL)
"""A field whose quotes are read as text because of the space before them."""

ARROW_FILE = b"ARROW1"
"""First bytes of Arrow's file format; what datasets writes is a stream."""


@dataclass
class Cursor:
    """Where the row begins that was read last."""

    line: int = 0
    """Line of its file, from 1; 0 where it is not known."""

    begins: bool = False
    """Whether the next line that is not empty begins a row."""


def holds_rows(name: str) -> bool:
    """Whether a file's name says that rows are in it, packed or not."""
    if streams.packing_of(name) and streams.ending_of(name) in (".parquet", ".arrow"):
        return False
    return streams.ending_of(name) in ENDINGS


def rows(
    path: Path,
    start: int,
    stop: int | None,
    row_bytes: int,
    encoding: str = "",
    cursor: Cursor | None = None,
) -> Iterator[Raw]:
    """Rows of a file, or of its bytes (JSONL), row groups (Parquet) or rows (Arrow) in a range.

    `cursor` is set to the place of each row of a table of text.
    """
    ending = streams.ending_of(path.name)
    if ending == ".jsonl":
        if start == 0:
            return json_files.json_lines(path, stop, row_bytes, encoding)
        return json_files.lines_from(path, start, stop, row_bytes)
    if ending == ".json":
        return json_files.rows(path, row_bytes, encoding)
    if ending in (".csv", ".tsv"):
        delimiter = "\t" if ending == ".tsv" else ","
        return csv_rows(path, delimiter, row_bytes, encoding, cursor or Cursor())
    if ending == ".tar":
        return tar_files.rows(path, row_bytes)
    return column_rows(path, start, stop)


def csv_rows(
    path: Path, delimiter: str, row_bytes: int, encoding: str, cursor: Cursor
) -> Iterator[Raw]:
    """Rows of a table whose first line names the columns; that line shows the delimiter."""
    csv.field_size_limit(row_bytes)
    with streams.text(path, encoding) as file:

        def text() -> Iterator[str]:
            for number, line in enumerate(json_files.lines(file, None, row_bytes), 1):
                if isinstance(line, BadRow):
                    raise UserError(f"{path} holds a line that {line.clause}")
                if cursor.begins and line.strip(b"\r\n"):
                    cursor.line, cursor.begins = number, False
                yield line.decode("utf-8", "surrogateescape")

        lines = text()
        first = next((line for line in lines if line.strip()), "")
        if match := SEPARATOR.fullmatch(first):
            delimiter, first = match[1], next(lines, "")
        delimiter = delimiter_of(first, delimiter)
        reader = csv.DictReader(
            with_first(first, lines),
            delimiter=delimiter,
            restkey="(no header)",
            strict=True,
            skipinitialspace=has_spaces(first, delimiter),
        )
        names = header(path, reader)
        while True:
            cursor.begins = True
            try:
                row = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield BadRow("unreadable", f"is not valid CSV: {plain(error)}")
                continue
            if any(isinstance(value, str) and not is_utf8(value) for value in row.values()):
                yield BadRow("unreadable", streams.NOT_UTF8)
            elif "(no header)" in row:
                yield BadRow("unreadable", "has more fields than the header")
            elif [(value or "").lstrip("\ufeff").strip() for value in row.values()] == names:
                yield BadRow("unreadable", "is the header again, as where two files were joined")
            elif spaced := next(
                (v for v in row.values() if SPACE_BEFORE_QUOTE.match(v or "")), None
            ):
                yield BadRow("unreadable", f"has a space before a quoted field, {spaced[:30]!r}")
            else:
                # A line of nothing but delimiters is blank, as Excel ends its tables.
                yield (
                    {key: value or None for key, value in row.items()}
                    if any(row.values())
                    else None
                )


def with_first(first: str, rest: Iterator[str]) -> Iterator[str]:
    """Lines with the first one, which was taken."""
    yield first
    yield from rest


def delimiter_of(line: str, expected: str) -> str:
    """The delimiter of a header: the expected one, or else the one that gives the most fields."""

    def fields(mark: str) -> int:
        try:
            return len(next(csv.reader([line], delimiter=mark), []))
        except csv.Error:
            return 0

    if fields(expected) > 1:
        return expected
    return max((mark for mark in DELIMITERS), key=fields) if fields(expected) == 1 else expected


def has_spaces(line: str, delimiter: str) -> bool:
    """Whether a header has a space after each delimiter, as its rows will."""
    try:
        names = next(csv.reader([line], delimiter=delimiter), [])
    except csv.Error:
        return False
    return len(names) > 1 and all(name.startswith(" ") for name in names[1:])


def plain(error: csv.Error) -> str:
    """What csv complains of, without how its caller should have opened the file."""
    message = str(error)
    if "unexpected end" in message:
        return "a quoted field does not end"
    if "new-line character" in message:
        return "a line ends with CR alone; save it with LF or CRLF at the end of each line"
    return message.partition(" - ")[0]


def header(path: Path, reader: csv.DictReader[str]) -> list[str]:
    """The names of the columns; a UserError if they do not name the columns of rows."""
    try:
        names = [(name or "").strip() for name in reader.fieldnames or ()]
        reader.fieldnames = names
    except csv.Error as error:
        raise UserError(f"{path} has a header that is not valid CSV: {plain(error)}") from error
    if not all(map(is_utf8, names)):
        raise UserError(f"{path} {streams.NOT_UTF8}")
    refuse_equal_names(path, names)
    return names


def is_utf8(text: str) -> bool:
    """Whether text decoded with surrogateescape was UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def arrow_table(path: Path) -> Any:
    """All of an Arrow file, memory-mapped, be it a stream or in the file format.

    Raises UserError for Feather 1.
    """
    import pyarrow as pa

    source = pa.memory_map(str(path))
    head = source.read(len(ARROW_FILE))
    if head.startswith(streams.FEATHER_1):
        raise UserError(f"{path} is Feather 1, which is not read; {streams.AS_FEATHER_2}")
    source.seek(0)
    return (pa.ipc.open_file if head == ARROW_FILE else pa.ipc.open_stream)(source).read_all()


def column_rows(path: Path, start: int, stop: int | None) -> Iterator[Raw]:
    """Rows of row groups `start` to `stop` of a Parquet file, or of these rows of an Arrow file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        if streams.ending_of(path.name) == ".arrow":
            table = arrow_table(path)
            refuse_equal_names(path, table.column_names)
            part = table.slice(start, None if stop is None else stop - start)
            # Arrow believes what a file says of itself, and would read beyond its end.
            part.validate(full=True)
            for batch in part.to_batches(max_chunksize=batch_size(part.nbytes, len(part))):
                yield from rows_of(batch)
            return
        with pq.ParquetFile(path) as file:
            refuse_equal_names(path, file.schema_arrow.names)
            for number in range(start, file.num_row_groups if stop is None else stop):
                group = file.metadata.row_group(number)
                size = batch_size(group.total_byte_size, group.num_rows)
                for batch in file.iter_batches(size, row_groups=[number]):
                    yield from rows_of(batch)
    except (pa.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())[:120]
        raise UserError(f"{path} is broken: {reason}") from error


def refuse_equal_names(path: Path, names: list[str]) -> None:
    """A UserError where two columns have one name: a row would hold the last of them."""
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"{path} has two columns named {twice[0][:40]!r}; rename one")


def rows_of(batch: Any) -> Iterator[dict[str, Any]]:
    """Rows of a batch, whose objects have no keys that are null.

    A column has one type, so that every object in it has the keys of all of them: a call would be
    made with the arguments of the others.
    """
    import pyarrow as pa

    nested = [field.name for field in batch.schema if pa.types.is_nested(field.type)]
    for row in as_written(batch).to_pylist():
        for name in nested:
            row[name] = without_nulls(row[name])
        yield row


def without_nulls(value: Any) -> Any:
    """A value whose objects have no keys that are null, all the way down."""
    if type(value) is dict:
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    if type(value) is list:
        return [without_nulls(item) for item in value]
    return value


def as_written(batch: Any) -> Any:
    """A batch whose columns of 16- and 32-bit floats have the shortest decimals that mean them.

    Python would show 0.1 of 32 bits as 0.10000000149011612.
    """
    import pyarrow as pa

    for index, column in enumerate(batch.schema):
        values = batch.column(index)
        if pa.types.is_float16(column.type):
            values = pa.array(map(str, values.to_numpy(zero_copy_only=False)), pa.string())
        elif pa.types.is_float32(column.type):
            values = values.cast(pa.string())
        else:
            continue
        batch = batch.set_column(index, column.name, values.cast(pa.float64()))
    return batch


def batch_size(size: int, rows: int) -> int:
    """How many rows to read at a time: up to BATCH, and about BATCH_BYTES of a group's `size`."""
    return max(1, min(BATCH, BATCH_BYTES * rows // max(1, size)))


def rows_of_groups(path: Path, count: int) -> int:
    """Rows of the first row groups of a Parquet file."""
    import pyarrow.parquet as pq

    groups = pq.read_metadata(path)
    return sum(groups.row_group(number).num_rows for number in range(count))
