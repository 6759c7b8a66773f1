"""How each fault of the table is brought about: a function that runs the step and meets it."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import changes
import harm
from cells import Cell
from stage import Ended, Process, Server, Stage

Provoke = Callable[[Stage, Cell], Ended]

SIZES = {"nothing": 0, "some KiB": 8}


def armed(name: str, **options: Any) -> Provoke:
    """A fault that the step's own process meets at the cell's moment."""

    def run(stage: Stage, cell: Cell) -> Ended:
        return stage.step(cell.step, faults=[(name, {"moment": cell.moment, **options})])

    return run


def served(action: str, *, always: bool = False) -> Provoke:
    """Over MLflow's server, which does something else with one request, or with all."""

    def run(stage: Stage, cell: Cell) -> Ended:
        path, _, number = cell.moment.rpartition(" ")
        server = stage.server()
        try:
            server.misbehave(
                action=action, path="" if always else path, number=0 if always else int(number)
            )
            ended = stage.step(cell.step, environment={"MLFLOW_TRACKING_URI": server.address})
            once = action != "kill for good" and not always
            assert not (once and server.control.exists()), "there was no such request"
            return ended
        finally:
            server.stop()

    return run


def locked(stage: Stage, cell: Cell) -> Ended:
    """Another program holds the SQLite store, as a backup does, from a moment to the step's end."""
    reached, go = stage.states / "reached", stage.states / "go"
    for file in (reached, go):
        file.unlink(missing_ok=True)
    wait = {"moment": cell.moment, "reached": str(reached), "go": str(go)}
    step = stage.start(cell.step, *stage.arguments(cell.step), faults=[("paused", wait)])
    file = stage.place / "mlruns" / "mlflow.db"
    wait_for_file(reached, step)
    with closing(sqlite3.connect(file, isolation_level=None, timeout=30)) as other:
        other.execute("BEGIN EXCLUSIVE")
        go.touch()
        ended = step.ended()
        other.execute("ROLLBACK")
    return ended


def wait_for_file(file: Path, step: Process) -> None:
    """Wait until a step has made a file."""
    for _ in range(6000):
        if file.exists():
            return
        if step.wait(0.05) is not None:
            break
    raise AssertionError(f"the step never came so far: {step.stderr.read_text()}")


def disk(folder: str) -> Provoke:
    """A real disk of next to no size, mounted where the step writes."""

    def run(stage: Stage, cell: Cell) -> Ended:
        place = stage.place / folder
        place.mkdir(parents=True, exist_ok=True)
        mount = {"folder": str(place), "size": SIZES[cell.moment]}
        return stage.step(cell.step, faults=[("small_disk", mount)])

    return run


def store_full(stage: Stage, cell: Cell) -> Ended:
    """The disk of the store, database and artifacts, fills up at the cell's moment.

    What the step has left on that disk is put into the place, without what filled it.
    """
    place, keeper = stage.place / "mlruns", stage.states / "keeper"
    keeper.unlink(missing_ok=True)
    mount = {"moment": cell.moment, "folder": str(place), "keeper": str(keeper)}
    ended = stage.step(cell.step, faults=[("disk_fills_up", mount)])
    pid = int(keeper.read_text())
    disk, kept = Path(f"/proc/{pid}/root{place}"), stage.states / "disk"
    assert (disk / harm.FILLER).stat().st_size, "the disk was not filled"
    # Copied before the place is emptied: who removes a folder unmounts what is mounted on it.
    shutil.copytree(disk, kept, ignore=shutil.ignore_patterns(harm.FILLER))
    os.kill(pid, signal.SIGKILL)
    shutil.rmtree(place)
    kept.rename(place)
    return ended


def adapter(stage: Stage) -> Path:
    """The stored files of the trained adapter."""
    statement = "SELECT artifact_location FROM logged_models WHERE lifecycle_stage = 'active'"
    ((place,),) = stage.query(statement)
    return Path(place.removeprefix("file://"), "artifacts", "adapter")


def adapter_changed(stage: Stage, cell: Cell) -> Ended:
    getattr(changes, cell.moment)(adapter(stage))
    return stage.step(cell.step)


def dataset_changed(stage: Stage, cell: Cell) -> Ended:
    run_id = stage.run_id("prepare_data")
    ((place,),) = stage.query("SELECT artifact_uri FROM runs WHERE run_uuid = ?", run_id)
    getattr(changes, cell.moment)(Path(place.removeprefix("file://"), "dataset"))
    return stage.step(cell.step)


def two(stage: Stage, cell: Cell) -> Ended:
    """A second one runs from its start to its end while the first one stands at the moment."""
    reached, go = stage.states / "reached", stage.states / "go"
    for file in (reached, go):
        file.unlink(missing_ok=True)
    wait = {"moment": cell.moment, "reached": str(reached), "go": str(go)}
    arguments = stage.arguments(cell.step)
    first = stage.start(cell.step, *arguments, faults=[("paused", wait)])
    wait_for_file(reached, first)
    second = stage.run(cell.step, *[*arguments[:-1], "out/second"])
    go.touch()
    ended = first.ended()
    assert ended.code == 0, ended.stderr
    return second


def checkpoint_damaged(stage: Stage, cell: Cell) -> Ended:
    """A training is killed after its first checkpoint, of which a file is then cut or lost."""
    killed = stage.step(
        "train_qlora", faults=[("stopped", {"number": signal.SIGKILL, "moment": "log_batch 5"})]
    )
    assert killed.code == -signal.SIGKILL, killed.stderr
    (folder,) = (stage.place / "mlruns").rglob("checkpoints")
    harm, _, name = cell.moment.partition(" ")
    files = [file for file in folder.rglob(name or "*") if file.is_file()]
    assert files, sorted(folder.rglob("*"))
    for file in files:
        if harm == "lost":
            file.unlink()
        else:
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    return stage.step("train_qlora")


class Storage:
    """An S3 with the artifacts of a line, and an MLflow server that sends its clients there."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.s3 = Server(stage, "s3")
        bucket = urllib.request.Request(f"{self.s3.address}/artifacts", method="PUT")
        urllib.request.urlopen(bucket).close()

    def step(self, step: str, *more: str, **environment: str) -> Ended:
        server = self.stage.server("s3://artifacts/")
        places = {"MLFLOW_TRACKING_URI": server.address, "MLFLOW_S3_ENDPOINT_URL": self.s3.address}
        places |= {"AWS_DEFAULT_REGION": "us-east-1", "AWS_MAX_ATTEMPTS": "3"}
        try:
            return self.stage.step(step, *more, environment=places | environment)
        finally:
            server.stop()

    def objects(self) -> Iterator[tuple[str, bytes]]:
        """All that the S3 holds, by name."""
        import boto3

        client = boto3.client(
            "s3",
            endpoint_url=self.s3.address,
            region_name="us-east-1",
            aws_access_key_id="reader",
            aws_secret_access_key="reader",
        )
        for page in client.get_paginator("list_objects_v2").paginate(Bucket="artifacts"):
            for entry in page.get("Contents", []):
                name = entry["Key"]
                yield name, client.get_object(Bucket="artifacts", Key=name)["Body"].read()

    def provoke(self, cell: Cell, *more: str) -> Ended:
        action, _, times = cell.moment.partition(", ")
        if action == "away":
            return self.step(cell.step, *more, MLFLOW_S3_ENDPOINT_URL="http://127.0.0.1:9")
        if action != "well":
            method = "PUT" if cell.step in ("prepare_data", "train_qlora") else "GET"
            self.s3.misbehave(action=action, method=method, number=1 if times == "once" else 0)
        try:
            return self.step(cell.step, *more)
        finally:
            self.s3.behave()


def out_of_memory(stage: Stage, cell: Cell) -> Ended:
    group = harm.memory_group(f"loraline-{os.getpid()}")
    assert group is not None
    try:
        exhausted = {"moment": cell.moment, "group": str(group)}
        return stage.step(cell.step, faults=[("out_of_memory", exhausted)])
    finally:
        group.rmdir()


FAULTS: dict[str, Provoke] = {
    "SIGKILL": armed("stopped", number=signal.SIGKILL),
    "SIGTERM": armed("stopped", number=signal.SIGTERM),
    "Ctrl-C": armed("stopped", number=signal.SIGINT),
    "answer lost": served("lost"),
    "answer 500 once": served("500"),
    "answer 429 once": served("429"),
    "connection reset once": served("reset"),
    "server killed and started again": served("kill"),
    "server killed for good": served("kill for good"),
    "each answer takes two seconds": served("late", always=True),
    "database read-only": armed("database", pragma="query_only = ON"),
    "disk of the store full": store_full,
    "database held by another program": locked,
    "out of memory": out_of_memory,
    "clock an hour ahead": armed("clock", seconds=3600),
    "clock a day back": armed("clock", seconds=-86400),
    "no file over 64 KiB": armed("largest_file", size=2**16),
    "disk for outputs full": disk("out"),
    "disk for temporary files full": disk("tmp"),
    "disk for artifacts full": disk("mlruns/artifacts"),
    "adapter changed": adapter_changed,
    "dataset changed": dataset_changed,
    "two at once": two,
    "checkpoint damaged": checkpoint_damaged,
}
