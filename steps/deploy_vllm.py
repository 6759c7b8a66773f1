"""Render the vLLM server for a registered version, exactly as its contract says.

Reads: the version that the quality_gate run registered, its contract and its base's config.
Writes: `vllm.yaml` in MLflow and in the output folder; with --apply the objects in a cluster, with
--git a commit in a checkout.

    python steps/deploy_vllm.py --run-id "$(cat outputs/latest-pipeline/quality-gate/run-id)"
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from loraline.contract import sha256
from loraline.delivery.options import CPU, Options, server_options
from loraline.step import step
from loraline.tracking import fingerprints, identity, run_profile, runs, store
from loraline.tracking.tags import ADAPTER_DIGEST, MANIFEST_DIGEST, MODEL_NAME, MODEL_VERSION

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

    from loraline.delivery.gateway import Gateway
    from loraline.delivery.order import Order

MANIFEST = "vllm.yaml"
DEPLOYED = "loraline.deployed"
"""Tag of a training run: the version that --apply has brought to a cluster, where it is ready."""


@step
@click.option("--run-id", required=True, help="MLflow run of quality_gate.")
@server_options
@click.option("--apply", is_flag=True, help="Apply to the current context and wait until ready.")
@click.option("--git", type=click.Path(path_type=Path), help="Folder of a checkout to commit to.")
def deploy_vllm(
    run_id: str, out_dir: Path, force: bool, apply: bool, git: Path | None, **flags: Any
) -> None:
    """Render the Kubernetes manifest of a vLLM server for the version that passed the gate."""
    from loraline.delivery import checkout, cluster, doubts
    from loraline.serving import names

    client = store.connect()
    gate_run = runs.upstream_run(client, run_id, "quality_gate")
    train_run = runs.ancestor(client, gate_run, "train_qlora")
    options = placed(client, train_run, Options.of(flags))
    options.check()
    order = ordered(client, gate_run, options)
    fingerprint = fingerprints.fingerprint(__file__, {"upstream": run_id, **asdict(order)})
    finished = None if force else runs.finished_run(client, "deploy_vllm", fingerprint)
    deployed = finished or render(client, train_run, gate_run, order, fingerprint)

    with runs.artifacts(client, deployed.info.run_id, MANIFEST) as rendered:
        logged = client.get_run(deployed.info.run_id)
        identity.expect(logged, MANIFEST_DIGEST, sha256(rendered), MANIFEST)
        out_dir.mkdir(parents=True, exist_ok=True)
        (out_dir / MANIFEST).write_bytes(rendered.read_bytes())
    cpus = ", for CPUs" if order.where.cpu else ""
    click.echo(f"manifest {out_dir / MANIFEST} ({'reused' if finished else 'rendered'}{cpus})")
    if git:
        click.echo(checkout.commit(out_dir / MANIFEST, git))
    for doubt in doubts.doubts(order.image, order.fetch, order.where.serving_image, order.gateway):
        warn(doubt)
    if apply:
        cluster.apply(out_dir / MANIFEST, click.echo)
        version = names.model_uri(order.name, order.version)
        client.set_tag(train_run.info.run_id, DEPLOYED, version)
    runs.hand_over(out_dir, deployed.info.run_id)


def placed(client: MlflowClient, train_run: Run, options: Options) -> Options:
    """The options, with CPUs where no card is named and none could apply the adapter."""
    from loraline.serving import versions

    if options.gpu is not None:
        return options
    recipe = run_profile.of_training(client, train_run)
    merged = options.merged or recipe.export == "merged"
    on_cpu = versions.needs_cpu(recipe.serve_dtype, merged=merged)
    return replace(options, gpu=CPU) if on_cpu else options


def ordered(client: MlflowClient, gate_run: Run, options: Options) -> Order:
    """What is served; tasks and settings of the gateway are read by the gateway's own rules."""
    from gateway import tasks
    from loraline.delivery.order import Order

    needs = tasks.needs(options.task, options.tasks_dir) if options.tasks else ()
    return Order.of(client, gate_run, options, needs, gateway_of(options), warn)


def gateway_of(options: Options) -> Gateway | None:
    """The gateway in front of the server, if there is one. UserError for a bad setting or task."""
    from gateway import settings, tasks

    gateway = options.front.front_gateway(tasks.files(options.tasks_dir))
    if gateway is not None:
        settings.check(dict(gateway.settings))
    return gateway


def render(
    client: MlflowClient, train_run: Run, gate_run: Run, order: Order, fingerprint: str
) -> Run:
    """The run that holds the manifest and the sizes it was planned with."""
    import mlflow

    from loraline.delivery import rendering

    with runs.open_run(
        "deploy_vllm",
        name=f"deploy {order.name} v{order.version}",
        fingerprint=fingerprint,
        upstream=gate_run,
        parent=train_run,
        tags={
            MODEL_NAME: order.name,
            MODEL_VERSION: order.version,
            ADAPTER_DIGEST: order.digest,
        },
    ) as run:
        with runs.adapter(train_run, gate_run) as adapter:
            if order.digest != gate_run.data.tags.get(ADAPTER_DIGEST, ""):
                runs.check_same_adapter("quality_gate", order.name, order.version, adapter)
            text, plan = rendering.rendered(client, adapter, order, click.echo)
        mlflow.log_text(text, MANIFEST)
        mlflow.log_param(MANIFEST_DIGEST, hashlib.sha256(text.encode()).hexdigest())
        mlflow.log_params({f"sized.{k}": v for k, v in vars(plan).items()} if plan else {})
    return run


def warn(sentence: str) -> None:
    click.echo(f"warning: {sentence}", err=True)


if __name__ == "__main__":
    deploy_vllm()
