"""The webhook hears how a workflow ended, and nothing else hears the webhook's URL."""

from __future__ import annotations

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread
from typing import Any

import pytest
from click.testing import CliRunner, Result

FAILURES = [
    {"displayName": "train-qlora", "message": "OOMKilled (exit code 137)", "phase": "Failed"},
    {"displayName": "evaluate", "message": "", "phase": "Error"},
]


class Webhook:
    """A server that keeps what it is told and answers with `code`."""

    def __init__(self) -> None:
        self.heard: list[Any] = []
        self.code = 200
        message = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                message.heard.append(
                    json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                )
                self.send_response(message.code)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/hook-secret"
        Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def webhook(monkeypatch: pytest.MonkeyPatch) -> Iterator[Webhook]:
    made = Webhook()
    monkeypatch.setenv("LORALINE_WEBHOOK_URL", made.url)
    yield made
    made.server.shutdown()


@pytest.fixture
def notify(script: Any) -> Any:
    command = script("steps/notify.py").notify

    def notify(*arguments: str) -> Result:
        return CliRunner().invoke(command, ["--workflow", "loraline-x", *arguments])

    return notify


def test_a_success_is_one_line(webhook: Webhook, notify: Any) -> None:
    assert notify("--status", "Succeeded").exit_code == 0
    assert webhook.heard == [{"text": "✓ loraline-x: Succeeded"}]


@pytest.mark.parametrize("quoted", [False, True], ids=["json", "json in json"])
def test_a_failure_names_the_nodes_that_failed(webhook: Webhook, notify: Any, quoted: bool) -> None:
    failures = json.dumps(FAILURES)
    result = notify(
        "--status", "Failed", "--failures", json.dumps(failures) if quoted else failures
    )

    assert result.exit_code == 0, result.output
    (message,) = webhook.heard
    assert message["text"].splitlines() == [
        "✗ loraline-x: Failed",
        "train-qlora: OOMKilled (exit code 137)",
        "evaluate: Error",
    ]


def test_without_a_webhook_nobody_is_told_and_nothing_fails(
    notify: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LORALINE_WEBHOOK_URL", raising=False)
    result = notify("--status", "Failed")

    assert result.exit_code == 0
    assert "the message was not sent" in result.output


@pytest.mark.parametrize(("code", "exit_code"), [(503, 75), (429, 75), (404, 2)])
def test_a_webhook_that_refuses_is_said_without_its_url(
    webhook: Webhook, notify: Any, code: int, exit_code: int
) -> None:
    webhook.code = code
    result = notify("--status", "Failed")

    assert result.exit_code == exit_code
    assert str(code) in result.output
    assert "hook-secret" not in result.output


def test_a_webhook_that_is_away_can_be_tried_again(
    notify: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LORALINE_WEBHOOK_URL", "http://127.0.0.1:9/hook-secret")
    result = notify("--status", "Failed")

    assert result.exit_code == 75
    assert "hook-secret" not in result.output


def test_failures_that_are_no_json_are_the_users_mistake(webhook: Webhook, notify: Any) -> None:
    result = notify("--status", "Failed", "--failures", "[")

    assert result.exit_code == 2
    assert webhook.heard == []
