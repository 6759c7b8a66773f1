"""Jobs: many questions that nobody waits for. A killed gateway resumes after the last result."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from gateway import errors, images, logs, sse, store
from gateway.errors import Problem
from gateway.exchange import Exchange
from gateway.keys import Caller
from gateway.store import Store
from gateway.uploads import Form, Upload

if TYPE_CHECKING:
    from gateway.core import Gateway

SHOWN = ("id", "filename")
"""What a result repeats of its item."""

ITEMS, RESULTS = "items.jsonl", "results.jsonl"
MAX_JOBS = 20
"""Jobs that one caller may have."""

TEMPORARY = (429, 502, 503, 504, 507)
ATTEMPTS = 8
LONGEST_WAIT_S = 60
"""Failures of this kind are tried again, after 1, 2, 4… 60 s; a server may be starting."""

Read = Callable[["Gateway", Form, Caller, Exchange], Awaitable[Any]]
"""Reads an item's fields and files as the routes for single questions do."""

POLL_S = 30
"""Seconds between two searches for jobs that another replica left behind."""


class Jobs:
    """The store of jobs, and the tasks that work on them."""

    def __init__(self, gateway: Gateway, read: Read) -> None:
        self.gateway = gateway
        self.read = read
        self.settings = gateway.settings
        self.store = Store(self.settings.data_dir / "jobs", "job.json")
        self.places = asyncio.Semaphore(self.settings.jobs_parallel)
        self.running: dict[str, asyncio.Task[None]] = {}
        self.polling: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self.polling = asyncio.create_task(self.poll())

    async def close(self) -> None:
        """Stop working; what is done stays done, and the rest is taken up at the next start."""
        if self.polling:
            await sse.end(self.polling)
        await sse.end(*self.running.values())

    async def poll(self) -> None:
        """Take up unfinished jobs, and sweep what has been kept long enough."""
        while True:
            try:
                await asyncio.to_thread(self.sweep)
                for folder in await asyncio.to_thread(self.store.all):
                    self.resume(folder)
            except Exception as error:
                logs.log.error("jobs cannot be looked through", exc_info=error)
            await asyncio.sleep(POLL_S)

    def sweep(self) -> None:
        hours = self.settings.retention_hours
        self.store.sweep(hours)
        self.gateway.sessions.store.sweep(hours)

    def resume(self, folder: Path) -> None:
        if folder.name in self.running:
            return
        with suppress(Problem):
            if self.store.read(folder)["state"] != "running":
                return
            task = asyncio.create_task(self.work(folder))
            self.running[folder.name] = task
            task.add_done_callback(lambda _: self.running.pop(folder.name, None))

    def create(
        self, caller: Caller, facts: dict[str, Any], items: Iterator[dict[str, Any]]
    ) -> Path:
        """A new job. The items' media go to its folder, one at a time."""
        if len(self.store.of(caller)) >= MAX_JOBS:
            raise Problem(409, "jobs", f"This key has {MAX_JOBS} jobs; delete one first.")
        now = time.time()
        document = {
            **facts,
            "state": "making",
            "created": now,
            "changed": now,
            "total": 0,
            "caller": asdict(caller),
        }
        folder = self.store.create(caller, document)
        try:
            total = self.write_items(folder, items)
            self.store.change(folder, lambda each: each.update(state="running", total=total))
        except BaseException:
            self.store.remove(folder)
            raise
        return folder

    def write_items(self, folder: Path, items: Iterator[dict[str, Any]]) -> int:
        total = 0
        with (folder / ITEMS).open("wb") as file:
            for item in items:
                total += 1
                if total > self.settings.max_job_files:
                    raise Problem(
                        413, "items", f"A job takes {self.settings.max_job_files:,} items at most."
                    )
                if (content := item.pop("content", None)) is not None:
                    sha256 = hashlib.sha256(content).hexdigest()
                    store.add_medium(folder, content, sha256)
                    item["sha256"] = sha256
                file.write(orjson.dumps(item) + b"\n")
        if not total:
            raise Problem(422, "items", "A job needs at least one item.")
        return total

    async def work(self, folder: Path) -> None:
        """Ask for every item that has no result yet."""
        with self.store.locked(folder, wait=False) as mine:
            if not mine:
                return
            job = self.store.read(folder)
            caller = Caller(**{**job["caller"], "models": names(job["caller"]["models"])})
            done = await asyncio.to_thread(finished, folder)
            items = await asyncio.to_thread(lines, folder / ITEMS)
            left = [(at, item) for at, item in enumerate(items) if at not in done]
            queue = iter(left)

            async def worker() -> None:
                for at, item in queue:
                    result = await self.result(folder, job, caller, item)
                    line = orjson.dumps({"index": at, **result}) + b"\n"
                    await asyncio.to_thread(append, folder / RESULTS, line)

            workers = [asyncio.create_task(worker()) for _ in range(self.settings.jobs_parallel)]
            try:
                await asyncio.gather(*workers)
            except OSError as error:
                logs.log.error("a job stopped; it is taken up again", exc_info=error)
                return
            finally:
                await sse.end(*workers)
        self.store.change(folder, lambda each: each.update(state="done"))

    async def result(
        self, folder: Path, job: dict[str, Any], caller: Caller, item: dict[str, Any]
    ) -> dict[str, Any]:
        """One item's answer or its problem; a temporary failure is tried again."""
        facts: dict[str, Any] = {name: item[name] for name in item if name in SHOWN}
        for attempt in range(ATTEMPTS):
            await self.turn(caller)
            # An item that waits for its next attempt leaves its place to other jobs.
            async with self.places:
                exchange = Exchange(method="JOB", route="/jobs", caller=caller.name, status=200)
                try:
                    answer = await self.answer(folder, job, caller, item, exchange)
                    return {**facts, "status": 200, "answer": answer}
                except Exception as error:
                    problem = errors.of(error)
                    exchange.status, exchange.code = problem.status, problem.code
                    if problem.status == 500:
                        logs.log.error(
                            "an item failed", exc_info=error, extra={"request_id": exchange.id}
                        )
                finally:
                    self.gateway.metrics.observe(exchange)
                    logs.write_audit(exchange)
            if problem.status not in TEMPORARY or attempt == ATTEMPTS - 1:
                break
            wait = float(problem.headers.get("Retry-After", 0))
            await asyncio.sleep(min(max(wait, 2**attempt), LONGEST_WAIT_S))
        return {**facts, "status": problem.status, "problem": problem.document(exchange.id)}

    async def turn(self, caller: Caller) -> None:
        """Return when the caller's rate has room; to wait for that is no failure of an item."""
        while True:
            try:
                return await self.gateway.rates.check(caller)
            except Problem as problem:
                wait = float(problem.headers.get("Retry-After", 1))
                await asyncio.sleep(min(wait, LONGEST_WAIT_S))

    async def answer(
        self,
        folder: Path,
        job: dict[str, Any],
        caller: Caller,
        item: dict[str, Any],
        exchange: Exchange,
    ) -> dict[str, Any]:
        from gateway.answering import answered

        fields = {**job["fields"], **item.get("fields", {})}
        form = Form({key: str(value) for key, value in fields.items()})
        if sha256 := item.get("sha256"):
            path = folder / store.MEDIA / sha256
            file = path.open("rb")
            form.files.append(Upload(item.get("filename", ""), file, path.stat().st_size))
        try:
            parsed = await self.read(self.gateway, form, caller, exchange)
        finally:
            for upload in form.files:
                upload.file.close()
        exchange.digests += parsed.digests
        return await answered(self.gateway, parsed, caller, exchange)

    def progress(self, folder: Path) -> dict[str, Any]:
        """A job as its caller sees it."""
        job = self.store.read(folder)
        results = lines(folder / RESULTS)
        failed = sum(each["status"] != 200 for each in results)
        return {
            "id": job["id"],
            "state": job["state"],
            "created": job["created"],
            "total": job["total"],
            "done": len(results),
            "failed": failed,
            "fields": job["fields"],
        }

    async def delete(self, folder: Path) -> None:
        if task := self.running.get(folder.name):
            await sse.end(task)
        await asyncio.to_thread(self.store.remove, folder)


def names(models: Any) -> tuple[str, ...] | None:
    return None if models is None else tuple(models)


def lines(path: Path) -> list[dict[str, Any]]:
    """The complete lines of a JSONL file, without an unfinished last line of a killed process."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in content[: content.rfind(b"\n") + 1].splitlines()]


def finished(folder: Path) -> set[int]:
    """Items that have a result; an unfinished line after the last result is cut off."""
    path = folder / RESULTS
    if path.exists():
        with path.open("rb+") as file:
            content = file.read()
            file.truncate(content.rfind(b"\n") + 1)
    return {each["index"] for each in lines(path)}


def append(path: Path, line: bytes) -> None:
    """Add a line, or nothing of it."""
    with path.open("ab") as file:
        before = os.fstat(file.fileno()).st_size
        try:
            file.write(line)
            file.flush()
        except OSError:
            os.truncate(path, before)
            raise


def from_lines(content: Iterator[bytes], known: set[str]) -> Iterator[dict[str, Any]]:
    """Items of a JSONL body: fields as in a form, `id`, and an image as `image`, a data URI."""
    for number, line in enumerate(content, 1):
        if not line.strip():
            continue
        try:
            fields = orjson.loads(line)
        except ValueError:
            raise bad_line(number, "is no JSON") from None
        if not isinstance(fields, dict) or not set(fields) <= known | {"id", "image"}:
            raise bad_line(number, f"is no object of {', '.join(sorted(known))}, id and image")
        if not all(isinstance(value, str | int | float) for value in fields.values()):
            raise bad_line(number, "has a value that is neither a text nor a number")
        item: dict[str, Any] = {}
        if "id" in fields:
            item["id"] = fields.pop("id")
        if "image" in fields:
            item["content"] = images.from_uri(str(fields.pop("image")))[1]
        yield item | {"fields": fields}


def bad_line(number: int, clause: str) -> Problem:
    return Problem(422, "line", f"Line {number} {clause}.")


def from_files(files: list[Upload]) -> Iterator[dict[str, Any]]:
    for upload in files:
        upload.file.seek(0)
        yield {"filename": upload.name, "content": upload.file.read()}
