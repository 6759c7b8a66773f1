"""A profile's hyperparameters as transformers' Trainer takes them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from transformers import TrainingArguments

from loraline.base.targets import MERGERS, VISION_TOWER

if TYPE_CHECKING:
    from pathlib import Path

    from loraline.profiles.profile import Profile
    from loraline.training.memory import Plan

SCHEDULES = {"constant": "constant_with_warmup"}
"""transformers' name of a schedule with warm-up, where it is not the profile's."""


class Arguments(TrainingArguments):
    """The trainer's arguments, which leave the model where it was loaded.

    The trainer would move weights to the GPU that have to wait in the host's memory.
    """

    @property
    def place_model_on_device(self) -> bool:
        return False


def of(recipe: Profile, plan: Plan, scratch: Path) -> Arguments:
    """Arguments of transformers' Trainer for a profile and a memory plan."""
    on_gpu = torch.cuda.is_available()
    return Arguments(
        output_dir=str(scratch / "trainer"),
        num_train_epochs=recipe.num_train_epochs,
        max_steps=recipe.max_steps or -1,
        # Counted by the trainer's own loader; here they only have to agree with it.
        per_device_train_batch_size=1,
        gradient_accumulation_steps=1,
        learning_rate=recipe.learning_rate,
        lr_scheduler_type=SCHEDULES.get(recipe.lr_scheduler_type, recipe.lr_scheduler_type),
        warmup_steps=recipe.warmup_steps,
        optim="adamw_torch_fused" if on_gpu else "adamw_torch",
        weight_decay=0.0,
        bf16=on_gpu,
        use_cpu=not on_gpu,
        seed=recipe.seed,
        logging_steps=1,
        logging_nan_inf_filter=False,
        eval_strategy="epoch",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        use_liger_kernel=plan.fused,
        # The loss is `loraline.training.loss`, which keeps fewer logits.
        liger_kernel_config={"fused_linear_cross_entropy": False, "swiglu": True},
    )


def unfinished_warmup(recipe: Profile, steps_per_epoch: int) -> str:
    """A sentence where the training ends before its warm-up; an empty text where it does not."""
    steps = recipe.max_steps or math.ceil(recipe.num_train_epochs * steps_per_epoch)
    # The first step has a rate of 0, and the one after the warm-up that of the profile.
    if steps > recipe.warmup_steps:
        return ""
    highest = recipe.learning_rate * (steps - 1) / recipe.warmup_steps
    return (
        f"warmup_steps {recipe.warmup_steps} covers all {steps} steps of the training: the "
        f"learning rate ends at {highest:.2g} instead of {recipe.learning_rate:.2g}; set fewer "
        "warmup_steps, or train for more epochs"
    )


def rates(recipe: Profile) -> dict[str, float]:
    """Learning rates of the tower and, by their longer paths, of the mergers."""
    of_merger = recipe.merger_learning_rate or recipe.learning_rate
    of_tower = recipe.tower_learning_rate or recipe.learning_rate
    return {VISION_TOWER: of_tower, **dict.fromkeys(MERGERS, of_merger)}
