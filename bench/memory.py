"""The memory estimate beside the peak that torch measures, over tasks, modes and pass sizes.

    python bench/memory.py
    python bench/memory.py --task dora --task tower
    python bench/memory.py --task full --task projector
    python bench/memory.py --task "16 bits" --gpus 2 --mode small --mode offload

Each line trains two optimizer steps on one pack of rows, so the pack is the worst step there is. On
several GPUs, where weights are shared out, each has a pack.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import replace
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
    "full text": ("text", {"train": "full", "quantization": "none", "export": "merged"}),
    "full": ("vision", {"train": "full", "quantization": "none", "export": "merged"}),
    "16 bits": ("text", {"quantization": "none"}),
    "fp8": ("text", {"quantization": "fp8"}),
    "fp8 vision": ("vision", {"quantization": "fp8"}),
}
"""The rows and base of a task of bench/train.py, and what its profile has besides."""

MODES = {
    "small": {"checkpointing": True},
    "fast": {"checkpointing": False, "dequantized": True},
    "offload": {"checkpointing": True, "offloaded": True},
}
"""What a plan does: recompute activations, keep them, or keep the weights in the host's memory."""


@click.command()
@click.option(
    "--task",
    "tasks",
    multiple=True,
    type=click.Choice(list(TASKS)),
    default=("text", "vision"),
    show_default=True,
)
@click.option(
    "--mode",
    "modes",
    multiple=True,
    type=click.Choice(list(MODES)),
    default=("small", "fast"),
    show_default=True,
)
@click.option("--gpus", default=1, show_default=True, help="GPUs that weights are shared out over.")
@click.option(
    "--tokens", multiple=True, default=PASSES, show_default=True, help="Tokens of a pass, about."
)
@click.option("--scratch", type=click.Path(path_type=Path), help="Folder for the random bases.")
@click.option(
    "--bases", type=click.Path(path_type=Path), help="Folder that random bases are kept in."
)
def memory(
    tasks: tuple[str, ...],
    modes: tuple[str, ...],
    gpus: int,
    tokens: tuple[int, ...],
    scratch: Path | None,
    bases: Path | None,
) -> None:
    """Print estimated and measured GiB, and how far apart they are."""
    from train import call, environment, kept_base, launcher

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
            for mode in modes:
                arguments = [task, mode, str(base), *map(str, tokens)]
                click.echo(call(*launcher(gpus), __file__, "measure", *arguments), nl=False)


def measure(task: str, mode: str, base: Path, passes: list[int]) -> None:
    """Print the lines of one task and mode."""
    import torch
    from train_rows import encoder_for, recipe_for, rows_for
    from transformers.trainer_utils import IntervalStrategy

    from loraline.base.locate import locate
    from loraline.training import launch, memory, packing, trainer

    launch.join()
    cards = launch.world()
    located = locate(str(base), None)
    rows, changes = TASKS[task]
    recipe = recipe_for(rows, base, 1, 2)
    recipe = type(recipe).model_validate(recipe.model_dump() | changes)
    encoder = encoder_for(base, recipe)
    every = rows_for(rows, encoder, 128 * cards)
    mode_settings = MODES[mode]
    full = recipe.train == "full"
    plan = memory.Plan(
        passes[-1],
        checkpointing=mode_settings["checkpointing"],
        dequantized=mode_settings.get("dequantized", False) and not full,
        fused=memory.has_fused_kernels(),
        sharded=full or cards > 1 or mode == "offload",
        offloaded=mode == "offload",
    )
    with tempfile.TemporaryDirectory() as scratch:
        splits = {"train": every, "validation": every[:1]}
        sft = trainer.build(recipe, located, encoder, splits, plan, Path(scratch))
        sft.args.eval_strategy = IntervalStrategy.NO
        for tokens in passes:
            chosen: list[Any] = []
            for row in every:
                if sum(map(len, chosen)) + len(row) <= tokens * cards:
                    chosen.append(row)
            one_step = recipe.model_copy(update={"rows_per_step": len(chosen)})
            lengths = [len(row) for row in chosen]
            shares = [packing.share(lengths, rank, cards) for rank in range(cards)]
            longest = max(sum(lengths[i] for i in share) for share in shares)
            # A pass for each process, whose shares are not quite the same.
            sft.budget.tokens = longest
            planned = replace(plan, token_budget=longest)
            estimated = memory.estimate(one_step, located, chosen, planned, cards).total
            sft.rows["train"] = chosen
            sft.steps = packing.Steps(len(chosen), len(chosen), seed=0)
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            sft.train()
            measured = torch.cuda.max_memory_allocated()
            if sft.is_world_process_zero():
                figures = [estimated / memory.GIB, measured / memory.GIB]
                print(
                    f"| {task}{f', {cards} GPUs' if cards > 1 else ''} | {mode} | {longest} "
                    f"| {figures[0]:.2f} | {figures[1]:.2f} | {figures[0] / figures[1] - 1:+.1%} "
                    f"| {allocator.reserved() / memory.GIB:.2f} |",
                    flush=True,
                )


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["measure", task, mode, base, *passes]:
            measure(task, mode, Path(base), list(map(int, passes)))
        case _:
            memory()
