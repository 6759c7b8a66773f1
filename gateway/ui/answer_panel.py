"""An answer on the page: what the model wrote, what it means, and how a program asks the same."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import gradio as gr

from gateway.ui import drawing, pictures, questions
from gateway.ui.asking import Progress
from gateway.ui.questions import Question


class AnswerPanel:
    """The fields of an answer and of the conversation that follows; methods give their updates.

    `address` is the gateway's, as the commands that are shown name it.
    """

    def __init__(self, _: Callable[[str], str], address: str) -> None:
        self.address = address
        self.history = gr.State([])
        with gr.Row():
            self.stop = gr.Button(_("Stop"), interactive=False, elem_id="ask-stop")
            self.fresh = gr.Button(_("New conversation"), elem_id="ask-new")
        self.line = gr.HTML(elem_id="ask-line")
        self.answer = gr.Textbox(
            label=_("Answer"), lines=4, max_lines=24, interactive=False, buttons=["copy"],
            elem_id="ask-answer",
        )  # fmt: skip
        with gr.Tabs():
            with gr.Tab(_("Result")):
                self.result = gr.HTML(elem_id="ask-result")
            with gr.Tab("JSON"):
                self.document = gr.Code(language="json", label=_("The gateway's answer"))
            with gr.Tab(_("The same by program")):
                self.curl = gr.Code(language="shell", label="curl")
                self.python = gr.Code(language="python", label="Python")
        self.talk = gr.HTML(elem_id="ask-talk")
        self.follow = gr.Textbox(
            label=_("Ask on"), placeholder=_("A question about the answer"), interactive=False,
            submit_btn=True, elem_id="ask-follow",
        )  # fmt: skip

    @property
    def outputs(self) -> list[Any]:
        return [
            self.answer, self.line, self.result, self.document, self.curl, self.python, self.talk,
            self.follow, self.stop, self.history,
        ]  # fmt: skip

    def complete_answer(
        self,
        progress: Progress,
        question: Question,
        picture: pictures.Picture | None,
        turns: list[dict[str, Any]],
    ) -> dict[Any, Any]:
        """What is shown of a whole answer."""
        return self.ended_answer(progress, turns) | {
            self.result: result(progress.document, picture),
            self.curl: questions.as_curl(self.address, question),
            self.python: questions.as_python(self.address, question),
        }

    def ended_answer(self, progress: Progress, turns: list[dict[str, Any]]) -> dict[Any, Any]:
        history = [*turns, {"role": "assistant", "text": progress.text}]
        return {
            self.answer: progress.text,
            self.line: drawing.sentence(progress.line),
            self.document: json.dumps(progress.document, ensure_ascii=False, indent=2),
            self.history: history,
            self.talk: drawing.conversation(history),
            self.follow: gr.update(interactive=True),
            self.stop: gr.update(interactive=False),
        }

    def ended_chat(
        self, progress: Progress, turns: list[dict[str, Any]], chat_request: dict[str, Any]
    ) -> dict[Any, Any]:
        """What is shown of a whole answer to a conversation."""
        return self.ended_answer(progress, turns) | {
            self.curl: questions.chat_as_curl(self.address, chat_request),
            self.python: questions.chat_as_python(self.address, chat_request),
        }

    def emptied(self) -> dict[Any, Any]:
        shown_texts = (self.answer, self.line, self.result, self.document)
        more = (self.curl, self.python, self.talk)
        return {
            **dict.fromkeys((*shown_texts, *more), ""),
            self.history: [],
            self.follow: gr.update(value="", interactive=False),
        }

    def failed(self, sentence: str) -> dict[Any, Any]:
        return {
            self.line: drawing.sentence(sentence, wrong=True),
            self.stop: gr.update(interactive=False),
        }


def result(document: dict[str, Any], picture: pictures.Picture | None) -> str:
    """An answer of /predict or of a task as HTML."""
    if "predictions" not in document:
        return drawing.result(document, picture)
    rows = [
        {"file": each.get("filename"), "answer": each.get("caption")}
        for each in document["predictions"]
    ]
    facts = drawing.facts(rows) if len(rows) > 1 else ""
    cut = [note for each in document["predictions"] for note in each.get("notes", ())]
    drawn = drawing.overlay(picture, []) if picture else ""
    return drawing.notes(cut) + f'<div class="ll-result"><div>{drawn}</div><div>{facts}</div></div>'
