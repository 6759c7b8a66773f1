"""Rows of JSON files: an object a line, an array, or one object over many lines."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import IO, Any

from loraline.data.checks import BadRow
from loraline.data.reading import streams
from loraline.data.reading.values import Spelt, repeated_key, without_repetition
from loraline.errors import UserError

TOP_LEVEL = 1
"""Depth of the keys of one object that holds all of a file."""

LISTS_OF_OBJECTS = frozenset(["messages", "conversations", "conversation", "chosen", "completions"])
"""Keys of a row whose lists hold objects."""

LARGE = re.compile(rb"[:\[,\s]-?\d{19}")
"""A whole number that may not fit 64 bits, which orjson makes a float of."""

DIGITS, NINETEEN = bytes(ord("0") if chr(n).isdecimal() else 0 for n in range(256)), b"0" * 19
"""A table that makes one digit of all, and what a large number is in it: found in less time."""

NO_NUMBERS = {str, bool, type(None)}
"""Types of values that neither are numbers nor hold any."""

ROW_KEYS = frozenset(
    [
        "messages",
        "conversations",
        "conversation",
        "instruction",
        "prompt",
        "query",
        "question",
        "output",
        "response",
        "answer",
        "completion",
        "text",
        "caption",
        "input",
        "image",
        "images",
        "file_name",
        "video",
        "videos",
        "chosen",
        "rejected",
    ]
)
"""Keys that make an object a row."""


def lines(file: IO[bytes], stop: int | None, most: int) -> Iterator[bytes | BadRow]:
    """Lines that begin before byte `stop`; one longer than `most` is skipped in bounded memory."""
    position = 0 if stop is None else file.tell()
    while stop is None or position < stop:
        line = file.readline(most + 1)
        if not line:
            return
        if len(line) <= most:
            position += len(line)
            yield line
            continue
        position += len(line)
        while line and not line.endswith(b"\n"):
            line = file.readline(2**20)
            position += len(line)
        yield BadRow("unreadable", f"is longer than {most} bytes (limit row_bytes)")


def json_lines(path: Path, stop: int | None, row_bytes: int, encoding: str) -> Iterator[Any]:
    """Rows of a file with an object a line, from its beginning to byte `stop`."""
    with streams.text(path, encoding) as file:
        # What is unpacked or translated is one part.
        end = stop if file.seekable() else None
        for number, line in enumerate(lines(file, end, row_bytes)):
            if number == 0 and not isinstance(line, BadRow):
                check_json_lines(path, line)
            yield line if isinstance(line, BadRow) else parse(line)


def check_json_lines(path: Path, first: bytes) -> None:
    """A UserError where a file's first line shows that it does not hold an object a line."""
    begin = first.strip()
    if begin.startswith(b"["):
        raise UserError(f"{path} holds a JSON array, not an object a line; name it .json")
    if begin == b"{":
        raise UserError(f"{path} holds objects over many lines; name it .json")


def lines_from(path: Path, start: int, stop: int | None, row_bytes: int) -> Iterator[Any]:
    """Rows whose lines begin between two bytes of a file that is not packed."""
    with path.open("rb") as file:
        # The line that begins before `start` belongs to the part before this one.
        file.seek(start - 1)
        while (line := file.readline(2**20)) and not line.endswith(b"\n"):
            if stop is not None and file.tell() >= stop:
                return
        for row in lines(file, stop, row_bytes):
            yield row if isinstance(row, BadRow) else parse(row)


def parse(line: bytes) -> Any:
    """One JSON document; orjson reads it, and the standard library says what is wrong with it."""
    import orjson

    if line.isspace():
        return None
    try:
        parsed = orjson.loads(line)
        if not (spells_anew(line, parsed) or may_repeat_a_key(line, parsed)):
            return parsed
    except orjson.JSONDecodeError:
        pass
    try:
        return json.loads(line, object_pairs_hook=without_repetition, parse_float=Spelt)
    except BadRow as bad:
        return bad
    except json.JSONDecodeError as error:
        return BadRow("unreadable", f"is not valid JSON: {error.msg} at column {error.colno}")
    except UnicodeDecodeError:
        return BadRow("unreadable", streams.NOT_UTF8)
    except RecursionError:
        return BadRow("unreadable", "is nested too deeply")
    except ValueError as error:
        # A number of thousands of digits.
        return BadRow("unreadable", f"is not JSON that can be read: {str(error)[:80]}")


def spells_anew(line: bytes, parsed: Any) -> bool:
    """Whether a row's line may hold a number that a parser does not keep as it is written."""
    if type(parsed) is dict:
        types = set(map(type, parsed.values()))
        if types <= NO_NUMBERS:
            return False
        if float in types:
            return True
    return NINETEEN in line.translate(DIGITS) and LARGE.search(line) is not None


def may_repeat_a_key(line: bytes, parsed: Any) -> bool:
    """Whether a row's line may hold a key twice, of which a parser keeps only the last.

    It does not if its text and the row, written again, hold equally many `":`. Escaped quotes and
    spaces before a colon leave it open. In a flat row there are as many as keys, or more.
    """
    import orjson

    if b'" :' in line or b"\\u0022" in line:
        return True
    count = line.count(b'":')
    if type(parsed) is dict and count == len(parsed):
        return False
    return count != orjson.dumps(parsed).count(b'":')


class Remembering(dict[str, Any]):
    """An object that ijson fills key by key, and that knows of a key which came twice."""

    __slots__ = ("repeated",)
    repeated: str

    def __setitem__(self, key: str, value: Any) -> None:
        if key in self and self[key] != value:
            self.repeated = key
        super().__setitem__(key, value)


def plain_row(value: Any) -> Any:
    """A row of Remembering objects as plain ones, or the BadRow that it is."""
    if type(value) is Remembering:
        if hasattr(value, "repeated"):
            raise repeated_key(value.repeated)
        return {key: plain_row(item) for key, item in value.items()}
    if type(value) is list:
        return [plain_row(item) for item in value]
    return Spelt(value) if type(value) is Decimal else value


def plain_rows(file: Guarded, prefix: str, *, multiple: bool = False) -> Iterator[Any]:
    """Rows under a prefix of a JSON file; BadRow for one with a key twice."""
    import ijson

    for row in ijson.items(file, prefix, multiple_values=multiple, map_type=Remembering):
        file.since = 0
        try:
            yield plain_row(row)
        except BadRow as bad:
            yield bad


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


def rows(path: Path, row_bytes: int, encoding: str) -> Iterator[Any]:
    """Rows of a JSON file: those of an array, streamed; one object a line; or the one object."""
    with streams.text(path, encoding) as file:
        first = file.peek(64).lstrip()[:1] if hasattr(file, "peek") else b""
    if first == b"[":
        yield from streamed(path, "item", row_bytes, encoding)
    elif first == b"{":
        yield from objects(path, row_bytes, encoding)
    elif not first:
        return
    elif first in (b"/", b"#"):
        raise UserError(f"{path} is not JSON: it begins with a comment")
    else:
        raise UserError(f"{path} is neither a JSON array of rows nor one JSON object a line")


def streamed(path: Path, prefix: str, row_bytes: int, encoding: str) -> Iterator[Any]:
    """Rows of an array in a JSON file, `item`, or of one under a key, `data.item`."""
    import ijson

    number = 0
    with streams.text(path, encoding) as file:
        guarded = Guarded(path, file, row_bytes)
        try:
            for row in plain_rows(guarded, prefix):
                number += 1
                yield row
        except (ijson.JSONError, UnicodeDecodeError) as error:
            raise not_read(path, error, f" after row {number}") from error


def not_read(path: Path, error: Exception, after: str = "") -> UserError:
    """What is wrong with a JSON file."""
    return UserError(f"{path} is not valid JSON{after}{complaint(error)}")


def complaint(error: Exception) -> str:
    """A parser's message in short, without its excerpt of the file."""
    message = " ".join(str(error).split()).partition("(right here)")[0]
    if "UTF8" in message or "utf-8" in message:
        return ", nor UTF-8; name its encoding with --encoding"
    phrases = (
        "invalid char",
        "premature EOF",
        "trailing garbage",
        "unallowed token",
        "lexical error",
    )
    word = next((word for word in phrases if word in message), "")
    return (f": {word}" if word else "") + " (JSON5's comments and bare keys are not read)"


def objects(path: Path, row_bytes: int, encoding: str) -> Iterator[Any]:
    """Rows of a file that begins with an object: one a line, or one over many lines."""
    with streams.text(path, encoding) as file:
        first_lines = lines(file, None, row_bytes)
        first = next(
            (line for line in first_lines if isinstance(line, BadRow) or line.strip()), b""
        )
        parsed = first if isinstance(first, BadRow) else parse(first)
        if isinstance(parsed, BadRow):
            is_json_lines = False
        else:
            second = next(
                (line for line in first_lines if isinstance(line, BadRow) or line.strip()), None
            )
            is_json_lines = second is not None
    if is_json_lines:
        yield from json_lines(path, None, row_bytes, encoding)
    else:
        ends_a_row = not isinstance(first, BadRow) and first.rstrip().endswith(b"}")
        yield from rows_of_object(path, row_bytes, encoding, ends_a_row)


def rows_of_object(path: Path, row_bytes: int, encoding: str, ends_a_row: bool) -> Iterator[Any]:
    """The row of a file that is one object, the rows that are under its one key, or a refusal.

    `ends_a_row` says that the file's first line ends as an object does. Raises UserError for an
    object whose keys are names of rows.
    """
    import ijson

    keys: dict[str, str] = {}
    of_objects: set[str] = set()
    with streams.text(path, encoding) as file:
        depth, key, documents, before = 0, "", 0, ""
        try:
            for event, value in ijson.basic_parse(file, multiple_values=True):
                if event == "map_key" and depth == TOP_LEVEL:
                    key = value
                elif depth == TOP_LEVEL and documents == 0 and event not in ("end_map",):
                    keys[key] = event
                elif depth == TOP_LEVEL + 1 and before == "start_array" and event == "start_map":
                    of_objects.add(key)
                if event in ("start_map", "start_array"):
                    depth += 1
                elif event in ("end_map", "end_array"):
                    depth -= 1
                    documents += depth == 0
                before = event
        except (ijson.JSONError, UnicodeDecodeError) as error:
            if ends_a_row:
                # More lines may be whole: the one that is not is counted.
                yield from json_lines(path, None, row_bytes, encoding)
                return
            raise not_read(path, error) from error
    lists = [name for name, event in keys.items() if event == "start_array"]
    tables = [name for name in lists if name in of_objects]
    if documents == 1 and len(tables) > 1 and not keys.keys() & LISTS_OF_OBJECTS:
        names = ", ".join(repr(name[:30]) for name in tables[:3])
        how = "join the annotations to their images" if "annotations" in tables else "write each"
        raise UserError(
            f"{path} is an object of {len(tables)} lists ({names}), not a row; {how} in a file of "
            "its own, a row a line"
        )
    if documents > 1 or keys.keys() & ROW_KEYS:
        yield from documents_of(path, row_bytes, encoding)
        return
    lists = tables or lists
    if len(lists) == 1:
        yield from streamed(path, f"{lists[0]}.item", row_bytes, encoding)
        return
    if len(keys) > 1 and all(event == "start_map" for event in keys.values()):
        names = ", ".join(repr(name[:30]) for name in list(keys)[:2])
        raise UserError(
            f"{path} is an object of {len(keys)} entries keyed by name ({names} and so on), not a "
            "row; write its values as a JSON array"
        )
    yield from documents_of(path, row_bytes, encoding)


def documents_of(path: Path, row_bytes: int, encoding: str) -> Iterator[Any]:
    """JSON documents that follow each other in a file, each over as many lines as it likes."""
    import ijson

    with streams.text(path, encoding) as file:
        guarded = Guarded(path, file, row_bytes)
        try:
            yield from plain_rows(guarded, "", multiple=True)
        except (ijson.JSONError, UnicodeDecodeError) as error:
            raise not_read(path, error) from error
