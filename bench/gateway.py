"""What the gateway adds to vLLM: to a chunk, to a first token, to an upload, in time and memory.

Direct and through the gateway in one run, before a stub that streams 25 tokens a second a stream,
and LiteLLM's proxy beside both with --litellm; where there are several they take turns. Keys,
metrics and audit lines are on.

python bench/gateway.py --only chunks --only first-token
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import random
import re
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import click

# Last: this file is called as the package of the gateway is.
sys.path.append(str(Path(__file__).parent))

from gateway_arms import RATE, Arms, arms, cpu, facts, memory, sockets

IDLE_S = 75
"""Seconds after which the gateway has closed connections that nobody uses: it looks every 30 s for
those that were idle for 30 s."""

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
    for line in facts(litellm):
        click.echo(line)
    with tempfile.TemporaryDirectory() as folder, arms(Path(folder), litellm) as places:
        for part in only or PARTS:
            click.echo(f"\n{part}")
            asyncio.run(RUNS[part](places, seconds, requests))


def session(places: Arms, *, force_close: bool = False) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, force_close=force_close),
        headers={"Authorization": f"Bearer {places.key}"},
        timeout=aiohttp.ClientTimeout(total=120),
    )


def chat(**more: Any) -> dict[str, Any]:
    return {"model": "base", "messages": [{"role": "user", "content": "Hello"}], **more}


STAMP = re.compile(rb'"content": ?" ?(\d+\.\d+)"')
"""A token of the stub: the time at which it was written, on the clock that all processes share."""


async def stream(
    client: aiohttp.ClientSession, url: str, seconds: float, delays: list[float], **more: Any
) -> float:
    """Read one stream for so long; seconds to its first token. Each chunk tells its own delay."""
    began = time.perf_counter()
    first = 0.0
    body = chat(stream=True, **more)
    async with client.post(url + "/v1/chat/completions", json=body) as answer:
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


def show_percentiles(by_arm: dict[str, list[float]], unit: str) -> None:
    """A line an arm; times in milliseconds."""
    for name, values in by_arm.items():
        click.echo(
            f"  {name:10} p50 {percentile(values, 0.5):7.2f} ms   p99 "
            f"{percentile(values, 0.99):7.2f} ms   {len(values)} {unit}"
        )


async def streams(
    places: Arms, url: str, count: int, seconds: float
) -> tuple[list[float], list[float]]:
    """Delays of all chunks and times to first tokens, in milliseconds, of so many streams."""
    delays: list[float] = []
    async with session(places) as client:

        async def delayed_stream(at: int) -> float:
            await asyncio.sleep(at / RATE / count)
            return await stream(client, url, seconds, delays)

        firsts = await asyncio.gather(*(delayed_stream(at) for at in range(count)))
    return [1000 * each for each in delays], [1000 * each for each in firsts]


async def chunks(places: Arms, seconds: float, __: int) -> None:
    """Delay that is added to chunks at 64 streams; the arms take turns, for 3 s each."""
    by_arm: dict[str, list[float]] = {name: [] for name in places}
    used = 0.0
    for turn in range(1 + max(1, round(seconds / 3))):
        for name, url in places.items():
            before = cpu(places.pid)
            delays, _ = await streams(places, url, 64, 3)
            if turn:
                by_arm[name] += delays
                used += cpu(places.pid) - before if name == "gateway" else 0
    click.echo(f"  {1e6 * used / len(by_arm['gateway']):.0f} us of a processor for a chunk")
    show_percentiles(by_arm, "chunks")
    for name in [name for name in by_arm if name != "direct"]:
        for share, bar in ((0.5, 0.5), (0.99, 6)):
            value = percentile(by_arm[name], share) - percentile(by_arm["direct"], share)
            title = f"{name}: added to a chunk, 64 streams, p{100 * share:g}, ms"
            click.echo(Bar(title, most=bar).line(value))


async def first_token(places: Arms, seconds: float, __: int) -> None:
    """Time that is added to the first token at 32 streams that begin within 40 ms, and beside 32
    that run; arms take turns."""
    by_arm: dict[str, list[float]] = {name: [] for name in places}
    for _round in range(max(3, int(seconds))):
        for name, url in places.items():
            by_arm[name] += (await streams(places, url, 32, 0.3))[1]
    first_tokens_added(by_arm, "32 streams")
    by_arm = {name: [] for name in places}
    for _round in range(max(1, round(seconds / 3))):
        for name, url in places.items():
            by_arm[name] += await beside_others(places, url, 32)
    first_tokens_added(by_arm, "beside 32 streams")


async def beside_others(places: Arms, url: str, count: int) -> list[float]:
    """Times to first tokens, in milliseconds, where so many streams run and a new one begins on a
    new connection whenever one has ended after a second."""
    firsts: list[float] = []
    async with session(places, force_close=True) as client:

        async def ask_again_and_again(at: int) -> None:
            await asyncio.sleep(at / count)
            await stream(client, url, 60, [], max_tokens=RATE)
            for _ in range(3):
                firsts.append(await stream(client, url, 60, [], max_tokens=RATE))

        await asyncio.gather(*(ask_again_and_again(at) for at in range(count)))
    return [1000 * each for each in firsts]


def first_tokens_added(by_arm: dict[str, list[float]], where: str) -> None:
    show_percentiles(by_arm, "streams")
    for name in [name for name in by_arm if name != "direct"]:
        value = percentile(by_arm[name], 0.5) - percentile(by_arm["direct"], 0.5)
        click.echo(Bar(f"{name}: added to the first token, {where}, p50, ms", most=3).line(value))


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
    uploaded = 0
    async with session(places) as client:
        deadline = time.perf_counter() + seconds

        async def upload() -> None:
            nonlocal uploaded
            while time.perf_counter() < deadline:
                form = aiohttp.FormData({"max_tokens": "1"})
                form.add_field("files", content, filename="x.jpg")
                async with client.post(places["gateway"] + "/predict", data=form) as answer:
                    if answer.status != 200:
                        raise click.ClickException(await answer.text())
                    await answer.read()
                uploaded += 1

        began, before = time.perf_counter(), cpu(places.pid)
        await asyncio.gather(*(upload() for _ in range(16)))
        took, used = time.perf_counter() - began, cpu(places.pid) - before
    click.echo(f"  {len(content):,} bytes an image, {uploaded} images in {took:.1f} s")
    click.echo(f"  {1000 * used / uploaded:.1f} ms of a processor for an image")
    click.echo(Bar("one-megabyte images a second through /predict", least=60).line(uploaded / took))


async def video(places: Arms, _: float, __: int) -> None:
    """Memory while a file of 100 MB comes in; it is no video, so that nothing is decoded."""
    async with session(places) as client:
        await upload_video(client, places, 2**20)
        before = memory(places.pid)
        peak = before
        uploading = asyncio.ensure_future(upload_video(client, places, 99 * 2**20))
        while not uploading.done():
            peak = max(peak, memory(places.pid))
            await asyncio.sleep(0.002)
        await uploading
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
    sent_count = 0

    async with session(places) as client:

        async def send_one() -> None:
            route = random.choice(("chat", "stream", "predict"))
            if route == "predict":
                form = aiohttp.FormData({"max_tokens": "1", "stream": "true"})
                form.add_field("files", content, filename="x.jpg")
                sent: dict[str, Any] = {"data": form}
                url = places["gateway"] + "/predict"
            else:
                sent = {"json": chat(stream=route == "stream", max_tokens=2)}
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
            nonlocal sent_count
            while sent_count < requests:
                sent_count += 1
                if sent_count % max(1, requests // 20) == 0:
                    marks.append(memory(places.pid))
                timeout = 0.05 if random.random() < 0.1 else 30
                with contextlib.suppress(asyncio.TimeoutError):
                    async with asyncio.timeout(timeout):
                        await send_one()

        began = time.perf_counter()
        await asyncio.gather(*(worker() for _ in range(64)))
        took = time.perf_counter() - began
    idle = time.perf_counter() + IDLE_S
    while (open_sockets := sockets(places)) and time.perf_counter() < idle:
        await asyncio.sleep(0.5)
    click.echo(
        f"  {requests} requests in {took:.0f} s; memory {marks[0]:.0f} to {marks[-1]:.0f} MB"
    )
    click.echo(f"  {', '.join(f'{mark:.0f}' for mark in marks)} MB on the way")
    growth = slope(marks[len(marks) // 4 :]) * 20_000 / requests
    click.echo(Bar("growth of memory a thousand requests, MB", most=1).line(growth))
    files = sum(1 for path in (places.data / "uploads").iterdir())
    click.echo(Bar("files that are left", most=0).line(files))
    click.echo(Bar(f"sockets that are open at most {IDLE_S} s later", most=0).line(open_sockets))


def slope(values: list[float]) -> float:
    """Least-squares growth of a value from one place to the next."""
    middle = (len(values) - 1) / 2
    mean = sum(values) / len(values)
    spread = sum((at - middle) ** 2 for at in range(len(values)))
    return sum((at - middle) * (value - mean) for at, value in enumerate(values)) / spread


RUNS: dict[str, Callable[[Arms, float, int], Coroutine[Any, Any, None]]] = {
    "chunks": chunks,
    "first-token": first_token,
    "images": images,
    "video": video,
    "soak": soak,
}

if __name__ == "__main__":
    gateway()
