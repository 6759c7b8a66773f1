"""Sessions: questions and answers that the caller wants to keep and export."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gateway import store
from gateway.errors import Problem
from gateway.images import Picture
from gateway.keys import Caller
from gateway.settings import MIB, Settings
from gateway.store import Store

MAX_TURNS = 1000
MAX_SESSIONS = 1000
"""Sessions that one caller may have."""

MAX_SESSION = 512 * MIB
MAX_TEXTS = 32 * MIB
"""Bytes of a session without its media: all of them are read for each turn."""


class Sessions:
    """The store of sessions, in files; nothing of them is read into the logs."""

    def __init__(self, settings: Settings) -> None:
        self.store = Store(settings.data_dir / "sessions", "session.json")

    async def create(self, caller: Caller, title: str) -> dict[str, Any]:
        def make() -> dict[str, Any]:
            if len(self.store.of(caller)) >= MAX_SESSIONS:
                raise Problem(
                    409, "sessions", f"This key has {MAX_SESSIONS:,} sessions; delete one first."
                )
            now = time.time()
            document = {"title": title, "created": now, "changed": now, "turns": []}
            return self.store.read(self.store.create(caller, document))

        return await asyncio.to_thread(make)

    async def read(self, caller: Caller, name: str) -> dict[str, Any]:
        return await asyncio.to_thread(lambda: self.store.read(self.store.folder(caller, name)))

    async def add(
        self, caller: Caller, name: str, turn: dict[str, Any], pictures: Sequence[Picture] = ()
    ) -> dict[str, Any]:
        """Append a turn with its media; a Problem when the session is full or none."""

        def append(document: dict[str, Any]) -> None:
            if len(document["turns"]) >= MAX_TURNS:
                raise full()
            document["turns"].append(turn)

        def add() -> dict[str, Any]:
            folder = self.store.folder(caller, name)
            self.check_size(folder, pictures, len(store.encoded(turn)))
            for picture in pictures:
                store.add_medium(folder, picture.content, picture.sha256)
            return self.store.change(folder, append)

        return await asyncio.to_thread(add)

    async def check(self, caller: Caller, name: str, pictures: Sequence[Picture]) -> None:
        """Raise the Problem of a turn that could not be added."""

        def check() -> None:
            folder = self.store.folder(caller, name)
            if len(self.store.read(folder)["turns"]) >= MAX_TURNS:
                raise full()
            self.check_size(folder, pictures, 1)

        await asyncio.to_thread(check)

    def check_size(self, folder: Path, pictures: Sequence[Picture], more: int) -> None:
        """Refuse pictures and so many bytes of text that a session has no room for."""
        if (folder / self.store.document).stat().st_size + more > MAX_TEXTS:
            raise full()
        new = sum(len(picture.content) for picture in pictures)
        if pictures and store.size(folder) + new > MAX_SESSION:
            raise full()

    async def medium(self, caller: Caller, name: str, sha256: str) -> tuple[bytes, str]:
        """An image of a session and its type."""
        document = await self.read(caller, name)
        kinds = {
            medium["sha256"]: medium["mime"]
            for turn in document["turns"]
            for medium in turn.get("media", ())
        }
        if sha256 not in kinds:
            raise store.missing()
        path = self.store.folder(caller, name) / store.MEDIA / sha256
        return await asyncio.to_thread(path.read_bytes), kinds[sha256]


class Keeper:
    """Writes one question and its answer into a session; does nothing where none is named."""

    def __init__(
        self,
        sessions: Sessions,
        caller: Caller,
        name: str,
        task: str,
        question: str,
        pictures: Sequence[Picture],
    ) -> None:
        self.sessions = sessions
        self.caller = caller
        self.name = name
        self.task = task
        self.question = question
        self.pictures = pictures

    async def check(self) -> None:
        """Raise the Problem of a session that is full or none before the model is asked."""
        if self.name:
            await self.sessions.check(self.caller, self.name, self.pictures)

    async def keep(self, answer: dict[str, Any]) -> None:
        if not self.name:
            return
        media = [
            {
                "sha256": picture.sha256,
                "mime": picture.mime,
                "width": picture.width,
                "height": picture.height,
            }
            for picture in self.pictures
        ]
        turn = {
            "time": time.time(),
            "task": self.task,
            "model": answer.get("model"),
            "question": self.question,
            "media": media,
            "answer": {key: value for key, value in answer.items() if key != "overlay"},
        }
        await self.sessions.add(self.caller, self.name, turn, self.pictures)


def full() -> Problem:
    return Problem(409, "session_full", "The session is full; begin a new one.")
