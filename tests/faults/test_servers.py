"""Servers that misbehave: redirects, and answers without end, too late, too deep, of no form."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import ClassVar

import pytest
from cells import Cell
from click.testing import CliRunner

from loraline import web
from loraline.delivery import local, local_gateway, ready
from loraline.errors import TryAgain, UserError
from loraline.records import from_prompt
from loraline.serving.client import Refused, Server
from loraline.tracking import store

ROW = from_prompt("{question}", "Who?", "")
KEY = "canary-key-2718"

Raw = Callable[[Callable[[socket.socket], None]], str]


@pytest.fixture
def raw() -> Iterator[Raw]:
    """A server that is a function of the connection; its address."""
    listeners = []

    def start(serve: Callable[[socket.socket], None]) -> str:
        listener = socket.create_server(("127.0.0.1", 0))
        listeners.append(listener)

        def work() -> None:
            with suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    with connection, suppress(OSError):
                        connection.recv(65536)
                        serve(connection)

        Thread(target=work, daemon=True).start()
        return f"http://127.0.0.1:{listener.getsockname()[1]}"

    yield start
    for listener in listeners:
        listener.close()


@pytest.fixture
def elsewhere() -> Iterator[tuple[str, list[tuple[str, str | None]]]]:
    """Another host, and the requests that it has seen: path and key."""
    seen: list[tuple[str, str | None]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append((self.path, self.headers.get("Authorization")))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps({"data": [{"id": "tiny-lora"}]}).encode())

        do_POST = do_GET

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield f"http://localhost:{server.server_port}", seen
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("asked", ["health", "models", "post", "ask"])
def test_a_key_follows_no_redirect(
    raw: Raw, elsewhere, monkeypatch: pytest.MonkeyPatch, code: int, asked: str
) -> None:
    monkeypatch.setenv("VLLM_API_KEY", KEY)
    target, seen = elsewhere

    def redirect(connection: socket.socket) -> None:
        head = f"HTTP/1.1 {code} Moved\r\nLocation: {target}/x?key=secret\r\n"
        connection.sendall(f"{head}Content-Length: 0\r\n\r\n".encode())

    server = Server(raw(redirect))
    ask = {
        "health": server.check_health,
        "models": server.models,
        "post": lambda: server.post("/v1/load_lora_adapter", {"lora_name": "x"}),
        "ask": lambda: server.ask("tiny-lora", ROW, 5),
    }[asked]
    with pytest.raises(UserError) as error:
        ask()
    assert f"answers {code}, a redirect to {target}; it is not followed" in str(error.value)
    assert "secret" not in str(error.value)
    assert seen == []


def redirecting(target: str) -> Callable[[socket.socket], None]:
    head = f"HTTP/1.1 302 Found\r\nLocation: {target}/x\r\nContent-Length: 0\r\n\r\n"
    return lambda connection: connection.sendall(head.encode())


def test_a_key_that_a_server_repeats_is_not_shown(
    raw: Raw, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_API_KEY", KEY)
    text = f"{'x' * 290} {KEY}"
    head = f"HTTP/1.1 400 Bad Request\r\nContent-Length: {len(text)}\r\n\r\n{text}"
    with pytest.raises(Refused) as error:
        Server(raw(lambda connection: connection.sendall(head.encode()))).models()
    assert KEY[:8] not in str(error.value)


def test_the_probe_of_a_pod_follows_no_redirect(
    raw: Raw, elsewhere, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_API_KEY", KEY)
    target, seen = elsewhere
    with pytest.raises(OSError, match="302"):
        ready.served(f"{raw(redirecting(target))}/v1/models")
    assert seen == []


def test_a_gateway_that_redirects_is_not_ready(raw: Raw, elsewhere) -> None:
    target, seen = elsewhere
    assert not local_gateway.is_ready(raw(redirecting(target)))
    assert seen == []


def test_the_password_of_mlflow_follows_no_redirect(
    raw: Raw, elsewhere, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_ALLOW_HTTP_REDIRECTS", raising=False)
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "somebody")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", KEY)
    target, seen = elsewhere
    address = raw(redirecting(target))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    with pytest.raises(UserError) as error:
        store.connect()
    assert f"MLflow at {address} answers 302, a redirect; it is not followed" in str(error.value)
    assert seen == []


def test_a_webhook_follows_no_redirect_and_is_not_shown(
    raw: Raw, elsewhere, script, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, seen = elsewhere

    def redirect(connection: socket.socket) -> None:
        head = f"HTTP/1.1 307 Moved\r\nLocation: {target}/x\r\nContent-Length: 0\r\n\r\n"
        connection.sendall(head.encode())

    monkeypatch.setenv("LORALINE_WEBHOOK_URL", f"{raw(redirect)}/services/T00/CANARY")
    notify = script("steps/notify.py").notify
    result = CliRunner().invoke(notify, ["--workflow", "x", "--status", "Failed"])
    assert result.exit_code == 2
    assert "a redirect to" in result.stderr
    assert "CANARY" not in result.output
    assert seen == []


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("https://hooks.invalid/services/CANARY https://hooks.invalid/services/OTHER", 2),
        ("https://hooks.invalid/CANARY\x7f", 2),
        ("https://[hooks/CANARY", 2),
        ("https://" + "h" * 300 + "/CANARY", 2),
        ("https:///CANARY", 2),
    ],
)
def test_a_webhook_that_is_no_address_is_said_without_its_path(
    script, monkeypatch: pytest.MonkeyPatch, url: str, code: int
) -> None:
    monkeypatch.setenv("LORALINE_WEBHOOK_URL", url)
    notify = script("steps/notify.py").notify
    result = CliRunner().invoke(notify, ["--workflow", "x", "--status", "Failed"])
    assert result.exit_code == code, result.output
    assert isinstance(result.exception, SystemExit)
    assert "CANARY" not in result.output
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize("failures", ["5", "true", '"5"', '{"a": 1}', "[" * 200_000], ids=range(5))
def test_failures_that_are_no_list_are_a_mistake(
    script, monkeypatch: pytest.MonkeyPatch, failures: str
) -> None:
    monkeypatch.delenv("LORALINE_WEBHOOK_URL", raising=False)
    notify = script("steps/notify.py").notify
    arguments = ["--workflow", "x", "--status", "Failed", "--failures", failures]
    result = CliRunner().invoke(notify, arguments)
    assert (result.exit_code, len(result.stderr.splitlines())) == (2, 1)


def body(content: bytes) -> Callable[[socket.socket], None]:
    head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(content)}\r\n\r\n".encode()
    return lambda connection: connection.sendall(head + content)


def endless(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
    while True:
        connection.sendall(b"x" * 65536)


def dribbling(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
    while True:
        connection.sendall(b"x")
        time.sleep(0.05)


def dribbling_head(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\n")
    while True:
        connection.sendall(b"X")
        time.sleep(0.05)


def silent(connection: socket.socket) -> None:
    time.sleep(5)


def another_protocol(connection: socket.socket) -> None:
    connection.sendall(b"SSH-2.0-OpenSSH\r\n\r\n")


def half_a_head(connection: socket.socket) -> None:
    connection.sendall(b"SSH-2.0-OpenSSH\r\n")


def closing(connection: socket.socket) -> None:
    pass


DEEP = b"[" * 200_000

MISBEHAVING = [
    (Cell("body without end", "verify_serving", "answer", 2, "answers more than"), endless),
    (Cell("a byte now and then", "verify_serving", "answer", 75, "not answered whole"), dribbling),
    (Cell("a slow head", "verify_serving", "answer", 75, "not answered whole"), dribbling_head),
    (Cell("silence", "verify_serving", "answer", 75, "not answered whole"), silent),
    (
        Cell("another protocol", "verify_serving", "answer", 2, "does not speak HTTP"),
        another_protocol,
    ),
    (Cell("half a head", "verify_serving", "answer", 75, "does not answer"), half_a_head),
    (Cell("closed at once", "verify_serving", "answer", 75, "does not answer"), closing),
    (Cell("JSON of great depth", "verify_serving", "answer", 2, "no vLLM server"), body(DEEP)),
    (Cell("a list", "verify_serving", "answer", 2, "no vLLM server"), body(b"[]")),
    (Cell("null", "verify_serving", "answer", 2, "no vLLM server"), body(b"null")),
    (Cell("HTML", "verify_serving", "answer", 2, "no vLLM server"), body(b"<html>")),
    (
        Cell("unhashable", "verify_serving", "answer", 2, "no vLLM server"),
        body(b'{"data":[{"id":[]}]}'),
    ),
]


@pytest.mark.parametrize(
    ("cell", "serve"), MISBEHAVING, ids=lambda each: str(each) if isinstance(each, Cell) else ""
)
def test_a_server_that_misbehaves_is_said_in_time(
    raw: Raw, monkeypatch: pytest.MonkeyPatch, cell: Cell, serve: Callable[[socket.socket], None]
) -> None:
    monkeypatch.setattr(web, "MOST_BYTES", 2**20)
    started = time.monotonic()
    with pytest.raises((UserError, TryAgain)) as error:
        Server(raw(serve), seconds=1).models()
    assert error.value.exit_code == cell.exit_code, error.value
    assert cell.sentence in str(error.value)
    assert time.monotonic() - started < 4


SLOW = (dribbling, dribbling_head, silent)
"""They are waited for as long as the server that was started here may take: five seconds."""


@pytest.mark.parametrize(
    "serve",
    [
        pytest.param(serve, id=str(cell), marks=[pytest.mark.slow] if serve in SLOW else [])
        for cell, serve in MISBEHAVING
    ],
)
def test_a_server_that_is_started_here_and_misbehaves_is_not_ready(
    raw: Raw, serve: Callable[[socket.socket], None]
) -> None:
    server = local.Running(raw(serve), "base", "tiny-lora", "", {}, None, None)
    assert local.answers(server) is False


def test_a_server_of_this_machine_is_asked_without_a_proxy(
    raw: Raw, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    address = raw(body(b'{"data": []}'))
    assert Server(address).models() == {}
    assert ready.served(f"{address}/v1/models") == set()
    assert local_gateway.is_ready(address)


def test_a_tracking_server_behind_a_proxy_is_not_looked_for_here(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow.invalid:5000")
    with pytest.raises(TryAgain):
        store.expect_answer("http://mlflow.invalid:5000")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    store.expect_answer("http://mlflow.invalid:5000")


def test_a_prompt_that_the_server_does_not_give_fails_the_verification() -> None:
    from loraline.serving.client import Served
    from loraline.serving.prompt_agreement import token_problems

    class Encoder:
        prompt: ClassVar = [1, 2]

        def encode(self, record: object) -> Encoder:
            return self

    answer = Served([1], "a", [], 0.1)
    problems = token_problems([{"row": 3, "record": ROW}], [answer], Encoder())
    assert problems == [
        "no prompt could be compared: the server gives no tokens of any row's prompt"
    ]
    whole = Served([1], "a", [1, 2], 0.1)
    rows = [{"row": 3, "record": ROW}, {"row": 4, "record": ROW}]
    problems = token_problems(rows, [whole, answer], Encoder())
    assert problems == ["the server gives no tokens of row 4's prompt to compare"]
    assert token_problems(rows, [whole, whole], Encoder()) == []
