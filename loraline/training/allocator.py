"""How torch's allocator spends a GPU's memory, and how much it has spent."""

from __future__ import annotations

import os

SETTING = "PYTORCH_ALLOC_CONF"
"""Environment variable that torch reads once, when CUDA begins; its name since torch 2.9."""

SETTINGS = (SETTING, "PYTORCH_CUDA_ALLOC_CONF")
"""The variable under its name and under its earlier one, which torch still reads."""


def follow_allocated() -> None:
    """Let reserved memory follow allocated memory, unless the environment sets the allocator.

    Passes differ in length from step to step. Blocks of a fixed size are cut up by that until
    gigabytes are reserved that no tensor fits into; segments that grow are not.
    """
    if not any(name in os.environ for name in SETTINGS):
        os.environ[SETTING] = "expandable_segments:True"


def peak() -> int:
    """Bytes at the peak so far: of the GPU's allocator, or of the process without a GPU."""
    import resource

    import torch

    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def reserved() -> int:
    """Bytes of the GPU that the allocator held at the peak, in use or not."""
    import torch

    return int(torch.cuda.max_memory_reserved())
