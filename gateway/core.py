"""What all routes use: who asks, how much the caller may ask, and how a model is asked."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated, Any

import orjson
from fastapi import Depends
from starlette.requests import Request

from gateway import exchange as exchanges
from gateway import sse, tasks
from gateway.cache import Cache
from gateway.exchange import Exchange
from gateway.keys import Authenticator, Caller
from gateway.limits import Admission, Rates
from gateway.metrics import Metrics
from gateway.oidc import Oidc
from gateway.served import Model
from gateway.sessions import Sessions
from gateway.settings import Settings
from gateway.traces import Tracer
from gateway.upstream import Upstreams


class Gateway:
    """One per process; routes find it at `request.app.state.gateway`."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.metrics = Metrics()
        self.tracer = Tracer.of(settings)
        self.upstreams = Upstreams(settings, self.metrics, self.tracer)
        self.rates = Rates(settings)
        self.admission = Admission(settings, self.metrics)
        self.cache = Cache(settings, self.metrics)
        self.authenticator = Authenticator(settings, None)
        self.sessions = Sessions(settings)
        self.tasks = tasks.load(settings.tasks_dir)

    async def start(self) -> None:
        await self.upstreams.start()
        if self.settings.oidc_issuer:
            self.authenticator.oidc = Oidc(self.settings, self.upstreams.session)

    async def close(self) -> None:
        await self.upstreams.close()
        await self.cache.close()
        self.tracer.close()

    async def ask(
        self, model: Model, body: dict[str, Any], caller: Caller, exchange: Exchange
    ) -> tuple[bytes, dict[str, Any]]:
        """A whole answer, as the server wrote it and parsed; it may come from the cache."""
        exchange.model, exchange.version = model.name, model.version
        content = orjson.dumps(body)
        key = self.cache.key(model, body, content)
        if (kept := await self.cache.get(key)) is not None:
            exchange.cached = True
            return kept, orjson.loads(kept)
        async with self.admission.slot(exchange):
            answer, completion = await self.upstreams.complete(model, content, exchange)
        await self.rates.charge(caller, used(completion.get("usage")))
        await self.cache.put(key, answer)
        return answer, completion

    async def stream(
        self,
        model: Model,
        body: dict[str, Any],
        caller: Caller,
        exchange: Exchange,
        *,
        with_usage: bool = True,
    ) -> AsyncGenerator[bytes, None]:
        """Complete events as the server wrote them. The server is always asked for its usage; that
        event is left out where the client did not ask for it."""
        exchange.model, exchange.version = model.name, model.version
        body = body | {"stream": True, "stream_options": {"include_usage": True}}
        content = orjson.dumps(body)
        pieces, usage = 0, None
        try:
            async with (
                self.admission.slot(exchange),
                aclosing(self.upstreams.stream(model, content, exchange)) as events,
            ):
                async for data in events:
                    if sse.NO_CHOICES in data:
                        kept, usage = sse.without_usage(data)
                        data = data if with_usage else kept
                        if not data:
                            continue
                    if b'"finish_reason":"' in data:
                        exchange.finish_reason = finish_reason(data)
                    pieces += data.count(b"data:")
                    yield data
        finally:
            # A client that leaves early has used about one token for each event.
            usage = usage or {"completion_tokens": pieces}
            exchange.count(usage)
            await self.rates.charge(caller, used(usage))


def used(usage: Any) -> int:
    """Tokens of an answer and its prompt."""
    return sum(exchanges.tokens(usage))


def finish_reason(data: bytes) -> str:
    reason = data.partition(b'"finish_reason":"')[2].partition(b'"')[0]
    return reason[:32].decode("ascii", "replace")


def of(request: Request) -> Gateway:
    gateway: Gateway = request.app.state.gateway
    return gateway


async def authenticated(request: Request) -> Caller:
    """Who asks, before a byte of the body is read."""
    caller = await of(request).authenticator.caller(request)
    exchanges.of(request).caller = caller.name
    return caller


async def rate_limited(request: Request) -> Caller:
    """Who asks, with this request counted in their rate."""
    caller = await authenticated(request)
    await of(request).rates.check(caller)
    return caller


Authenticated = Annotated[Caller, Depends(authenticated)]
RateLimited = Annotated[Caller, Depends(rate_limited)]
