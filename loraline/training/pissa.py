"""PiSSA (arXiv 2404.02948): principal components of the base are trained, and a LoRA comes out.

PEFT takes the components out of the base's weights, W = R + s B0 A0, and trains s B A on R. What
is served is the untouched W, so the logged adapter is the difference, s (B A - B0 A0): a LoRA of
twice the rank, which needs the first A and B.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import pad

from loraline.contract import WEIGHTS

if TYPE_CHECKING:
    from peft import PeftModel

FILE = "initial.safetensors"
"""File of a checkpoint with the first A and B."""

Matrices = dict[str, Tensor]
"""A and B of every adapted layer on the CPU, by PEFT's names."""


def matrices(model: PeftModel) -> Matrices:
    """A copy of the adapter's matrices as they are now."""
    from peft import get_peft_model_state_dict

    state = get_peft_model_state_dict(model)
    return {name: weight.detach().cpu().clone().contiguous() for name, weight in state.items()}


def write(initial: Matrices, folder: Path) -> None:
    save_file(initial, folder / FILE)


def adopt(model: PeftModel, initial: Matrices, folder: Path) -> Matrices:
    """Take out of the base what a checkpoint's training has taken out; returns its A and B.

    Another machine, or another library, may find other components. Where they are the same, the
    base's weights are not touched.
    """
    earlier = load_file(folder / FILE)
    layers = dict(model.named_modules())
    for name, current_a in initial.items():
        if not name.endswith(".lora_A.weight"):
            continue
        path = name.removesuffix(".lora_A.weight")
        b = f"{path}.lora_B.weight"
        current_product, earlier_product = initial[b] @ current_a, earlier[b] @ earlier[name]
        if not current_product.equal(earlier_product):
            layer = layers[path]
            weight = layer.get_base_layer().weight
            change = layer.scaling["default"] * (current_product - earlier_product).to(
                weight.device
            )
            weight.data = (weight.data.float() + change).to(weight.dtype)
    return earlier


def save(model: PeftModel, initial: Matrices, folder: Path) -> None:
    """Write the adapter as PEFT does, as a plain LoRA on the base as it was."""
    with tempfile.TemporaryDirectory() as scratch:
        # The folder's name becomes an adapter's.
        beginning = Path(scratch, "initial")
        beginning.mkdir()
        save_file(initial, beginning / WEIGHTS)
        model.save_pretrained(folder, path_initial_model_for_weight_conversion=str(beginning))
    weights = load_file(folder / WEIGHTS)
    for name in [name for name in weights if ".lora_A." in name]:
        b = name.replace(".lora_A.", ".lora_B.")
        weights[name], weights[b] = balanced(weights[name], weights[b])
    save_file(weights, folder / WEIGHTS, {"format": "pt"})


def balanced(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Matrices (rank, in) and (out, rank) of the same product B A, no larger than it calls for.

    PEFT's are the trained components beside the first ones, negated: each as large as the base's
    weights, their sum a small update. A server that rounds them to bfloat16 would round away a good
    part of it.
    """
    rank = len(a)
    q_b, r_b = torch.linalg.qr(b.double())
    q_a, r_a = torch.linalg.qr(a.double().T)
    u, sizes, v = torch.linalg.svd(r_b @ r_a.T, full_matrices=False)
    roots = sizes.sqrt()
    new_a, new_b = roots[:, None] * (v @ q_a.T), (q_b @ u) * roots
    # A layer narrower than the rank has fewer components.
    missing = rank - len(roots)
    return (
        pad(new_a, (0, 0, 0, missing)).to(a.dtype).contiguous(),
        pad(new_b, (0, missing)).to(b.dtype).contiguous(),
    )
