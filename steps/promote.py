"""Make the reviewed candidate the champion, or go back to the champion before it.

Reads and moves the registered model's aliases: `candidate` to `champion`, the champion before to
`previous`. Writes the promoted version's quality_gate run as `run-id`, for deploy_vllm.

    python steps/promote.py --model tiny-mistral-lora --version 1
    python steps/promote.py --model tiny-mistral-lora --rollback
"""

from __future__ import annotations

import getpass
import os
from pathlib import Path

import click

from loraline.errors import UserError
from loraline.step import LineCommand, not_empty
from loraline.tracking import runs, store, tags


@click.command(cls=LineCommand)
@click.option("--model", required=True, help="Registered model.")
@click.option(
    "--version",
    callback=not_empty,
    help="The version that was reviewed; another candidate is refused.  [default: any]",
)
@click.option("--rollback", is_flag=True, help="Make `previous` the champion again.")
@click.option(
    "--out-dir",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("outputs"),
    show_default=True,
    help="Folder for the output files: run-id, and version.",
)
def promote(model: str, version: str | None, rollback: bool, out_dir: Path) -> None:
    """Move the champion of a registered model, forward to its candidate or back."""
    if rollback and version is not None:
        raise UserError("--version says what to promote; --rollback takes none")
    from loraline.tracking import lock, registry
    from loraline.tracking.settings import Settings

    client = store.connect()
    registry.known(client, model)
    by = Settings().workflow_name or os.environ.get("USER") or person()
    with lock.locked(client, model):
        if rollback:
            now = registry.roll_back(client, model, by)
        else:
            now = registry.promote(client, model, version, by)
    click.echo(f"champion models:/{model}/{now}, by {by}")
    champion = client.get_model_version(model, now)
    if champion.tags.get(tags.RESULT) == "failed":
        reason = champion.tags.get(tags.REASON)
        click.echo(f"warning: a later gate rejected version {now}: {reason}", err=True)
    gate_run = registry.promoting_gate_run_of(client, champion)
    runs.hand_over(out_dir, gate_run, version=now)


def person() -> str:
    """Whoever runs this: their name, or their number where a container knows no name for it."""
    try:
        return getpass.getuser()
    # Python 3.13 made the KeyError of an unknown number an OSError.
    except (KeyError, OSError):
        return f"somebody without a name (user ID {os.getuid()})"


if __name__ == "__main__":
    promote()
