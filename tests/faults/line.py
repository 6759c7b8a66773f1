"""The line on a stage: the state before each step, and what each step makes of it undisturbed."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import after
import table
from cells import Cell
from provoke import FAULTS, Storage
from stage import LINE, Ended, Stage, furnish

STEPS = (*LINE, "promote")

SERVED = ("prepare_data", "deploy_vllm")
"""Steps that are repeated over a server when they met their fault over one: the experiment that
prepare_data makes is the server's, and the manifest of deploy_vllm names the server's address."""


class Line:
    """A line that met no fault, kept to be put back and to be compared with."""

    def __init__(self, stage: Stage, empty_store: Path | None) -> None:
        self.stage = stage
        furnish(stage, empty_store)
        self.results: dict[str, dict[str, Any]] = {}
        self.seconds: dict[str, float] = {}
        self.storage: Storage | None = None
        for step in STEPS:
            self.stage.save(f"before {step}")
            started = time.monotonic()
            ended = self.stage.step(step)
            self.seconds[step] = time.monotonic() - started
            assert ended.code == 0, ended.stderr
            self.results[step] = after.whole(self.stage, step)

    def with_storage(self) -> Storage:
        """The same with the artifacts in an S3, on first use."""
        if self.storage is None:
            self.stage.restore("before prepare_data")
            self.storage = Storage(self.stage)
            for step in STEPS:
                self.stage.save(f"s3 before {step}")
                ended = self.storage.step(step)
                assert ended.code == 0, ended.stderr
                self.results[f"s3 {step}"] = after.whole(self.stage, step)
        return self.storage

    def served(self, step: str) -> dict[str, Any]:
        """What a step makes undisturbed over MLflow's server, on first use."""
        if f"served {step}" not in self.results:
            self.stage.restore(f"before {step}")
            ended = self.stage.served_step(step)
            assert ended.code == 0, ended.stderr
            self.results[f"served {step}"] = after.whole(self.stage, step)
        return self.results[f"served {step}"]

    def play(self, cell: Cell) -> None:
        """Let a step meet a fault, run it again, and hold both against the table."""
        stage = self.stage
        started = time.monotonic()
        storage = self.with_storage() if cell.fault == table.S3 else None
        where = "s3 " if storage else ""
        again: Callable[[str], Ended] = stage.step
        undisturbed = self.results[where + cell.step]
        if storage:
            again = storage.step
        elif cell.step in SERVED and cell.moment in table.REQUESTS[cell.step]:
            again, undisturbed = stage.served_step, self.served(cell.step)
        stage.restore(f"{where}before {cell.step}")
        before = after.rows(stage)
        ended = storage.provoke(cell) if storage else FAULTS[cell.fault](stage, cell)
        left = after.left(stage, before, cell.step)
        rerun = again(cell.step)
        unswept = after.unswept(stage, cell.step) if rerun.code == 0 else set()
        result = after.whole(stage, cell.step) if rerun.code == 0 else None
        secrets = after.shown_secrets(stage, ended, rerun, storage=storage)
        same = result == undisturbed
        after.record(
            fault=cell.fault,
            step=cell.step,
            moment=cell.moment,
            exit_code=ended.code,
            sentence=ended.sentence,
            left=sorted(left),
            rerun_code=rerun.code,
            rerun=rerun.sentence,
            unswept=sorted(unswept),
            same=same,
            secrets=secrets,
            traceback="Traceback" in ended.stderr + rerun.stderr,
            seconds=round(time.monotonic() - started, 1),
        )
        assert ended.code == cell.exit_code, ended.stderr
        assert cell.sentence in ended.stderr
        assert "Traceback" not in ended.stderr + rerun.stderr
        assert rerun.code == cell.rerun_code, rerun.stderr
        assert cell.rerun in rerun.stderr
        assert not secrets
        assert left <= {*cell.left.split(", ")}
        if rerun.code == 0:
            assert same, result
            assert not unswept

    def close(self) -> None:
        self.stage.close()
