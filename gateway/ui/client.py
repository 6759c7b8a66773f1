"""The gateway as the page reaches it: with the visitor's key, over HTTP."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Sequence
from contextlib import ExitStack, aclosing
from pathlib import Path
from typing import Any

import httpx

NO_ANSWER = "The {} does not answer; try again in a moment, or tell its operator."

REMOVED = (
    "The page no longer has a file: it keeps an upload for half an hour. Choose the file again."
)

PASSING = (0, 502, 503, 504)
"""Statuses of a Refusal that may be another in a moment; 0 is no answer at all."""


class Refusal(Exception):
    """The gateway did not answer as asked; its own sentence says why."""

    def __init__(self, sentence: str, status: int = 0, code: str = "") -> None:
        super().__init__(sentence)
        self.sentence = sentence
        self.status = status
        self.code = code


class Gateway:
    """Calls of one visitor; `http` is shared by all of them and holds no key.

    `service` names it in a sentence: the gateway, or the desk.
    """

    def __init__(
        self, http: httpx.AsyncClient, key: str | None, *, service: str = "gateway"
    ) -> None:
        self.http = http
        self.service = service
        self.no_answer = NO_ANSWER.format(service)
        self.headers = {"Authorization": f"Bearer {key}"} if key else {}

    async def call(self, method: str, path: str, **more: Any) -> httpx.Response:
        """A whole answer; Refusal for an error status."""
        headers = {**self.headers, **more.pop("headers", {})}
        try:
            response = await self.http.request(method, path, headers=headers, **more)
        except httpx.TransportError as error:
            raise Refusal(self.no_answer) from error
        if response.status_code >= 300:
            raise self.refusal(response)
        return response

    async def json(self, method: str, path: str, **more: Any) -> Any:
        response = await self.call(method, path, **more)
        try:
            return response.json()
        except ValueError as error:
            sentence = f"The {self.service}'s answer cannot be read."
            raise Refusal(sentence, response.status_code) from error

    async def form(self, path: str, fields: dict[str, str], files: Sequence[Path]) -> Any:
        """The answer to a form with files, which are read from disk as they go out."""
        with ExitStack() as opened:
            return await self.json("POST", path, **multipart(fields, files, opened))

    async def events(
        self, path: str, fields: dict[str, str], files: Sequence[Path]
    ) -> AsyncGenerator[tuple[str, Any], None]:
        """Events of a streamed answer to a form, `token` and at last `done`; Refusal for `error`.

        A reader that stops closes the connection, and the model stops, too.
        """
        with ExitStack() as opened:
            form = multipart(fields, files, opened)
            async with aclosing(self.stream(path, form)) as events:
                async for event, data in events:
                    value = self.parsed(data)
                    if event == "error":
                        sentence = str(value.get("detail", self.no_answer))
                        status, code = int(value.get("status", 0)), str(value.get("code", ""))
                        raise Refusal(sentence, status, code)
                    yield event, value
                    if event == "done":
                        return
        raise Refusal("The answer broke off; what came of it is shown.")

    async def chat(self, body: dict[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
        """Chunks of a chat completion, as OpenAI has them."""
        stream_fields = {"stream": True, "stream_options": {"include_usage": True}}
        stream = self.stream("/v1/chat/completions", {"json": body | stream_fields})
        async with aclosing(stream) as events:
            async for _, data in events:
                if data == "[DONE]":
                    return
                chunk = self.parsed(data)
                if error := chunk.get("error"):
                    raise Refusal(str(error.get("message", self.no_answer)))
                yield chunk
        raise Refusal("The answer broke off; what came of it is shown.")

    async def stream(
        self, path: str, request: dict[str, Any]
    ) -> AsyncGenerator[tuple[str, str], None]:
        """Name and data of each server-sent event."""
        try:
            async with self.http.stream("POST", path, headers=self.headers, **request) as response:
                if response.status_code >= 300:
                    await response.aread()
                    raise self.refusal(response)
                event, data = "message", []
                async for line in lines_of(response):
                    if line.startswith("event:"):
                        event = line[6:].strip()
                    elif line.startswith("data:"):
                        data.append(line[5:].removeprefix(" "))
                    elif not line and data:
                        yield event, "\n".join(data)
                        event, data = "message", []
        except httpx.TransportError as error:
            raise Refusal(self.no_answer) from error

    def parsed(self, data: str) -> dict[str, Any]:
        try:
            value = json.loads(data)
        except ValueError:
            value = None
        if not isinstance(value, dict):
            raise Refusal(f"The {self.service}'s answer cannot be read.")
        return value

    def refusal(self, response: httpx.Response) -> Refusal:
        """The service's sentence, from either form of its errors."""
        try:
            document = response.json()
            error = document.get("error")
            sentence = error["message"] if isinstance(error, dict) else document["detail"]
            code = str((error if isinstance(error, dict) else document).get("code", ""))
        except (ValueError, KeyError, AttributeError, TypeError):
            sentence = f"The {self.service} answered with status {response.status_code}."
            code = ""
        wait = response.headers.get("Retry-After", "")
        again = f" Try again in {wait} s." if wait.isdecimal() else ""
        return Refusal(f"{sentence}{again}", response.status_code, code)


async def lines_of(response: httpx.Response) -> AsyncGenerator[str, None]:
    """The lines of a stream. httpx also ends one at U+2028, which JSON holds as it is."""
    rest = b""
    async for piece in response.aiter_bytes():
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            yield line.removesuffix(b"\r").decode("utf-8", "replace")
    if rest:
        yield rest.decode("utf-8", "replace")


def multipart(fields: dict[str, str], files: Sequence[Path], opened: ExitStack) -> dict[str, Any]:
    """What httpx sends as a form, which may be without files; Refusal for a file that is gone."""
    parts: list[tuple[str, Any]] = [(name, (None, value)) for name, value in fields.items()]
    for path in files:
        try:
            file = opened.enter_context(path.open("rb"))
        except FileNotFoundError as error:
            raise Refusal(REMOVED) from error
        parts.append(("files", (path.name, file)))
    return {"files": parts}
