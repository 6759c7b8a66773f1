"""How much data is enough, and what LoRA and packing cost: held-out error over training rows.

python bench/learning_curve.py --modality text --picture docs/images/learning_curve_text.png
"""

from __future__ import annotations

import json
import math
import os
import random
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from loraline.errors import UserError
from loraline.step import PipelineCommand

if TYPE_CHECKING:
    from torch import Tensor

    from loraline.base.encoding import Encoder, Row
    from loraline.base.locate import Base
    from loraline.evaluation.bootstrap import Interval
    from loraline.records import Record

DATA = Path(__file__).parents[1] / "test_data"
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
ROWS_PER_STEP = 16
WARMUP = 0.1
"""Share of the steps in which the learning rate rises."""


@dataclass(frozen=True)
class Variant:
    """A way to train; rates are a usual one for its kind, not tuned."""

    name: str
    rate: float
    rank: int | None = 16
    """LoRA rank; None trains all weights."""

    packed: bool = False


VARIANTS = {
    "text": (
        Variant("LoRA, padded", 4e-3),
        Variant("LoRA, packed", 4e-3, packed=True),
        Variant("LoRA rank 2", 4e-3, rank=2),
        Variant("full fine-tune", 1e-3, rank=None),
    ),
    "vision": (
        Variant("LoRA, padded", 4e-3),
        Variant("LoRA, packed", 4e-3, packed=True),
        Variant("full fine-tune", 5e-4, rank=None),
    ),
}


@dataclass(frozen=True)
class Point:
    """One training: its rows, what it reached on the held-out rows, what it took."""

    variant: str
    rows: int
    edits: Interval
    matches: Interval
    seconds: float


def numbers(ctx: click.Context, parameter: click.Parameter, value: str) -> list[int]:
    """Callback: whole numbers of at least 1 with commas between them."""
    if not re.fullmatch(r"\s*0*[1-9]\d*\s*(,\s*0*[1-9]\d*\s*)*", value, re.ASCII):
        raise click.BadParameter(f"{value!r} is not accepted: use numbers from 1, such as 18,72")
    return [int(word) for word in value.split(",")]


def to_be_drawn(ctx: click.Context, parameter: click.Parameter, value: Path | None) -> Path | None:
    """Callback: a PNG file that can be written, found out before hours of training."""
    if value is None:
        return None
    if value.suffix.lower() != ".png":
        raise click.BadParameter(f"{str(value)!r} is not accepted: a PNG file is drawn")
    if not (value.parent.is_dir() and os.access(value.parent, os.W_OK)):
        raise click.BadParameter(f"{str(value)!r}: its folder is not there or cannot be written")
    return value


@click.command(cls=PipelineCommand)
@click.option("--modality", type=click.Choice(["text", "vision"]), default="text")
@click.option(
    "--sizes",
    default="18,36,72,144,288",
    show_default=True,
    callback=numbers,
    help="Training rows.",
)
@click.option(
    "--steps",
    type=click.IntRange(min=1),
    default=144,
    show_default=True,
    help="Optimizer steps of every training.",
)
@click.option(
    "--tested", type=click.IntRange(min=1), default=72, show_default=True, help="Held-out rows."
)
@click.option(
    "--picture",
    type=click.Path(dir_okay=False, writable=True, path_type=Path),
    callback=to_be_drawn,
    help="PNG file for the curves.  [default: none is drawn]",
)
def learning_curve(
    modality: str, sizes: list[int], steps: int, tested: int, picture: Path | None
) -> None:
    """Train on growing parts of the test data in several ways; print a Markdown table."""
    from loraline.base.encoding import Encoder
    from loraline.base.locate import locate

    base = locate(str(DATA / modality / "base"), None)
    limits: dict[str, Any] = (
        {"min_pixels": 4704, "max_pixels": 4704} if modality == "vision" else {}
    )
    encoder = Encoder(base.path, modality, **limits)
    train, test = split(modality, tested)
    points = []
    for variant in VARIANTS[modality]:
        for size in sizes:
            chosen = [encoder.encode(record) for record in train[:size]]
            started = time.monotonic()
            model = trained(base, modality, encoder, variant, chosen, steps)
            seconds = time.monotonic() - started
            points.append(
                Point(variant.name, len(chosen), *measured(model, encoder, test), seconds)
            )
            click.echo(row_of(points[-1]), err=True)
    click.echo("| way | rows | edit distance | exact match | training |\n|---|---|---|---|---|")
    for point in points:
        click.echo(row_of(point))
    if picture is not None:
        draw(points, base, tested).savefig(picture, dpi=110)


def split(modality: str, tested: int) -> tuple[list[Record], list[Record]]:
    """Shuffled training rows, and held-out rows."""
    from loraline.records import from_prompt
    from loraline.tracking import prompts

    folder = DATA / modality
    prompt = prompts.resolve(None, folder / "prompt.txt", None).template or ""

    def read(name: str) -> list[dict[str, str]]:
        return [json.loads(line) for line in (folder / name).read_text().splitlines()]

    if modality == "text":
        train, test = (
            [from_prompt(prompt, row["question"], row["answer"]) for row in read(f"{name}.jsonl")]
            for name in ("train", "test")
        )
    else:
        rows = [
            from_prompt(prompt, "", row["text"], (folder / row["file_name"]).read_bytes())
            for row in read("metadata.jsonl")
        ]
        test, train = rows[:tested], rows[tested:]
        held_out = {record.answer for record in test}
        train = [record for record in train if record.answer not in held_out]
    if not train:
        raise UserError(f"--tested {tested} leaves no row of {folder} to train on")
    random.Random(0).shuffle(train)
    return train, test[:tested]


def trained(
    base: Base, modality: str, encoder: Encoder, variant: Variant, rows: Sequence[Row], steps: int
) -> Any:
    """The base after `steps` optimizer steps of AdamW on the rows, in float32."""
    import torch

    model = untrained(base, modality, variant)
    loss_of = packed_loss(model, encoder) if variant.packed else padded_loss(model, encoder)
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=variant.rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: share(step, steps))
    model.train()
    for chosen in batches(rows, steps):
        loss_of(chosen).backward()
        torch.nn.utils.clip_grad_norm_(learned, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    # Packed attention and losses stay behind: answers come from the unchanged code.
    fresh = untrained(base, modality, variant)
    fresh.load_state_dict(model.state_dict())
    return fresh.eval()


def untrained(base: Base, modality: str, variant: Variant) -> Any:
    """The base, with a new adapter if the variant trains one."""
    import torch
    from peft import LoraConfig, get_peft_model

    from loraline.base import targets
    from loraline.base.load import load

    torch.manual_seed(0)
    model: Any = load(base, modality, quantization="none", dtype="float32")
    if variant.rank is None:
        return model
    pattern = targets.target_modules(modality, PROJECTIONS, False)
    settings = LoraConfig(r=variant.rank, lora_alpha=2 * variant.rank, target_modules=pattern)
    return get_peft_model(model, settings)


def padded_loss(model: Any, encoder: Encoder) -> Callable[[Sequence[Row]], Tensor]:
    """Mean loss of a padded batch's answer tokens."""
    return lambda rows: model(**encoder.collate(rows, answers=True, side="right")).loss


def packed_loss(model: Any, encoder: Encoder) -> Callable[[Sequence[Row]], Tensor]:
    """The same of the rows end to end, as train_qlora packs them."""
    from loraline.training import attention, loss, packing

    causal = model.get_base_model()
    attention.use(causal)
    loss.return_losses(causal)
    rope_index = getattr(causal.model, "get_rope_index", None)
    return lambda rows: model(**packing.pack(encoder, rows, rope_index)).mean()


def share(step: int, steps: int) -> float:
    """Share of the peak learning rate: linear rise, cosine fall."""
    rise = max(1, int(WARMUP * steps))
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))


def batches(rows: Sequence[Row], steps: int) -> Iterator[list[Row]]:
    """Rows of each step: epoch after epoch, each in an order of its own."""
    order: list[int] = []
    shuffle = random.Random(0)
    for _ in range(steps):
        while len(order) < min(ROWS_PER_STEP, len(rows)):
            epoch = list(range(len(rows)))
            shuffle.shuffle(epoch)
            order += epoch
        chosen, order = order[:ROWS_PER_STEP], order[ROWS_PER_STEP:]
        yield [rows[index] for index in chosen]


def measured(model: Any, encoder: Encoder, test: Sequence[Record]) -> tuple[Interval, Interval]:
    """Normalised edit distance and exact match on the held-out rows, with intervals."""
    from loraline.answering import hf
    from loraline.evaluation import bootstrap, metrics

    rows = [encoder.encode(record) for record in test]
    answers = hf.answers(model, encoder, rows, 48, lambda units, remark: None)
    predictions = [answer.text for answer in answers]
    references = [record.answer for record in test]
    answer_format = "prose" if encoder.processor is None else "latex"
    return (
        bootstrap.interval(metrics.levenshtein(predictions, references, answer_format)),
        bootstrap.interval(metrics.exact_match(predictions, references, answer_format)),
    )


def row_of(point: Point) -> str:
    """A row of the Markdown table."""
    cells = [point.variant, str(point.rows)]
    for value in (point.edits, point.matches):
        cells.append(f"{value.value:.3f} ({value.low:.3f} to {value.high:.3f})")
    return f"| {' | '.join(cells)} | {point.seconds:.0f} s |"


def draw(points: Sequence[Point], base: Base, tested: int) -> Any:
    """Edit distance over training rows, a line and its 95% band for each way."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    for name in dict.fromkeys(point.variant for point in points):
        curve = [point for point in points if point.variant == name]
        rows = [point.rows for point in curve]
        (line,) = axes.plot(rows, [point.edits.value for point in curve], marker="o", label=name)
        low, high = [p.edits.low for p in curve], [p.edits.high for p in curve]
        axes.fill_between(rows, low, high, alpha=0.12, color=line.get_color(), linewidth=0)
    ticks = sorted({point.rows for point in points})
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, [str(rows) for rows in ticks])
    axes.set(xlabel="training rows", ylabel="normalised edit distance", ylim=(0, None))
    axes.set_title(f"{base.architecture}, {tested} held-out rows", fontsize=10)
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


if __name__ == "__main__":
    learning_curve()
