"""The DAGs in Hera: pipeline, sweep, promote and retrain, as any kind of workflow.

    python workflows/pipeline.py
    python workflows/pipeline.py --check
    python workflows/pipeline.py --kind WorkflowTemplate --out outputs/templates
    python workflows/pipeline.py --resources gpu-large-2x4 --out outputs/workflows

Renders each to its .yaml file beside this one; Argo and `runner` execute those files.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import machines
import parameters
import resources
import templates
from templates import DAY, Settings
from trainers import TRAINERS

if TYPE_CHECKING:
    from hera.workflows import Container, Resource, Workflow

HERE = Path(__file__).parent
ENTRYPOINT = "main"
PROFILE, DATA = "{{workflow.parameters.profile}}", "{{workflow.parameters.data}}"
RECIPE = {
    "set": "{{workflow.parameters.set}}",
    "recipes": "{{workflow.parameters.recipes}}",
}
"""Arguments that change or replace a profile's file."""

ABOUT = {
    "pipeline": (
        "loraline: from data to a served adapter",
        "Prepare data, fine-tune a LoRA adapter, evaluate it, register it if it **passes the "
        "gate**, render its vLLM server.\n\nRun IDs between the steps are runs in MLflow.",
    ),
    "sweep": (
        "loraline: many profiles, one winner",
        "Train and evaluate each of `profiles` on the data of `profile`; the best one goes to the "
        "gate and is deployed.\n\nA member that fails is **left out**; the rest goes on.",
    ),
    "promote": (
        "loraline: candidate to champion",
        "Wait for a person's **yes**, then make the registered version the champion and render its "
        "server.\n\nResume in the UI, or with `argo node set` and `argo resume`.",
    ),
    "retrain": (
        "loraline: every week, on new data",
        "The pipeline on a schedule: reads `data` anew and deploys what passes the gate.\n\n"
        "Unchanged data is not trained on twice: each step reuses its finished run.",
    ),
}
"""Title and description (Markdown) of each, for the UI."""

SCHEDULE = "0 3 * * 0"
"""Sundays at three: a training run is over by Monday."""


@click.command()
@click.option("--check", is_flag=True, help="Write nothing; exit 1 if a rendered file is stale.")
@click.option(
    "--kind",
    type=click.Choice(["Workflow", "WorkflowTemplate", "CronWorkflow"]),
    help="Render all as this kind. Default: retrain as CronWorkflow, the others as Workflow.",
)
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=HERE,
    help="Folder for the files. Default: beside this file.",
)
@click.option(
    "--classes",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="YAML file with resource classes of this cluster; docs/cluster.md says what it holds.",
)
@click.option(
    "--resources",
    "machines_class",
    default="",
    metavar="CLASS",
    help="Train on this class of several machines: pipeline and retrain, which name it.",
)
@click.option(
    "--trainer",
    type=click.Choice(list(TRAINERS)),
    default="job",
    show_default=True,
    help="What makes the group of machines: Kubernetes, Kubeflow Trainer or KubeRay.",
)
def pipeline(
    check: bool,
    kind: str | None,
    out: Path,
    classes: Path | None,
    machines_class: str,
    trainer: str,
) -> None:
    """Render the workflows to YAML."""
    if trainer != "job" and not machines_class:
        raise click.UsageError(
            f"--trainer {trainer} needs --resources, a class of several machines"
        )
    if (kind or classes or machines_class) and out == HERE:
        option = "--kind" if kind else "--classes" if classes else "--resources"
        raise click.UsageError(
            f"{option} needs --out, since make and CI use the files in {HERE.name}/"
        )
    classes_by_name = resources.load(classes)
    groups = [
        name for name, resource_class in classes_by_name.items() if resource_class.machines > 1
    ]
    if machines_class and machines_class not in groups:
        raise click.UsageError(
            f"--resources {machines_class} is no class of several machines; accepted: "
            f"{', '.join(groups)}"
        )
    settings = Settings(classes=classes_by_name, machines=machines_class, trainer=trainer)
    for name in ON_SEVERAL_MACHINES if machines_class else DAGS:
        file, rendered = out / f"{name}.yaml", render(build(name, kind, settings))
        if not check:
            out.mkdir(parents=True, exist_ok=True)
            # Another pipeline may read it at this moment.
            part = file.with_suffix(f".{os.getpid()}.part")
            part.write_text(rendered)
            part.replace(file)
            click.echo(f"wrote {file}")
        elif not file.is_file() or file.read_text() != rendered:
            click.echo(f"{file} is stale: run {Path(__file__).name} and commit the file", err=True)
            sys.exit(1)


def render(workflow: Workflow) -> str:
    return f"# Rendered by workflows/{Path(__file__).name}; edit that file.\n{workflow.to_yaml()}"


def build(name: str, kind: str | None = None, settings: Settings | None = None) -> Workflow:
    """One of the DAGs as a Workflow, a WorkflowTemplate or a CronWorkflow."""
    from hera.workflows import CronWorkflow, Workflow, WorkflowTemplate

    settings = settings or Settings()
    kind = kind or ("CronWorkflow" if name == "retrain" else "Workflow")
    common = {
        **metadata(name),
        **spec(settings),
        "arguments": [*parameters.PARAMETERS[name](settings)],
    }
    workflow: Workflow
    match kind:
        case "Workflow":
            workflow = Workflow(generate_name=f"loraline-{name}-", **common)
        case "WorkflowTemplate":
            workflow = WorkflowTemplate(name=f"loraline-{name}", **common)
        case _:
            workflow = CronWorkflow(
                name=f"loraline-{name}",
                schedules=[SCHEDULE],
                timezone="Etc/UTC",
                concurrency_policy="Forbid",
                starting_deadline_seconds=DAY // 24,
                successful_jobs_history_limit=3,
                failed_jobs_history_limit=3,
                **common,
            )
    with workflow:
        DAGS[name](settings)
        finish(settings)
    return workflow


def metadata(name: str) -> dict[str, Any]:
    title, description = ABOUT[name]
    labels = {"app.kubernetes.io/name": "loraline", "app.kubernetes.io/component": name}
    return {
        "labels": labels,
        "annotations": {
            "workflows.argoproj.io/title": title,
            "workflows.argoproj.io/description": description,
        },
    }


def spec(settings: Settings) -> dict[str, Any]:
    """What holds for each workflow and all of its pods."""
    from hera.workflows import ExistingVolume, models

    return {
        "entrypoint": ENTRYPOINT,
        "on_exit": "finish",
        "service_account_name": settings.service_account,
        # The steps never see a token of the cluster; Argo's own containers get the account's.
        "automount_service_account_token": False,
        "executor": models.ExecutorConfig(service_account_name=settings.service_account),
        "security_context": models.PodSecurityContext(
            run_as_non_root=True,
            run_as_user=settings.user,
            fs_group=settings.user,
            # Not every file of a large model cache, at the start of every pod.
            fs_group_change_policy="OnRootMismatch",
            seccomp_profile=models.SeccompProfile(type="RuntimeDefault"),
        ),
        "volumes": [ExistingVolume(name="models", claim_name=settings.model_cache)],
        "active_deadline_seconds": 4 * DAY,
        # Pods that failed stay, for their logs, until the workflow goes.
        "pod_gc": models.PodGC(strategy="OnPodSuccess", delete_delay_duration="10m"),
        "ttl_strategy": models.TTLStrategy(
            seconds_after_success=7 * DAY, seconds_after_failure=28 * DAY
        ),
        "pod_metadata": models.Metadata(labels={"app.kubernetes.io/name": "loraline"}),
    }


def five_steps(settings: Settings) -> None:
    """Five steps in a row, the last one only for a candidate that passed the gate."""
    from hera.workflows import DAG

    model = templates.model_of_profile(settings)
    group = machines.train_group(settings, alone(settings)) if settings.machines else None
    prepare, train, measure = (
        templates.prepare_data(),
        templates.train_qlora_after_group() if group else templates.train_qlora(settings),
        templates.evaluate(settings),
    )
    gate, deploy = templates.quality_gate(model), templates.deploy_vllm(model)
    with DAG(name=ENTRYPOINT):
        prepared = task(prepare, {"profile": PROFILE, "data": DATA, **RECIPE})
        arguments = {"run-id": run_id(prepared), "profile": PROFILE, **RECIPE}
        if group:
            grouped = task(group, arguments)
            arguments = {**arguments, "ended": grouped.get_parameter("ended")}
            prepared >> grouped
        trained = task(train, arguments)
        measured = task(measure, {"run-id": run_id(trained), "recipes": RECIPE["recipes"]})
        judged = task(gate, {"run-id": run_id(measured), **RECIPE})
        deployed = task(deploy, {"run-id": run_id(judged)}, when=passed(judged))
        (grouped if group else prepared) >> trained >> measured >> judged >> deployed


def sweep(settings: Settings) -> None:
    """Train each profile on the same data; the best member that succeeded goes to the gate."""
    from hera.workflows import DAG, Parameter, models

    model = templates.model_of_profile(settings)
    prepare, train, measure = (
        templates.prepare_data(),
        templates.train_qlora(settings),
        templates.evaluate(settings),
    )
    select, gate, deploy = (
        templates.select_best(),
        templates.quality_gate(model),
        templates.deploy_vllm(model),
    )
    with DAG(
        name="candidate",
        inputs=[Parameter(name="run-id"), Parameter(name="profile")],
        outputs=[
            Parameter(
                name="run-id",
                value_from=models.ValueFrom(
                    parameter="{{tasks.evaluate.outputs.parameters.run-id}}", default=""
                ),
            )
        ],
    ) as candidate:
        arguments = {name: f"{{{{inputs.parameters.{name}}}}}" for name in ("run-id", "profile")}
        trained = task(train, {**arguments, **RECIPE})
        measured = task(measure, {"run-id": run_id(trained), "recipes": RECIPE["recipes"]})
        trained >> measured
    with DAG(name=ENTRYPOINT):
        prepared = task(prepare, {"profile": PROFILE, "data": DATA, **RECIPE})
        members = candidate(
            name="candidate",
            arguments={"run-id": run_id(prepared), "profile": "{{item}}"},
            with_param="{{workflow.parameters.profiles}}",
        )
        prepared >> members
        given_runs = {"run-ids": run_id(members), **RECIPE}
        best = task(select, given_runs, depends="candidate.AnySucceeded")
        judged = task(gate, {"run-id": run_id(best), **RECIPE})
        deployed = task(deploy, {"run-id": run_id(judged)}, when=passed(judged))
        best >> judged >> deployed


def promote(_: Settings) -> None:
    """Wait for a person's yes, move the alias `champion`, render the server."""
    from hera.workflows import DAG

    names = ("model", "version")
    arguments = {name: f"{{{{workflow.parameters.{name}}}}}" for name in names}
    approval, champion = templates.approval(), templates.promote(arguments["model"])
    deploy = templates.deploy_vllm(arguments["model"])
    with DAG(name=ENTRYPOINT):
        waited: Any = approval(name="approval")
        granted = f"{waited.get_parameter('decision')} == yes"
        promoted = task(champion, arguments, when=granted)
        waited >> promoted
        # `promote` alone would also be true if that task was skipped.
        task(deploy, {"run-id": run_id(promoted)}, depends="promote.Succeeded")


def alone(settings: Settings) -> dict[str, Any]:
    """The spec of a workflow that has only the training step, for one machine."""
    from hera.workflows import Workflow

    with Workflow(generate_name="alone-", **spec(settings)) as workflow:
        templates.train_qlora(settings)
    rendered: dict[str, Any] = workflow.to_dict()["spec"]
    return rendered


def finish(settings: Settings) -> None:
    """What a workflow does at its end, however it ended."""
    from hera.workflows import Steps

    notify = templates.notify()
    stop = machines.stop_group(settings) if settings.machines else None
    with Steps(name="finish") as steps, steps.parallel():
        notify(
            name="notify",
            arguments={
                "workflow": "{{workflow.name}}",
                "status": "{{workflow.status}}",
                "failures": "{{workflow.failures}}",
            },
            when="{{workflow.parameters.notify}} == yes",
        )
        if stop:
            stop(name="stop-group", when="{{workflow.status}} != Succeeded")


DAGS: dict[str, Callable[[Settings], None]] = {
    "pipeline": five_steps,
    "sweep": sweep,
    "promote": promote,
    "retrain": five_steps,
}
ON_SEVERAL_MACHINES = ("pipeline", "retrain")
"""A sweep trains its members side by side, each on one machine."""


def task(template: Container | Resource, arguments: dict[str, str], **fields: Any) -> Any:
    """A task of the surrounding DAG, named like its template."""
    return template(name=template.name, arguments=arguments, **fields)


def run_id(upstream: Any) -> Any:
    return upstream.get_parameter("run-id")


def passed(judged: Any) -> str:
    return f"{judged.get_parameter('result')} == passed"


if __name__ == "__main__":
    pipeline()
