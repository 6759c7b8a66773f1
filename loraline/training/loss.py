"""The loss of packed rows: logits only where there is a label, and only a slice of them at once."""

from __future__ import annotations

import types
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SLICE = 2**26
"""Logits that exist at a time: 256 MiB in float32, whatever the size of the vocabulary."""


def return_losses(model: PreTrainedModel) -> None:
    """Let the causal model return negative log-likelihoods, (targets), instead of logits.

    In its own forward, so that what wraps the model (PEFT, DDP, FSDP) sees a call like any other.
    """

    def forward(
        self: Any, *, labels: Tensor, predicting: Tensor, logits_to_keep: None = None, **inputs: Any
    ) -> Tensor:
        hidden = self.model(**inputs, use_cache=False).last_hidden_state[0, predicting]
        weight = self.lm_head.weight
        if weight.requires_grad:
            return sliced_again(hidden, weight, labels)
        return SlicedCrossEntropy.apply(hidden, weight, labels)

    model.forward = types.MethodType(forward, model)


def sliced_again(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """The same losses under a head that learns: each slice's logits are computed again to learn."""

    def of_slice(part: Tensor, targets: Tensor) -> Tensor:
        logits = functional.linear(part.to(weight.dtype), weight)
        return functional.cross_entropy(logits.float(), targets, reduction="none")

    rows = max(1, SLICE // len(weight))
    parts = zip(hidden.split(rows), labels.split(rows), strict=True)
    return torch.cat([checkpoint(of_slice, *part, use_reentrant=False) for part in parts])


class SlicedCrossEntropy(torch.autograd.Function):
    """Cross-entropy of a frozen head's logits, without keeping them for the backward pass.

    hidden (targets, width) and weight (vocabulary, width) give the logits hidden @ weight.T;
    returns -log softmax(logits)[label], (targets), float32. The gradient towards hidden,
    (softmax - onehot) @ weight, is computed slice by slice in the forward pass: the logits are
    there anyway, and the head itself learns nothing.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
        losses = hidden.new_empty(len(labels), dtype=torch.float32)
        needs_gradient = ctx.needs_input_grad[0]
        gradient = torch.empty_like(hidden) if needs_gradient else None
        rows = max(1, SLICE // len(weight))
        for start in range(0, len(labels), rows):
            part = slice(start, start + rows)
            logits = (hidden[part].to(weight.dtype) @ weight.T).float()
            normalizer = logits.logsumexp(-1)
            target = labels[part, None]
            losses[part] = normalizer - logits.gather(1, target)[:, 0]
            if gradient is not None:
                slope = logits.sub_(normalizer[:, None]).exp_()
                slope.scatter_add_(1, target, slope.new_full(target.shape, -1.0))
                gradient[part] = (slope.to(weight.dtype) @ weight).to(gradient.dtype)
        if gradient is not None:
            ctx.save_for_backward(gradient)
        return losses

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * upstream[:, None].to(gradient.dtype), None, None
