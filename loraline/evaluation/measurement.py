"""Measurements on the held-out rows: answers, metrics, and the digest that compares two of them.

Base, tuned model and champion answer the same rows, so their metrics can be compared row by row.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loraline.answering.hf import Answer
from loraline.base.encoding import check_tokens
from loraline.errors import UserError
from loraline.evaluation import bootstrap, calls, metrics
from loraline.evaluation.bootstrap import Interval
from loraline.evaluation.metrics import Metric

if TYPE_CHECKING:
    from loraline.base.encoding import Encoder, Row
    from loraline.base.locate import Base
    from loraline.contract import Contract
    from loraline.evaluation.plugins import Plugin
    from loraline.records import Record

FAILED = Answer("", [], truncated=False, failed=True)


@dataclass(frozen=True)
class Measurement:
    """Results of one model; every list has an entry for each held-out row, in their order."""

    answers: Sequence[Answer]

    nll: Sequence[float]
    """Sum of -log p over the answer's tokens, its end token included, in nats; inf if failed."""

    tokens: Sequence[int]
    """Target tokens, the end token included."""


def chosen_engine(requested: str, serve_dtype: str, videos: int = 0) -> str:
    """`hf` or `vllm`; `auto` takes vLLM where it is installed, has a GPU and the precision.

    `videos` is the most that a row shows; with any, `hf` measures.

    Raises UserError if vLLM is requested and cannot be used.
    """
    installed = find_spec("vllm") is not None
    if requested == "vllm" and not installed:
        raise UserError("--engine vllm: vLLM is not installed here; install it or use --engine hf")
    if requested == "vllm" and videos:
        raise UserError("--engine vllm: rows with videos are not measured with it; use --engine hf")
    from loraline.serving import versions

    # A champion beside a merged candidate may not be merged.
    only_on_cpu = versions.needs_cpu(serve_dtype, merged=False)
    if requested == "hf" or not installed or videos or (requested == "auto" and only_on_cpu):
        return "hf"
    import torch

    gpu = torch.cuda.is_available()
    if gpu and only_on_cpu:
        raise UserError(
            f"--engine vllm: the profile has serve_dtype float32, and {versions.HALF_ON_GPUS}; use "
            "--engine hf, or train with serve_dtype: bfloat16"
        )
    return "vllm" if requested == "vllm" or gpu else "hf"


def measure(
    engine: str,
    agreed: Contract,
    base: Base,
    adapters: Mapping[str, Path | None],
    encoder: Encoder,
    held_out: Sequence[Record],
) -> dict[str, Measurement]:
    """Let the base answer all rows under each adapter; None stands for the bare base.

    `engine` is `hf` or `vllm`. A row that cannot be asked is never skipped: its answer is empty
    and its likelihood zero.
    """
    from loraline.answering import hf, vllm_engine

    rows = askable(held_out, encoder, agreed)
    check_tokens(encoder, base, rows.values())
    run = vllm_engine.measure if engine == "vllm" else hf.measure
    tokens = [len(rows[i].answer) if i in rows else 1 for i in range(len(held_out))]
    measured = {}
    for name, (answers, nll) in run(agreed, base, adapters, encoder, list(rows.values())).items():
        answered = dict(zip(rows, zip(answers, nll, strict=True), strict=True))
        pairs = [answered.get(i, (FAILED, float("inf"))) for i in range(len(held_out))]
        measured[name] = Measurement([a for a, _ in pairs], [loss for _, loss in pairs], tokens)
    return measured


def askable(held_out: Sequence[Record], encoder: Encoder, agreed: Contract) -> dict[int, Row]:
    """The rows that a server under this contract would accept, encoded, by their index.

    An image that cannot be decoded, more images or videos than any training row has, or a prompt
    that leaves no room for the longest answer, is refused by the server, too.
    """
    rows = {}
    for index, record in enumerate(held_out):
        try:
            row = encoder.encode(record)
        except (OSError, ValueError, SyntaxError):
            continue
        fits = len(row.prompt) + agreed.max_new_tokens <= agreed.max_model_len
        media_fit = len(row.images) <= agreed.max_images and len(row.videos) <= agreed.max_videos
        if fits and media_fit:
            rows[index] = row
    return rows


def scores(
    measured: Measurement,
    held_out: Sequence[Record],
    answer_format: str,
    plugged: Sequence[Plugin] = (),
) -> dict[str, Metric]:
    """All metrics of one model, those that the profile has plugged in last.

    Empty, cut and failed answers are scored as they are.
    """
    answers = zip(measured.answers, held_out, strict=True)
    texts = [calls.comparable_answer(answer.text, record) for answer, record in answers]
    references = [calls.reference(record) for record in held_out]
    formatted = {
        "bleu": metrics.bleu,
        "levenshtein": metrics.levenshtein,
        "exact_match": metrics.exact_match,
        "levenshtein_mean": metrics.levenshtein_mean,
        "character_error_rate": metrics.character_error_rate,
    }
    scored = {name: metric(texts, references, answer_format) for name, metric in formatted.items()}
    scored |= {
        "bleu_13a": metrics.bleu_13a(texts, references),
        "exact_match_raw": metrics.exact_match_raw(texts, references),
        "eval_loss": metrics.eval_loss(measured.nll, measured.tokens),
        "perplexity": metrics.perplexity(measured.nll, measured.tokens),
    }
    if answer_format == "json":
        scored["json_field_f1"] = metrics.json_field_f1(texts, references)
    if answer_format == "boxes":
        scored["grounding_f1"] = metrics.grounding_f1(texts, references)
    return scored | {plugin.name: plugin.measure(texts, references) for plugin in plugged}


def counts(answers: Iterable[Answer]) -> dict[str, int]:
    """Counts of the answers that were empty, cut at the longest answer allowed, or failed."""
    answers = list(answers)
    return {
        "empty_answers": sum(not answer.text for answer in answers),
        "truncated_answers": sum(answer.truncated for answer in answers),
        "failed_answers": sum(answer.failed for answer in answers),
    }


@dataclass(frozen=True)
class Comparison:
    """Metrics of every model with their intervals, and the tuned model's gains over the others."""

    values: Mapping[str, Mapping[str, Interval]]
    """By model (base, tuned, champion) and metric."""

    gains: Mapping[str, Mapping[str, Interval]]
    """Gains by the other model and metric; positive is better for the tuned model."""

    def flat(self) -> dict[str, float]:
        """One number for each name: `tuned_bleu`, `tuned_bleu_low`, `gain_over_base_bleu`, ..."""
        named = {f"{model}_{name}": value for model, name, value in entries(self.values)} | {
            f"gain_over_{model}_{name}": value for model, name, value in entries(self.gains)
        }
        return {
            f"{key}{suffix}": number
            for key, interval in named.items()
            for suffix, number in (
                ("", interval.value),
                ("_low", interval.low),
                ("_high", interval.high),
            )
        }


def numbers(comparison: Comparison, measured: Mapping[str, Measurement]) -> dict[str, float]:
    """Metrics and counts of every model by name, as the run's metrics.

    NaN stands for infinity, which MLflow stores as the largest float: it would look like a number.
    """
    values = comparison.flat()
    for model, answered in measured.items():
        for name, count in counts(answered.answers).items():
            values[f"{model}_{name}"] = count
    return {key: value if math.isfinite(value) else math.nan for key, value in values.items()}


def entries(
    table: Mapping[str, Mapping[str, Interval]],
) -> Iterable[tuple[str, str, Interval]]:
    return ((model, name, value) for model, row in table.items() for name, value in row.items())


def compare(scored: Mapping[str, Mapping[str, Metric]]) -> Comparison:
    """Intervals of every model's metrics, and paired gains of `tuned` over each of the others."""
    tuned = scored["tuned"]
    return Comparison(
        {
            model: {name: bootstrap.interval(metric) for name, metric in by_name.items()}
            for model, by_name in scored.items()
        },
        {
            model: {name: bootstrap.gain(tuned[name], metric) for name, metric in by_name.items()}
            for model, by_name in scored.items()
            if model != "tuned"
        },
    )


def fingerprints(encoder: Encoder, agreed: Contract, held_out: Sequence[Record]) -> dict[str, str]:
    """SHA-256 of what must be equal before two models' numbers are compared.

    `tokenizer` is the vocabulary, `template` the chat template and the pixel limits, `prompt` what
    questions are put into, `rows` the held-out rows, which contain it already, with their images
    and videos.
    """
    rows = hashlib.sha256()
    for record in held_out:
        images = [hashlib.sha256(image).hexdigest() for image in record.images]
        videos = [
            [video.fps, *(hashlib.sha256(frame).hexdigest() for frame in video.frames)]
            for video in record.videos
        ]
        extras = [record.tools, *sorted(record.details.items())]
        content = [record.messages, images, videos, *(extras if any(extras) else [])]
        rows.update(json.dumps(content).encode())
    return {
        "tokenizer": digest(sorted(encoder.tokenizer.get_vocab().items())),
        "template": digest([agreed.chat_template, agreed.min_pixels, agreed.max_pixels]),
        "prompt": digest(agreed.prompt),
        "rows": rows.hexdigest(),
    }


def digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def predictions(
    held_out: Sequence[Record], measured: Mapping[str, Measurement]
) -> dict[str, list[Any]]:
    """Columns of the predictions table, one entry a held-out row."""
    table: dict[str, list[Any]] = {
        "row": list(range(len(held_out))),
        "question": [record.context for record in held_out],
        "reference": [calls.reference(record) for record in held_out],
    }
    for model, answered in measured.items():
        table[model] = [answer.text for answer in answered.answers]
        table[f"{model}_tokens"] = [answer.tokens for answer in answered.answers]
        table[f"{model}_nll"] = list(answered.nll)
    return table
