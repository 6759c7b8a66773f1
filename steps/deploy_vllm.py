"""Render the vLLM server for a registered version, exactly as its contract says.

Reads: the version that the quality_gate run registered, and its contract.
Writes: `vllm.yaml` (ConfigMap, Deployment, Service) in MLflow and in the output folder.

    python steps/deploy_vllm.py --run-id "$(cat outputs/run-id)"
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from loraline import tracking
from loraline.errors import UserError
from loraline.step import step

if TYPE_CHECKING:
    from loraline.settings import Settings

MANIFEST = "vllm.yaml"


@step
@click.option("--run-id", required=True, help="MLflow run of quality_gate.")
def deploy_vllm(run_id: str, out_dir: Path, force: bool) -> None:
    """Render the Kubernetes manifest of a vLLM server for the version that passed the gate."""
    from loraline.settings import Settings

    client = tracking.connect()
    gate_run = tracking.upstream_run(client, run_id, "quality_gate")
    if gate_run.data.tags[tracking.RESULT] != "passed":
        reason = gate_run.data.tags[tracking.REASON]
        raise UserError(f"--run-id {run_id} rejected its candidate ({reason}): nothing to deploy")
    settings = Settings()
    where = {"image": settings.image, "fetch": fetch_environment(settings)}
    fingerprint = tracking.fingerprint(__file__, {"upstream": run_id, **where})
    done = None if force else tracking.finished_run(client, "deploy_vllm", fingerprint)
    deployed = done.info.run_id if done else None
    if deployed is None:
        import mlflow

        name = gate_run.data.tags[tracking.MODEL_NAME]
        version = gate_run.data.tags[tracking.MODEL_VERSION]
        train_run = tracking.ancestor(client, gate_run, "train_qlora")
        with tracking.open_run(
            "deploy_vllm",
            name=f"deploy {name} v{version}",
            fingerprint=fingerprint,
            upstream=gate_run,
            parent=train_run,
            tags={tracking.MODEL_NAME: name, tracking.MODEL_VERSION: version},
        ) as run:
            with tracking.adapter(train_run) as adapter:
                mlflow.log_text(manifest(adapter, name, version, settings), MANIFEST)
            client.set_tag(train_run.info.run_id, "loraline.deployed", f"models:/{name}/{version}")
        deployed = run.info.run_id
    with tracking.artifacts(client, deployed, MANIFEST) as rendered:
        out_dir.mkdir(parents=True, exist_ok=True)
        (out_dir / MANIFEST).write_bytes(rendered.read_bytes())
    click.echo(f"manifest {out_dir / MANIFEST} ({'reused' if done else 'rendered'})")
    tracking.hand_over(out_dir, deployed)


def manifest(adapter: Path, name: str, version: str, settings: Settings) -> str:
    """The server's manifest as YAML, from the contract that travels with the adapter."""
    from loraline import contract
    from loraline.manifest import render, to_yaml

    objects = render(
        contract.read(adapter),
        model_name=name,
        version=version,
        image=settings.image or "localhost/loraline:dev",
        fetch_env=fetch_environment(settings),
    )
    return to_yaml(objects)


def fetch_environment(settings: Settings) -> dict[str, str]:
    """Where the manifest's init container finds MLflow and its artifacts; never a credential.

    A store on this machine's disk is of no use to a pod and stays out.
    """
    found = {"MLFLOW_S3_ENDPOINT_URL": settings.s3_endpoint}
    if settings.tracking_uri.startswith(("http://", "https://")):
        found["MLFLOW_TRACKING_URI"] = tracking.uri()
    return {key: value for key, value in found.items() if value}


if __name__ == "__main__":
    deploy_vllm()
