"""Images and videos of rows, as a Qwen-VL processor takes them."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from loraline.records import Video


def rgb_images(images: Iterable[bytes]) -> list[Image]:
    """Encoded images as RGB pictures."""
    from PIL import Image

    return [Image.open(io.BytesIO(image)).convert("RGB") for image in images]


def video_inputs(videos: Sequence[Video]) -> dict[str, Any]:
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
        "videos": [rgb_images(video.frames) for video in videos],
        "video_metadata": metadata,
        "do_sample_frames": False,
    }


def token_types(processor: Any, tokens: Tensor) -> Tensor:
    """1 for an image's tokens, 2 for a video's, 0 for text; int, of the tokens' shape.

    The model derives its three-axis positions from it.
    """
    import torch

    image, video = processor.image_token_id, processor.video_token_id
    return ((tokens == image) + 2 * (tokens == video)).to(torch.int)


def image_pixels(processor: Any, images: Iterable[bytes]) -> dict[str, Tensor]:
    """pixel_values (patches, features) and image_grid_thw (images, 3) of encoded images."""
    return dict(processor.image_processor(rgb_images(images), return_tensors="pt"))


def video_pixels(processor: Any, videos: Sequence[Video]) -> dict[str, Tensor]:
    """pixel_values_videos (patches, features) and video_grid_thw (videos, 3); for a base whose
    positions count seconds, second_per_grid_ts (videos), the seconds of a step in time."""
    import torch

    processed = processor.video_processor(**video_inputs(videos), return_tensors="pt")
    pixels = {name: processed[name] for name in ("pixel_values_videos", "video_grid_thw")}
    if "second_per_grid_ts" in processor.model_input_names:
        patch = processor.video_processor.temporal_patch_size
        pixels["second_per_grid_ts"] = torch.tensor([patch / video.fps for video in videos])
    return pixels
