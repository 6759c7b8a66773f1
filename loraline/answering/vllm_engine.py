"""Answers and likelihoods by vLLM in this process, with the arguments that the server will get."""

from __future__ import annotations

import json
import multiprocessing
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from loraline.answering.hf import Answer
from loraline.base.encoding import Encoder, Row
from loraline.base.media import rgb_images
from loraline.profiles.keys import Projection
from loraline.serving.adapter_config import CONFIG

if TYPE_CHECKING:
    from loraline.base.locate import Base
    from loraline.contract import Contract

ENVIRONMENT = {
    # The engine runs in this process, which ends with the step.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_NO_USAGE_STATS": "1",
}

KV_CACHE_BYTES_ON_CPU = 2**30
"""Without a GPU, vLLM takes its share of all memory, and all of that must be free at the start."""


def measure(
    agreed: Contract,
    base: Base,
    adapters: Mapping[str, Path | None],
    encoder: Encoder,
    rows: Sequence[Row],
) -> dict[str, tuple[list[Answer], list[float]]]:
    """Answers and likelihoods of the base under each adapter, merged where its contract says so.

    `adapters` gives a name to each adapter's folder; None stands for the bare base. All that is not
    merged shares one load of the base; each merged adapter gets a separate engine.
    """
    from loraline import contract

    merged = {
        name: folder
        for name, folder in adapters.items()
        if folder and contract.read(folder).export == "merged"
    }
    if not merged:
        return measure_together(agreed, base, adapters, encoder, rows)
    unmerged = {name: folder for name, folder in adapters.items() if name not in merged}
    measured = (
        in_subprocess(measure_together, agreed, base, unmerged, encoder, rows) if unmerged else {}
    )
    for name, folder in merged.items():
        measured[name] = measure_by_itself(name, folder, agreed, base, encoder, rows)
    return {name: measured[name] for name in adapters}


def in_subprocess(task: Callable[..., Any], *arguments: Any) -> Any:
    """Run a function in a separate process: only its end surely frees a GPU's memory."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        return process.submit(task, *arguments).result()


def measure_by_itself(
    name: str, adapter: Path, agreed: Contract, base: Base, encoder: Encoder, rows: Sequence[Row]
) -> tuple[list[Answer], list[float]]:
    """Answers of the base with an adapter merged into it, or of a model that was trained whole."""
    from loraline import contract
    from loraline.base import locate, merging
    from loraline.base.load import trained_base

    bare: dict[str, Path | None] = {name: None}
    served = contract.read(adapter)
    if served.train == "full":
        model = trained_base(served, base, adapter)
        return in_subprocess(measure_together, agreed, model, bare, encoder, rows)[name]
    with tempfile.TemporaryDirectory() as scratch:
        folder = in_subprocess(merging.write, served, base, adapter, Path(scratch, "merged"))
        model = locate.Base(folder, base.revision, base.config)
        return in_subprocess(measure_together, agreed, model, bare, encoder, rows)[name]


def measure_together(
    agreed: Contract,
    base: Base,
    adapters: Mapping[str, Path | None],
    encoder: Encoder,
    rows: Sequence[Row],
) -> dict[str, tuple[list[Answer], list[float]]]:
    """Answers and likelihoods of one engine, under each of its adapters."""
    from loraline.process import progress

    longest = max(map(len, rows), default=0)
    llm = start_engine(agreed, base, [folder for folder in adapters.values() if folder], longest)
    from vllm.lora.request import LoRARequest

    measured = {}
    for number, (name, adapter) in enumerate(adapters.items(), start=1):
        # Base and adapter requests are never in one batch: vLLM's CPU build mixes them up.
        lora = None if adapter is None else LoRARequest(name, number, str(adapter))
        with progress.bar(f"evaluate {name}", 2) as advance:
            nll = negative_log_likelihoods(llm, encoder, rows, lora)
            advance(1, "")
            generated = answers(llm, encoder, rows, agreed.max_new_tokens, lora)
            advance(1, "")
        measured[name] = generated, nll
    return measured


def start_engine(agreed: Contract, base: Base, adapters: Sequence[Path], longest: int) -> Any:
    """vLLM's offline engine with the server's arguments, with room for all adapters at once, or
    without any.

    `longest` is the longest row in tokens, its reference included.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import torch

    if not torch.cuda.is_available():
        # The first request for log-probabilities would wait for a compiler.
        os.environ.setdefault("TORCH_COMPILE_DISABLE", "1")
    from vllm import LLM
    from vllm.engine.arg_utils import EngineArgs
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    from loraline.base import architectures, load
    from loraline.serving import arguments as serving_arguments
    from loraline.serving import preflight

    load.use_one_thread_for_tiny_models(base)
    adapter = serving_arguments.Adapter("tuned", "", "", agreed.adapter_sha256, agreed.r)
    _, *flags = serving_arguments.arguments(agreed, [adapter], merged=not adapters)
    parser = EngineArgs.add_cli_args(FlexibleArgumentParser())
    options, _ = parser.parse_known_args(["--model", str(base.path), *flags])
    arguments = EngineArgs.from_cli_args(options)
    arguments.tokenizer, arguments.revision = str(base.path), None
    if adapters:
        ranks = [json.loads((adapter / CONFIG).read_text())["r"] for adapter in adapters]
        arguments.max_loras = len(adapters) + 1
        arguments.max_lora_rank = preflight.max_lora_rank(max(ranks))
        # By default vLLM wraps the head too, and then its CPU build cannot score prompts.
        if not agreed.trains_vision:
            arguments.lora_target_modules = list(get_args(Projection))
        elif not torch.cuda.is_available():
            # By their paths: names alone would match the patch embedding, which cannot be wrapped.
            paths = [path.removeprefix("model.") for path in architectures.linears(base.config)]
            tower = [path for path in paths if path.startswith("visual.")]
            arguments.lora_target_modules = [*get_args(Projection), *tower]
    # A reference may be longer than any answer that the server would give.
    arguments.max_model_len = max(agreed.max_model_len, longest + 1)
    if not torch.cuda.is_available():
        arguments.kv_cache_memory_bytes = KV_CACHE_BYTES_ON_CPU
    return LLM.from_engine_args(arguments)


def answers(
    llm: Any, encoder: Encoder, rows: Sequence[Row], max_new_tokens: int, lora: Any
) -> list[Answer]:
    """Greedy answers to the rows' prompts, in the rows' order."""
    from vllm import SamplingParams

    greedy = SamplingParams(temperature=0, max_tokens=max_new_tokens, detokenize=False)
    prompts = [prompt(encoder, row, []) for row in rows]
    decoded = []
    for output in llm.generate(prompts, greedy, use_tqdm=False, lora_request=lora):
        tokens = list(output.outputs[0].token_ids)
        ended = encoder.end in tokens
        answer = tokens[: tokens.index(encoder.end)] if ended else tokens
        decoded.append(Answer(encoder.decode(answer), answer, not ended))
    return decoded


def negative_log_likelihoods(
    llm: Any, encoder: Encoder, rows: Sequence[Row], lora: Any
) -> list[float]:
    """Sum of -log p over each row's answer tokens, the end token included, in nats."""
    from vllm import SamplingParams

    # The answer stands in the prompt, whose tokens vLLM scores; it has to generate one more.
    scored = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0, detokenize=False)
    prompts = [prompt(encoder, row, row.answer) for row in rows]
    losses = []
    outputs = llm.generate(prompts, scored, use_tqdm=False, lora_request=lora)
    for row, output in zip(rows, outputs, strict=True):
        tail = output.prompt_logprobs[-len(row.answer) :]
        pairs = zip(row.answer, tail, strict=True)
        losses.append(-sum(place[token].logprob for token, place in pairs))
    return losses


def prompt(encoder: Encoder, row: Row, answer: Sequence[int]) -> dict[str, Any]:
    """A row as vLLM takes it; vLLM expands each image's one token by itself."""
    if not row.images:
        return {"prompt_token_ids": [*row.prompt, *answer]}
    tokens = collapsed(row.prompt, encoder.processor.image_token_id)
    return {
        "prompt_token_ids": [*tokens, *answer],
        "multi_modal_data": {"image": rgb_images(row.images)},
    }


def collapsed(tokens: Iterable[int], image: int) -> list[int]:
    """Tokens with each run of image tokens made one."""
    return [token for key, run in groupby(tokens) for token in ([key] if key == image else run)]
