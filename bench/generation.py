"""How fast held-out rows are answered: one by one, in batches, and by vLLM, on the same rows.

python bench/generation.py --shape tiny-text --rows 256
python bench/generation.py --shape mistral-7b --rows 256 --new-tokens 128
"""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from loraline.step import PipelineCommand

if TYPE_CHECKING:
    from loraline.base.encoding import Encoder, Row
    from loraline.base.locate import Base
    from loraline.contract import Contract

DATA = Path(__file__).parents[1] / "test_data"
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
RANK = 16
PIXELS = 4704
"""Pixel limits of the tiny vision base."""

MISTRAL_7B = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 32768,
    "max_position_embeddings": 32768,
    "rope_theta": 1000000.0,
}
"""Shape of Mistral-7B-v0.3, for random weights: no hub is needed, and speed is the same."""


@dataclass(frozen=True)
class Task:
    """What one process measures."""

    engine: str
    shape: str
    base: Path
    adapter: Path
    rows: int
    new_tokens: int


@dataclass(frozen=True)
class Timing:
    """Seconds to get ready and to answer all rows, and the answers' tokens."""

    loading: float
    answering: float
    answers: list[list[int]]


@click.command(cls=PipelineCommand)
@click.option(
    "--shape",
    type=click.Choice(["tiny-text", "tiny-vision", "mistral-7b"]),
    default="tiny-text",
    show_default=True,
    help="Trained tiny bases, or random weights of a real shape.",
)
@click.option("--rows", default=256, show_default=True, help="Rows to answer.")
@click.option("--new-tokens", default=32, show_default=True, help="Longest answer in tokens.")
def generation(shape: str, rows: int, new_tokens: int) -> None:
    """Answer the same rows with an adapter in three ways and print tokens a second."""
    engines = ["one by one", "batched", *(["vllm"] if find_spec("vllm") else [])]
    with tempfile.TemporaryDirectory() as scratch:
        base = DATA / shape.removeprefix("tiny-") / "base"
        if shape == "mistral-7b":
            base = Path(scratch) / "base"
            in_a_process_of_its_own(random_mistral, base)
        adapter = Path(scratch) / "adapter"
        in_a_process_of_its_own(random_adapter, base, modality_of(shape), adapter)
        timings = {
            engine: in_a_process_of_its_own(
                answered, Task(engine, shape, base, adapter, rows, new_tokens)
            )
            for engine in engines
        }
    click.echo(f"{machine()}; {shape}, {rows} rows, up to {new_tokens} tokens, rank {RANK}")
    first = timings["one by one"]
    click.echo("engine      load s  answer s  tokens/s  speed-up  equal answers")
    for engine, timing in timings.items():
        tokens = sum(len(answer) + 1 for answer in timing.answers)
        equal = sum(a == b for a, b in zip(timing.answers, first.answers, strict=True))
        click.echo(
            f"{engine:10}  {timing.loading:6.1f}  {timing.answering:8.2f}  "
            f"{tokens / timing.answering:8.0f}  {first.answering / timing.answering:7.1f}x  "
            f"{equal}/{rows}"
        )


def in_a_process_of_its_own(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function where no earlier engine holds memory or threads."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def modality_of(shape: str) -> str:
    return "vision" if shape == "tiny-vision" else "text"


def machine() -> str:
    """Date, versions and processor, as the documentation's tables name them."""
    import torch

    versions = [f"{name} {version(name)}" for name in ("torch", "transformers")]
    versions += [f"vllm {version('vllm')}"] if find_spec("vllm") else []
    gpu = torch.cuda.is_available()
    where = torch.cuda.get_device_name() if gpu else f"{torch.get_num_threads()} threads, no GPU"
    return f"{time.strftime('%Y-%m-%d')}, {', '.join(versions)}, {where}"


def random_mistral(folder: Path) -> None:
    """A base of Mistral-7B's shape with random weights and the tiny base's tokenizer."""
    import torch
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(0)
    shutil.copytree(DATA / "text" / "base", folder, ignore=shutil.ignore_patterns("*.safetensors"))
    tiny = json.loads((folder / "config.json").read_text())
    special = {key: tiny.get(key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    config = MistralConfig(**MISTRAL_7B, **special, dtype="bfloat16")
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = MistralForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(folder)


def random_adapter(base: Path, modality: str, folder: Path) -> None:
    """An adapter on all projections whose weights are not zero."""
    import torch
    from peft import LoraConfig, get_peft_model

    from loraline.base import targets
    from loraline.base.load import load
    from loraline.base.locate import locate

    torch.manual_seed(1)
    located = locate(str(base), None)
    model = load(located, modality, quantization="none", dtype=dtype_of(located))
    pattern = targets.target_modules(modality, PROJECTIONS, False)
    settings = LoraConfig(
        r=RANK, lora_alpha=RANK, target_modules=pattern, init_lora_weights="gaussian"
    )
    tuned = get_peft_model(model, settings)
    for name, parameter in tuned.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(parameter, std=1e-3)
    tuned.save_pretrained(folder)


def dtype_of(base: Base) -> str:
    return (
        "bfloat16" if base.config.get("hidden_size", 0) == MISTRAL_7B["hidden_size"] else "float32"
    )


def answered(task: Task) -> Timing:
    """Load an engine, warm it up, and time how it answers the rows."""
    from loraline.answering import hf, vllm_engine
    from loraline.base.load import attach, load

    base, encoder, agreed, rows = prepared(task)
    started = time.monotonic()
    if task.engine == "vllm":
        from vllm.lora.request import LoRARequest

        llm = vllm_engine.start_engine(agreed, base, [task.adapter], max(map(len, rows)))
        lora = LoRARequest("tuned", 1, str(task.adapter))

        def answer(some: list[Row]) -> list[Any]:
            return vllm_engine.answers(llm, encoder, some, task.new_tokens, lora)
    else:
        size = 1 if task.engine == "one by one" else hf.BATCH
        model = load(base, agreed.modality, quantization="none", dtype=agreed.dtype)
        tuned = attach(model, task.adapter)

        def answer(some: list[Row]) -> list[Any]:
            return hf.answers(tuned, encoder, some, task.new_tokens, lambda *_: None, size)

    answer(rows[:2])
    ready = time.monotonic()
    answered = answer(rows)
    return Timing(
        ready - started, time.monotonic() - ready, [list(entry.tokens) for entry in answered]
    )


def prepared(task: Task) -> tuple[Base, Encoder, Contract, list[Row]]:
    """The base, its encoder, a contract to serve it under, and the rows."""
    from loraline import contract
    from loraline.base.encoding import Encoder
    from loraline.base.locate import locate
    from loraline.records import from_prompt

    modality = modality_of(task.shape)
    base = locate(str(task.base), None)
    limits: dict[str, Any] = (
        {"min_pixels": PIXELS, "max_pixels": PIXELS} if modality == "vision" else {}
    )
    encoder = Encoder(base.path, modality, **limits)
    folder = DATA / modality
    prompt = (folder / "prompt.txt").read_text()
    name = "train.jsonl" if modality == "text" else "metadata.jsonl"
    lines = [json.loads(line) for line in (folder / name).read_text().splitlines()]
    lines = (lines * -(-task.rows // len(lines)))[: task.rows]
    records = [
        from_prompt(prompt, line["question"], "x")
        if modality == "text"
        else from_prompt(prompt, "", "x", (folder / line["file_name"]).read_bytes())
        for line in lines
    ]
    rows = [encoder.encode(record) for record in records]
    agreed = contract.Contract(
        base=str(task.base),
        base_revision=base.revision,
        modality="vision" if modality == "vision" else "text",
        architecture=base.architecture,
        prompt=prompt,
        chat_template=encoder.chat_template,
        min_pixels=limits.get("min_pixels"),
        max_pixels=limits.get("max_pixels"),
        max_length=max(map(len, rows)),
        max_new_tokens=task.new_tokens,
        dtype="bfloat16" if dtype_of(base) == "bfloat16" else "float32",
        r=RANK,
        lora_alpha=RANK,
        target_modules=PROJECTIONS,
        trains_vision=False,
        adapter_sha256=contract.sha256(task.adapter / contract.WEIGHTS),
    )
    return base, encoder, agreed, rows


if __name__ == "__main__":
    generation()
