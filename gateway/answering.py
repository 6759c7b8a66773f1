"""Ask a model once or several times for one request; the answer comes whole or as a stream."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import Any, Protocol

import orjson
from starlette.requests import Request
from starlette.responses import Response

from gateway import exchange as exchanges
from gateway import sse
from gateway.core import Gateway
from gateway.exchange import Exchange
from gateway.keys import Caller
from gateway.served import Model

AT_ONCE = 4
"""Images of one request that are answered at a time."""


class ParsedRequest(Protocol):
    """A parsed request: it builds what the server gets, and reads what the server answers."""

    @property
    def model(self) -> Model: ...

    @property
    def count(self) -> int: ...

    @property
    def digests(self) -> list[str]: ...

    def body(self, index: int) -> dict[str, Any]: ...

    async def result(self, index: int, text: str, choice: dict[str, Any]) -> dict[str, Any]: ...

    def document(self, results: list[dict[str, Any]]) -> dict[str, Any]: ...


async def answered(
    gateway: Gateway, parsed: ParsedRequest, caller: Caller, exchange: Exchange
) -> dict[str, Any]:
    """The answer to all images; at most AT_ONCE of them are asked at a time."""
    began = time.perf_counter()
    places = asyncio.Semaphore(AT_ONCE)

    async def ask(index: int) -> tuple[dict[str, Any], Any]:
        async with places:
            _, completion = await gateway.ask(parsed.model, parsed.body(index), caller, exchange)
            choice = completion["choices"][0]
            text = choice["message"].get("content") or ""
            return await parsed.result(index, text, choice), completion.get("usage")

    asking = [asyncio.ensure_future(ask(index)) for index in range(parsed.count)]
    try:
        answers = await asyncio.gather(*asking)
    finally:
        await sse.end(*asking)
    results, usages = [each for each, _ in answers], [usage for _, usage in answers]
    return summary(parsed, exchange, results, usages, time.perf_counter() - began)


async def as_events(
    gateway: Gateway,
    parsed: ParsedRequest,
    caller: Caller,
    exchange: Exchange,
    keep: Callable[[dict[str, Any]], Awaitable[None]],
) -> AsyncGenerator[bytes, None]:
    """Pieces of each answer as they come, then the same document that is sent without streaming."""
    began = time.perf_counter()
    results, usages = [], []
    with gateway.admission.caller_slot(caller):
        for index in range(parsed.count):
            text, usage = "", None
            choice: dict[str, Any] = {}
            events = gateway.stream(parsed.model, parsed.body(index), caller, exchange)
            async with aclosing(events):
                async for data in events:
                    for event in data.split(b"\n\n"):
                        piece, choice, usage = delta(event, choice, usage)
                        if piece:
                            text += piece
                            yield sse.event("token", {"image_index": index, "text": piece})
            results.append(await parsed.result(index, text, choice))
            usages.append(usage)
        seconds = time.perf_counter() - began
        answer = summary(parsed, exchange, results, usages, seconds)
        await keep(answer)
        yield sse.event("done", answer)


def delta(event: bytes, choice: dict[str, Any], usage: Any) -> tuple[str, dict[str, Any], Any]:
    """The text of an event, and the choice and the usage so far."""
    chunk = sse.data_of(event)
    if chunk is None:
        return "", choice, usage
    usage = chunk.get("usage") or usage
    choices = chunk.get("choices") or []
    if not choices:
        return "", choice, usage
    try:
        new = choices[0]
        if new.get("finish_reason"):
            choice = choice | {"finish_reason": new["finish_reason"]}
        if new.get("token_ids"):
            choice = choice | {"token_ids": [*choice.get("token_ids", []), *new["token_ids"]]}
        text = (new.get("delta") or {}).get("content") or ""
    except (LookupError, TypeError, AttributeError):
        raise sse.garbage() from None
    if not isinstance(text, str):
        raise sse.garbage()
    return text, choice, usage


def summary(
    parsed: ParsedRequest,
    exchange: Exchange,
    results: list[dict[str, Any]],
    usages: Sequence[Any],
    seconds: float,
) -> dict[str, Any]:
    """The fields of every answer beside its results."""
    reasons = [each["finish_reason"] for each in results]
    parse = sum(each.pop("parse_s", 0.0) for each in results)
    return parsed.document(results) | {
        "model": parsed.model.name,
        "model_uri": parsed.model.uri or None,
        "processing_time_ms": ms(exchange.seconds),
        "timing": timing(exchange, seconds - parse, parse),
        "usage": added(usages),
        "finish_reason": "length" if "length" in reasons else reasons[0],
        "request_id": exchange.id,
    }


def timing(exchange: Exchange, seconds: float, parse: float = 0.0) -> dict[str, float | None]:
    """Milliseconds of a request's parts; `ttft` is known where the answer was streamed."""
    return {
        "upload_ms": ms(exchange.upload_s),
        "queue_ms": ms(exchange.queue_s),
        "ttft_ms": ms(exchange.ttft_s) if exchange.streamed and exchange.ttft_s else None,
        "generate_ms": ms(max(0.0, seconds - exchange.queue_s)),
        "parse_ms": ms(parse),
    }


def ms(seconds: float) -> float:
    return round(seconds * 1000, 2)


def added(usages: Sequence[Any]) -> dict[str, int]:
    total = Exchange()
    for usage in usages:
        total.count(usage)
    return {
        "prompt_tokens": total.prompt_tokens,
        "completion_tokens": total.completion_tokens,
        "total_tokens": total.prompt_tokens + total.completion_tokens,
    }


async def respond(
    request: Request,
    gateway: Gateway,
    parsed: ParsedRequest,
    caller: Caller,
    keep: Callable[[dict[str, Any]], Awaitable[None]],
    streamed: bool,
) -> Response:
    """The response to a parsed request; `keep` gets the whole answer before it is sent."""
    exchange = exchanges.of(request)
    exchange.model, exchange.version = parsed.model.name, parsed.model.version
    if streamed:
        events = as_events(gateway, parsed, caller, exchange, keep)
        return sse.Stream(
            events, exchange, lambda problem: sse.event("error", problem.document(exchange.id))
        )
    with gateway.admission.caller_slot(caller):
        answer = await sse.unless_client_leaves(
            request, answered(gateway, parsed, caller, exchange)
        )
    await keep(answer)
    return Response(orjson.dumps(answer), 200, None, "application/json")
