"""Trainings of one adapter in one process or several; run by torch's launcher, it is one of them.

    python trainings.py BASE FOLDER SCENARIO...

Each process writes what it saw of each scenario to FOLDER/SCENARIO-RANK.json, the first one the
adapter beside it. The scenarios share a launch, since importing torch takes longer than they do.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import TrainerCallback

from loraline.base import locate
from loraline.base.encoding import Encoder, Row
from loraline.errors import UserError
from loraline.profiles.profile import Profile
from loraline.training import exchange, launch, memory, trainer

RECIPE = {
    "r": 4,
    "lora_alpha": 8,
    "lora_dropout": 0.0,
    "target_modules": ("q_proj", "v_proj", "down_proj"),
    "quantization": "none",
    "learning_rate": 5e-4,
    "warmup_steps": 0,
    "rows_per_step": 8,
    "num_train_epochs": 2,
}


def out_of_memory(*_: Any) -> None:
    raise torch.OutOfMemoryError("out of memory")


@dataclass(frozen=True)
class Scenario:
    """How a training differs from the plain one; `disturb` is given the last process' trainer."""

    recipe: dict[str, Any] = field(default_factory=dict)
    plan: dict[str, bool] = field(default_factory=dict)
    budgets: tuple[int, ...] = (2048, 2048, 2048)
    stops: int | None = None
    """After which step it stops with a checkpoint, to go on from there in a new trainer."""

    disturb: Callable[[trainer.PackedTrainer], None] = lambda _: None


class RunsOut:
    """Lets a pass run out of memory: the `at`-th of those that a module takes part in."""

    def __init__(self, at: int, *, training: bool, backward: bool = False, for_good: bool = False):
        self.at, self.training, self.backward, self.for_good = at, training, backward, for_good
        self.passes = 0

    def __call__(self, sft: trainer.PackedTrainer) -> None:
        layer = sft.model.get_base_model().model.layers[-1]
        register = layer.register_full_backward_hook if self.backward else None
        (register or layer.register_forward_pre_hook)(self.count)

    def count(self, module: torch.nn.Module, *_: Any) -> None:
        if module.training != self.training:
            return
        self.passes += 1
        if self.passes == self.at or (self.for_good and self.passes > self.at):
            out_of_memory()


class StopsAt(TrainerCallback):
    """Ends a training after a step, with a checkpoint."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self.step:
            control.should_save = control.should_training_stop = True


SMALL = (100, 100, 100)
"""Budgets under which a step of a process has several passes."""

A_ROW = {"rows_per_step": 1, "num_train_epochs": 1}

SCENARIOS = {
    "plain": Scenario(),
    "unequal budgets": Scenario(budgets=(2048, 100, 60)),
    "a row a step": Scenario(A_ROW),
    "first forward": Scenario(disturb=RunsOut(1, training=True)),
    "second forward": Scenario(budgets=SMALL, disturb=RunsOut(2, training=True)),
    "first backward": Scenario(budgets=SMALL, disturb=RunsOut(1, training=True, backward=True)),
    "last backward": Scenario(disturb=RunsOut(2, training=True, backward=True)),
    "evaluation": Scenario(disturb=RunsOut(1, training=False)),
    "shared out": Scenario(plan={"sharded": True}),
    "shared out, unequal passes": Scenario(plan={"sharded": True}, budgets=(2048, 100, 60)),
    "shared out, a row a step": Scenario(A_ROW, plan={"sharded": True}),
    "shared out, in host memory": Scenario(plan={"sharded": True, "offloaded": True}),
    "shared out, recomputed": Scenario(plan={"sharded": True, "checkpointing": True}),
    "4 bits": Scenario({"quantization": "nf4"}),
    "shared out, 4 bits": Scenario({"quantization": "nf4"}, plan={"sharded": True}),
    "full": Scenario({"train": "full"}, plan={"sharded": True}),
    "full, unequal passes": Scenario(
        {"train": "full"}, plan={"sharded": True, "checkpointing": True}, budgets=(2048, 100, 60)
    ),
    "full, in host memory": Scenario({"train": "full"}, plan={"sharded": True, "offloaded": True}),
    "resumed": Scenario(stops=4),
    "shared out, resumed": Scenario(plan={"sharded": True}, stops=4),
    "full, resumed": Scenario({"train": "full"}, plan={"sharded": True}, stops=2),
    "a step for good": Scenario(disturb=RunsOut(2, training=True, for_good=True)),
    "an evaluation for good": Scenario(disturb=RunsOut(1, training=False, for_good=True)),
}

ALONE = ("4 bits", "full")
"""What only one process trains, for several to be compared with."""

TOGETHER = tuple(name for name in SCENARIOS if name not in ALONE)


def rows_of(encoder: Encoder) -> dict[str, list[Row]]:
    """Rows of uneven length, the same in every process."""
    generator = torch.Generator().manual_seed(0)

    def row(number: int) -> Row:
        tokens = torch.randint(10, 200, (5 + 7 * (number % 9),), generator=generator).tolist()
        return Row(tokens[:-3], [*tokens[-3:], encoder.end])

    return {"train": [row(n) for n in range(24)], "validation": [row(n) for n in range(11)]}


def run(base_folder: str, folder: Path, name: str) -> dict[str, Any]:
    """Train as a scenario says; what was logged, and how it ended."""
    scenario = SCENARIOS[name]
    base = locate.locate(base_folder, None)
    encoder = Encoder(base.path, "text")
    recipe = Profile(base=base_folder, **RECIPE | scenario.recipe)
    plan = memory.Plan(
        scenario.budgets[launch.rank()],
        **{"checkpointing": False, "dequantized": False, "fused": False, **scenario.plan},
    )

    def build() -> trainer.PackedTrainer:
        torch.manual_seed(0)
        sft = trainer.build(recipe, base, encoder, rows_of(encoder), plan, folder / name)
        if recipe.train == "full":
            # Of a million weights a few have gradients that are nearly 0. Adam's step there is the
            # sign of a rounding error, unless its epsilon is above such errors.
            sft.args.adam_epsilon = 1e-5
        return sft

    sft, start = build(), None
    if scenario.stops is not None and launch.world() > 1:
        sft.add_callback(StopsAt(scenario.stops))
        sft.train()
        start = f"{sft.args.output_dir}/checkpoint-{scenario.stops}"
        exchange.highest([0])
        sft = build()
    if launch.rank() == sft.args.world_size - 1:
        scenario.disturb(sft)
    ended = ""
    try:
        sft.train(resume_from_checkpoint=start)
    except UserError as error:
        ended = str(error)
    learned = sft.gather()
    seen = {key: curve(sft, key) for key in ("loss", "eval_loss", "grad_norm")}
    if launch.rank() == 0:
        save_file(learned, folder / f"{name}.safetensors")
    return seen | {"processes": sft.args.world_size, "ended": ended}


def curve(sft: trainer.PackedTrainer, key: str) -> list[float]:
    return [entry[key] for entry in sft.state.log_history if key in entry]


def main(base_folder: str, folder: str, *names: str) -> None:
    launch.join()
    for name in names:
        seen = run(base_folder, Path(folder), name)
        Path(folder, f"{name}-{launch.rank()}.json").write_text(json.dumps(seen))
    launch.leave()


if __name__ == "__main__":
    main(*sys.argv[1:])
