"""Products in FP8 beside those in bfloat16, at the shapes of the bases of bench/train.py.

    python bench/fp8.py

Each line is JSON. First the kernels' results are compared with those of a CPU; then each
shape's products are timed with all that belongs to them, in the ways that there are: fast or full
accumulation, and for the backward pass a transposed copy that is kept or made anew.
"""

from __future__ import annotations

import json
import statistics
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

sys.path.insert(0, str(Path(__file__).parent.parent))

LAYERS = {
    "mistral-7b": {
        "q, o": (4096, 4096, 2),
        "k, v": (4096, 1024, 2),
        "gate, up": (4096, 14336, 2),
        "down": (14336, 4096, 1),
    },
    "qwen2.5-vl-3b": {
        "q, o": (2048, 2048, 2),
        "k, v": (2048, 256, 2),
        "gate, up": (2048, 11008, 2),
        "down": (11008, 2048, 1),
    },
}
"""Inputs, outputs and number of the linear layers of a decoder layer."""


@click.command()
@click.option("--tokens", default=5600, show_default=True, help="Rows of the products.")
def fp8(tokens: int) -> None:
    """Print whether products in FP8 are right on this GPU, and how long they take."""
    import torch

    if not torch.cuda.is_available():
        sys.exit("products in FP8 are timed on a GPU, and there is none")
    torch.manual_seed(0)
    major, minor = torch.cuda.get_device_capability()
    print_line("machine", gpu=torch.cuda.get_device_name(), capability=f"{major}.{minor}")
    for name, check in CHECKS.items():
        run_and_print(name, check)
    for base, layers in LAYERS.items():
        sums: dict[str, float] = {}
        for name, (inputs, outputs, count) in layers.items():
            times = run_and_print(f"{base} {name}", lambda i=inputs, o=outputs: timed(i, o, tokens))
            for arm, microseconds in (times or {}).items():
                sums[arm] = sums.get(arm, 0.0) + count * microseconds
        print_line(f"{base} a layer", **sums)


def print_line(measurement: str, **values: Any) -> None:
    rounded = {k: round(v, 1) if isinstance(v, float) else v for k, v in values.items()}
    print(json.dumps({"what": measurement, **rounded}), flush=True)


def run_and_print(measurement: str, work: Callable[[], dict[str, Any]]) -> dict[str, Any] | None:
    """What `work` gives, printed; a failure is printed too, and the next one is tried."""
    try:
        values = work()
    except Exception as error:
        print_line(measurement, failed=f"{type(error).__name__}: {error}"[:600])
        traceback.print_exc()
        return None
    print_line(measurement, **values)
    return values


def spread(rows: int, width: int) -> Any:
    import torch

    sizes = torch.logspace(-3, 2, rows, device="cuda")[:, None]
    return (torch.randn(rows, width, device="cuda") * sizes).bfloat16()


def rounding() -> dict[str, Any]:
    """The kernel's roundings that are not the CPU's, also of widths that are no powers of two."""
    import torch

    from loraline.base import fp8 as base

    apart = {}
    for width in (64, 96, 4096, 11008, 14336):
        values = spread(257, width)
        columns = torch.rand(width, device="cuda")
        for weights in (None, columns):
            result = base.quantize(values, weights)
            expected = base.quantize(values.cpu(), None if weights is None else weights.cpu())
            where = f"{width}{'' if weights is None else ' weighted'}"
            apart[where] = int((result[0].cpu().float() != expected[0].float()).sum())
            apart[where + " scales"] = int((result[1].cpu() != expected[1]).sum())
    return apart


def transposition() -> dict[str, Any]:
    from loraline.base import fp8 as base

    apart = {}
    for shape in ((64, 64), (96, 4112), (1024, 4096)):
        rounded, _ = base.quantize(spread(*shape))
        apart[str(shape)] = not base.transposed(rounded).float().equal(rounded.float().T)
    return apart


def layer() -> dict[str, Any]:
    """How far a layer's product and gradient are from those on a CPU, as a share of their size."""
    import torch

    from loraline.base import fp8 as base

    apart = {}
    for bias in (False, True):
        linear = torch.nn.Linear(2048, 1024, bias=bias).bfloat16()
        for both in (False, True):
            for rows in (1, 33, 512):
                x, upstream = torch.randn(rows, 2048), torch.randn(rows, 1024)
                results = []
                for device in ("cuda", "cpu"):
                    module = base.Fp8Linear(linear, torch.device(device), keep_transposed=both)
                    x_on_device = x.to(device).bfloat16().requires_grad_()
                    out = module(x_on_device)
                    out.backward(upstream.to(device).bfloat16())
                    results.append([t.detach().cpu().double() for t in (out, x_on_device.grad)])
                differences = [
                    float((a - b).norm() / b.norm()) for a, b in zip(*results, strict=True)
                ]
                apart[f"bias {bias}, both {both}, {rows} rows"] = [f"{v:.5f}" for v in differences]
    return apart


CHECKS = {"rounding apart": rounding, "transposition apart": transposition, "layer apart": layer}


def timed(inputs: int, outputs: int, tokens: int) -> dict[str, float]:
    """Microseconds of each part of a layer's forward and backward pass."""
    import torch

    from loraline.base import fp8 as base

    x = torch.randn(tokens, inputs, device="cuda", dtype=torch.bfloat16)
    upstream = torch.randn(tokens, outputs, device="cuda", dtype=torch.bfloat16)
    weight = torch.randn(outputs, inputs, device="cuda", dtype=torch.bfloat16)
    rounded, channels = base.quantize(weight)
    channels = channels.T.contiguous()
    turned = base.transposed(rounded)
    ones = torch.ones(1, inputs, device="cuda")
    read, scales = base.quantize(x)
    back, back_scales = base.quantize(upstream, channels[0])
    single = torch.ones((), device="cuda")

    def scaled(a: Any, b: Any, scale_a: Any, scale_b: Any, fast: bool) -> Callable[[], Any]:
        return lambda: torch._scaled_mm(
            a, b.T, scale_a=scale_a, scale_b=scale_b, out_dtype=torch.bfloat16, use_fast_accum=fast
        )

    ways: dict[str, Callable[[], Any]] = {
        "bf16 forward": lambda: x @ weight.T,
        "bf16 backward": lambda: upstream @ weight,
        "fp8 forward": scaled(read, rounded, scales, channels, True),
        "fp8 forward, full accumulation": scaled(read, rounded, scales, channels, False),
        "fp8 forward, one scale": scaled(read, rounded, single, single, True),
        "fp8 backward": scaled(back, turned, back_scales, ones, True),
        "fp8 backward, full accumulation": scaled(back, turned, back_scales, ones, False),
        "round the input": lambda: base.quantize(x),
        "round upstream": lambda: base.quantize(upstream, channels[0]),
        "transpose": lambda: base.transposed(rounded),
        "transpose, torch": lambda: rounded.view(torch.uint8).T.contiguous(),
    }
    times = {}
    for arm, work in ways.items():
        try:
            times[arm] = microseconds(work)
        except Exception as error:
            print_line(
                f"{arm} ({inputs}, {outputs})", failed=f"{type(error).__name__}: {error}"[:600]
            )
    return times


def microseconds(work: Callable[[], Any]) -> float:
    """Median of five, each the mean of ten calls in a row."""
    import torch

    for _ in range(3):
        work()
    measured = []
    for _ in range(5):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(10):
            work()
        end.record()
        torch.cuda.synchronize()
        measured.append(begin.elapsed_time(end) * 100)
    return statistics.median(measured)


if __name__ == "__main__":
    fp8()
