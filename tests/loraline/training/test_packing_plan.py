"""Which rows share a forward pass, in examples that a reader can check by hand."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from loraline.base.encoding import Row
from loraline.training import packing


@pytest.mark.parametrize(
    ("lengths", "budget", "bins"),
    [
        pytest.param([5, 5], 10, [[0, 1]], id="a bin may be full to the last token"),
        pytest.param([7, 6, 3], 10, [[0, 2], [1]], id="into the fullest bin that has room"),
        pytest.param([3, 7], 10, [[0, 1]], id="rows in their order, not the longest first"),
        pytest.param([12, 3], 10, [[0], [1]], id="a row that is too long is alone"),
        pytest.param([4, 3, 2], 6, [[0, 2], [1]], id="what is left over shrinks with each row"),
    ],
)
def test_best_fit(lengths: list[int], budget: int, bins: list[list[int]]) -> None:
    assert packing.best_fit(lengths, budget) == bins


@pytest.mark.parametrize(
    ("lengths", "budget", "bins"),
    [
        pytest.param([8, 2, 2, 2], 10, [[0], [1, 2, 3]], id="as even as possible"),
        pytest.param([1, 1, 5, 6], 7, [[0, 2], [1, 3]], id="even bins may be full, too"),
        pytest.param([4, 9], 10, [[0], [1]], id="bins by their first row"),
        pytest.param([6, 5, 4, 3], 9, [[0, 3], [1, 2]], id="two full bins stay two"),
    ],
)
def test_a_plan_fills_its_bins_evenly(
    lengths: list[int], budget: int, bins: list[list[int]]
) -> None:
    assert packing.plan(lengths, budget) == bins


def test_shares_are_in_the_rows_order() -> None:
    assert [packing.share([1, 2, 3, 4], rank, 2) for rank in (0, 1)] == [[0, 3], [1, 2]]
    assert packing.share([1, 3, 2, 9], 1, 2) == [0, 1, 2]


def test_an_epoch_has_as_many_steps_as_it_takes() -> None:
    steps = packing.Steps(rows=5, rows_per_step=2, seed=1)

    assert [len(step) for step in steps] == [2, 2, 1]
    assert len(steps) == 3


def test_the_order_comes_from_the_seed_and_the_epoch() -> None:
    def order(seed: int, epoch: int) -> list[list[int]]:
        steps = packing.Steps(rows=50, rows_per_step=50, seed=seed)
        steps.epoch = epoch
        return list(steps)

    assert order(1, 0) == order(1, 0)
    assert order(1, 0) != order(2, 0)
    assert order(1, 0) != order(1, 1)


def test_places_of_a_row_with_images_stand_before_its_three_axes() -> None:
    axes = torch.arange(9).reshape(3, 1, 3) + 10

    def rope_index(
        tokens: torch.Tensor, *, mm_token_type_ids: torch.Tensor, image_grid_thw: torch.Tensor
    ) -> tuple[torch.Tensor, None]:
        assert tokens.tolist() == [[5, 9, 7]]
        assert mm_token_type_ids.tolist() == [[0, 1, 0]]
        assert image_grid_thw.tolist() == [[1, 2, 2]]
        return axes, None

    row = Row(prompt=[5, 9], answer=[7], images=(b"image",))
    shown = {"image_grid_thw": torch.tensor([[1, 2, 2]])}
    encoder: Any = SimpleNamespace(processor=SimpleNamespace(image_token_id=9, video_token_id=8))
    result = packing.positions(encoder, row, shown, rope_index)

    assert result.tolist() == [[0, 1, 2], *axes[:, 0].tolist()]


def test_a_row_without_images_has_one_place_on_each_axis() -> None:
    row = Row(prompt=[5], answer=[7])
    encoder: Any = SimpleNamespace(processor=None)

    assert packing.positions(encoder, row, {}, None).tolist() == [[0, 1]]
    assert packing.positions(encoder, row, {}, lambda: None).tolist() == [[0, 1]] * 4


def test_a_pack_says_where_rows_begin_and_what_is_predicted_from_where() -> None:
    rows = [Row(prompt=[1, 2], answer=[3, 4]), Row(prompt=[5], answer=[6])]

    batch = packing.pack(None, rows, None)  # type: ignore[arg-type]

    assert batch["input_ids"].tolist() == [[1, 2, 3, 4, 5, 6]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 0, 1]]
    assert batch["row_bounds"].tolist() == [0, 4, 6]
    # What attention kernels for rows of several lengths take.
    assert batch["row_bounds"].dtype == torch.int32
    assert (batch["predicting"].tolist(), batch["labels"].tolist()) == ([1, 2, 4], [3, 4, 6])
    assert batch["longest_row"] == 4
