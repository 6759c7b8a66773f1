"""/predict: the adapter is asked as it was trained and measured, the original bytes, greedily."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from typing import Any

import orjson
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from gateway import core, documented, sse, uploads
from gateway import exchange as exchanges
from gateway.core import Counted, Gateway
from gateway.errors import Problem
from gateway.exchange import Exchange
from gateway.images import Picture
from gateway.keys import Caller
from gateway.served import Model
from gateway.uploads import Form
from loraline.contract import Contract
from loraline.records import from_prompt
from loraline.serving.client import request as measured_request

router = APIRouter(tags=["Adapter"])

QUESTION = "{question}"
AT_ONCE = 4
"""Images of one request that are answered at a time."""

FIELDS = {
    "question": "What is put into the adapter's prompt; left out where that asks no question.",
    "model": "Name or role of a model; by default the adapter.",
    "max_tokens": "Longest answer in tokens; by default and at most the contract's.",
    "stream": "true for server-sent events.",
    "token_ids": "true to get the answer's tokens, too.",
    "session": "Session that keeps question and answer.",
}
ERRORS = (400, 401, 404, 408, 413, 415, 422, 429, 500, 502, 503, 504, 507)


@router.post(
    "/predict",
    responses=documented.problems(*ERRORS),
    openapi_extra=documented.form_body(FIELDS),
)
async def predict(request: Request, caller: Counted) -> Response:
    """Ask the adapter about each image, or a text adapter its question, with the trained prompt."""
    gateway, exchange = core.of(request), exchanges.of(request)
    with gateway.gate.uploading():
        async with uploads.form(request, set(FIELDS), max_files=gateway.settings.max_files) as form:
            asked = await Asked.of(gateway, form, caller)
    exchange.model, exchange.version = asked.model.name, asked.model.version
    exchange.digests += [picture.sha256 for picture in asked.pictures]
    if asked.streamed:
        events = as_events(gateway, asked, caller, exchange)
        return sse.Stream(
            events,
            exchange,
            lambda problem: sse.event("error", problem.document(exchange.id)),
        )
    with gateway.gate.turn(caller):
        answer = await sse.while_there(request, answered(gateway, asked, caller, exchange))
    await asked.keep(gateway, caller, answer)
    return Response(orjson.dumps(answer), 200, None, "application/json")


class Asked:
    """A request that was read: one body for the server each image, made as verify_serving does."""

    def __init__(self, model: Model, form: Form, pictures: Sequence[Picture], most: int) -> None:
        self.model = model
        self.pictures = pictures
        self.names = [upload.name for upload in form.files] or [None]
        self.streamed = form.flag("stream")
        self.question = form.fields.get("question", "")
        self.session = form.text("session")
        self.max_tokens = most
        self.token_ids = form.flag("token_ids")

    @classmethod
    async def of(cls, gateway: Gateway, form: Form, caller: Caller) -> Asked:
        model = gateway.upstreams.model(form.text("model") or None, caller)
        contract = contract_of(model)
        check_question(contract, form.fields.get("question", ""))
        if (contract.modality == "vision") != bool(form.files):
            wanted = "takes an image" if contract.modality == "vision" else "takes no files"
            raise Problem(422, "files", f"This model {wanted}.")
        pictures = [await upload.picture(gateway.settings) for upload in form.files]
        return cls(model, form, pictures, max_tokens(form, contract))

    def body(self, index: int) -> dict[str, Any]:
        """The request about one image, to the byte the one that verify_serving sends."""
        contract = contract_of(self.model)
        image = self.pictures[index].content if self.pictures else None
        record = from_prompt(contract.prompt, self.question, "", image)
        body = measured_request(self.model.name, record, self.max_tokens)
        return body | {"return_token_ids": True} if self.token_ids else body

    def prediction(self, index: int, text: str, choice: dict[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = {
            "image_index": index,
            "filename": self.names[index],
            "caption": text.strip(),
            "finish_reason": choice.get("finish_reason"),
        }
        if self.pictures:
            picture = self.pictures[index]
            shown = self.model.shown_size(picture.width, picture.height)
            found["image"] = {
                "width": picture.width,
                "height": picture.height,
                "sha256": picture.sha256,
                "resized_width": shown and shown[0],
                "resized_height": shown and shown[1],
            }
        if self.token_ids:
            found["token_ids"] = choice.get("token_ids")
        if choice.get("finish_reason") == "length":
            found["notes"] = ["The answer is cut: it reached the most tokens."]
        return found

    async def keep(self, gateway: Gateway, caller: Caller, answer: dict[str, Any]) -> None:
        """Write question and answers into the session that the form names."""
        if self.session:
            await gateway.sessions.keep(
                caller, self.session, "predict", self.question, self.pictures, answer
            )


def contract_of(model: Model) -> Contract:
    if model.contract is None:
        raise Problem(
            422,
            "no_contract",
            "Nothing is known of this model's training; ask it over /v1/chat/completions.",
        )
    return model.contract


def check_question(contract: Contract, question: str) -> None:
    """Refuse a question that the prompt has no place for, and a prompt without its question."""
    asks = QUESTION in contract.prompt
    if asks and not question.strip():
        raise Problem(422, "question", "This model's prompt needs a question.")
    if question.strip() and not asks:
        raise Problem(
            422,
            "question",
            "This model was trained with one prompt that has no place for a question; leave the "
            "question out.",
        )


def max_tokens(form: Form, contract: Contract) -> int:
    given = form.text("max_tokens")
    if not given:
        return contract.max_new_tokens
    if not (given.isdecimal() and given.isascii() and len(given) < 7) or not (
        0 < int(given) <= contract.max_new_tokens
    ):
        raise Problem(
            422, "max_tokens", f"max_tokens is a number from 1 to {contract.max_new_tokens}."
        )
    return int(given)


async def answered(
    gateway: Gateway, asked: Asked, caller: Caller, exchange: Exchange
) -> dict[str, Any]:
    """The answer to all images, some asked at a time."""
    began = time.perf_counter()
    places = asyncio.Semaphore(AT_ONCE)

    async def ask(index: int) -> tuple[dict[str, Any], Any]:
        async with places:
            _, found = await gateway.ask(asked.model, asked.body(index), caller, exchange)
            choice = found["choices"][0]
            text = choice["message"].get("content") or ""
            return asked.prediction(index, text, choice), found.get("usage")

    asking = [asyncio.ensure_future(ask(index)) for index in range(len(asked.names))]
    try:
        found = await asyncio.gather(*asking)
    finally:
        await sse.end(*asking)
    predictions, usages = [each for each, _ in found], [usage for _, usage in found]
    return summary(asked, exchange, predictions, usages, time.perf_counter() - began)


async def as_events(
    gateway: Gateway, asked: Asked, caller: Caller, exchange: Exchange
) -> AsyncIterator[bytes]:
    """Pieces of each answer as they come, then the same document that is sent without streaming."""
    began = time.perf_counter()
    predictions, usages = [], []
    with gateway.gate.turn(caller):
        for index in range(len(asked.names)):
            text, choice, usage = "", {}, None
            events = gateway.stream(asked.model, asked.body(index), caller, exchange)
            async with aclosing(events):  # type: ignore[type-var]
                async for data in events:
                    for event in data.split(b"\n\n"):
                        piece, choice, usage = delta(event, choice, usage)
                        if piece:
                            text += piece
                            yield sse.event("token", {"image_index": index, "text": piece})
            predictions.append(asked.prediction(index, text, choice))
            usages.append(usage)
        seconds = time.perf_counter() - began
        answer = summary(asked, exchange, predictions, usages, seconds)
        await asked.keep(gateway, caller, answer)
        yield sse.event("done", answer)


def delta(event: bytes, choice: dict[str, Any], usage: Any) -> tuple[str, dict[str, Any], Any]:
    """The text of one event, and what is known of the choice and of the usage after it."""
    found = sse.data_of(event)
    if found is None:
        return "", choice, usage
    usage = found.get("usage") or usage
    choices = found.get("choices") or []
    if not choices:
        return "", choice, usage
    new = choices[0]
    if new.get("finish_reason"):
        choice = choice | {"finish_reason": new["finish_reason"]}
    if new.get("token_ids"):
        choice = choice | {"token_ids": [*choice.get("token_ids", []), *new["token_ids"]]}
    return (new.get("delta") or {}).get("content") or "", choice, usage


def summary(
    asked: Asked,
    exchange: Exchange,
    predictions: list[dict[str, Any]],
    usages: Sequence[Any],
    seconds: float,
) -> dict[str, Any]:
    reasons = [each["finish_reason"] for each in predictions]
    return {
        "predictions": predictions,
        "model": asked.model.name,
        "model_uri": asked.model.uri or None,
        "processing_time_ms": ms(exchange.seconds),
        "timing": timing(exchange, seconds),
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
