"""The memory estimate beside the peak that torch measures, over tasks, modes and pass sizes.

    python bench/memory.py
    python bench/memory.py --task dora --task tower
    python bench/memory.py --task full --task projector

Each line trains two optimizer steps on one pack of rows, so the pack is the worst step there is.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import click

from loraline.training import allocator

PASSES = (1024, 2048, 4096, 8192, 16384)


TASKS: dict[str, tuple[str, dict[str, Any]]] = {
    "text": ("text", {}),
    "vision": ("vision", {}),
    "dora": ("text", {"use_dora": True, "export": "merged"}),
    "pissa": (
        "text",
        {"init_lora_weights": "pissa_niter_16", "lora_dropout": 0.0, "quantization": "none"},
    ),
    "tower": ("vision", {"tower_learning_rate": 1e-5}),
    "projector": ("vision", {"tune": {"vision": True, "merger": True, "language": False}}),
    "full": ("vision", {"train": "full", "quantization": "none", "export": "merged"}),
    "16 bits": ("text", {"quantization": "none"}),
    "fp8": ("text", {"quantization": "fp8"}),
    "fp8 vision": ("vision", {"quantization": "fp8"}),
}
"""The rows and base of a task of bench/train.py, and what its profile has besides."""


@click.command()
@click.option(
    "--task",
    "tasks",
    multiple=True,
    type=click.Choice(list(TASKS)),
    default=("text", "vision"),
    show_default=True,
)
@click.option("--scratch", type=click.Path(path_type=Path), help="Folder for the random bases.")
@click.option(
    "--bases", type=click.Path(path_type=Path), help="Folder that random bases are kept in."
)
def memory(tasks: tuple[str, ...], scratch: Path | None, bases: Path | None) -> None:
    """Print estimated and measured GiB, and how far apart they are."""
    from train import call, environment, kept_base

    allocator.follow_allocated()
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        environment()
        click.echo(
            "\n| task | mode | tokens a pass | estimated GiB | measured GiB | apart "
            "| reserved GiB |"
        )
        click.echo("|---|---|---|---|---|---|---|")
        for task in tasks:
            base = kept_base(TASKS[task][0], bases or Path(folder))
            for mode in ("small", "fast"):
                click.echo(call(__file__, task, mode, str(base)), nl=False)


def measure(task: str, mode: str, base: Path) -> None:
    """Print the lines of one task and mode."""
    import torch
    from train import encoder_for, recipe_for, rows_for
    from transformers.trainer_utils import IntervalStrategy

    from loraline.base.locate import locate
    from loraline.training import memory, packing, trainer

    located = locate(str(base), None)
    rows, changes = TASKS[task]
    recipe = recipe_for(rows, base, 1, 2)
    recipe = type(recipe).model_validate(recipe.model_dump() | changes)
    encoder = encoder_for(base, recipe)
    every = rows_for(rows, encoder, 128)
    sharded = recipe.train == "full"
    plan = memory.Plan(
        PASSES[-1],
        checkpointing=mode == "small",
        dequantized=mode == "fast" and not sharded,
        fused=memory.has_fused_kernels(),
        sharded=sharded,
    )
    with tempfile.TemporaryDirectory() as scratch:
        splits = {"train": every, "validation": every[:1]}
        sft = trainer.build(recipe, located, encoder, splits, plan, Path(scratch))
        sft.args.eval_strategy = IntervalStrategy.NO
        for tokens in PASSES:
            chosen: list[Any] = []
            for row in every:
                if sum(map(len, chosen)) + len(row) <= tokens:
                    chosen.append(row)
            one_step = recipe.model_copy(update={"rows_per_step": len(chosen)})
            estimated = memory.estimate(one_step, located, chosen, plan).total / memory.GIB
            sft.rows["train"] = chosen
            sft.steps = packing.Steps(len(chosen), len(chosen), seed=0)
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            sft.train()
            measured = torch.cuda.max_memory_allocated() / memory.GIB
            print(
                f"| {task} | {mode} | {sum(map(len, chosen))} | {estimated:.2f} "
                f"| {measured:.2f} | {estimated / measured - 1:+.1%} "
                f"| {allocator.reserved() / memory.GIB:.2f} |"
            )


if __name__ == "__main__":
    if len(sys.argv) == 4 and not sys.argv[1].startswith("-"):
        measure(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
    else:
        memory()
