"""Calls of tools in an answer's text, compared by name and arguments and not by their spelling.

Bases write them in different ways: `<tool_call>{...}</tool_call>` (Qwen), `[TOOL_CALLS] [...]`
(Mistral), `{"name": ..., "parameters": ...}` (Llama 3).
"""

from __future__ import annotations

import json
import re
from typing import Any

from loraline.evaluation.metrics import json_number
from loraline.records import Record

MARKS = re.compile(r"</?tool_call>|\[TOOL_CALLS\]|<\|python_tag\|>")
"""The marks that bases write around calls."""

DECODER = json.JSONDecoder(parse_float=json_number)


def comparable(text: str) -> str:
    """An answer's text, and after it its calls, each as JSON with sorted keys in a line."""
    calls, text_outside, place = list[str](), "", 0
    text = MARKS.sub("", text)
    while place < len(text):
        start = next((at for at in range(place, len(text)) if text[at] in "{["), len(text))
        text_outside += text[place:start]
        place = start
        if start == len(text):
            break
        try:
            value, end = DECODER.raw_decode(text, start)
        except (ValueError, RecursionError):
            value, end = None, start + 1
        if parsed := calls_of(value):
            calls += parsed
        else:
            text_outside += text[start:end]
        place = end
    return "\n".join([*([text_outside.strip()] if text_outside.strip() else []), *calls])


def calls_of(value: Any) -> list[str]:
    """The calls of a JSON value: one call or a list of calls; empty for anything else."""
    listed = value if isinstance(value, list) else [value]
    calls = [canonical_call(item) for item in listed]
    return [call for call in calls if call] if all(calls) else []


def canonical_call(item: Any) -> str:
    """A call reduced to its name and arguments; an empty text for anything else."""
    if not isinstance(item, dict) or not isinstance(item.get("name"), str):
        return ""
    arguments = item.get("arguments", item.get("parameters"))
    try:
        if isinstance(arguments, str):
            arguments = DECODER.decode(arguments)
        call = json.dumps({"name": item["name"], "arguments": arguments}, sort_keys=True)
    # What is nested too deeply is no call.
    except (ValueError, RecursionError):
        return ""
    return call if isinstance(arguments, dict) else ""


def reference(record: Record) -> str:
    """A row's answer with its calls, in the form of `comparable_answer`."""
    detail = record.details.get(len(record.messages) - 1)
    calls = (
        [item["function"] for item in DECODER.decode(detail.calls)]
        if detail and detail.calls
        else []
    )
    text = comparable_answer(record.answer, record).strip()
    return "\n".join([*([text] if text else []), *map(canonical_call, calls)])


def comparable_answer(text: str, record: Record) -> str:
    """A model's answer for comparison: if the row has tools, its calls have one form."""
    return comparable(text) if record.tools else text
