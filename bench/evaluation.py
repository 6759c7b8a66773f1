"""GPU memory and time of evaluate's likelihoods and answers, at the limits of a vision profile.

    python bench/evaluation.py
    python bench/evaluation.py --profile latex-ocr --card-gib 14 --rows 64

Every row has a square image of the profile's most pixels and an answer of its most tokens. The
process may allocate what a card of 24 GB has for it, for which both profiles were made. The base
has the shape that the profile names and random weights, in 4-bit NF4 with an adapter.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "bench")]

from train import call, environment  # noqa: E402

TINY = {"latex-ocr": "base-qwen2-vl", "qwen3-vl": "base-qwen3-vl"}
"""A tiny base of the architecture of each profile's base, for its tokenizer and token IDs."""

SHAPES: dict[str, dict[str, dict[str, Any]]] = {
    # Qwen/Qwen2-VL-7B-Instruct, as its config.json gives it.
    "latex-ocr": {
        "text_config": {
            "hidden_size": 3584,
            "num_hidden_layers": 28,
            "layer_types": ["full_attention"] * 28,
            "num_attention_heads": 28,
            "num_key_value_heads": 4,
            "head_dim": 128,
            "intermediate_size": 18944,
            "vocab_size": 152064,
            "max_position_embeddings": 32768,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e6,
                "mrope_section": [16, 24, 24],
            },
        },
        "vision_config": {
            "depth": 32,
            "embed_dim": 1280,
            "hidden_size": 3584,
            "mlp_ratio": 4,
            "num_heads": 16,
        },
    },
    # Qwen/Qwen3-VL-8B-Instruct, as its config.json gives it.
    "qwen3-vl": {
        "text_config": {
            "hidden_size": 4096,
            "num_hidden_layers": 36,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "intermediate_size": 12288,
            "vocab_size": 151936,
            "max_position_embeddings": 262144,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 5e6,
                "mrope_section": [24, 20, 20],
                "mrope_interleaved": True,
            },
        },
        "vision_config": {
            "depth": 27,
            "hidden_size": 1152,
            "intermediate_size": 4304,
            "num_heads": 16,
            "out_hidden_size": 4096,
            "patch_size": 16,
            "deepstack_visual_indexes": [8, 16, 24],
            "num_position_embeddings": 2304,
        },
    },
}
"""What the config of a profile's base has unlike the tiny base's."""


@click.command()
@click.option(
    "--profile", "profiles", multiple=True, type=click.Choice(list(TINY)), default=tuple(TINY)
)
@click.option("--rows", default=32, show_default=True, help="Rows to measure.")
@click.option(
    "--card-gib", default=22.0, show_default=True, help="GiB that the process may allocate."
)
@click.option("--tiny", is_flag=True, help="Use the tiny bases: on a CPU, to try the bench out.")
def evaluation(profiles: tuple[str, ...], rows: int, card_gib: float, tiny: bool) -> None:
    """Print the peak and the seconds of each part, with the training's planned peak."""
    environment()
    click.echo("\n| profile | part | rows | peak GiB | reserved GiB | seconds |")
    click.echo("|---|---|---|---|---|---|")
    for profile in profiles:
        with tempfile.TemporaryDirectory() as folder:
            base = Path(folder) / "base"
            call(__file__, "make-base", profile, str(base), *(["tiny"] if tiny else []))
            arguments = ["measure", profile, str(base), str(rows), str(card_gib)]
            click.echo(call(__file__, *arguments), nl=False)


def make_base(profile: str, folder: Path, tiny: bool) -> None:
    """Write a base of the shape of the profile's, with random weights."""
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText

    if tiny:
        shutil.copytree(ROOT / "test_data" / "shapes" / TINY[profile], folder)
        return
    write_shape(profile, folder)
    torch.manual_seed(0)
    torch.set_default_device("cuda" if torch.cuda.is_available() else "cpu")
    config = AutoConfig.from_pretrained(folder)
    AutoModelForImageTextToText.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)


def write_shape(profile: str, folder: Path) -> None:
    """Write what a base of this shape has besides its weights."""
    start = ROOT / "test_data" / "shapes" / TINY[profile]
    shutil.copytree(start, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    content = json.loads((folder / "config.json").read_text())
    for part, values in SHAPES[profile].items():
        content[part] |= values
    (folder / "config.json").write_text(json.dumps(content))
    processor = json.loads((folder / "processor_config.json").read_text())
    for part in ("image_processor", "video_processor"):
        processor[part]["patch_size"] = content["vision_config"]["patch_size"]
    (folder / "processor_config.json").write_text(json.dumps(processor))


def measure(name: str, folder: Path, count: int, card_gib: float) -> None:
    """Print a line of the table for each part."""
    import torch
    from peft import LoraConfig, get_peft_model

    from loraline.answering import hf
    from loraline.base import targets
    from loraline.base.encoding import Encoder
    from loraline.base.load import load
    from loraline.base.locate import locate
    from loraline.profiles.loading import load_profile
    from loraline.training import allocator, memory
    from loraline.training.machine import Machine

    allocator.follow_allocated()
    on_gpu = torch.cuda.is_available()
    profile = load_profile(name, ROOT / "lora_profiles", [f"base={folder}"])
    base = locate(str(folder), None)
    encoder = Encoder(
        base.path, "vision", min_pixels=profile.min_pixels, max_pixels=profile.max_pixels
    )
    rows = longest_rows(encoder, profile, count)
    _, table = memory.choose(profile, base, rows, Machine(int(card_gib * memory.GIB)))
    planned = next(line.split()[1] for line in table.splitlines() if "peak" in line)
    print(f"| {name} | training, planned | {len(rows)} | {planned} | | |", flush=True)
    if on_gpu:
        whole = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, card_gib * memory.GIB / whole))
    loaded = load(base, "vision", quantization=profile.quantization, dtype="bfloat16")
    settings = LoraConfig(
        r=profile.r,
        lora_alpha=profile.lora_alpha,
        target_modules=targets.target_modules("vision", profile.target_modules, merger=False),
    )
    model = get_peft_model(loaded, settings).eval()

    def likelihoods() -> Any:
        return hf.negative_log_likelihoods(model, encoder, rows, lambda *_: None)

    def answers() -> Any:
        return hf.answers(model, encoder, rows, profile.max_new_tokens, lambda *_: None)

    parts: dict[str, Callable[[], Any]] = {"likelihoods": likelihoods, "answers": answers}
    for part, run in parts.items():
        if on_gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        started = time.perf_counter()
        run()
        seconds = time.perf_counter() - started
        peak = allocator.peak() / memory.GIB if on_gpu else float("nan")
        reserved = allocator.reserved() / memory.GIB if on_gpu else float("nan")
        print(
            f"| {name} | {part} | {len(rows)} | {peak:.2f} | {reserved:.2f} | {seconds:.1f} |",
            flush=True,
        )


def longest_rows(encoder: Any, profile: Any, count: int) -> list[Any]:
    """Rows with a square image of the most pixels and an answer of the most tokens."""
    import random

    from train_rows import BLOCKS, photograph

    from loraline.records import from_prompt

    rng = random.Random(0)
    side = int(profile.max_pixels**0.5)
    rows = []
    for _ in range(count):
        image = photograph(rng.randbytes(BLOCKS), (side, side))
        row = encoder.encode(from_prompt("Read the picture.", "", "x", image))
        words = [rng.randrange(20, 300) for _ in range(profile.max_new_tokens - 1)]
        rows.append(replace(row, answer=[*words, encoder.end]))
    return rows


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["make-base", profile, folder, *tiny]:
            make_base(profile, Path(folder), bool(tiny))
        case ["measure", profile, folder, rows, card_gib]:
            measure(profile, Path(folder), int(rows), float(card_gib))
        case _:
            evaluation()
