"""Workflows on a cluster, through Argo's command line: submitted, watched, stopped, answered."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from loraline.errors import TryAgain, UserError
from loraline.profiles.loading import load_profile
from loraline_cli import main
from loraline_cli.desk import progress

CALL_S = 60
LOG_S = 10
SUBMIT_S = 300
"""Submitting may render the workflow anew, which imports Hera."""

APPROVAL = "approval"
"""The suspended node of the workflow `promote`; its parameter is the reviewer's decision."""

COMPONENT = "app.kubernetes.io/component"
LINES = progress.MOST_LINES


@dataclass(frozen=True)
class Argo:
    """Argo in one namespace; without a namespace there is none."""

    namespace: str | None = None

    def missing(self) -> str | None:
        """Why nothing can be asked of Argo, in a sentence; None where it can."""
        if self.namespace is None:
            return "the desk was started without --namespace, so it knows no cluster"
        if shutil.which("argo") is None:
            return "argo, the command line of Argo Workflows, is not installed where the desk runs"
        return None

    def submit(self, profile: str, data: str, overrides: Sequence[str]) -> str:
        """Submit the pipeline as `make submit` does; returns the workflow's name.

        UserError for a mistake in the recipe, before anything is submitted, and for Argo's refusal.
        """
        self.expect()
        load_profile(profile, overrides=overrides)
        parameters = {"profile": profile, "data": data, "set": shlex.join(overrides)}
        words = [word for name, text in parameters.items() for word in ("-p", f"{name}={text}")]
        folder = main.HOME / "workflows"
        command = [sys.executable, str(folder / "submit.py"), str(folder / "pipeline.yaml")]
        done = ended([*command, "--namespace", str(self.namespace), "--no-watch", *words], SUBMIT_S)
        return done.strip().rpartition("\n")[2]

    def listed(self) -> list[str]:
        """Names of the pipelines in the namespace, the latest first."""
        workflows = json.loads(
            self.ask("list", "-l", f"{COMPONENT}=pipeline", "-o", "json") or "[]"
        )
        latest = sorted(workflows or [], key=lambda each: each["metadata"]["creationTimestamp"])
        return [each["metadata"]["name"] for each in reversed(latest)]

    def read(self, name: str) -> dict[str, Any]:
        """A workflow's status as Argo writes it."""
        workflow = json.loads(self.ask("get", checked(name), "-o", "json"))
        status: dict[str, Any] = workflow.get("status") or {}
        return status

    def status(self, name: str) -> dict[str, Any]:
        """A workflow's nodes and the end of its log."""
        status = self.read(name)
        running = status.get("phase", "Pending") in ("Pending", "Running")
        try:
            log = self.ask("logs", name, "--no-color", "--tail", str(LINES), seconds=LOG_S)
        except (UserError, TryAgain):
            log = ""  # Its pods may be gone, or not be there yet.
        return progress.described(name, status, running=running, log=log.splitlines()[-LINES:])

    def stop(self, name: str) -> None:
        self.ask("stop", checked(name))

    def resume(self, name: str) -> None:
        """Go on with a workflow that failed or was stopped; what succeeded is kept."""
        self.ask("retry", checked(name))

    def answer(self, model: str, version: str, decision: str) -> list[str]:
        """Answer the workflows `promote` that wait for a decision about a version; their names."""
        answered = []
        for name in self.waiting(model, version):
            node = ("--node-field-selector", f"displayName={APPROVAL}")
            self.ask("node", "set", name, "--output-parameter", f"decision={decision}", *node)
            self.ask("resume", name, *node)
            answered.append(name)
        return answered

    def waiting(self, model: str, version: str) -> list[str]:
        """Workflows that wait for a decision about this version, or about any candidate."""
        running = ("list", "--running", "-l", f"{COMPONENT}=promote", "-o", "json")
        names = []
        for workflow in json.loads(self.ask(*running) or "[]") or []:
            parameters = workflow["spec"].get("arguments", {}).get("parameters", [])
            values = {each["name"]: each.get("value", "") for each in parameters}
            nodes = workflow.get("status", {}).get("nodes") or {}
            waits = any(
                (node["displayName"], node["type"], node["phase"])
                == (APPROVAL, "Suspend", "Running")
                for node in nodes.values()
            )
            if waits and values.get("model") == model and values.get("version") in ("", version):
                names.append(workflow["metadata"]["name"])
        return names

    def expect(self) -> None:
        if reason := self.missing():
            raise UserError(reason)

    def ask(self, *words: str, seconds: float = CALL_S) -> str:
        self.expect()
        return ended(["argo", *words, "--namespace", str(self.namespace)], seconds)


def checked(name: str) -> str:
    """A workflow's name; a UserError for what would be another argument of the command."""
    if not name.replace("-", "").replace(".", "").isalnum() or name.startswith("-"):
        raise UserError(f"there is no workflow {name!r}")
    return name


def ended(command: Sequence[str], seconds: float) -> str:
    """What a command printed. UserError with its last line when it fails, TryAgain when it takes
    too long."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=seconds,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise TryAgain(f"{command[0]} did not answer within {seconds:g} s") from error
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()] or ["no reason given"]
        raise UserError(lines[-1].removeprefix("Error: ").removeprefix("error: "))
    return done.stdout
