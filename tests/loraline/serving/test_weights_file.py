"""safetensors files are read as their library reads them, and their numbers as torch has them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from loraline.serving.weights_file import read_tensors, rounded

NAMES = ("float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2")


def numbers() -> torch.Tensor:
    """Numbers of all sizes, with NaN, infinity and minus zero."""
    torch.manual_seed(0)
    result = torch.randn(64, 64) * torch.logspace(-40, 30, 64)
    result[0, :3] = torch.tensor([float("nan"), float("inf"), -0.0])
    return result


@pytest.mark.parametrize("dtype", [*NAMES, "int8", "int64", "uint8", "bool"])
def test_values_are_torchs_in_every_type(dtype: str, tmp_path: Path) -> None:
    kept = numbers().to(getattr(torch, dtype))
    save_file({"a": kept, "b": kept[:3].clone()}, tmp_path / "w.safetensors")
    result = read_tensors(tmp_path / "w.safetensors")
    wanted = kept.to(torch.float64 if dtype == "float64" else torch.float32).numpy()
    assert np.array_equal(result["a"].values(), wanted, equal_nan=True)
    assert np.array_equal(result["b"].values(), wanted[:3], equal_nan=True)
    assert result["a"].finite() == bool(np.isfinite(wanted).all())


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_values_are_rounded_as_torch_rounds_them(dtype: str) -> None:
    wanted = numbers().to(getattr(torch, dtype)).float().numpy()
    assert np.array_equal(rounded(numbers().numpy(), dtype), wanted, equal_nan=True)


def test_an_empty_file_of_tensors_holds_none(tmp_path: Path) -> None:
    save_file({}, tmp_path / "w.safetensors")
    assert read_tensors(tmp_path / "w.safetensors") == {}


@pytest.mark.parametrize("content", [b"", b"\0" * 7, b"\2\0\0\0\0\0\0\0[]", b"\xff" * 16])
def test_a_file_that_the_library_refuses_is_a_value_error(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "w.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=r"\w"):
        read_tensors(tmp_path / "w.safetensors")
