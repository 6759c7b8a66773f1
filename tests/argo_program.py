"""A stand-in for Argo's command line: it keeps workflows in a file, and what it was called with."""

from __future__ import annotations

import json
import stat
import sys
from pathlib import Path
from typing import Any

import pytest

PROGRAM = """#!{python}
import json, sys
from pathlib import Path
state = Path(__file__).with_name("state.json")
kept = json.loads(state.read_text())
words = sys.argv[1:]
kept["calls"].append(words)
def option(name):
    return words[words.index(name) + 1]
def done(text=""):
    state.write_text(json.dumps(kept))
    print(text)
    sys.exit(0)
if kept["fails"]:
    state.write_text(json.dumps(kept))
    sys.exit("Error: " + kept["fails"])
workflows = kept["workflows"]
if words[0] == "submit":
    parameters = [word for before, word in zip(words, words[1:]) if before == "-p"]
    workflows["submitted-1"] = {{
        "metadata": {{"name": "submitted-1", "creationTimestamp": "2026-01-02T00:00:00Z",
                      "labels": {{"app.kubernetes.io/component": "pipeline"}}}},
        "spec": {{"arguments": {{"parameters": parameters}}}},
        "status": {{"phase": "Running", "nodes": {{"a": {{
            "displayName": "train-qlora", "type": "Pod", "phase": "Running"}}}}}},
    }}
    done("workflow.argoproj.io/submitted-1")
if words[0] == "list":
    key, _, value = option("-l").partition("=")
    done(json.dumps([w for w in workflows.values() if w["metadata"]["labels"].get(key) == value]))
if words[0] == "get":
    if words[1] not in workflows:
        sys.exit("Error: workflows.argoproj.io \\"" + words[1] + "\\" not found")
    done(json.dumps(workflows[words[1]]))
if words[0] == "logs":
    done("submitted-1-train: loss 2.5")
if words[0] == "stop":
    workflows[words[1]]["status"]["phase"] = "Failed"
    done()
if words[0] == "retry":
    workflows[words[1]]["status"]["phase"] = "Running"
    done()
if words[:2] == ["node", "set"]:
    assert option("--node-field-selector") == "displayName=approval"
    workflows[words[2]]["answer"] = option("--output-parameter").partition("=")[2]
    done()
if words[0] == "resume":
    assert option("--node-field-selector") == "displayName=approval"
    workflows[words[1]]["status"]["nodes"]["a"]["phase"] = "Succeeded"
    done()
sys.exit("Error: unknown command")
"""


class ArgoProgram:
    """The program's state, and what a test puts into it."""

    def __init__(self, folder: Path) -> None:
        self.state = folder / "state.json"
        self.state.write_text(json.dumps({"workflows": {}, "calls": [], "fails": ""}))
        program = folder / "argo"
        program.write_text(PROGRAM.format(python=sys.executable))
        program.chmod(program.stat().st_mode | stat.S_IXUSR)

    def read(self) -> dict[str, Any]:
        kept: dict[str, Any] = json.loads(self.state.read_text())
        return kept

    def calls(self) -> list[list[str]]:
        calls: list[list[str]] = self.read()["calls"]
        return calls

    def fails(self, reason: str) -> None:
        self.state.write_text(json.dumps(self.read() | {"fails": reason}))

    def waits(self, name: str, model: str, version: str) -> None:
        """Put in a workflow `promote` that waits for a decision."""
        kept = self.read()
        given = {"model": model, "version": version, "image": "localhost/loraline:dev"}
        kept["workflows"][name] = {
            "metadata": {
                "name": name,
                "creationTimestamp": "2026-01-01T00:00:00Z",
                "labels": {"app.kubernetes.io/component": "promote"},
            },
            "spec": {
                "arguments": {
                    "parameters": [{"name": key, "value": value} for key, value in given.items()]
                }
            },
            "status": {
                "phase": "Running",
                "nodes": {
                    "a": {"displayName": "approval", "type": "Suspend", "phase": "Running"},
                },
            },
        }
        self.state.write_text(json.dumps(kept))

    def answers(self) -> dict[str, str]:
        """Decisions of the workflows that were answered, and went on."""
        return {
            name: workflow["answer"]
            for name, workflow in self.read()["workflows"].items()
            if "answer" in workflow and workflow["status"]["nodes"]["a"]["phase"] == "Succeeded"
        }


@pytest.fixture
def argo_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ArgoProgram:
    """The program, first on the PATH."""
    folder = tmp_path / "argo-program"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder), prepend=":")
    return ArgoProgram(folder)
