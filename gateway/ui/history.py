"""History: the visitor's kept conversations; search, export and delete them."""

from __future__ import annotations

import time
from collections.abc import Callable
from html import escape
from typing import Any

import gradio as gr
from anyio import to_thread

from gateway.ui import drawing
from gateway.ui.client import Gateway, Refusal
from gateway.ui.compare import text_of
from gateway.ui.connections import Connections
from gateway.ui.conversations import GONE

FORMATS = ("json", "md", "html", "csv", "pdf")
SHOWN_SESSIONS = 200


class HistoryScreen:
    def __init__(self, connections: Connections, _: Callable[[str], str]) -> None:
        self.connections = connections
        self.text = _
        gr.HTML(
            "<p>" + _("The gateway keeps conversations for some time, for your key alone.") + "</p>"
        )
        with gr.Row():
            self.search = gr.Textbox(
                label=_("Search"), submit_btn=True, elem_id="history-search", min_width=160
            )
            self.session = gr.Dropdown(
                label=_("Conversation"), choices=[], elem_id="history-session", min_width=160
            )
        self.line = gr.HTML(elem_id="history-line")
        self.turns = gr.HTML(elem_id="history-turns")
        with gr.Row():
            self.format = gr.Radio(list(FORMATS), value="json", label=_("Format"))
            self.export = gr.Button(_("Make the file"), elem_id="history-export")
            self.file = gr.DownloadButton(
                _("Download"), interactive=False, elem_id="history-download"
            )
        self.delete = gr.Button(
            _("Delete this conversation"), variant="stop", elem_id="history-delete"
        )

    def wire(self) -> None:
        quick = {"show_progress": "hidden", "api_visibility": "private"}
        listed = [self.session, self.turns, self.line, self.file]
        self.search.submit(self.on_search, [self.search, self.session], listed, **quick)
        self.session.change(self.on_open, [self.session], listed, **quick)
        self.export.click(
            self.on_export, [self.session, self.format], [self.file, self.line], **quick
        )
        self.delete.click(self.on_delete, [self.session, self.search], listed, **quick)

    def wire_opening(self, tab: Any) -> None:
        """The list is fresh each time that the screen is opened."""
        tab.select(
            self.on_search, [self.search, self.session],
            [self.session, self.turns, self.line, self.file],
            show_progress="hidden", api_visibility="private",
        )  # fmt: skip

    async def on_search(
        self, words: str, session: str | None, request: gr.Request
    ) -> dict[Any, Any]:
        """Conversations whose title, questions or answers hold the words."""
        gateway = self.connections.gateway(request)
        try:
            conversations = await listed(gateway, words or "")
        except Refusal as error:
            return self.wrong(error)
        names = [name for _, name in conversations]
        chosen = session if session in names else next(iter(names), None)
        update = {
            self.session: gr.update(choices=conversations, value=chosen),
            self.line: drawing.sentence(f"{len(conversations)} conversations."),
        }
        if chosen is None or chosen == session:
            # No event says that the chosen one went on.
            return update | await self.on_open(chosen, request)
        return update

    async def on_open(self, session: str | None, request: gr.Request) -> dict[Any, Any]:
        ready = {self.file: gr.update(value=None, interactive=False)}
        if not session:
            return ready | {self.turns: ""}
        try:
            document = await self.connections.gateway(request).json("GET", f"/sessions/{session}")
        except Refusal as error:
            return self.wrong(error)
        return ready | {self.turns: turns(document)}

    async def on_export(
        self, session: str | None, form: str, request: gr.Request
    ) -> dict[Any, Any]:
        if not session or form not in FORMATS:
            return {
                self.line: drawing.sentence(self.text("Choose a conversation first."), wrong=True)
            }
        path = f"/sessions/{session}/export"
        try:
            response = await self.connections.gateway(request).call(
                "GET", path, params={"format": form}
            )
        except Refusal as error:
            return {self.line: drawing.sentence(error.sentence, wrong=True)}
        written = await to_thread.run_sync(
            self.connections.downloads.write, f"session-{session[:8]}.{form}", response.content
        )
        return {
            self.file: gr.update(value=str(written), interactive=True),
            self.line: drawing.sentence(self.text("{name} is ready.").format(name=written.name)),
        }

    async def on_delete(
        self, session: str | None, words: str, request: gr.Request
    ) -> dict[Any, Any]:
        if not session:
            return {
                self.line: drawing.sentence(self.text("Choose a conversation first."), wrong=True)
            }
        try:
            await self.connections.gateway(request).call("DELETE", f"/sessions/{session}")
        except Refusal as error:
            return self.wrong(error)
        return await self.on_search(words, None, request)

    def wrong(self, error: Refusal) -> dict[Any, Any]:
        return {self.line: drawing.sentence(error.sentence, wrong=True)}


async def listed(gateway: Gateway, words: str) -> list[tuple[str, str]]:
    """Title and name of the conversations, the last changed first."""
    sessions = (await gateway.json("GET", "/sessions"))["sessions"][:SHOWN_SESSIONS]
    chosen = []
    for each in sessions:
        when = time.strftime("%Y-%m-%d %H:%M", time.gmtime(each["changed"]))
        title = f"{when} UTC · {each['title'] or each['id'][:8]} · {each['turns']}"
        if words.strip() and words.lower() not in title.lower():
            try:
                document = await gateway.json("GET", f"/sessions/{each['id']}")
            except Refusal as error:
                if error.code != GONE:
                    raise
                continue
            if not contains(document, words.lower()):
                continue
        chosen.append((title, str(each["id"])))
    return chosen


def contains(document: dict[str, Any], words: str) -> bool:
    return any(
        words in f"{turn.get('question', '')}\n{answer_of(turn)}".lower()
        for turn in document["turns"]
    )


def answer_of(turn: dict[str, Any]) -> str:
    answer = turn.get("answer") or {}
    if "answers" in answer:
        return "\n\n".join(f"{each['model']}: {text_of(each)}" for each in answer["answers"])
    return str(answer["text"]) if "text" in answer else text_of(answer)


def turns(document: dict[str, Any]) -> str:
    """A conversation as HTML."""
    parts = []
    for turn in document["turns"]:
        when = time.strftime("%H:%M:%S", time.gmtime(turn["time"]))
        about = f"{when} · {turn.get('task', '')} · {turn.get('model') or ''}"
        files = len(turn.get("media", ()))
        pictures = f" · {files} pictures" if files else ""
        question = escape(str(turn.get("question") or "")) or "—"
        parts.append(
            f"<p>{escape(about)}{pictures}</p>"
            f'<div class="ll-turn ll-user">{question}</div>'
            f'<div class="ll-turn">{drawing.cell(answer_of(turn))}</div>'
        )
    return "".join(parts)
