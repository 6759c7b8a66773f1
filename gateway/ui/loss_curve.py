"""The loss of a training: its curves as the evaluation's report draws them, the same in words, and
as a table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

import gradio as gr

from gateway.ui import drawing
from gateway.ui.client import Refusal
from gateway.ui.connections import Connections

EVERY_S = 5.0
"""The trainer sends its losses this often."""

MOST_DOTS = 30
"""Curves of fewer points have a dot at each: a line needs two."""

MOST_ROWS = 20
"""Points of each curve in the table."""

CURVES = ("training", "validation")
Texts = Callable[[str], str]
Points = Sequence[tuple[int, float]]


class LossPanel:
    """The curves of the chosen training and their table; asked of the desk as long as it runs."""

    def __init__(self, connections: Connections, _: Texts) -> None:
        self.connections = connections
        self.text = _
        self.figure = gr.HTML(elem_id="train-loss")
        with gr.Accordion(_("The loss as a table"), open=False, visible=False) as self.values:
            self.table = gr.HTML(elem_id="train-loss-table")
        self.timer = gr.Timer(EVERY_S, active=False)

    def wire(self, training: Any, changes: Sequence[Any]) -> None:
        """`training` has the desk's address of the chosen one; `changes` tell of news."""
        gr.on(
            [self.timer.tick, *changes], self.on_loss, [training],
            [self.figure, self.table, self.values], trigger_mode="always_last",
            show_progress="hidden", api_visibility="private",
        )  # fmt: skip

    async def on_loss(self, place: str | None, request: gr.Request) -> dict[Any, Any]:
        """The loss of the chosen training as far as it is logged."""
        if not place:
            return {self.figure: "", self.values: gr.update(visible=False)}
        try:
            loss = await self.connections.desk(request).json("GET", f"/{place}/loss")
        except Refusal as error:
            return {self.figure: drawing.sentence(error.sentence, wrong=True)}
        return {
            self.figure: figure(loss, self.text),
            self.table: table(loss, self.text),
            self.values: gr.update(visible=bool(loss["points"])),
        }


def names(_: Texts) -> dict[str, str]:
    return {"step": _("step"), "training": _("training"), "validation": _("validation")}


def figure(loss: Mapping[str, Any], _: Texts) -> str:
    """The curves with what they come to in words; a sentence while there is nothing to draw.

    `loss` is the desk's: points by curve, and their places in a drawing of 600 by 200.
    """
    drawn = loss["drawn"]
    if not drawn:
        return drawing.sentence(_("No loss is logged for this training so far."))
    lines = drawn["lines"]
    curves = "".join(curve(name, lines[name]) for name in CURVES if name in lines)
    words = names(_)
    keys = "".join(f'<span class="ll-{n}">{escape(words[n])}</span>' for n in CURVES if n in lines)
    last = f"{words['step']} {drawn['last']}"
    return (
        f'<figure class="ll-loss"><figcaption>{escape(in_words(loss, _))}</figcaption>'
        f'<div class="ll-keys">{keys}</div>'
        f'<div class="ll-ends"><span>{drawn["highest"]:.4g}</span></div>'
        f'<svg viewBox="-4 -4 608 208" role="img" aria-label="{escape(_("Loss over steps"))}">'
        f'<polyline class="ll-axis" points="0,0 0,200 600,200"/>{curves}</svg>'
        f'<div class="ll-ends"><span>0</span><span>{escape(last)}</span></div>'
        "</figure>"
    )


def curve(name: str, line: str) -> str:
    places = [place.split(",") for place in line.split()]
    few = places if len(places) < MOST_DOTS else []
    dots = "".join(f'<circle cx="{escape(x)}" cy="{escape(y)}" r="4"/>' for x, y in few)
    return f'<g class="ll-{name}"><polyline points="{escape(line)}"/>{dots}</g>'


def in_words(loss: Mapping[str, Any], _: Texts) -> str:
    """The last values, the lowest of validation, and how fast the training is."""
    points: Mapping[str, Points] = loss["points"]
    parts = []
    if training := points.get("training"):
        step, value = training[-1]
        parts.append(
            _("Training loss {value} at step {step}").format(value=f"{value:.4g}", step=step)
        )
    if validation := points.get("validation"):
        step, value = validation[-1]
        at, lowest = min(validation, key=lambda point: point[1])
        parts.append(
            _("validation loss {value} at step {step}, lowest {lowest} at step {at}").format(
                value=f"{value:.4g}", step=step, lowest=f"{lowest:.4g}", at=at
            )
        )
    if speed := loss.get("tokens_per_second"):
        parts.append(_("{speed} tokens a second").format(speed=f"{speed:,.0f}"))
    if lost := loss.get("not_finite"):
        parts.append(_("{count} values are no numbers, and not drawn").format(count=lost))
    return "; ".join(parts) + "."


def table(loss: Mapping[str, Any], _: Texts) -> str:
    """Steps and values, some of a long curve; empty where there are none."""
    points: Mapping[str, Points] = loss["points"]
    values = {name: dict(spread(points.get(name, ()))) for name in CURVES}
    steps = sorted({step for each in values.values() for step in each})
    if not steps:
        return ""
    head = "".join(f"<th>{escape(word)}</th>" for word in names(_).values())
    rows = "".join(row(step, [values[name].get(step) for name in CURVES]) for step in steps)
    spoken = escape(_("Loss over steps"))
    return (
        f'<div class="ll-scroll" tabindex="0" role="region" aria-label="{spoken}">'
        f'<table class="ll-table"><thead><tr>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def row(step: int, values: Sequence[float | None]) -> str:
    cells = [str(step), *("" if value is None else f"{value:.4g}" for value in values)]
    return "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"


def spread(points: Points) -> Points:
    """At most MOST_ROWS points, evenly from the first to the last."""
    if len(points) <= MOST_ROWS:
        return points
    last = len(points) - 1
    return [points[round(row * last / (MOST_ROWS - 1))] for row in range(MOST_ROWS)]
