"""Tools and calls of functions, in the forms that OpenAI, ShareGPT, glaive and ms-swift give them.

A call becomes what chat templates take: an ID, a name, and arguments as an object.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from loraline.data.checks import BadRow
from loraline.data.reading.keys import filled, unused
from loraline.data.reading.values import (
    NOTHING,
    objects,
    python_value,
    structure,
    type_name,
    unpacked,
)

ID = re.compile(r"[A-Za-z0-9]{9}")
"""IDs that Mistral's templates accept; others do not look at them."""

ARGUMENTS = ("arguments", "parameters", "args", "kwargs", "input")
"""Names of a call's arguments."""

SCHEMAS = ("input_schema", "inputSchema")
"""Names of a tool's parameters elsewhere."""

CALL_KEYS = {*ARGUMENTS, "name", "id", "type", "index", "function"}

CALLS_IN_TEXT = re.compile(
    r"(?P<text>.*?)(?P<calls>(\s*<tool_call>\s*\{.*?\}\s*</tool_call>)+)\s*", re.DOTALL
)
CALL_IN_TEXT = re.compile(r"<tool_call>\s*(\{.*?\})\s*</tool_call>", re.DOTALL)
RESULTS_IN_TEXT = re.compile(r"(\s*<tool_response>.*?</tool_response>)+\s*", re.DOTALL)
RESULT_IN_TEXT = re.compile(r"<tool_response>\n?(.*?)\n?</tool_response>", re.DOTALL)
"""How Hermes and Qwen write calls and results in a text."""


def calls_in_text(text: str) -> tuple[str, list[Any]]:
    """An answer's text, and the calls that it ends with; a text that holds others as it is."""
    match = CALLS_IN_TEXT.fullmatch(text)
    if match is None or "<tool_call>" in match["text"]:
        return text, []
    calls = [python_value(unpacked(call)) for call in CALL_IN_TEXT.findall(match["calls"])]
    return (match["text"], calls) if all(isinstance(call, dict) for call in calls) else (text, [])


def results_in_text(text: str) -> list[str]:
    """The results that a tool's turn is made of; a text without tags is one."""
    if "<tool_response>" not in text or RESULTS_IN_TEXT.fullmatch(text) is None:
        return [text]
    return RESULT_IN_TEXT.findall(text)


def tools(value: Any) -> str:
    """A row's tools as a JSON list, each in OpenAI's form."""
    if isinstance(value, str) and value in NOTHING:
        return ""
    value = structure(value)
    listed = [
        tool if "function" in tool else {"type": "function", "function": with_parameters(tool)}
        for tool in objects(value, "tools")
    ]
    for tool in listed:
        function = tool["function"]
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise BadRow("format", "a tool has no name")
    return json.dumps(listed, ensure_ascii=False) if listed else ""


def with_parameters(tool: Mapping[str, Any]) -> dict[str, Any]:
    """A tool whose parameters go by OpenAI's name, and not by Anthropic's or MCP's."""
    theirs = next((key for key in SCHEMAS if key in tool and "parameters" not in tool), None)
    return {"parameters" if key == theirs else key: value for key, value in tool.items()}


def is_nothing(value: Any) -> bool:
    """Whether a cell holds no calls: Parquet fills an object that is missing with nulls."""
    if isinstance(value, Mapping):
        return all(item is None for item in value.values())
    return value is None or (isinstance(value, str) and value in NOTHING)


class Calls:
    """The calls of one conversation, numbered in their order."""

    def __init__(self) -> None:
        self.ids: dict[str, str] = {}
        self.waiting: list[str] = []
        """IDs of the calls that have no result yet."""
        self.number = 0

    def parsed(self, value: Any) -> list[dict[str, Any]]:
        """Calls as chat templates take them."""
        if is_nothing(value):
            return []
        return [self.call(item) for item in objects(value, "tool_calls")]

    def call(self, item: Mapping[str, Any]) -> dict[str, Any]:
        """One call as chat templates take it; BadRow without a name or an object of arguments."""
        function = item["function"] if isinstance(item.get("function"), dict) else item
        name = function.get("name")
        argument_keys = [key for key in ARGUMENTS if filled(function.get(key))]
        if len(argument_keys) > 1:
            raise unused(argument_keys[1], why=f"the call has {argument_keys[0]}, too")
        arguments = structure(function[argument_keys[0]]) if argument_keys else {}
        if not isinstance(name, str) or not name:
            raise BadRow("format", "a call has no name")
        if more := [key for key in function if key not in CALL_KEYS and filled(function[key])]:
            raise unused(str(more[0]), why="nothing reads it in a call")
        if not isinstance(arguments, dict):
            raise BadRow(
                "format",
                f"arguments of the call {name[:40]!r} are {type_name(arguments)}, not an object",
            )
        self.number += 1
        given_id = item.get("id")
        fits = isinstance(given_id, str) and ID.fullmatch(given_id)
        ours = str(given_id) if fits else f"call{self.number:05d}"
        if isinstance(given_id, str):
            self.ids[given_id] = ours
        self.waiting.append(ours)
        return {
            "id": ours,
            "type": "function",
            "function": {"name": name, "arguments": arguments},
        }

    def answered(self, named: Any) -> str:
        """ID of the call that a result is of: the one it names, or the first without a result.

        Raises BadRow where it names one that is none of the calls, though they have IDs.
        """
        ours = self.ids.get(named, "") if isinstance(named, str) else ""
        if named and self.ids and not ours:
            raise BadRow("format", f"a result is of the call {str(named)[:40]!r}, which is none")
        if not ours and self.waiting:
            ours = self.waiting[0]
        if ours in self.waiting:
            self.waiting.remove(ours)
        return ours
