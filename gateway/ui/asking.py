"""A question on its way: the pieces of its answer as they come, and the whole of it at the end."""

from __future__ import annotations

import tempfile
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from anyio import to_thread

from gateway.ui import pictures, questions
from gateway.ui.client import REMOVED, Gateway, Refusal
from gateway.ui.connections import Preferences
from gateway.ui.pictures import Unreadable
from gateway.ui.questions import CHAT, PREDICT, Question

SHOWN_EVERY_S = 0.04
"""Between two looks of the page at a growing answer: the eye sees no more."""

MOST_TURNS = 41
"""Turns of a conversation that a follow-up sends; an odd number of them begins with a question."""


@dataclass
class Progress:
    """What is known of an answer so far."""

    text: str = ""
    document: dict[str, Any] = field(default_factory=dict)
    """The gateway's whole answer; empty while it comes."""

    began: float = field(default_factory=time.perf_counter)
    first: float | None = None
    """Seconds to the first piece."""

    seconds: float = 0.0
    shown_at: float = 0.0

    def add(self, piece: str) -> bool:
        """Take a piece; whether it is time to show what there is."""
        now = time.perf_counter()
        if self.first is None:
            self.first = now - self.began
        self.text += piece
        if now - self.shown_at < SHOWN_EVERY_S:
            return False
        self.shown_at = now
        return True

    def end(self, document: dict[str, Any]) -> None:
        self.seconds = time.perf_counter() - self.began
        self.document = document

    @property
    def line(self) -> str:
        return questions.in_words(self.document, self.seconds, self.first)


async def ask(
    gateway: Gateway, question: Question, preferences: Preferences
) -> AsyncGenerator[Progress, None]:
    """The answer of the adapter or of a task, as it grows; Refusal where there is none."""
    progress = Progress()
    with tempfile.TemporaryDirectory(prefix="loraline-page-") as folder:
        files: Sequence[Path] = question.files
        if question.task != PREDICT and preferences.megapixels:
            files = await to_thread.run_sync(smaller, files, preferences.megapixels, Path(folder))
        fields = {**question.fields(), "stream": "true"}
        several_files = len(files) > 1 and question.task == PREDICT
        async with aclosing(gateway.events(question.path, fields, files)) as events:
            at = 0
            async for event, data in events:
                if event == "done":
                    progress.end(data)
                    if question.task == PREDICT:
                        # Pieces come with the space around an answer, which is measured without it.
                        captions = (str(each["caption"]) for each in data["predictions"])
                        progress.text = "\n\n".join(captions)
                    yield progress
                    return
                if several_files and data.get("image_index", 0) != at:
                    at = data["image_index"]
                    progress.text += "\n\n"
                if progress.add(str(data.get("text", ""))):
                    yield progress


def smaller(files: Sequence[Path], megapixels: float, folder: Path) -> list[Path]:
    """The pictures no larger than that; other files as they are."""
    sent = []
    for path in files:
        try:
            sent.append(pictures.sent(path, megapixels, folder))
        except Unreadable:
            sent.append(path)
    return sent


async def chat(
    gateway: Gateway,
    model: str,
    history: Sequence[dict[str, Any]],
    preferences: Preferences,
) -> AsyncGenerator[Progress, None]:
    """The answer to a conversation, as it grows. Turns hold `role`, `text` and `files`."""
    chat_request = await to_thread.run_sync(chat_body, model, history, preferences)
    progress = Progress()
    reason, usage = None, None
    async with aclosing(gateway.chat(chat_request)) as chunks:
        async for chunk in chunks:
            usage = chunk.get("usage") or usage
            for choice in chunk.get("choices", ())[:1]:
                reason = choice.get("finish_reason") or reason
                piece = (choice.get("delta") or {}).get("content") or ""
                if piece and progress.add(piece):
                    yield progress
    progress.end({"raw": progress.text, "finish_reason": reason, "usage": usage, "model": model})
    yield progress


def chat_body(
    model: str, history: Sequence[dict[str, Any]], preferences: Preferences
) -> dict[str, Any]:
    """The request of a conversation; Refusal for a file that no chat takes."""
    turns = []
    with tempfile.TemporaryDirectory(prefix="loraline-page-") as folder:
        for turn in history[-MOST_TURNS:]:
            files = [Path(path) for path in turn.get("files", ())]
            if not all(path.is_file() for path in files):
                raise Refusal(REMOVED)
            try:
                sent = [pictures.sent(each, preferences.megapixels, Path(folder)) for each in files]
                uris = [pictures.data_uri(path) for path in sent]
            except Unreadable as error:
                raise Refusal(f"A free question takes pictures alone: {error}.") from error
            turns.append({"role": turn["role"], "text": turn["text"], "pictures": uris})
    return {
        "model": model,
        "messages": questions.turns(preferences.system, turns),
        **preferences.fields(),
    }


def task_choices(card: dict[str, Any], tasks: Sequence[dict[str, Any]]) -> list[tuple[str, str]]:
    """Title and name of each way to ask a model: its own prompt, a free question, and the tasks."""
    choices = []
    if card.get("prompt"):
        choices.append(("As it was trained", PREDICT))
    choices.append(("Free question", CHAT))
    sees = card.get("family") != "text"
    choices += [
        (str(task["title"]), str(task["name"]))
        for task in tasks
        if sees or task["inputs"] == "text"
    ]
    return choices


def with_session(question: Question, session: str) -> Question:
    return replace(question, session=session)
