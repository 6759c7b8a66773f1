"""Noise on the embeddings of packed rows in training (NEFTune, arXiv 2310.05914).

transformers' own hook scales the noise by the length of what the embedding gets, which here is a
whole pack: a row would learn under less noise the more rows lie beside it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def add_noise(model: PreTrainedModel, alpha: float) -> None:
    """Let a causal model add noise to its token embeddings while it is in training mode.

    A value of a row gets alpha / sqrt(length * width) times a draw from U(-1, 1), with the row's
    own length in tokens (section 2 of the paper). It is drawn from torch's random state, which
    checkpoints keep. Image tokens count in the length and stay undisturbed: what the vision tower
    sees replaces their embeddings afterwards.
    """
    lengths = torch.empty(0)

    def note_rows(_: Any, __: Any, inputs: dict[str, Any]) -> None:
        nonlocal lengths
        lengths = inputs["row_bounds"].diff()

    def add(embeddings: torch.nn.Module, _: Any, embedded: Tensor) -> Tensor:
        """`embedded` is (1, tokens, width)."""
        if not embeddings.training:
            return embedded
        bound = alpha / (lengths * embedded.shape[-1]).sqrt()
        bounds = bound.repeat_interleave(lengths, output_size=embedded.shape[1])[:, None]
        return embedded + torch.empty_like(embedded).uniform_(-1, 1) * bounds.to(embedded)

    model.model.register_forward_pre_hook(note_rows, with_kwargs=True)
    model.get_input_embeddings().register_forward_hook(add)
