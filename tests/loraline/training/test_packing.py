"""Packed rows learn exactly what the same rows learn one by one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from packed_rows import (
    ARCHITECTURES,
    VISION,
    encoder_for,
    film,
    rows_for,
    rows_with_videos,
)
from peft import LoraConfig, get_peft_model
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

from loraline.base.encoding import Encoder, Row
from loraline.base.media import video_inputs
from loraline.base.targets import target_modules
from loraline.training import attention, lora, loss, packing

LENGTHS = st.lists(st.integers(1, 50), min_size=1, max_size=60)


@given(LENGTHS, st.integers(1, 120))
def test_every_row_is_packed_once_and_within_the_budget(lengths: list[int], budget: int) -> None:
    bins = packing.plan(lengths, budget)
    assert sorted(index for rows in bins for index in rows) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in rows) <= budget or len(rows) == 1 for rows in bins)


@given(LENGTHS)
def test_packing_needs_few_bins(lengths: list[int]) -> None:
    fewest = -(-sum(lengths) // 50)
    assert len(packing.plan(lengths, 50)) <= max(11 / 9 * fewest + 1, 2 * fewest)


@given(LENGTHS, st.integers(1, 5))
def test_processes_share_the_rows_of_a_step(lengths: list[int], world: int) -> None:
    shares = [packing.share(lengths, rank, world) for rank in range(world)]
    assert sorted(index for rows in shares for index in rows) == list(range(len(lengths)))
    loads = [sum(lengths[i] for i in rows) for rows in shares]
    assert max(loads) - min(loads) <= max(lengths)


@given(st.integers(1, 100), st.integers(1, 20), st.integers(0, 3))
def test_each_epoch_visits_every_row_once_in_an_order_of_its_own(
    rows: int, rows_per_step: int, epoch: int
) -> None:
    steps = packing.Steps(rows, rows_per_step, seed=1)
    steps.epoch = epoch
    order = list(steps)
    assert order == list(steps) and len(order) == len(steps)
    assert sorted(index for step in order for index in step) == list(range(rows))
    assert all(len(step) == rows_per_step for step in order[:-1])
    if rows > 20:
        steps.epoch = epoch + 1
        assert list(steps) != order


def tuned(base: Path, vision: bool) -> Any:
    """The base in float32 with an adapter that already does something."""
    auto = AutoModelForImageTextToText if vision else AutoModelForCausalLM
    torch.manual_seed(0)
    modality = "vision" if vision else "text"
    joined = json.loads((base / "config.json").read_text())["model_type"] == "phi3"
    projections = ["qkv_proj", "down_proj"] if joined else ["q_proj", "v_proj", "down_proj"]
    targets = target_modules(modality, projections, merger=vision, tower=vision)
    config = LoraConfig(r=4, target_modules=targets, init_lora_weights=False)
    return get_peft_model(auto.from_pretrained(base, dtype=torch.float32), config)


def alone(model: Any, encoder: Encoder, row: Row) -> torch.Tensor:
    """Losses of one row's answer tokens by the unchanged model, in a padded batch of one."""
    batch = encoder.collate([row], answers=True, side="right")
    labels = batch.pop("labels")[0, 1:]
    logits = model(**batch).logits[0, :-1]
    kept = labels >= 0
    return cross_entropy(logits[kept].float(), labels[kept], reduction="none")


def gradients(model: Any) -> dict[str, torch.Tensor]:
    result = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return result


def learn_packed_as_alone(
    model: Any, encoder: Encoder, rows: list[Row], vision: bool
) -> tuple[Any, Any]:
    """Assert that packed rows have the losses and gradients of each alone; the causal model, and
    those gradients by name."""
    separate = [alone(model, encoder, row) for row in rows]
    torch.cat(separate).sum().backward()
    expected = gradients(model)

    causal = model.get_base_model()
    lora.add_in_place(model)
    attention.use(causal)
    loss.return_losses(causal)
    rope_index = causal.model.get_rope_index if vision else None
    packed = model(**packing.pack(encoder, rows, rope_index))
    packed.sum().backward()

    torch.testing.assert_close(packed, torch.cat(separate), atol=1e-4, rtol=0)
    learned = gradients(model)
    assert learned.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(learned[name], gradient, atol=1e-4, rtol=1e-4, msg=name)
    return causal, learned


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_packed_losses_and_gradients_equal_those_of_each_row_alone(
    architecture: str, tiny_base: Callable[[str], Path]
) -> None:
    vision = architecture in VISION
    base = tiny_base(architecture)
    encoder = encoder_for(base, vision)
    rows = rows_for(encoder, vision)
    model = tuned(base, vision)
    causal, names = learn_packed_as_alone(model, encoder, rows, vision)
    blocks = len(causal.model.visual.blocks) if vision else 0
    for block in range(blocks):
        assert any(f"visual.blocks.{block}.attn.qkv" in name for name in names)
        assert any(f"visual.blocks.{block}.mlp" in name for name in names)


@pytest.mark.parametrize("architecture", VISION)
def test_packed_rows_with_videos_learn_what_each_learns_alone(
    architecture: str, tiny_base: Callable[[str], Path]
) -> None:
    base = tiny_base(architecture)
    encoder = encoder_for(base, True)
    rows = rows_with_videos(encoder)
    model = tuned(base, True)
    learn_packed_as_alone(model, encoder, rows, True)


def test_time_in_a_video_counts_for_each_family_in_its_own_way(
    tiny_base: Callable[[str], Path],
) -> None:
    """Qwen2.5-VL's positions follow the seconds, Qwen3-VL's prompt has them as text."""
    slow, fast = (film(4, 56, 28, fps, seed=1) for fps in (0.5, 4.0))
    placed, written = {}, {}
    for architecture in VISION:
        base = tiny_base(architecture)
        encoder = encoder_for(base, True)
        auto = AutoModelForImageTextToText.from_pretrained(base, dtype=torch.float32)
        text = "<|vision_start|><|video_pad|><|vision_end|>Who?"
        rows = []
        for video in (slow, fast):
            encoded = encoder.processor(text=[text], **video_inputs([video]))
            rows.append(Row(list(encoded["input_ids"][0]), [encoder.end], videos=(video,)))
        packed = [packing.pack(encoder, [row], auto.model.get_rope_index) for row in rows]
        written[architecture] = rows[0].prompt != rows[1].prompt
        placed[architecture] = not all(
            torch.equal(one, other)
            for one, other in zip(*(each["position_ids"] for each in packed), strict=False)
        )
    assert written == {"qwen2-vl": False, "qwen2.5-vl": False, "qwen3-vl": True}
    assert placed["qwen2-vl"] is False and placed["qwen2.5-vl"] is True


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_no_row_sees_another(architecture: str, tiny_base: Callable[[str], Path]) -> None:
    vision = architecture in VISION
    base = tiny_base(architecture)
    encoder = encoder_for(base, vision)
    first, second, third, *_ = rows_for(encoder, vision)
    other = Row([*third.prompt[:-1], 77], [40, 41, 42], third.images)
    model = tuned(base, vision)
    causal = model.get_base_model()
    attention.use(causal)
    loss.return_losses(causal)
    rope_index = causal.model.get_rope_index if vision else None

    def losses(rows: list[Row]) -> torch.Tensor:
        with torch.no_grad():
            return model(**packing.pack(encoder, rows, rope_index))

    kept = len(first.answer) + len(second.answer)
    before, after = losses([first, second, third]), losses([first, second, other])
    torch.testing.assert_close(before[:kept], after[:kept])
    last = losses([third, second])[-len(second.answer) :]
    torch.testing.assert_close(before[len(first.answer) : kept], last, atol=1e-5, rtol=1e-5)


def test_sliding_windows_hold_within_rows() -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(40, 2, 8) for _ in range(3))
    bounds = torch.tensor([0, 25, 40], dtype=torch.int32)
    out = attention.padded(q, k, v, bounds, 25, True, 4, 0.3)
    at = 24
    weights = (q[at, 0] @ k[at - 3 : at + 1, 0].T * 0.3).softmax(-1)
    torch.testing.assert_close(out[at, 0], weights @ v[at - 3 : at + 1, 0])


def test_sliced_losses_and_gradients_equal_cross_entropy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss, "SLICE", 50 * 7)
    torch.manual_seed(0)
    hidden = torch.randn(30, 16, requires_grad=True)
    weight, labels, weights = torch.randn(50, 16), torch.randint(50, (30,)), torch.rand(30)
    expected = cross_entropy(hidden @ weight.T, labels, reduction="none")
    (expected * weights).sum().backward()
    gradient, hidden.grad = hidden.grad, None
    result = loss.SlicedCrossEntropy.apply(hidden, weight, labels)
    (result * weights).sum().backward()
    torch.testing.assert_close(result, expected)
    torch.testing.assert_close(hidden.grad, gradient)


@pytest.mark.parametrize("architecture", VISION)
def test_recomputed_activations_give_a_tower_the_same_gradients(
    architecture: str, tiny_base: Callable[[str], Path]
) -> None:
    base = tiny_base(architecture)
    encoder = encoder_for(base, True)
    model = tuned(base, True).train()
    causal = model.get_base_model()
    lora.add_in_place(model)
    attention.use(causal)
    loss.return_losses(causal)
    batch = packing.pack(encoder, rows_for(encoder, True), causal.model.get_rope_index)
    model(**batch).sum().backward()
    expected = gradients(model)
    causal.gradient_checkpointing_enable({"use_reentrant": False})
    causal.disable_input_require_grads()
    model(**batch).sum().backward()
    result = gradients(model)
    assert result.keys() == expected.keys() and any("visual.blocks" in name for name in result)
    for name, gradient in expected.items():
        torch.testing.assert_close(result[name], gradient, atol=1e-5, rtol=1e-5, msg=name)
