"""Forms with files: read as they arrive, within their limits, into unnamed files."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import BinaryIO
from urllib.parse import parse_qsl

from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from gateway import exchange as exchanges
from gateway import images, video
from gateway.errors import ClientGone, Problem
from gateway.images import Picture
from gateway.settings import MIB, Settings
from gateway.video import Clip

IN_MEMORY = 2 * MIB
"""Bytes of a file that are kept in memory; a larger one goes to disk as it comes."""

MAX_FIELDS = 64
MAX_FIELD = 256 * 1024
NAME_LENGTH = 120

DECODERS = ThreadPoolExecutor(2, "images")
"""Images are decoded beside the event loop, two at a time."""


class Parser(MultiPartParser):
    spool_max_size = IN_MEMORY


class ManyFiles(MultiPartParser):
    """A thousand files of a job would not fit into memory."""

    spool_max_size = 64 * 1024


@dataclass
class Upload:
    """One file of a form."""

    name: str
    """As the client calls it, for showing it back; never a path, a label or a header."""

    file: BinaryIO
    size: int

    def head(self) -> bytes:
        self.file.seek(0)
        head = self.file.read(16)
        self.file.seek(0)
        return head

    @property
    def video(self) -> str | None:
        """The format of a video, None for anything else."""
        return video.format_of(self.head())

    async def picture(self, settings: Settings) -> Picture:
        """The image in the file; Problem if it is not an image."""
        if self.size > settings.max_image_mb * MIB and self.video is None:
            raise Problem(
                413, "image_too_large", f"An image is larger than {settings.max_image_mb:g} MiB."
            )
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(DECODERS, self.decoded, settings)

    def decoded(self, settings: Settings) -> Picture:
        self.file.seek(0)
        return images.picture(self.file.read(), settings)

    async def clip(self, settings: Settings, **limits: float) -> Clip:
        """The frames of the video in the file; Problem if it is not a video."""
        if self.size > settings.max_video_mb * MIB:
            raise Problem(
                413, "video_too_large", f"A video is larger than {settings.max_video_mb:g} MiB."
            )
        if (video_format := self.video) is None:
            raise images.unsupported()
        # Only a file on disk has a descriptor for another process.
        rollover = getattr(self.file, "rollover", None)
        if rollover is not None:
            await asyncio.to_thread(rollover)
        return await video.decode(
            self.file,
            video_format,
            settings,
            max_frames=int(limits["max_frames"]),
            max_seconds=limits["max_seconds"],
            cell=int(limits["cell"]),
        )


@dataclass
class Form:
    """Fields by name, the last of each, and the files in their order."""

    fields: dict[str, str] = field(default_factory=dict)
    files: list[Upload] = field(default_factory=list)

    def text(self, name: str) -> str:
        return self.fields.get(name, "").strip()

    def flag(self, name: str) -> bool:
        """A boolean field; Problem for anything else."""
        value = self.text(name).lower()
        if value not in ("", "true", "false", "1", "0"):
            raise Problem(422, "field", f"The field {name} is true or false.")
        return value in ("true", "1")


@asynccontextmanager
async def form(
    request: Request, accepted: set[str], *, max_files: int, many: bool = False
) -> AsyncIterator[Form]:
    """The form of a request; its files are gone when the block ends, however it does.

    A field that is not among the accepted ones is refused by name: a misspelt one would do nothing.
    """
    exchange = exchanges.of(request)
    began = time.perf_counter()
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type == "application/x-www-form-urlencoded":
        yield Form(known(await pairs(request), accepted))
        return
    if media_type != "multipart/form-data":
        raise Problem(415, "form", "Send multipart/form-data.")
    parser = (ManyFiles if many else Parser)(
        request.headers,
        request.stream(),
        max_files=max_files,
        max_fields=MAX_FIELDS,
        max_part_size=MAX_FIELD,
    )
    try:
        await parse(parser, max_files)
        read = sorted_out(parser, accepted)
        exchange.upload_s = time.perf_counter() - began
        yield read
    finally:
        for _, value in parser.items:
            if isinstance(value, UploadFile):
                value.file.close()
        for spooled in parser._files_to_close_on_error:
            spooled.close()


async def parse(parser: MultiPartParser, max_files: int) -> None:
    try:
        await parser.parse()
    except ClientDisconnect:
        raise ClientGone from None
    except MultiPartException as error:
        raise malformed(error, max_files) from None
    except (UnicodeError, ValueError, LookupError):
        raise unreadable() from None


def sorted_out(parser: MultiPartParser, accepted: set[str]) -> Form:
    """Files and known fields of a form that was read."""
    form = Form()
    fields: list[tuple[str, str]] = []
    for name, value in parser.items:
        if not isinstance(value, UploadFile):
            fields.append((name, value))
        elif name != "files":
            raise Problem(422, "field", "Files are sent in the field files.")
        elif value.size:
            form.files.append(Upload(shown_name(value.filename), value.file, value.size))
        elif value.filename:
            raise Problem(422, "file_empty", "A file is empty.")
    form.fields = known(fields, accepted)
    return form


async def pairs(request: Request) -> list[tuple[str, str]]:
    """Fields of a form without files."""
    content = bytearray()
    try:
        async for piece in request.stream():
            content += piece
            if len(content) > MAX_FIELD * 4:
                raise Problem(413, "fields", "The form is too long.")
        return parse_qsl(
            content.decode(), keep_blank_values=True, max_num_fields=MAX_FIELDS, errors="strict"
        )
    except ClientDisconnect:
        raise ClientGone from None
    except (UnicodeError, ValueError):
        raise unreadable() from None


def known(fields: list[tuple[str, str]], accepted: set[str]) -> dict[str, str]:
    """The last value of each field; a Problem for an unknown field."""
    if any(name not in accepted for name, _ in fields):
        names = ", ".join(sorted(accepted))
        raise Problem(422, "field", f"A field is not known; known are files, {names}.")
    try:
        # UTF-7, which a client may name, can hold half a character.
        for _, value in fields:
            value.encode()
    except UnicodeEncodeError:
        raise unreadable() from None
    return dict(fields)


def malformed(error: MultiPartException, max_files: int) -> Problem:
    text = error.message
    if text.startswith("Too many files"):
        return Problem(413, "files", f"A request takes {max_files} files at most.")
    if text.startswith(("Too many fields", "Part exceeded")):
        return Problem(413, "fields", "The form has too many fields or one that is too long.")
    return unreadable()


def unreadable() -> Problem:
    return Problem(400, "form", "The form cannot be read.")


def shown_name(name: str | None) -> str:
    """The printable part of a file's name, without the folders of the client's machine."""
    last = (name or "").replace("\\", "/").rpartition("/")[2]
    return "".join(character for character in last if character.isprintable())[:NAME_LENGTH] or ""


def use_folder(settings: Settings) -> None:
    """Spool uploads beside the gateway's data, where room was planned for them."""
    folder = settings.data_dir / "uploads"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    for left in folder.iterdir():
        # A killed process may have left a file where the file system has no unnamed files.
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)
    tempfile.tempdir = str(folder)
