"""Every request passes here on its way in and out: its ID, its limits, its line in the log."""

from __future__ import annotations

import asyncio
import re
import time

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway import errors, logs
from gateway.errors import ClientGone, Problem
from gateway.exchange import Exchange
from gateway.metrics import Metrics
from gateway.settings import MIB, Settings
from gateway.traces import Tracer

UUID = re.compile(rb"[0-9a-f]{32}|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
"""Request IDs that are taken over from clients: no other text of theirs reaches the logs."""

LEAST_RATE = 1024
"""Least bytes a second of a body that takes longer than the stall's limit."""

SAFE = (
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "no-referrer"),
    ("Cache-Control", "no-store"),
)
CSP = "default-src 'none'; frame-ancestors 'none'"
CLOSED = 499
"""Status in logs and metrics of a request whose client left; nginx's number for it."""


class Intake:
    """ASGI middleware around all routes, in plain calls: it runs for each piece of a stream."""

    def __init__(self, app: ASGIApp, settings: Settings, metrics: Metrics, tracer: Tracer) -> None:
        self.app = app
        self.settings = settings
        self.metrics = metrics
        self.tracer = tracer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        exchange = Exchange(method=scope["method"])
        headers = dict(scope["headers"])
        if UUID.fullmatch(request_id := headers.get(b"x-request-id", b"")):
            exchange.id = request_id.decode()
        scope.setdefault("state", {})["exchange"] = exchange
        answer = sender(send, exchange)
        with self.tracer.request(exchange, headers):
            try:
                bounded = self.receiver(receive, exchange, limit(scope["path"], self.settings))
                check_length(headers, limit(scope["path"], self.settings))
                await self.app(scope, bounded, answer)
            except ClientGone:
                exchange.status = exchange.status or CLOSED
                exchange.code = "client_gone"
            except Exception as error:
                await self.fail(scope, receive, answer, exchange, error)
            except asyncio.CancelledError:
                exchange.code = exchange.code or "cancelled"
                raise
            finally:
                exchange.route = getattr(scope.get("route"), "path", exchange.route)
                exchange.status = exchange.status or CLOSED
                self.metrics.observe(exchange)
                logs.write_audit(exchange)

    async def fail(
        self, scope: Scope, receive: Receive, send: Send, exchange: Exchange, error: Exception
    ) -> None:
        """Answer with the problem behind an exception that no route handled."""
        if isinstance(error, RuntimeError) and exchange.code == "client_gone":
            return
        problem = errors.of(error)
        exchange.code = problem.code
        if problem.status == 500:
            logs.log.error("failed", exc_info=error, extra={"request_id": exchange.id})
        if not exchange.answering:
            openai = scope["path"].startswith("/v1/")
            await problem.response(exchange.id, openai=openai)(scope, receive, send)

    def receiver(self, receive: Receive, exchange: Exchange, most: int) -> Receive:
        """Receive the body within its size limit, from a client that keeps sending."""
        stall = self.settings.client_stall_s
        waited = 0.0
        complete = False

        async def receive_bounded() -> Message:
            nonlocal waited, complete
            if complete:
                return await receive()
            patience = min(stall, stall + exchange.bytes_in / LEAST_RATE - waited)
            began = time.perf_counter()
            try:
                async with asyncio.timeout(max(patience, 0.001)):
                    message = await receive()
            except TimeoutError:
                raise Problem(
                    408,
                    "client_stalled",
                    f"The request was not complete and nothing came for {stall:g} s; send it "
                    "again without a pause.",
                ) from None
            waited += time.perf_counter() - began
            if message["type"] == "http.disconnect":
                exchange.code = "client_gone"
                complete = True
                return message
            exchange.bytes_in += len(message.get("body", b""))
            complete = not message.get("more_body", False)
            if exchange.bytes_in > most:
                raise too_large(most)
            return message

        return receive_bounded


def sender(send: Send, exchange: Exchange) -> Send:
    """Count what is sent, and give each answer its ID and the browsers' security headers."""

    async def answer(message: Message) -> None:
        if message["type"] == "http.response.body":
            exchange.bytes_out += len(message.get("body", b""))
        elif message["type"] == "http.response.start":
            exchange.status = message["status"]
            exchange.answering = True
            headers = MutableHeaders(scope=message)
            headers["X-Request-Id"] = exchange.id
            for name, value in SAFE:
                headers[name] = value
            headers.setdefault("Content-Security-Policy", CSP)
        await send(message)

    return answer


def limit(path: str, settings: Settings) -> int:
    """Most bytes of a body by its address."""
    if path.startswith("/jobs"):
        return int(settings.max_job_mb * MIB)
    uploads = path.startswith(("/predict", "/tasks", "/compare"))
    return int((settings.max_body_mb if uploads else settings.max_json_mb) * MIB)


def check_length(headers: dict[bytes, bytes], most: int) -> None:
    """Refuse a body whose Content-Length is too large before a byte of it is read."""
    length = headers.get(b"content-length", b"0")
    if length.isdigit() and int(length[:20]) > most:
        raise too_large(most)


def too_large(most: int) -> Problem:
    return Problem(
        413,
        "body_too_large",
        f"The request is larger than {most / MIB:g} MiB; send less at a time.",
        limit_bytes=most,
    )
