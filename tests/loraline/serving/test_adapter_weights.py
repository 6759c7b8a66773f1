"""What an adapter changes is weighed as the server forms it."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from loraline.serving.adapter_weights import change
from loraline.serving.weights_file import Tensor, read_tensors


def pair(folder: Path, a: torch.Tensor, b: torch.Tensor) -> dict[str, Tensor]:
    save_file({"A": a.contiguous(), "B": b.contiguous()}, folder / "pair.safetensors")
    return read_tensors(folder / "pair.safetensors")


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_a_change_is_the_norm_of_the_scaled_product(dtype: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    a, b = torch.randn(4, 96), torch.randn(64, 4)
    kept = getattr(torch, dtype)
    scaled = (b.to(kept) * 1.7).double()
    wanted = torch.linalg.norm(scaled @ a.to(kept).double()).item()
    assert change(pair(tmp_path, a, b), 1.7, dtype) == pytest.approx(wanted, rel=1e-6)


def test_ranks_that_cancel_change_nothing(tmp_path: Path) -> None:
    torch.manual_seed(0)
    a, b = torch.randn(2, 96), torch.randn(64, 2)
    twice = pair(tmp_path, torch.cat([a, a]), torch.cat([b, -b], 1))
    assert change(twice, 2.0, "float32") == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    ("scaling", "dtype", "finite"),
    [
        (1e5, "float32", True),
        (1e5, "bfloat16", True),
        (1e5, "float16", False),
        (1e39, "float32", False),
        (math.nan, "float32", False),
        (math.inf, "bfloat16", False),
    ],
)
def test_what_overflows_in_the_serving_type_is_not_finite(
    scaling: float, dtype: str, finite: bool, tmp_path: Path
) -> None:
    ones = pair(tmp_path, torch.ones(4, 8), torch.ones(8, 4))
    assert math.isfinite(change(ones, scaling, dtype)) == finite


def test_a_scaling_that_vanishes_in_the_serving_type_changes_nothing(tmp_path: Path) -> None:
    ones = pair(tmp_path, torch.ones(4, 8), torch.ones(8, 4))
    assert change(ones, 1e-60, "float32") == 0
    assert change(ones, 1e-9, "float16") == 0
    assert change(ones, 1e-9, "bfloat16") > 0
