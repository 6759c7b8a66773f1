"""Triton kernels around torch's scaled product: one pass over memory each."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE = 64


@triton.jit
def quantize_row(
    values: tl.tensor,
    columns: tl.tensor,
    rounded: tl.tensor,
    scales: tl.tensor,
    width: tl.tensor,
    stride: tl.tensor,
    largest: tl.constexpr,
    least: tl.constexpr,
    scaled: tl.constexpr,
    block: tl.constexpr,
) -> None:
    """A row in registers: its largest value, its scale, its values in FP8."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, block)
    inside = at < width
    read = tl.load(values + row * stride + at, mask=inside, other=0.0).to(tl.float32)
    if scaled:
        read *= tl.load(columns + at, mask=inside, other=0.0)
    scale = tl.maximum(tl.math.div_rn(tl.max(tl.abs(read), 0), largest), least)
    tl.store(scales + row, scale)
    if scaled:
        divided = read * tl.math.div_rn(1.0, scale)
    else:
        divided = tl.math.div_rn(read, tl.zeros_like(read) + scale)
    tl.store(rounded + row * width + at, divided.to(tl.float8e4nv), mask=inside)


@triton.jit
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


def quantize(values: Tensor, columns: Tensor | None) -> tuple[Tensor, Tensor]:
    """As `fp8.quantize`, for a matrix on a GPU whose rows are contiguous."""
    from loraline.base.fp8 import DTYPE, LARGEST, LEAST_SCALE

    rows, width = values.shape
    if values.stride(1) != 1:
        values = values.contiguous()
    rounded = torch.empty(rows, width, dtype=DTYPE, device=values.device)
    scales = torch.empty(rows, 1, dtype=torch.float32, device=values.device)
    block = triton.next_power_of_2(width)
    quantize_row[(rows,)](
        values,
        scales if columns is None else columns,
        rounded,
        scales,
        width,
        values.stride(0),
        largest=LARGEST,
        least=LEAST_SCALE,
        scaled=columns is not None,
        block=block,
        num_warps=min(16, max(1, block // 1024)),
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
