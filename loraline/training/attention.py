"""Attention within packed rows, on stock parts: no flash-attn build is needed.

Registered with transformers under a name of its own. On GPUs of compute capability 8.0 and later,
with half-precision inputs, it is torch's variable-length flash attention; elsewhere the rows are
padded to one batch for scaled_dot_product_attention. Both take the language model's rows and the
windows and images of the Qwen vision towers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedModel

NAME = "loraline_flash_rows"
"""Must contain "flash": by that transformers' vision towers decide to hand over their bounds
(cu_seqlens) in one call instead of looping over windows."""

FLASH = "variable-length flash attention"
PADDED = "padded scaled dot product attention"


def use(model: PreTrainedModel, device: torch.device | None = None) -> str:
    """Make packed attention the attention of `model`; returns what computes it, on `device` where
    that is not where the weights are kept."""
    from transformers import AttentionInterface

    # No mask goes with it: the bounds of the rows say it all, a dense one would take tokens² of
    # memory, and to find out that none is needed transformers would wait for the GPU in each pass.
    AttentionInterface.register(NAME, attend)
    for module in model.modules():
        if hasattr(module, "config"):
            # Set after loading, where transformers would look for a flash-attn package.
            module.config._attn_implementation = NAME
    import torch

    # On a GPU all is computed in bfloat16, whatever the type is that weights are kept in.
    device = device or model.device
    dtype = torch.bfloat16 if device.type == "cuda" else model.dtype
    return FLASH if flash_runs(device, dtype) else PADDED


def flash_runs(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether torch's variable-length flash attention takes tensors of this kind."""
    import torch

    return (
        device.type == "cuda"
        and dtype.itemsize == 2
        and torch.cuda.get_device_capability(device) >= (8, 0)
    )


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    dropout: float = 0.0,
    is_causal: bool | None = None,
    sliding_window: int | None = None,
    cu_seq_lens_q: Tensor | None = None,
    max_length_q: int | None = None,
    row_bounds: Tensor | None = None,
    longest_row: int | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """The attention function that transformers calls: (1, heads, tokens, head_dim) in.

    Returns (1, tokens, heads, head_dim). A vision tower names its bounds `cu_seq_lens_q`, the
    trainer `row_bounds`, both (rows + 1) int32.
    """
    bounds, longest = cu_seq_lens_q, max_length_q
    if bounds is None:
        bounds, longest = row_bounds, longest_row
    assert bounds is not None and longest is not None, "packed attention needs the rows' bounds"
    assert dropout == 0, "the supported bases have no attention dropout"
    causal = module.is_causal if is_causal is None else is_causal
    window = sliding_window if sliding_window is not None and sliding_window < longest else None
    q, k, v = (states[0].transpose(0, 1) for states in (query, key, value))
    function = flash if flash_runs(q.device, q.dtype) else padded
    return function(q, k, v, bounds, int(longest), causal, window, scaling)[None], None


def flash(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bounds: Tensor,
    longest: int,
    causal: bool,
    window: int | None,
    scaling: float,
) -> Tensor:
    """Variable-length flash attention over (tokens, heads, head_dim); grouped queries allowed."""
    from torch.nn.attention.varlen import varlen_attn

    reach = -1 if window is None else window - 1
    return varlen_attn(
        q,
        k,
        v,
        bounds,
        bounds,
        longest,
        longest,
        scale=scaling,
        window_size=(reach, 0 if causal else -1),
        enable_gqa=q.shape[1] != k.shape[1],
    )


def padded(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bounds: Tensor,
    longest: int,
    causal: bool,
    window: int | None,
    scaling: float,
) -> Tensor:
    """The same through one padded batch of rows, for any device and type."""
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    lengths = bounds.diff().to(q.device)
    places = torch.arange(longest, device=q.device)
    filled = places < lengths[:, None]

    def by_row(states: Tensor) -> Tensor:
        rows = states.new_zeros(*filled.shape, *states.shape[1:])
        rows[filled] = states
        return rows.transpose(1, 2)

    # Padding stands to the right, where causal queries do not look.
    mask = None if causal else filled[:, None, None]
    if window is not None:
        distance = places[:, None] - places
        mask = (distance >= 0) & (distance < window)
    attended = scaled_dot_product_attention(
        *map(by_row, (q, k, v)),
        attn_mask=mask,
        is_causal=causal and mask is None,
        scale=scaling,
        enable_gqa=q.shape[1] != k.shape[1],
    )
    return attended.transpose(1, 2)[filled]
