"""Review: a candidate beside the champion, and the three moves; only for those with the role."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

import gradio as gr

from gateway.ui import drawing
from gateway.ui.client import Refusal
from gateway.ui.connections import Connections

REVIEWER = "reviewer"
ALIASES = ("candidate", "champion", "previous")


class ReviewScreen:
    """The desk decides who may do what; this screen is hidden from those who may not."""

    def __init__(self, connections: Connections, _: Callable[[str], str]) -> None:
        self.connections = connections
        self.text = _
        with gr.Row():
            self.model = gr.Dropdown(
                label=_("Registered model"), choices=[], elem_id="review-model", min_width=160
            )
            self.refresh = gr.Button(_("Look again"), min_width=120)
        self.line = gr.HTML(elem_id="review-line")
        self.board = gr.State({})
        self.cards = gr.HTML(elem_id="review-cards")
        self.reason = gr.Textbox(
            label=_("Reason, for a rejection"), max_length=1000, elem_id="review-reason"
        )
        with gr.Row():
            self.promote = gr.Button(
                _("Promote the candidate"), variant="primary", interactive=False,
                elem_id="review-promote",
            )  # fmt: skip
            self.reject = gr.Button(
                _("Reject the candidate"), interactive=False, elem_id="review-reject"
            )
            self.back = gr.Button(
                _("Roll back to the previous"), variant="stop", interactive=False,
                elem_id="review-rollback",
            )  # fmt: skip
        with gr.Row():
            self.whose = gr.Radio(
                [(_("Candidate"), "candidate"), (_("Champion"), "champion")],
                value="candidate", label=_("Report of"),
            )  # fmt: skip
            self.open_report = gr.Button(_("Show the report"), elem_id="review-open-report")
        self.report = gr.HTML(elem_id="review-report")
        self.history = gr.HTML(elem_id="review-history")

    @property
    def outputs(self) -> list[Any]:
        return [
            self.line, self.model, self.board, self.cards, self.history, self.report,
            self.promote, self.reject, self.back, self.reason,
        ]  # fmt: skip

    def wire(self) -> None:
        quick: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
        self.model.input(self.on_model, [self.model], self.outputs, **quick)
        self.refresh.click(self.on_list, [self.model], self.outputs, **quick)
        for button, act in (
            (self.promote, "promote"),
            (self.reject, "reject"),
            (self.back, "rollback"),
        ):
            button.click(
                self.mover(act), [self.model, self.board, self.reason], self.outputs, **quick
            )
        self.open_report.click(
            self.on_report, [self.model, self.board, self.whose], [self.report, self.line], **quick
        )

    def wire_opening(self, tab: Any) -> None:
        tab.select(
            self.on_list, [self.model], self.outputs,
            show_progress="hidden", api_visibility="private",
        )  # fmt: skip

    async def roles(self, request: gr.Request) -> set[str]:
        """What the visitor may do at the desk; empty while the desk is down."""
        try:
            return set((await self.connections.desk(request).json("GET", "/me"))["roles"])
        except (Refusal, KeyError, TypeError):
            return set()

    async def on_list(self, model: str | None, request: gr.Request) -> dict[Any, Any]:
        try:
            names = (await self.connections.desk(request).json("GET", "/models"))["models"]
        except Refusal as error:
            return self.wrong(error)
        chosen = model if model in names else next(iter(names), None)
        update = {self.model: gr.update(choices=names, value=chosen)}
        if chosen is None:
            none = self.text("Nothing is registered yet.")
            return update | {self.line: drawing.sentence(none), self.cards: ""}
        return update | await self.on_model(chosen, request)

    async def on_model(self, model: str | None, request: gr.Request) -> dict[Any, Any]:
        """The versions that have an alias; a move is about what this shows."""
        if not model:
            return {self.line: ""}
        try:
            board = await self.connections.desk(request).json("GET", f"/models/{model}")
        except Refusal as error:
            return self.wrong(error)
        versions = board["versions"]
        candidate, champion = (versions.get(name) for name in ("candidate", "champion"))
        fresh = bool(candidate) and candidate["version"] != (champion or {}).get("version")
        return {
            self.line: "",
            self.board: board,
            self.cards: cards(versions),
            self.history: drawing.notes(board["history"]),
            self.report: "",
            self.promote: gr.update(interactive=fresh),
            self.reject: gr.update(interactive=fresh),
            self.back: gr.update(interactive=bool(champion and versions.get("previous"))),
        }

    def mover(self, act: str) -> Callable[..., Any]:
        async def move(
            model: str | None, board: dict[str, Any], reason: str, request: gr.Request
        ) -> dict[Any, Any]:
            """The move about the version that was looked at, and not about a later one."""
            alias = "champion" if act == "rollback" else "candidate"
            looked_at = board.get("versions", {}).get(alias) or {}
            order: dict[str, Any] = {"act": act, "version": looked_at.get("version")}
            if act == "reject":
                order["reason"] = reason
            try:
                desk = self.connections.desk(request)
                moved = await desk.json("POST", f"/models/{model}/moves", json=order)
            except Refusal as error:
                return self.wrong(error)
            return await self.on_model(model, request) | {
                self.line: drawing.sentence(moved["done"]),
                self.reason: "",
            }

        return move

    async def on_report(
        self, model: str | None, board: dict[str, Any], whose: str, request: gr.Request
    ) -> dict[Any, Any]:
        version = board.get("versions", {}).get(whose)
        if not model or version is None:
            return {self.line: drawing.sentence(self.text("There is none."), wrong=True)}
        path = f"/models/{model}/versions/{version['version']}/report"
        try:
            response = await self.connections.desk(request).call("GET", path)
        except Refusal as error:
            return self.wrong(error)
        return {self.report: drawing.document(response.text), self.line: ""}

    def wrong(self, error: Refusal) -> dict[Any, Any]:
        return {self.line: drawing.sentence(error.sentence, wrong=True)}


def cards(versions: Mapping[str, Mapping[str, Any]]) -> str:
    """A column for each version that has an alias."""
    columns = [
        f"<section><h3>{alias} · {escape(str(versions[alias]['version']))}</h3>"
        f"{card(versions[alias])}</section>"
        for alias in ALIASES
        if alias in versions
    ]
    return f'<div class="ll-columns">{"".join(columns)}</div>'


def card(version: Mapping[str, Any]) -> str:
    """A version: the verdict, its rules, the numbers with intervals, worst rows, lineage, cost."""
    verdict = f"{version.get('result') or 'no verdict'}: {version.get('reason') or ''}"
    parts = [f"<p><strong>{escape(verdict)}</strong></p>"]
    for name, title in (
        ("promoted", "Promoted"),
        ("rejected", "Rejected"),
        ("rolled_back", "Rolled back"),
    ):
        if version.get(name):
            parts.append(f"<p>{title} {escape(str(version[name]))}</p>")
    rows = [
        {
            "metric": name,
            **{
                "candidate" if model == "tuned" else model: interval(values)
                for model, values in models.items()
            },
        }
        for name, models in version.get("metrics", {}).items()
        if models
    ]
    if rows:
        parts.append(drawing.facts(rows))
    rules = [
        {
            "rule": rule["metric"],
            "value": number(rule["value"]),
            "limit": f"{rule['relation']} {rule['limit']:g}",
            "verdict": "passed" if rule["passed"] else "FAILED",
        }
        for rule in version.get("rules", [])
    ]
    if rules:
        parts.append(drawing.facts(rules))
    worst = [
        {"candidate" if name == "tuned" else name: text for name, text in row.items()}
        for row in version.get("worst", [])
    ]
    if worst:
        parts.append(f"<h4>Worst rows</h4>{drawing.facts(worst)}")
    lineage = {
        name: version.get(name)
        for name in ("profile", "dataset", "prompt", "adapter", "train", "evaluate")
        if version.get(name)
    }
    cast = version.get("votes") or {}
    if cast:
        tally = ", ".join(f"{count} {result}" for result, count in cast.items())
        lineage["blind votes"] = tally
    cost = version.get("cost") or {}
    lineage |= {name: number(value) for name, value in cost.items() if not isinstance(value, dict)}
    if lineage:
        parts.append(drawing.facts(lineage))
    return "".join(parts)


def interval(values: Sequence[float | None]) -> str:
    """A value and, where it was measured, its interval."""
    value, low, high = values
    between = f" ({low:.4g} to {high:.4g})" if low is not None and high is not None else ""
    return f"{number(value)}{between}"


def number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, int | float) else str(value or "")
