"""The line as an Argo workflow; renders pipeline.yaml, which Argo and run_local.py execute.

python workflows/pipeline.py
python workflows/pipeline.py --check
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

if TYPE_CHECKING:
    from hera.workflows import Container, Workflow

RENDERED = Path(__file__).with_suffix(".yaml")
PROFILES = Path(__file__).parents[1] / "lora_profiles"

IMAGE = "localhost/loraline:dev"
USER = 8737
"""User of the images; a number, since Kubernetes cannot tell that a name is not root."""

SERVICE_ACCOUNT = "loraline"
OUT_DIR = "/tmp/outputs"
HOUR = 3600
DAY = 24 * HOUR

RETRY = "lastRetry.status == 'Error' || asInt(lastRetry.exitCode) == 75"
"""A pod that was lost (Error) or a step that says "try again"; never a user's mistake or a bug."""


class Size(NamedTuple):
    """What a step asks of a node, and the memory at which it is stopped."""

    image: str
    cpu: str
    memory: str
    memory_limit: str


SMALL = Size("{{workflow.parameters.image}}", cpu="500m", memory="1Gi", memory_limit="4Gi")
LARGE = Size("{{workflow.parameters.gpu-image}}", cpu="1", memory="2Gi", memory_limit="32Gi")


@click.command()
@click.option("--check", is_flag=True, help="Write nothing; exit 1 if the rendered file is stale.")
def pipeline(check: bool) -> None:
    """Render the workflow to pipeline.yaml, beside this file."""
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
    """The workflow: five steps in a row, the last one only for a candidate that passed the gate."""
    from hera.workflows import DAG, Workflow, models

    profile, data = "{{workflow.parameters.profile}}", "{{workflow.parameters.data}}"
    with Workflow(
        generate_name="loraline-",
        annotations={
            "workflows.argoproj.io/title": "loraline: from data to a served adapter",
            "workflows.argoproj.io/description": (
                "Prepare data, fine-tune a LoRA adapter, evaluate it, register it if it passes the "
                "gate, render its vLLM server."
            ),
        },
        entrypoint="pipeline",
        arguments=parameters(),
        service_account_name=SERVICE_ACCOUNT,
        # The steps never see a token of the cluster; Argo's own containers get the account's.
        automount_service_account_token=False,
        executor=models.ExecutorConfig(service_account_name=SERVICE_ACCOUNT),
        security_context=models.PodSecurityContext(
            run_as_non_root=True,
            run_as_user=USER,
            fs_group=USER,
            seccomp_profile=models.SeccompProfile(type="RuntimeDefault"),
        ),
        active_deadline_seconds=2 * DAY,
        # Pods that failed stay, for their logs, until the workflow goes.
        pod_gc=models.PodGC(strategy="OnPodSuccess"),
        ttl_strategy=models.TTLStrategy(seconds_after_completion=7 * DAY),
    ) as workflow:
        prepare, train, measure = prepare_data(), train_qlora(), evaluate()
        gate, deploy = quality_gate(), deploy_vllm()
        with DAG(name="pipeline"):
            prepared = task(prepare, {"profile": profile, "data": data})
            trained = task(train, {"run-id": run_id(prepared), "profile": profile})
            measured = task(measure, {"run-id": run_id(trained)})
            judged = task(gate, {"run-id": run_id(measured)})
            passed = f"{judged.get_parameter('result')} == passed"
            deployed = task(deploy, {"run-id": run_id(judged)}, when=passed)
            prepared >> trained >> measured >> judged >> deployed
    return workflow


def parameters() -> list[Any]:
    from hera.workflows import Parameter

    return [
        Parameter(
            name="profile",
            value="smoke-vision",
            enum=sorted(file.stem for file in PROFILES.glob("*.yaml")),
            description="Recipe: a file in lora_profiles/.",
        ),
        Parameter(
            name="data",
            value="",
            description="Folder with the dataset; empty for the profile's own data.",
        ),
        Parameter(
            name="image",
            value=IMAGE,
            description="Image of the steps that need no GPU (images/cpu.Dockerfile).",
        ),
        Parameter(
            name="gpu-image",
            value=IMAGE,
            description="Image of training and evaluation (images/gpu.Dockerfile on GPU nodes).",
        ),
    ]


def prepare_data() -> Container:
    return step("prepare-data", inputs=["profile", "data"], size=SMALL, deadline=2 * HOUR)


def train_qlora() -> Container:
    return step("train-qlora", inputs=["run-id", "profile"], size=LARGE, deadline=DAY)


def evaluate() -> Container:
    return step("evaluate", inputs=["run-id"], size=LARGE, deadline=8 * HOUR)


def quality_gate() -> Container:
    # A gate whose word is lost has not let anything pass.
    outputs = {"result": "failed"}
    return step("quality-gate", inputs=["run-id"], size=SMALL, deadline=HOUR, outputs=outputs)


def deploy_vllm() -> Container:
    return step("deploy-vllm", inputs=["run-id"], size=SMALL, deadline=HOUR)


def step(
    name: str,
    *,
    inputs: list[str],
    size: Size,
    deadline: int,
    outputs: dict[str, str] | None = None,
) -> Container:
    """A template for steps/<name>.py: a flag an input, a file an output.

    `outputs` names further outputs beside the run ID, each with its value if its file is missing.
    """
    from hera.workflows import (
        Container,
        EmptyDirVolume,
        Parameter,
        Resources,
        RetryStrategy,
        models,
    )

    flags = [word for flag in inputs for word in (f"--{flag}", f"{{{{inputs.parameters.{flag}}}}}")]
    return Container(
        name=name,
        image=size.image,
        image_pull_policy="IfNotPresent",
        command=["python", f"steps/{name.replace('-', '_')}.py"],
        args=[*flags, "--out-dir", OUT_DIR],
        env=environment(size.image),
        inputs=[Parameter(name=flag) for flag in inputs],
        outputs=[
            Parameter(
                name=output,
                value_from=models.ValueFrom(path=f"{OUT_DIR}/{output}", default=default),
            )
            for output, default in {"run-id": "", **(outputs or {})}.items()
        ],
        active_deadline_seconds=deadline,
        retry_strategy=RetryStrategy(
            limit=2,
            expression=RETRY,
            backoff=models.Backoff(duration="10s", factor=models.IntOrString(root=3)),
        ),
        resources=Resources(
            cpu_request=size.cpu, memory_request=size.memory, memory_limit=size.memory_limit
        ),
        security_context=models.SecurityContext(
            allow_privilege_escalation=False,
            capabilities=models.Capabilities(drop=["ALL"]),
            read_only_root_filesystem=True,
        ),
        volumes=[EmptyDirVolume(name="tmp", mount_path="/tmp")],
    )


def environment(image: str) -> list[Any]:
    """Where MLflow is, from the namespace; which workflow this is, for the runs' tags."""
    from hera.workflows import ConfigMapEnv, Env, SecretEnv

    return [
        ConfigMapEnv(
            name="MLFLOW_TRACKING_URI",
            config_map_name="loraline",
            config_map_key="mlflow-tracking-uri",
        ),
        ConfigMapEnv(
            name="MLFLOW_S3_ENDPOINT_URL",
            config_map_name="loraline",
            config_map_key="mlflow-s3-endpoint-url",
            optional=True,
        ),
        *(
            SecretEnv(name=key, secret_name="loraline", secret_key=key, optional=True)
            for key in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
        ),
        Env(name="LORALINE_WORKFLOW_NAME", value="{{workflow.name}}"),
        Env(name="LORALINE_WORKFLOW_UID", value="{{workflow.uid}}"),
        Env(name="LORALINE_IMAGE", value=image),
    ]


def task(template: Container, arguments: dict[str, str], when: str | None = None) -> Any:
    """A task of the surrounding DAG, named like its template."""
    return template(name=template.name, arguments=arguments, when=when)


def run_id(upstream: Any) -> Any:
    return upstream.get_parameter("run-id")


if __name__ == "__main__":
    pipeline()
