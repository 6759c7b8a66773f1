"""Turns of a conversation as OpenAI, ShareGPT, LLaMA-Factory, axolotl and ms-swift write them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from loraline.data.checks import BadRow
from loraline.data.reading.calls import Calls, calls_in_text, results_in_text
from loraline.data.reading.contents import Media, Parts, parts_of
from loraline.data.reading.keys import SETTINGS, Leftover, unused
from loraline.data.reading.values import type_name, unpacked
from loraline.records import Detail

ROLES = {
    "human": "user",
    "user": "user",
    "prompter": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "ai": "assistant",
    "chatbot": "assistant",
    "system": "system",
    "developer": "system",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
    "tool_response": "tool",
    "ipython": "tool",
    "function_call": "call",
    "tool_call": "call",
}
"""Roles by their names elsewhere; `call` is an answer that is nothing but calls."""

TALK = {
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
}
"""Roles of turns that are text and nothing else."""

ACCEPTED = "user, human, assistant, gpt, system, developer, tool, observation, function_call"

PAIRS = (
    ("human", "user", "query", "question", "input"),
    ("assistant", "gpt", "bot", "response", "answer", "output"),
)
"""Keys of a turn that holds a question with its answer, as ms-swift's older sets."""

LEARNT = ("weight", "loss_weight", "loss", "train", "training")
"""Keys of a turn that say whether it is learnt: OpenAI, LLaMA-Factory, ms-swift, axolotl."""

WEIGHTS = {"0": False, "0.0": False, "false": False, "1": True, "1.0": True, "true": True}
"""Values of these keys that are texts."""

REASONING = ("reasoning_content", "reasoning", "thinking", "thought")

KEYS = ("role", "content")

PLAIN = frozenset({"role", "from", "content", "value"})

SPEAKER = re.compile(r"\s*(human|user|assistant|gpt|bot)\s*:\s", re.IGNORECASE)
"""A role that is written in front of a text."""


class TurnReader:
    """Reads turns one by one; media that are named in parts go to the draft's lists."""

    def __init__(
        self,
        names: Mapping[str, str],
        ignore: Sequence[str],
        images: list[Media],
        videos: list[Media],
    ) -> None:
        self.leftover = Leftover(ignore)
        self.parts = Parts(images, videos, self.leftover)
        self.role = self.content = None
        self.roles, self.plain = ROLES, PLAIN
        if names:
            self.role, self.content = names.get("role"), names.get("content")
            theirs = {names[ours]: ROLES.get(ours, ours) for ours in names if ours not in KEYS}
            self.roles = ROLES | theirs
            self.plain = PLAIN.union(filter(None, (self.role, self.content)))
        self.calls = Calls()
        self.format = "messages"
        self.turns: list[tuple[str, str]] = []
        self.details: dict[int, Detail] = {}
        self.has_tools = False
        """Whether calls that are written in a text are calls of the row's tools."""

    def read(self, turns: Sequence[Any]) -> None:
        """Read turns; raises BadRow. Those of nothing but role and text are the most, by far."""
        plain = self.roles is ROLES and not self.has_tools
        if all(isinstance(turn, str) for turn in turns):
            turns = [unpacked(turn) for turn in turns]
            if all(isinstance(turn, str) for turn in turns):
                self.texts_in_turn(turns)
                return
        for turn in turns:
            if plain and type(turn) is dict and len(turn) == 2:
                role, text = turn.get("role"), turn.get("content")
                if role is None:
                    role, text = turn.get("from"), turn.get("value")
                if type(role) is str and type(text) is str and role in TALK and text[:2] != "[{":
                    if not self.turns and "from" in turn:
                        self.format = "conversations"
                    self.turns.append((TALK[role], text))
                    continue
            self.add(turn)

    def texts_in_turn(self, texts: Sequence[str]) -> None:
        """Texts without roles, as LIMA lists them: a question and an answer in turn."""
        if len(texts) % 2:
            raise BadRow(
                "roles",
                "expected turns as objects, or a question and an answer in turn; found "
                f"{len(texts)} text{'s' if len(texts) > 1 else ''} without a role",
            )
        if spoken := next((match for match in map(SPEAKER.match, texts) if match), None):
            raise BadRow(
                "format",
                f"a turn is a text that begins with {spoken.group().strip()!r}; write its role as "
                "a key",
            )
        self.turns = [(("user", "assistant")[n % 2], text) for n, text in enumerate(texts)]

    def add(self, turn: Any) -> None:
        """Read one turn; raises BadRow."""
        if not isinstance(turn, dict):
            raise BadRow("format", f"a turn of messages is {type_name(turn)}, not an object")
        role = turn.get(self.role) if self.role else first_of_two(turn, "role", "from")
        if role is None:
            self.add_pair(turn)
            return
        named = (
            self.roles.get(role, self.roles.get(role.lower())) if isinstance(role, str) else None
        )
        if named is None:
            raise BadRow(
                "roles",
                f"unknown role {str(role)[:40]!r}, accepted: {ACCEPTED}; others by name: "
                f"turns: {{assistant: name}}, {SETTINGS}",
            )
        role = named
        if not self.turns and "from" in turn:
            self.format = "conversations"
        content = turn.get(self.content) if self.content else first_of_two(turn, "content", "value")
        calls = turn.get("tool_calls") or turn.get("function_call")
        names = {self.content} if self.content else {"content", "value"}
        if content is None and not calls and not names & turn.keys():
            raise BadRow(
                "format",
                f"a {role} turn has neither content nor value, but {some_keys(turn)}; others by "
                f"name: turns: {{content: name}}, {SETTINGS}",
            )
        detail = self.detail(role, turn) if turn.keys() - self.plain else None
        if role == "call":
            self.add_calls(content, detail)
            return
        if isinstance(content, str) and content.startswith("[{") and role != "tool":
            content = parts_of(content)
        if isinstance(content, list):
            content = self.parts.text(content)
        if content is None and (role == "system" or (detail and detail.calls)):
            content = ""
        if not isinstance(content, str):
            raise BadRow("format", f"content of the {role} turn is {type_name(content)}, not text")
        if role == "system" and not content.strip():
            return
        if role == "tool":
            self.add_results(content, detail or Detail())
            return
        if role == "assistant" and self.has_tools and "<tool_call>" in content:
            content, calls_of_text = calls_in_text(content)
            if calls_of_text and detail and detail.calls:
                raise unused("tool_calls", why="the text of the turn has calls, too")
            if calls_of_text:
                calls = encoded(self.calls.parsed(calls_of_text))
                detail = (detail or Detail())._replace(calls=calls)
        self.append(role, content, detail)

    def add_results(self, content: str, detail: Detail) -> None:
        """Results of tools. Templates write Hermes' `<tool_response>` themselves."""
        results = results_in_text(content)
        for result in results:
            named = detail.call if len(results) == 1 else ""
            call = named or self.calls.answered(None)
            self.append("tool", result, detail._replace(call=call))

    def append(self, role: str, content: str, detail: Detail | None) -> None:
        if role == "tool" or (detail and detail != Detail()):
            self.details[len(self.turns)] = detail or Detail()
        self.turns.append((role, content))

    def add_pair(self, turn: Mapping[str, Any]) -> None:
        """A question with its answer in one object."""
        named = [next((key for key in keys if key in turn), None) for keys in PAIRS]
        if None in named:
            raise BadRow("roles", f"a turn has neither role nor from, but {some_keys(turn)}")
        others = turn.keys() - set(named)
        if not self.turns and isinstance(turn.get("system"), str) and "system" in others:
            others.remove("system")
            if turn["system"]:
                self.append("system", turn["system"], None)
        learnt = [key for key in others if key in LEARNT or key == "output_with_loss"]
        detail = Detail(learnt=all(is_learnt(key, turn[key]) for key in learnt))
        for role, key in zip(("user", "assistant"), named, strict=True):
            content = turn[key or ""]
            if not isinstance(content, str):
                raise BadRow("format", f"{key} of a turn is {type_name(content)}, not text")
            self.append(role, content, detail if role == "assistant" else None)
        for key in others - set(learnt):
            self.leftover.add(str(key), turn[key])

    def add_calls(self, content: Any, detail: Detail | None) -> None:
        """A turn that is nothing but calls; it goes on an answer before it."""
        calls = self.calls.parsed(content)
        number = len(self.turns) - 1
        if self.turns and self.turns[-1][0] == "assistant":
            before = self.details.get(number, Detail())
            calls = [*json.loads(before.calls or "[]"), *calls]
            if detail and detail.learnt != before.learnt:
                raise unused("weight", why="nothing learns an answer without its calls")
            self.details[number] = before._replace(calls=encoded(calls))
            return
        self.append("assistant", "", (detail or Detail())._replace(calls=encoded(calls)))

    def detail(self, role: str, turn: Mapping[str, Any]) -> Detail:
        """What a turn holds beside role and text."""
        result = Detail()
        answers = role in ("assistant", "call")
        for key, value in turn.items():
            if key in self.plain or value is None or value == [] or value == "":
                continue
            if key in self.leftover.ignore:
                self.leftover.names.add(str(key))
            elif key in LEARNT:
                learnt = is_learnt(key, value)
                if learnt and not answers:
                    raise unused(key, why=f"nothing learns a {role} turn")
                result = result._replace(learnt=learnt and result.learnt) if answers else result
            elif key in REASONING and answers and isinstance(value, str):
                if result.reasoning not in ("", value):
                    raise unused(key, why="the turn has another reasoning, too")
                result = result._replace(reasoning=value)
            elif key in ("tool_calls", "function_call") and role == "assistant":
                calls = self.calls.parsed(value)
                if calls and result.calls:
                    raise unused(key, why="the turn has other calls, too")
                result = result._replace(calls=encoded(calls)) if calls else result
            elif key == "tool_call_id" and role == "tool":
                result = result._replace(call=self.calls.answered(value))
            elif key == "name" and role == "tool" and isinstance(value, str):
                result = result._replace(name=value)
            else:
                self.leftover.add(str(key), value)
        return result


def learn_only_last(turns: Sequence[tuple[str, str]], details: dict[int, Detail]) -> None:
    """Learn the last answer alone."""
    last_answer = max((n for n, (role, _) in enumerate(turns) if role == "assistant"), default=-1)
    for number, (role, _) in enumerate(turns):
        if role == "assistant" and number != last_answer:
            before = details.get(number, Detail())
            details[number] = before._replace(learnt=False)


def cut_after_last_learnt(turns: list[tuple[str, str]], details: dict[int, Detail]) -> None:
    """Leave out what follows the last answer that is learnt: nothing learns from it."""
    if all(detail.learnt for detail in details.values()):
        return
    learnt = [
        number
        for number, (role, _) in enumerate(turns)
        if role == "assistant" and details.get(number, Detail()).learnt
    ]
    if not learnt:
        raise BadRow("roles", "no answer is to be learnt, all have weight 0")
    if turns[-1][0] == "assistant":
        del turns[learnt[-1] + 1 :]
        for number in [number for number in details if number > learnt[-1]]:
            del details[number]


def is_learnt(key: str, value: Any) -> bool:
    """Whether a turn with such a weight is learnt; BadRow for a weight between none and all."""
    if value in (0, 1):
        return bool(value)
    if isinstance(value, str) and value.strip().lower() in WEIGHTS:
        return WEIGHTS[value.strip().lower()]
    raise unused(key, why=f"{str(value)[:20]} is neither 0 nor 1")


def encoded(calls: list[dict[str, Any]]) -> str:
    return json.dumps(calls, ensure_ascii=False) if calls else ""


def first_of_two(turn: Mapping[str, Any], ours: str, theirs: str) -> Any:
    """The one of two keys that a turn fills, as tables that hold both forms do.

    Raises BadRow where both are filled and differ.
    """
    first, second = turn.get(ours), turn.get(theirs)
    if first is not None and second is not None and first != second:
        raise unused(
            theirs, f"turns: {{{'role' if ours == 'role' else 'content'}: {theirs}}} reads it"
        )
    return second if first is None else first


def some_keys(row: Mapping[str, Any]) -> str:
    """Some keys of a row for people."""
    keys = [str(key)[:30] for key in row]
    return ", ".join(keys[:5]) + (f" and {len(keys) - 5} more" if len(keys) > 5 else "")
