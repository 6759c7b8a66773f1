"""The processes that bench/gateway.py measures: a stub of vLLM, the gateway, LiteLLM's proxy."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click

ROOT = Path(__file__).parents[1]
RATE = 25
"""Tokens a second of each stream."""

KEY_NAME = "bench"
LIBRARIES = ("fastapi", "uvicorn", "uvloop", "httptools", "aiohttp", "pillow")


class Arms(dict[str, str]):
    """Addresses by arm: direct, gateway, and litellm where it is there."""

    key = ""
    pid = 0
    data = Path()


@contextlib.contextmanager
def arms(folder: Path, litellm: Path | None) -> Iterator[Arms]:
    """The stub, the gateway before it and the proxy beside it, each a process."""
    key, entry = new_key()
    limits = {"rate": "1000000/second", "tokens_per_minute": 10**9, "streams": 10_000}
    (folder / "keys.json").write_text(json.dumps([entry | limits]))
    contract = json.loads(CONTRACT)
    (folder / "contract.json").write_text(json.dumps(contract))
    stub, gateway_port, proxy = (free_port() for _ in range(3))
    upstream = {"url": f"http://127.0.0.1:{stub}", "contract": str(folder / "contract.json")}
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        "GATEWAY_UPSTREAMS": json.dumps([upstream]),
        "GATEWAY_PORT": str(gateway_port),
        "GATEWAY_API_KEYS_FILE": str(folder / "keys.json"),
        "GATEWAY_DATA_DIR": str(folder / "data"),
        "GATEWAY_AUDIT_FILE": str(folder / "audit.jsonl"),
        "GATEWAY_MAX_RUNNING": "1024",
    }
    commands = {
        "direct": [str(ROOT / "tests/gateway/stub.py"), str(stub), str(RATE), "100"],
        "gateway": ["-m", "gateway", "serve"],
    }
    ports = {"direct": stub, "gateway": gateway_port}
    if litellm:
        (folder / "litellm.json").write_text(json.dumps(proxied(stub, key)))
        commands["litellm"] = [str(litellm), "--config", str(folder / "litellm.json")]
        commands["litellm"] += ["--host", "127.0.0.1", "--port", str(proxy)]
        ports["litellm"] = proxy
    arms = Arms()
    arms.key, arms.data = key, folder / "data"
    running = []
    try:
        for name, command in commands.items():
            log = (folder / f"{name}.log").open("w")
            program = [] if name == "litellm" else [sys.executable]
            process = subprocess.Popen(
                [*program, *command],
                env=os.environ if name == "litellm" else environment,
                stdout=log,
                stderr=log,
            )
            running.append(process)
            if name == "gateway":
                arms.pid = process.pid
            wait_for(ports[name], process, folder / f"{name}.log")
            arms[name] = f"http://127.0.0.1:{ports[name]}"
        yield arms
    finally:
        for process in running:
            process.terminate()
        for process in running:
            process.wait(40)


def facts(litellm: Path | None) -> Iterator[str]:
    """What a number needs to be compared: when, on what, with which versions and command."""
    cpus = Path("/proc/cpuinfo").read_text()
    name = cpus.partition("model name")[2].partition("\n")[0].strip("\t :") or platform.machine()
    yield f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, python {' '.join(sys.argv)}"
    usable = len(os.sched_getaffinity(0))
    load = os.getloadavg()[0]
    yield f"{name}, {usable} processors; load before the run {load:.1f}"
    versions = [f"Python {platform.python_version()}"]
    versions += [f"{library} {version(library)}" for library in LIBRARIES]
    if litellm:
        command = [litellm.with_name("python"), "-c", VERSION]
        versions.append(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    yield ", ".join(versions).strip()


VERSION = "from importlib.metadata import version; print('LiteLLM', version('litellm'))"


def new_key() -> tuple[str, dict[str, Any]]:
    """A key and its entry. This file is called as the package is, and cannot import it."""
    command = [sys.executable, "-m", "gateway", "new-key", KEY_NAME]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    key, entry = (line.partition(": ")[2] for line in printed.splitlines())
    return key, json.loads(entry)


def proxied(port: int, key: str) -> dict[str, Any]:
    """LiteLLM's settings: one model, the same key, no log."""
    parameters = {
        "model": "openai/base",
        "api_base": f"http://127.0.0.1:{port}/v1",
        "api_key": "none",
    }
    return {
        "model_list": [{"model_name": "base", "litellm_params": parameters}],
        "general_settings": {"master_key": key},
    }


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_for(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise click.ClickException(log.read_text()[-2000:])
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.1)
    raise click.ClickException(f"nothing listens on port {port}")


def cpu(pid: int) -> float:
    """Seconds of a processor that a process has used; they say the same on a busy machine."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory(pid: int) -> float:
    """Resident memory of a process in MB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise click.ClickException(f"process {pid} has ended")


def sockets(places: Arms) -> int:
    """Connections of the gateway in any state, to clients and to the stub; not where it listens."""
    inodes = set()
    for path in Path(f"/proc/{places.pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            inodes.add(os.readlink(path))
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(fields[3] != LISTENING and f"socket:[{fields[9]}]" in inodes for fields in lines)


LISTENING = "0A"
"""State of a socket in /proc/net/tcp."""

CONTRACT = """{
  "base": "base", "base_revision": "0000000000000000000000000000000000000000",
  "modality": "vision", "architecture": "Qwen3VLForConditionalGeneration",
  "prompt": "Write the formula as LaTeX.", "chat_template": "-",
  "min_pixels": 4704, "max_pixels": 1003520, "max_length": 256, "max_new_tokens": 64,
  "dtype": "bfloat16", "r": 16, "lora_alpha": 32, "target_modules": ["q_proj"],
  "trains_vision": false, "adapter_sha256": "-"
}"""
