"""Trainings on the desk's own machine: the workflow of `make pipeline`, watched and stopped."""

from __future__ import annotations

import fcntl
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

from loraline.errors import TryAgain, UserError
from loraline.profiles.loading import load_profile
from loraline_cli import main
from loraline_cli import run as workflow_files
from loraline_cli.desk import progress

OUTPUTS = Path("outputs")
RUNNER = ("runner.run_local", "--preload", "loraline_cli.preload")

LOG = "desk.log"
STATUS = "status.json"
MOST_BYTES = 256 * 1024
"""Bytes at the end of a log that are shown."""

CHECK_S = 600
STARTS_S = 30
"""Time for a started workflow to write its status."""


@dataclass
class Going:
    """The workflow that runs now."""

    process: subprocess.Popen[bytes]
    log: Path
    link_before: tuple[int, int] | None
    """The link to the latest run before the workflow began."""

    name: str = ""
    """Its run; empty until the runner has named a new one."""


class Trainings:
    """Runs one training at a time: this machine has one of everything."""

    def __init__(self) -> None:
        self.lock = Lock()
        self.going: Going | None = None

    def check(self, profile: str, data: str, overrides: Sequence[str]) -> dict[str, Any]:
        """What prepare_data says of the data and the profile before anything starts, and what the
        memory comes to at most."""
        load_profile(profile, overrides=overrides)
        sets = [word for text in overrides for word in ("--set", shlex.quote(text))]
        with tempfile.TemporaryDirectory(prefix="loraline-desk-") as folder:
            command = [sys.executable, str(main.HOME / "steps/prepare_data.py"), "--check-only"]
            command += ["--profile", profile, "--out-dir", folder]
            command += ["--data", data] if data else []
            ended = run_to_end(command + sets)
            report = Path(folder, "report.html")
            html = report.read_text() if report.is_file() else ""
        lines = [*ended.stdout.splitlines(), *ended.stderr.splitlines()]
        # A base that is not on this machine is not fetched for an estimate.
        planned = run_to_end(
            [sys.executable, "-m", "loraline_cli.desk.plan", profile, *sets], offline=True
        )
        plan = (planned.stderr if planned.returncode else planned.stdout).splitlines()
        return {
            "well": ended.returncode == 0,
            "lines": lines[-progress.MOST_LINES :],
            "plan": plan[-progress.MOST_LINES :],
            "report": html,
        }

    def start(self, profile: str, data: str, overrides: Sequence[str]) -> str:
        """Start the pipeline; returns its name. UserError for an unknown profile or override."""
        load_profile(profile, overrides=overrides)
        parameters = {"profile": profile, "data": data, "set": shlex.join(overrides)}
        words = [word for name, text in parameters.items() for word in ("-p", f"{name}={text}")]
        return self.launch([str(self.file(profile)), *words])

    def resume(self, name: str) -> str:
        """Resume a run that was stopped or failed; what succeeded is kept."""
        self.status(name)
        words = [str(self.file(self.profile_of(name))), "--resume", "--run", name]
        return self.launch(words, name)

    def launch(self, words: list[str], name: str = "") -> str:
        """Start the runner, to go on with this run if there is a name."""
        with self.lock:
            if self.is_going():
                raise TryAgain("a training runs here already; stop it, or wait for its end")
            OUTPUTS.mkdir(exist_ok=True)
            log = OUTPUTS / f".desk-{time.time_ns()}.log"
            before = link_to_latest()
            with log.open("wb") as file:
                process = subprocess.Popen(
                    [sys.executable, "-m", *RUNNER, *words],
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    # Ctrl-C at the desk must not stop the training.
                    start_new_session=True,
                )
            self.going = Going(process, log, before, name)
        return self.named(self.going)

    def named(self, going: Going) -> str:
        """The name of the run that a process writes; UserError with its last words if it ended."""
        deadline = time.monotonic() + STARTS_S
        while time.monotonic() < deadline:
            if link_to_latest() != going.link_before:
                # A run of a terminal may move the link later on.
                going.name = going.name or os.readlink(OUTPUTS / "latest")
                folder = OUTPUTS / going.name
                if folder.is_dir():
                    # A run that was resumed has the log of what was stopped.
                    going.log = going.log.replace(folder / LOG)
                    if (folder / STATUS).is_file():
                        return going.name
            if going.process.poll() is not None:
                last = tail(going.log)[-1:] or ["it wrote nothing"]
                going.log.unlink(missing_ok=True)
                raise UserError(f"the workflow did not start: {last[0]}")
            time.sleep(0.05)
        raise TryAgain(f"the workflow wrote no status within {STARTS_S} s")

    def stop(self, name: str) -> None:
        """Stop a run as Ctrl-C does: its step writes a checkpoint, and resuming goes on there."""
        self.status(name)
        with self.lock:
            going = self.going
            if going is None or not self.is_going(name):
                where = "was not started by this desk" if is_locked(name) else "does not run here"
                raise UserError(f"{name} {where}")
            going.process.send_signal(signal.SIGTERM)

    def is_going(self, name: str = "") -> bool:
        """Whether a training runs here, and is the run of this name if there is a name."""
        going = self.going
        return going is not None and going.process.poll() is None and name in ("", going.name)

    def listed(self) -> list[dict[str, Any]]:
        """Runs of this folder, the latest first; a folder with a status of another form is none."""
        files = sorted(OUTPUTS.glob(f"*/{STATUS}"), key=lambda file: -file.stat().st_mtime)
        statuses = []
        for file in files:
            if not file.parent.is_symlink():
                with suppress(UserError):
                    statuses.append(self.status(file.parent.name))
        return statuses

    def read(self, name: str) -> dict[str, Any]:
        """A run's status as the runner writes it; UserError for an unknown name."""
        if "/" in name or name.startswith("."):
            raise UserError(f"there is no run {name!r} here")
        try:
            status: dict[str, Any] = json.loads((OUTPUTS / name / STATUS).read_text())["status"]
            # A status of another form has none.
            status["phase"]
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise UserError(f"there is no run {name!r} here") from error
        return status

    def status(self, name: str) -> dict[str, Any]:
        """A run's nodes and the end of its log; UserError for an unknown name."""
        status = self.read(name)
        running = self.is_going(name)
        if status["phase"] == "Running" and not running:
            # It may go on in a terminal, or since a desk before this one.
            running = is_locked(name)
            status["phase"] = "Running" if running else "Stopped"
        return progress.described(name, status, running=running, log=tail(OUTPUTS / name / LOG))

    def profile_of(self, name: str) -> str:
        document = json.loads((OUTPUTS / name / STATUS).read_text())
        parameters = document["spec"]["arguments"]["parameters"]
        return str(next((each["value"] for each in parameters if each["name"] == "profile"), ""))

    def file(self, profile: str) -> Path:
        """The rendered pipeline; for a profile that it does not list, one rendered anew."""
        rendered = workflow_files.file_of("pipeline")
        if f"      - {profile}\n" in rendered.read_text():
            return rendered
        workflows = main.HOME / "workflows"
        # It renders the pipeline for a profile that the committed file does not list.
        command = [sys.executable, str(workflows / "submit.py"), str(workflows / "pipeline.yaml")]
        command += ["--check", "-p", f"profile={profile}"]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        if ended.returncode:
            raise UserError(f"the pipeline of {profile} was not rendered: {ended.stderr.strip()}")
        rendered = OUTPUTS / "workflows" / "pipeline.yaml"
        if not workflow_files.scripts_are_here():
            rendered.write_text(workflow_files.with_full_paths(rendered.read_text()))
        return rendered


def run_to_end(
    command: Sequence[str], *, offline: bool = False
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end; TryAgain if it takes too long."""
    env = {**os.environ, "HF_HUB_OFFLINE": "1"} if offline else None
    try:
        return subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=CHECK_S, env=env
        )
    except subprocess.TimeoutExpired as error:
        raise TryAgain(f"the check did not end within {CHECK_S} s") from error


def is_locked(name: str) -> bool:
    """Whether a run's runner or one of its containers lives: they hold its folder's lock."""
    try:
        with (OUTPUTS / name / ".lock").open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def link_to_latest() -> tuple[int, int] | None:
    """Tell the link to the latest run from the ones before and after it; None if there is none."""
    try:
        status = (OUTPUTS / "latest").lstat()
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_mtime_ns


def tail(file: Path) -> list[str]:
    """The last lines of a log; a line that was overwritten in place has its last text."""
    try:
        with file.open("rb") as opened:
            opened.seek(max(0, file.stat().st_size - MOST_BYTES))
            text = opened.read().decode("utf-8", "replace")
    except OSError:
        return []
    return [line.rpartition("\r")[2] for line in text.splitlines()][-progress.MOST_LINES :]
