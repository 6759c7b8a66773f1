"""The plain LoRA that a PiSSA training ends as."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from loraline.training import pissa

SIZES = st.integers(1, 40)


@given(SIZES, SIZES, st.integers(1, 12), st.integers(0, 99))
def test_balanced_matrices_have_the_same_product_and_rank(
    inputs: int, outputs: int, rank: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(rank, inputs, generator=generator)
    b = torch.randn(outputs, rank, generator=generator)
    new_a, new_b = pissa.balanced(a, b)
    assert (new_a.shape, new_b.shape) == (a.shape, b.shape)
    torch.testing.assert_close(new_b @ new_a, b @ a, atol=1e-4, rtol=1e-4)


def lost_by_rounding(a: torch.Tensor, b: torch.Tensor) -> float:
    """Share of the product that bfloat16 matrices do not have."""
    product = b.double() @ a.double()
    rounded = b.bfloat16().double() @ a.bfloat16().double()
    return float((rounded - product).norm() / product.norm())


def test_a_small_update_of_large_components_survives_rounding() -> None:
    generator = torch.Generator().manual_seed(0)
    first_a = torch.randn(8, 256, generator=generator)
    first_b = torch.randn(256, 8, generator=generator)
    learned = first_a + 1e-3 * torch.randn(8, 256, generator=generator)
    a, b = torch.cat([learned, first_a]), torch.cat([first_b, -first_b], dim=1)
    assert lost_by_rounding(a, b) > 0.5
    assert lost_by_rounding(*pissa.balanced(a, b)) < 0.01


def test_an_update_of_nothing_stays_nothing() -> None:
    a, b = pissa.balanced(torch.ones(4, 8), torch.zeros(8, 4))
    assert not (b @ a).any()
    assert b.isfinite().all() and a.isfinite().all()


@pytest.mark.parametrize("shape", [(16, 8), (8, 16)])
def test_a_layer_narrower_than_the_rank_keeps_the_rank(shape: tuple[int, int]) -> None:
    outputs, inputs = shape
    a, b = pissa.balanced(torch.randn(12, inputs), torch.randn(outputs, 12))
    assert (a.shape, b.shape) == ((12, inputs), (outputs, 12))
