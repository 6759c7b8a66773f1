"""Triton kernels around torch's scaled product: one pass over memory each."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE = 64
"""Rows and columns that are transposed at a time."""

CHUNK = 2048
"""Values of a row that are in registers at a time: 16 a thread."""


@triton.jit  # type: ignore[untyped-decorator]
def quantize_row(
    values: tl.tensor,
    columns: tl.tensor,
    rounded: tl.tensor,
    scales: tl.tensor,
    width: tl.tensor,
    stride: tl.tensor,
    largest: tl.constexpr,
    least: tl.constexpr,
    weighted: tl.constexpr,
    chunk: tl.constexpr,
) -> None:
    """A row's largest value and scale; then its values in FP8, read again from the cache.

    Kept in registers, a row would leave a multiprocessor no room for another one.
    """
    row = tl.program_id(0).to(tl.int64)
    most = tl.zeros((chunk,), tl.float32)
    for start in range(0, width, chunk):
        at = start + tl.arange(0, chunk)
        inside = at < width
        read = tl.load(values + row * stride + at, mask=inside, other=0.0).to(tl.float32)
        if weighted:
            read *= tl.load(columns + at, mask=inside, other=0.0)
        most = tl.maximum(most, tl.abs(read))
    scale = tl.maximum(tl.math.div_rn(tl.max(most, 0), largest), least)
    tl.store(scales + row, scale)
    reciprocal = tl.math.div_rn(1.0, scale)
    for start in range(0, width, chunk):
        at = start + tl.arange(0, chunk)
        inside = at < width
        read = tl.load(values + row * stride + at, mask=inside, other=0.0).to(tl.float32)
        if weighted:
            read *= tl.load(columns + at, mask=inside, other=0.0)
            scaled = read * reciprocal
        else:
            scaled = tl.math.div_rn(read, tl.zeros_like(read) + scale)
        tl.store(rounded + row * width + at, scaled.to(tl.float8e4nv), mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def transpose_tile(
    source: tl.tensor, target: tl.tensor, rows: tl.tensor, columns: tl.tensor, tile: tl.constexpr
) -> None:
    """A square of bytes, from row-major (rows, columns) to row-major (columns, rows)."""
    row = tl.program_id(0) * tile + tl.arange(0, tile)
    column = tl.program_id(1) * tile + tl.arange(0, tile)
    read = tl.load(
        source + row[:, None] * columns + column[None, :],
        mask=(row[:, None] < rows) & (column[None, :] < columns),
    )
    tl.store(
        target + column[:, None] * rows + row[None, :],
        tl.trans(read),
        mask=(column[:, None] < columns) & (row[None, :] < rows),
    )


def quantize(
    values: Tensor, columns: Tensor | None, largest: float, least: float
) -> tuple[Tensor, Tensor]:
    """As `fp8.quantize`, for a matrix on a GPU; with the largest number and the least scale."""
    rows, width = values.shape
    if values.stride(1) != 1:
        values = values.contiguous()
    rounded = torch.empty(rows, width, dtype=torch.float8_e4m3fn, device=values.device)
    scales = torch.empty(rows, 1, dtype=torch.float32, device=values.device)
    quantize_row[(rows,)](
        values,
        scales if columns is None else columns,
        rounded,
        scales,
        width,
        values.stride(0),
        largest=largest,
        least=least,
        weighted=columns is not None,
        chunk=CHUNK,
        num_warps=4,
    )
    return rounded, scales


def transposed(values: Tensor) -> Tensor:
    """As `fp8.transposed`, for a matrix on a GPU."""
    rows, columns = values.shape
    source = values.contiguous().view(torch.uint8)
    target = torch.empty(columns, rows, dtype=torch.uint8, device=values.device)
    grid = (triton.cdiv(rows, TILE), triton.cdiv(columns, TILE))
    transpose_tile[grid](source, target, rows, columns, tile=TILE, num_warps=4)
    return target.view(values.dtype)
