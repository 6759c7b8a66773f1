"""Server-sent events: complete ones are passed on unchanged, incomplete ones wait for the rest."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import aclosing
from typing import Any, TypeVar

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from gateway import errors, logs
from gateway.errors import ClientGone, Problem
from gateway.exchange import Exchange

T = TypeVar("T")

QUIET_S = 15
"""Seconds after which a comment keeps proxies from closing a silent stream."""

MAX_EVENT = 4 * 2**20
"""Bytes of one event; a model's token is some hundred."""

NO_CHOICES = b'"choices":[]'
"""In the event that only says what was used (vLLM and OpenAI write JSON without spaces)."""

END = b"data: [DONE]"
ERROR = b'"error"'
"""In events that say that a server failed. In a model's words, the quotes are escaped."""

BETWEEN = re.compile(rb"(?<=\n\n)|(?<=\n\r\n)")
FINISH = re.compile(rb'"finish_reason": ?"')

HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


class EventBuffer:
    """Cuts a stream of bytes at the ends of events."""

    def __init__(self) -> None:
        self.rest = b""

    def feed(self, data: bytes) -> bytes:
        """The events that are complete by now, unchanged; empty while there is none."""
        if self.rest:
            data = self.rest + data
            self.rest = b""
        if data.endswith(b"\n\n"):
            return data
        end = data.rfind(b"\n\n") + 2
        if end < 2:
            end = data.rfind(b"\r\n\r\n") + 4
            end = end if end >= 4 else 0
        self.rest = data[end:]
        if len(self.rest) > MAX_EVENT:
            raise garbage()
        return data[:end]


def apart(events: bytes) -> list[bytes]:
    """The events one by one where one of them may be the end or an error, else all together."""
    if END not in events and ERROR not in events:
        return [events]
    return [event for event in BETWEEN.split(events) if event]


def error_of(event: bytes) -> tuple[int, str] | None:
    """Status and words of an event by which vLLM says that it failed after it sent status 200."""
    chunk = data_of(event) if ERROR in event else None
    if chunk is None:
        return None
    error = chunk if chunk.get("object") == "error" else chunk.get("error")
    if not error:
        return None
    fields = error if isinstance(error, dict) else {"message": error}
    code = fields.get("code")
    status = code if isinstance(code, int) and 400 <= code < 600 else 500
    return status, str(fields.get("message"))


def without_usage(events: bytes) -> tuple[bytes, Any]:
    """The events without the usage event, and its usage."""
    kept, usage = [], None
    for event in events.split(b"\n\n"):
        if NO_CHOICES in event:
            usage = (data_of(event) or {}).get("usage")
        elif event.strip():
            kept.append(event + b"\n\n")
    return b"".join(kept), usage


def data_of(event: bytes) -> dict[str, Any] | None:
    """The object of an event; None for a comment or the end. Problem for anything else."""
    lines = [line[5:].strip() for line in event.splitlines() if line.startswith(b"data:")]
    text = b"\n".join(lines)
    if not text:
        if event.strip() and not event.lstrip().startswith(b":"):
            raise garbage()
        return None
    if text == b"[DONE]":
        return None
    try:
        chunk = orjson.loads(text)
    except ValueError:
        raise garbage() from None
    if not isinstance(chunk, dict):
        raise garbage()
    return chunk


def event(name: str, data: Any) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (name.encode(), orjson.dumps(data))


def garbage() -> Problem:
    return Problem(502, "upstream_garbage", "The model's server answers in an unknown form.")


async def client_left(receive: Receive) -> None:
    """Return when the client has left."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def unless_client_leaves(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """What `work` returns; ClientGone, and the work cancelled, if the client leaves first."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(client_left(request.receive))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientGone
    finally:
        await end(leaving, working)


async def end(*tasks: asyncio.Future[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


class Stream(Response):
    """Sends events as they are made. An error before the first event is a plain problem; a later
    error is an event. A stream never ends silently."""

    def __init__(
        self,
        events: AsyncGenerator[bytes, None],
        exchange: Exchange,
        failed: Callable[[Problem], bytes],
    ) -> None:
        # No super().__init__: there is no body yet.
        self.events = events
        self.exchange = exchange
        self.failed = failed
        self.background = None
        self.status_code = 200
        self.last = 0.0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        loop = asyncio.get_running_loop()
        sending = loop.create_task(self.send_all(send))
        watching = loop.create_task(self.watch(receive, send))
        try:
            await asyncio.wait({sending, watching}, return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                sending.result()
            else:
                raise ClientGone
        finally:
            await end(watching, sending)

    async def send_all(self, send: Send) -> None:
        clock = asyncio.get_running_loop().time
        started = False
        async with aclosing(self.events) as events:
            try:
                async for data in events:
                    if not started:
                        started = True
                        self.exchange.streamed = True
                        await send(
                            {"type": "http.response.start", "status": 200, "headers": HEADERS[:]}
                        )
                    self.last = clock()
                    await send({"type": "http.response.body", "body": data, "more_body": True})
            except Exception as error:
                if not started:
                    raise
                problem = errors.of(error)
                if problem.status == 500:
                    logs.log.error("failed", exc_info=error, extra={"request_id": self.exchange.id})
                self.exchange.code = problem.code
                await send(
                    {
                        "type": "http.response.body",
                        "body": self.failed(problem),
                        "more_body": True,
                    }
                )
        if not started:
            raise garbage()
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def watch(self, receive: Receive, send: Send) -> None:
        """Return when the client has left; until then, break the silence of a slow model."""
        clock = asyncio.get_running_loop().time
        while True:
            try:
                async with asyncio.timeout(QUIET_S):
                    await client_left(receive)
                return
            except TimeoutError:
                if self.last and clock() - self.last > QUIET_S:
                    await send(
                        {"type": "http.response.body", "body": b": waiting\n\n", "more_body": True}
                    )
