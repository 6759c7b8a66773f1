"""The sums behind a server's size, with numbers that a reader can check by hand."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from loraline.base import architectures
from loraline.errors import UserError
from loraline.serving import sizing
from loraline.serving.cards import GPUS
from loraline.serving.sizing import GIB, Demand

BASES = Path(__file__).parent / "bases"
QWEN3_VL_8B = json.loads((BASES / "Qwen3-VL-8B-Instruct.json").read_text())
MISTRAL_7B = json.loads((BASES / "Mistral-7B-v0.1.json").read_text())
"""32 layers; 32 heads of 128, 8 of them with keys and values; a window of 4096 tokens."""

DEMAND = Demand(MISTRAL_7B, "bfloat16", 1024, max_lora_rank=8)


def quantized(**config: Any) -> dict[str, Any]:
    return {**MISTRAL_7B, "quantization_config": config}


def test_what_is_left_for_the_cache_is_the_rest_of_the_share() -> None:
    result = sizing.sized(DEMAND, "L4", 1)
    rest = GPUS["L4"].memory * 0.9 - result.weights - result.lora - result.activation

    assert result.available == pytest.approx(rest)
    assert result.lora == 40 / 1024
    assert result.fits is (result.available >= result.needed)


def test_a_plan_that_lacks_room_for_one_request_does_not_fit() -> None:
    enough = sizing.sized(DEMAND, "L4", 1)

    assert not replace(enough, needed=enough.available + 0.01).fits
    assert replace(enough, needed=enough.available).fits


def test_two_cards_hold_half_of_the_weights_each() -> None:
    assert sizing.sized(DEMAND, "L4", 2).weights == sizing.sized(DEMAND, "L4", 1).weights / 2


def test_four_bytes_a_weight_are_twice_two() -> None:
    two = sizing.weight_bytes(MISTRAL_7B, "bfloat16")

    assert two == 2 * sum(architectures.parameters(MISTRAL_7B))
    assert sizing.weight_bytes(MISTRAL_7B, "float32") == 2 * two


@pytest.mark.parametrize(
    ("config", "linear"),
    [
        ({"quant_method": "gptq", "bits": 4, "group_size": 128}, 0.5 + 2.5 / 128),
        ({"quant_method": "awq", "bits": 4, "group_size": 64}, 0.5 + 2.5 / 64),
        ({"quant_method": "gptq", "bits": 8, "group_size": -1}, 1.0),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, 1.0),
    ],
)
def test_only_linear_layers_are_quantized(config: dict[str, Any], linear: float) -> None:
    counted = architectures.parameters(MISTRAL_7B)

    result = sizing.weight_bytes(quantized(**config), "float16")

    assert result == pytest.approx(counted.linear * linear + counted.rest * 2)


@pytest.mark.parametrize(("fraction", "cards"), [(0.0, 1), (-0.5, 1), (1.5, 1), (0.5, 2)])
def test_a_share_that_cannot_be_is_refused(fraction: float, cards: int) -> None:
    with pytest.raises(UserError, match="a fraction of a card is above 0 and up to 1, of one card"):
        sizing.plan(DEMAND, "L4", cards=cards, fraction=fraction)


def test_what_fits_nowhere_is_told_with_the_number_of_cards_that_comes_nearest() -> None:
    with pytest.raises(UserError, match="does not fit 2 x RTX-5090"):
        sizing.plan(Demand(QWEN3_VL_8B, "bfloat16", 262144), "RTX-5090", cards=2)


def test_a_row_may_be_as_long_as_the_base_has_positions() -> None:
    assert sizing.plan(replace(DEMAND, max_model_len=32768), "L4").fits
    assert sizing.sized(DEMAND, "L4", 1).largest_len == 32768


@pytest.mark.parametrize(
    ("requests", "at_once"),
    [(0.5, 1), (1, 1), (3.9, 3), (4, 8), (7.9, 8), (8, 16), (31, 56), (100, 64)],
)
def test_requests_at_once(requests: float, at_once: int) -> None:
    assert sizing.concurrency(requests) == at_once


@pytest.mark.parametrize(
    ("heads", "with_values", "cards"),
    [(32, 8, [1, 2, 4, 8]), (28, 4, [1, 2, 4]), (12, 3, [1]), (32, 2, [1, 2, 4, 8])],
)
def test_heads_are_divided_evenly(heads: int, with_values: int, cards: list[int]) -> None:
    config = MISTRAL_7B | {"num_attention_heads": heads, "num_key_value_heads": with_values}
    assert sizing.splits(config) == cards


def test_a_tokens_cache_is_a_key_and_a_value_of_each_head_and_layer() -> None:
    a_head = 2 * 32 * 128 * 2

    assert sizing.kv_bytes(MISTRAL_7B, "bfloat16") == 8 * a_head
    assert sizing.kv_bytes(MISTRAL_7B, "bfloat16", cards=4) == 2 * a_head
    two = MISTRAL_7B | {"num_key_value_heads": 2}
    assert sizing.kv_bytes(two, "bfloat16", cards=8) == a_head


@pytest.mark.parametrize(("length", "tokens"), [(1, 32), (100, 128), (8191, 8208), (32768, 8208)])
def test_a_window_keeps_itself_two_steps_and_a_block(length: int, tokens: int) -> None:
    # 4096 - 1 + 2 x 2048 = 8191 tokens, 512 blocks of 16, and one more.
    assert sizing.cache_tokens(DEMAND, length) == tokens


@pytest.mark.parametrize(("length", "tokens"), [(16, 16), (17, 32)])
def test_without_a_window_a_request_keeps_whole_blocks(length: int, tokens: int) -> None:
    demand = Demand(QWEN3_VL_8B, "bfloat16", 1024)
    assert sizing.cache_tokens(demand, length) == tokens


@pytest.mark.parametrize(
    "changed", [{"use_sliding_window": False}, {"architectures": ["Qwen2ForCausalLM"]}]
)
def test_a_window_that_is_not_used_is_none(changed: dict[str, Any]) -> None:
    assert sizing.sliding_window(MISTRAL_7B) == 4096
    assert sizing.sliding_window(MISTRAL_7B | changed) is None


def test_adapter_slots_are_shared_by_cards_as_vllm_splits_the_layers() -> None:
    # q, k, v, gate, up keep their inputs and split their outputs; o and down the other way round.
    whole = (4096 + 4096) + 2 * (4096 + 1024) + 2 * (4096 + 14336) + (4096 + 4096) + (14336 + 4096)
    half = (4096 + 2048) + 2 * (4096 + 512) + 2 * (4096 + 7168) + (2048 + 4096) + (7168 + 4096)
    demand = replace(DEMAND, max_lora_rank=1)

    assert sizing.lora_bytes(demand) == whole * 32 * 2
    assert sizing.lora_bytes(demand, cards=2) == half * 32 * 2
    assert sizing.lora_bytes(replace(demand, max_loras=3, max_lora_rank=4)) == 12 * whole * 32 * 2


@pytest.mark.parametrize(
    ("tokens", "gib"), [(1024, 2.5), (2048, 2.5), (5120, 4.05), (8192, 5.6), (65536, 5.6)]
)
def test_activations_grow_with_the_step(tokens: int, gib: float) -> None:
    demand = replace(DEMAND, max_num_batched_tokens=tokens)
    assert sizing.activation_gib(demand) == pytest.approx(gib)


@pytest.mark.parametrize(
    ("pixels", "gib"), [(None, 7.7), (16384 * 32 * 32, 7.7), (16384 * 16 * 32, 5.1), (0, 2.5)]
)
def test_activations_grow_with_the_picture(pixels: int | None, gib: float) -> None:
    demand = Demand(QWEN3_VL_8B, "bfloat16", 1024, max_pixels=pixels)
    assert sizing.activation_gib(demand) == pytest.approx(gib)


def test_a_log_without_the_share_and_the_weights_is_filled_in_from_the_plan() -> None:
    estimate = sizing.sized(DEMAND, "L4", 1, 0.5)

    learned = sizing.calibrate("Available KV cache memory: -9 GiB", DEMAND, "L4", fraction=0.5)

    left = GPUS["L4"].memory * 0.45 - estimate.weights - estimate.lora + 9
    assert learned == pytest.approx(left, abs=0.01)


def test_a_gib_is_two_to_the_thirtieth() -> None:
    assert sizing.sized(DEMAND, "L4", 1).weights == pytest.approx(
        sizing.weight_bytes(MISTRAL_7B, "bfloat16") / 1024**3
    )
    assert math.isclose(GIB, 1024**3)
