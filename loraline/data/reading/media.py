"""Media of a row: found inside their source and held against the limits."""

from __future__ import annotations

import base64
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loraline.base import pixels
from loraline.data.checks import BadRow
from loraline.data.reading.contents import Media
from loraline.data.reading.keys import SETTINGS
from loraline.errors import UserError

LEAST_BASE64 = 64
BASE64_BEGINS = ("iVBORw0KGgo", "/9j/", "_9j_", "R0lGOD", "UklGR", "Qk0", "SUkq", "TU0A")
"""First letters of PNG, JPEG in both alphabets, GIF, WebP, BMP and TIFF in base64."""


@dataclass(frozen=True)
class Limits:
    """What is too much; set with --limit."""

    media_bytes: int = 64 * 2**20
    """Size of one image or video as a file."""

    image_pixels: int = 64 * 10**6
    """Width times height of an image or of a video's frame, before resizing."""

    aspect_ratio: int = pixels.MAX_RATIO
    """Longest side over shortest side."""

    video_frames: int = 20_000
    """Frames of a video before sampling."""

    frames: int = 768
    """Frames of a video after sampling."""

    frame_pixels: int = 768 * 28 * 28
    """Width times height of a sampled frame; larger ones are resized (qwen-vl-utils)."""

    fps: float = 2.0
    """Frames sampled from a second of video."""

    row_bytes: int = 32 * 2**20
    """Size of one line or row of a data file, without its media in files of their own."""


def parse_limits(choices: Sequence[str] = ()) -> Limits:
    """The limits, with choices written as `name=value`."""
    chosen: dict[str, Any] = {}
    for choice in choices:
        name, _, value = choice.partition("=")
        number_type: Any = type(getattr(Limits, name, None))
        if number_type is type(None) or name not in Limits.__dataclass_fields__:
            accepted = ", ".join(Limits.__dataclass_fields__)
            raise UserError(f"unknown limit {name!r} in {choice!r}; accepted: {accepted}")
        try:
            chosen[name] = number_type(value)
        except ValueError:
            raise UserError(
                f"limit {name} cannot be {value!r}: expected {number_type.__name__}"
            ) from None
        if not chosen[name] > 0:
            raise UserError(f"limit {name} cannot be {value!r}: expected more than 0")
    return Limits(**chosen)


Fetch = Callable[[str], Path]
"""Local path of a file of the source, by its name; raises BadRow when it is not inside."""


def content_of(medium: str | bytes, fetch: Fetch, limits: Limits, medium_type: str) -> bytes:
    """Bytes of one medium."""
    if isinstance(medium, bytes):
        content = medium
    elif medium.startswith("data:"):
        head, _, body = medium.partition(",")
        try:
            content = from_base64(body) if head.endswith(";base64") else b""
        except ValueError as error:
            raise BadRow("media_broken", f"{medium_type} in a data URI is not base64") from error
    elif "://" in medium.removeprefix("file://")[:16]:
        raise BadRow(
            "media_missing",
            f"{medium_type} {medium[:80]!r} is an address, expected a file of the source",
        )
    else:
        content = bare_base64(medium) or file_content(medium, fetch, limits, medium_type)
    if len(content) > limits.media_bytes:
        raise over_limit(medium_type, medium, f"{len(content)} bytes", limits.media_bytes)
    return content


def bare_base64(medium: str) -> bytes | None:
    """An image that is written as base64 without `data:`; None for a path."""
    if len(medium) < LEAST_BASE64 or not medium.startswith(BASE64_BEGINS):
        return None
    try:
        return from_base64(medium)
    except ValueError:
        return None


def from_base64(text: str) -> bytes:
    """Content of base64, or of base64url (RFC 4648, section 5), in one line or many.

    The = at the end may be missing. Raises ValueError.
    """
    letters = "".join(text.split()).translate({ord("-"): "+", ord("_"): "/"})
    return base64.b64decode(letters + "=" * (-len(letters) % 4), validate=True)


def file_content(medium: str, fetch: Fetch, limits: Limits, medium_type: str) -> bytes:
    """Bytes of a file of the source."""
    try:
        path = fetch(medium.removeprefix("file://"))
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise BadRow("media_missing", f"{medium_type} {medium[:80]!r} is not a regular file")
        if status.st_size > limits.media_bytes:
            raise over_limit(medium_type, medium, f"{status.st_size} bytes", limits.media_bytes)
        return path.read_bytes()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)[:60]
        hint = f"say where media lie with `media: folder`, {SETTINGS}"
        if "\\" in medium:
            hint = "write / in its path, not \\"
        raise BadRow(
            "media_missing", f"{medium_type} {medium[:80]!r} cannot be read: {reason}; {hint}"
        ) from error


def label(medium: str | bytes | Sequence[str]) -> str:
    """A medium for people."""
    if isinstance(medium, str):
        return repr(medium[:80]) if not medium.startswith("data:") else "in a data URI"
    return "in the row" if isinstance(medium, bytes) else f"of {len(medium)} frames"


def over_limit(medium_type: str, medium: Media, size: str, limit: float) -> BadRow:
    return BadRow(
        "media_limits", f"{medium_type} {label(medium)} has {size}, the limit is {limit:,.15g}"
    )


def inside(folder: Path, root: Path) -> Fetch:
    """Fetch files of `folder`, or else of `root`, and nothing outside of `root`, links resolved."""

    def fetch(name: str) -> Path:
        path = (folder / name).resolve()
        if not path.is_relative_to(root.resolve()):
            raise BadRow("media_missing", f"image {name[:80]!r} lies outside of {root}")
        if not path.exists() and folder != root and inside(root, root)(name).exists():
            return inside(root, root)(name)
        return path

    return fetch


def measure(medium_type: str, medium: Media, width: int, height: int, limits: Limits) -> None:
    """Hold a size in pixels against the limits."""
    if width * height > limits.image_pixels:
        raise over_limit(medium_type, medium, f"{width} x {height} pixels", limits.image_pixels)
    if max(width, height) > limits.aspect_ratio * min(width, height):
        raise BadRow(
            "media_limits",
            f"{medium_type} {label(medium)} is {width} x {height} pixels, the limit of the aspect "
            f"ratio is {limits.aspect_ratio}",
        )
