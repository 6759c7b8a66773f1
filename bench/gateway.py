"""What the gateway adds to vLLM: to a chunk, to a first token, to an upload, in time and memory.

Direct and through the gateway in one run, before a stub that streams 25 tokens a second a stream,
and LiteLLM's proxy beside both with --litellm. Keys, metrics and audit lines are on.

python bench/gateway.py --only chunks --only first-token

One script, since a bench is read and run alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import random
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import click

ROOT = Path(__file__).parents[1]
RATE = 25
"""Tokens a second of each stream."""

KEY_NAME = "bench"
PARTS = ("chunks", "first-token", "images", "video", "soak")


@dataclass(frozen=True)
class Bar:
    """A number to hold: `most` or `least`, whichever is set."""

    name: str
    most: float | None = None
    least: float | None = None

    def line(self, value: float) -> str:
        limit = f"<= {self.most:g}" if self.most is not None else f">= {self.least:g}"
        holds = value <= self.most if self.most is not None else value >= (self.least or 0)
        return f"{self.name:55} {value:10.2f}   {limit:>9}   {'holds' if holds else 'MISSED'}"


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--only", type=click.Choice(PARTS), multiple=True, help="Parts to run.")
@click.option("--seconds", default=10.0, show_default=True, help="Length of each streaming part.")
@click.option(
    "--litellm",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="LiteLLM's program, in an environment of its own; its proxy is measured beside.",
)
@click.option("--requests", default=20_000, show_default=True, help="Requests of the soak.")
def gateway(only: tuple[str, ...], seconds: float, requests: int, litellm: Path | None) -> None:
    """Measure the gateway against its bars on this machine."""
    with tempfile.TemporaryDirectory() as folder, arms(Path(folder), litellm) as places:
        for part in only or PARTS:
            click.echo(f"\n{part}")
            asyncio.run(RUNS[part](places, seconds, requests))


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
    stub, door, proxy = (free_port() for _ in range(3))
    upstream = {"url": f"http://127.0.0.1:{stub}", "contract": str(folder / "contract.json")}
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        "GATEWAY_UPSTREAMS": json.dumps([upstream]),
        "GATEWAY_PORT": str(door),
        "GATEWAY_API_KEYS_FILE": str(folder / "keys.json"),
        "GATEWAY_DATA_DIR": str(folder / "data"),
        "GATEWAY_AUDIT_FILE": str(folder / "audit.jsonl"),
        "GATEWAY_MAX_RUNNING": "1024",
    }
    commands = {
        "direct": [str(ROOT / "tests/gateway/stub.py"), str(stub), str(RATE), "100"],
        "gateway": ["-m", "gateway", "serve"],
    }
    ports = {"direct": stub, "gateway": door}
    if litellm:
        (folder / "litellm.json").write_text(json.dumps(proxied(stub, key)))
        commands["litellm"] = [str(litellm), "--config", str(folder / "litellm.json")]
        commands["litellm"] += ["--host", "127.0.0.1", "--port", str(proxy)]
        ports["litellm"] = proxy
    found = Arms()
    found.key, found.data = key, folder / "data"
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
                found.pid = process.pid
            wait_for(ports[name], process, folder / f"{name}.log")
            found[name] = f"http://127.0.0.1:{ports[name]}"
        yield found
    finally:
        for process in running:
            process.terminate()
        for process in running:
            process.wait(40)


def new_key() -> tuple[str, dict[str, Any]]:
    """A key and its entry. This file is called as the package is, and cannot import it."""
    command = [sys.executable, "-m", "gateway", "new-key", KEY_NAME]
    made = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    key, entry = (line.partition(": ")[2] for line in made.splitlines())
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


def session(places: Arms) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0),
        headers={"Authorization": f"Bearer {places.key}"},
        timeout=aiohttp.ClientTimeout(total=120),
    )


def chat(**more: Any) -> dict[str, Any]:
    return {"model": "base", "messages": [{"role": "user", "content": "Hello"}], **more}


STAMP = re.compile(rb'"content": ?" ?(\d+\.\d+)"')
"""A token of the stub: the time at which it was written, on the clock that all processes share."""


async def stream(
    client: aiohttp.ClientSession, url: str, seconds: float, delays: list[float]
) -> float:
    """Read one stream for so long; seconds to its first token. Each chunk tells its own delay."""
    began = time.perf_counter()
    first = 0.0
    async with client.post(url + "/v1/chat/completions", json=chat(stream=True)) as answer:
        if answer.status != 200:
            raise click.ClickException(f"{url} answers {answer.status}: {await answer.text()}")
        async for data in answer.content.iter_any():
            now = time.perf_counter()
            stamps = STAMP.findall(data)
            if not stamps:
                continue
            first = first or now - began
            delays += [now - float(stamp) for stamp in stamps]
            if now - began > seconds:
                break
    return first


def percentile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


async def streams(
    places: Arms, url: str, count: int, seconds: float
) -> tuple[list[float], list[float]]:
    """Delays of all chunks and times to first tokens, in milliseconds, of so many streams."""
    delays: list[float] = []
    async with session(places) as client:

        async def one(at: int) -> float:
            await asyncio.sleep(at / RATE / count)
            return await stream(client, url, seconds, delays)

        firsts = await asyncio.gather(*(one(at) for at in range(count)))
    return [1000 * each for each in delays], [1000 * each for each in firsts]


async def chunks(places: Arms, seconds: float, __: int) -> None:
    """Delay that is added to chunks at 64 streams; the arms take turns, for 3 s each."""
    found: dict[str, list[float]] = {name: [] for name in places}
    used = 0.0
    for turn in range(1 + max(1, round(seconds / 3))):
        for name, url in places.items():
            before = cpu(places.pid)
            delays, _ = await streams(places, url, 64, 3)
            if turn:
                found[name] += delays
                used += cpu(places.pid) - before if name == "gateway" else 0
    click.echo(f"  {1e6 * used / len(found['gateway']):.0f} us of a processor for a chunk")
    for name, values in found.items():
        click.echo(
            f"  {name:10} p50 {percentile(values, 0.5):7.2f} ms   p99 "
            f"{percentile(values, 0.99):7.2f} ms   {len(values)} chunks"
        )
    for name in [name for name in found if name != "direct"]:
        for share, bar in ((0.5, 0.5), (0.99, 6)):
            value = percentile(found[name], share) - percentile(found["direct"], share)
            title = f"{name}: added to a chunk, 64 streams, p{100 * share:g}, ms"
            click.echo(Bar(title, most=bar).line(value))


async def first_token(places: Arms, seconds: float, __: int) -> None:
    """Time that is added to the first token at 32 streams; arms take turns."""
    found: dict[str, list[float]] = {name: [] for name in places}
    for _round in range(max(3, int(seconds))):
        for name, url in places.items():
            found[name] += (await streams(places, url, 32, 0.3))[1]
    for name, values in found.items():
        click.echo(
            f"  {name:10} p50 {percentile(values, 0.5):7.2f} ms   p99 "
            f"{percentile(values, 0.99):7.2f} ms   {len(values)} streams"
        )
    for name in [name for name in found if name != "direct"]:
        value = percentile(found[name], 0.5) - percentile(found["direct"], 0.5)
        click.echo(
            Bar(f"{name}: added to the first token, 32 streams, p50, ms", most=3).line(value)
        )


def photo(size: int) -> bytes:
    """A JPEG of about so many bytes, with the grain of a photograph."""
    from PIL import Image, ImageFilter

    edge = 640
    while True:
        image = Image.effect_noise((edge * 4 // 3, edge), 60).convert("RGB")
        file = io.BytesIO()
        image.filter(ImageFilter.GaussianBlur(0.6)).save(file, "JPEG", quality=88)
        if file.tell() >= size:
            return file.getvalue()
        edge = int(edge * 1.1)


async def images(places: Arms, seconds: float, _: int) -> None:
    """Images a second through /predict, sixteen at a time; answers are one token."""
    content = photo(10**6)
    done = 0
    async with session(places) as client:
        deadline = time.perf_counter() + seconds

        async def upload() -> None:
            nonlocal done
            while time.perf_counter() < deadline:
                form = aiohttp.FormData({"max_tokens": "1"})
                form.add_field("files", content, filename="x.jpg")
                async with client.post(places["gateway"] + "/predict", data=form) as answer:
                    if answer.status != 200:
                        raise click.ClickException(await answer.text())
                    await answer.read()
                done += 1

        began, before = time.perf_counter(), cpu(places.pid)
        await asyncio.gather(*(upload() for _ in range(16)))
        took, used = time.perf_counter() - began, cpu(places.pid) - before
    click.echo(f"  {len(content):,} bytes an image, {done} images in {took:.1f} s")
    click.echo(f"  {1000 * used / done:.1f} ms of a processor for an image")
    click.echo(Bar("one-megabyte images a second through /predict", least=60).line(done / took))


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


async def video(places: Arms, _: float, __: int) -> None:
    """Memory while a file of 100 MB comes in; it is no video, so that nothing is decoded."""
    async with session(places) as client:
        await upload_video(client, places, 2**20)
        before = memory(places.pid)
        peak = before
        ended = asyncio.ensure_future(upload_video(client, places, 99 * 2**20))
        while not ended.done():
            peak = max(peak, memory(places.pid))
            await asyncio.sleep(0.002)
        await ended
    click.echo(
        Bar("memory that a 100 MB video adds while it uploads, MB", most=40).line(peak - before)
    )


async def upload_video(client: aiohttp.ClientSession, places: Arms, size: int) -> None:
    async def pieces() -> Any:
        yield b"\0\0\0\x18ftypisom"
        for _ in range(size // 2**16):
            yield b"\0" * 2**16
            await asyncio.sleep(0)

    form = aiohttp.FormData({"model": "base"})
    form.add_field("files", pieces(), filename="x.mp4")
    url = places["gateway"] + "/tasks/video-events"
    async with client.post(url, data=form) as answer:
        if answer.status != 422:
            raise click.ClickException(f"{answer.status}: {await answer.text()}")


async def soak(places: Arms, _: float, requests: int) -> None:
    """Requests of all kinds, a quarter of them left; then memory, files and sockets."""
    content = photo(30_000)
    random.seed(1)
    marks: list[float] = []
    done = 0

    async with session(places) as client:

        async def one() -> None:
            kind = random.choice(("chat", "stream", "predict"))
            if kind == "predict":
                form = aiohttp.FormData({"max_tokens": "1", "stream": "true"})
                form.add_field("files", content, filename="x.jpg")
                sent: dict[str, Any] = {"data": form}
                url = places["gateway"] + "/predict"
            else:
                sent = {"json": chat(stream=kind == "stream", max_tokens=2)}
                url = places["gateway"] + "/v1/chat/completions"
            leaves = random.random() < 0.25
            async with client.post(url, **sent) as answer:
                if leaves:
                    answer.close()
                    return
                if answer.status != 200:
                    raise click.ClickException(await answer.text())
                await answer.read()

        async def worker() -> None:
            nonlocal done
            while done < requests:
                done += 1
                if done % max(1, requests // 20) == 0:
                    marks.append(memory(places.pid))
                timeout = 0.05 if random.random() < 0.1 else 30
                with contextlib.suppress(asyncio.TimeoutError):
                    async with asyncio.timeout(timeout):
                        await one()

        began = time.perf_counter()
        await asyncio.gather(*(worker() for _ in range(64)))
        took = time.perf_counter() - began
    await asyncio.sleep(2)
    click.echo(
        f"  {requests} requests in {took:.0f} s; memory {marks[0]:.0f} to {marks[-1]:.0f} MB"
    )
    click.echo(f"  {', '.join(f'{mark:.0f}' for mark in marks)} MB on the way")
    growth = slope(marks[len(marks) // 4 :]) * 20_000 / requests
    click.echo(Bar("growth of memory a thousand requests, MB", most=1).line(growth))
    files = sum(1 for path in (places.data / "uploads").iterdir())
    click.echo(Bar("files that are left", most=0).line(files))
    click.echo(Bar("sockets to the server that are open", most=64).line(sockets(places)))


def slope(values: list[float]) -> float:
    """Least-squares growth of a value from one place to the next."""
    middle = (len(values) - 1) / 2
    mean = sum(values) / len(values)
    spread = sum((at - middle) ** 2 for at in range(len(values)))
    return sum((at - middle) * (value - mean) for at, value in enumerate(values)) / spread


def sockets(places: Arms) -> int:
    """Connections of the gateway that are established towards the stub, those kept for the next
    request included."""
    port = f"{int(places['direct'].rpartition(':')[2]):04X}"
    inodes = {
        os.readlink(path) for path in Path(f"/proc/{places.pid}/fd").iterdir() if path.is_symlink()
    }
    found = 0
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[2].endswith(f":{port}") and f"socket:[{fields[9]}]" in inodes:
            found += 1
    return found


CONTRACT = """{
  "base": "base", "base_revision": "0000000000000000000000000000000000000000",
  "modality": "vision", "architecture": "Qwen3VLForConditionalGeneration",
  "prompt": "Write the formula as LaTeX.", "chat_template": "-",
  "min_pixels": 4704, "max_pixels": 1003520, "max_length": 256, "max_new_tokens": 64,
  "dtype": "bfloat16", "r": 16, "lora_alpha": 32, "target_modules": ["q_proj"],
  "trains_vision": false, "adapter_sha256": "-"
}"""

RUNS: dict[str, Callable[[Arms, float, int], Coroutine[Any, Any, None]]] = {
    "chunks": chunks,
    "first-token": first_token,
    "images": images,
    "video": video,
    "soak": soak,
}

if __name__ == "__main__":
    gateway()
