"""Runs gates as processes of their own, at once or dying at a given call to the registry.

Reads a JSON list of jobs a line, runs them side by side, and writes their exit codes as a line;
a job that was killed has the signal's negative number. Libraries are imported once, before forking.
"""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow.pyfunc
import mlflow.store.db.utils
import mlflow.store.model_registry.sqlalchemy_store
import mlflow.store.tracking.sqlalchemy_store
import sqlalchemy.orm
from mlflow.tracking._model_registry.client import ModelRegistryClient

from loraline import contract
from loraline.evaluation import rules
from loraline.profiles import loading
from loraline.serving import preflight
from loraline.tracking import lock, registry

ROOT = Path(__file__).parents[2]
PRELOADED = (contract, mlflow, rules, preflight, loading, registry)


def run(job: dict[str, Any]) -> None:
    """Run one gate in this process and end it."""
    os.chdir(job["cwd"])
    os.environ["MLFLOW_TRACKING_URI"] = job["store"]
    mlflow.set_tracking_uri(job["store"])
    lock.LEASE_SECONDS = 20
    with open(os.devnull, "w") as nothing:
        os.dup2(nothing.fileno(), 1)
    if job.get("die_before"):
        die_before_call(job["die_before"])
    spec = importlib.util.spec_from_file_location("gate", ROOT / "steps" / "quality_gate.py")
    assert spec and spec.loader
    gate = importlib.util.module_from_spec(spec)
    sys.modules["gate"] = gate
    spec.loader.exec_module(gate)
    gate.quality_gate(["--run-id", job["run_id"], "--force", "--out-dir", job["out_dir"]])


def die_before_call(number: int) -> None:
    """Kill this process, as the kernel would, before its n-th call to the registry."""
    calls = 0

    def counted(method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return method(*arguments, **options)

        return call

    for name, method in list(vars(ModelRegistryClient).items()):
        if not name.startswith("_") and callable(method):
            setattr(ModelRegistryClient, name, counted(method))


def main() -> None:
    sqlalchemy.orm.configure_mappers()
    for line in sys.stdin:
        pids = []
        for job in json.loads(line):
            pid = os.fork()
            if pid == 0:
                try:
                    run(job)
                except SystemExit as ended:
                    os._exit(ended.code if isinstance(ended.code, int) else 1)
                except BaseException:
                    import traceback

                    traceback.print_exc()
                    os._exit(70)
                os._exit(0)
            pids.append(pid)
        codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
        print(json.dumps(codes), flush=True)


if __name__ == "__main__":
    main()
