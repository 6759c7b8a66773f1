"""Asking a running vLLM server over its OpenAI interface."""

from __future__ import annotations

import base64
import json
import os
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import Any

from loraline.errors import TryAgain, UserError
from loraline.records import IMAGE, Record

TIMEOUT = 300
"""Seconds to wait for one answer."""


@dataclass(frozen=True)
class Served:
    """One answer of a server."""

    tokens: list[int]
    """Token IDs without the end token."""

    text: str
    prompt: list[int]
    """Token IDs that the server made of the request."""

    seconds: float


class Server:
    """A server at an address, with the key of the environment's VLLM_API_KEY."""

    def __init__(self, url: str) -> None:
        if not url.startswith(("http://", "https://")):
            raise UserError(f"server address {url!r} does not start with http:// or https://")
        self.url = url.rstrip("/")

    def is_healthy(self) -> bool:
        """Whether /health answers 200; TryAgain when nobody listens."""
        try:
            self._open("/health").close()
        except urllib.error.HTTPError:
            return False
        return True

    def models(self) -> dict[str, str | None]:
        """Names that the server takes, each with the name of its base, if it is an adapter."""
        with self._open("/v1/models") as answer:
            return {each["id"]: each.get("parent") for each in json.load(answer)["data"]}

    def ask(self, model: str, record: Record, max_tokens: int) -> Served:
        """The greedy answer to a row's prompt. Raises UserError when the server refuses."""
        body = request(model, record, max_tokens) | {"return_token_ids": True}
        started = time.monotonic()
        with self._open("/v1/chat/completions", body) as answer:
            found = json.load(answer)
        choice = found["choices"][0]
        tokens = choice["token_ids"]
        return Served(
            tokens=tokens[:-1] if choice["finish_reason"] == "stop" else tokens,
            text=(choice["message"]["content"] or "").strip(),
            prompt=found["prompt_token_ids"],
            seconds=time.monotonic() - started,
        )

    def post(self, path: str, body: dict[str, Any]) -> str:
        """The answer to a request of another kind, as text."""
        with self._open(path, body) as answer:
            return str(answer.read().decode())

    def _open(self, path: str, body: dict[str, Any] | None = None) -> Any:
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get("VLLM_API_KEY"):
            headers["Authorization"] = f"Bearer {key}"
        data = None if body is None else json.dumps(body).encode()
        asked = urllib.request.Request(self.url + path, data, headers)
        try:
            return urllib.request.urlopen(asked, timeout=TIMEOUT)
        except urllib.error.HTTPError as error:
            if path == "/health":
                raise
            reason = error.read().decode(errors="replace")[:300]
            if error.code == 401:
                raise UserError(f"{self.url} wants another key than VLLM_API_KEY's") from error
            raise UserError(f"{self.url}{path} answers {error.code}: {reason}") from error
        except (urllib.error.URLError, OSError) as error:
            raise TryAgain(
                f"the server at {self.url} does not answer ({getattr(error, 'reason', error)})"
            ) from error


def request(model: str, record: Record, max_tokens: int) -> dict[str, Any]:
    """Body of a greedy chat completion for a row's prompt, its images as data URIs."""
    images = iter(record.images)
    messages = [
        {"role": role, "content": content if not record.images else parts(content, images)}
        for role, content in record.messages[:-1]
    ]
    return {"model": model, "messages": messages, "temperature": 0, "max_tokens": max_tokens}


def parts(content: str, images: Any) -> list[dict[str, Any]]:
    """A turn as the interface's list of parts; image tags become the next images."""
    found: list[dict[str, Any]] = []
    for index, text in enumerate(content.split(IMAGE)):
        if index:
            data = base64.b64encode(next(images)).decode()
            url = {"url": f"data:image/{kind(data)};base64,{data}"}
            found.append({"type": "image_url", "image_url": url})
        if text:
            found.append({"type": "text", "text": text})
    return found


def kind(encoded: str) -> str:
    """An image's type by the first bytes of its base64; PNG when it is none of the known."""
    known = {"/9j/": "jpeg", "R0lG": "gif", "UklG": "webp"}
    return known.get(encoded[:4], "png")
