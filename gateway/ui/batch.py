"""Batch: many files or lines at once; they run in the background and come back as a table."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
from anyio import to_thread

from gateway.ui import ask, drawing, pictures
from gateway.ui.client import PASSING, REMOVED, Gateway, Refusal
from gateway.ui.compare import text_of
from gateway.ui.connections import Connections
from gateway.ui.questions import PREDICT, Question

EVERY_S = 1.0
SHOWN_ROWS = 200
MOST_BATCHES = 8
"""Batches of a visit whose pictures are shown beside their rows."""

FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""Beginnings of a cell that spreadsheets compute."""

WORDS = ("question", "text", "options")
"""Fields that the gateway takes with some tasks, and refuses with others."""

Small = dict[str, dict[str, str]]


class BatchScreen:
    def __init__(self, connections: Connections, _: Callable[[str], str]) -> None:
        self.connections = connections
        self.text = _
        self.chosen = ask.choices(_, "batch")
        self.question = gr.Textbox(label=_("Question, for all of them"), elem_id="batch-question")
        with gr.Row():
            self.files = gr.File(
                label=_("Pictures, or one JSONL file with a line for each question"),
                file_count="multiple", type="filepath", elem_id="batch-files", min_width=160,
            )  # fmt: skip
            self.folder = gr.File(
                label=_("Or a folder of pictures"),
                file_count="directory", type="filepath", elem_id="batch-folder", min_width=160,
            )  # fmt: skip
        with gr.Row():
            self.start = gr.Button(_("Start"), variant="primary", elem_id="batch-start")
            self.delete = gr.Button(_("Stop and delete"), elem_id="batch-delete")
            self.refresh = gr.Button(_("Look again"))
        self.jobs = gr.Dropdown(label=_("Your batches"), choices=[], elem_id="batch-jobs")
        self.line = gr.HTML(elem_id="batch-line")
        self.result = gr.HTML(elem_id="batch-result")
        with gr.Row():
            self.jsonl = gr.DownloadButton(_("Results as JSONL"), elem_id="batch-jsonl")
            self.csv = gr.DownloadButton(_("Results as CSV"), elem_id="batch-csv")
        self.thumbnails = gr.State({})
        """Small pictures by their place, by the job that they belong to."""

        self.timer = gr.Timer(EVERY_S, active=False)

    def wire(self) -> None:
        chosen = self.chosen
        quick = {"show_progress": "hidden", "api_visibility": "private"}
        chosen.model.change(
            self.tasks_update, [chosen.catalogue, chosen.model, chosen.task], [chosen.task],
            queue=False, **quick,
        )  # fmt: skip
        chosen.task.change(
            ask.options_update, [chosen.catalogue, chosen.task], [chosen.options],
            queue=False, **quick,
        )  # fmt: skip
        outputs = [
            self.line, self.result, self.jobs, self.jsonl, self.csv, self.timer, self.thumbnails
        ]  # fmt: skip
        self.start.click(
            self.on_start,
            [
                self.files, self.folder, self.question, chosen.model, chosen.task, chosen.options,
                self.thumbnails,
            ],
            outputs, **quick,
        )  # fmt: skip
        gr.on(
            [self.timer.tick, self.jobs.input],
            self.on_look, [self.jobs, self.thumbnails], outputs, **quick,
        )  # fmt: skip
        self.refresh.click(self.on_list, [self.jobs, self.thumbnails], outputs, **quick)
        self.delete.click(self.on_delete, [self.jobs, self.thumbnails], outputs, **quick)

    def tasks_update(self, catalogue: dict[str, Any], model: str | None, task: str | None) -> Any:
        models = [model] if model else []
        return ask.tasks_update_without_chat(catalogue, models, task, self.text)

    async def on_start(
        self,
        files: list[str] | None,
        folder: list[str] | None,
        text: str,
        model: str | None,
        task: str | None,
        options: str,
        small: Small,
        request: gr.Request,
    ) -> dict[Any, Any]:
        """Submit the batch."""
        paths = [Path(path) for path in files or ()] + seen_in(folder or ())
        if not paths or not model or not task:
            sentence = self.text("Choose files, a model and a task first.")
            return {self.line: drawing.sentence(sentence, wrong=True)}
        gateway = self.connections.gateway(request)
        question = Question(model, task, text, options)
        fields = question.fields() | ({} if task == PREDICT else {"task": task})
        try:
            if len(paths) == 1 and paths[0].suffix.lower() in (".jsonl", ".ndjson"):
                lines = await to_thread.run_sync(with_fields, paths[0], fields)
                job = await gateway.json(
                    "POST", "/jobs", content=lines, headers={"Content-Type": "application/jsonl"}
                )
            else:
                job = await gateway.form("/jobs", fields, paths)
        except Refusal as error:
            return {self.line: drawing.sentence(error.sentence, wrong=True)}
        latest = dict(list(small.items())[1 - MOST_BATCHES :])
        new = {job["id"]: await to_thread.run_sync(thumbnails, paths)}
        return await self.job_updates(gateway, job["id"], latest | new)

    async def on_look(self, job: str | None, small: Small, request: gr.Request) -> dict[Any, Any]:
        if not job:
            return {self.timer: gr.Timer(active=False)}
        return await self.job_updates(self.connections.gateway(request), job, small)

    async def on_list(self, job: str | None, small: Small, request: gr.Request) -> dict[Any, Any]:
        gateway = self.connections.gateway(request)
        try:
            jobs = await listed(gateway)
        except Refusal as error:
            return {self.line: drawing.sentence(error.sentence, wrong=True)}
        names = [name for _, name in jobs]
        chosen = job if job in names else next(iter(names), None)
        return {self.jobs: gr.update(choices=jobs, value=chosen)} | (
            await self.job_updates(gateway, chosen, small) if chosen else {}
        )

    async def on_delete(self, job: str | None, small: Small, request: gr.Request) -> dict[Any, Any]:
        gateway = self.connections.gateway(request)
        if not job:
            return {self.line: drawing.sentence(self.text("Choose a batch first."), wrong=True)}
        try:
            await gateway.call("DELETE", f"/jobs/{job}")
            jobs = await listed(gateway)
        except Refusal as error:
            return {self.line: drawing.sentence(error.sentence, wrong=True)}
        return {
            self.line: drawing.sentence(self.text("Deleted.")),
            self.result: "",
            self.jobs: gr.update(choices=jobs, value=None),
            self.timer: gr.Timer(active=False),
            self.jsonl: None,
            self.csv: None,
            self.thumbnails: {name: each for name, each in small.items() if name != job},
        }

    async def job_updates(self, gateway: Gateway, job: str, small: Small) -> dict[Any, Any]:
        """The progress of a batch, and its results so far."""
        try:
            state = await gateway.json("GET", f"/jobs/{job}")
            content = (await gateway.call("GET", f"/jobs/{job}/results.jsonl")).content
            jobs = await listed(gateway)
        except Refusal as error:
            return {
                self.line: drawing.sentence(error.sentence, wrong=True),
                self.timer: gr.Timer(active=error.status in PASSING),
            }
        rows = sorted(map(json.loads, content.splitlines()), key=lambda row: row["index"])
        running = state["state"] != "done"
        sentence = f"{state['done']} of {state['total']} are done, {state['failed']} failed."
        update = {
            self.line: drawing.sentence(sentence),
            self.result: table(rows, small.get(job, {})),
            self.jobs: gr.update(choices=jobs, value=job),
            self.timer: gr.Timer(active=running),
            self.thumbnails: small,
            # Of a batch that was looked at before, there may be files.
            self.jsonl: None,
            self.csv: None,
        }
        if not running:
            name, write = f"batch-{job[:8]}", self.connections.downloads.write
            cells = as_csv(rows).encode()
            update |= {
                self.jsonl: str(await to_thread.run_sync(write, f"{name}.jsonl", content)),
                self.csv: str(await to_thread.run_sync(write, f"{name}.csv", cells)),
            }
        return update


def seen_in(folder: Sequence[str]) -> list[Path]:
    """A folder's files by name, without those that a file manager hides."""
    paths = sorted((Path(path) for path in folder), key=lambda path: path.name)
    return [path for path in paths if not path.name.startswith(".")]


async def listed(gateway: Gateway) -> list[tuple[str, str]]:
    """The visitor's batches, the latest first."""
    jobs = (await gateway.json("GET", "/jobs"))["jobs"]
    return [
        (f"{each['id'][:8]} · {each['done']} of {each['total']}", str(each["id"]))
        for each in sorted(jobs, key=lambda each: -each["created"])
    ]


def with_fields(path: Path, fields: dict[str, str]) -> bytes:
    """Lines with the screen's model and task added to questions that name none.

    A line that is not a JSON object stays as it is: the gateway says what is wrong with it. Raises
    Refusal for a file that is gone.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise Refusal(REMOVED) from error
    lines = []
    for line in content.splitlines():
        try:
            item = json.loads(line)
        except ValueError:
            item = None
        lines.append(
            json.dumps(completed(item, fields)).encode() if isinstance(item, dict) else line
        )
    return b"\n".join(lines) + b"\n"


def completed(item: dict[str, Any], fields: dict[str, str]) -> dict[str, Any]:
    """A line with the screen's fields; the screen's words go to questions of its task alone."""
    task = fields.get("task", "")
    same = item.get("task", task) == task
    return {name: value for name, value in fields.items() if same or name not in WORDS} | item


def thumbnails(paths: Sequence[Path]) -> dict[str, str]:
    """A small picture for each of the first files, by its place in the batch."""
    uris = {}
    for at, path in enumerate(paths[:SHOWN_ROWS]):
        try:
            uris[str(at)] = pictures.prepared(path, pictures.THUMBNAIL).uri
        except pictures.Unreadable:
            continue
    return uris


def table(rows: Sequence[dict[str, Any]], small: dict[str, str]) -> str:
    """The failures first in a separate table, then the answers."""
    failed = [row for row in rows if row["status"] != 200]
    well = [row for row in rows if row["status"] == 200]
    parts = []
    for title, some in (("Failed", failed), ("Answers", well)):
        if not some:
            continue
        table_rows = "".join(one_row(row, small) for row in some[:SHOWN_ROWS])
        more = len(some) - SHOWN_ROWS
        rest = f"<p>{more} more are in the files.</p>" if more > 0 else ""
        parts.append(
            f'<h3>{title}</h3><div class="ll-scroll" tabindex="0" role="region" '
            f'aria-label="{title}"><table class="ll-table"><thead><tr><th>Place</th><th>File</th>'
            f"<th>Answer</th></tr></thead><tbody>{table_rows}</tbody></table></div>{rest}"
        )
    return "".join(parts)


def one_row(row: dict[str, Any], small: dict[str, str]) -> str:
    uri = small.get(str(row["index"]))
    picture = f'<img src="{uri}" alt="">' if uri else ""
    name = escape(str(row.get("filename") or row.get("id") or ""))
    text = text_of(row["answer"]) if row["status"] == 200 else row["problem"]["detail"]
    return (
        f"<tr><td>{int(row['index']) + 1}</td><td>{picture} {name}</td>"
        f"<td>{drawing.cell(str(text))}</td></tr>"
    )


def as_csv(rows: Sequence[dict[str, Any]]) -> str:
    """One line each; cells that a spreadsheet would compute are quoted."""
    file = io.StringIO()
    writer = csv.writer(file)
    writer.writerow(["index", "id", "filename", "status", "answer", "value"])
    for row in rows:
        answer = row.get("answer") or {}
        text = text_of(answer) if answer else (row.get("problem") or {}).get("detail", "")
        value = json.dumps(answer["value"], ensure_ascii=False) if answer.get("value") else ""
        cells = [row.get("id", ""), row.get("filename", ""), row["status"], text, value]
        writer.writerow([row["index"], *map(safe, cells)])
    return file.getvalue()


def safe(value: Any) -> str:
    text = str(value if value is not None else "")
    return f"'{text}" if text.lstrip().startswith(FORMULA) or text[:1] in FORMULA else text
