"""The desk, behind the page's Review screen: its moves are those of steps/promote.py."""

from __future__ import annotations

import math
import socket
from pathlib import Path
from typing import Any

import mlflow
import pytest
from click.testing import CliRunner
from starlette.testclient import TestClient

from gateway.keys import entry, new_key
from loraline.errors import UserError
from loraline.tracking import registry
from loraline.tracking.tags import AUDIT, CHAMPION, GATE_RUN
from loraline_cli.desk.__main__ import desk as desk_command
from loraline_cli.desk.app import create_app
from tests.argo_program import argo_program

__all__ = ["argo_program"]

MODEL = "mistral-7b-lora"

PREDICTIONS = {
    "row": [0, 1, 2, 3, 4],
    "question": ["Which?", "Who?", "Where?", "When?", "Why?"],
    "reference": ["this", "Ann", "here", "today", "so"],
    "tuned": ["this", "Bob", "there", "today!", "x" * 1000],
}


@pytest.fixture
def people(tmp_path: Path) -> tuple[TestClient, dict[str, dict[str, str]]]:
    """A desk with a reviewer and a guest, and the header of each."""
    made = {name: new_key(name) for name in ("rita", "gus")}
    entries = [
        entry(key.model_copy(update={"roles": ("reviewer",) if name == "rita" else ()}))
        for name, (_, key) in made.items()
    ]
    file = tmp_path / "keys.json"
    file.write_text(f"[{', '.join(entries)}]")
    headers = {name: {"Authorization": f"Bearer {key}"} for name, (key, _) in made.items()}
    return TestClient(create_app(file)), headers


@pytest.fixture
def passed(step: Any, candidate: Any) -> Any:
    def make(name: str) -> None:
        champion = registry.version_of(mlflow.MlflowClient(), MODEL, "champion")
        tags = {CHAMPION: str(champion.version) if champion else ""}
        run = candidate(name=name, tags=tags, gain_over_champion_levenshtein_low=0.1)
        with mlflow.start_run(run_id=run):
            mlflow.log_text("<h1>Report of it</h1>", "report.html")
            mlflow.log_table(PREDICTIONS, "predictions.json")
        step("quality_gate", "--run-id", run)

    return make


def history() -> list[str]:
    tags = mlflow.MlflowClient().get_registered_model(MODEL).tags
    return [tags[key] for key in sorted(tags) if key.startswith(f"{AUDIT}.")]


ADDRESSES = [
    ("GET", "/models", None),
    ("GET", f"/models/{MODEL}", None),
    ("GET", f"/models/{MODEL}/versions/1/report", None),
    ("POST", f"/models/{MODEL}/moves", {"act": "promote", "version": "1"}),
    ("POST", f"/models/{MODEL}/moves", {"act": "rollback"}),
    ("GET", "/profiles", None),
    ("GET", "/profiles/smoke-text", None),
    ("POST", "/checks", {"profile": "smoke-text"}),
    ("GET", "/runs", None),
    ("POST", "/runs", {"profile": "smoke-text"}),
    ("GET", "/runs/latest", None),
    ("GET", "/runs/latest/loss", None),
    ("POST", "/runs/latest/stop", None),
    ("POST", "/runs/latest/resume", None),
    ("GET", "/workflows", None),
    ("POST", "/workflows", {"profile": "smoke-text"}),
    ("GET", "/workflows/one", None),
    ("GET", "/workflows/one/loss", None),
    ("POST", "/workflows/one/stop", None),
    ("POST", "/workflows/one/resume", None),
]


def test_nobody_without_the_role_sees_or_moves_anything(people: Any, passed: Any) -> None:
    desk, headers = people
    passed("one")
    wrong = {"Authorization": "Bearer ll-wrong"}

    for method, path, body in ADDRESSES:
        assert desk.request(method, path, json=body).status_code == 401
        assert desk.request(method, path, json=body, headers=wrong).status_code == 401
        refused = desk.request(method, path, json=body, headers=headers["gus"])
        assert refused.status_code == 403, path
        assert "the role of a " in refused.json()["detail"]
    assert registry.version_of(mlflow.MlflowClient(), MODEL, "champion") is None


def test_everybody_is_told_what_they_may_do(people: Any) -> None:
    desk, headers = people
    assert desk.get("/me", headers=headers["rita"]).json()["roles"] == ["reviewer"]
    assert desk.get("/me", headers=headers["gus"]).json() == {"name": "gus", "roles": []}


def test_a_role_that_is_taken_away_is_gone_at_once(people: Any, tmp_path: Path) -> None:
    desk, headers = people
    file = tmp_path / "keys.json"
    file.write_text(file.read_text().replace('"reviewer"', ""))
    assert desk.get("/models", headers=headers["rita"]).status_code == 403


def test_a_candidate_is_shown_with_its_rules_numbers_and_report(people: Any, passed: Any) -> None:
    desk, headers = people
    passed("one")

    board = desk.get(f"/models/{MODEL}", headers=headers["rita"]).json()

    assert desk.get("/models", headers=headers["rita"]).json() == {"models": [MODEL]}
    one = board["versions"]["candidate"]
    assert (one["version"], one["result"], one["profile"]) == ("1", "passed", "standard")
    assert one["metrics"]["levenshtein"].keys() >= {"base", "tuned"}
    assert all(rule["passed"] for rule in one["rules"]) and len(one["rules"]) > 3
    assert [row["question"] for row in one["worst"]] == ["Who?", "Why?", "Where?"]
    assert one["worst"][0] == {"question": "Who?", "reference": "Ann", "tuned": "Bob"}
    assert len(one["worst"][1]["tuned"]) == 300
    version = mlflow.MlflowClient().get_model_version(MODEL, "1")
    assert version.tags[GATE_RUN]
    report = desk.get(f"/models/{MODEL}/versions/1/report", headers=headers["rita"])
    assert "Report of it" in report.text
    assert "sandbox" in report.headers["content-security-policy"]


def test_moves_are_made_in_the_reviewers_name(people: Any, passed: Any) -> None:
    desk, headers = people

    def move(**asked: str) -> Any:
        return desk.post(f"/models/{MODEL}/moves", json=asked, headers=headers["rita"])

    passed("one")
    assert move(act="promote", version="1").json() == {"done": "Version 1 is the champion now."}
    passed("two")
    assert move(act="reject", version="2", reason="No units.").status_code == 200
    passed("three")
    move(act="promote", version="3")
    assert move(act="rollback").json() == {"done": "Version 1 is the champion again."}

    assert sorted(history()) == [
        "candidate 2: rejected by rita: No units.",
        "champion 1 -> 3: promoted by rita",
        "champion 3 -> 1: rolled back by rita",
        "champion none -> 1: promoted by rita",
    ]


def test_a_rollback_is_from_the_champion_that_was_looked_at(people: Any, passed: Any) -> None:
    desk, headers = people

    def move(**asked: str) -> Any:
        return desk.post(f"/models/{MODEL}/moves", json=asked, headers=headers["rita"])

    for version in ("1", "2", "3"):
        passed(version)
        move(act="promote", version=version)
    refused = move(act="rollback", version="2")
    assert refused.status_code == 422
    assert "is version 3, not 2: review it first" in refused.json()["detail"]
    assert move(act="rollback", version="3").json() == {"done": "Version 2 is the champion again."}


def test_a_workflow_that_waits_for_the_decision_is_answered(
    people: Any, passed: Any, argo_program: Any, tmp_path: Path
) -> None:
    _, headers = people
    desk = TestClient(create_app(tmp_path / "keys.json", "loraline"))

    def move(**asked: str) -> str:
        answer = desk.post(f"/models/{MODEL}/moves", json=asked, headers=headers["rita"])
        assert answer.status_code == 200, answer.text
        done: str = answer.json()["done"]
        return done

    passed("one")
    argo_program.waits("promote-1", MODEL, "1")
    argo_program.waits("promote-2", MODEL, "")
    argo_program.waits("promote-3", MODEL, "7")
    argo_program.waits("promote-4", "another", "1")
    done = move(act="promote", version="1")
    assert done == "Version 1 is the champion now. Answered: promote-1, promote-2."
    assert argo_program.answers() == {"promote-1": "yes", "promote-2": "yes"}

    passed("two")
    argo_program.waits("promote-5", MODEL, "2")
    assert "Answered: promote-5." in move(act="reject", version="2", reason="No units.")
    assert argo_program.answers()["promote-5"] == "no"

    passed("three")
    argo_program.fails("connection refused")
    done = move(act="promote", version="3")
    assert done.startswith("Version 3 is the champion now. Workflows that wait for it were not")
    assert "connection refused" in done
    assert "promoted by rita" in " ".join(history())


WRONG_MOVES = [
    ({"act": "promote", "version": "7"}, "no version 7"),
    ({"act": "promote"}, "name the version"),
    ({"act": "reject", "version": "1"}, "say why"),
    ({"act": "rollback"}, "nothing to go back to"),
    ({"act": "delete"}, "act"),
    ({"act": "promote", "version": "1; drop"}, "version"),
]


def test_a_move_that_cannot_be_made_says_why(people: Any, passed: Any) -> None:
    desk, headers = people
    passed("one")
    for asked, sentence in WRONG_MOVES:
        answer = desk.post(f"/models/{MODEL}/moves", json=asked, headers=headers["rita"])
        assert answer.status_code == 422, asked
        assert sentence in answer.json()["detail"]


def test_a_model_that_is_none_is_refused_by_its_name(people: Any) -> None:
    desk, headers = people
    answer = desk.get("/models/nothing", headers=headers["rita"])
    assert answer.status_code == 422 and "nothing" in answer.json()["detail"]


def test_a_metric_that_is_not_defined_hides_no_version(
    people: Any, step: Any, candidate: Any
) -> None:
    """As of a single row, which has no interval."""
    run = candidate(name="one", tuned_bleu_low=math.nan, tuned_bleu_high=math.nan)
    step("quality_gate", "--run-id", run)
    desk, headers = people
    board = desk.get(f"/models/{MODEL}", headers=headers["rita"])
    assert board.status_code == 200, board.text
    metrics = board.json()["versions"]["candidate"]["metrics"]
    assert metrics["bleu"]["tuned"] == [70, None, None]


def test_without_keys_the_desk_is_for_this_machine_alone(script: Any) -> None:
    result = CliRunner().invoke(desk_command, ["--host", "192.0.2.1"])
    assert result.exit_code == 2
    assert "listens on 127.0.0.1 only" in result.stderr
    assert TestClient(create_app(None)).get("/me").json()["roles"] == ["reviewer", "trainer"]


def test_a_port_that_is_taken_is_one_sentence(workplace: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = CliRunner().invoke(desk_command, ["--port", str(port)])
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr == (
        f"desk: port {port} of 127.0.0.1 cannot be used (Address already in use); set another "
        "with --port\n"
    )


def test_a_keys_file_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "keys.json").write_text('[{"name": "x"}]')
    with pytest.raises(UserError, match="keys' file"):
        create_app(tmp_path / "keys.json")


def test_blind_votes_stay_with_the_versions(people: Any, passed: Any) -> None:
    desk, headers = people
    passed("one")
    passed("two")
    uris = [f"models:/{MODEL}/{number}" for number in (1, 2)]

    def vote(**asked: Any) -> int:
        answer = desk.post("/votes", json=asked, headers=headers["gus"])
        return int(answer.status_code)

    assert vote(compared=uris, best=uris[1]) == 204
    assert vote(compared=uris, best=None) == 204
    assert vote(compared=uris[1:], best="other") == 204
    assert vote(compared=uris[:1], best=uris[1]) == 422
    assert vote(compared=["models:/x/../1"], best=None) == 422
    assert vote(compared=["models:/nothing/1"], best=None) == 422
    assert desk.post("/votes", json={"compared": uris}).status_code == 401

    versions = desk.get(f"/models/{MODEL}", headers=headers["rita"]).json()["versions"]
    assert versions["candidate"]["votes"] == {"won": 1, "lost": 1, "even": 1}
    assert versions["previous"]["votes"] == {"lost": 1, "even": 1}
