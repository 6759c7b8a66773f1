"""Rows of tar shards, as WebDataset makes them, read without writing a member to disk."""

from __future__ import annotations

import posixpath
import re
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

from loraline.data.checks import BadRow
from loraline.data.reading import images, streams
from loraline.data.reading.json_files import parse
from loraline.data.reading.streams import NOT_UTF8
from loraline.data.reading.values import type_name
from loraline.errors import UserError

JSON_MEMBERS, TEXT_MEMBERS = (".json",), (".txt", ".caption", ".text")
IMAGE_MEMBERS = (
    *(ending for endings in images.TYPES.values() for ending in endings),
    *(".avif", ".jp2", ".jxl", ".ico", ".pgm", ".ppm", ".svg", ".pdf", ".dcm"),
)
VIDEO_MEMBERS = (".mp4", ".webm", ".mkv", ".avi", ".mov")
SOUND_MEMBERS = (".wav", ".mp3", ".flac", ".ogg", ".m4a", ".opus")
MEMBERS = (*JSON_MEMBERS, *TEXT_MEMBERS, *IMAGE_MEMBERS, *VIDEO_MEMBERS, *SOUND_MEMBERS)
"""Endings of the members that make a sample."""

TABLES = (".jsonl", ".ndjson", ".csv", ".tsv", ".parquet", ".arrow", ".tar", ".zip")
"""Endings of members that can hold rows, which nothing reads inside a shard."""

MOST_MEMBERS = 64
"""Members of one sample."""


class Member(tarfile.TarInfo):
    """A member of a whole archive: `tarfile` takes a header that is broken or cut for the end."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(archive)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"{error} at byte {archive.offset}") from error


def refuse_more(path: Path, archive: tarfile.TarFile) -> None:
    """Raise UserError for what follows the mark of an archive's end, as where two were joined."""
    content: Any = archive.fileobj
    while block := content.read(streams.HEAD):
        if block.strip(b"\0"):
            raise UserError(
                f"{path} goes on after the end of an archive; give each archive as a file, or join "
                "them with tar --concatenate"
            )


def rows(path: Path, row_bytes: int) -> Iterator[Any]:
    """Samples of a tar shard: neighbours with one name but for its ending."""
    key, members = None, dict[str, bytes | BadRow]()
    read, unread = False, ""
    endings_before: dict[tuple[str, str], frozenset[str]] = {}
    try:
        with (
            streams.unpacked(path) as stream,
            tarfile.open(fileobj=stream, mode="r|", errorlevel=1, tarinfo=Member) as archive,
        ):
            for member in archive:
                folder, base = posixpath.split(member.name)
                # macOS puts a file of its own beside each.
                if member.isdir() or base.startswith("._"):
                    continue
                stem, _, ending = base.partition(".")
                if (folder, stem) != key and is_sample(members):
                    yield sample(members)
                if (folder, stem) != key:
                    if key and is_sample(members):
                        note_endings(path, key, members, endings_before)
                    members = {}
                key = (folder, stem)
                ending = f".{ending.lower()}"
                packing = streams.packing_of(ending)
                ending = posixpath.splitext(ending)[0] if packing else ending
                if ending.endswith(TABLES):
                    raise UserError(f"{path} holds {base[:60]!r}, which can hold rows; unpack it")
                if not ending.endswith(MEMBERS):
                    # Not read; the report lists it by its ending, if it belongs to a sample.
                    members[ending], unread = b"", unread or base
                    continue
                read = True
                if ending in members:
                    raise UserError(f"{path} holds two members named {base[:60]!r}")
                if not member.isreg() or member.issparse():
                    # Its content stands elsewhere, where a stream cannot go back to.
                    members[ending] = BadRow(
                        "unreadable",
                        f"member {base[:80]!r} is a link, a device or sparse; write the archive "
                        "with tar --hard-dereference --dereference",
                    )
                elif member.size > row_bytes or len(members) >= MOST_MEMBERS:
                    members[ending] = too_large(base)
                else:
                    file = archive.extractfile(member)
                    content = file.read() if file else b""
                    members[ending] = unpack(content, packing, base, row_bytes)
            refuse_more(path, archive)
    except (tarfile.TarError, EOFError, OSError) as error:
        raise UserError(f"{path} is not a whole tar archive: {str(error)[:80]}") from error
    if key and is_sample(members):
        note_endings(path, key, members, endings_before)
        yield sample(members)
    if unread and not read:
        raise UserError(
            f"{path} holds no .json, .txt, picture, video or sound; its first member is "
            f"{unread[:60]!r}"
        )


def note_endings(
    path: Path,
    name: tuple[str, str],
    members: Mapping[str, bytes | BadRow],
    before: dict[tuple[str, str], frozenset[str]],
) -> None:
    """Note what a sample is made of; a UserError where more of it comes after other samples.

    Each would be a row, such as a question without its picture.
    """
    endings = frozenset(ending for ending in members if ending.endswith(MEMBERS))
    if name in before and not endings & before[name]:
        raise UserError(
            f"{path} holds members of {posixpath.join(*name)[:60]!r} in two places; write it with "
            "tar --sort=name"
        )
    before[name] = endings


def is_sample(members: Mapping[str, bytes | BadRow]) -> bool:
    """Whether one of the members that share a name is read."""
    return any(ending.endswith(MEMBERS) for ending in members)


def too_large(name: str) -> BadRow:
    return BadRow("unreadable", f"member {name[:80]!r} is over the limit row_bytes")


def unpack(content: bytes, packing: str | None, name: str, most: int) -> bytes | BadRow:
    """A member's content, decompressed in bounded memory if it is packed by itself."""
    import pyarrow as pa

    if packing is None:
        return content
    try:
        with pa.CompressedInputStream(pa.BufferReader(content), packing) as stream:
            unpacked: bytes = stream.read(most + 1)
    except (pa.ArrowException, OSError):
        return BadRow("unreadable", f"member {name[:80]!r} is not a whole {packing} file")
    return too_large(name) if len(unpacked) > most else unpacked


def sample(members: dict[str, bytes | BadRow]) -> Any:
    """One row from the members of a tar shard that share a name."""
    row: dict[str, Any] = {}
    pictures: dict[str, bytes] = {}
    videos: dict[str, bytes] = {}
    for ending, content in sorted(members.items(), key=lambda member: in_order(member[0])):
        if isinstance(content, BadRow):
            return content
        if ending.endswith(JSON_MEMBERS):
            parsed = parse(content)
            if not isinstance(parsed, dict):
                return (
                    parsed
                    if isinstance(parsed, BadRow)
                    else BadRow("format", f"its {ending} is {type_name(parsed)}, not an object")
                )
            if twice := [key for key in parsed if row.get(key, parsed[key]) != parsed[key]]:
                return BadRow("format", f"two of its members say {str(twice[0])[:40]!r}")
            row |= parsed
        elif ending.endswith(TEXT_MEMBERS):
            try:
                # The last line's end is the file's.
                text = content.decode("utf-8-sig").removesuffix("\n").removesuffix("\r")
            except UnicodeDecodeError:
                return BadRow("unreadable", f"its {ending} {NOT_UTF8}")
            if row.setdefault("text", text) != text:
                return BadRow("format", "two of its members say 'text'")
        elif ending.endswith(SOUND_MEMBERS):
            row["audio"] = ending
        elif not ending.endswith(MEMBERS):
            row.setdefault(ending.lstrip(".") or "member", "a member of the archive")
        else:
            (pictures if ending.endswith(IMAGE_MEMBERS) else videos)[ending] = content
    for names, media in (
        (("images", "image", "file_name"), pictures),
        (("videos", "video"), videos),
    ):
        if not media:
            continue
        named = next((row[name] for name in names if row.get(name)), None)
        if isinstance(named, list) and len(named) != len(media):
            return BadRow(
                "format",
                f"its object names {len(named)} {names[0]}, and its members are {len(media)}",
            )
        row = {key: value for key, value in row.items() if key not in names}
        row[names[0]] = [media[ending] for ending in named_order(named, media)]
    return row


def in_order(ending: str) -> list[tuple[int, str]]:
    """What endings are sorted by: `.2.png` comes before `.10.png`."""
    return [(int(part) if part.isdecimal() else -1, part) for part in re.split(r"([0-9]+)", ending)]


def named_order(named: Any, media: Mapping[str, bytes]) -> list[str]:
    """Endings of media in the order in which a sample's object names them, if it names them all."""
    names = [str(name) for name in named] if isinstance(named, list) else []
    endings = [f".{posixpath.basename(name).partition('.')[2].lower()}" for name in names]
    return endings if sorted(endings) == sorted(media) else list(media)
