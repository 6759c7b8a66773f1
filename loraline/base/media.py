"""Images and videos of rows, as a Qwen-VL processor takes them."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL.Image import Image

    from loraline.records import Video


def opened(images: Iterable[bytes]) -> list[Image]:
    """Encoded images as RGB pictures."""
    from PIL import Image

    return [Image.open(io.BytesIO(image)).convert("RGB") for image in images]


def films(videos: Sequence[Video]) -> dict[str, Any]:
    """Arguments of a processor for videos whose frames were sampled when they were prepared.

    The frames are a second's `fps`-th part apart, which the processor writes into the prompt as
    times (Qwen3-VL) or the model into positions (Qwen2.5-VL).
    """
    metadata = [
        {
            "fps": video.fps,
            "total_num_frames": len(video.frames),
            "frames_indices": list(range(len(video.frames))),
        }
        for video in videos
    ]
    return {
        "videos": [opened(video.frames) for video in videos],
        "video_metadata": metadata,
        "do_sample_frames": False,
    }
