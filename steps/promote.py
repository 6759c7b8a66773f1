"""Make a registered model's candidate the champion; the champion before it stays as `previous`.

Reads and moves the registered model's aliases. Writes the promoted version's quality_gate run as
`run-id`, for deploy_vllm.

    python steps/promote.py --model tiny-mistral-lora --version 1
"""

from __future__ import annotations

from pathlib import Path

import click

from loraline import tracking
from loraline.errors import UserError
from loraline.step import LineCommand, not_empty


@click.command(cls=LineCommand)
@click.option("--model", required=True, help="Registered model.")
@click.option(
    "--version",
    callback=not_empty,
    help="The version that was reviewed; another candidate is refused.  [default: any]",
)
@click.option(
    "--out-dir",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("outputs"),
    show_default=True,
    help="Folder for the output files: run-id, and version.",
)
def promote(model: str, version: str | None, out_dir: Path) -> None:
    """Point the alias `champion` at a registered model's candidate."""
    from mlflow.exceptions import MlflowException

    client = tracking.connect()
    aliases: dict[str, str] = {}
    for alias in ("candidate", "champion"):
        try:
            aliases[alias] = str(client.get_model_version_by_alias(model, alias).version)
        except MlflowException as error:
            if tracking.is_outage(error):
                raise
    candidate = aliases.get("candidate")
    if candidate is None or version not in (None, candidate):
        found = f"version {candidate}" if candidate else "no version"
        raise UserError(f"the candidate of {model!r} is {found}, not {version or 'one'}")
    gates = client.search_runs(
        [client.get_run(client.get_model_version(model, candidate).run_id).info.experiment_id],
        f"tags.`{tracking.STEP}` = 'quality_gate' and tags.`{tracking.MODEL_NAME}` = '{model}' "
        f"and tags.`{tracking.MODEL_VERSION}` = '{candidate}'",
        order_by=["attributes.start_time DESC"],
        max_results=1,
    )
    if not gates:
        raise UserError(f"no run of quality_gate registered version {candidate} of {model!r}")
    if aliases.get("champion") not in (None, candidate):
        client.set_registered_model_alias(model, "previous", aliases["champion"])
    client.set_registered_model_alias(model, "champion", candidate)
    click.echo(f"champion models:/{model}/{candidate}")
    tracking.hand_over(out_dir, gates[0].info.run_id, version=candidate)


if __name__ == "__main__":
    promote()
