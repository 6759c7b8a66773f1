"""A vLLM of two hundred lines: it answers as vLLM 0.32 does, and fails in every way on request.

As a program it serves a benchmark: `python tests/gateway/stub.py PORT TOKENS_PER_SECOND TOKENS`.
"""

from __future__ import annotations

import asyncio
import json
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from aiohttp import web

INTERNAL = "secret at 0x7f00 in the engine"
"""Words of a server about itself, which no caller may read."""

TOO_LONG = (
    "This model's maximum context length is 512 tokens. However, your prompt contains 9000 input "
    "tokens, which exceeds this limit even without any output tokens. Please reduce the length of "
    "the input prompt."
)

SHAPES: dict[str, Any] = {
    "no message": {"index": 0, "finish_reason": "stop"},
    "message of a text": {"index": 0, "finish_reason": "stop", "message": "one"},
    "content of a list": {"index": 0, "finish_reason": "stop", "message": {"content": [1]}},
}
"""Choices that are none, by fault."""


class Stub:
    """What it serves and how it fails; tests set the fields while it runs."""

    def __init__(self) -> None:
        self.models = [
            {"id": "base", "object": "model", "max_model_len": 512, "root": "base"},
            {
                "id": "tiny-lora",
                "object": "model",
                "parent": "base",
                "root": "/adapters/tiny-lora/v3",
            },
        ]
        self.key: str | None = None
        self.transports: set[asyncio.BaseTransport | None] = set()
        self.reset()

    def reset(self) -> None:
        self.tokens = ["one", " two", " three"]
        self.answers: dict[str, list[str]] = {}
        """Tokens by model, of those that do not answer with `tokens`."""

        self.failing: set[str] = set()
        """Models that fail with status 500."""

        self.fault = ""
        self.delay = 0.0
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.active: set[object] = set()
        """Requests of this test; those that an earlier one left are in a set of their own."""

        self.most_running = 0
        self.finish_reason = "stop"
        self.stamped = False
        """Whether a token is the time at which it is written, for benchmarks."""

        self.echo = False
        """Whether an answer ends in the words that were asked, for tests with many visitors."""

        self.failures_left = 0
        """Requests that fail before the rest is served; for faults that pass."""

    @property
    def running(self) -> int:
        return len(self.active)

    @property
    def connections(self) -> int:
        """Connections that are open, in use or at rest."""
        return sum(each is not None and not each.is_closing() for each in list(self.transports))

    def app(self) -> web.Application:
        app = web.Application(client_max_size=2**28)
        app.on_response_prepare.append(self.connected)
        app.router.add_get("/v1/models", self.list)
        app.router.add_get("/health", self.health)
        app.router.add_post("/v1/chat/completions", self.chat)
        return app

    async def connected(self, request: web.Request, _: web.StreamResponse) -> None:
        self.transports.add(request.transport)

    async def health(self, _: web.Request) -> web.StreamResponse:
        return web.Response()

    async def list(self, request: web.Request) -> web.StreamResponse:
        if self.key and request.headers.get("Authorization") != f"Bearer {self.key}":
            return web.json_response({"error": "Unauthorized"}, status=401)
        if self.fault == "down":
            return web.Response(status=503)
        if self.fault == "pieces":
            return await self.in_pieces(request, {"object": "list", "data": self.models}, 200)
        return web.json_response({"object": "list", "data": self.models})

    async def chat(self, request: web.Request) -> web.StreamResponse:
        content = await request.read()
        body = json.loads(content)
        self.requests.append(body)
        self.headers.append(dict(request.headers))
        active, asked = self.active, object()
        active.add(asked)
        self.most_running = max(self.most_running, self.running)
        try:
            return await self.answer(request, body)
        finally:
            active.discard(asked)

    async def answer(self, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        fault = "status 500" if body["model"] in self.failing else self.fault
        tokens = self.tokens_of(body)
        if self.failures_left > 0:
            self.failures_left -= 1
            request.transport.abort()
            return web.Response()
        if fault == "reset":
            request.transport.abort()
            return web.Response()
        if fault == "pieces":
            return await self.in_pieces(request, {"error": {"message": TOO_LONG}}, 400)
        if fault in SHAPES and not body.get("stream"):
            return web.json_response({"choices": [SHAPES[fault]], "usage": self.usage(body)})
        if fault.startswith("status"):
            words = TOO_LONG if fault == "status 400 long" else INTERNAL
            status = int(fault.split()[1])
            if status == 302:
                return web.Response(status=302, headers={"Location": "http://127.0.0.1:1/"})
            return web.json_response({"error": {"message": words, "code": status}}, status=status)
        if fault == "garbage":
            return web.Response(text="<html>hello</html>", content_type="text/html")
        if fault == "garbage json":
            return web.json_response({"hello": [1]})
        if fault == "stall":
            await asyncio.sleep(60)
        if body.get("stream"):
            return await self.stream(request, body)
        for _ in tokens[: body.get("max_tokens")]:
            await asyncio.sleep(self.delay)
        choice: dict[str, Any] = {
            "index": 0,
            "message": {"role": "assistant", "content": "".join(tokens)},
            "finish_reason": self.finish_reason,
        }
        result = {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": 1,
            "model": body["model"],
            "choices": [choice],
            "usage": self.usage(body),
        }
        if body.get("return_token_ids"):
            choice["token_ids"] = [*range(len(tokens)), 2]
            result["prompt_token_ids"] = [1, 2, 3]
        return web.json_response(result)

    async def in_pieces(
        self, request: web.Request, document: dict[str, Any], status: int
    ) -> web.StreamResponse:
        """A body as a network may deliver it: not all at once."""
        answer = web.StreamResponse(status=status, headers={"Content-Type": "application/json"})
        await answer.prepare(request)
        content = json.dumps(document).encode()
        for place in range(0, len(content), 100):
            await answer.write(content[place : place + 100])
            await asyncio.sleep(0.01)
        return answer

    def tokens_of(self, body: dict[str, Any]) -> list[str]:
        return self.answers.get(body["model"], self.tokens)

    def usage(self, body: dict[str, Any]) -> dict[str, int]:
        count = len(self.tokens_of(body))
        return {"prompt_tokens": 7, "completion_tokens": count, "total_tokens": 7 + count}

    async def stream(self, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        answer = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
        fault = self.fault
        await answer.prepare(request)
        if fault == "garbage stream":
            await answer.write(b"hello, I am no event\n\nnor I\n\n")
            return answer
        if fault in SHAPES:
            choice = SHAPES[fault] | {"delta": SHAPES[fault].get("message")}
            await answer.write(self.event(body, {"content": "a"}))
            await answer.write(b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n")
            await answer.write(b"data: [DONE]\n\n")
            return answer
        if fault == "error first":
            await answer.write(self.error(TOO_LONG, 400))
            return answer
        await answer.write(self.event(body, {"role": "assistant", "content": ""}))
        for index, token in enumerate(self.tokens_of(body)[: body.get("max_tokens")]):
            if self.delay:
                await asyncio.sleep(self.delay)
            if self.stamped:
                token = f" {time.perf_counter():.6f}"
            event = self.event(body, {"content": token})
            if fault == "split":
                for place in range(0, len(event), 7):
                    await answer.write(event[place : place + 7])
                    await asyncio.sleep(0)
                continue
            if index == 1 and fault == "cut":
                await answer.write(event[: len(event) // 2])
                request.transport.abort()
                return answer
            if index == 1 and fault == "cut clean":
                return answer
            if index == 1 and fault == "error later":
                await answer.write(self.error(INTERNAL, 500))
                return answer
            if index == 1 and fault == "error beside a token":
                await answer.write(event + self.error(INTERNAL, 500))
                return answer
            if index == 1 and fault == "no reason":
                await answer.write(event + b"data: [DONE]\n\n")
                return answer
            if index == 1 and fault == "stall later":
                await asyncio.sleep(60)
            if index == 1 and fault == "long event":
                event = self.event(body, {"content": "x" * 1_500_000})
            if index == 1 and fault == "endless event":
                for _ in range(100):
                    await answer.write(b"x" * 2**16)
            if fault == "endless":
                while True:
                    await answer.write(self.event(body, {"content": "x" * 65536}))
            await answer.write(event)
        if self.echo:
            asked = body["messages"][-1]["content"]
            await answer.write(self.event(body, {"content": f" {asked}"}))
        await answer.write(self.event(body, {}, self.finish_reason))
        if (body.get("stream_options") or {}).get("include_usage"):
            await answer.write(self.event(body, None))
        await answer.write(b"data: [DONE]\n\n")
        return answer

    def error(self, words: str, status: int) -> bytes:
        """What vLLM writes when it fails after status 200 was sent."""
        error = {"message": words, "type": "InternalServerError", "param": None, "code": status}
        return f"data: {json.dumps({'error': error})}\n\ndata: [DONE]\n\n".encode()

    def event(
        self, body: dict[str, Any], delta: dict[str, Any] | None, reason: str | None = None
    ) -> bytes:
        choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": reason}]
        result: dict[str, Any] = {
            "id": "chatcmpl-1",
            "object": "chat.completion.chunk",
            "created": 1,
            "model": body["model"],
            "choices": choices,
        }
        if delta is None:
            result["usage"] = self.usage(body)
        return b"data: " + json.dumps(result, separators=(",", ":")).encode() + b"\n\n"


@contextmanager
def served(app: web.Application, at: int = 0) -> Iterator[str]:
    """Serve an application in a thread; its address."""
    loop = asyncio.new_event_loop()
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
    port: list[int] = []

    async def start() -> None:
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", at, reuse_address=True).start()
        port.append(runner.addresses[0][1])

    loop.run_until_complete(start())
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{port[0]}"
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


if __name__ == "__main__":
    stub = Stub()
    stub.delay = 1 / float(sys.argv[2])
    stub.stamped = True
    stub.tokens = [" word"] * int(sys.argv[3])
    web.run_app(
        stub.app(),
        host="127.0.0.1",
        port=int(sys.argv[1]),
        access_log=None,
        print=None,
        handler_cancellation=True,
    )
