"""Linear layers in FP8: a frozen base's weights in 8 bits, multiplied in 8 bits.

A weight (out, in) is stored as float8_e4m3fn with a scale for each output channel, and each token's
input is rounded when it is read, with its own scale. vLLM calls it `fp8_per_channel`: these are the
numbers that it serves, scale by scale.

The gradient towards an input is a product in 8 bits, too: upstream (rows, out) times the weight,
whose scales go into upstream before that is rounded row by row. The product reads its right operand
by columns, so it needs the weight transposed: a second copy, or one made in every backward pass.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from loraline.base.targets import VISION_TOWER
from loraline.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

DTYPE = torch.float8_e4m3fn
LARGEST = torch.finfo(DTYPE).max
LEAST_SCALE = 1 / (LARGEST * 512)
"""Smallest scale of values, as in vLLM's kernels; a row of zeros has it."""

LEAST_GRADIENT_SCALE = 1e-30
"""Smallest scale of gradients. Those of a mean over thousands of tokens are so small, the more so
with the channels' scales in them, that LEAST_SCALE would round them all to zero."""

LEAST_CAPABILITY = (8, 9)
"""The first GPUs that multiply in FP8: Ada and Hopper."""

MULTIPLE = 16
"""Sizes of a weight are multiples of this for torch's scaled product on a GPU."""


def check_card() -> None:
    """Raise UserError where the GPU of this process has no FP8; without a GPU it is computed as
    the GPU would."""
    if not torch.cuda.is_available():
        return
    capability = torch.cuda.get_device_capability()
    if capability < LEAST_CAPABILITY:
        name = torch.cuda.get_device_name()
        raise UserError(
            f"quantization: fp8 needs a GPU that multiplies in FP8, of compute capability 8.9 or "
            f"later (L4, L40S, H100); {name} has {capability[0]}.{capability[1]}: set "
            "quantization: nf4"
        )


def quantize(values: Tensor, columns: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Rows of `values` (rows, width) in FP8, and the scale of each, (rows, 1) in float32.

    With `columns` (width,) each column is multiplied by its number first. That is for gradients,
    which are multiplied by the scales' reciprocals; values are truly divided, as by vLLM.
    """
    least = LEAST_SCALE if columns is None else LEAST_GRADIENT_SCALE
    if values.is_cuda:
        from loraline.base import fp8_kernels

        return fp8_kernels.quantize(values, columns, LARGEST, least)
    wide = values.float()
    if columns is not None:
        wide = wide * columns
    scales = (wide.abs().amax(-1, keepdim=True) / LARGEST).clamp(min=least)
    scaled = wide / scales if columns is None else wide * scales.reciprocal()
    return scaled.clamp(-LARGEST, LARGEST).to(DTYPE), scales


def transposed(values: Tensor) -> Tensor:
    """A contiguous (columns, rows) copy of an FP8 matrix (rows, columns)."""
    if values.is_cuda:
        from loraline.base import fp8_kernels

        return fp8_kernels.transposed(values)
    return values.T.contiguous()


def product(
    values: Tensor, scales: Tensor, weight: Tensor, channels: Tensor, bias: Tensor | None = None
) -> Tensor:
    """(values * scales) @ (weight * channels.T).T + bias, in bfloat16; on a CPU in float32.

    values (rows, width) and weight (out, width) in FP8, scales (rows, 1) and channels (1, out) in
    float32.
    """
    if values.is_cuda:
        return torch._scaled_mm(
            values,
            weight.T,
            scale_a=scales,
            scale_b=channels,
            bias=bias,
            out_dtype=torch.bfloat16,
            use_fast_accum=True,
        )
    out = (values.float() @ weight.float().T) * scales * channels
    return out if bias is None else out + bias


READ_TOGETHER = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")
"""Layers that read the same input as the one before or after them."""


class RoundedInput:
    """The last input that was rounded, for the layers that read the same one."""

    def __init__(self) -> None:
        self.read: Tensor | None = None
        self.version = 0
        self.rounded: tuple[Tensor, Tensor] | None = None

    def of(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """`x` (rows, width) in FP8 with its scales."""
        if x.is_inference():
            return quantize(x)  # Such tensors do not say whether they have changed.
        if self.rounded is None or not self.has_rounded(x):
            self.rounded = quantize(x)
            # It is kept, so nothing else can come to lie at its address.
            self.read, self.version = x.detach(), x._version
        return self.rounded

    def has_rounded(self, x: Tensor) -> bool:
        read = self.read
        return (
            read is not None
            and read.data_ptr() == x.data_ptr()
            and (read.shape, read.stride(), read.dtype) == (x.shape, x.stride(), x.dtype)
            and self.version == x._version
        )

    def rounded_alone(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """`x` in FP8 for a layer that reads it alone; nothing is kept."""
        self.forget()
        return quantize(x)

    def forget(self) -> None:
        self.read = self.rounded = None


LAST_INPUT = RoundedInput()


class Product(torch.autograd.Function):
    """A layer's product, and its gradient towards the input."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: Fp8Linear) -> Tensor:
        ctx.layer, ctx.dtype = layer, x.dtype
        rounded = LAST_INPUT.of(x) if layer.shares_input else LAST_INPUT.rounded_alone(x)
        out = product(*rounded, layer.weight, layer.channels, layer.bias)
        return out.to(layer.compute_dtype)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        LAST_INPUT.forget()
        return ctx.layer.input_gradient(upstream).to(ctx.dtype), None


class Fp8Linear(nn.Linear):
    """x @ W.T + bias for a frozen W (out, in) in FP8; x (..., in) to (..., out)."""

    weight: Any
    channels: Tensor
    """Scales of the output channels, (1, out)."""

    ones: Tensor
    """Scales of the weight as the right operand of the backward pass, (1, in)."""

    transposed_weight: Tensor | None
    """The weight transposed (in, out), if it is kept."""

    def __init__(
        self,
        linear: nn.Linear,
        device: torch.device,
        *,
        keep_transposed: bool,
        shares_input: bool = False,
    ) -> None:
        """Quantize a linear layer and put it on a device.

        `keep_transposed` keeps a transposed copy of the weight for the backward pass;
        `shares_input` says that other layers read the same input.
        """
        nn.Module.__init__(self)
        self.shares_input = shares_input
        self.in_features, self.out_features = linear.in_features, linear.out_features
        # PEFT asks this one for the type of its matrices.
        self.compute_dtype = linear.weight.dtype
        weight, scales = quantize(linear.weight.detach().to(device))
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.register_buffer("channels", scales.T.contiguous(), persistent=False)
        ones = torch.ones(1, self.in_features, device=device)
        self.register_buffer("ones", ones, persistent=False)
        self.register_buffer(
            "transposed_weight", transposed(weight) if keep_transposed else None, persistent=False
        )
        bias = linear.bias
        self.bias = None if bias is None else nn.Parameter(bias.detach().to(device), False)

    def forward(self, x: Tensor) -> Tensor:
        out = Product.apply(x.reshape(-1, self.in_features), self)
        # A matrix comes out as it was made: an update in place is cheap there, and not in a view.
        return out if x.dim() == 2 else out.view(*x.shape[:-1], self.out_features)

    def input_gradient(self, upstream: Tensor) -> Tensor:
        """upstream (rows, out) @ W, (rows, in)."""
        rounded = quantize(upstream.contiguous(), self.channels[0])
        transposed_weight = (
            transposed(self.weight) if self.transposed_weight is None else self.transposed_weight
        )
        return product(*rounded, transposed_weight, self.ones)


def convert(model: PreTrainedModel, device: torch.device, *, keep_transposed: bool = False) -> None:
    """Put a model on a device with the language model's linear layers in FP8, one after the other.

    The head and the vision tower stay as they are, as they do in NF4.
    """
    check_card()
    for name, module in list(model.named_modules()):
        if type(module) is not nn.Linear or stays_unquantized(name):
            continue
        sizes = (module.in_features, module.out_features)
        if device.type == "cuda" and any(size % MULTIPLE for size in sizes):
            raise UserError(
                f"quantization: fp8 needs layers whose sizes are multiples of {MULTIPLE}, and "
                f"{name} is {sizes[0]} to {sizes[1]}; set quantization: nf4"
            )
        path, _, layer = name.rpartition(".")
        converted = Fp8Linear(
            module, device, keep_transposed=keep_transposed, shares_input=layer in READ_TOGETHER
        )
        setattr(model.get_submodule(path), layer, converted)
    model.to(device)


def stays_unquantized(name: str) -> bool:
    """Whether a layer of this path keeps the base's type, in NF4 too: the head and the tower."""
    return name.startswith(VISION_TOWER) or name.endswith("lm_head")
