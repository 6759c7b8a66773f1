"""Plain texts, and JSON values of a task's own shape."""

from __future__ import annotations

from typing import Any

from gateway.parsing.answer import FENCE, Answer, Item, segments, words_item
from gateway.parsing.lenient import Block, blocks, plain


def parse_text(answer: Answer) -> tuple[Any, list[Item]]:
    """The text as it is, without a fence around it."""
    text = FENCE.sub("", answer.text).strip() if answer.text.startswith("```") else answer.text
    return text, [{"kind": "text", "text": text}] if text else []


def parse_json(answer: Answer) -> tuple[Any, list[Item]]:
    """The first JSON value that keeps to the task's schema, or else the first one."""
    parts = segments(answer.text)
    candidates: list[tuple[Block, Any]] = [
        (block, plain(block.value)) for part in parts for block in blocks(part)
    ]
    # Brackets in prose are lists of words; a value that was asked for is not empty of meaning.
    fitting = [entry for entry in candidates if answer.task.is_valid(entry[1])]
    block, value = next(iter(fitting or candidates), (None, None))
    if block is None:
        return None, words_item(answer.text)
    if len(fitting) > 1:
        answer.note("several", f"{len(fitting)} values were given; the first is taken")
    if not block.value.whole:
        answer.note("cut")
    elif block.mended:
        answer.note("repaired")
    rest = "\n".join(without_block(part, block) for part in parts)
    return value, [{"kind": "object", "value": value}, *words_item(rest)]


def without_block(part: str, block: Block) -> str:
    """A part of the answer without the block that was taken, where it is in this one."""
    kept, end = [], 0
    for other in blocks(part):
        if other.value == block.value:
            kept.append(part[end : other.start])
            end = other.end
    return "".join([*kept, part[end:]])
