"""Serve a rendered manifest on this machine: the same adapter and arguments, without a cluster."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loraline.delivery.kube import Object
from loraline.errors import TryAgain, UserError
from loraline.serving import versions
from loraline.serving.arguments import BASES, CPU_ENV, on_cpu
from loraline.serving.client import Server
from loraline.serving.names import is_commit
from loraline.serving.versions import HALF_ON_GPUS, needs_cpu

ROOT = Path(__file__).parents[2]
"""The checkout, with the steps that an init container runs."""

LOG = "vllm.log"
Say = Callable[[str], None]


@dataclass(frozen=True)
class Running:
    """A running server: its address, its models and its files."""

    url: str
    base: str
    """Model name of the bare base; empty when the adapter is merged into it."""

    adapter: str
    """Model name of the adapter."""

    uri: str
    """The registered version, models:/NAME/VERSION."""

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
        why = "" if code < 0 else f": {cause(self.log)}"
        return f"vLLM {exit_in_words(code)}{why} (log: {self.log})"


@contextmanager
def start(
    manifest: Path, port: int, folder: Path | None = None, *, say: Say = print
) -> Iterator[Running]:
    """Fetch the manifest's adapter, start its server on 127.0.0.1 and stop it in the end.

    Files go to `folder`, or `serve/` beside the manifest. Raises UserError when the port is taken,
    the adapter cannot be fetched or the server does not come up.
    """
    objects = read(manifest)
    contract = contract_of(objects)
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
        # Folders of this machine in which a base may be.
        if mount["mountPath"] not in ("/tmp", "/dev/shm", BASES)
    }
    args = [local(unescaped(arg), places) for arg in container["args"]]
    hub = is_commit(contract["base_revision"])
    if args[0].startswith(f"{BASES}/"):
        args[0] = contract["base"]
        args += ["--revision", contract["base_revision"]] if hub else []
    merged = "--lora-modules" not in args
    if not (merged or Path(args[0]).is_dir()) and contract["base_revision"].startswith("sha256:"):
        raise UserError(f"base model folder {args[0]!r} of {manifest} does not exist here")
    variables = {
        entry["name"]: unescaped(entry["value"])
        for entry in container["env"]
        # This machine's caches and home stay in use.
        if "value" in entry and not entry["value"].startswith(tuple(places))
    }
    if hub:
        # A claim's base needs no hub, this machine's does.
        variables.pop("HF_HUB_OFFLINE", None)
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
        command = [local(unescaped(arg), places) for arg in init["command"]]
        fetch([contract["base"] if arg.startswith(f"{BASES}/") else arg for arg in command])

    command = [*executable(), *args, "--host", "127.0.0.1", "--port", str(port)]
    say(f"Starting vLLM, which takes a minute; its log is {folder / LOG}")
    with (folder / LOG).open("w") as log:
        # In a separate session Ctrl-C reaches only this process, which stops all of the server's.
        process = subprocess.Popen(
            command,
            env={**os.environ, **variables},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    guard = guarded(process)
    # Before it is ready nobody waits for an answer, and vLLM does not always heed SIGTERM.
    grace = 3
    served = value_of(args, "--served-model-name")
    try:
        server = Running(
            url=f"http://127.0.0.1:{port}",
            base="" if merged else served,
            adapter=served if merged else json.loads(value_of(args, "--lora-modules"))["name"],
            uri=objects["Deployment"]["metadata"]["annotations"]["loraline/registered-version"],
            contract=contract,
            folder=folder,
            process=process,
        )
        probe = container["startupProbe"]
        wait_until_ready(server, probe["periodSeconds"] * probe["failureThreshold"], say)
        grace = pod["terminationGracePeriodSeconds"]
        yield server
    finally:
        stop(process, grace, guard)


def read(manifest: Path) -> dict[str, Object]:
    """The manifest's objects by kind."""
    import yaml

    try:
        entries = [entry for entry in yaml.safe_load_all(manifest.read_text()) if entry]
        # The adapter comes first; a server of tasks may follow.
        objects = {entry.get("kind"): entry for entry in reversed(entries)}
    except (yaml.YAMLError, AttributeError, TypeError, UnicodeDecodeError) as error:
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


def contract_of(objects: Mapping[str, Object]) -> dict[str, Any]:
    """The adapter's contract in a manifest's objects; UserError where there is none."""
    try:
        contract: dict[str, Any] = json.loads(objects["ConfigMap"]["data"]["contract.json"])
    except (LookupError, TypeError, ValueError) as error:
        raise UserError(
            "the manifest is not one of deploy_vllm: its ConfigMap has no contract.json"
        ) from error
    return contract


def exit_in_words(code: int) -> str:
    """How a process ended, in words, by its exit code."""
    if code < 0:
        return f"was ended by {signal.Signals(-code).name}"
    return f"ended with exit code {code}"


def check_port(port: int, option: str = "--port") -> None:
    """Raise a UserError that names the option if the port cannot be bound."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except (OSError, OverflowError) as error:
            raise UserError(
                f"port {port} of 127.0.0.1 cannot be used ({error}); choose another with {option} "
                f"(with make, {option.removeprefix('--').replace('-', '_').upper()}=)"
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
        fields = json.loads(arg)
        return json.dumps(
            {key: local(v, places) if isinstance(v, str) else v for key, v in fields.items()}
        )
    for mount, folder in places.items():
        if arg == mount or arg.startswith(f"{mount}/"):
            return str(folder) + arg.removeprefix(mount)
    return arg


def unescaped(arg: str) -> str:
    """An argument without variables, as Kubernetes passes it on."""
    return arg.replace("$$", "$")


def has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def value_of(args: list[str], flag: str) -> str:
    return args[args.index(flag) + 1]


def fetch(command: list[str]) -> None:
    """Run the init container's command in this Python, with this environment's MLflow."""
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
    program = str(beside) if beside.is_file() else shutil.which("vllm")
    if program is None:
        raise UserError(versions.NOT_INSTALLED)
    return [program, "serve"]


STAGES = {
    "Resolved architecture": "vLLM is imported",
    "LLM engine": "the engine starts",
    "Starting to load model": "the base is loaded",
    "KV cache size": "the cache is made",
    "Loaded new LoRA adapter": "the adapter is loaded",
}
"""What vLLM writes into its log on the way, and what it means."""


def wait_until_ready(server: Running, seconds: float, say: Say) -> None:
    """Return when the adapter is served; UserError if the server ended or took too long.

    Each stage is printed when the log reaches it.
    """
    started = time.monotonic()
    reported = set[str]()
    while (waited := time.monotonic() - started) < seconds:
        if server.process.poll() is not None:
            raise UserError(server.death())
        log = server.log.read_text(errors="replace")
        for written in [each for each in STAGES if each in log and each not in reported]:
            say(f"  {waited:3.0f} s  {STAGES[written]}")
            reported.add(written)
        if answers(server):
            return
        time.sleep(0.3)
    raise UserError(f"vLLM was not ready after {seconds:.0f} s (log: {server.log})")


def answers(server: Running) -> bool:
    """Whether the server is healthy and lists the adapter."""
    client = Server(server.url, seconds=5)
    try:
        client.check_health()
        return server.adapter in client.models()
    except (UserError, TryAgain):
        # Whatever answers here is not ready; the server's process is checked separately.
        return False


def api_key() -> str:
    return os.environ.get("VLLM_API_KEY", "")


def cause(log: Path) -> str:
    """The first error of a log: later errors follow from it."""
    lines = log.read_text(errors="replace").splitlines()
    for line in lines:
        match = re.search(r"(?:^|\s)(?:[\w.]*(?:Error|Exception)|vllm serve: error): (.+)", line)
        if match:
            return match.group(0).strip()
    return next((line.strip() for line in reversed(lines) if line.strip()), "it wrote nothing")


GUARD = """
cat > /dev/null
kill -TERM "-$1" || exit
for second in 1 2 3 4 5 6 7 8 9 10; do
    sleep 1
    kill -0 "-$1" || exit
done
kill -KILL "-$1"
"""
"""Shell commands that end a group of processes at the end of the standard input."""


def guarded(process: subprocess.Popen[bytes]) -> subprocess.Popen[bytes]:
    """A guard that ends a server, the first process of its group, when this process is killed.

    The guard's standard input is a pipe that ends with this process, whatever ends it.
    """
    return subprocess.Popen(
        ["/bin/sh", "-c", GUARD, "guard", str(process.pid)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def stop(process: subprocess.Popen[bytes], seconds: float, guard: subprocess.Popen[bytes]) -> None:
    """Stop the server with SIGTERM, and kill what is left of it after `seconds`; then its guard."""
    process.terminate()
    try:
        with suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        guard.kill()
        guard.communicate()
