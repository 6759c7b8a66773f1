"""Sizes against models that exist and starts that were seen."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from packed_rows import ARCHITECTURES

from loraline.base import architectures
from loraline.errors import UserError
from loraline.serving import sizing
from loraline.serving.cards import GPUS
from loraline.serving.sizing import GIB, Demand

BASES = Path(__file__).parent / "bases"
QWEN3_VL_8B = json.loads((BASES / "Qwen3-VL-8B-Instruct.json").read_text())
MISTRAL_7B = json.loads((BASES / "Mistral-7B-v0.1.json").read_text())
SEED = Demand(QWEN3_VL_8B, "bfloat16", 262144)
"""Images and videos without limits and no adapter: a demo's first start on a 32 GB card."""


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_parameters_from_the_config_are_the_models_own(tiny_base, architecture: str) -> None:
    from safetensors import safe_open

    base = tiny_base(architecture)
    with safe_open(base / "model.safetensors", "pt") as file:
        own = sum(file.get_tensor(key).numel() for key in file.keys())  # noqa: SIM118 - not a dict
    assert sum(architectures.parameters(json.loads((base / "config.json").read_text()))) == own


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("Mistral-7B-v0.1", 7.242),
        ("Qwen2-VL-7B-Instruct", 8.291),
        ("Qwen2.5-VL-3B-Instruct", 3.755),
        ("Qwen3-VL-8B-Instruct", 8.767),
    ],
)
def test_parameters_of_published_models(name: str, billions: float) -> None:
    config = json.loads((BASES / f"{name}.json").read_text())
    assert sum(architectures.parameters(config)) / 1e9 == pytest.approx(billions, abs=0.001)


def test_first_seen_start_needs_36_gib_of_cache_for_its_context() -> None:
    result = sizing.sized(SEED, "RTX-5090", 1)
    assert result.needed == 36.0
    assert result.available == pytest.approx(4.66, abs=0.05)
    with pytest.raises(UserError) as refused:
        sizing.plan(SEED, "RTX-5090")
    assert "262144 tokens need 36.00" in str(refused.value)
    assert f"the largest length that fits is {result.largest_len} tokens" in str(refused.value)
    assert 33_000 < result.largest_len < 34_000


def test_second_seen_start_had_less_than_nothing_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sizing, "UTILIZATION", 0.7)
    result = sizing.sized(replace(SEED, max_model_len=32000), "RTX-5090", 1)
    assert result.available == pytest.approx(-1.79, abs=0.06)
    with pytest.raises(UserError, match="no length fits: choose a larger card"):
        sizing.plan(replace(SEED, max_model_len=32000), "RTX-5090")


def test_third_seen_start_served_32000_tokens() -> None:
    result = sizing.plan(replace(SEED, max_model_len=32000), "RTX-5090")
    assert result.fits and result.tensor_parallel_size == 1 and result.max_num_seqs == 1


def test_limits_on_images_make_room() -> None:
    free = sizing.sized(SEED, "L4", 1)
    limited = sizing.sized(replace(SEED, max_pixels=512 * 512, max_model_len=4096), "L4", 1)
    assert not free.fits and limited.available > free.available


def test_a_sliding_window_bounds_the_cache() -> None:
    short, long = (
        sizing.sized(Demand(MISTRAL_7B, "bfloat16", length), "L4", 1) for length in (4096, 32768)
    )
    assert short.needed == pytest.approx(0.5, abs=0.01)
    assert long.needed == pytest.approx(1.0, abs=0.01)


def test_where_the_cache_has_room_the_positions_of_the_base_are_the_limit() -> None:
    large = sizing.sized(SEED, "H200", 1)
    assert large.available > 2 * large.needed
    assert large.largest_len == 262144


def test_as_many_requests_run_at_once_as_the_cache_has_room_for() -> None:
    plan = sizing.sized(replace(SEED, max_model_len=32000), "H200", 1)
    assert plan.available / plan.needed == pytest.approx(23.2, abs=0.1)
    assert plan.max_num_seqs == 40


def test_adapter_slots_are_counted_at_the_servers_rank() -> None:
    demand = Demand(QWEN3_VL_8B, "bfloat16", 4096, max_lora_rank=16)
    assert sizing.lora_bytes(demand) / 2**20 == pytest.approx(83, abs=1)
    assert sizing.lora_bytes(replace(demand, tower=True)) / 2**20 == pytest.approx(100, abs=1)
    assert sizing.lora_bytes(replace(demand, max_loras=2)) == 2 * sizing.lora_bytes(demand)


def test_no_card_is_planned_with_more_than_cuda_reports() -> None:
    """Lowest "total capacity" in public reports of PyTorch's out-of-memory errors."""
    reported = {"T4": 14.56, "A10": 21.99, "RTX-4090": 23.52, "A100-40GB": 39.5, "L40S": 44.42}
    reported |= {"A100-80GB": 79.14, "H100-80GB": 79.11}
    assert {gpu: GPUS[gpu].memory for gpu in reported} == reported


def test_cards_are_told_apart_by_the_names_that_nodes_have() -> None:
    products = [product for card in GPUS.values() for product in card.products]
    assert len(products) == len(set(products)) and all(" " not in product for product in products)


def test_more_cards_are_taken_only_when_one_is_too_small() -> None:
    demand = Demand(MISTRAL_7B, "bfloat16", 1024, max_lora_rank=8)
    assert sizing.plan(demand, "L4", cards=4).tensor_parallel_size == 1
    assert sizing.plan(demand, "RTX-4080", cards=4).tensor_parallel_size == 2


def test_a_base_of_7b_in_16_bits_is_not_served_on_a_quarter_of_16_gb_but_a_small_one_is() -> None:
    demand = Demand(MISTRAL_7B, "bfloat16", 1024, max_lora_rank=8)
    with pytest.raises(
        UserError, match=r"does not fit 0\.25 of one RTX-4080 \(15\.50 GiB x 0\.225"
    ):
        sizing.plan(demand, "RTX-4080", fraction=0.25)
    small = MISTRAL_7B | {"hidden_size": 512, "intermediate_size": 1024, "head_dim": 128}
    result = sizing.plan(replace(demand, config=small), "RTX-4080", fraction=0.25)
    assert result.gpu_memory_utilization == 0.225


def test_quantized_bases_are_counted_as_they_are_stored() -> None:
    gptq = MISTRAL_7B | {"quantization_config": {"quant_method": "gptq", "bits": 4}}
    nf4 = {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}
    assert sizing.weight_bytes(MISTRAL_7B, "bfloat16") / GIB == pytest.approx(13.49, abs=0.01)
    assert sizing.weight_bytes(gptq, "float16") / GIB == pytest.approx(3.87, abs=0.05)
    assert sizing.weight_bytes(MISTRAL_7B | nf4, "bfloat16") / GIB == pytest.approx(3.84, abs=0.03)
    with pytest.raises(UserError, match="quantization 'hqq' of the base has no size here"):
        sizing.weight_bytes(
            MISTRAL_7B | {"quantization_config": {"quant_method": "hqq"}}, "float16"
        )


def test_a_base_in_fp8_takes_a_byte_a_weight_on_cards_that_have_it() -> None:
    whole, half = (sizing.weight_bytes(MISTRAL_7B, "bfloat16", q) / GIB for q in ("none", "fp8"))
    assert (whole, half) == (pytest.approx(13.49, abs=0.01), pytest.approx(6.99, abs=0.01))
    demand = Demand(MISTRAL_7B, "bfloat16", 1024, quantization="fp8")
    assert sizing.plan(demand, "L4").weights == pytest.approx(6.99, abs=0.01)
    with pytest.raises(UserError, match=r"A10 cannot multiply in FP8.* use RTX-4080, L4, RTX-4090"):
        sizing.plan(demand, "A10")


def test_a_card_without_bfloat16_and_a_context_without_positions_are_refused() -> None:
    with pytest.raises(UserError, match="T4 cannot compute in bfloat16; set serve_dtype: float16"):
        sizing.plan(Demand(MISTRAL_7B, "bfloat16", 1024), "T4")
    with pytest.raises(UserError, match="longer than the base's 32768 positions"):
        sizing.plan(Demand(MISTRAL_7B, "bfloat16", 40000), "H200")


def test_the_smallest_card_is_found() -> None:
    assert sizing.smallest(Demand(MISTRAL_7B, "bfloat16", 1024, max_lora_rank=8), {}).gpu == "L4"


LOG = """INFO non-default args: {'model': 'x', 'gpu_memory_utilization': 0.7, 'enable_lora': True}
INFO Model loading took 16.41 GiB memory and 7.2 seconds
INFO Available KV cache memory: %s GiB
"""


def test_a_log_teaches_the_activations() -> None:
    demand = replace(SEED, max_model_len=32000)
    learned = sizing.calibrate(LOG % "-1.79", demand, "RTX-5090")
    assert learned == pytest.approx(31.84 * 0.7 - 16.41 + 1.79, abs=0.01)
    assert sizing.sized(replace(demand, activation=learned), "RTX-5090", 1).activation == learned


@pytest.mark.parametrize(
    ("log", "message"), [("nothing", "has no line"), (LOG % "30", "another card")]
)
def test_a_log_of_something_else_is_refused(log: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        sizing.calibrate(log, SEED, "RTX-5090")


@given(
    gpu=st.sampled_from(sorted(GPUS)),
    length=st.integers(16, 262144),
    rank=st.sampled_from([1, 16, 512]),
    cards=st.sampled_from([1, 2, 4, 8]),
)
def test_the_largest_length_fits_and_the_next_block_does_not(gpu, length, rank, cards) -> None:
    demand = Demand(QWEN3_VL_8B, "bfloat16", length, max_lora_rank=rank, max_pixels=10**6)
    largest = sizing.sized(demand, gpu, cards).largest_len
    assert sizing.sized(demand, gpu, cards).fits == (length <= largest)
    if largest:
        assert sizing.sized(replace(demand, max_model_len=largest), gpu, cards).fits
