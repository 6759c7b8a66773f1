"""The tensors of a safetensors file, as the safetensors library reads them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray

NUMBERS = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2"}
NUMBERS |= {"I8": "i1", "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "u1", "BOOL": "u1"}
"""safetensors' names of the types that NumPy knows too."""


@dataclass(frozen=True)
class Tensor:
    """One tensor; its bytes stay in the file until its values are asked for."""

    dtype: str
    """safetensors' name of the type: F32, BF16, F8_E4M3, I8."""

    shape: tuple[int, ...]
    data: NDArray[Any]
    """Its bytes, mapped: (bytes,) of uint8."""

    def values(self) -> NDArray[Any]:
        """The numbers as float32, or float64 for F64; ValueError for a type that holds none."""
        import numpy as np

        if self.dtype in NUMBERS:
            kept = np.float64 if self.dtype == "F64" else np.float32
            numbers = self.data.view(NUMBERS[self.dtype]).astype(kept)
        elif self.dtype in OTHERS:
            numbers = OTHERS[self.dtype](self.data)
        else:
            raise ValueError(f"is of type {self.dtype}")
        return numbers.reshape(self.shape)

    def finite(self) -> bool:
        import numpy as np

        return bool(np.isfinite(self.values()).all())


def bfloat16(data: NDArray[Any]) -> NDArray[Any]:
    """bfloat16 is the upper half of float32."""
    import numpy as np

    return (data.view("<u2").astype(np.uint32) << 16).view(np.float32)


def float8_e5m2(data: NDArray[Any]) -> NDArray[Any]:
    """E5M2 is the upper half of float16."""
    import numpy as np

    return (data.astype(np.uint16) << 8).view(np.float16).astype(np.float32)


def float8_e4m3(data: NDArray[Any]) -> NDArray[Any]:
    """E4M3 without infinities: four bits of exponent with bias 7, all bits set is NaN
    (Micikevicius et al., FP8 Formats for Deep Learning, 2022, table 1)."""
    import numpy as np

    bits = np.arange(256)
    exponent, mantissa = bits >> 3 & 15, (bits & 7) / 8
    size = np.where(exponent > 0, (1 + mantissa) * 2.0 ** (exponent - 7), mantissa * 2.0**-6)
    size[bits & 127 == 127] = np.nan
    table = np.where(bits & 128, -size, size).astype(np.float32)
    decoded: NDArray[Any] = table[data]
    return decoded


OTHERS: dict[str, Callable[[NDArray[Any]], NDArray[Any]]] = {
    "BF16": bfloat16,
    "F8_E5M2": float8_e5m2,
    "F8_E4M3": float8_e4m3,
}


def read_tensors(file: Path) -> dict[str, Tensor]:
    """The tensors by name; OSError, or ValueError where the library would not read the file."""
    import numpy as np
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="numpy") as opened:
            slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118
            facts = {name: (s.get_dtype(), tuple(s.get_shape())) for name, s in slices.items()}
    except SafetensorError as error:
        raise ValueError(str(error)) from error
    if not facts:
        return {}
    # Mapped, so that a gigabyte of weights is not held in memory.
    content = np.memmap(file, np.uint8, "r")
    start = 8 + int.from_bytes(content[:8].tobytes(), "little")
    header = json.loads(content[8:start].tobytes())
    tensors = {}
    for name, (dtype, shape) in facts.items():
        begin, end = header[name]["data_offsets"]
        tensors[name] = Tensor(dtype, shape, np.asarray(content[start + begin : start + end]))
    return tensors


def rounded(values: NDArray[Any], dtype: str) -> NDArray[Any]:
    """The values as a server computing in `dtype` holds them, as float32."""
    import numpy as np

    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        single = values.astype(np.float32)
        if dtype == "float16":
            return single.astype(np.float16).astype(np.float32)
        if dtype == "float32":
            return single
        # To the nearest bfloat16, ties to even: half of what is cut off is added first.
        bits = single.view(np.uint32)
        nearest = (bits + 0x7FFF + (bits >> 16 & 1)) & np.uint32(0xFFFF0000)
        return np.where(np.isfinite(single), nearest.view(np.float32), single)
