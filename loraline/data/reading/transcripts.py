"""Conversations that are written as one text: glaive's chats and the dialogues of HH."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from loraline.data.checks import BadRow

SPEAKERS = re.compile(r"(?:^|\n\n+)(USER|ASSISTANT|FUNCTION RESPONSE): ?")
"""Who speaks in glaive's `chat`."""

GLAIVE = {"USER": "user", "ASSISTANT": "assistant", "FUNCTION RESPONSE": "tool"}

END = "<|endoftext|>"

CALL = re.compile(r"<functioncall>\s*(?P<call>\{.*\})\s*", re.DOTALL)
"""A call at the end of an answer."""

ARGUMENTS = re.compile(r"""("arguments":\s*)'(?P<arguments>.*)'(\s*\}\s*)$""", re.DOTALL)
"""Arguments as JSON in single quotes, which is how glaive writes them."""

OFFERED = re.compile(r"with access to the following functions[^\n{\[]*")
"""Glaive's phrase before the list of tools in a system text."""

HH = re.compile(r"(?:^|\n\n)(Human|Assistant): ?")
"""Who speaks in the dialogues of HH."""


def glaive(row: Mapping[str, Any]) -> dict[str, Any] | None:
    """A row of `system` and `chat` as tools and messages; None for any other row."""
    chat, system = row.get("chat"), row.get("system")
    if not isinstance(chat, str) or SPEAKERS.match(chat.lstrip()) is None:
        return None
    result = {key: value for key, value in row.items() if key not in ("chat", "system")}
    turns: list[dict[str, Any]] = []
    if isinstance(system, str) and system.strip():
        text = system.strip().removeprefix("SYSTEM:").strip()
        if OFFERED.search(text):
            # The chat template names the tools.
            result["tools"] = tools_of(text)
        else:
            turns.append({"role": "system", "content": text})
    pieces = SPEAKERS.split(chat.strip())
    for speaker, spoken in zip(pieces[1::2], pieces[2::2], strict=True):
        # A space stands before the mark; the answer's own spaces and lines are kept.
        marked = spoken.endswith(END)
        text = spoken.removesuffix(END).removesuffix(" ") if marked else spoken
        turns.append(turn(GLAIVE[speaker], text))
    return result | {"messages": turns}


def turn(role: str, text: str) -> dict[str, Any]:
    """One turn of a glaive chat, with its call if it makes one."""
    match = CALL.search(text) if role == "assistant" else None
    if match is None:
        if "<functioncall>" in text:
            raise BadRow("format", "a <functioncall> is not followed by an object")
        return {"role": role, "content": text}
    call = ARGUMENTS.sub(
        lambda quoted: quoted[1] + json.dumps(quoted["arguments"]) + quoted[3], match["call"]
    )
    try:
        parsed = json.loads(call)
    except ValueError:
        raise BadRow("format", f"a <functioncall> is no JSON: {call[:60]!r}") from None
    return {"role": role, "content": text[: match.start()].rstrip(), "tool_calls": [parsed]}


def tools_of(text: str) -> list[Any]:
    """The JSON objects in a system text, one after the other."""
    decoder, listed, place = json.JSONDecoder(), list[Any](), text.find("{")
    while place >= 0:
        try:
            tool, place = decoder.raw_decode(text, place)
        except (ValueError, RecursionError):
            raise BadRow("format", "the tools in a chat's system text are no JSON") from None
        listed.append(tool)
        place = text.find("{", place)
    return listed


def turns_of_dialogue_question(text: str) -> list[tuple[str, str]]:
    """Turns of a question that is a dialogue of HH and ends where the answer begins; else none."""
    turns = dialogue(text) if text.rstrip().endswith("Assistant:") else None
    if not turns or turns[-1]["role"] != "assistant" or turns[-1]["content"].strip():
        return []
    return [(turn["role"], turn["content"]) for turn in turns[:-1]]


def dialogue(text: str) -> list[dict[str, str]] | None:
    """The turns of a dialogue of HH, which begins with `Human:`; None for any other text."""
    if not text.lstrip().startswith("Human:"):
        return None
    pieces = HH.split(text.lstrip())
    names = {"Human": "user", "Assistant": "assistant"}
    return [
        {"role": names[speaker], "content": spoken}
        for speaker, spoken in zip(pieces[1::2], pieces[2::2], strict=True)
    ]
