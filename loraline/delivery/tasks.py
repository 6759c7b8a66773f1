"""A server whose limits fit tasks that an adapter was never measured with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from loraline.base import pixels
from loraline.contract import Contract
from loraline.errors import UserError

PROMPT_TOKENS = 1536
"""Room for a task's prompt. The longest built in, an agent's with its tool, is about 900 tokens."""

FRAME_TOKENS = 16
"""What Qwen3-VL writes before each pair of frames: its time, and where it begins and ends."""


@dataclass(frozen=True)
class Need:
    """What one task needs of a server."""

    name: str
    images: int
    frames: int
    """Frames of its video; 0 for a task without a video."""

    min_pixels: int
    max_pixels: int
    """Limits of an image or a frame after resizing, in pixels."""

    answer_tokens: int

    def tokens(self, cell: int) -> int:
        """Longest request with its answer; two frames share their tokens."""
        cells = -(-self.max_pixels // cell**2)
        pairs = -(-self.frames // 2)
        media = self.images * cells + pairs * (cells + FRAME_TOKENS)
        return media + PROMPT_TOKENS + self.answer_tokens


def videos(needs: Sequence[Need]) -> int:
    """Videos that one request may bring."""
    return int(any(need.frames for need in needs))


def widened(contract: Contract, needs: Sequence[Need]) -> Contract:
    """The contract with limits that hold its own prompt and every task.

    Raises UserError for no tasks, and for tasks that a text base cannot see.
    """
    if not needs:
        raise UserError("--tasks needs a task to serve; there is none")
    seeing = [need.name for need in needs if need.images or need.frames]
    if contract.modality == "text" and seeing:
        raise UserError(
            f"task {seeing[0]!r} shows images or videos, and {contract.base} is a text base; "
            "name tasks for texts with --task"
        )
    cell = pixels.cell(contract.architecture)
    longest = max(need.tokens(cell) for need in needs)
    answer = max(contract.max_new_tokens, *(need.answer_tokens for need in needs))
    limits: dict[str, int] = {}
    if contract.modality == "vision":
        limits = {
            "min_pixels": min(contract.min_pixels or 2**31, *(need.min_pixels for need in needs)),
            "max_pixels": max(contract.max_pixels or 0, *(need.max_pixels for need in needs)),
            "max_images": max(contract.max_images, *(need.images for need in needs)),
        }
    rows = max(contract.max_length, longest - answer)
    return contract.model_copy(update={"max_length": rows, "max_new_tokens": answer, **limits})


def differences(contract: Contract, wide: Contract, videos: int) -> str:
    """How a server differs from the measured adapter's server; empty if it does not.

    Prompts of the training give the same tokens only where their images are resized alike, so the
    pixel limits are what may change answers.
    """
    was = {
        "images a request": (contract.max_images, wide.max_images),
        "videos a request": (contract.max_videos, max(contract.max_videos, videos)),
        "min_pixels": (contract.min_pixels, wide.min_pixels),
        "max_pixels": (contract.max_pixels, wide.max_pixels),
        "tokens": (contract.max_model_len, wide.max_model_len),
    }
    changes = [f"{name} {old} to {new}" for name, (old, new) in was.items() if old != new]
    return ", ".join(changes)
