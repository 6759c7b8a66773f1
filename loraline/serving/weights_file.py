"""What a safetensors file holds, read without loading its weights."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Tensor:
    """What preflight needs to know of a tensor."""

    shape: tuple[int, ...]
    finite: bool
    zero: bool


EXPONENTS = {"F64": ("<u8", 0x7FF << 52), "F32": ("<u4", 0xFF << 23), "F16": ("<u2", 0x1F << 10)}
EXPONENTS["BF16"] = ("<u2", 0xFF << 7)
"""Integer type and exponent bits of each float type: all of them set is NaN or infinity."""


def read_tensors(file: Path) -> dict[str, Tensor]:
    """Shapes and properties of a safetensors file's tensors; ValueError if it is broken."""
    import numpy as np

    # Mapped, so that a gigabyte of weights is not held in memory.
    content = np.memmap(file, np.uint8, "r")
    start = 8 + int.from_bytes(content[:8].tobytes(), "little")
    if start > len(content):
        raise ValueError("it is cut off")
    header = json.loads(content[8:start].tobytes())
    tensors = {}
    for key, entry in header.items():
        if key == "__metadata__":
            continue
        integer, exponent = EXPONENTS.get(entry["dtype"], (None, 0))
        begin, end = (start + offset for offset in entry["data_offsets"])
        if integer is None or end > len(content):
            raise ValueError(f"{key} is cut off or no float tensor ({entry['dtype']})")
        bits = content[begin:end].view(integer)
        if bits.size != math.prod(entry["shape"]):
            raise ValueError(f"{key} does not hold {entry['shape']} values")
        tensors[key] = Tensor(
            shape=tuple(entry["shape"]),
            finite=bool(((bits & exponent) != exponent).all()),
            # Minus zero is zero too, so the sign is left out.
            zero=not (bits << 1).any(),
        )
    return tensors
