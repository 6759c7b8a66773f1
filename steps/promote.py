"""Make the reviewed candidate the champion, reject it, or go back to the champion before it.

Reads and moves the registered model's aliases: `candidate` to `champion`, the champion before to
`previous`. Writes the promoted version's quality_gate run as `run-id`, for deploy_vllm.

    python steps/promote.py --model tiny-mistral-lora --version 1
    python steps/promote.py --model tiny-mistral-lora --version 2 --reject "It leaves units out."
    python steps/promote.py --model tiny-mistral-lora --rollback
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from loraline.errors import UserError
from loraline.process import person
from loraline.step import PipelineCommand, or_none
from loraline.tracking import runs, store, tags

if TYPE_CHECKING:
    from mlflow import MlflowClient


@click.command(cls=PipelineCommand)
@click.option("--model", required=True, help="Registered model.")
@click.option(
    "--version",
    callback=or_none,
    help="The version that was reviewed; if another one is the candidate, nothing moves.",
)
@click.option("--rollback", is_flag=True, help="Make `previous` the champion again.")
@click.option(
    "--reject",
    "reason",
    help="Reject the reviewed candidate for this reason; it loses its alias.",
)
@click.option(
    "--out-dir",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("outputs"),
    show_default=True,
    help="Folder for the output files: run-id, and version.",
)
def promote(
    model: str, version: str | None, rollback: bool, reason: str | None, out_dir: Path
) -> None:
    """Make the candidate the champion, reject it, or go back to the champion before."""
    if rollback and (version is not None or reason is not None):
        raise UserError("--rollback takes neither --version nor --reject")
    if reason is not None and version is None:
        raise UserError("--reject needs the --version that was reviewed")
    from loraline.tracking import registry
    from loraline.tracking.settings import Settings

    client = store.connect()
    registry.check_exists(client, model)
    by = Settings().workflow_name or person.name()
    before = registry.version_of(client, model, registry.CHAMPION)
    now = move(client, model, by, version=version, rollback=rollback, reason=reason)
    if reason is not None:
        click.echo(f"rejected models:/{model}/{now}, by {by}")
        return
    if before is not None and str(before.version) == now:
        click.echo(f"models:/{model}/{now} is already the champion")
    else:
        click.echo(f"champion models:/{model}/{now}, by {by}")
    champion = client.get_model_version(model, now)
    if champion.tags.get(tags.RESULT) == "failed":
        reason = champion.tags.get(tags.REASON)
        click.echo(f"warning: a later gate rejected version {now}: {reason}", err=True)
    gate_run = registry.promoting_gate_run_of(client, champion)
    runs.hand_over(out_dir, gate_run, version=now)


def move(
    client: MlflowClient,
    model: str,
    by: str,
    *,
    version: str | None = None,
    rollback: bool = False,
    reason: str | None = None,
) -> str:
    """Promote, reject or roll back under the model's lock; the version that was moved.

    `version` is the candidate that a person looked at, or the champion to go back from.
    """
    from loraline.tracking import lock, registry

    with lock.locked(client, model):
        if rollback:
            champion = registry.version_of(client, model, registry.CHAMPION)
            if version is not None and champion is not None and str(champion.version) != version:
                raise UserError(
                    f"the champion of {model!r} is version {champion.version}, not {version}: "
                    "review it first"
                )
            return registry.roll_back(client, model, by)
        if reason is not None:
            assert version is not None
            return registry.reject(client, model, version, by, reason)
        return registry.promote(client, model, version, by)


if __name__ == "__main__":
    promote()
