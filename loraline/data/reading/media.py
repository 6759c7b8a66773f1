"""Images and videos of a row: found inside their source, held against the limits, decoded once."""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
import math
import stat
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from loraline.data import pixels
from loraline.data.checks import REPAIR, BadRow, Policy
from loraline.data.reading.formats import Media
from loraline.errors import UserError
from loraline.records import Video

TYPES = {
    "PNG": (".png",),
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "WEBP": (".webp",),
    "BMP": (".bmp",),
    "GIF": (".gif",),
    "TIFF": (".tif", ".tiff"),
}
"""Image types that are read, as Pillow names them, with the endings of their names."""

FRAME_FACTOR, MIN_FRAMES = 2, 4
"""Frames come in pairs, and at least four (qwen-vl-utils, vision_process.py)."""

JPEG_QUALITY = 95

EXIF_ORIENTATION = 0x0112
"""Tag of the EXIF standard; 1 is upright."""


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


def limits(choices: Sequence[str] = ()) -> Limits:
    """The limits, with choices written as `name=value`."""
    chosen: dict[str, Any] = {}
    for choice in choices:
        name, _, value = choice.partition("=")
        kind: Any = type(getattr(Limits, name, None))
        if kind is type(None) or name not in Limits.__dataclass_fields__:
            accepted = ", ".join(Limits.__dataclass_fields__)
            raise UserError(f"unknown limit {name!r} in {choice!r}; accepted: {accepted}")
        try:
            chosen[name] = kind(value)
        except ValueError:
            raise UserError(f"limit {name} cannot be {value!r}: expected {kind.__name__}") from None
        if not chosen[name] > 0:
            raise UserError(f"limit {name} cannot be {value!r}: expected more than 0")
    return Limits(**chosen)


@dataclass(frozen=True)
class Picture:
    """An image that was decoded without error."""

    content: bytes
    source: bytes
    """SHA-256 of the image's file."""

    height: int
    width: int
    near: int
    """Perceptual hash, 64 bits."""


@dataclass(frozen=True)
class Clip:
    """A video that was decoded and sampled."""

    video: Video
    source: bytes
    """SHA-256 of the video's file; decoders differ in the last bit, files do not."""

    height: int
    width: int
    near: int
    """Perceptual hash of the middle frame, 64 bits."""


Fetch = Callable[[str], Path]
"""Local path of a file of the source, by its name; raises BadRow when it is not inside."""


def content_of(medium: str | bytes, fetch: Fetch, most: Limits, kind: str) -> bytes:
    """Bytes of one medium."""
    if isinstance(medium, bytes):
        content = medium
    elif medium.startswith("data:"):
        head, _, body = medium.partition(",")
        try:
            content = base64.b64decode(body, validate=True) if head.endswith(";base64") else b""
        except binascii.Error as error:
            raise BadRow("media_broken", f"{kind} in a data URI is not base64") from error
    elif "://" in medium[:16]:
        raise BadRow(
            "media_missing", f"{kind} {medium[:80]!r} is an address, expected a file of the source"
        )
    else:
        try:
            path = fetch(medium)
            found = path.stat()
            if not stat.S_ISREG(found.st_mode):
                raise BadRow("media_missing", f"{kind} {medium[:80]!r} is not a regular file")
            if found.st_size > most.media_bytes:
                raise over(kind, medium, f"{found.st_size} bytes", most.media_bytes)
            content = path.read_bytes()
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise BadRow(
                "media_missing", f"{kind} {medium[:80]!r} cannot be read: {reason}"
            ) from error
    if len(content) > most.media_bytes:
        raise over(kind, medium, f"{len(content)} bytes", most.media_bytes)
    return content


def named(medium: str | bytes | Sequence[str]) -> str:
    """A medium for people."""
    if isinstance(medium, str):
        return repr(medium[:80]) if not medium.startswith("data:") else "in a data URI"
    return "in the row" if isinstance(medium, bytes) else f"of {len(medium)} frames"


def over(kind: str, medium: Media, size: str, limit: float) -> BadRow:
    return BadRow("media_limits", f"{kind} {named(medium)} has {size}, the limit is {limit:,.15g}")


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


def load_image(
    medium: str | bytes, fetch: Fetch, most: Limits, actions: Policy, found: list[str]
) -> Picture:
    """Read and decode an image; its pixels are looked at once and forgotten."""
    import imagehash
    from PIL import Image

    content = content_of(medium, fetch, most, "image")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(content), formats=list(TYPES))
        measure("image", medium, image.width, image.height, most)
        if getattr(image, "n_frames", 1) > 1:
            raise BadRow("media_type", f"image {named(medium)} is animated; give it as a video")
        image.load()
        shown = as_shown(image)
        near = int.from_bytes(packed(imagehash.phash(shown).hash), "big")
    except Image.DecompressionBombError:
        raise over("image", medium, "far more pixels", most.image_pixels) from None
    except (OSError, ValueError, SyntaxError, EOFError) as error:
        reason = str(error).partition(" <_io")[0]
        raise BadRow(
            "media_broken", f"image {named(medium)} cannot be decoded: {reason}"
        ) from error
    ending = PurePosixPath(medium).suffix.lower() if isinstance(medium, str) else ""
    known = {name for names in TYPES.values() for name in names}
    if ending in known and ending not in TYPES[image.format or ""]:
        if actions["media_type"] != REPAIR:
            raise BadRow("media_type", f"image {named(medium)} is {image.format} by its content")
        found.append("media_type")
    source = hashlib.sha256(content).digest()
    if shown is not image:
        if actions["appearance"] != REPAIR:
            raise BadRow("appearance", f"image {named(medium)} is turned or has transparent parts")
        found.append("appearance")
        buffer = io.BytesIO()
        shown.save(buffer, "PNG")
        content = buffer.getvalue()
    return Picture(content, source, shown.height, shown.width, near)


def as_shown(image: Any) -> Any:
    """The image upright and on white; the same object where it is so already.

    vLLM turns images by their EXIF orientation and lays transparent ones on white; the processors
    of transformers do neither.
    """
    from PIL import Image, ImageOps

    if image.getexif().get(EXIF_ORIENTATION, 1) != 1:
        image = ImageOps.exif_transpose(image)
    if image.mode == "RGBA" and image.getextrema()[3][0] < 255:
        white = Image.new("RGB", image.size, (255, 255, 255))
        white.paste(image, mask=image.getchannel("A"))
        image = white
    return image


def packed(bits: Any) -> bytes:
    import numpy as np

    return bytes(np.packbits(bits).tobytes())


def measure(kind: str, medium: Media, width: int, height: int, most: Limits) -> None:
    """Hold a size in pixels against the limits."""
    if width * height > most.image_pixels:
        raise over(kind, medium, f"{width} x {height} pixels", most.image_pixels)
    if max(width, height) > most.aspect_ratio * min(width, height):
        raise BadRow(
            "media_limits",
            f"{kind} {named(medium)} is {width} x {height} pixels, the limit of the aspect ratio "
            f"is {most.aspect_ratio}",
        )


def frame_indices(total: int, rate: float, most: Limits) -> list[int]:
    """Frames to take of `total` at `rate` frames a second, evenly from the first to the last.

    As qwen-vl-utils samples: `fps` frames a second, an even number, four at least.
    """
    most_frames = min(most.frames, total) // FRAME_FACTOR * FRAME_FACTOR
    wanted = min(max(total / rate * most.fps, MIN_FRAMES), most_frames)
    count = max(FRAME_FACTOR, math.floor(wanted / FRAME_FACTOR) * FRAME_FACTOR)
    return [round(index * (total - 1) / (count - 1)) for index in range(count)]


def load_video(medium: Media, fetch: Fetch, most: Limits, cell: int) -> Clip:
    """Decode a video and sample its frames, as JPEG; a list of paths is frames already sampled."""
    import imagehash
    from PIL import Image

    if isinstance(medium, str | bytes):
        content = content_of(medium, fetch, most, "video")
        frames, fps = sampled(content, medium, most)
        source = hashlib.sha256(content).digest()
    else:
        if len(medium) > most.frames:
            raise over("video", medium, f"{len(medium)} frames", most.frames)
        contents = [content_of(name, fetch, most, "frame") for name in medium]
        try:
            frames = [Image.open(io.BytesIO(item), formats=list(TYPES)) for item in contents]
            for frame in frames:
                measure("frame", medium, frame.width, frame.height, most)
            frames = [frame.convert("RGB") for frame in frames]
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise BadRow(
                "media_broken", f"video {named(medium)} cannot be decoded: {error}"
            ) from error
        fps = most.fps
        source = hashlib.sha256(
            b"".join(hashlib.sha256(item).digest() for item in contents)
        ).digest()
    height, width = frames[0].height, frames[0].width
    near = int.from_bytes(packed(imagehash.phash(frames[len(frames) // 2]).hash), "big")
    return Clip(
        Video(tuple(as_jpeg(frame, most, cell) for frame in frames), fps),
        source,
        height,
        width,
        near,
    )


def sampled(content: bytes, medium: Media, most: Limits) -> tuple[list[Any], float]:
    """Sampled frames of an encoded video as RGB images, and how many make a second."""
    import av

    try:
        with av.open(io.BytesIO(content), "r") as container:
            if not container.streams.video:
                raise BadRow("media_broken", f"video {named(medium)} has no picture")
            stream = container.streams.video[0]
            measure("video", medium, stream.width, stream.height, most)
            rate = float(stream.average_rate or stream.base_rate or 0)
            total = len([packet for packet in container.demux(stream) if packet.size])
        if total > most.video_frames:
            raise over("video", medium, f"{total} frames", most.video_frames)
        if total < FRAME_FACTOR or rate <= 0:
            raise BadRow(
                "media_broken", f"video {named(medium)} has {total} frames, expected 2 or more"
            )
        wanted = frame_indices(total, rate, most)
        frames = {}
        with av.open(io.BytesIO(content), "r") as container:
            for index, frame in enumerate(container.decode(video=0)):
                if index in wanted:
                    frames[index] = frame.to_image()
        if len(frames) != len(set(wanted)):
            raise BadRow("media_broken", f"video {named(medium)} ends after {len(frames)} frames")
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise BadRow("media_broken", f"video {named(medium)} cannot be decoded: {error}") from error
    return [frames[index] for index in wanted], len(wanted) / total * rate


def as_jpeg(frame: Any, most: Limits, cell: int) -> bytes:
    """A frame as JPEG, resized as the processor would where it is over the limit."""
    if frame.width * frame.height > most.frame_pixels:
        height, width = pixels.resized(
            frame.height, frame.width, cell=cell, min_pixels=0, max_pixels=most.frame_pixels
        )
        frame = frame.resize((width, height))
    buffer = io.BytesIO()
    frame.save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()
