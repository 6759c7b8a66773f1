"""Data files as streams of UTF-8 bytes, whatever they are packed in and encoded with."""

from __future__ import annotations

import codecs
import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from loraline.errors import UserError

NOT_UTF8 = (
    "is not UTF-8; convert it, or name its encoding with --encoding or prepare.encoding, such as "
    "cp1252 of Excel in the West, or gbk"
)

PACKED = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd"}
"""Endings of files that are unpacked as they are read, with Arrow's name of the way."""

SAME_ENDING = {
    ".ndjson": ".jsonl",
    ".jsonlines": ".jsonl",
    ".jl": ".jsonl",
    ".feather": ".arrow",
    ".ipc": ".arrow",
}
"""Endings by another name."""

FEATHER_1 = b"FEA1"
"""First bytes of the format before Arrow's, which recent versions of pandas do not write."""

AS_FEATHER_2 = "write it again, as pyarrow's write_feather writes it"

FIRST_BYTES = {
    b"\x1f\x8b": "packed with gzip; name it .gz",
    b"\x28\xb5\x2f\xfd": "packed with Zstandard; name it .zst",
    b"BZh": "packed with bzip2; name it .bz2",
    b"PK\3\4": "a ZIP archive; unpack it",
    b"PAR1": "Parquet; name it .parquet",
    b"ARROW1": "Arrow; name it .arrow",
    FEATHER_1: f"Feather 1; {AS_FEATHER_2}, and name it .arrow",
    b"SQLite": "an SQLite database; save its table as CSV",
}
"""First bytes of files that are not text, with the remedy."""

HEAD = 2**16
"""Bytes of a file that are looked at to tell what it is."""

MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}

UTF8 = {"utf-8", "utf_8", "utf8", "utf-8-sig"}

CONTROLS = re.compile("[\x80-\x84\x86-\x9f]")
"""Control characters that no text has, and that texts of cp1252 show when read as Latin-1."""


def ending_of(name: str) -> str:
    """A data file's kind by its ending, without that of its packing: `.jsonl`, `.csv` and so on."""
    path = Path(name.lower())
    if path.suffix == ".tgz":
        return ".tar"
    suffix = Path(path.stem).suffix if path.suffix in PACKED else path.suffix
    return SAME_ENDING.get(suffix, suffix)


def packing_of(name: str) -> str | None:
    """How a file is packed, as Arrow names it."""
    suffix = Path(name.lower()).suffix
    return "gzip" if suffix == ".tgz" else PACKED.get(suffix)


@contextmanager
def unpacked(path: Path) -> Iterator[IO[bytes]]:
    """A file's bytes, unpacked. Raises UserError where they are not whole."""
    import pyarrow as pa

    packing = packing_of(path.name)
    if packing is None:
        with path.open("rb") as file:
            yield file
        return
    try:
        with pa.OSFile(str(path)) as raw, pa.CompressedInputStream(raw, packing) as stream:
            yield io.BufferedReader(Unpacking(stream, path), HEAD)
    except pa.ArrowException as error:
        raise broken(path, error) from error


class Unpacking(io.RawIOBase):
    """A stream of Arrow as Python reads it."""

    def __init__(self, stream: Any, path: Path) -> None:
        super().__init__()
        self.stream, self.path = stream, path

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            content = self.stream.read(len(buffer))
        except OSError as error:
            raise broken(self.path, error) from error
        buffer[: len(content)] = content
        return len(content)


def broken(path: Path, error: Exception) -> UserError:
    reason = " ".join(str(error).split())[:80]
    return UserError(f"{path} is not a whole {packing_of(path.name)} file: {reason}")


class Translating(io.RawIOBase):
    """A stream in another encoding, or with lines that end in CR alone, as UTF-8 with LF."""

    def __init__(self, file: IO[bytes], path: Path, encoding: str, lines_end_in_cr: bool) -> None:
        super().__init__()
        self.file, self.path, self.encoding = file, path, encoding
        self.lines_end_in_cr = lines_end_in_cr
        self.decoder = codecs.getincrementaldecoder(encoding)() if encoding else None
        self.pending = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self.pending:
            content = self.file.read(HEAD)
            is_last = not content
            if self.decoder:
                try:
                    decoded = self.decoder.decode(content, is_last)
                except UnicodeDecodeError as error:
                    byte = error.object[error.start]
                    raise UserError(
                        f"{self.path} is not {self.encoding}: byte {byte:#04x} cannot be decoded; "
                        "give another --encoding"
                    ) from error
                except UnicodeError as error:
                    raise UserError(f"{self.path} is not {self.encoding}: {error}") from error
                if match := CONTROLS.search(decoded):
                    raise UserError(
                        f"{self.path} is not {self.encoding}: it would hold the control character "
                        f"U+{ord(match.group()):04X}; give another --encoding, such as cp1252"
                    )
                content = decoded.encode()
            self.pending = content.replace(b"\r", b"\n") if self.lines_end_in_cr else content
            if is_last:
                break
        size = min(len(buffer), len(self.pending))
        buffer[:size], self.pending = self.pending[:size], self.pending[size:]
        return size


def translation_of(path: Path, encoding: str) -> tuple[str, bool]:
    """The encoding to decode with (none for UTF-8), and whether lines end in CR alone.

    Raises UserError where a file is in another encoding than it is said to be.
    """
    with unpacked(path) as file:
        head = file.read(HEAD)
    remedy = next((name for begin, name in FIRST_BYTES.items() if head.startswith(begin)), None)
    if remedy:
        raise UserError(f"{path} is no text but {remedy}")
    mark = next((name for mark, name in MARKS.items() if head.startswith(mark)), None)
    mark = mark or is_wide(head)
    if encoding and encoding.lower() not in UTF8:
        if not mark and not head.isascii() and is_utf8(head):
            raise UserError(f"{path} is UTF-8, not {encoding}; leave out --encoding")
        try:
            head = codecs.getincrementaldecoder(encoding)().decode(head).encode()
        except UnicodeError:
            head = b""
        decoded = encoding
    else:
        if mark:
            raise UserError(
                f"{path} is {mark}; save it as UTF-8, or give --encoding {mark.lower()}"
            )
        if lines_are_not_utf8(head):
            raise UserError(f"{path} {NOT_UTF8}")
        decoded = ""
    return decoded, b"\n" not in head and b"\r" in head.rstrip()


def is_wide(head: bytes) -> str | None:
    """The UTF-16 that bytes without a mark look like: every other one is null."""
    first, second = head[:200:2], head[1:200:2]
    if len(second) > 1 and not any(second) and all(first):
        return "UTF-16-LE"
    return "UTF-16-BE" if len(second) > 1 and not any(first) and all(second) else None


def is_utf8(head: bytes) -> bool:
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        return False
    return True


def lines_are_not_utf8(head: bytes) -> bool:
    """Whether several lines hold bytes above ASCII, and none of them is UTF-8."""
    if is_utf8(head):
        return False
    lines = head.replace(b"\r", b"\n").split(b"\n")
    complete_lines = lines[:-1] if len(head) == HEAD else lines
    wide = [line for line in complete_lines if not line.isascii()]
    return len(wide) > 1 and not any(map(is_utf8, wide))


@contextmanager
def text(path: Path, encoding: str = "") -> Iterator[IO[bytes]]:
    """A text file as UTF-8 with LF, without a byte order mark."""
    decoded, lines_end_in_cr = translation_of(path, encoding)
    with unpacked(path) as file:
        stream: IO[bytes] = file
        if decoded or lines_end_in_cr:
            raw = Translating(file, path, decoded, lines_end_in_cr)
            stream = io.BufferedReader(raw, HEAD)
        if not (hasattr(stream, "peek") and stream.peek(3)[:3] == codecs.BOM_UTF8):
            yield stream
            return
        stream.read(3)
        yield stream
