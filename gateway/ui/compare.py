"""Compare: the same question to two to four models, side by side; blind until a vote is cast."""

from __future__ import annotations

import difflib
import random
import re
from collections.abc import AsyncIterator, Callable, Sequence
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from gateway.ui import ask, drawing, pictures
from gateway.ui.client import Refusal
from gateway.ui.connections import Connections
from gateway.ui.conversations import Conversation
from gateway.ui.questions import PREDICT, Question

LETTERS = "ABCD"
MOST_WORDS = 1500
"""Longer answers are shown without marks: comparing takes the square of their length."""

WORD = re.compile(r"\s+|[^\s]+")


class CompareScreen:
    def __init__(self, connections: Connections, _: Callable[[str], str]) -> None:
        self.connections = connections
        self.text = _
        self.chosen = ask.choices(_, "compare", multiple=True)
        self.answers = gr.State({})
        self.session = gr.State("")
        self.box = gr.MultimodalTextbox(
            label=_("Question and files"), file_count="multiple", file_types=["image", "video"],
            placeholder=_("Ask, and drop or paste pictures or a video here"),
            submit_btn=_("Compare"), elem_id="compare-box",
        )  # fmt: skip
        self.blind = gr.Checkbox(
            label=_("Blind: the models' names come after the vote"), elem_id="compare-blind"
        )
        self.stop = gr.Button(_("Stop"), interactive=False, elem_id="compare-stop")
        self.line = gr.HTML(elem_id="compare-line")
        self.result = gr.HTML(elem_id="compare-result")
        with gr.Row():
            self.vote = gr.Radio(
                [], label=_("Which answer is best?"), visible=False, elem_id="compare-best"
            )
            self.cast = gr.Button(_("Vote"), visible=False, elem_id="compare-vote")

    def wire(self) -> None:
        chosen = self.chosen
        chosen.model.change(
            lambda catalogue, models, task: self.tasks_update(catalogue, models or [], task),
            [chosen.catalogue, chosen.model, chosen.task], [chosen.task],
            queue=False, show_progress="hidden", api_visibility="private",
        )  # fmt: skip
        chosen.task.change(
            ask.options_update, [chosen.catalogue, chosen.task], [chosen.options],
            queue=False, show_progress="hidden", api_visibility="private",
        )  # fmt: skip
        outputs = [
            self.line, self.result, self.vote, self.cast, self.answers, self.session, self.stop
        ]  # fmt: skip
        compared = self.box.submit(
            self.on_compare,
            [self.box, chosen.model, chosen.task, chosen.options, self.blind, self.session],
            outputs,
            show_progress="hidden", api_visibility="private",
        )  # fmt: skip
        self.stop.click(
            lambda: {
                self.line: drawing.sentence(self.text("Stopped.")),
                self.stop: gr.update(interactive=False),
            },
            None, [self.line, self.stop], cancels=[compared],
            queue=False, show_progress="hidden", api_visibility="private",
        )  # fmt: skip
        self.cast.click(
            self.on_vote, [self.vote, self.answers, self.session], outputs,
            show_progress="hidden", api_visibility="private",
        )  # fmt: skip

    def tasks_update(self, catalogue: dict[str, Any], models: list[str], task: str | None) -> Any:
        return ask.tasks_update_without_chat(catalogue, models, task, self.text)

    async def on_compare(
        self,
        box: dict[str, Any] | None,
        models: list[str] | None,
        task: str | None,
        options: str,
        blind: bool,
        session: str,
        request: gr.Request,
    ) -> AsyncIterator[dict[Any, Any]]:
        yield {
            self.line: drawing.sentence(self.text("Asking…")),
            self.result: "",
            self.vote: gr.update(visible=False),
            self.cast: gr.update(visible=False),
            self.stop: gr.update(interactive=True),
        }
        files = [Path(path) for path in (box or {}).get("files") or ()]
        text = (box or {}).get("text") or ""
        stop_disabled = {self.stop: gr.update(interactive=False)}
        if not models or not 2 <= len(models) <= len(LETTERS) or not task:
            sentence = self.text("Choose two to four models that share a task.")
            yield stop_disabled | {self.line: drawing.sentence(sentence, wrong=True)}
            return
        gateway = self.connections.gateway(request)
        conversation = Conversation(gateway, session, text or task)
        fields = Question("", task, text, options, files).fields() | {"models": ",".join(models)}
        fields |= {} if task == PREDICT else {"task": task}
        try:
            await conversation.begin()
            # A visitor may stop the question; the next one is in the same conversation.
            yield {self.session: conversation.session}
            document = await conversation.form("/compare", fields, files)
        except Refusal as error:
            yield stop_disabled | {
                self.session: conversation.session,
                self.line: drawing.sentence(error.sentence, wrong=True),
            }
            return
        answers = document["answers"]
        if blind:
            random.shuffle(answers)
        picture = await ask.first_picture(files)
        agreed = agreement(document["comparisons"], hidden=blind)
        kept = {"answers": answers, "comparisons": document["comparisons"], "picture": picture}
        well = [
            letter for letter, each in zip(LETTERS, answers, strict=False) if "problem" not in each
        ]
        yield stop_disabled | {
            self.session: conversation.session,
            self.answers: kept,
            self.line: drawing.sentence(conversation.line(agreed, self.text)),
            self.result: side_by_side(answers, picture, hidden=blind),
            self.vote: gr.update(
                visible=len(well) > 1,
                choices=[*well, self.text("None is better")],
                value=None,
            ),
            self.cast: gr.update(visible=len(well) > 1),
        }

    async def on_vote(
        self, chosen: str | None, kept: dict[str, Any], session: str, request: gr.Request
    ) -> dict[Any, Any]:
        """Keep the vote with the conversation, and show the names."""
        if not chosen:
            return {self.line: drawing.sentence(self.text("Choose an answer first."), wrong=True)}
        names = [each["model"] for each in kept["answers"]]
        best = names[LETTERS.index(chosen)] if chosen in LETTERS else "none"
        letters = ", ".join(
            f"{letter} {name}" for letter, name in zip(LETTERS, names, strict=False)
        )
        title = f"Vote between {letters}"
        turn = {"question": title, "answer": f"best: {best}", "model": best}
        conversation = Conversation(self.connections.gateway(request), session, title)
        try:
            await conversation.keep(turn)
        except Refusal as error:
            return {self.line: drawing.sentence(error.sentence, wrong=True)}
        if trouble := await self.counted(kept["answers"], chosen, request):
            return {
                self.session: conversation.session,
                self.line: drawing.sentence(trouble, wrong=True),
            }
        agreed = agreement(kept["comparisons"], hidden=False)
        voted = self.text("Your vote is kept with this conversation.")
        return {
            self.session: conversation.session,
            self.line: drawing.sentence(conversation.line(f"{voted} {agreed}", self.text)),
            self.result: side_by_side(kept["answers"], kept["picture"], hidden=False),
            self.vote: gr.update(visible=False),
            self.cast: gr.update(visible=False),
        }

    async def counted(
        self, answers: Sequence[dict[str, Any]], chosen: str, request: gr.Request
    ) -> str:
        """Send the vote on the registered versions to the desk; returns why it failed."""
        uris = [each.get("model_uri") for each in answers]
        versions = [uri for uri in uris if uri]
        if self.connections.desk_http is None or not versions:
            return ""
        best = None
        if chosen in LETTERS:
            best = uris[LETTERS.index(chosen)] or "other"
        try:
            vote = {"compared": versions, "best": best}
            await self.connections.desk(request).call("POST", "/votes", json=vote)
        except Refusal as error:
            return error.sentence
        return ""


def agreement(comparisons: Sequence[dict[str, Any]], *, hidden: bool) -> str:
    """Which answers are equal, and how their boxes lie; without names while they are hidden."""
    known = [each for each in comparisons if "equal" in each]
    if not known:
        return "No two models answered."
    if hidden:
        equal = sum(each["equal"] for each in known)
        return f"{equal} of {len(known)} pairs of answers are equal."
    parts = []
    for each in known:
        verdict = "equal" if each["equal"] else "different"
        overlap = f", boxes overlap by {each['iou']:.2f}" if "iou" in each else ""
        parts.append(f"{' and '.join(each['models'])}: {verdict}{overlap}")
    return "; ".join(parts) + "."


def side_by_side(
    answers: Sequence[dict[str, Any]], picture: pictures.Picture | None, *, hidden: bool
) -> str:
    """A column for each model; where the others differ from the first answer is marked."""
    first = next((text_of(each) for each in answers if "problem" not in each), "")
    columns = []
    for letter, answer in zip(LETTERS, answers, strict=False):
        name = letter if hidden else f"{letter} · {answer['model']}"
        if problem := answer.get("problem"):
            content = drawing.sentence(str(problem.get("detail", "")), wrong=True)
        else:
            text = text_of(answer)
            took = (answer.get("timing") or {}).get("generate_ms") or 0
            usage = (answer.get("usage") or {}).get("completion_tokens") or 0
            facts = f"<p>{took / 1000:.2f} s, {int(usage)} tokens</p>"
            places = drawing.result(answer, picture) if answer.get("items") else ""
            content = f'<div class="ll-answer">{marked(first, text)}</div>{facts}{places}'
        columns.append(f"<section><h3>{escape(name)}</h3>{content}</section>")
    return f'<div class="ll-columns">{"".join(columns)}</div>'


def text_of(answer: dict[str, Any]) -> str:
    if "predictions" in answer:
        return "\n\n".join(str(each.get("caption", "")) for each in answer["predictions"])
    return str(answer.get("raw", ""))


def marked(first: str, other: str) -> str:
    """An answer against the first one: <del> is missing, <ins> is superfluous, as in the report."""
    old, new = WORD.findall(first), WORD.findall(other)
    if first == other or max(len(old), len(new)) > MOST_WORDS:
        return escape(other)
    parts = []
    for operation, i, j, k, m in difflib.SequenceMatcher(a=old, b=new).get_opcodes():
        if operation == "equal":
            parts.append(escape("".join(new[k:m])))
            continue
        parts += [f"<del>{escape(''.join(old[i:j]))}</del>"] if j > i else []
        parts += [f"<ins>{escape(''.join(new[k:m]))}</ins>"] if m > k else []
    return "".join(parts)
