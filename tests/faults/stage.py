"""A place where steps run as real processes over a real store, and which can be put back.

The place keeps its path, since MLflow's store keeps absolute ones; its states are copied aside.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from ports import reserved_port

from loraline import addresses
from loraline.tracking import signature

ROOT = Path(__file__).parents[2]
MODEL = "fault-lora"

PROFILE: dict[str, Any] = {
    "base": "base",
    "registered_model": MODEL,
    "data": "data",
    "r": 4,
    "lora_alpha": 8,
    "lora_dropout": 0.0,
    "target_modules": ["q_proj", "v_proj"],
    "learning_rate": 4.0e-3,
    "warmup_steps": 0,
    "num_train_epochs": 1,
    "max_steps": 2,
    "rows_per_step": 8,
    "max_length": 128,
    "max_new_tokens": 4,
    "serve_dtype": "float32",
    "gate": dict.fromkeys(
        ("max_eval_loss", "max_perplexity", "min_gain_over_base", "min_gain_over_champion")
    ),
}

ROWS = {"train": 16, "validation": 6, "test": 24}

LINE = ("prepare_data", "train_qlora", "evaluate", "quality_gate", "deploy_vllm")


def signing_key() -> str:
    """A private key of nobody, as the gate takes it."""
    encoded = Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    return encoded.decode()


CANARIES = {
    "AWS_ACCESS_KEY_ID": "canary0access",
    "AWS_SECRET_ACCESS_KEY": "canary1secret",
    "VLLM_API_KEY": "canary2vllm",
    "HF_TOKEN": "canary3hub",
    addresses.WEBHOOK: "http://127.0.0.1:9/services/canary4webhook",
    "MLFLOW_TRACKING_PASSWORD": "canary5password",
    "MLFLOW_TRACKING_TOKEN": "canary6token",
    "AWS_SESSION_TOKEN": "canary7session",
    signature.SIGNING_KEY: signing_key(),
}
"""A secret in each variable that may hold one; none may be seen anywhere afterwards.

MLFLOW_TRACKING_USERNAME is none: MLflow names its runs' user by it.
"""

CANARY = b"canary"

SEARCHED = (CANARY, CANARIES[signature.SIGNING_KEY].splitlines()[1].encode())
"""What is looked for: a key is in no form that could hold a word."""


@dataclass(frozen=True)
class Ended:
    """How a step's process ended: its exit code, or the negative number of a signal."""

    code: int | None
    stdout: str
    stderr: str

    @property
    def sentence(self) -> str:
        """The last line of standard error, where a step says why it ended."""
        lines = self.stderr.strip().splitlines()
        return lines[-1] if lines else ""


class Stage:
    """The place, and the warmed process whose forks are the steps."""

    def __init__(self, folder: Path) -> None:
        self.place = folder / "place"
        self.states = folder / "states"
        self.place.mkdir()
        self.states.mkdir()
        (self.place / "tmp").mkdir()
        self.store = f"sqlite:///{self.place}/mlruns/mlflow.db"
        self.environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(folder),
            "USER": "somebody",
            "OMP_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "",
            "HF_HUB_OFFLINE": "1",
            "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "PYTHONPATH": str(ROOT),
            "TMPDIR": str(self.place / "tmp"),
            "MLFLOW_TRACKING_USERNAME": "somebody",
            **CANARIES,
        }
        self.warm = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("warm.py"))],
            env=os.environ | self.environment,
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.answer()
        self.started = 0
        self.reserved = reserved_port()
        self.servers: list[Server] = []

    def close(self) -> None:
        for server in [*self.servers]:
            server.stop()
        self.reserved.close()
        if self.warm.stdin:
            self.warm.stdin.close()
        self.warm.wait(600)

    def answer(self) -> dict[str, Any]:
        assert self.warm.stdout is not None
        answered: dict[str, Any] = json.loads(self.warm.stdout.readline())
        return answered

    def ask(self, **request: Any) -> dict[str, Any]:
        assert self.warm.stdin is not None
        self.warm.stdin.write(json.dumps(request) + "\n")
        self.warm.stdin.flush()
        return self.answer()

    def start(
        self,
        step: str,
        *arguments: str,
        faults: Sequence[tuple[str, dict[str, Any]]] = (),
        environment: dict[str, str] | None = None,
        folder: Path | None = None,
    ) -> Process:
        """Start a step with the faults that it is to meet."""
        self.started += 1
        streams = self.states / f"{self.started}.out", self.states / f"{self.started}.err"
        started = {
            "step": step,
            "arguments": list(arguments),
            "folder": str(folder or self.place),
            "environment": self.environment | (environment or {}),
            "stdout": str(streams[0]),
            "stderr": str(streams[1]),
            "faults": list(faults),
        }
        return Process(self, self.ask(start=started)["pid"], *streams)

    def run(self, step: str, *arguments: str, **options: Any) -> Ended:
        return self.start(step, *arguments, **options).ended()

    def save(self, name: str) -> None:
        shutil.copytree(self.place, self.states / name, symlinks=True)

    def restore(self, name: str) -> None:
        """Put the place back as it was saved."""
        for entry in self.place.iterdir():
            shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
        shutil.copytree(self.states / name, self.place, symlinks=True, dirs_exist_ok=True)

    def arguments(self, step: str) -> list[str]:
        """The options of a step of the line, with the run before it."""
        more = {
            "prepare_data": ["--profile", "fault", "--workers", "1"],
            "train_qlora": ["--profile", "fault", "--checkpoint-minutes", "0"],
            "evaluate": ["--engine", "hf"],
            "deploy_vllm": ["--gpu", "cpu"],
            "promote": ["--model", MODEL],
        }.get(step, [])
        before = {**dict(zip(LINE[1:], LINE, strict=False)), "fetch_adapter": "quality_gate"}
        if step == "fetch_adapter":
            return ["--model", f"models:/{MODEL}/1", "--out-dir", "fetched/v1"]
        if step in before:
            more = ["--run-id", self.run_id(before[step]), *more]
        return [*more, "--out-dir", f"out/{step}"]

    def run_id(self, step: str) -> str:
        return (self.place / "out" / step / "run-id").read_text()

    def step(self, step: str, *more: str, **options: Any) -> Ended:
        """Run a step of the line."""
        return self.run(step, *self.arguments(step), *more, **options)

    def served_step(self, step: str) -> Ended:
        """Run a step of the line over MLflow's server."""
        server = self.server()
        try:
            return self.step(step, environment={"MLFLOW_TRACKING_URI": server.address})
        finally:
            server.stop()

    def query(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        """What the store says, read beside MLflow; `?` in the statement stands for a value."""
        with closing(sqlite3.connect(self.place / "mlruns" / "mlflow.db")) as database:
            return database.execute(statement, values).fetchall()

    def server(self, artifacts: str = "") -> Server:
        """A real MLflow server over the place's store, at the same address each time.

        A manifest and the fingerprint of its run name the address.
        """
        return Server(self, "mlflow", self.store, artifacts, reserved=self.reserved)


@dataclass
class Process:
    """A step that was started."""

    stage: Stage
    pid: int
    stdout: Path
    stderr: Path
    code: int | None = None

    def wait(self, seconds: float) -> int | None:
        """Its exit code, or the negative number of a signal; None if it is still at work."""
        if self.code is None:
            self.code = self.stage.ask(wait=self.pid, seconds=seconds)["code"]
        return self.code

    def ended(self, seconds: float = 600) -> Ended:
        """Wait for its end; one that does not end is killed and has no exit code."""
        code = self.wait(seconds)
        if code is None:
            self.kill()
        texts = (file.read_text(errors="replace") for file in (self.stdout, self.stderr))
        return Ended(code, *texts)

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.wait(600)


class Server:
    """MLflow's server, or one of S3, in a fork of the warmed process."""

    def __init__(
        self,
        stage: Stage,
        program: str,
        *arguments: str,
        reserved: socket.socket | None = None,
    ) -> None:
        self.stage = stage
        stage.servers.append(self)
        self.reserved = reserved.dup() if reserved else reserved_port()
        self.port: int = self.reserved.getsockname()[1]
        self.address = f"http://127.0.0.1:{self.port}"
        self.control = stage.states / f"{program}-{self.port}.json"
        self.behave()
        self.process = stage.start(program, str(self.port), str(self.control), *arguments)
        for _ in range(6000):
            if self.listens():
                return
            if self.process.wait(0.02) is not None:
                break
        raise AssertionError(self.process.stderr.read_text())

    def listens(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port), 5).close()
        except OSError:
            return False
        return True

    def misbehave(self, **fault: Any) -> None:
        """Tell the server what to do with which request; see `unruly.Fault`."""
        part = self.control.with_suffix(".part")
        part.write_text(json.dumps(fault))
        part.replace(self.control)

    def behave(self) -> None:
        self.control.unlink(missing_ok=True)

    def stop(self) -> None:
        if self in self.stage.servers:
            self.stage.servers.remove(self)
            self.process.kill()
            # The fork that serves dies a moment after the process that was waited for. The next
            # server would take that one's port for its own.
            deadline = time.monotonic() + 30
            while self.listens():
                assert time.monotonic() < deadline, f"port {self.port} is still served"
                time.sleep(0.01)
            self.reserved.close()


def furnish(stage: Stage, empty_store: Path | None = None) -> None:
    """Put the base, a few rows and the profile into an empty place; a store, if one is given."""
    (stage.place / "base").symlink_to(ROOT / "test_data" / "text" / "base")
    (stage.place / "data").mkdir()
    for split, rows in ROWS.items():
        lines = (ROOT / "test_data" / "text" / f"{split}.jsonl").read_text().splitlines()
        (stage.place / "data" / f"{split}.jsonl").write_text("\n".join(lines[:rows]) + "\n")
    shutil.copy(ROOT / "test_data" / "text" / "prompt.txt", stage.place / "data")
    (stage.place / "lora_profiles").mkdir()
    (stage.place / "lora_profiles" / "fault.yaml").write_text(yaml.safe_dump(PROFILE))
    if empty_store is not None:
        (stage.place / "mlruns").mkdir()
        shutil.copy(empty_store, stage.place / "mlruns" / "mlflow.db")
