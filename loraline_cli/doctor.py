"""What this machine has of what the pipeline can use, and how to add what is missing."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, NamedTuple

import click

from loraline.errors import TryAgain, UserError
from loraline.step import PipelineCommand

ROOM_GIB = 20
"""Free disk below which a 7B base, its adapter and a checkpoint do not fit."""


class Finding(NamedTuple):
    """The result of one check."""

    name: str
    state: Literal["ok", "missing", "little", "broken"]
    detail: str
    remedy: str = ""
    needed: bool = False
    """Whether the pipeline cannot run here without it."""


@click.command(cls=PipelineCommand)
@click.option(
    "--bases", is_flag=True, help="List the bases that can be trained, and those that cannot."
)
def doctor(bases: bool) -> None:
    """Say what is missing here and what mends it; exit code 2 if something needed is missing."""
    if bases:
        from loraline.base import architectures

        known = {"text": architectures.TEXT, "vision": architectures.VISION}
        for modality, classes in known.items():
            for name in sorted(classes):
                click.echo(f"{modality:6}  {name:34}  {architectures.MODELS[name]}")
        for name, why in architectures.NOT_TRAINED.items():
            click.echo(f"{'no':6}  {name:34}  {why}")
        return
    findings = list(examine())
    width = max(len(finding.name) for finding in findings)
    for finding in findings:
        click.echo(f"{finding.name.ljust(width)}  {finding.state.ljust(7)}  {finding.detail}")
        if finding.remedy:
            click.echo(f"{' ' * width}           {finding.remedy}")
    broken = [finding.name for finding in findings if finding.needed and finding.state != "ok"]
    if broken:
        raise UserError(f"the pipeline cannot run here without {', '.join(broken)}")


def examine() -> Iterator[Finding]:
    yield python()
    yield from packages()
    yield gpu()
    yield store()
    yield object_store()
    yield program("argo", "submits workflows to a cluster", "install Argo's command line, 3.7")
    yield program("kubectl", "talks to a cluster", "install kubectl")
    yield cluster()
    yield disk()


def python() -> Finding:
    return Finding("Python", "ok", sys.version.split()[0], needed=True)


def packages() -> Iterator[Finding]:
    """The packages that training needs, and those that only some ways of using it need."""
    for name, why, remedy, needed in (
        ("torch", "trains", "pip install torch==2.13.0", True),
        ("mlflow", "keeps every fact", "pip install .", True),
        ("vllm", "serves", "pip install '.[serve-gpu]', or '.[serve-cpu]' without a GPU", False),
        ("liger_kernel", "speeds up training on a GPU", "pip install '.[gpu]'", False),
    ):
        if find_spec(name) is None:
            yield Finding(name, "missing", why, remedy, needed)
        else:
            yield Finding(name, "ok", why, needed=needed)


def gpu() -> Finding:
    remedy = "without one the smoke profiles train, and other bases take days"
    if shutil.which("nvidia-smi") is None:
        return Finding("GPU", "missing", "no NVIDIA driver", remedy)
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    listed = subprocess.run(query, capture_output=True, text=True, check=False)
    if listed.returncode or not listed.stdout.strip():
        reason = (listed.stderr or listed.stdout).strip().splitlines() or ["it lists no card"]
        return Finding("GPU", "broken", f"nvidia-smi: {reason[0]}", "reinstall NVIDIA's driver")
    return Finding("GPU", "ok", "; ".join(listed.stdout.strip().splitlines()))


def store() -> Finding:
    """MLflow, asked as every step asks it, but without making a store."""
    from loraline.tracking import store
    from loraline.tracking.settings import Settings

    uri = Settings().store_uri()
    if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).exists():
        return Finding("MLflow", "ok", f"{store.uri()} will be made by the first step", needed=True)
    try:
        store.expect_answer(uri)
    except (UserError, TryAgain) as error:
        return Finding("MLflow", "broken", str(error), "set MLFLOW_TRACKING_URI", needed=True)
    return Finding("MLflow", "ok", store.uri(), needed=True)


def object_store() -> Finding:
    if os.environ.get("AWS_ACCESS_KEY_ID") or Path("~/.aws/credentials").expanduser().exists():
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        return Finding("S3", "ok", f"credentials for {endpoint or 'AWS'}")
    remedy = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, and AWS_ENDPOINT_URL for your own"
    return Finding("S3", "missing", "no credentials, so that s3:// data cannot be read", remedy)


def program(name: str, why: str, remedy: str) -> Finding:
    path = shutil.which(name)
    return Finding(name, "ok", path) if path else Finding(name, "missing", why, remedy)


def cluster() -> Finding:
    file = os.environ.get("KUBECONFIG") or str(Path("~/.kube/config").expanduser())
    if any(Path(each).exists() for each in file.split(os.pathsep)):
        return Finding("cluster", "ok", f"kubeconfig {file}")
    return Finding("cluster", "missing", f"no kubeconfig {file}", "set KUBECONFIG to submit to one")


def disk() -> Finding:
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    detail = f"{free:.0f} GiB free in {Path.cwd()}"
    if free < ROOM_GIB:
        return Finding("disk", "little", detail, f"a 7B base needs {ROOM_GIB} GiB; free some")
    return Finding("disk", "ok", detail)
