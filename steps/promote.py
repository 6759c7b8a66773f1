"""Make a registered candidate the champion; the champion before it stays at hand as `previous`.

Reads: the version that the quality_gate run registered.
Writes: the aliases `champion` and `previous`.

    python steps/promote.py --run-id "$(cat outputs/run-id)"
"""

from __future__ import annotations

from pathlib import Path

import click

from loraline import tracking
from loraline.errors import UserError
from loraline.step import step


@step
@click.option("--run-id", required=True, help="MLflow run of quality_gate.")
def promote(run_id: str, out_dir: Path, force: bool) -> None:
    """Point the alias `champion` at the version that a gate registered."""
    from mlflow.exceptions import MlflowException

    client = tracking.connect()
    gate_run = tracking.upstream_run(client, run_id, "quality_gate")
    name = gate_run.data.tags.get(tracking.MODEL_NAME)
    if name is None:
        raise UserError(f"--run-id {run_id} registered nothing: its verdict was not passed")
    version = gate_run.data.tags[tracking.MODEL_VERSION]
    try:
        champion = str(client.get_model_version_by_alias(name, "champion").version)
    except MlflowException:
        champion = ""
    if champion not in ("", version):
        client.set_registered_model_alias(name, "previous", champion)
    client.set_registered_model_alias(name, "champion", version)
    click.echo(f"models:/{name}/{version} is the champion")
    tracking.hand_over(out_dir, run_id)


if __name__ == "__main__":
    promote()
