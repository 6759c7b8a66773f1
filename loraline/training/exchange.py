"""Exchanges between the processes of one training; a process that is alone gets its own values.

Each trains on its share of a step's rows and no process waits for another but here, so what one
of them does in between (smaller passes after it ran out of memory) is its own affair.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, distributed

from loraline.errors import TryAgain

BUCKET = 2**24
"""Values in one exchange: 64 MiB in float32, copied together since each call has a price."""


def backend() -> str:
    """torch's backends for the exchange: NCCL between GPUs, gloo between hosts' memories."""
    return "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"


def is_distributed() -> bool:
    """Whether several processes train together."""
    return distributed.is_initialized() and distributed.get_world_size() > 1


def reduce(values: Tensor, operation: Any) -> Tensor:
    """`values` of all processes reduced in place; TryAgain if one of them has left."""
    if is_distributed():
        try:
            distributed.all_reduce(values, operation)
        except RuntimeError as error:
            raise peer_has_left() from error
    return values


def peer_has_left() -> TryAgain:
    """The error of a process that waited for another one that has ended."""
    return TryAgain(
        "another process of this training has ended; start it again to go on from its last "
        "checkpoint"
    )


def highest(values: Sequence[int]) -> list[int]:
    """The largest of all processes' numbers, place by place.

    They travel between hosts' memories, so no process waits for its GPU to be done before it has
    given that the next step's work.
    """
    if not is_distributed():
        return list(values)
    numbers = torch.tensor(values, dtype=torch.int64)
    return list(map(int, reduce(numbers, distributed.ReduceOp.MAX).tolist()))


def lowest(value: int) -> int:
    """The smallest of all processes' numbers."""
    return -highest([-value])[0]


def total(value: Tensor) -> float:
    """The sum of all processes' numbers, in float64."""
    return float(reduce(value.double(), distributed.ReduceOp.SUM))


def sum_gradients(parameters: Sequence[torch.nn.Parameter]) -> None:
    """Give every process the sum of all processes' gradients.

    A parameter that has a gradient in none of them keeps none, and the optimizer leaves it alone
    as it does in a training of one process.
    """
    if not is_distributed():
        return
    has_gradient = [parameter.grad is not None for parameter in parameters]
    anywhere_has = highest(has_gradient)
    learned = [p for p, somewhere in zip(parameters, anywhere_has, strict=True) if somewhere]
    for parameter in learned:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    for bucket in buckets(learned):
        flat = torch.cat([torch.flatten(gradient_of(parameter)) for parameter in bucket])
        summed = reduce(flat, distributed.ReduceOp.SUM).split([p.numel() for p in bucket])
        for parameter, values in zip(bucket, summed, strict=True):
            # Of the sum itself: copies of hundreds of small gradients take longer than to add them.
            parameter.grad = values.view_as(parameter)


def gradient_of(parameter: torch.nn.Parameter) -> Tensor:
    assert parameter.grad is not None, "only parameters that learn are exchanged"
    return parameter.grad


def buckets(parameters: Iterable[torch.nn.Parameter]) -> Iterator[list[torch.nn.Parameter]]:
    """Parameters of one type in their order, about BUCKET values together."""
    bucket: list[torch.nn.Parameter] = []
    for parameter in parameters:
        full = sum(each.numel() for each in bucket) + parameter.numel() > BUCKET
        if bucket and (full or parameter.dtype != bucket[0].dtype):
            yield bucket
            bucket = []
        bucket.append(parameter)
    if bucket:
        yield bucket


def broadcast_parameters(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Give every process the first one's values to begin with."""
    if is_distributed():
        for parameter in parameters:
            distributed.broadcast(parameter.data, src=0)
