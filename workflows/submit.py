"""Submit a rendered workflow to the cluster, watch it, and end as it ended.

    python workflows/submit.py workflows/pipeline.yaml -p profile=smoke-text

Argo takes parameters that no workflow has and values that its enums do not list, and finds out when
a step has failed of them; and `argo submit --watch` ends with 0 whatever came of the workflow.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import click

from runner.reader import parameter_values, read

NOT_DONE = 1
"""Exit code of a workflow that was submitted and did not succeed."""


@click.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("-p", "given", metavar="NAME=VALUE", multiple=True, help="Set a workflow parameter.")
@click.option("--namespace", default="loraline", show_default=True, help="Where it runs.")
def submit(file: Path, given: tuple[str, ...], namespace: str) -> None:
    """Run the workflow in FILE on the cluster of the current context.

    Ends with 0 if it succeeded, with 1 if not, with 2 if it was not submitted.
    """
    parameter_values(read(file), given, {})
    if not shutil.which("argo"):
        raise click.UsageError("argo, the command line of Argo Workflows, is not installed")
    words = [word for parameter in given for word in ("-p", parameter)]
    submitted = subprocess.run(
        ["argo", "submit", "--namespace", namespace, "--output", "name", file, *words],
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if submitted.returncode:
        sys.exit(2)
    name = submitted.stdout.strip().rpartition("/")[2]
    subprocess.run(["argo", "watch", "--namespace", namespace, name], check=False)
    told = subprocess.run(
        ["argo", "get", "--namespace", namespace, "--output", "json", name],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    phase = json.loads(told.stdout)["status"].get("phase", "Pending")
    click.echo(f"{name}  {phase}")
    sys.exit(0 if phase == "Succeeded" else NOT_DONE)


if __name__ == "__main__":
    submit()
