"""Prepare a dataset that is too large for one machine; renders prepare_shares.yaml.

Each pod reads and checks its share of the data, and one pod merges them. The run ID that it prints
is the data of a pipeline: `argo submit workflows/pipeline.yaml -p data=mlflow://RUN`.

    python workflows/prepare_shares.py
    python workflows/prepare_shares.py --check
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from parameters import one_profile, parameter
from pipeline import ENTRYPOINT, finish, spec
from templates import HOUR, Settings, step

if TYPE_CHECKING:
    from hera.workflows import Workflow

RENDERED = Path(__file__).with_suffix(".yaml")
ABOUT = {
    "workflows.argoproj.io/title": "loraline: a dataset too large for one machine",
    "workflows.argoproj.io/description": "Prepare the shares of a dataset **side by side** and "
    "merge them.\n\nThe last task's run ID is the `data` of a pipeline, as `mlflow://RUN`.",
}


@click.command()
@click.option("--check", is_flag=True, help="Write nothing; exit 1 if the rendered file is stale.")
def prepare_shares(check: bool) -> None:
    """Render the workflow to prepare_shares.yaml, beside this file."""
    rendered = render(build())
    if not check:
        RENDERED.write_text(rendered)
        click.echo(f"wrote {RENDERED}")
    elif not RENDERED.is_file() or RENDERED.read_text() != rendered:
        click.echo(f"{RENDERED} is stale: run {Path(__file__).name} and commit the file", err=True)
        sys.exit(1)


def render(workflow: Workflow) -> str:
    return f"# Rendered by workflows/{Path(__file__).name}; edit that file.\n{workflow.to_yaml()}"


def build(settings: Settings | None = None) -> Workflow:
    """The workflow: the shares that `parts` lists, at once, and one merge."""
    from hera.workflows import DAG, Workflow

    settings = settings or Settings()
    shared_names = ["profile", "data", "set", "recipes"]
    values = {name: f"{{{{workflow.parameters.{name}}}}}" for name in (*shared_names, "parts")}
    profile, data, *rest = one_profile(settings)
    default_parts = '["1/4", "2/4", "3/4", "4/4"]'
    parts = parameter(
        "parts", default_parts, "The shares, a pod each: all of 1/N to N/N, as a JSON list."
    )
    with Workflow(
        generate_name="loraline-data-",
        annotations=ABOUT,
        **spec(settings),
        arguments=[profile, data, parts, *rest],
    ) as workflow:
        share = step("prepare-data", inputs=[*shared_names, "part"], deadline=8 * HOUR)
        share.name = "share"
        merge = step("prepare-data", inputs=[*shared_names, "merge"], deadline=8 * HOUR)
        merge.name = "merge"
        shared_values = {name: values[name] for name in shared_names}
        with DAG(name=ENTRYPOINT):
            shared: Any = share(
                name="share",
                arguments=shared_values | {"part": "{{item}}"},
                with_param=values["parts"],
            )
            # Argo gives the shares' outputs as one JSON list.
            runs = "{{tasks.share.outputs.parameters.run-id}}"
            merged: Any = merge(name="merge", arguments=shared_values | {"merge": runs})
            shared >> merged
        finish(settings)
    return workflow


if __name__ == "__main__":
    prepare_shares()
