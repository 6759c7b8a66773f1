"""The memory estimate against peaks that torch measured on an H200, and what follows from it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file

from loraline import memory, profiles
from loraline.encoding import Row
from loraline.errors import UserError
from loraline.models import Base

MISTRAL_7B = {
    "architectures": ["MistralForCausalLM"],
    "model_type": "mistral",
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
}
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
STANDARD = profiles.Profile(r=8, lora_alpha=16, target_modules=ATTENTION, max_length=2048)
GIB = 2**30


@pytest.fixture
def mistral(tmp_path: Path) -> Base:
    """Mistral-7B's config and the headers of its weights; the weights themselves are holes."""
    shapes = {"model.embed_tokens.weight": [32000, 4096], "lm_head.weight": [32000, 4096]}
    for layer in range(32):
        at = f"model.layers.{layer}"
        shapes |= {f"{at}.self_attn.{n}_proj.weight": [4096, 4096] for n in "qo"}
        shapes |= {f"{at}.self_attn.{n}_proj.weight": [1024, 4096] for n in "kv"}
        shapes |= {f"{at}.mlp.{n}_proj.weight": [14336, 4096] for n in ("gate", "up", "down")}
    header: dict[str, Any] = {}
    end = 0
    for name, (rows, columns) in shapes.items():
        size = 2 * rows * columns
        header[name] = {
            "dtype": "BF16",
            "shape": [rows, columns],
            "data_offsets": [end, end + size],
        }
        end += size
    text = json.dumps(header).encode()
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    return Base(tmp_path, "", MISTRAL_7B)


@pytest.fixture(autouse=True)
def fused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "has_fused_kernels", lambda: True)


def rows(tokens: int, count: int = 1) -> list[Row]:
    return [Row([1] * (tokens - 1), [2])] * count


@pytest.mark.parametrize(
    ("tokens", "peak"), [(1021, 4.50), (2038, 4.92), (4080, 5.76), (8175, 7.56), (16377, 11.16)]
)
def test_recomputed_activations_take_what_was_measured(
    tokens: int, peak: float, mistral: Base
) -> None:
    plan = memory.Plan(tokens, checkpointing=True, dequantized=False, fused=True)
    found = memory.estimate(STANDARD, mistral, rows(tokens), plan).total / GIB
    assert found == pytest.approx(peak, rel=0.15)


def test_a_large_card_gets_the_fastest_plan(mistral: Base) -> None:
    plan, table = memory.choose(STANDARD, mistral, rows(350, 100), 139 * GIB)
    assert plan == memory.Plan(16384, checkpointing=False, dequantized=True, fused=True)
    assert "base weights" in table and "peak" in table


@pytest.mark.parametrize("gib", [6, 8, 12, 16, 24, 40, 80])
def test_the_plan_fits_the_card(gib: int, mistral: Base) -> None:
    plan, _ = memory.choose(STANDARD, mistral, rows(1000, 100), gib * GIB)
    assert memory.estimate(STANDARD, mistral, rows(1000, 100), plan).total < gib * GIB


def test_more_memory_is_never_slower(mistral: Base) -> None:
    order = memory.candidates("auto")
    places = [
        order.index(memory.choose(STANDARD, mistral, rows(1000, 100), gib * GIB)[0])
        for gib in range(6, 140, 4)
    ]
    assert places == sorted(places, reverse=True)


def test_a_mode_that_does_not_fit_names_one_that_does(mistral: Base) -> None:
    recipe = STANDARD.model_copy(update={"memory": "fast"})
    with pytest.raises(UserError, match=r"fast needs .* GiB .* memory: small needs"):
        memory.choose(recipe, mistral, rows(1000, 100), 8 * GIB)


def test_rows_that_do_not_fit_name_the_length_that_does(mistral: Base) -> None:
    with pytest.raises(UserError, match="set max_length") as refused:
        memory.choose(STANDARD, mistral, rows(30_000), 10 * GIB)
    fitting = int(str(refused.value).split("rows of up to ")[1].split()[0])
    memory.choose(STANDARD, mistral, rows(fitting - 50), 10 * GIB)


def test_a_base_that_does_not_fit_is_refused(mistral: Base) -> None:
    with pytest.raises(UserError, match="the base and its adapter alone take"):
        memory.choose(STANDARD, mistral, rows(1000), 3 * GIB)


def test_a_cpu_is_not_planned_for(mistral: Base) -> None:
    assert memory.choose(STANDARD, mistral, rows(1000), None)[0] == memory.CPU


def test_tower_weights_are_not_counted_as_four_bit(tmp_path: Path) -> None:
    import torch

    weights = {
        "model.language_model.layers.0.mlp.up_proj.weight": torch.zeros(64, 64),
        "model.visual.blocks.0.mlp.up_proj.weight": torch.zeros(64, 64),
    }
    save_file(weights, tmp_path / "model.safetensors")
    plan = memory.Plan(1024, checkpointing=True, dequantized=False, fused=True)
    assert memory.weight_bytes(tmp_path, plan) == int(4096 * 4.127 / 8 + 4096 * 2)
