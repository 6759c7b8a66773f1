"""Fine-tune a LoRA adapter, or a whole model, and log it with the contract it must be served under.

Reads: `dataset/` of the prepare_data run.
Writes: the logged model `adapter`, `profile.json`, `loss_curves.png`, readable adapter files.
An interrupted training leaves a checkpoint in the artifact store; the next start goes on from it.

    python steps/train_qlora.py --run-id "$(cat outputs/run-id)" --profile smoke-vision
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from loraline.errors import UserError
from loraline.step import or_none, overrides_option, recipes_option, step
from loraline.tracking import datasets, fingerprints, identity, prompts, runs, store, tags
from loraline.training import allocator, group, launch, processes

if TYPE_CHECKING:
    from mlflow.entities import Run

    from loraline.base.locate import Base
    from loraline.profiles.profile import Profile


@step
@click.option("--run-id", required=True, help="MLflow run of prepare_data.")
@click.option("--profile", required=True, help="Name of a file in lora_profiles/.")
@click.option(
    "--resume", "resumed", callback=or_none, help="Continue this unfinished run, and no other."
)
@click.option(
    "--checkpoint-minutes",
    type=click.FloatRange(0),
    default=10,
    show_default=True,
    help="Time between checkpoints: what a lost machine costs at most.",
)
@click.option(
    "--ended",
    metavar="HOW",
    help="How a group of machines ended: hand over the run that it trained, and train nothing.",
)
@group.group_options
@overrides_option
@recipes_option
def train_qlora(
    run_id: str,
    profile: str,
    overrides: tuple[str, ...],
    recipes: dict[str, Any],
    resumed: str | None,
    checkpoint_minutes: float,
    ended: str | None,
    out_dir: Path,
    force: bool,
    **group_flags: Any,
) -> None:
    """Train a LoRA adapter on a frozen base, or the base itself; log it; hand over the run ID."""
    from loraline.base import quantized, trainable
    from loraline.base.locate import locate, tokenizer_digest
    from loraline.profiles.loading import load_profile
    from loraline.serving import preflight

    if ended is not None:
        group.leave_as_ended(ended)
    allocator.follow_allocated()
    recipe = load_profile(profile, overrides=overrides, recipes=recipes)
    machines = group.Group(**group_flags)
    machines.check(recipe.train)
    assert launch.world() in (1, machines.size), f"{machines}, and {launch.world()} processes"
    if launch.rank():
        processes.follow(recipe, run_id, checkpoint_minutes)
        return
    if machines.node and not launch.launched():
        launch.on_gpus(machines)
        return
    launch.announce_exit()
    client = store.connect()
    data_run = runs.upstream_run(client, run_id, "prepare_data")
    refuse_few(recipe, data_run)
    base = locate(recipe.base, recipe.base_revision)
    trainable.check_base(recipe, base.config)
    quantized.check_trainable(recipe, base.config)
    settings = recipe.model_dump(mode="json", exclude={"gate", "prepare", "metrics"})
    # The profile's name is an input too: the gate judges by the limits of the profile it names.
    inputs = {
        # The digest, not the run ID: prepare_data may have run again on unchanged data.
        "dataset": data_run.data.params["digest"],
        "prompt": data_run.data.params.get("prompt_uri", ""),
        "profile": json.dumps([profile, settings], sort_keys=True),
        "base": base.revision,
        "tokenizer": tokenizer_digest(base),
        "code": fingerprints.code_digest(__file__),
    }
    fingerprint = fingerprints.fingerprint(__file__, inputs)
    if not force and (finished := runs.finished_run(client, "train_qlora", fingerprint)):
        # Limits of the gate are no input of the training, so the overrides may differ.
        client.set_tag(finished.info.run_id, tags.OVERRIDES, json.dumps(overrides))
        click.echo(f"adapter of run {finished.info.run_id} (reused)")
        runs.hand_over(out_dir, finished.info.run_id)
        return
    if ended is not None:
        raise UserError(
            "the group of machines succeeded, but MLflow has no finished training of these inputs: "
            "the machines had other inputs, another image, or another MLflow"
        )
    if machines.size > 1 and not launch.launched():
        launch.on_gpus(machines)
        return

    import mlflow

    from loraline.answering import logged_model
    from loraline.training import (
        checkpoint,
        curves,
        other_nodes,
        resume,
        trained_contract,
        trained_model,
    )
    from loraline.training.rows import load_rows

    version = data_run.data.params["version"]
    opened = resume.opened(
        client,
        profile,
        inputs,
        resumed,
        force=force,
        name=f"{recipe.registered_model}-{profile}-v{version}",
        fingerprint=fingerprint,
        upstream=data_run,
        tags={tags.OVERRIDES: json.dumps(overrides)},
    )
    with opened as (run, earlier, lease), launch.shared_folder() as scratch:
        log_inputs(recipe, profile, base, version)
        datasets.log_dataset(data_run, run, "training")
        prompts.link(client, data_run, run)
        runs.download_dataset(client, data_run, scratch)
        mlflow.set_tag(tags.DATASET_DIGEST, identity.recorded(data_run, tags.DATASET_DIGEST))
        start = checkpoint.fetch(client, earlier, scratch) if earlier else None
        launch.announce_ready(scratch)
        other_nodes.announce_start(start, earlier)
        encoder, prompt, rows, left_out = load_rows(scratch / "dataset", recipe, base)
        mlflow.log_metrics({f"{split}_rows_too_long": n for split, n in left_out.items()})
        trainer = processes.prepare(recipe, base, encoder, rows, scratch)
        cost = curves.Cost(trainer, earlier)
        lease.report = cost.tags
        trainer.add_callback(curves.CurvesToMlflow(lease, curves.logged_to(client, earlier)))
        keeper = checkpoint.KeepCheckpoints(client, run.info.run_id, checkpoint_minutes)
        learned = processes.train(trainer, start, keeper)
        curves.log_results(trainer, cost)
        adapter = trained_model.write(trainer, recipe, base, learned, scratch / "adapter")
        contract = trained_contract.write(
            adapter, recipe, base, encoder, prompt, rows, data_run.data.params
        )
        preflight.check(adapter, contract, f"the adapter of run {run.info.run_id}")
        logged_model.log(adapter, contract, profile)
        mlflow.log_figure(curves.figure(trainer.state.log_history), "loss_curves.png")
        checkpoint.delete_all(client, run.info.run_id)
    trained = f"rank {recipe.rank}" if recipe.rank else "the whole model"
    click.echo(f"adapter of run {run.info.run_id} ({trained}, {len(rows['train'])} rows)")
    runs.hand_over(out_dir, run.info.run_id)


def refuse_few(recipe: Profile, data_run: Run) -> None:
    """Refuse, before anything trains, rows after which the gate can only reject."""
    rows, min_rows = data_run.data.metrics.get("test_rows"), recipe.gate.min_rows
    if rows is not None and rows < min_rows:
        raise UserError(
            f"the dataset has {rows:.0f} test rows, and the gate asks for {min_rows} "
            "(gate.min_rows): add rows, hold out more (prepare_data --set "
            f"split.test={min_rows}), or judge by fewer (--set gate.min_rows={rows:.0f})"
        )


def log_inputs(recipe: Profile, profile: str, base: Base, version: str) -> None:
    """Log the resolved profile, whole as JSON and its main choices as parameters."""
    import mlflow

    resolved = recipe.model_dump(mode="json")
    mlflow.log_dict(resolved, "profile.json")
    mlflow.set_tag(tags.PROFILE_DIGEST, identity.values_digest(resolved))
    chosen = (
        "base",
        "train",
        "r",
        "lora_alpha",
        "lora_dropout",
        "learning_rate",
        "num_train_epochs",
    )
    mlflow.log_params({key: getattr(recipe, key) for key in (*chosen, "rows_per_step")})
    mlflow.log_params(
        {
            "profile": profile,
            "registered_model": recipe.registered_model,
            "base_revision": base.revision,
            "data_version": version,
            "target_modules": ",".join(recipe.projections) or "none",
        }
    )


if __name__ == "__main__":
    train_qlora()
