"""Train: a profile as a form, what the data are like, and a pipeline that is watched as it runs,
on the desk's machine or on a cluster."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

import gradio as gr

from gateway.ui import drawing
from gateway.ui.client import PASSING, Gateway, Refusal
from gateway.ui.connections import Connections
from gateway.ui.loss_curve import LossPanel
from gateway.ui.profile_form import ProfileForm, overrides

TRAINER = "trainer"
EVERY_S = 2.0
STYLES = {"Succeeded": "✔", "Failed": "✘", "Error": "✘", "Running": "▶", "Skipped": "-"}


class TrainScreen:
    """The desk runs the trainings; this screen is hidden from those without the role."""

    def __init__(self, connections: Connections, _: Callable[[str], str]) -> None:
        self.connections = connections
        self.text = _
        with gr.Row():
            self.profile = gr.Dropdown(
                label=_("Profile"), choices=[], elem_id="train-profile", min_width=160
            )
            self.data = gr.Textbox(
                label=_("Data: folder or address; the profile's own if empty"),
                elem_id="train-data", min_width=160,
            )  # fmt: skip
        self.form = ProfileForm(_)
        with gr.Row():
            self.check = gr.Button(_("Check the data"), elem_id="train-check")
            self.start = gr.Button(_("Start"), variant="primary", elem_id="train-start")
            self.submit = gr.Button(_("Submit to the cluster"), elem_id="train-submit")
        self.line = gr.HTML(elem_id="train-line")
        self.checked = gr.HTML(elem_id="train-checked")
        self.run = gr.Dropdown(label=_("Trainings"), choices=[], elem_id="train-run")
        with gr.Row():
            self.stop = gr.Button(_("Stop"), interactive=False, elem_id="train-stop")
            self.resume = gr.Button(_("Resume"), interactive=False, elem_id="train-resume")
            self.refresh = gr.Button(_("Look again"))
        self.phase = gr.HTML(elem_id="train-phase")
        self.nodes = gr.HTML(elem_id="train-nodes")
        self.loss = LossPanel(connections, _)
        self.log = gr.Textbox(
            label=_("Log"), lines=8, max_lines=16, interactive=False, elem_id="train-log"
        )
        self.timer = gr.Timer(EVERY_S, active=False)

    @property
    def outputs(self) -> list[Any]:
        return [
            self.line, self.run, self.phase, self.nodes, self.log, self.stop, self.resume,
            self.timer, self.loss.timer,
        ]  # fmt: skip

    def wire(self) -> None:
        quick: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
        self.profile.change(
            self.on_profile, [self.profile], [*self.form.outputs, self.line], **quick
        )
        self.form.wire()
        recipe = [self.profile, self.data, self.form.changed]
        self.check.click(
            self.on_check, recipe, [self.line, self.checked],
            api_visibility="private",
        )  # fmt: skip
        self.start.click(self.starter("runs"), recipe, self.outputs, **quick)
        self.submit.click(self.starter("workflows"), recipe, self.outputs, **quick)
        gr.on([self.timer.tick, self.run.input], self.on_look, [self.run], self.outputs, **quick)
        # The phase changes when a training starts, and when it ends.
        self.loss.wire(self.run, [self.phase.change, self.run.change])
        self.refresh.click(self.on_list, [self.run], self.outputs, **quick)
        self.stop.click(self.mover("stop"), [self.run], self.outputs, **quick)
        self.resume.click(self.mover("resume"), [self.run], self.outputs, **quick)

    def wire_opening(self, tab: Any) -> None:
        quick: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
        tab.select(self.on_profiles, [self.profile], [self.profile, self.line], **quick)
        tab.select(self.on_list, [self.run], self.outputs, **quick)

    async def on_profiles(self, chosen: str | None, request: gr.Request) -> dict[Any, Any]:
        try:
            names = (await self.connections.desk(request).json("GET", "/profiles"))["profiles"]
        except Refusal as error:
            return self.wrong(error)
        value = chosen if chosen in names else next(iter(names), None)
        return {self.profile: gr.update(choices=names, value=value)}

    async def on_profile(self, profile: str | None, request: gr.Request) -> dict[Any, Any]:
        if not profile:
            return {self.line: ""}
        try:
            fields = await self.connections.desk(request).json("GET", f"/profiles/{profile}")
        except Refusal as error:
            return self.wrong(error)
        return {**self.form.filled(fields), self.line: ""}

    async def on_check(
        self, profile: str | None, data: str, changed: dict[str, Any], request: gr.Request
    ) -> dict[Any, Any]:
        """What prepare_data says of the data; nothing is logged or kept."""
        if not profile:
            return {self.line: drawing.sentence(self.text("Choose a profile first."), wrong=True)}
        try:
            check = await self.connections.desk(request).json(
                "POST", "/checks", json=recipe(profile, data, changed)
            )
        except Refusal as error:
            return self.wrong(error)
        lines = escape("\n".join([*check["lines"], "", *check["plan"]]))
        report = drawing.document(check["report"]) if check["report"] else ""
        well, ill = (
            self.text("The data can be prepared."),
            self.text("The data cannot be prepared."),
        )
        return {
            self.line: drawing.sentence(well if check["well"] else ill, wrong=not check["well"]),
            self.checked: f'<div class="ll-turn">{lines}</div>{report}',
        }

    def starter(self, where: str) -> Callable[..., Any]:
        async def start(
            profile: str | None, data: str, changed: dict[str, Any], request: gr.Request
        ) -> dict[Any, Any]:
            """Start a training at one of the desk's addresses: `runs` here, or `workflows`."""
            if not profile:
                return {
                    self.line: drawing.sentence(self.text("Choose a profile first."), wrong=True)
                }
            desk = self.connections.desk(request)
            try:
                started = await desk.json("POST", f"/{where}", json=recipe(profile, data, changed))
            except Refusal as error:
                return self.wrong(error)
            return {self.line: ""} | await self.run_updates(desk, f"{where}/{started['name']}")

        return start

    async def on_look(self, place: str | None, request: gr.Request) -> dict[Any, Any]:
        if not place:
            return self.watched(running=False)
        return await self.run_updates(self.connections.desk(request), place)

    def watched(self, *, running: bool) -> dict[Any, Any]:
        return {
            self.timer: gr.Timer(active=running),
            self.loss.timer: gr.Timer(active=running),
        }

    async def on_list(self, place: str | None, request: gr.Request) -> dict[Any, Any]:
        desk = self.connections.desk(request)
        try:
            places = [each for _, each in await self.choices(desk)]
        except Refusal as error:
            return self.unseen(error)
        chosen = place if place in places else next(iter(places), None)
        return await self.run_updates(desk, chosen) if chosen else {self.phase: ""}

    async def choices(self, desk: Gateway) -> list[tuple[str, str]]:
        """Trainings by name and by the desk's address: those here, then those on the cluster."""
        here = [each["name"] for each in (await desk.json("GET", "/runs"))["runs"]]
        there = (await desk.json("GET", "/workflows"))["workflows"]
        cluster = self.text("on the cluster")
        return [
            *((name, f"runs/{name}") for name in here),
            *((f"{name} ({cluster})", f"workflows/{name}") for name in there),
        ]

    def mover(self, act: str) -> Callable[..., Any]:
        async def move(place: str | None, request: gr.Request) -> dict[Any, Any]:
            desk = self.connections.desk(request)
            try:
                await desk.json("POST", f"/{place}/{act}")
            except Refusal as error:
                return self.unseen(error)
            return await self.run_updates(desk, str(place))

        return move

    async def run_updates(self, desk: Gateway, place: str) -> dict[Any, Any]:
        """The progress of a training; it is polled as long as the training runs."""
        try:
            choices = await self.choices(desk)
            run = await desk.json("GET", f"/{place}")
        except Refusal as error:
            return self.unseen(error) | self.watched(running=error.status in PASSING)
        running = run["running"]
        succeeded = run["phase"] == "Succeeded"
        return {
            self.phase: drawing.sentence(f"{run['name']}: {run['phase']}"),
            self.run: gr.update(choices=choices, value=place),
            self.nodes: nodes(run["nodes"]),
            self.log: "\n".join(run["log"]),
            self.stop: gr.update(interactive=running),
            self.resume: gr.update(interactive=not running and not succeeded),
            **self.watched(running=running),
        }

    def wrong(self, error: Refusal) -> dict[Any, Any]:
        return {self.line: drawing.sentence(error.sentence, wrong=True)}

    def unseen(self, error: Refusal) -> dict[Any, Any]:
        """What is wrong with the chosen training, beside it."""
        return {self.phase: drawing.sentence(error.sentence, wrong=True)}


def recipe(profile: str, data: str, changed: Mapping[str, Any]) -> dict[str, Any]:
    return {"profile": profile, "data": data.strip(), "overrides": overrides(changed)}


def nodes(statuses: Sequence[Mapping[str, Any]]) -> str:
    """The workflow's nodes, with what each says."""
    rows = [
        {
            "node": f"{STYLES.get(node['phase'], '')} {node['name']}".strip(),
            "state": node["phase"],
            "message": node["message"],
        }
        for node in statuses
    ]
    return drawing.facts(rows) if len(rows) > 1 else ""
