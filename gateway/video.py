"""Untrusted videos: a separate process decodes them, and they are sent on as frames."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import math
import os
import sys
from dataclasses import dataclass
from typing import IO, Any

from gateway import images
from gateway.errors import Problem
from gateway.settings import Settings

MAX_FRAMES_BYTES = 128 * 2**20

REFUSALS = {
    "media_seconds": "A video is longer than {max_seconds:g} seconds.",
    "media_frames": "A video has more frames than are read.",
    "media_pixels": "A video's frames have more than {max_pixels:,} pixels or 4,096 a side.",
    "media_broken": "A video cannot be decoded.",
}


@dataclass(frozen=True)
class Clip:
    """Frames of a video as JPEG, and their indices."""

    frames: tuple[bytes, ...]
    sha256: str
    width: int
    height: int
    fps: float
    """Frames a second of the video itself."""

    indices: tuple[int, ...]
    total: int
    duration: float
    """Seconds."""

    @property
    def uri(self) -> str:
        """The frames in the form that vLLM takes them (multimodal/media/video.py)."""
        return "data:video/jpeg;base64," + ",".join(
            base64.b64encode(frame).decode() for frame in self.frames
        )

    @property
    def io_kwargs(self) -> dict[str, Any]:
        """What goes with the frames; -1 because vLLM drops those beyond 32 otherwise."""
        return {
            "video": {
                "num_frames": -1,
                "fps": self.fps,
                "frames_indices": list(self.indices),
                "total_num_frames": self.total,
                "duration": self.duration,
            }
        }


def format_of(head: bytes) -> str | None:
    """The container's format by its first bytes."""
    if head[4:8] == b"ftyp":
        return "mp4"
    if head[:4] == b"\x1a\x45\xdf\xa3":
        return "mkv"
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        return "avi"
    return None


async def decode(
    file: IO[bytes],
    video_format: str,
    settings: Settings,
    *,
    max_frames: int,
    max_seconds: float,
    cell: int,
) -> Clip:
    """The frames of a video; Problem if it exceeds the limits or is not a video."""
    file.seek(0)
    digest = await asyncio.to_thread(digest_of, file)
    file.seek(0)
    request = {
        "format": video_format,
        "max_pixels": settings.max_pixels,
        "max_seconds": max_seconds,
        "max_frames": max_frames,
        "cell": cell,
        "seconds_cpu": math.ceil(settings.video_timeout_s),
    }
    # The child shares the descriptor's offset: the file is read from its start.
    os.lseek(file.fileno(), 0, os.SEEK_SET)
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "gateway.frames",
        json.dumps(request),
        stdin=file.fileno(),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        env={"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"},
        limit=2**20,
    )
    try:
        async with asyncio.timeout(settings.video_timeout_s):
            facts, frames = await read(process)
    except (TimeoutError, ValueError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
        raise images.broken() from None
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
    if process.returncode == 1:
        # Not the file's fault: with any file the program answers, or a signal ends it.
        raise RuntimeError("the decoder does not start")
    if code := facts.get("refused"):
        detail = REFUSALS.get(code, REFUSALS["media_broken"])
        raise Problem(
            422, code, detail.format(max_seconds=max_seconds, max_pixels=settings.max_pixels)
        )
    return Clip(
        tuple(frames),
        digest,
        facts["width"],
        facts["height"],
        facts["fps"],
        tuple(facts["indices"]),
        facts["total"],
        facts["duration"],
    )


def digest_of(file: IO[bytes]) -> str:
    digest = hashlib.sha256()
    while piece := file.read(2**20):
        digest.update(piece)
    return digest.hexdigest()


async def read(process: asyncio.subprocess.Process) -> tuple[dict[str, Any], list[bytes]]:
    assert process.stdout is not None
    facts = json.loads(await process.stdout.readline() or b'{"refused": "media_broken"}')
    frames = []
    left = MAX_FRAMES_BYTES
    for _ in facts.get("indices", ()):
        size = int.from_bytes(await process.stdout.readexactly(4), "big")
        left -= size
        if left < 0:
            raise ValueError("frames are too large")
        frames.append(await process.stdout.readexactly(size))
    return facts, frames
