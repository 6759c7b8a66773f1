"""The vLLM servers: their models, and requests to them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import aiohttp
import orjson

from gateway import sse, upstream_errors
from gateway.errors import Problem
from gateway.exchange import Exchange
from gateway.keys import Caller
from gateway.logs import log
from gateway.metrics import Metrics
from gateway.served import Entry, Model, models_of, read_contract
from gateway.settings import MIB, Settings
from gateway.traces import Tracer

PATH = "/v1/chat/completions"
CONNECT_S = 5
IDLE_S = 30
"""Seconds that a connection may rest before it is closed."""

MAX_ANSWER = 32 * MIB
"""Bytes of one answer; a server that never ends is cut here."""


class Upstreams:
    """Connections to all servers, and the models that they listed last."""

    def __init__(self, settings: Settings, metrics: Metrics, tracer: Tracer) -> None:
        self.settings = settings
        self.metrics = metrics
        self.failures = upstream_errors.Failures(metrics, settings.refresh_s)
        self.tracer = tracer
        self.entries: dict[str, list[Entry]] = {}
        """By address, in the order of the settings."""

        for server in settings.servers:
            entry = Entry(server, read_contract(server))
            self.entries.setdefault(server.url.rstrip("/"), []).append(entry)
        self.listed: dict[str, list[Model]] = {}
        """By address; an address that does not answer is not in it."""

        self.session: aiohttp.ClientSession
        self.refreshing: asyncio.Task[None] | None = None
        key = settings.vllm_api_key
        self.headers = {"Content-Type": "application/json"}
        if key:
            self.headers["Authorization"] = f"Bearer {key.get_secret_value()}"

    async def start(self) -> None:
        # Admission bounds the connections. No cookies, no proxies of the environment, no redirects.
        self.session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=IDLE_S),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(
                total=self.settings.upstream_timeout_s,
                sock_connect=CONNECT_S,
                sock_read=self.settings.upstream_stall_s,
            ),
            read_bufsize=2**18,
        )
        await self.refresh()
        self.refreshing = asyncio.create_task(self.keep_fresh())

    async def close(self) -> None:
        if self.refreshing:
            await sse.end(self.refreshing)
        await self.session.close()

    async def keep_fresh(self) -> None:
        while True:
            await asyncio.sleep(self.settings.refresh_s)
            with suppress(Exception):
                await self.refresh()

    async def refresh(self) -> None:
        """Ask every server for its models.

        This uses an idle connection and closes it; otherwise idle connections would never time out.
        """
        await asyncio.gather(*map(self.ask_for_models, self.entries))

    async def ask_for_models(self, url: str) -> None:
        listed_before = self.listed.get(url)
        try:
            timeout = aiohttp.ClientTimeout(total=CONNECT_S)
            async with self.session.get(
                f"{url}/v1/models",
                headers=self.headers | {"Connection": "close"},
                timeout=timeout,
                allow_redirects=False,
            ) as answer:
                body = await read(answer, MIB)
                if answer.status != 200:
                    raise ValueError(f"status {answer.status}")
                self.listed[url] = models_of(self.entries[url], orjson.loads(body))
        except (aiohttp.ClientError, TimeoutError, ValueError, OSError) as error:
            self.listed.pop(url, None)
            if listed_before is not None:
                log.warning("a model's server does not answer", exc_info=error)
        for model in listed_before or []:
            self.metrics.up.labels(model.name).set(0)
        for model in self.listed.get(url, []):
            self.metrics.up.labels(model.name).set(1)

    @property
    def models(self) -> list[Model]:
        return [model for url in self.entries for model in self.listed.get(url, [])]

    def models_for(self, caller: Caller) -> list[Model]:
        """The models that a caller may ask; a Problem when there are none."""
        models = self.models
        if not models:
            raise upstream_errors.unavailable(self.settings.refresh_s)
        allowed = [model for model in models if caller.may_ask(*model.names)]
        if not allowed:
            raise Problem(404, "model_unknown", "None of the models that are up is for this key.")
        return allowed

    def model(self, name: str | None, caller: Caller, *, longest_context: bool = False) -> Model:
        """The model of a request: by its name or role, or the first adapter when none is named.

        Two servers may have the same base. The first is the adapter's; with `longest_context` it is
        the one with the longest context, which tasks need.
        """
        models = self.models_for(caller)
        if name:
            matching = [model for model in models if name in model.names]
            matching = matching or [model for model in models if model.role == name]
        else:
            matching = [model for model in models if model.adapted] or models
        if not matching:
            raise Problem(
                404, "model_unknown", "No such model for this key; GET /v1/models lists them."
            )
        longest = max(matching, key=lambda model: model.max_model_len or 0)
        return longest if longest_context and longest.name == matching[0].name else matching[0]

    @asynccontextmanager
    async def post(self, model: Model, body: bytes) -> AsyncIterator[aiohttp.ClientResponse]:
        """The server's answer of status 200, before its body is read; Problem for any other.

        A connection that was lost before the first byte is tried once more: nothing was answered.
        """
        url = model.server.url.rstrip("/") + PATH
        with self.tracer.upstream(model.name) as carried:
            headers = self.headers | carried
            for last in (False, True):
                try:
                    answer = await self.session.post(
                        url, data=body, headers=headers, allow_redirects=False
                    )
                    break
                except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError) as error:
                    if last or isinstance(error, aiohttp.ClientConnectorDNSError):
                        raise self.failures.broken(model.name, error) from error
                except (aiohttp.ClientError, TimeoutError, OSError) as error:
                    raise self.failures.broken(model.name, error) from error
            try:
                if answer.status != 200:
                    text = (await read(answer, 2**16)).decode(errors="replace")
                    raise self.failures.refused(model.name, answer.status, text)
                yield answer
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                raise self.failures.broken(model.name, error) from error
            finally:
                answer.close() if not answer.content.at_eof() else answer.release()

    async def complete(self, model: Model, body: bytes, exchange: Exchange) -> tuple[bytes, Any]:
        """A whole answer: as it came, and parsed."""
        async with self.post(model, body) as answer:
            content = await read(answer, MAX_ANSWER + 1)
        if len(content) > MAX_ANSWER:
            raise self.failures.garbage(model.name)
        try:
            completion = orjson.loads(content)
            choice = completion["choices"][0]
            if not isinstance(choice["message"].get("content"), str | None):
                raise TypeError
            exchange.finish_reason = str(choice.get("finish_reason") or "")[:32]
            exchange.count(completion.get("usage"))
        except (ValueError, LookupError, TypeError, AttributeError):
            raise self.failures.garbage(model.name) from None
        if exchange.ttft_s is None:
            exchange.ttft_s = exchange.seconds
        return content, completion

    async def stream(
        self, model: Model, body: bytes, exchange: Exchange
    ) -> AsyncGenerator[bytes, None]:
        """Whole events as they come. They end with the server's own end, or with a Problem."""
        buffer = sse.EventBuffer()
        total = 0
        finished = ended = False
        async with self.post(model, body) as answer:
            if answer.content_type != "text/event-stream":
                raise self.failures.garbage(model.name)
            async for data in answer.content.iter_any():
                total += len(data)
                events = buffer.feed(data)
                if not events:
                    if total > MAX_ANSWER:
                        break
                    continue
                if exchange.ttft_s is None:
                    if not events.lstrip().startswith((b"data:", b":")):
                        raise self.failures.garbage(model.name)
                    exchange.ttft_s = time.perf_counter() - exchange.started
                for event in sse.apart(events):
                    if error := sse.error_of(event):
                        raise self.failures.refused(model.name, *error)
                    finished = finished or sse.FINISH.search(event) is not None
                    ended = ended or event.startswith(sse.END)
                    if ended and not finished:
                        raise self.failures.cut(model.name)
                    yield event
                if total > MAX_ANSWER:
                    break
        if total > MAX_ANSWER:
            raise self.failures.garbage(model.name)
        if not ended:
            raise self.failures.cut(model.name)


async def read(answer: aiohttp.ClientResponse, most: int) -> bytes:
    """The whole body, or as many bytes of it."""
    pieces, total = [], 0
    async for data in answer.content.iter_any():
        pieces.append(data)
        total += len(data)
        if total >= most:
            break
    return b"".join(pieces)[:most]
