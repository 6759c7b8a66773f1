"""A base in FP8: what is rounded, how, and that products and gradients are those of the rounded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from loraline.base import fp8
from loraline.base.load import load
from loraline.base.locate import locate
from loraline.errors import UserError

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def activations(*shape: int) -> Tensor:
    """Numbers whose rows differ in size by orders of magnitude, as activations' do."""
    return torch.randn(*shape) * torch.logspace(-3, 2, shape[0])[:, None]


def whole(rounded: Tensor, scales: Tensor) -> Tensor:
    """What rounded numbers stand for, in float64."""
    return rounded.double() * scales.double()


def layer(inputs: int = 48, outputs: int = 32, *, bias: bool = True, **options: bool):
    linear = nn.Linear(inputs, outputs, bias=bias)
    linear.weight.data = activations(outputs, inputs)
    return fp8.Fp8Linear(linear, CPU, **{"keep_transposed": False} | options)


def test_every_number_becomes_the_nearest_one_that_fp8_has() -> None:
    every = torch.arange(256, dtype=torch.uint8).view(fp8.DTYPE).double()
    every = every[every.isfinite()]
    values = activations(16, 64)
    rounded, scales = fp8.quantize(values)
    assert_close(scales[:, 0], values.abs().amax(1) / 448, atol=0, rtol=1e-6)
    wanted = values.double() / scales.double()
    apart = (wanted[..., None] - every).abs().amin(-1)
    assert_close((rounded.double() - wanted).abs(), apart, atol=1e-5, rtol=1e-5)
    assert (rounded.double().abs().amax(1) == 448).all(), "each row uses all of the range"


def test_a_row_of_zeros_stays_one_and_what_is_no_number_stays_none() -> None:
    values = torch.tensor([[0.0, 0.0], [1.0, float("nan")]])
    rounded, scales = fp8.quantize(values)
    assert rounded[0].float().tolist() == [0, 0]
    assert scales[0].item() == pytest.approx(1 / (448 * 512))
    assert whole(rounded, scales)[1].isnan().any()


def test_columns_are_weighted_before_they_are_rounded() -> None:
    values, columns = activations(4, 8), torch.rand(8)
    rounded, scales = fp8.quantize(values, columns)
    weighted = values * columns
    expected = weighted.abs().amax(1, keepdim=True) / 448
    assert_close(scales, expected, atol=0, rtol=1e-6)
    assert rounded.float().equal((weighted * (1 / scales)).to(fp8.DTYPE).float())


@pytest.mark.parametrize("shape", [(6, 48), (2, 3, 48)], ids=["rows", "batches"])
@pytest.mark.parametrize("bias", [True, False], ids=["with bias", "without"])
def test_a_layer_multiplies_its_rounded_weight_and_the_rounded_input(
    shape: tuple[int, ...], bias: bool
) -> None:
    made, x = layer(bias=bias), torch.randn(*shape)
    weight = whole(made.weight, made.channels.T)
    expected = whole(*fp8.quantize(x.reshape(-1, 48))) @ weight.T
    expected += made.bias if bias else 0
    assert_close(made(x).double().reshape(-1, 32), expected, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("both", [True, False], ids=["both layouts", "one layout"])
def test_the_gradient_is_that_of_the_rounded_weight(both: bool) -> None:
    made, upstream = layer(keep_transposed=both), activations(6, 32)
    x = torch.randn(6, 48, requires_grad=True)
    made(x).backward(upstream)
    assert x.grad is not None
    weighted = whole(*fp8.quantize(upstream, made.channels[0]))
    assert_close(x.grad.double(), weighted @ made.weight.double(), atol=1e-6, rtol=1e-5)
    exact = upstream.double() @ whole(made.weight, made.channels.T)
    apart = (x.grad - exact).norm(dim=1) / exact.norm(dim=1)
    assert apart.max() < 0.05, "eight bits of upstream, whatever the scales of the channels"


@pytest.mark.parametrize("size", [1e-4, 1e-12], ids=["small", "tiny"])
def test_a_small_gradient_keeps_its_digits(size: float) -> None:
    # A loss is a mean over thousands of tokens, and the channels' scales make it smaller still.
    made, upstream = layer(), activations(6, 32)
    grads = []
    for scale in (1.0, size):
        x = torch.randn(6, 48, requires_grad=True)
        made(x).backward(upstream * scale)
        assert x.grad is not None
        grads.append(x.grad / scale)
    apart = (grads[1] - grads[0]).norm(dim=1) / grads[0].norm(dim=1)
    assert apart.max() < 0.05


def test_both_layouts_give_the_same_gradient() -> None:
    grads = []
    for both in (True, False):
        torch.manual_seed(1)
        made = layer(keep_transposed=both)
        x = torch.ones(3, 48, requires_grad=True)
        made(x).sum().backward()
        grads.append(x.grad)
    assert grads[0].equal(grads[1])


def test_layers_that_read_the_same_input_round_it_once(monkeypatch: pytest.MonkeyPatch) -> None:
    layers, x = [layer(shares_input=True) for _ in range(3)], torch.randn(5, 48)
    calls = []
    rounding = fp8.quantize
    monkeypatch.setattr(fp8, "quantize", lambda *given: calls.append(1) or rounding(*given))
    for each in layers:
        each(x)
        each(x[None])
    assert len(calls) == 1
    x += 1
    changed = layers[0](x)
    layers[1](x)
    assert len(calls) == 2
    assert_close(changed, layers[0](x.clone()))
    assert len(calls) == 3
    with torch.inference_mode():
        layers[0](torch.ones(2, 48)).add_(1)
    layers[0](x)
    layer()(x)
    assert fp8.LAST_INPUT.read is None, "what one layer reads alone is not kept"


def test_a_backward_pass_lets_go_of_the_last_input() -> None:
    made, x = layer(shares_input=True), torch.randn(5, 48, requires_grad=True)
    out = made(x)
    assert fp8.LAST_INPUT.read is not None
    out.sum().backward()
    assert fp8.LAST_INPUT.read is None


@pytest.mark.parametrize("architecture", ["mistral", "qwen3-vl"])
def test_the_language_models_linear_layers_are_in_fp8_and_nothing_else(
    tiny_base: Callable[[str], Path], architecture: str
) -> None:
    base = locate(str(tiny_base(architecture)), None)
    modality = "vision" if "vl" in architecture else "text"
    model = load(base, modality, quantization="fp8", dtype="float32")
    layers = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear)}
    rounded = {name for name, module in layers.items() if isinstance(module, fp8.Fp8Linear)}
    assert rounded == {n for n in layers if ".layers." in n}
    assert all(layers[name].weight.dtype == fp8.DTYPE for name in rounded)
    alone = {name.rpartition(".")[2] for name in rounded if not layers[name].shares_input}
    assert alone == {"o_proj", "down_proj"}
    untouched = load(base, modality, quantization="none", dtype="float32")
    weights = dict(untouched.named_parameters())
    for name, parameter in model.named_parameters():
        if name.rpartition(".")[0] in rounded and name.endswith("weight"):
            scales = layers[name.removesuffix(".weight")].channels.T
            assert (parameter.float() * scales - weights[name]).norm() < 0.04 * weights[name].norm()
        else:
            assert parameter.equal(weights[name]), name


@pytest.mark.parametrize(("capability", "runs"), [((8, 0), False), ((8, 9), True), ((9, 0), True)])
def test_a_card_without_fp8_is_refused(
    capability: tuple[int, int], runs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "NVIDIA A100")
    if runs:
        fp8.check_card()
        return
    with pytest.raises(UserError, match=r"compute capability 8\.9.*NVIDIA A100 has 8\.0: set"):
        fp8.check_card()


def test_layers_that_the_scaled_product_does_not_take_are_refused() -> None:
    model = nn.Module()
    model.narrow = nn.Linear(24, 16)
    with pytest.raises(UserError, match="multiples of 16, and narrow is 24 to 16"):
        fp8.convert(model, torch.device("cuda"))  # type: ignore[arg-type]
