"""Whether a running server makes the tokens of a request that training made of the row.

`rows` are those of the predictions table, `answers` the server's in the same order.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from loraline.base import locate
from loraline.base.encoding import Encoder
from loraline.records import from_prompt
from loraline.serving.client import Refused

if TYPE_CHECKING:
    from loraline.contract import Contract
    from loraline.records import Record
    from loraline.serving.client import Served, Server


def prompt_problems(
    running: Server,
    name: str,
    agreed: Contract,
    rows: Sequence[dict[str, Any]],
    answers: Sequence[Served],
) -> list[str]:
    """What is wrong with the tokens that the server makes of a request: template, pixel limits."""
    base = locate.Base(locate.locate_tokenizer(agreed), agreed.base_revision, {})
    encoder = Encoder.of(agreed, base)
    if problems := token_problems(rows, answers, encoder):
        return problems
    if agreed.modality == "text":
        return []
    try:
        return pixel_problems(running, name, agreed, encoder)
    except Refused as error:
        return [f"the server refuses an image beyond the limits: {error}"]


def token_problems(
    rows: Sequence[dict[str, Any]], answers: Sequence[Served], encoder: Encoder
) -> list[str]:
    """The first prompt of which the server makes other tokens; none to compare is wrong, too."""
    if not any(answer.prompt for answer in answers):
        return ["no prompt could be compared: the server gives no tokens of any row's prompt"]
    for row, answer in zip(rows, answers, strict=True):
        if answer.refusal:
            continue
        if not answer.prompt:
            return [f"the server gives no tokens of row {row['row']}'s prompt to compare"]
        expected = encoder.encode(row["record"]).prompt
        if answer.prompt != expected:
            return [
                f"the prompt of row {row['row']} is {len(answer.prompt)} tokens on the server and "
                f"{len(expected)} in training: another chat template, prompt or pixel limit"
            ]
    return []


def pixel_problems(running: Server, name: str, agreed: Contract, encoder: Encoder) -> list[str]:
    """Images just beyond both limits, which held-out rows may not hold."""
    for limit, area in (("min_pixels", agreed.min_pixels), ("max_pixels", agreed.max_pixels)):
        assert area is not None
        record = drawing(agreed, round((area * (0.25 if limit == "min_pixels" else 4)) ** 0.5))
        expected = len(encoder.encode(record).prompt)
        actual = len(running.ask(name, record, 1).prompt)
        if actual != expected:
            return [
                f"an image beyond {limit} is {actual} tokens on the server, {expected} in training"
            ]
    return []


def drawing(agreed: Contract, edge: int) -> Record:
    """A row with a white square of so many pixels a side."""
    from PIL import Image

    file = io.BytesIO()
    Image.new("RGB", (max(edge, 4), max(edge, 4)), "white").save(file, "PNG")
    return from_prompt(agreed.prompt, "", "", file.getvalue())
