"""/jobs: many files or lines at once, answered in the background."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from fastapi import APIRouter
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from gateway import core, documented, jobs, uploads
from gateway.bodies import as_json
from gateway.core import Authenticated, Gateway, RateLimited
from gateway.errors import ClientGone, Problem
from gateway.exchange import Exchange
from gateway.jobs import Jobs
from gateway.keys import Caller
from gateway.routes import compare, tasks
from gateway.settings import MIB
from gateway.uploads import Form

router = APIRouter(tags=["Jobs"])

FIELDS = {
    "task": "A task for every file; without one, the adapter's prompt is asked.",
    "model": "As in /predict and /tasks.",
    "question": "As in /predict.",
    "text": "As in /tasks.",
    "options": "As in /tasks.",
    "max_tokens": "As in /predict and /tasks.",
}
JSONL = "application/jsonl"
LINES = (JSONL, "application/x-ndjson", "application/x-jsonlines")
ERRORS = (400, 401, 404, 408, 409, 413, 415, 422, 429, 500, 503, 507)


def request_body() -> dict[str, Any]:
    """Either a form with files, or lines of JSON."""
    extra = documented.form_body(FIELDS)
    extra["requestBody"]["content"][JSONL] = {
        "schema": {
            "type": "string",
            "description": "A line for each question: an object with the form's fields, `id`, and "
            "an image as `image`, data:TYPE;base64,CONTENT.",
        }
    }
    return extra


@router.post(
    "/jobs", status_code=202, responses=documented.problems(*ERRORS), openapi_extra=request_body()
)
async def create(request: Request, caller: RateLimited) -> Response:
    """Hand in a job; its ID is known when all of its files are."""
    gateway = core.of(request)
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    with gateway.admission.upload_slot():
        if media_type in LINES:
            folder = await from_lines(request, caller)
        else:
            async with uploads.form(
                request, set(FIELDS), max_files=gateway.settings.max_job_files, many=True
            ) as form:
                check(request, caller, form)
                if not form.files:
                    raise Problem(422, "files", "A job needs files, or lines as JSONL.")
                folder = await asyncio.to_thread(
                    jobs_of(request).create,
                    caller,
                    {"fields": form.fields},
                    jobs.from_files(form.files),
                )
    jobs_of(request).resume(folder)
    return as_json(await asyncio.to_thread(jobs_of(request).progress, folder), 202)


def check(request: Request, caller: Caller, form: Form) -> None:
    """Refuse an unknown task or model, or a field that nothing reads, before anything is kept."""
    gateway = core.of(request)
    compare.check_fields(form)
    if task := form.text("task"):
        tasks.find(gateway, task)
    if model := form.text("model"):
        gateway.upstreams.model(model, caller)


async def from_lines(request: Request, caller: Caller) -> Path:
    """A job from a JSONL body, which is written to disk as it arrives."""
    gateway = core.of(request)
    with tempfile.TemporaryFile() as file:
        try:
            async for piece in request.stream():
                await asyncio.to_thread(file.write, piece)
        except ClientDisconnect:
            raise ClientGone from None
        file.seek(0)
        most = int(gateway.settings.max_json_mb * MIB)
        items = jobs.from_lines(lines(file, most), set(FIELDS))
        return await asyncio.to_thread(jobs_of(request).create, caller, {"fields": {}}, items)


def lines(file: BinaryIO, most: int) -> Iterator[bytes]:
    while line := file.readline(most + 1):
        if len(line) > most:
            raise Problem(413, "line", f"A line is larger than {most / MIB:g} MiB.")
        yield line


async def read(gateway: Gateway, form: Form, caller: Caller, exchange: Exchange) -> Any:
    """The question of one item: for a task where its fields name one, else for /predict."""
    task = form.text("task")
    exchange.task = task if task in gateway.tasks else ""
    name = form.text("model") or (tasks.base(gateway, caller) if task else None)
    return await compare.model_request(gateway, form, name, caller)


def jobs_of(request: Request) -> Jobs:
    kept = request.app.state.jobs
    assert isinstance(kept, Jobs)
    return kept


@router.get("/jobs", responses=documented.problems(401, 500))
async def listed(request: Request, caller: Authenticated) -> Response:
    """This key's jobs."""
    all_jobs = jobs_of(request)

    def read() -> list[dict[str, Any]]:
        documents = []
        for path in all_jobs.store.of(caller):
            # Another request or the sweep may have removed it since.
            with suppress(Problem):
                documents.append(all_jobs.progress(path.parent))
        return documents

    return as_json({"jobs": await asyncio.to_thread(read)})


@router.get("/jobs/{job}", responses=documented.problems(401, 404, 500))
async def progress(request: Request, job: str, caller: Authenticated) -> Response:
    """The progress of a job."""
    all_jobs = jobs_of(request)
    folder = all_jobs.store.folder(caller, job)
    return as_json(await asyncio.to_thread(all_jobs.progress, folder))


@router.get(
    "/jobs/{job}/results.jsonl",
    response_class=Response,
    responses=documented.problems(401, 404, 500) | documented.answer(JSONL),
)
async def results(request: Request, job: str, caller: Authenticated) -> Response:
    """The results so far, in the order in which they came; `index` is the item's place."""
    folder = jobs_of(request).store.folder(caller, job)

    def read() -> bytes:
        path = folder / jobs.RESULTS
        content = path.read_bytes() if path.exists() else b""
        return content[: content.rfind(b"\n") + 1]

    headers = {"Content-Disposition": f'attachment; filename="job-{job[:8]}.jsonl"'}
    return Response(await asyncio.to_thread(read), 200, headers, JSONL)


@router.delete("/jobs/{job}", status_code=204, responses=documented.problems(401, 404, 500))
async def delete(request: Request, job: str, caller: Authenticated) -> Response:
    """Stop a job and forget it, with its files and results."""
    all_jobs = jobs_of(request)
    await all_jobs.delete(all_jobs.store.folder(caller, job))
    return Response(status_code=204)
