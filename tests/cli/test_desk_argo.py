"""Trainings that the desk submits to Argo, before a stand-in for its command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from loraline.errors import UserError
from loraline_cli.desk.app import create_app
from loraline_cli.desk.argo import Argo
from tests.argo_program import ArgoProgram, argo_program

__all__ = ["argo_program"]


def test_a_training_is_submitted_watched_stopped_and_resumed(
    argo_program: ArgoProgram, workplace: Path
) -> None:
    desk = TestClient(create_app(None, "trainings"))
    asked = {"profile": "smoke-text", "data": "s3://rows", "overrides": ["r=16"]}
    made = desk.post("/workflows", json=asked)
    assert made.status_code == 201, made.text
    assert made.json() == {"name": "submitted-1"}
    submitted = next(words for words in argo_program.calls() if words[0] == "submit")
    assert submitted[submitted.index("--namespace") + 1] == "trainings"
    assert {"profile=smoke-text", "data=s3://rows", "set=r=16"} <= set(submitted)

    assert desk.get("/workflows").json() == {"workflows": ["submitted-1"], "missing": None}
    run = desk.get("/workflows/submitted-1").json()
    assert (run["phase"], run["running"]) == ("Running", True)
    assert [node["name"] for node in run["nodes"]] == ["train-qlora"]
    assert run["log"] == ["submitted-1-train: loss 2.5"]
    assert desk.get("/workflows/submitted-1/loss").json()["points"] == {}
    assert desk.post("/workflows/submitted-1/stop").status_code == 200
    assert desk.get("/workflows/submitted-1").json()["running"] is False
    assert desk.post("/workflows/submitted-1/resume").status_code == 200
    assert desk.get("/workflows/submitted-1").json()["running"] is True
    assert all("trainings" in words for words in argo_program.calls())


def test_without_a_namespace_or_a_program_the_button_says_so(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked = {"profile": "smoke-text"}
    refused = TestClient(create_app(None)).post("/workflows", json=asked)
    assert refused.status_code == 422
    assert "started without --namespace" in refused.json()["detail"]
    monkeypatch.setenv("PATH", str(tmp_path))
    desk = TestClient(create_app(None, "trainings"))
    refused = desk.post("/workflows", json=asked)
    assert refused.status_code == 422
    assert "argo, the command line of Argo Workflows, is not installed" in refused.text
    assert desk.get("/workflows").json()["missing"].startswith("argo, the command line")


def test_a_cluster_that_is_down_hides_no_training_of_this_machine(
    argo_program: ArgoProgram, workplace: Path
) -> None:
    argo_program.fails("dial tcp: connection refused")
    desk = TestClient(create_app(None, "trainings"))
    assert desk.get("/workflows").json() == {
        "workflows": [],
        "missing": "dial tcp: connection refused",
    }
    refused = desk.post("/workflows", json={"profile": "smoke-text"})
    assert refused.status_code == 422 and "connection refused" in refused.json()["detail"]


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        ({"profile": "none"}, "none"),
        ({"profile": "smoke-text", "overrides": ["r=0"]}, "r"),
        ({"profile": "smoke-text", "overrides": ["x=1"]}, "x"),
    ],
)
def test_what_is_no_recipe_is_not_submitted(
    recipe: dict[str, Any], words: str, argo_program: ArgoProgram, workplace: Path
) -> None:
    refused = TestClient(create_app(None, "trainings")).post("/workflows", json=recipe)
    assert refused.status_code == 422 and words in refused.json()["detail"]
    assert argo_program.calls() == []


@pytest.mark.parametrize("name", ["--all", "a b", "", "a;b"])
def test_a_name_that_would_be_another_argument_is_refused(
    name: str, argo_program: ArgoProgram
) -> None:
    argo = Argo("trainings")
    for act in (argo.status, argo.stop, argo.resume):
        with pytest.raises(UserError, match="no workflow"):
            act(name)
    assert argo_program.calls() == []


def test_an_unknown_workflow_is_said(argo_program: ArgoProgram) -> None:
    with pytest.raises(UserError, match='"gone" not found'):
        Argo("trainings").status("gone")
