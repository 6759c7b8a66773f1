"""Untrusted images: their format by their content, their size, and whether they decode."""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
import re
import struct
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from typing import Any, Literal

from gateway.errors import Problem
from gateway.settings import MIB, Settings
from loraline.base import pixels

MAGIC = {
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"\xff\xd8\xff": "JPEG",
    b"GIF87a": "GIF",
    b"GIF89a": "GIF",
    b"BM": "BMP",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
}
MIME = {
    "PNG": "image/png",
    "JPEG": "image/jpeg",
    "GIF": "image/gif",
    "WEBP": "image/webp",
    "BMP": "image/bmp",
    "TIFF": "image/tiff",
}
WHOLE_PIXELS = 16_000_000
"""Up to here an image is decoded to see that it is whole; beyond it, only its checksums are read:
the pixels of the largest would take 256 MB."""

DEEP = ("I", "F")
"""Beginnings of Pillow's modes of grey pictures with more than 8 bits. Pillow, and so vLLM, cuts
their values off at 255; of a color with 16 bits it takes the higher 8."""

ORIENTATION = 0x0112
TURNED = (5, 6, 7, 8)
"""Values of that EXIF tag for images that lie on their side."""

SEGMENT = re.compile(rb"\xff([\x02-\xcf\xd8-\xfe])")
"""Where a segment of a JPEG begins; in data, a byte of 255 is followed by 0 or a restart's mark."""

SCAN, END = 0xDA, 0xD9
MOST_SCANS = 100
"""Passes over the pixels of a JPEG: encoders write about ten. One may have a hundred bytes, and
takes as long as its pixels."""

MOST_PARTS = 100_000
"""Segments of a JPEG, chunks of a PNG, and strips or tiles of a TIFF. Pillow takes some 250 bytes
and 6 microseconds for each, and a file has room for millions."""

TEXT, PROGRAM = b"\xfe", b"\xff"
"""Labels of a GIF's extensions."""

MOST_TEXTS = 10_000
"""Blocks of a GIF's texts."""

OFFSETS = (273, 324)
"""Tags of a TIFF with the place of each strip and of each tile."""

BYTES = (1, 2, 6, 7)
"""Types of a TIFF's values that take a byte each, as a color profile does."""

ZIP_END, ZIP_END_SIZE = b"PK\x05\x06", 22
MARKUP = (b"<!doctype", b"<html", b"<script", b"<svg", b"<?php", b"%pdf-", b"#extm3u", b"ffconcat")
"""Beginnings of other formats that some programs look for within the first 1,024 bytes."""


@dataclass(frozen=True)
class Picture:
    """An image that was looked at; its bytes go on as they came."""

    content: bytes
    sha256: str
    mime: str
    width: int
    height: int
    """Of the upright image, as a person and the model see it."""


def format_of(head: bytes) -> str | None:
    """Pillow's name of an image's format by its first bytes."""
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    return next((name for magic, name in MAGIC.items() if head.startswith(magic)), None)


def forbid_bombs(most: int) -> None:
    """Make Pillow's warning about very large images an error, for the whole process.

    Pillow warns from 89 million pixels on; images of `most` are to be read.
    """
    from PIL import Image

    Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS or 0, most)
    warnings.simplefilter("error", Image.DecompressionBombWarning)


def picture(content: bytes, settings: Settings) -> Picture:
    """The picture; Problem if its format is unknown, it exceeds a limit or does not decode."""
    from PIL import Image

    if len(content) > settings.max_image_mb * MIB:
        raise Problem(
            413,
            "image_too_large",
            f"An image is larger than {settings.max_image_mb:g} MiB.",
            limit_bytes=int(settings.max_image_mb * MIB),
        )
    image_format = format_of(content[:16])
    if image_format is None:
        raise unsupported()
    check_single(content, image_format)
    if image_format in CHECKS:
        CHECKS[image_format](content)
    try:
        image = Image.open(io.BytesIO(content), formats=[image_format])
        width, height = image.size
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise too_many_pixels(settings) from None
    except Exception:
        raise broken() from None
    if width * height > settings.max_pixels:
        raise too_many_pixels(settings)
    if image.mode.startswith(DEEP):
        raise Problem(
            422,
            "media_depth",
            "A grey image has more than 8 bits, of which the model would see white; send it in 8.",
        )
    if width * height == 0 or max(width, height) > pixels.MAX_RATIO * min(width, height):
        raise Problem(
            422,
            "image_ratio",
            f"An image is {width} x {height} pixels; one side may be {pixels.MAX_RATIO} times the "
            "other.",
        )
    try:
        # Of a TIFF, Pillow's size is that of the upright image already.
        turned = (
            image_format != "TIFF"
            and exif_of(image, image_format, content).get(ORIENTATION, 1) in TURNED
        )
        decode(image, image_format)
    except Exception:
        raise broken() from None
    size = (height, width) if turned else (width, height)
    return Picture(content, hashlib.sha256(content).hexdigest(), MIME[image_format], *size)


def exif_of(image: Any, image_format: str, content: bytes) -> Any:
    """The EXIF of an image that is not decoded yet. Pillow decodes a PNG whole to look behind its
    pixels as well; here its chunks are walked."""
    from PIL import Image

    if image_format == "PNG" and "exif" not in image.info:
        for name, start, stop in png_chunks(content):
            if name == b"eXIf":
                image.info["exif"] = b"Exif\0\0" + content[start:stop]
    return Image.Image.getexif(image)


def decode(image: Any, image_format: str) -> None:
    """Raise Pillow's error if an image is cut or damaged."""
    width, height = image.size
    if image_format == "JPEG":
        # This reads every coefficient, but makes only an eighth of the pixels.
        image.draft("RGB", (max(1, width // 8), max(1, height // 8)))
    if image_format == "JPEG" or width * height <= WHOLE_PIXELS:
        image.load()
    else:
        image.verify()


def check_scans(content: bytes) -> None:
    """Refuse a JPEG that a decoder would go through again and again, for hours."""
    scans, place = 0, 2
    for _ in range(MOST_PARTS):
        match = SEGMENT.search(content, place)
        if match is None or match[1][0] == END:
            return
        scans += match[1][0] == SCAN
        if scans > MOST_SCANS:
            break
        place = match.end() + max(2, int.from_bytes(content[match.end() : match.end() + 2]))
    raise too_many_parts()


def check_blocks(content: bytes) -> None:
    """Refuse a GIF with a very long text before its first frame, walked as Pillow walks it: that
    copies all of a text for each block that it adds."""
    flags = int.from_bytes(content[10:11])
    place = 13 + (6 << (flags & 7) if flags & 128 else 0)
    parts = texts = 0

    def block() -> bytes:
        nonlocal place, parts
        parts += 1
        if parts > MOST_PARTS or texts > MOST_TEXTS:
            raise too_many_parts()
        size = int.from_bytes(content[place : place + 1])
        place += 1 + size
        return content[place - size : place]

    while (begin := content[place : place + 1]) not in (b"", b",", b";"):
        place += 1
        if begin != b"!":
            parts += 1
            if parts > MOST_PARTS:
                raise too_many_parts()
            continue
        label = content[place : place + 1]
        place += 1
        first = block()
        texts += label == TEXT
        if label == PROGRAM and first.startswith(b"NETSCAPE2.0"):
            block()
        if label == TEXT and not first:
            continue
        while block():
            texts += label == TEXT


def check_strips(content: bytes) -> None:
    """Refuse a TIFF with a long list of numbers: Pillow reads one of strips as it opens a file."""
    order: Literal["little", "big"] = "little" if content.startswith(b"II") else "big"

    def number(at: int, size: int) -> int:
        return int.from_bytes(content[at : at + size], order)

    start = number(4, 4)
    for entry in range(start + 2, start + 2 + 12 * number(start, 2), 12):
        tag, value_type, length = number(entry, 2), number(entry + 2, 2), number(entry + 4, 4)
        # Pillow passes over a list that does not fit into the file.
        many = MOST_PARTS < length <= len(content)
        if many and (tag in OFFSETS or value_type not in BYTES):
            raise too_many_parts()


def check_single(content: bytes, image_format: str) -> None:
    """Refuse a file that is also an archive, a page or a document, or has a tail of another."""
    head = content[:1024].lower()
    if any(mark in head for mark in MARKUP) or holds_archive(content):
        raise polyglot()
    if image_format == "PNG" and content[png_end(content) :].strip(b"\0\r\n "):
        raise polyglot()
    if image_format == "WEBP" and len(content) > int.from_bytes(content[4:8], "little") + 9:
        raise polyglot()


def holds_archive(content: bytes) -> bool:
    """Whether a ZIP program would open it: they look for the directory's end from the back."""
    tail = content[-(65535 + ZIP_END_SIZE) :]
    place = tail.rfind(ZIP_END)
    while place >= 0:
        if len(tail) - place >= ZIP_END_SIZE:
            comment = int.from_bytes(tail[place + 20 : place + 22], "little")
            if place + ZIP_END_SIZE + comment <= len(tail):
                return True
        place = tail.rfind(ZIP_END, 0, place)
    return False


CHECKS = {"GIF": check_blocks, "JPEG": check_scans, "TIFF": check_strips}
"""What makes Pillow take very long is refused, by format; a PNG's chunks are counted elsewhere."""


def png_end(content: bytes) -> int:
    """Where the chunk IEND ends; the length of the file when it has none."""
    for name, _, stop in png_chunks(content):
        if name == b"IEND":
            return min(stop + 4, len(content))
    return len(content)


def png_chunks(content: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Name of each chunk, and where its data begin and end; a checksum of four bytes follows."""
    place = 8
    for number in count():
        if place + 12 > len(content):
            return
        if number == MOST_PARTS:
            raise too_many_parts()
        length, name = struct.unpack(">I4s", content[place : place + 8])
        yield name, place + 8, place + 8 + length
        place += 12 + length


def from_uri(url: str) -> tuple[str, bytes]:
    """Base64 and content of a data URI. Any other address is a Problem: none is fetched."""
    head, comma, encoded = url.partition(",")
    if not comma or not head.startswith("data:") or not head.endswith(";base64"):
        raise Problem(
            422,
            "address",
            "Media are sent inside of the request as data:TYPE;base64,CONTENT; no address is "
            "fetched.",
        )
    try:
        return encoded, base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        raise Problem(422, "base64", "An image or a video is no base64.") from None


def too_many_parts() -> Problem:
    return Problem(422, "media_parts", "An image has more parts than are read; save it anew.")


def unsupported() -> Problem:
    return Problem(
        415,
        "media_type",
        "The content of a file is none of PNG, JPEG, WebP, GIF, BMP, TIFF, MP4, MOV, WebM, MKV and "
        "AVI.",
    )


def broken() -> Problem:
    return Problem(422, "media_broken", "An image or a video cannot be decoded.")


def polyglot() -> Problem:
    return Problem(
        415, "media_mixed", "An image also holds a file of another type; send the image alone."
    )


def too_many_pixels(settings: Settings) -> Problem:
    return Problem(
        422,
        "media_pixels",
        f"An image or a video's frame has more than {settings.max_pixels:,} pixels.",
        limit=settings.max_pixels,
    )
