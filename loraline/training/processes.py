"""A training in each of its processes: the first, which the step leads, and those that follow."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from loraline.errors import TryAgain, UserError
from loraline.training import launch

if TYPE_CHECKING:
    from torch import Tensor

    from loraline.base.encoding import Encoder, Row
    from loraline.base.locate import Base
    from loraline.profiles.profile import Profile
    from loraline.training.trainer import PackedTrainer


def prepare(
    recipe: Profile, base: Base, encoder: Encoder, rows: dict[str, list[Row]], scratch: Path
) -> PackedTrainer:
    """Plan the memory before the base is loaded, then build the trainer."""
    from transformers import set_seed

    from loraline.training import arguments, checkpoint, memory
    from loraline.training.machine import Machine
    from loraline.training.trainer import build

    launch.join()
    set_seed(recipe.seed)
    every = [*rows["train"], *rows["validation"]]
    plan, table = memory.choose(recipe, base, every, Machine.measured())
    if plan.sharded and launch.nodes() > 1:
        raise UserError(
            "the weights would have to be shared out over several machines, whose checkpoints "
            "nobody gathers; train on one machine with more GPUs, or what fits a card"
        )
    trainer = build(recipe, base, encoder, rows, plan, scratch)
    if launch.rank() == 0:
        written = checkpoint.described(trainer.trainable_parameters())
        click.echo(f"{table}\nattention: {trainer.attention}\ncheckpoint: {written}", err=True)
        if sentence := arguments.unfinished_warmup(recipe, len(trainer.steps)):
            click.echo(sentence, err=True)
    return trainer


def train(trainer: PackedTrainer, start: Path | None, keeper: Any) -> dict[str, Tensor]:
    """Train from the beginning or from a checkpoint, to the end or until told to stop.

    Returns what has learned, as it was with the lowest validation loss; only to the first process.
    """
    from loraline.training.checkpoint import StoppedWithCheckpoint

    trainer.add_callback(keeper)
    keeper.listen()
    trainer.train(resume_from_checkpoint=str(start) if start else None)
    if keeper.stopped_early(trainer.state):
        launch.leave()
        raise StoppedWithCheckpoint(
            f"stopped by {keeper.stop_name()} after step {trainer.state.global_step}, with a "
            "checkpoint; start it again to go on from there"
        )
    trainer.restore_best()
    learned = trainer.gather()
    launch.leave()
    return learned


def follow(recipe: Profile, run_id: str, checkpoint_minutes: float) -> None:
    """The part of every process but the first: the same training, and no word to MLflow.

    An error ends the training in all processes, and the first one reports it. Nobody sees that
    report on another machine, so a process there raises TryAgain where all have to start again.
    """
    from loraline.base.locate import locate
    from loraline.training import checkpoint, other_nodes, sharding
    from loraline.training.rows import load_rows

    if launch.leads_node():
        other_nodes.fill(run_id)
    scratch = launch.wait_for_shared_folder()
    if scratch is None:
        if not launch.on_first_node():
            raise TryAgain("the first machine has ended without a training, and says why")
        return
    base = locate(recipe.base, recipe.base_revision)
    encoder, _, rows, _ = load_rows(scratch / "dataset", recipe, base)
    start = next(scratch.glob(f"{checkpoint.FOLDER}/*"), None)
    try:
        trainer = prepare(recipe, base, encoder, rows, scratch)
        train(trainer, start, checkpoint.KeepCheckpoints(None, "", checkpoint_minutes))
    except sharding.OutOfMemory:
        raise  # Of this process alone, and the others wait for it.
    except checkpoint.StoppedWithCheckpoint:
        if not launch.on_first_node():
            raise
    except UserError:
        return
