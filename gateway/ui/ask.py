"""Ask: a model, a task, files; the answer as it comes, and what it means on the picture."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
from anyio import to_thread

from gateway.ui import asking, drawing, pictures, questions
from gateway.ui.answer_panel import AnswerPanel
from gateway.ui.asking import Progress
from gateway.ui.client import Gateway, Refusal
from gateway.ui.connections import Connections, Preferences
from gateway.ui.conversations import Conversation
from gateway.ui.questions import CHAT, Question
from gateway.ui.settings import BadSetting

MOST_EXAMPLES = 8
Texts = Callable[[str], str]


@dataclass
class Choices:
    """The fields that say what is asked of which model; two screens have them."""

    model: Any
    task: Any
    options: Any
    catalogue: Any
    """State: what the gateway says of its models and tasks."""


def choices(_: Texts, screen: str, *, multiple: bool = False) -> Choices:
    with gr.Row():
        model = gr.Dropdown(
            label=_("Models") if multiple else _("Model"), choices=[], multiselect=multiple,
            max_choices=4 if multiple else None, scale=1, min_width=160,
            elem_id=f"{screen}-model",
        )  # fmt: skip
        task = gr.Dropdown(
            label=_("Task"), choices=[], scale=1, min_width=160, elem_id=f"{screen}-task"
        )
    options = gr.Textbox(label=_("Options of the task, as JSON"), visible=False, lines=2)
    return Choices(model, task, options, gr.State({}))


async def catalogue(gateway: Gateway) -> dict[str, Any]:
    """Models by name, tasks by name, and the visitor's limits."""
    info = await gateway.json("GET", "/info")
    tasks = await gateway.json("GET", "/tasks")
    return {
        "models": {card["id"]: card for card in info["models"]},
        "tasks": {task["name"]: task for task in tasks["tasks"]},
        "limits": info["limits"],
    }


def model_choices(catalogue: dict[str, Any]) -> list[tuple[str, str]]:
    """Models with what they are: base, candidate, champion, and the registered version."""
    return [
        (" · ".join(str(part) for part in (name, card.get("role"), card.get("uri")) if part), name)
        for name, card in catalogue.get("models", {}).items()
    ]


def first_choice(catalogue: dict[str, Any]) -> str | None:
    """The adapter, where one is served."""
    cards = catalogue.get("models", {})
    adapted = [name for name, card in cards.items() if card.get("prompt")]
    return next(iter(adapted or cards), None)


def tasks_update(catalogue: dict[str, Any], models: list[str], chosen: str | None, _: Texts) -> Any:
    """The ways to ask that all of these models share; the chosen one stays if it is among them."""
    cards = [catalogue["models"][name] for name in models if name in catalogue.get("models", {})]
    tasks = list(catalogue.get("tasks", {}).values())
    lists = [asking.task_choices(card, tasks) for card in cards]
    shared = [task for task in lists[0] if all(task in other for other in lists)] if lists else []
    names = [name for _title, name in shared]
    return gr.update(
        choices=[(_(title), name) for title, name in shared],
        value=chosen if chosen in names else next(iter(names), None),
    )


def tasks_update_without_chat(
    catalogue: dict[str, Any], models: list[str], chosen: str | None, _: Texts
) -> Any:
    """The same without free questions, which are sampled: one answer says nothing of a model."""
    update = tasks_update(catalogue, models, chosen, _)
    choices = [choice for choice in update["choices"] if choice[1] != CHAT]
    names = [name for _title, name in choices]
    value = chosen if chosen in names else next(iter(names), None)
    return gr.update(choices=choices, value=value)


def options_update(catalogue: dict[str, Any], task: str | None) -> Any:
    """The task's variables beside the question, with their defaults."""
    declared = catalogue.get("tasks", {}).get(task, {})
    rest = {name: value for name, value in declared.get("variables", {}).items() if name != "text"}
    return gr.update(visible=bool(rest), value=json.dumps(rest) if rest else "")


def examples_of(folder: Path) -> list[dict[str, Any]]:
    """Questions and files to offer: what `examples.jsonl` lists, or else the folder's pictures."""
    listed = folder / "examples.jsonl"
    if listed.is_file():
        lines = [line for line in listed.read_bytes().splitlines() if line.strip()]
        return [example(folder, at, line) for at, line in enumerate(lines[:MOST_EXAMPLES], 1)]
    files = [path for path in sorted(folder.iterdir()) if pictures.is_picture(path)]
    return [{"text": "", "files": [str(path)]} for path in files[:MOST_EXAMPLES]]


def example(folder: Path, at: int, line: bytes) -> dict[str, Any]:
    """A line of `examples.jsonl`; BadSetting if it has another form or its file is not there."""
    where = f"UI_EXAMPLES_DIR: example {at} of {folder / 'examples.jsonl'}"
    try:
        listed = json.loads(line)
        text, files = str(listed["text"]), [folder / str(name) for name in listed["files"]]
    except (ValueError, LookupError, TypeError) as error:
        raise BadSetting(f"{where} is no JSON object with text and files") from error
    for file in files:
        if not file.is_file():
            raise BadSetting(f"{where} names {file}, which is not there")
    return {"text": text, "files": [str(file) for file in files]}


class AskScreen:
    """The screen's fields, and what happens when they are used."""

    def __init__(self, connections: Connections, preferences: Any, _: Texts) -> None:
        self.connections = connections
        self.preferences = preferences
        self.text = _
        self.build(_)

    def build(self, _: Texts) -> None:
        self.chosen = choices(_, "ask")
        self.session = gr.State("")
        most = self.connections.settings.max_file_mb
        self.box = gr.MultimodalTextbox(
            label=_("Question and files"),
            placeholder=_("Ask, and drop or paste pictures or a video here"),
            file_count="multiple",
            file_types=["image", "video"],
            info=_("Files of up to {most} MiB").format(most=f"{most:g}"),
            submit_btn=_("Ask"),
            elem_id="ask-box",
        )
        with gr.Accordion(_("Camera"), open=False):
            self.camera = gr.Image(
                sources=["webcam"], type="filepath", format="jpeg",
                label=_("Picture of the camera"), elem_id="ask-camera",
            )  # fmt: skip
        self.examples()
        self.panel = AnswerPanel(_, self.connections.shown_gateway)

    def examples(self) -> None:
        folder = self.connections.settings.examples_dir
        if folder is None or not folder.is_dir():
            return
        if offered := examples_of(folder):
            gr.Examples([[each] for each in offered], [self.box], label=self.text("Examples"))

    def wire(self) -> None:
        chosen = self.chosen
        gr.on(
            [chosen.model.change],
            lambda catalogue, model, task: tasks_update(
                catalogue, [model] if model else [], task, self.text
            ),
            [chosen.catalogue, chosen.model, chosen.task],
            [chosen.task],
            queue=False, show_progress="hidden", api_visibility="private",
        )  # fmt: skip
        chosen.task.change(
            options_update, [chosen.catalogue, chosen.task], [chosen.options],
            queue=False, show_progress="hidden", api_visibility="private",
        )  # fmt: skip
        inputs = [
            self.box, self.camera, chosen.model, chosen.task, chosen.options, chosen.catalogue,
            self.preferences, self.session,
        ]  # fmt: skip
        panel = self.panel
        outputs = [*panel.outputs, self.session]
        submitted = self.box.submit(
            self.on_ask, inputs, outputs,
            show_progress="hidden", api_visibility="private",
        )  # fmt: skip
        followed = panel.follow.submit(
            self.on_follow,
            [panel.follow, chosen.model, panel.history, self.preferences, self.session],
            outputs,
            show_progress="hidden", api_visibility="private",
        )  # fmt: skip
        panel.stop.click(
            self.on_stop, None, [panel.line, panel.stop],
            cancels=[submitted, followed], queue=False, show_progress="hidden",
            api_visibility="private",
        )  # fmt: skip
        panel.fresh.click(
            self.on_fresh, None, [*outputs, self.box, self.camera],
            cancels=[submitted, followed], queue=False, show_progress="hidden",
            api_visibility="private",
        )  # fmt: skip

    async def on_ask(
        self,
        box: dict[str, Any] | None,
        camera: str | None,
        model: str | None,
        task: str | None,
        options: str,
        catalogue: dict[str, Any],
        kept: Any,
        session: str,
        request: gr.Request,
    ) -> AsyncIterator[dict[Any, Any]]:
        """Ask a new question: clear the screen first, then fill it as the answer comes."""
        text = (box or {}).get("text") or ""
        files = [Path(path) for path in (box or {}).get("files") or ()]
        files += [Path(camera)] if camera else []
        yield self.panel.emptied() | {self.panel.stop: gr.update(interactive=True)}
        if not model or not task:
            yield self.panel.failed(self.text("Choose a model first; the gateway lists none yet."))
            return
        gateway, preferences = self.connections.gateway(request), Preferences.of(kept)
        question = Question(model, task, text, options, files)
        picture = await first_picture(files)
        conversation = Conversation(gateway, session, text or task)
        try:
            await conversation.begin()
            yield {self.session: conversation.session}
            card, declared = catalogue["models"].get(model, {}), catalogue["tasks"].get(task)
            turn = {"role": "user", "text": text, "files": [str(path) for path in files]}
            if task == CHAT:
                async for update in self.chat(conversation, model, [turn], preferences):
                    yield update
                return
            turn["text"] = questions.asked_text(question, card, declared)
            async with aclosing(conversation.ask(question, preferences)) as growing:
                async for progress in growing:
                    if not progress.document:
                        yield {self.panel.answer: progress.text}
            answer = self.panel.complete_answer(progress, question, picture, [turn])
            yield answer | self.kept_in(conversation, progress)
        except Refusal as error:
            yield self.panel.failed(error.sentence) | {self.session: conversation.session}

    async def on_follow(
        self,
        text: str,
        model: str,
        history: list[dict[str, Any]],
        kept: Any,
        session: str,
        request: gr.Request,
    ) -> AsyncIterator[dict[Any, Any]]:
        """Ask a follow-up: the model gets the conversation so far; the page adds the new part."""
        if not text.strip():
            yield self.panel.failed(self.text("Write a question first."))
            return
        turns = [*history, {"role": "user", "text": text, "files": []}]
        title = turns[0]["text"] or text
        conversation = Conversation(self.connections.gateway(request), session, title)
        yield {
            self.panel.stop: gr.update(interactive=True),
            self.panel.follow: "",
            self.panel.line: "",
        }
        try:
            async for update in self.chat(conversation, model, turns, Preferences.of(kept)):
                yield update
        except Refusal as error:
            yield self.panel.failed(error.sentence) | {self.panel.follow: text}

    async def chat(
        self,
        conversation: Conversation,
        model: str,
        turns: list[dict[str, Any]],
        preferences: Preferences,
    ) -> AsyncIterator[dict[Any, Any]]:
        gateway = conversation.gateway
        async with aclosing(asking.chat(gateway, model, turns, preferences)) as growing:
            async for progress in growing:
                if not progress.document:
                    yield {self.panel.answer: progress.text}
        turn = {"question": turns[-1]["text"], "answer": progress.text, "model": model}
        await conversation.keep(turn)
        chat_request = await to_thread.run_sync(asking.chat_body, model, turns, preferences)
        answer = self.panel.ended_chat(progress, turns, chat_request)
        yield answer | self.kept_in(conversation, progress)

    def kept_in(self, conversation: Conversation, progress: Progress) -> dict[Any, Any]:
        """The conversation that keeps an answer, and a sentence if it is a new one."""
        line = conversation.line(progress.line, self.text)
        return {self.session: conversation.session, self.panel.line: drawing.sentence(line)}

    def on_stop(self) -> dict[Any, Any]:
        return {
            self.panel.line: drawing.sentence(
                self.text("Stopped. What came of the answer is shown.")
            ),
            self.panel.stop: gr.update(interactive=False),
        }

    def on_fresh(self) -> dict[Any, Any]:
        return self.panel.emptied() | {
            self.session: "",
            self.panel.stop: gr.update(interactive=False),
            self.box: {"text": "", "files": []},
            self.camera: None,
        }


async def first_picture(files: list[Path]) -> pictures.Picture | None:
    """The first file as a picture; None if it is not a picture."""
    if not files:
        return None
    try:
        return await to_thread.run_sync(pictures.prepared, files[0])
    except pictures.Unreadable:
        return None
