"""Training speed and memory: plain TRL and unsloth beside ours, on the same rows, in one run.

    python bench/train.py --task text --task vision
    python bench/train.py --task text --arm trl --arm small --arm fast \
        --arm unsloth --arm unsloth-small --unsloth path/to/unsloth/bin/python
    python bench/train.py --task text --size 12b --arm full --gpus 2

The bases have the real shapes and random weights, so nothing is fetched; a step costs the same as
with trained ones. Each arm runs in a process of its own, after warm-up steps that are not counted.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "bench")]

from train_arms import OURS, matmul_rate, run_arm  # noqa: E402
from train_bases import TEXT_SHAPES, make_base  # noqa: E402
from train_rows import recipe_for  # noqa: E402
from train_unsloth import CHECKPOINTING  # noqa: E402

ROWS_PER_STEP = 16
ARMS = ("trl", *OURS, *CHECKPOINTING)
TASKS = ("text", "vision")


@click.command()
@click.option("--task", "tasks", multiple=True, type=click.Choice(TASKS), default=TASKS)
@click.option(
    "--arm", "arms", multiple=True, type=click.Choice(ARMS), default=("trl", "small", "fast")
)
@click.option(
    "--size",
    type=click.Choice(list(TEXT_SHAPES)),
    default="7b",
    show_default=True,
    help="Parameters of the text base.",
)
@click.option("--steps", default=15, show_default=True, help="Optimizer steps, warm-up included.")
@click.option("--rows-per-step", default=ROWS_PER_STEP, show_default=True, help="A GPU.")
@click.option(
    "--gpus",
    default=(1,),
    multiple=True,
    show_default=True,
    help="Run our arms on so many GPUs; may be given several times.",
)
@click.option("--scratch", type=click.Path(path_type=Path), help="Folder for the random bases.")
@click.option(
    "--bases", type=click.Path(path_type=Path), help="Folder that random bases are kept in."
)
@click.option(
    "--kernels", type=click.Path(path_type=Path), help="Folder for tables of each arm's kernels."
)
@click.option(
    "--unsloth",
    type=click.Path(path_type=Path),
    help="Python of an environment with unsloth, for its arms; they train text.",
)
def train(
    tasks: tuple[str, ...],
    arms: tuple[str, ...],
    size: str,
    steps: int,
    rows_per_step: int,
    gpus: tuple[int, ...],
    scratch: Path | None,
    bases: Path | None,
    kernels: Path | None,
    unsloth: Path | None,
) -> None:
    """Print tokens a second, peak memory and model FLOP utilization of each arm.

    What each arm has measured is printed as a line of JSON as well.
    """
    if CHECKPOINTING.keys() & set(arms) and not (unsloth and unsloth.exists()):
        raise click.UsageError("the arms of unsloth need --unsloth, the Python of its environment")
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        environment()
        for task in tasks:
            base = kept_base(task, bases or Path(folder), size)
            figures = {}
            for arm in arms:
                if arm in CHECKPOINTING and task != "text":
                    continue
                for count in gpus if arm in OURS else (1,):
                    name = arm if count == 1 else f"{arm}, {count} GPUs"
                    table = kernels / f"{task}-{arm}-{count}.txt" if kernels else None
                    rows = rows_per_step * count
                    if arm in CHECKPOINTING:
                        figures[name] = run_unsloth(unsloth, arm, base, steps, rows)
                    else:
                        figures[name] = run(task, arm, base, steps, rows, count, table)
                    click.echo(json.dumps(figures[name]))
            report(task, figures)


def kept_base(task: str, folder: Path, size: str = "7b") -> Path:
    """The random base of a task in a folder, made if it is not there."""
    base = folder / (task if size == "7b" or task != "text" else f"{task}-{size}")
    if not base.exists():
        call(__file__, "make-base", task, str(base), size)
    return base


def run(
    task: str, arm: str, base: Path, steps: int, rows: int, gpus: int, kernels: Path | None = None
) -> dict[str, Any]:
    """Figures of one arm, from processes of its own; `rows` is rows a step, all GPUs together."""
    table = [str(kernels)] if kernels else []
    arguments = ["run-arm", task, arm, str(base), str(steps), str(rows), *table]
    lines = call(*launcher(gpus), __file__, *arguments)
    return dict(json.loads(lines.splitlines()[-1]))


def run_unsloth(python: Path | None, arm: str, base: Path, steps: int, rows: int) -> dict[str, Any]:
    """Figures of an unsloth arm, from a process of its own environment."""
    recipe = recipe_for("text", base, rows, steps).model_dump(mode="json")
    names = ("r", "lora_alpha", "lora_dropout", "target_modules", "max_length", "rows_per_step")
    settings = {name: recipe[name] for name in (*names, "learning_rate", "warmup_steps")}
    arguments = [arm, str(base.resolve()), str(steps), json.dumps(settings)]
    # Offline, and without a word to its makers; PYTHONPATH would bring our versions along.
    environment = os.environ | {"UNSLOTH_DISABLE_STATISTICS": "1", "HF_HUB_OFFLINE": "1"}
    environment.pop("PYTHONPATH", None)
    with tempfile.TemporaryDirectory() as place:
        # It writes the code that it compiles into the folder that it runs in.
        script = str(ROOT / "bench/train_unsloth.py")
        lines = call(script, *arguments, python=str(python), env=environment, cwd=place)
    # It may say more when it ends.
    measured = [line for line in lines.splitlines() if line.startswith("{")]
    return dict(json.loads(measured[-1]))


def launcher(gpus: int) -> list[str]:
    """What starts a script in a process for each of several GPUs."""
    command = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={gpus}"]
    return command if gpus > 1 else []


def call(*arguments: str, python: str = sys.executable, **options: Any) -> str:
    """Run a Python program; its standard output."""
    finished = subprocess.run([python, *arguments], stdout=subprocess.PIPE, text=True, **options)
    if finished.returncode:
        sys.exit(
            f"{' '.join(arguments)} ended with {finished.returncode}:\n{finished.stdout[-2000:]}"
        )
    return finished.stdout


def environment() -> None:
    """Print the versions and the card, with the rate of a large bf16 product measured on it."""
    import platform
    from importlib.metadata import PackageNotFoundError, version

    names = ("torch", "transformers", "peft", "trl", "datasets", "bitsandbytes", "liger-kernel")
    versions = {}
    for name in names:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "not installed"
    click.echo(f"{time.strftime('%Y-%m-%d')}, Python {platform.python_version()}")
    click.echo(", ".join(f"{name} {number}" for name, number in versions.items()))
    rate = call(__file__, "matmul-rate").split()
    click.echo(f"{' '.join(rate[1:])}, {float(rate[0]) / 1e12:.0f} TFLOP/s measured in bf16")


def report(task: str, arms: dict[str, dict[str, float]]) -> None:
    click.echo(f"\n| {task} | tokens/s | x TRL | MFU | peak GiB | x TRL | s/step |")
    click.echo("|---|---|---|---|---|---|---|")
    plain = arms.get("trl")
    for arm, figures in arms.items():
        speed = figures["tokens_per_second"] / plain["tokens_per_second"] if plain else math.nan
        space = figures["peak_gib"] / plain["peak_gib"] if plain else math.nan
        click.echo(
            f"| {arm} | {figures['tokens_per_second']:,.0f} | {speed:.2f} | {figures['mfu']:.2f} "
            f"| {figures['peak_gib']:.2f} | {space:.2f} | {figures['seconds_per_step']:.3f} |"
        )
    for arm, figures in arms.items():
        if "plan" in figures:
            click.echo(f"\n{arm}: {figures['plan']}")
            click.echo(
                f"  planned {figures['planned_gib']:.2f} GiB a card; estimated "
                f"{figures['estimated_gib']:.2f} for the {figures['longest_pass']} tokens of its "
                f"longest pass, measured {figures['peak_gib']:.2f}"
            )
            click.echo(f"  on one card alone: {figures['one_card']}")
            click.echo(f"  with the host's memory: {figures['one_card_with_host_memory']}")


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["make-base", task, folder, *size]:
            make_base(task, Path(folder), *size)
        case ["run-arm", task, arm, base, steps, rows_per_step, *kernels]:
            table = Path(*kernels) if kernels else None
            run_arm(task, arm, Path(base), int(steps), int(rows_per_step), table)
        case ["matmul-rate"]:
            print(*matmul_rate())
        case _:
            train()
