"""Videos of a row: decoded once, and sampled as Qwen-VL samples them."""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from loraline.base import pixels
from loraline.data.checks import REPAIR, BadRow, Policy
from loraline.data.reading.contents import Media
from loraline.data.reading.images import DEEP, OPENED, packed, refuse_deep_color, standardized
from loraline.data.reading.media import Fetch, Limits, content_of, label, measure, over_limit
from loraline.records import Video

FRAME_FACTOR, MIN_FRAMES = 2, 4
"""Frames come in pairs, and at least four (qwen-vl-utils, vision_process.py)."""

JPEG_QUALITY = 95


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


def frame_indices(total: int, rate: float, limits: Limits) -> list[int]:
    """Frames to take of `total` at `rate` frames a second, evenly from the first to the last.

    As qwen-vl-utils samples: `fps` frames a second, an even number, four at least.
    """
    most_frames = min(limits.frames, total) // FRAME_FACTOR * FRAME_FACTOR
    count_wanted = min(max(total / rate * limits.fps, MIN_FRAMES), most_frames)
    count = max(FRAME_FACTOR, math.floor(count_wanted / FRAME_FACTOR) * FRAME_FACTOR)
    return [round(index * (total - 1) / (count - 1)) for index in range(count)]


def load_video(
    medium: Media,
    fetch: Fetch,
    limits: Limits,
    cell: int,
    actions: Policy,
    flagged: list[str],
    window: tuple[float, float] | None = None,
) -> Clip:
    """Decode a video and sample its frames, as JPEG; a list of paths is frames already sampled.

    `window` gives the values that are black and white in frames of more than eight bits.
    """
    import imagehash
    from PIL import Image

    if isinstance(medium, str | bytes):
        content = content_of(medium, fetch, limits, "video")
        frames, fps = sampled(content, medium, limits)
        source = hashlib.sha256(content).digest()
    else:
        if len(medium) > limits.frames:
            raise over_limit("video", medium, f"{len(medium)} frames", limits.frames)
        contents = [content_of(name, fetch, limits, "frame") for name in medium]
        try:
            frames = [Image.open(io.BytesIO(item), formats=OPENED) for item in contents]
            for frame in frames:
                measure("frame", medium, frame.width, frame.height, limits)
                refuse_deep_color("a frame of video", medium, frame, window)
            window = window or shared_range(frames)
            upright = [standardized(frame, window) for frame in frames]
            if any(new is not frame for new, frame in zip(upright, frames, strict=True)):
                if actions["appearance"] != REPAIR:
                    raise BadRow(
                        "appearance",
                        f"a frame of video {label(medium)} is turned, partly transparent, or "
                        "deeper than 8 bits",
                    )
                flagged.append("appearance")
            frames = [frame.convert("RGB") for frame in upright]
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise BadRow(
                "media_broken", f"video {label(medium)} cannot be decoded: {error}"
            ) from error
        fps = limits.fps
        source = hashlib.sha256(
            b"".join(hashlib.sha256(item).digest() for item in contents)
        ).digest()
    height, width = frames[0].height, frames[0].width
    near = int.from_bytes(packed(imagehash.phash(frames[len(frames) // 2]).hash), "big")
    return Clip(
        Video(tuple(as_jpeg(frame, limits, cell) for frame in frames), fps),
        source,
        height,
        width,
        near,
    )


def shared_range(frames: Sequence[Any]) -> tuple[float, float] | None:
    """The lowest and the highest value of frames of more than eight bits; None if there is none.

    A range of each frame would make a video flicker.
    """
    import numpy as np

    deep = [np.asarray(frame) for frame in frames if frame.mode in DEEP]
    low = min((float(values.min()) for values in deep), default=0.0)
    high = max((float(values.max()) for values in deep), default=0.0)
    return (low, high) if low < high else None


def sampled(content: bytes, medium: Media, limits: Limits) -> tuple[list[Any], float]:
    """Sampled frames of an encoded video as RGB images, and how many make a second."""
    import av

    try:
        with av.open(io.BytesIO(content), "r") as container:
            if not container.streams.video:
                raise BadRow("media_broken", f"video {label(medium)} has no picture")
            stream = container.streams.video[0]
            measure("video", medium, stream.width, stream.height, limits)
            rate = float(stream.average_rate or stream.base_rate or 0)
            total = sum(map(becomes_frame, container.demux(stream)))
        if total > limits.video_frames:
            raise over_limit("video", medium, f"{total} frames", limits.video_frames)
        if total < FRAME_FACTOR or rate <= 0:
            raise BadRow(
                "media_broken", f"video {label(medium)} has {total} frames, expected 2 or more"
            )
        indices = frame_indices(total, rate, limits)
        frames = {}
        with av.open(io.BytesIO(content), "r") as container:
            for index, frame in enumerate(container.decode(video=0)):
                if index in indices:
                    frames[index] = upright(frame)
        if len(frames) != len(set(indices)):
            raise BadRow("media_broken", f"video {label(medium)} ends after {len(frames)} frames")
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise BadRow("media_broken", f"video {label(medium)} cannot be decoded: {error}") from error
    return [frames[index] for index in indices], len(indices) / total * rate


def becomes_frame(packet: Any) -> bool:
    """Whether a packet becomes a frame: of a film that was cut, some are read for others alone."""
    return bool(packet.size) and not packet.is_discard


def upright(frame: Any) -> Any:
    """A decoded frame as an RGB image, turned as players show it: telephones store a film on its
    side, with the angle beside it."""
    image = frame.to_image()
    return image.rotate(frame.rotation, expand=True) if frame.rotation % 90 == 0 else image


def as_jpeg(frame: Any, limits: Limits, cell: int) -> bytes:
    """A frame as JPEG, resized as the processor would where it is over the limit."""
    if frame.width * frame.height > limits.frame_pixels:
        height, width = pixels.resized(
            frame.height, frame.width, cell=cell, min_pixels=0, max_pixels=limits.frame_pixels
        )
        frame = frame.resize((width, height))
    buffer = io.BytesIO()
    frame.save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()
