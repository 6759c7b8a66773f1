"""Greedy answers and answer likelihoods by Hugging Face, batched, with a base loaded once."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loraline.base.encoding import IGNORED, Encoder, Row
from loraline.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from loraline.base.locate import Base
    from loraline.contract import Contract

BATCH = 32
"""Rows a forward pass; batches are sorted by length, so little of them is padding."""

TOKENS = 2**15
"""Tokens of a batch at most, padding and new ones included. On a card that may allocate 24 GiB, the
shape of Qwen3-VL-8B in 4 bits ran out of memory with 32 rows of 1,568 tokens."""

LOGITS = 2**29
"""Logits of a forward pass at most: 1 GiB in bfloat16, where 32 answers of 384 tokens and a
vocabulary of 152 thousand would make 3.5."""

Advance = Callable[[int, str], None]


@dataclass(frozen=True)
class Answer:
    """A generated answer."""

    text: str
    tokens: list[int]
    """Token IDs without the end token."""

    truncated: bool
    """Whether it was cut at the longest answer allowed."""

    failed: bool = False
    """Whether the model could not be asked at all; the text is empty then."""


def measure(
    agreed: Contract,
    base: Base,
    adapters: Mapping[str, Path | None],
    encoder: Encoder,
    rows: Sequence[Row],
) -> dict[str, tuple[list[Answer], list[float]]]:
    """Answers and likelihoods of the base under each adapter, merged where its contract says so.

    `adapters` gives a name to each adapter's folder, or to that of a model that was trained whole;
    None stands for the bare base.
    """
    from loraline import contract
    from loraline.base import merging
    from loraline.base.load import attach, load, trained_base
    from loraline.process import progress

    loaded: Any = None
    measured = {}
    for name, adapter in adapters.items():
        served = contract.read(adapter) if adapter else None
        if adapter and served and served.train == "full":
            loaded = None
            gc.collect()  # The base is in reference cycles, and this model needs its memory.
            full_model = trained_base(served, base, adapter)
            loaded = load(full_model, agreed.modality, quantization="none", dtype=agreed.dtype)
        elif loaded is None:
            loaded = load(
                base, agreed.modality, quantization=agreed.quantization, dtype=agreed.dtype
            )
        without_adapter = served is None or served.train == "full"
        model = loaded.eval() if without_adapter or adapter is None else attach(loaded, adapter)
        if served and served.export == "merged" and not without_adapter:
            model = merging.merge(model)
        with progress.bar(f"evaluate {name}", 2 * len(rows)) as advance:
            nll = negative_log_likelihoods(model, encoder, rows, advance)
            greedy = answers(model, encoder, rows, agreed.max_new_tokens, advance)
        measured[name] = greedy, nll
        if served and served.export == "merged":
            # A merged update cannot be subtracted exactly.
            model = loaded = None
            gc.collect()  # The model is in reference cycles, and the next one needs its memory.
        elif served:
            loaded = model.unload()
    return measured


def answers(
    model: Any,
    encoder: Encoder,
    rows: Sequence[Row],
    max_new_tokens: int,
    advance: Advance,
    batch_size: int = BATCH,
) -> list[Answer]:
    """Greedy answers to the rows' prompts, in the rows' order."""
    import torch
    from transformers import GenerationConfig

    greedy = GenerationConfig(
        do_sample=False,
        max_new_tokens=max_new_tokens,
        eos_token_id=encoder.end,
        pad_token_id=encoder.pad,
    )
    # Unset fields would come from the base's sampling settings.
    model.generation_config = greedy
    by_index: dict[int, Answer] = {}

    def generate(indices: list[int]) -> None:
        batch = encoder.collate([rows[i] for i in indices], answers=False, side="left")
        with torch.inference_mode():
            output = model.generate(**to_device(batch, model), generation_config=greedy)
        generated = output[:, batch["input_ids"].shape[1] :].tolist()
        for index, tokens in zip(indices, generated, strict=True):
            ended = encoder.end in tokens
            answer = tokens[: tokens.index(encoder.end)] if ended else tokens
            by_index[index] = Answer(encoder.decode(answer), answer, not ended)
        advance(len(indices), "")

    in_batches([len(row.prompt) + max_new_tokens for row in rows], batch_size, generate)
    return [by_index[index] for index in range(len(rows))]


def negative_log_likelihoods(
    model: Any,
    encoder: Encoder,
    rows: Sequence[Row],
    advance: Advance,
    batch_size: int = BATCH,
) -> list[float]:
    """Sum of -log p over each row's answer tokens, the end token included, in nats."""
    import torch
    from torch.nn import functional

    by_index: dict[int, float] = {}
    vocabulary = model.config.get_text_config().vocab_size
    longest = max((len(row.answer) for row in rows), default=0) + 1
    fitting = max(1, min(batch_size, LOGITS // (longest * vocabulary)))

    def measure(indices: list[int]) -> None:
        # Padded on the left, all answers end in the last column, and only their logits are built.
        batch = encoder.collate([rows[i] for i in indices], answers=True, side="left")
        longest_in_batch = max(len(rows[i].answer) for i in indices)
        labels = batch.pop("labels")[:, -longest_in_batch:]
        if encoder.processor is None:
            batch["position_ids"] = (batch["attention_mask"].cumsum(1) - 1).clamp(min=0)
        with torch.inference_mode():
            logits = model(**to_device(batch, model), logits_to_keep=longest_in_batch + 1).logits
            # Row by row: in float32 they take twice the memory, and their softmax as much again.
            for index, row, targets in zip(indices, logits, labels.to(logits.device), strict=True):
                by_index[index] = float(
                    functional.cross_entropy(
                        row[:-1].float(), targets, ignore_index=IGNORED, reduction="sum"
                    )
                )
        advance(len(indices), "")

    in_batches([len(row) for row in rows], fitting, measure)
    return [by_index[index] for index in range(len(rows))]


def in_batches(lengths: Sequence[int], size: int, work: Callable[[list[int]], None]) -> None:
    """Give the indices of rows to `work`, up to `size` at a time, or as many as TOKENS holds.

    Rows of similar length are together, the longest first. A batch that a GPU has no memory for is
    halved, and those after it have no more tokens than its half. Raises UserError for a row that
    does not fit alone.
    """
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    tokens = TOKENS
    while order:
        longest = lengths[order[0]]
        batch = order[: max(1, min(size, tokens // longest))]
        if fits_memory(batch, work):
            order = order[len(batch) :]
        elif len(batch) > 1:
            tokens = longest * (len(batch) // 2)
        else:
            raise UserError(
                f"the GPU has no memory for {longest} tokens, prompt and answer together, beside "
                "the base: use a larger GPU, or a profile with a lower max_length, max_pixels or "
                "max_new_tokens"
            )


def fits_memory(batch: list[int], work: Callable[[list[int]], None]) -> bool:
    """Do the work on a batch; False where the GPU ran out of memory for it."""
    import torch

    try:
        work(batch)
    except torch.OutOfMemoryError:
        pass
    else:
        return True
    # Here the error, which holds what the batch had allocated, is gone.
    torch.cuda.empty_cache()
    return False


def to_device(batch: dict[str, Tensor], model: Any) -> dict[str, Tensor]:
    return {key: value.to(model.device) for key, value in batch.items()}
