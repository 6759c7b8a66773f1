"""The gateway's session that keeps a visitor's questions, and another one if it is gone."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

from gateway.ui import asking
from gateway.ui.asking import Progress
from gateway.ui.client import Gateway, Refusal
from gateway.ui.connections import Preferences
from gateway.ui.questions import Question

LONGEST_TITLE = 80

GONE, FULL = "not_found", "session_full"
"""Codes of the gateway's refusals: of a session that was deleted, or not used for too long, and of
one that has no room for another turn."""


class Conversation:
    """A session that begins with the first question, and begins anew if it is gone or full."""

    def __init__(self, gateway: Gateway, session: str, title: str) -> None:
        self.gateway = gateway
        self.session = session
        """The session's ID; empty before the first question."""

        self.title = title
        self.began_anew = ""
        """Code of the refusal for which another session began."""

    async def begin(self) -> None:
        if not self.session:
            title = " ".join(self.title.split())[:LONGEST_TITLE]
            created = await self.gateway.json("POST", "/sessions", json={"title": title})
            self.session = str(created["id"])

    async def begin_anew(self, refusal: Refusal) -> None:
        """Begin another session where this one is gone or full; raise any other refusal, and a
        second."""
        if refusal.code not in (GONE, FULL) or self.began_anew:
            raise refusal
        self.session = ""
        await self.begin()
        self.began_anew = refusal.code

    async def ask(
        self, question: Question, preferences: Preferences
    ) -> AsyncGenerator[Progress, None]:
        """The answer to a question as it grows; the gateway keeps both."""
        await self.begin()
        while True:
            in_session = asking.with_session(question, self.session)
            try:
                async with aclosing(asking.ask(self.gateway, in_session, preferences)) as growing:
                    async for progress in growing:
                        yield progress
                return
            except Refusal as refusal:
                await self.begin_anew(refusal)

    async def form(self, path: str, fields: dict[str, str], files: Sequence[Path]) -> Any:
        """The whole answer to a form; the gateway keeps both."""

        async def send() -> Any:
            return await self.gateway.form(path, fields | {"session": self.session}, files)

        return await self.kept(send)

    async def keep(self, turn: dict[str, Any]) -> None:
        """Keep a question and an answer that the gateway did not bring together."""

        async def send() -> Any:
            return await self.gateway.json("POST", f"/sessions/{self.session}/turns", json=turn)

        await self.kept(send)

    async def kept(self, send: Callable[[], Awaitable[Any]]) -> Any:
        await self.begin()
        try:
            return await send()
        except Refusal as refusal:
            await self.begin_anew(refusal)
        return await send()

    def line(self, text: str, _: Callable[[str], str]) -> str:
        """A line of the page, with a sentence more if this conversation began anew."""
        why = {
            GONE: _("The gateway no longer had the conversation, so a new one began."),
            FULL: _("The conversation was full, so a new one began."),
        }
        return f"{text} {why.get(self.began_anew, '')}".rstrip()
