"""Packing: the rows of one optimizer step, end to end in as few forward passes as fit.

A padded batch spends most of its arithmetic on padding. Here rows of any length follow each
other in a single sequence, with positions that start anew at each row and attention that stays
within it (`loraline.training.attention`). The rows of an optimizer step are chosen first and
packed after, so packing changes neither what a step learns from nor what the learning rate means.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from loraline.base.media import image_pixels, token_types, video_pixels

if TYPE_CHECKING:
    from torch import Tensor

    from loraline.base.encoding import Encoder, Row

MicroBatch = dict[str, Any]
"""Input of one forward pass: tensors, and `longest_row`, the tokens of the longest row."""


def plan(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Group rows into few bins of at most `budget` tokens, evenly filled; deterministic.

    Returns indices into `lengths`, ascending within a bin, bins by their first index. A row longer
    than the budget gets a bin of its own. Best-fit decreasing says how many bins are needed: at
    most 11/9 of the fewest possible, plus one (Johnson 1973). Where the rows also fit into as many
    bins when each goes to the emptiest, that is the plan: a pass of few tokens takes as long as
    one of two thousand, since launching its kernels does.
    """
    fitted = best_fit(lengths, budget)
    evened = [share(lengths, rank, len(fitted)) for rank in range(len(fitted))]
    fits = all(sum(lengths[i] for i in rows) <= budget for rows in evened)
    return sorted(evened if fits else fitted)


def best_fit(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Longest row first, each into the fullest bin that has room."""
    bins: list[list[int]] = []
    room: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        fitting = [b for b, free in enumerate(room) if free >= lengths[index]]
        if fitting:
            tightest = min(fitting, key=lambda b: (room[b], b))
            bins[tightest].append(index)
            room[tightest] -= lengths[index]
        else:
            bins.append([index])
            room.append(budget - lengths[index])
    return list(map(sorted, bins))


def share(lengths: Sequence[int], rank: int, world: int) -> list[int]:
    """The rows of a step that one of `world` processes takes: about the same tokens for each.

    Longest row first, each to the process with the fewest tokens so far. With fewer rows than
    processes some get none.
    """
    loads = [0] * world
    mine = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        lightest = min(range(world), key=lambda r: (loads[r], r))
        loads[lightest] += lengths[index]
        if lightest == rank:
            mine.append(index)
    return sorted(mine)


class Steps:
    """The order of rows: which of them each optimizer step of an epoch learns from.

    A sampler of batches for torch's DataLoader. Every epoch has its own order, drawn from the seed
    and the number of the epoch alone, so that it is the same after a resume and on any number of
    GPUs. The last step of an epoch may be shorter.
    """

    def __init__(self, rows: int, rows_per_step: int, seed: int) -> None:
        self.rows = rows
        self.rows_per_step = rows_per_step
        self.seed = seed
        self.epoch = 0

    def __len__(self) -> int:
        return -(-self.rows // self.rows_per_step)

    def __iter__(self) -> Iterator[list[int]]:
        order = list(range(self.rows))
        random.Random(f"{self.seed}/{self.epoch}").shuffle(order)
        for start in range(0, self.rows, self.rows_per_step):
            yield order[start : start + self.rows_per_step]


def positions(encoder: Encoder, row: Row, media: Mapping[str, Tensor], rope_index: Any) -> Tensor:
    """Positions of one row, (1, tokens) for text models and (4, tokens) for Qwen-VL.

    The first of the four is the place in the row, the other three are multimodal RoPE's time,
    height and width (Qwen2-VL, arXiv 2409.12191, section 2.1), as the base's own `rope_index`
    gives them. `media` has the grids of the row's images and videos, (time, height, width) in
    patches, and the seconds of a step in time, by the names of `rope_index`.
    """
    import torch

    places = torch.arange(len(row))[None]
    if rope_index is None:
        return places
    if not media:
        return places.expand(4, -1)
    tokens = torch.tensor([row.prompt + row.answer])
    axes, _ = rope_index(tokens, mm_token_type_ids=token_types(encoder.processor, tokens), **media)
    return torch.cat([places, axes[:, 0]])


def pack(
    encoder: Encoder, rows: Sequence[Row], rope_index: Callable[..., Any] | None
) -> MicroBatch:
    """One sequence out of some rows: the input of one forward pass.

    input_ids (1, tokens); position_ids (1, tokens) or (4, 1, tokens); row_bounds (rows + 1), int32,
    where each row begins and the last ends; labels (targets), the answers' tokens; predicting
    (targets), the places whose outputs predict them, never across rows; pixel_values and
    image_grid_thw if the rows have images, pixel_values_videos and video_grid_thw if videos.
    """
    import torch

    batch: MicroBatch = {}
    media_of_rows: list[dict[str, Tensor]] = [{} for _ in rows]
    if any(row.images for row in rows):
        batch |= image_pixels(encoder.processor, [image for row in rows for image in row.images])
        counts = [len(row.images) for row in rows]
        divide(media_of_rows, "image_grid_thw", batch["image_grid_thw"], counts)
    if any(row.videos for row in rows):
        videos = [video for row in rows for video in row.videos]
        pixels = video_pixels(encoder.processor, videos)
        batch |= {name: pixels[name] for name in ("pixel_values_videos", "video_grid_thw")}
        counts = [len(row.videos) for row in rows]
        for name in pixels.keys() - {"pixel_values_videos"}:
            divide(media_of_rows, name, pixels[name], counts)
    places = torch.cat(
        [
            positions(encoder, row, media, rope_index)
            for row, media in zip(rows, media_of_rows, strict=True)
        ],
        dim=1,
    )
    bounds = [0]
    predicting: list[int] = []
    for row in rows:
        for answer in row.learnt_slices:
            predicting += range(bounds[-1] + answer.start - 1, bounds[-1] + answer.stop - 1)
        bounds.append(bounds[-1] + len(row))
    tokens = torch.tensor([token for row in rows for token in row.prompt + row.answer])
    return batch | {
        "input_ids": tokens[None],
        "position_ids": places if rope_index is None else places[:, None],
        "row_bounds": torch.tensor(bounds, dtype=torch.int32),
        "longest_row": max(map(len, rows)),
        "labels": tokens[1:][predicting],
        "predicting": torch.tensor(predicting),
    }


def divide(
    media_of_rows: Sequence[dict[str, Tensor]], name: str, values: Tensor, counts: Sequence[int]
) -> None:
    """Give each row its part of a tensor of all rows' media, where it has any."""
    for media, part, count in zip(media_of_rows, values.split(list(counts)), counts, strict=True):
        if count:
            media[name] = part
