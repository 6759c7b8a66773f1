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
from pipeline import HOUR, IMAGE, PROFILES, SERVICE_ACCOUNT, SMALL, USER, step

if TYPE_CHECKING:
    from hera.workflows import Workflow

RENDERED = Path(__file__).with_suffix(".yaml")


@click.command()
@click.option("--check", is_flag=True, help="Write nothing; exit 1 if the rendered file is stale.")
def prepare_shares(check: bool) -> None:
    """Render the workflow to prepare_shares.yaml, beside this file."""
    rendered = render(build())
    if not check:
        RENDERED.write_text(rendered)
        click.echo(f"wrote {RENDERED}")
    elif not RENDERED.is_file() or RENDERED.read_text() != rendered:
        click.echo(f"{RENDERED} is not what {Path(__file__).name} renders: run it", err=True)
        sys.exit(1)


def render(workflow: Workflow) -> str:
    return f"# Rendered by workflows/{Path(__file__).name}; edit that file.\n{workflow.to_yaml()}"


def build() -> Workflow:
    """The workflow: as many shares at once as `shares` says, and one merge."""
    from hera.workflows import DAG, Parameter, Workflow, models

    asked = {name: f"{{{{workflow.parameters.{name}}}}}" for name in ("profile", "data", "shares")}
    with Workflow(
        generate_name="loraline-data-",
        entrypoint="prepare",
        arguments=[
            Parameter(
                name="profile",
                value="smoke-vision",
                enum=sorted(file.stem for file in PROFILES.glob("*.yaml")),
                description="Recipe: a file in lora_profiles/.",
            ),
            Parameter(
                name="data",
                value="",
                description="The dataset, as prepare_data takes it; empty for the profile's own.",
            ),
            Parameter(name="shares", value="4", description="Pods that read and check the data."),
            Parameter(
                name="image",
                value=IMAGE,
                description="Image of the steps that need no GPU (images/cpu.Dockerfile).",
            ),
        ],
        service_account_name=SERVICE_ACCOUNT,
        automount_service_account_token=False,
        executor=models.ExecutorConfig(service_account_name=SERVICE_ACCOUNT),
        security_context=models.PodSecurityContext(
            run_as_non_root=True,
            run_as_user=USER,
            fs_group=USER,
            seccomp_profile=models.SeccompProfile(type="RuntimeDefault"),
        ),
        active_deadline_seconds=24 * HOUR,
        pod_gc=models.PodGC(strategy="OnPodSuccess"),
        ttl_strategy=models.TTLStrategy(seconds_after_completion=7 * 24 * HOUR),
    ) as workflow:
        one = step(
            "prepare-data", inputs=["profile", "data", "part"], size=SMALL, deadline=8 * HOUR
        )
        one.name = "share"
        all_ = step(
            "prepare-data", inputs=["profile", "data", "merge"], size=SMALL, deadline=8 * HOUR
        )
        all_.name = "merge"
        same = {"profile": asked["profile"], "data": asked["data"]}
        with DAG(name="prepare"):
            shares: Any = one(
                name="share",
                arguments=same | {"part": f"{{{{item}}}}/{asked['shares']}"},
                with_sequence=models.Sequence(
                    start=models.IntOrString(root="1"), end=models.IntOrString(root=asked["shares"])
                ),
            )
            # Argo gives the shares' outputs as one JSON list.
            runs = "{{tasks.share.outputs.parameters.run-id}}"
            merged: Any = all_(name="merge", arguments=same | {"merge": runs})
            shares >> merged
    return workflow


if __name__ == "__main__":
    prepare_shares()
