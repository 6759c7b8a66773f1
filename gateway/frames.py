"""A separate process that decodes one video from standard input; `python -m gateway.frames`.

It has little memory and time, no secrets in its environment, and is killed when it takes too long.
The file has no name and its format is given, so FFmpeg never tries its playlist formats, which may
name any other file of the machine.

Writes one line of JSON, then each frame as four bytes of length and a JPEG.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from typing import Any, BinaryIO

import av

from loraline.data.reading.media import Limits
from loraline.data.reading.videos import as_jpeg, becomes_frame, frame_indices, upright

MEMORY = 2 * 2**30
"""Bytes of address space; the libraries map some hundred MB."""

FORMATS = {"mp4": "mov,mp4,m4a,3gp,3g2,mj2", "mkv": "matroska,webm", "avi": "avi"}
MAX_SIDE = 4096
MAX_FRAMES = 20_000


class Nameless:
    """A file without a name, which FFmpeg could follow."""

    def __init__(self, file: BinaryIO) -> None:
        self.read = file.read
        self.seek = file.seek
        self.tell = file.tell


class Refused(Exception):
    """A video beyond the limits; its argument is a code."""


def main() -> None:
    request = json.loads(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (request["seconds_cpu"], request["seconds_cpu"] + 1))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with os.fdopen(0, "rb", buffering=2**18) as file, os.fdopen(1, "wb") as out:
        try:
            write(out, *sampled(Nameless(file), request))
        except Refused as refused:
            out.write(json.dumps({"refused": refused.args[0]}).encode() + b"\n")
        except Exception:
            out.write(json.dumps({"refused": "media_broken"}).encode() + b"\n")


def sampled(file: Any, request: dict[str, Any]) -> tuple[dict[str, Any], list[bytes]]:
    """Facts of a video, and frames spread evenly over it, two a second as far as they may be."""
    with av.open(file, "r", format=FORMATS[request["format"]]) as container:
        if not container.streams.video:
            raise Refused("media_broken")
        stream = container.streams.video[0]
        width, height = stream.width, stream.height
        if max(width, height) > MAX_SIDE or width * height > request["max_pixels"]:
            raise Refused("media_pixels")
        rate = float(stream.average_rate or stream.base_rate or 0)
        total = 0
        for packet in container.demux(stream):
            total += becomes_frame(packet)
            if total > MAX_FRAMES:
                raise Refused("media_frames")
    if total < 2 or rate <= 0 or min(width, height) <= 0:
        raise Refused("media_broken")
    if total / rate > request["max_seconds"]:
        raise Refused("media_seconds")
    limits = Limits(frames=max(2, request["max_frames"]))
    indices = frame_indices(total, rate, limits)
    file.seek(0)
    jpegs: dict[int, bytes] = {}
    with av.open(file, "r", format=FORMATS[request["format"]]) as container:
        for index, frame in enumerate(container.decode(video=0)):
            if frame.width * frame.height > request["max_pixels"]:
                raise Refused("media_pixels")
            if index in indices:
                jpegs[index] = as_jpeg(upright(frame), limits, request["cell"])
            if index >= indices[-1]:
                break
    if len(jpegs) != len(set(indices)):
        raise Refused("media_broken")
    facts = {
        "width": width,
        "height": height,
        "fps": rate,
        "total": total,
        "indices": indices,
        "duration": total / rate,
    }
    return facts, [jpegs[index] for index in indices]


def write(out: BinaryIO, facts: dict[str, Any], frames: list[bytes]) -> None:
    out.write(json.dumps(facts).encode() + b"\n")
    for frame in frames:
        out.write(len(frame).to_bytes(4, "big") + frame)


if __name__ == "__main__":
    main()
