"""Whatever stands in an adapter's files, preflight ends in findings or in none."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from loraline.contract import BASE_CONFIG
from loraline.serving import preflight
from loraline.serving.adapter_config import CONFIG, KNOWN

WEIGHTS = "adapter_model.safetensors"
BASE = {
    "architectures": ["MistralForCausalLM"],
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_attention_heads": 1,
    "num_hidden_layers": 2,
    "vocab_size": 64,
}
VALUES: list[Any] = [
    *(None, True, False, 0, 1, -1, 4, 8, 0.5, -0.0, 1e308, 5e-324, 10**400, float("nan")),
    *(float("inf"), "", "q_proj", "(", "*", "[a-", "all-linear", "LORA", "nan", "\x00", "\ud83d"),
    *([], {}, [[]], [None], ["q_proj"], ["("], [0], [True], [1e9], {"": 0}, {"(": 4}),
    *({"q_proj": None}, {"q_proj": "4"}, {".*": float("nan")}, {"q_proj": 10**400}, "none"),
    *("(a+)+$", "\\1", "(?P<x>", "(?i)", ["\n"], {"q_proj": {}}, [{}], "F32", "I8", "C64"),
    *([0, 8], [8, 0], [-1, 3], [2**64, 2**65], [4, 16], [2**62, 2**62], "F8_E4M3", "BF16"),
]


def adapter(folder: Path) -> None:
    """A sound adapter of two layers."""
    folder.mkdir()
    settings = {
        "peft_type": "LORA",
        "r": 4,
        "lora_alpha": 8,
        "target_modules": ["q_proj"],
        "rank_pattern": {},
        "alpha_pattern": {},
    }
    tensors = {}
    for layer in range(2):
        prefix = f"base_model.model.model.layers.{layer}.self_attn.q_proj"
        tensors[f"{prefix}.lora_A.weight"] = torch.ones(4, 16)
        tensors[f"{prefix}.lora_B.weight"] = torch.ones(16, 4)
    save_file(tensors, folder / WEIGHTS)
    (folder / CONFIG).write_text(json.dumps(settings))
    (folder / BASE_CONFIG).write_text(json.dumps(BASE))


def changed(value: Any, pick: random.Random, names: list[str]) -> Any:
    """The value with something in it, at any depth, replaced, removed or added."""
    if pick.random() < 0.3 or not isinstance(value, dict | list) or not value:
        return pick.choice(VALUES)
    if isinstance(value, list):
        place = pick.randrange(len(value))
        return [*value[:place], changed(value[place], pick, names), *value[place + 1 :]]
    key = pick.choice([*value, pick.choice(names)])
    if pick.random() < 0.15:
        return {name: item for name, item in value.items() if name != key}
    if pick.random() < 0.1:
        return {
            pick.choice([*names, "", "x"]) if name == key else name: item
            for name, item in value.items()
        }
    return value | {key: changed(value.get(key), pick, names)}


def spoil_bytes(file: Path, pick: random.Random) -> None:
    """Change, cut, double or add bytes."""
    content = bytearray(file.read_bytes())
    for _ in range(pick.randint(1, 4)):
        place = pick.randrange(len(content)) if content else 0
        if (way := pick.random()) < 0.6 and content:
            content[place] = pick.randrange(256)
        elif way < 0.8:
            content[place:place] = bytes(pick.randrange(256) for _ in range(pick.randint(1, 8)))
        else:
            del content[place : place + pick.randint(1, 64)]
    file.write_bytes(content)


def spoil_header(file: Path, pick: random.Random) -> None:
    content = file.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    if not isinstance(header, dict):
        raise ValueError("the header is spoilt already")
    names = ["__metadata__", "dtype", "shape", "data_offsets", "format", *header]
    try:
        spoiled = json.dumps(changed(header, pick, names)).encode()
    except UnicodeEncodeError:
        spoiled = b"{}"
    file.write_bytes(len(spoiled).to_bytes(8, "little") + spoiled + content[end:])


def spoil(folder: Path, pick: random.Random) -> None:
    """One to three changes, most of them to the config or to the weights' header."""
    for _ in range(pick.randint(1, 3)):
        file = folder / pick.choice([CONFIG, CONFIG, CONFIG, WEIGHTS, WEIGHTS, BASE_CONFIG])
        if not file.is_file():
            continue
        if pick.random() < 0.2:
            spoil_bytes(file, pick)
        elif file.name == WEIGHTS:
            try:
                spoil_header(file, pick)
            except (ValueError, MemoryError):
                spoil_bytes(file, pick)
        else:
            try:
                before = json.loads(file.read_text())
            except ValueError:
                continue
            if not isinstance(before, dict):
                continue
            known = sorted(KNOWN) if file.name == CONFIG else [*BASE, "head_dim", "text_config"]
            file.write_text(json.dumps(changed(before, pick, known)))


@pytest.mark.parametrize(
    "times", [1_000, pytest.param(10_000, marks=pytest.mark.slow)], ids=lambda times: f"{times}"
)
def test_spoilt_files_end_in_findings_or_none_and_never_in_another_error(
    times: int, tmp_path: Path
) -> None:
    sound, folder = tmp_path / "sound", tmp_path / "adapter"
    adapter(sound)
    assert preflight.findings(sound, "base", trains_vision=False) == []
    refused = 0
    for seed in range(times):
        shutil.copytree(sound, folder)
        spoil(folder, random.Random(seed))
        try:
            result = preflight.findings(folder, "base", trains_vision=False)
            preflight.highest_rank(folder)
        except Exception as error:
            kept = {file.name: file.read_bytes()[:2000] for file in folder.iterdir()}
            pytest.fail(f"seed {seed}: {type(error).__name__}: {error}\n{kept}")
        assert all("\n" not in str(finding) for finding in result)
        refused += bool(result)
        shutil.rmtree(folder)
    # Not all changes do harm, but most do.
    assert times / 2 < refused < times
