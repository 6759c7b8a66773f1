"""The OpenAI interface: requests are read field by field, answers are passed on as they come."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import aclosing
from typing import Annotated, Any, Literal

import orjson
from fastapi import APIRouter
from fastapi.routing import APIRoute
from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from gateway import bodies, core, documented, images, sse, video
from gateway import exchange as exchanges
from gateway.bodies import Strict, as_json
from gateway.core import Gateway
from gateway.errors import Problem
from gateway.exchange import Exchange
from gateway.keys import Caller
from gateway.served import Model
from gateway.settings import MIB, Settings
from gateway.uploads import DECODERS
from loraline.base import pixels

MAX_SCHEMA = 16 * 1024
MAX_DEPTH = 16
MAX_REPEATS = 1000
"""Bounds of a schema that answers must follow: vLLM compiles it before it answers."""

COSTLY = ("pattern", "format")
"""Expressions; a property may have these names, and is an object then."""

COUNTS = ("minItems", "maxItems", "minLength", "maxLength", "minProperties", "maxProperties")


class Url(Strict):
    url: str = Field(description="data:TYPE;base64,CONTENT; no address is fetched")
    detail: Literal["auto", "low", "high"] | None = None


class TextPart(Strict):
    type: Literal["text"]
    text: str


class ImagePart(Strict):
    type: Literal["image_url"]
    image_url: Url


class VideoPart(Strict):
    type: Literal["video_url"]
    video_url: Url


Part = Annotated[TextPart | ImagePart | VideoPart, Field(discriminator="type")]


class Message(Strict):
    role: Literal["system", "user", "assistant"]
    content: str | Annotated[list[Part], Field(min_length=1, max_length=256)]


class JsonSchema(Strict):
    name: str = Field(max_length=64)
    description: str | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class ResponseFormat(Strict):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class StreamOptions(Strict):
    include_usage: bool = False


class ChatRequest(Strict):
    model: str = Field(max_length=256)
    messages: list[Message] = Field(min_length=1, max_length=256)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    stop: (
        Annotated[str, Field(max_length=256)]
        | Annotated[list[Annotated[str, Field(max_length=256)]], Field(max_length=8)]
        | None
    ) = None
    seed: int | None = Field(None, ge=-(2**63), le=2**63 - 1)
    n: Literal[1] | None = None
    user: str | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None
    skip_special_tokens: bool | None = None
    return_token_ids: bool | None = None


class Direct(APIRoute):
    """An endpoint that takes the request alone, so that FastAPI need not look for parameters: that
    takes as long as all that the endpoint does."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler: Callable[[Request], Coroutine[Any, Any, Response]] = self.endpoint
        return handler


router = APIRouter(tags=["OpenAI"], route_class=Direct)


@router.get("/v1/models", responses=documented.openai(401, 429, 503))
async def models(request: Request) -> Response:
    """Models that this key may ask."""
    gateway, caller = core.of(request), await core.authenticated(request)
    # Two servers may have the same base.
    by_name: dict[str, Model] = {}
    for model in gateway.upstreams.models:
        by_name.setdefault(model.name, model)
    listed = [
        {
            "id": model.name,
            "object": "model",
            "created": 0,
            "owned_by": "loraline",
            "parent": model.parent,
            "root": model.uri or model.name,
            "max_model_len": model.max_model_len,
        }
        for model in by_name.values()
        if caller.may_ask(*model.names)
    ]
    return as_json({"object": "list", "data": listed})


@router.post(
    "/v1/chat/completions",
    responses=documented.openai(400, 401, 404, 408, 413, 415, 422, 429, 500, 502, 503, 504)
    | documented.answer(*documented.STREAMED),
    openapi_extra=documented.json_body(ChatRequest),
)
async def chat_completions(request: Request) -> Response:
    """A chat completion, as OpenAI's clients ask for it."""
    gateway, exchange = core.of(request), exchanges.of(request)
    caller = await core.rate_limited(request)
    chat = await bodies.read(request, ChatRequest)
    model = gateway.upstreams.model(chat.model, caller)
    exchange.model = model.name
    body = await forwarded(chat, model, gateway, exchange)
    if chat.stream:
        with_usage = chat.stream_options is not None and chat.stream_options.include_usage
        events = passed_on(gateway, model, body, caller, exchange, with_usage)
        return sse.Stream(events, exchange, lambda problem: failed(problem, exchange))
    with gateway.admission.caller_slot(caller):
        answer, _ = await sse.unless_client_leaves(
            request, gateway.ask(model, body, caller, exchange)
        )
    return Response(answer, 200, None, "application/json")


async def passed_on(
    gateway: Gateway,
    model: Model,
    body: dict[str, Any],
    caller: Caller,
    exchange: Exchange,
    with_usage: bool,
) -> AsyncGenerator[bytes, None]:
    with gateway.admission.caller_slot(caller):
        events = gateway.stream(model, body, caller, exchange, with_usage=with_usage)
        async with aclosing(events):
            async for data in events:
                yield data


def failed(problem: Problem, exchange: Exchange) -> bytes:
    """The event that OpenAI's clients raise as an error."""
    return b"data: " + orjson.dumps(problem.openai(exchange.id)) + b"\n\n"


async def forwarded(
    chat: ChatRequest, model: Model, gateway: Gateway, exchange: Exchange
) -> dict[str, Any]:
    """The body for vLLM: the accepted fields, with checked media."""
    settings = gateway.settings
    body = chat.model_dump(exclude_none=True, by_alias=True)
    for name in ("user", "n", "stream", "stream_options"):
        body.pop(name, None)
    body["model"] = model.name
    limit = chat.max_completion_tokens or chat.max_tokens
    body.pop("max_completion_tokens", None)
    if limit is not None:
        if limit > settings.max_tokens:
            raise Problem(422, "max_tokens", f"max_tokens may be {settings.max_tokens:,} at most.")
        body["max_tokens"] = limit
    if chat.response_format and chat.response_format.json_schema:
        check_schema(chat.response_format.json_schema.schema_)
    media = [
        part
        for message in body["messages"]
        if isinstance(message["content"], list)
        for part in message["content"]
        if part["type"] != "text"
    ]
    if len(media) > settings.max_files:
        raise Problem(413, "files", f"A request takes {settings.max_files} files at most.")
    for part in media:
        if part["type"] == "image_url":
            part["image_url"]["url"] = await checked_image(
                part["image_url"]["url"], settings, exchange
            )
        else:
            async with gateway.admission.video_slot():
                clip = await checked_video(part["video_url"]["url"], model, settings)
            part["video_url"]["url"] = clip.uri
            if "media_io_kwargs" in body:
                raise Problem(422, "videos", "A request takes one video.")
            body["media_io_kwargs"] = clip.io_kwargs
            exchange.digests.append(clip.sha256)
    return body


async def checked_image(url: str, settings: Settings, exchange: Exchange) -> str:
    encoded, content = images.from_uri(url)
    loop = asyncio.get_running_loop()
    picture = await loop.run_in_executor(DECODERS, images.picture, content, settings)
    exchange.digests.append(picture.sha256)
    return f"data:{picture.mime};base64,{encoded}"


async def checked_video(url: str, model: Model, settings: Settings) -> video.Clip:
    import tempfile

    _, content = images.from_uri(url)
    if len(content) > settings.max_video_mb * MIB:
        raise Problem(
            413, "video_too_large", f"A video is larger than {settings.max_video_mb:g} MiB."
        )
    if (video_format := video.format_of(content[:16])) is None:
        raise images.unsupported()
    with tempfile.TemporaryFile() as file:
        await asyncio.to_thread(file.write, content)
        return await video.decode(
            file,
            video_format,
            settings,
            max_frames=settings.max_frames,
            max_seconds=settings.max_seconds,
            cell=pixels.cell(model.family),
        )


def check_schema(schema: dict[str, Any]) -> None:
    """Refuse a schema that would take long to compile; Problem says what is too much."""
    if len(orjson.dumps(schema)) > MAX_SCHEMA:
        raise costly(f"it is larger than {MAX_SCHEMA // 1024} KiB")
    stack: list[tuple[Any, int]] = [(schema, 0)]
    while stack:
        node, depth = stack.pop()
        if depth > MAX_DEPTH:
            raise costly(f"it is deeper than {MAX_DEPTH}")
        if isinstance(node, list):
            stack += [(item, depth + 1) for item in node]
        if not isinstance(node, dict):
            continue
        for key, value in node.items():
            if key == "patternProperties" or (key in COSTLY and not isinstance(value, dict)):
                raise costly(f"{key} is not accepted")
            if key in COUNTS and isinstance(value, int | float) and value > MAX_REPEATS:
                raise costly(f"{key} is above {MAX_REPEATS}")
            if key == "$ref" and not str(value).startswith("#"):
                raise costly("$ref leads out of it")
            stack.append((value, depth + 1))


def costly(why: str) -> Problem:
    return Problem(422, "schema", f"The answer's schema is not accepted: {why}.")
