"""A model whose weights are shared out over the processes of a training: torch's FSDP2.

Each process keeps a part of every tensor, cut along its first dimension, and its part of gradients
and of the optimizer's state. A layer's weights are gathered for as long as the layer computes. With
one process there is one part, and what remains is that weights may wait in the host's memory.

All processes gather together, so all of them do the same number of passes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed.tensor import DTensor

from loraline.errors import UserError
from loraline.training import exchange

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


def shard(model: nn.Module, causal: Any, *, offloaded: bool) -> None:
    """Share out a model's weights in place; `causal` is the model without what PEFT puts around.

    Weights that learn are kept in float32 and computed with in bfloat16 on a GPU, as frozen ones
    are. A layer of the language model is a unit; all else is gathered as a whole, since a pass
    without images would leave the others waiting for the tower. `offloaded` keeps weights,
    gradients and the optimizer's state in the host's memory.
    """
    from torch.distributed.fsdp import (
        CPUOffloadPolicy,
        FSDPModule,
        MixedPrecisionPolicy,
        OffloadPolicy,
        fully_shard,
    )

    mesh = device_mesh()
    on_gpu = mesh.device_type == "cuda"
    # LoRA's matrices are cast where they are multiplied, and their gradients stay float32.
    without_adapter = model is causal
    options: dict[str, Any] = {
        "mesh": mesh,
        "mp_policy": MixedPrecisionPolicy(
            param_dtype=torch.bfloat16 if on_gpu and without_adapter else None,
            reduce_dtype=torch.float32,
        ),
        "offload_policy": CPUOffloadPolicy(pin_memory=on_gpu) if offloaded else OffloadPolicy(),
    }
    for module in [*layers(causal), model]:
        keep_quantization(module, mesh)
        for parameter in module.parameters():
            if parameter.requires_grad and not isinstance(parameter, DTensor):
                parameter.data = parameter.data.float()
        fully_shard(module, **options)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            # Losses are divided by the targets of all processes; gradients are summed.
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
            module.set_reduce_scatter_unused_params(True, recurse=False)


def device_mesh() -> DeviceMesh:
    """All processes of the training in a row; a process that is alone becomes a group of one."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if not distributed.is_initialized():
        store = distributed.HashStore()
        distributed.init_process_group(exchange.backend(), store=store, rank=0, world_size=1)
    return distributed.device_mesh.init_device_mesh(device, (distributed.get_world_size(),))


def layers(causal: Any) -> list[nn.Module]:
    """The language model's layers."""
    language = getattr(causal.model, "language_model", causal.model)
    return list(language.layers)


def keep_quantization(module: nn.Module, mesh: DeviceMesh) -> None:
    """Let 4-bit layers find the scales of their weights where bitsandbytes looks for them.

    The weight's own attribute is lost when the weight is shared out.
    """
    for layer in module.modules():
        state = getattr(getattr(layer, "weight", None), "quant_state", None)
        if state is not None:
            state.to(torch.device(mesh.device_type))
            layer.quant_state = state


def local(tensor: Tensor) -> Tensor:
    """This process' part of a tensor that is shared out; any other tensor itself."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def gathered(tensor: Tensor) -> Tensor:
    """The whole of a tensor; all processes have to ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def cut(state: Any, rank: int, world: int) -> Any:
    """Of a state's whole tensors, the part that one of `world` processes keeps.

    Numbers, such as Adam's count of steps, all of them keep.
    """
    if isinstance(state, Tensor):
        parts = state.chunk(world) if state.dim() else [state] * world
        return parts[rank] if rank < len(parts) else state[:0]
    if isinstance(state, dict):
        return {key: cut(value, rank, world) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(cut(value, rank, world) for value in state)
    return state


def joined(states: Sequence[Any]) -> Any:
    """The state that several processes' parts were cut from."""
    first = states[0]
    if isinstance(first, Tensor):
        return torch.cat(list(states)) if first.dim() else first
    if isinstance(first, dict):
        return {key: joined([state[key] for state in states]) for key in first}
    if isinstance(first, list | tuple):
        return type(first)(map(joined, zip(*states, strict=True)))
    return first


def as_dtensor(part: Tensor, template: Tensor) -> Tensor:
    """The distributed tensor of which `part` is this process' part, laid out as `template`."""
    if not isinstance(template, DTensor):
        return part
    return DTensor.from_local(
        part.to(template.to_local().device),
        template.device_mesh,
        template.placements,
        run_check=False,
        shape=template.shape,
        stride=template.stride(),
    )


class OutOfMemory(UserError):
    """One of several processes has run out of memory in a computation that all take part in."""


def run_collectively(work: Callable[[], Tensor]) -> Tensor:
    """The result of `work`, in which all processes take part.

    Raises OutOfMemory where it does not fit this process' GPU: the others wait in the same layer,
    and smaller passes of one would be more passes than theirs. TryAgain if one of them has left.
    """
    try:
        return work()
    except torch.OutOfMemoryError as error:
        raise OutOfMemory(
            "a step does not fit the GPU beside its part of the weights; lower max_length, set "
            "memory: small, or train on more GPUs"
        ) from error
    except RuntimeError as error:
        peer_is_gone = isinstance(error, distributed.DistError) or "gloo" in str(error)
        if peer_is_gone and exchange.is_distributed():
            raise exchange.peer_has_left() from error
        raise


def equal_passes(passes: Sequence[Any], spare: Any) -> Iterator[tuple[Any, bool]]:
    """This process' passes, each with whether it counts.

    They are filled up with `spare`, which does not count, until every process has equally many.
    """
    (most,) = exchange.highest([len(passes)])
    for number in range(most):
        counts = number < len(passes)
        yield (passes[number] if counts else spare), counts
