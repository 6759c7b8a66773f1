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
from loraline.data.reading.conversations import Media
from loraline.errors import UserError
from loraline.records import Video

TYPES = {
    "PNG": (".png",),
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "MPO": (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),
    "WEBP": (".webp",),
    "BMP": (".bmp",),
    "GIF": (".gif",),
    "TIFF": (".tif", ".tiff"),
}
"""Image types that are read, as Pillow names them, with the endings of their names. MPO is what
phones and stereo cameras write: a JPEG with more pictures after the first, which is the one."""

OPENED = [name for name in TYPES if name != "MPO"]
"""Pillow opens MPO as JPEG."""

NOT_READ = {
    b"%PDF": "PDF",
    b"\0\0\1\0": "ICO",
    b"\0\0\0\x0cjP  ": "JPEG 2000",
    b"\xff\x4f\xff\x51": "JPEG 2000",
    b"P1": "PBM",
    b"P2": "PGM",
    b"P3": "PPM",
    b"P4": "PBM",
    b"P5": "PGM",
    b"P6": "PPM",
    b"8BPS": "PSD",
    b"\xff\x0a": "JPEG XL",
    b"\0\0\0\x0cJXL ": "JPEG XL",
    b"DICM": "DICOM",
    b"\x93NUMPY": "a NumPy array",
    b"v/1\1": "OpenEXR",
    b"%!PS": "PostScript",
}
"""First bytes of whole pictures that are not read, with the names of their types."""

BRANDS = {b"avif": "AVIF", b"avis": "AVIF", b"heic": "HEIC", b"heix": "HEIC", b"mif1": "HEIC"}
"""Brands of files that begin with an ISO base media box, after its size and `ftyp`."""

DICOM_AT = 128
"""Bytes before the mark of a DICOM file."""

EIGHT_BITS = {"1", "L", "P", "RGB", "RGBA", "LA", "PA", "CMYK", "YCbCr", "RGBX", "RGBa", "La"}
"""Color modes of Pillow that become RGB as they are."""

DEEP = {"I", "I;16", "I;16L", "I;16B", "I;16N", "F"}
"""Color modes with more than eight bits: Pillow would cut their values off."""

FRAME_FACTOR, MIN_FRAMES = 2, 4
"""Frames come in pairs, and at least four (qwen-vl-utils, vision_process.py)."""

JPEG_QUALITY = 95

LEAST_BASE64 = 64
BASE64_BEGINS = ("iVBORw0KGgo", "/9j/", "R0lGOD", "UklGR", "Qk0", "SUkq", "TU0A")
"""First letters of PNG, JPEG, GIF, WebP, BMP and TIFF in base64."""

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
        content = bare_base64(medium) or file_content(medium, fetch, most, kind)
    if len(content) > most.media_bytes:
        raise over(kind, medium, f"{len(content)} bytes", most.media_bytes)
    return content


def bare_base64(medium: str) -> bytes | None:
    """An image that is written as base64 without `data:`; None for a path."""
    if len(medium) < LEAST_BASE64 or not medium.startswith(BASE64_BEGINS):
        return None
    try:
        return base64.b64decode(medium, validate=True)
    except binascii.Error:
        return None


def file_content(medium: str, fetch: Fetch, most: Limits, kind: str) -> bytes:
    """Bytes of a file of the source."""
    try:
        path = fetch(medium)
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise BadRow("media_missing", f"{kind} {medium[:80]!r} is not a regular file")
        if found.st_size > most.media_bytes:
            raise over(kind, medium, f"{found.st_size} bytes", most.media_bytes)
        return path.read_bytes()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)[:60]
        hint = "say where media lie with `media: folder` in datasets.yaml"
        if "\\" in medium:
            hint = "write / in its path, not \\"
        raise BadRow(
            "media_missing", f"{kind} {medium[:80]!r} cannot be read: {reason}; {hint}"
        ) from error


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
    medium: str | bytes,
    fetch: Fetch,
    most: Limits,
    actions: Policy,
    found: list[str],
    window: tuple[float, float] | None = None,
) -> Picture:
    """Read and decode an image; its pixels are looked at once and forgotten.

    `window` gives the values that are black and white in a picture of more than eight bits.
    """
    import imagehash
    from PIL import Image

    content = content_of(medium, fetch, most, "image")
    if unread := type_not_read(content):
        remedy = "give its pages as PNG" if unread == "PDF" else "convert it to PNG or JPEG"
        raise BadRow(
            "media_format", f"image {named(medium)} is {unread}, which is not read; {remedy}"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(content), formats=OPENED)
        measure("image", medium, image.width, image.height, most)
        frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
        if frames > 1 and actions["media_frames"] != REPAIR:
            raise BadRow(
                "media_frames",
                f"image {named(medium)} has {frames} frames; give it as a video, or take the first "
                "with --on media_frames=repair",
            )
        image.seek(0)
        image.load()
        shown = as_shown(image, window)
        near = int.from_bytes(packed(imagehash.phash(shown).hash), "big")
    except Image.DecompressionBombError:
        raise over("image", medium, "far more pixels", most.image_pixels) from None
    except (OSError, ValueError, SyntaxError, EOFError) as error:
        reason = str(error).partition(" <_io")[0][:80]
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
            raise BadRow(
                "appearance",
                f"image {named(medium)} is turned, has transparent parts or more than 8 bits",
            )
        found.append("appearance")
    if frames > 1:
        found.append("media_frames")
    if shown is not image or frames > 1:
        buffer = io.BytesIO()
        shown.convert("RGB").save(buffer, "PNG")
        content = buffer.getvalue()
    return Picture(content, source, shown.height, shown.width, near)


def type_not_read(content: bytes) -> str | None:
    """The name of a type of picture that is not read, by its first bytes."""
    for begin, name in NOT_READ.items():
        of_two = begin.startswith(b"P") and len(begin) == 2
        if content.startswith(begin) and (not of_two or content[2:3].isspace()):
            return name
    if content[4:8] == b"ftyp":
        return BRANDS.get(content[8:12], "a video")
    if content[DICOM_AT : DICOM_AT + 4] == b"DICM":
        return "DICOM"
    head = content[:1024].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    return "SVG" if head.startswith((b"<svg", b"<?xml")) and b"<svg" in head else None


def as_shown(image: Any, window: tuple[float, float] | None = None) -> Any:
    """The image upright, on white and in eight bits; the same object where it is so already.

    vLLM turns images by their EXIF orientation and lays transparent ones on white; the processors
    of transformers do neither. Pillow cuts the values of deep pictures off at 255. Raises BadRow
    for a color mode that does not become RGB.
    """
    from PIL import Image, ImageOps

    if image.getexif().get(EXIF_ORIENTATION, 1) != 1:
        image = ImageOps.exif_transpose(image)
    if image.mode in DEEP:
        return eight_bits(image, window)
    if image.mode not in EIGHT_BITS:
        raise BadRow("media_format", f"an image has color mode {image.mode}; convert it to RGB")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        clear = image if image.mode == "RGBA" else image.convert("RGBA")
        if clear.getextrema()[3][0] < 255:
            white = Image.new("RGB", image.size, (255, 255, 255))
            white.paste(clear, mask=clear.getchannel("A"))
            return white
    return image


def eight_bits(image: Any, window: tuple[float, float] | None) -> Any:
    """A picture of 16 bits, 32 bits or floats in grey, black to white over a range of values.

    The range is `window`, or that of the picture's own values. Raises BadRow where a value is not
    finite.
    """
    import numpy as np
    from PIL import Image

    values = np.asarray(image).astype(np.float64)
    if not np.isfinite(values).all():
        raise BadRow("media_broken", "an image holds values that are not finite")
    low, high = window or (float(values.min()), float(values.max()))
    scaled = (values - low) * (255 / (high - low)) if high > low else np.zeros_like(values)
    return Image.fromarray(np.clip(np.rint(scaled), 0, 255).astype(np.uint8), "L")


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
            frames = [Image.open(io.BytesIO(item), formats=OPENED) for item in contents]
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
