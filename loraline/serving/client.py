"""A client of a running vLLM server's OpenAI interface."""

from __future__ import annotations

import base64
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from loraline import web
from loraline.addresses import redacted, scrubbed
from loraline.errors import TryAgain, UserError
from loraline.records import IMAGE, TAGS, VIDEO, Record

TIMEOUT = 300
"""Seconds for one whole answer."""


@dataclass(frozen=True)
class Served:
    """An answer of a server."""

    tokens: list[int]
    """Token IDs without the end token."""

    text: str
    prompt: list[int]
    """Token IDs that the server made of the request."""

    seconds: float
    refusal: str = ""
    """Why there is no answer."""


class Refused(UserError):
    """The server does not take a request: too long for it, an unknown model, a bad image."""


class Server:
    """A server at an address, with or without the interface's /v1, and with the key of the
    environment's VLLM_API_KEY.

    Every request raises Refused for an answer 4xx, TryAgain if the server fails or does not answer,
    and UserError if it wants another key or is not vLLM.
    """

    def __init__(self, url: str, seconds: float = TIMEOUT) -> None:
        if not url.startswith(("http://", "https://")):
            raise UserError(
                f"server address {redacted(url)!r} does not start with http:// or https://"
            )
        self.url = url.rstrip("/").removesuffix("/v1")
        self.seconds = seconds
        self.name = redacted(self.url)
        """The address without secrets, for messages."""

    def check_health(self) -> None:
        self._open("/health")

    def models(self) -> dict[str, str | None]:
        """Names that the server takes, each with the name of its base, if it is an adapter."""
        with self._expecting_vllm("/v1/models"):
            listed = json.loads(self._open("/v1/models"))["data"]
            return {each["id"]: each.get("parent") for each in listed}

    def ask(self, model: str, record: Record, max_tokens: int) -> Served:
        """The greedy answer to a row's prompt."""
        path = "/v1/chat/completions"
        body = request(model, record, max_tokens) | {"return_token_ids": True}
        started = time.monotonic()
        answer = self._open(path, body)
        with self._expecting_vllm(path):
            completion = json.loads(answer)
            choice = completion["choices"][0]
            tokens = choice["token_ids"]
            return Served(
                tokens=tokens[:-1] if choice["finish_reason"] == "stop" else tokens,
                text=(choice["message"]["content"] or "").strip(),
                # Empty if a server does not give them: the caller has to check.
                prompt=completion["prompt_token_ids"] or [],
                seconds=time.monotonic() - started,
            )

    def get(self, path: str) -> str:
        """What another address of the server answers, as text."""
        return self._open(path).decode(errors="replace")

    def post(self, path: str, body: dict[str, Any]) -> str:
        """The answer to a request to another path, as text."""
        return self._open(path, body).decode(errors="replace")

    def stream(self, path: str, body: dict[str, Any], on_chunk: Callable[[bytes], None]) -> str:
        """The answer to a request to another path, as text, of which `on_chunk` gets each piece."""
        return self._open(path, body, on_chunk).decode(errors="replace")

    @contextmanager
    def _expecting_vllm(self, path: str) -> Iterator[None]:
        try:
            yield
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise UserError(
                f"{self.name} is no vLLM server: its answer to {path} has another form "
                f"({type(error).__name__}: {error})"
            ) from error

    def _open(
        self,
        path: str,
        body: dict[str, Any] | None = None,
        on_chunk: Callable[[bytes], None] | None = None,
    ) -> bytes:
        key = os.environ.get("VLLM_API_KEY")
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        answer = web.request(
            self.url + path, body=body, headers=headers, seconds=self.seconds, on_chunk=on_chunk
        )
        if answer.status < 300:
            return answer.body
        if answer.status in (401, 403):
            raise UserError(f"{self.name} refuses the key in VLLM_API_KEY")
        # It may repeat the key that it was sent.
        reason = scrubbed(" ".join(answer.body.decode(errors="replace").split()))[:300]
        message = f"{self.name}{path} answers {answer.status}: {reason or 'nothing more'}"
        # 408 and 429 are temporary, too.
        if answer.status >= 500 or answer.status in (408, 429):
            raise TryAgain(message)
        raise Refused(message)


def request(model: str, record: Record, max_tokens: int) -> dict[str, Any]:
    """Body of a greedy chat completion for a row's prompt, its images and videos as data URIs.

    Raises UserError for videos of several rates: vLLM takes one for a request.
    """
    media = {IMAGE: iter(record.images), VIDEO: iter(record.videos)}
    in_parts = bool(record.images or record.videos)
    messages = [
        {"role": role, "content": content_parts(content, media) if in_parts else content}
        for role, content in record.messages[:-1]
    ]
    for message, turn in zip(messages, record.prompt(), strict=True):
        message |= {
            key: turn[key] for key in ("reasoning_content", "tool_call_id", "name") if key in turn
        }
        if calls := turn.get("tool_calls"):
            message["tool_calls"] = [with_text_arguments(call) for call in calls]
    body = {"model": model, "messages": messages, "temperature": 0, "max_tokens": max_tokens}
    if record.tools:
        # With tool_choice none the answer comes as it was written, and the prompt shows the tools.
        body |= {"tools": record.tool_list(), "tool_choice": "none"}
    if record.videos:
        rates = sorted({video.fps for video in record.videos})
        if len(rates) > 1:
            listed = " and ".join(map(str, rates))
            raise UserError(
                f"a row shows videos of {listed} frames a second, and vLLM takes one rate a request"
            )
        # Every frame: what came is already a sample.
        body["media_io_kwargs"] = {"video": {"num_frames": -1, "fps": rates[0]}}
    return body


def with_text_arguments(call: dict[str, Any]) -> dict[str, Any]:
    """A call as the interface takes it, its arguments as JSON in a text."""
    function = call["function"]
    arguments = json.dumps(function["arguments"], ensure_ascii=False)
    return {**call, "function": {**function, "arguments": arguments}}


def content_parts(content: str, media: dict[str, Iterator[Any]]) -> list[dict[str, Any]]:
    """A turn as the interface's list of parts; tags become the next images and videos."""
    listed: list[dict[str, Any]] = []
    for piece in TAGS.split(content):
        if piece == IMAGE:
            data = base64.b64encode(next(media[IMAGE])).decode()
            url = {"url": f"data:image/{image_type(data)};base64,{data}"}
            listed.append({"type": "image_url", "image_url": url})
        elif piece == VIDEO:
            frames = (base64.b64encode(frame).decode() for frame in next(media[VIDEO]).frames)
            # vLLM's name for frames that were sampled, whatever their format.
            url = {"url": f"data:video/jpeg;base64,{','.join(frames)}"}
            listed.append({"type": "video_url", "video_url": url})
        elif piece:
            listed.append({"type": "text", "text": piece})
    return listed


def image_type(encoded: str) -> str:
    """An image's type by the first bytes of its base64; PNG if they are unknown."""
    types = {"/9j/": "jpeg", "R0lG": "gif", "UklG": "webp"}
    return types.get(encoded[:4], "png")
