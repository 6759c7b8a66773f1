"""Store a tiny base as GPTQ would: its projections in 4 bits, by plain rounding.

    python test_data/tiny_gptq.py test_data/text/base outputs/base-gptq

The layout is that of GPTQ's files (version 1, symmetric, without activation order): `qweight` holds
eight weights of a column in an int32, `scales` one float16 a group and column, `qzeros` the zero
points less one, `g_idx` the group of each row. Nothing is calibrated, so it is for tests alone.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from torch import Tensor

BITS, GROUP = 4, 32
IN_AN_INT = 32 // BITS
ZERO = 2 ** (BITS - 1)
"""The zero point of symmetric rounding: 8 of 0 to 15."""


@click.command()
@click.argument("base", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("folder", type=click.Path(path_type=Path))
def tiny_gptq(base: Path, folder: Path) -> None:
    """Write BASE with projections in 4 bits into FOLDER."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(base, folder)
    config = json.loads((base / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": "gptq",
        "bits": BITS,
        "group_size": GROUP,
        "desc_act": False,
        "sym": True,
        "checkpoint_format": "gptq",
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    stored = {}
    for name, weight in load_file(base / "model.safetensors").items():
        if name.endswith("_proj.weight") and "visual" not in name:
            stored |= {name.replace("weight", key): value for key, value in packed(weight).items()}
        else:
            stored[name] = weight
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})


def packed(weight: Tensor) -> dict[str, Tensor]:
    """The tensors of a linear layer from its weight, [outputs, inputs]."""
    import torch

    inputs = weight.shape[1]
    groups = weight.float().t().reshape(inputs // GROUP, GROUP, -1)
    scales = (groups.abs().amax(1) / (ZERO - 1)).clamp(min=1e-8).half()
    levels = (groups / scales.float()[:, None]).round().clamp(-ZERO, ZERO - 1) + ZERO
    zeros = torch.full(scales.shape, ZERO - 1)
    return {
        "qweight": joined(levels.reshape(inputs, -1).long()),
        "qzeros": joined(zeros.t()).t().contiguous(),
        "scales": scales,
        "g_idx": (torch.arange(inputs) // GROUP).int(),
    }


def joined(values: Tensor) -> Tensor:
    """Each eight rows as one of int32, the first in the lowest bits."""
    import torch

    shifts = torch.arange(IN_AN_INT)[None, :, None] * BITS
    rows = values.reshape(-1, IN_AN_INT, values.shape[1])
    # Sums of int64 that may not fit into an int32 but as its bits.
    return (rows << shifts).sum(1).to(torch.int32)


def unpacked(tensors: dict[str, Tensor]) -> Tensor:
    """The weight that a linear layer's tensors stand for, [outputs, inputs]."""
    import torch

    shifts = torch.arange(IN_AN_INT) * BITS
    levels = (tensors["qweight"].long()[:, None] >> shifts[None, :, None]) & (2**BITS - 1)
    zeros = (tensors["qzeros"].long()[:, :, None] >> shifts) & (2**BITS - 1)
    group = tensors["g_idx"].long()
    scales = tensors["scales"].float()[group]
    points = zeros.flatten(1)[group] + 1
    return ((levels.flatten(0, 1) - points) * scales).t()


if __name__ == "__main__":
    tiny_gptq()
