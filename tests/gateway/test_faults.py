from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import aiohttp
import httpx
import pytest
from ports import free_port

from gateway import server, upstream
from tests.gateway.conftest import CONTRACT, ask_chat
from tests.gateway.stub import SHAPES, Stub, served


def until(condition, seconds: float = 10) -> float:
    """Seconds until the condition holds."""
    began = time.perf_counter()
    while time.perf_counter() - began < seconds:
        if condition():
            return time.perf_counter() - began
        time.sleep(0.01)
    raise AssertionError("it never held")


@pytest.mark.parametrize(
    ("fault", "status", "code"),
    [
        ("reset", 503, "upstream_reset"),
        ("garbage", 502, "upstream_garbage"),
        ("garbage json", 502, "upstream_garbage"),
        ("status 500", 502, "upstream_error"),
        ("status 503", 503, "model_unavailable"),
        ("status 429", 503, "model_unavailable"),
        ("status 401", 502, "upstream_key"),
        ("status 302", 502, "upstream_error"),
        ("status 400", 422, "refused"),
        ("status 400 long", 422, "context"),
    ],
)
@pytest.mark.parametrize("way", ["chat", "chat stream", "predict", "predict stream", "task"])
def test_a_server_that_fails_is_a_problem_in_our_words(vision, stub, png, fault, status, code, way):
    stub.fault = fault
    if way.startswith("chat"):
        answer = ask_chat(vision, stream=way.endswith("stream"))
        result = answer.json()["error"]
        sentence = result["message"]
    else:
        path = "/tasks/recognition" if way == "task" else "/predict"
        data = {"stream": "true"} if way.endswith("stream") else {}
        answer = vision.client.post(path, files={"files": ("x", png)}, data=data)
        result = answer.json()
        sentence = result["detail"]
        assert answer.headers["content-type"] == "application/problem+json"
        assert result["status"] == status
    assert (answer.status_code, result["code"]) == (status, code)
    assert sentence.endswith(".") and sentence.count(". ") == 0
    assert "secret" not in answer.text and "0x7f00" not in answer.text
    if status == 503:
        assert int(answer.headers["retry-after"]) >= 1
    if code == "context":
        assert (result["limit"], result["asked"]) == (512, 9000)


@pytest.mark.parametrize("fault", SHAPES)
@pytest.mark.parametrize("path", ["/predict", "/tasks/recognition"])
def test_a_choice_of_another_form_is_the_servers_failure(vision, stub, png, fault, path) -> None:
    stub.fault = fault
    answer = vision.client.post(path, files={"files": ("x", png)})
    assert (answer.status_code, answer.json()["code"]) == (502, "upstream_garbage")


@pytest.mark.parametrize("fault", ["message of a text", "content of a list"])
@pytest.mark.parametrize("path", ["/predict", "/tasks/recognition"])
def test_a_piece_of_another_form_is_the_servers_failure_too(vision, stub, png, fault, path) -> None:
    stub.fault = fault
    answer = vision.client.post(path, files={"files": ("x", png)}, data={"stream": "true"})
    piece, error = answer.text.strip().split("\n\n")
    assert json.loads(piece.partition("data: ")[2])["text"] == "a"
    assert error.startswith("event: error")
    assert json.loads(error.partition("data: ")[2])["code"] == "upstream_garbage"


def test_what_a_server_says_may_come_in_pieces(start, stub) -> None:
    stub.fault = "pieces"
    with start() as gateway:
        assert gateway.client.get("/ready").status_code == 200
        assert ask_chat(gateway).json()["error"]["code"] == "context"


def test_a_lost_connection_is_tried_once_more(vision, stub) -> None:
    stub.failures_left = 1
    assert ask_chat(vision).status_code == 200
    assert len(stub.requests) == 2
    stub.reset()
    stub.failures_left = 2
    assert ask_chat(vision).status_code == 503
    assert len(stub.requests) == 2


@pytest.mark.parametrize("fault", ["cut", "cut clean"])
def test_a_server_killed_in_a_stream_is_an_error_event_at_once(vision, stub, fault) -> None:
    stub.fault = fault
    stub.tokens = [" word"] * 20
    began = time.perf_counter()
    answer = ask_chat(vision, stream=True)
    assert time.perf_counter() - began < 5
    events = [event for event in answer.text.split("\n\n") if event]
    # What came before is whole, nothing is half, and no end is claimed.
    parsed = [json.loads(event.removeprefix("data: ")) for event in events]
    assert parsed[1]["choices"][0]["delta"]["content"] == " word"
    assert parsed[-1]["error"]["code"] in ("upstream_cut", "upstream_reset")
    assert "[DONE]" not in answer.text
    stub.fault = ""
    assert ask_chat(vision, stream=True).text.endswith("data: [DONE]\n\n")


@pytest.mark.parametrize(
    ("fault", "code", "reason"),
    [
        ("error later", "upstream_error", "status_5xx"),
        ("error beside a token", "upstream_error", "status_5xx"),
        ("no reason", "upstream_cut", "cut"),
    ],
)
@pytest.mark.parametrize("way", ["chat", "predict", "task"])
def test_a_server_that_fails_in_a_stream_is_an_error_in_our_words(
    vision, stub, png, session, fault, code, reason, way
) -> None:
    stub.fault = fault
    model = "base" if way == "task" else "tiny-lora"
    failures = vision.gateway.metrics.upstream_errors.labels(model, reason)._value
    before = failures.get()
    if way == "chat":
        answer = ask_chat(vision, stream=True)
    else:
        path = "/tasks/recognition" if way == "task" else "/predict"
        data = {"stream": "true", "session": session}
        answer = vision.client.post(path, files={"files": ("x", png)}, data=data)
    assert answer.status_code == 200
    last = json.loads(answer.text.strip().split("\n\n")[-1].partition("data: ")[2])
    assert last.get("error", last)["code"] == code
    assert "secret" not in answer.text and "0x7f00" not in answer.text
    assert "[DONE]" not in answer.text and "event: done" not in answer.text
    pieces = 1 if fault == "error later" else 2
    assert [each in answer.text for each in stub.tokens] == [
        *[True] * pieces,
        *[False] * (3 - pieces),
    ]
    assert failures.get() == before + 1
    assert vision.client.get(f"/sessions/{session}").json()["turns"] == []


def test_a_server_that_fails_at_a_streams_begin_is_a_plain_problem(vision, stub) -> None:
    stub.fault = "error first"
    answer = ask_chat(vision, stream=True)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (422, "context")
    assert (error["limit"], error["asked"]) == (512, 9000)


def test_an_answer_may_hold_the_words_of_an_error_and_of_an_end(vision, stub) -> None:
    stub.tokens = ['{"error": {"code": 500}}', ' "error"', "\n\ndata: [DONE]\n\n", " end"]
    answer = ask_chat(vision, stream=True)
    events = [event for event in answer.text.split("\n\n") if event]
    assert events[-1] == "data: [DONE]"
    chunks = [json.loads(event.removeprefix("data: ")) for event in events[:-1]]
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks if chunk["choices"]]
    assert "".join(delta.get("content", "") for delta in deltas) == "".join(stub.tokens)


def test_predicts_stream_ends_in_an_error_event_too(vision, stub, png) -> None:
    stub.fault = "cut"
    answer = vision.client.post("/predict", files={"files": ("x", png)}, data={"stream": "true"})
    name, data = answer.text.strip().split("\n\n")[-1].split("\n")
    assert name == "event: error"
    result = json.loads(data.removeprefix("data: "))
    assert result["code"] in ("upstream_cut", "upstream_reset")
    assert result["request_id"] == answer.headers["x-request-id"]


def test_a_server_that_stalls_is_given_up(start, stub, png) -> None:
    with start(upstream_stall_s=0.3) as gateway:
        for stream in (False, True):
            stub.fault = "stall"
            answer = ask_chat(gateway, stream=stream)
            assert (answer.status_code, answer.json()["error"]["code"]) == (504, "upstream_timeout")
        stub.fault = "stall later"
        answer = ask_chat(gateway, stream=True)
        assert '"code":"upstream_timeout"' in answer.text.strip().split("\n\n")[-1]
        until(lambda: stub.running == 0)


def test_a_slow_server_is_waited_for(start, stub) -> None:
    stub.delay = 0.3
    with start(upstream_stall_s=2) as gateway:
        assert ask_chat(gateway, stream=True).text.endswith("data: [DONE]\n\n")


def test_a_stream_that_is_no_stream_is_a_problem(vision, stub) -> None:
    stub.fault = "garbage stream"
    answer = ask_chat(vision, stream=True)
    assert (answer.status_code, answer.json()["error"]["code"]) == (502, "upstream_garbage")


def test_no_connection_to_the_server_rests_for_ever(start, monkeypatch) -> None:
    """The questions for its models, every 0.2 s, keep none of them awake."""
    monkeypatch.setattr(upstream, "IDLE_S", 1)
    stub = Stub()
    stub.delay = 0.1
    with served(stub.app()) as url, start(server={"url": url}) as gateway:
        with ThreadPoolExecutor(8) as threads:
            answers = list(threads.map(lambda _: ask_chat(gateway), range(8)))
        assert {answer.status_code for answer in answers} == {200}
        assert stub.connections > 1
        until(lambda: stub.connections == 0, seconds=10)


@pytest.mark.parametrize("fault", ["endless", "endless event"])
def test_an_answer_without_end_is_cut(vision, stub, fault, monkeypatch) -> None:
    from gateway import sse, upstream

    monkeypatch.setattr(upstream, "MAX_ANSWER", 2**20)
    monkeypatch.setattr(sse, "MAX_EVENT", 2**19)
    stub.fault = fault
    answer = ask_chat(vision, stream=True)
    assert len(answer.content) < 3 * 2**20
    assert '"code":"upstream_garbage"' in answer.text.strip().split("\n\n")[-1]
    until(lambda: stub.running == 0)


def test_an_event_of_a_megabyte_passes(vision, stub) -> None:
    stub.fault = "long event"
    answer = ask_chat(vision, stream=True)
    assert len(answer.content) > 1_500_000
    assert answer.text.endswith("data: [DONE]\n\n")


def test_a_server_that_is_down_is_not_ready_and_comes_back_by_itself(start, stub, png):
    port = free_port()
    with start(server={"url": f"http://127.0.0.1:{port}"}) as gateway:
        assert gateway.client.get("/health").status_code == 200
        ready = gateway.client.get("/ready")
        assert (ready.status_code, ready.json()["code"]) == (503, "not_ready")
        assert int(ready.headers["retry-after"]) >= 1
        down = ask_chat(gateway)
        assert (down.status_code, down.json()["error"]["code"]) == (503, "model_unavailable")
        for path in ("/predict", "/tasks/recognition", "/compare"):
            answer = gateway.client.post(path, files={"files": ("x", png)})
            assert (answer.status_code, answer.json()["code"]) == (503, "model_unavailable"), path
        from tests.gateway.stub import served

        with served(stub.app(), port):
            until(lambda: gateway.client.get("/ready").status_code == 200)
            assert ask_chat(gateway).status_code == 200
        until(lambda: gateway.client.get("/ready").status_code == 503)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("way", ["chat", "predict"])
def test_a_client_that_leaves_ends_its_request_at_vllm_at_once(
    vision, stub, png, stream, way
) -> None:
    stub.tokens = [" word"] * 200
    stub.delay = 0.05

    async def leave() -> None:
        async with aiohttp.ClientSession() as session:
            if way == "chat":
                message = {"role": "user", "content": "x"}
                sent = {"json": {"model": "base", "messages": [message], "stream": stream}}
                path = "/v1/chat/completions"
            else:
                form = aiohttp.FormData({"stream": str(stream).lower()})
                form.add_field("files", png, filename="x.png")
                sent, path = {"data": form}, "/predict"
            asking = asyncio.ensure_future(session.post(vision.url + path, **sent))
            async with asyncio.timeout(10):
                while not stub.running:
                    await asyncio.sleep(0.01)
            if stream:
                answer = await asking
                await answer.content.read(10)
                answer.close()
            else:
                asking.cancel()

    asyncio.run(leave())
    # An answer that nobody ends takes ten seconds.
    assert until(lambda: stub.running == 0) < 5
    until(lambda: not vision.gateway.admission.of_caller)


def test_a_client_that_stops_sending_is_told_so(start, stub) -> None:
    with start(client_stall_s=0.3) as gateway:
        host, port = gateway.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as client:
            client.sendall(
                b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n"
                b"Content-Type: multipart/form-data; boundary=x\r\n\r\n--x\r\n"
            )
            client.settimeout(5)
            answer = b""
            while data := client.recv(65536):
                answer += data
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert b'"code":"client_stalled"' in answer


def test_a_client_that_sends_a_byte_now_and_then_is_told_so_too(start, stub) -> None:
    with start(client_stall_s=0.4) as gateway:
        host, port = gateway.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as client:
            client.sendall(
                b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n"
                b"Content-Type: application/json\r\n\r\n"
            )
            began = time.perf_counter()
            client.settimeout(0.1)
            answer = b""
            while not answer and time.perf_counter() - began < 5:
                client.send(b" ")
                try:
                    answer = client.recv(65536)
                except TimeoutError:
                    continue
        assert answer.startswith(b"HTTP/1.1 408 ")


def test_a_slow_upload_that_keeps_coming_is_no_stall(start, stub, png) -> None:
    body = (
        b'--x\r\nContent-Disposition: form-data; name="files"; filename="x"\r\n\r\n'
        + png
        + b"\r\n--x--\r\n"
    )

    def slowly():
        for place in range(0, len(body), len(body) // 10):
            yield body[place : place + len(body) // 10]
            time.sleep(0.25)

    with start(client_stall_s=2) as gateway:
        answer = gateway.client.post(
            "/predict",
            content=slowly(),
            headers={"content-type": "multipart/form-data; boundary=x"},
        )
    assert answer.status_code == 200, answer.text


def test_a_head_that_never_ends_is_closed(vision, monkeypatch) -> None:
    monkeypatch.setattr(server, "HEADER_S", 0.2)
    host, port = vision.url.removeprefix("http://").split(":")
    for head in (b"", b"GET / HTTP/1.1\r\nX: "):
        with socket.create_connection((host, int(port))) as client:
            client.sendall(head)
            client.settimeout(5)
            assert client.recv(100) == b""


def test_a_second_head_that_never_ends_is_closed_too(vision, monkeypatch) -> None:
    monkeypatch.setattr(server, "HEADER_S", 0.5)
    host, port = vision.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as client:
        client.settimeout(5)
        client.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        answer = b""
        while b"\r\n\r\n{" not in answer:
            piece = client.recv(4096)
            assert piece, answer
            answer += piece
        client.sendall(b"GET / HTTP/1.1\r\nX: ")
        assert client.recv(100) == b""


def test_a_head_without_bounds_is_refused(vision) -> None:
    host, port = vision.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as client:
        client.settimeout(5)
        client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nX: ")
        for _ in range(10):
            client.sendall(b"y" * 8000)
        assert client.recv(100).startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize("path", ["/predict", "/jobs", "/sessions"])
def test_a_full_disk_is_said_and_streams_live_on(vision, stub, png, path, monkeypatch) -> None:
    import errno
    import tempfile

    from gateway import store

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "/secret/path")

    monkeypatch.setattr(tempfile.SpooledTemporaryFile, "rollover", full)
    monkeypatch.setattr(store, "write", full)
    stub.tokens, stub.delay = [" word"] * 10, 0.05
    with httpx.stream(
        "POST",
        f"{vision.url}/v1/chat/completions",
        json={
            "model": "base",
            "stream": True,
            "messages": [{"role": "user", "content": "x"}],
        },
    ) as stream:
        pieces = stream.iter_text()
        next(pieces)
        if path == "/sessions":
            answer = vision.client.post(path, json={"title": "x"})
        else:
            large = png + b"\0" * 3 * 2**20
            answer = vision.client.post(path, files={"files": ("x", large)})
        assert (answer.status_code, answer.json()["code"]) == (507, "disk_full")
        assert "/secret" not in answer.text
        assert "".join(pieces).endswith("data: [DONE]\n\n")


def test_sigterm_lets_streams_end(stub, stub_url, tmp_path) -> None:
    (tmp_path / "contract.json").write_text(json.dumps(CONTRACT))
    port = free_port()
    entry = {"url": stub_url, "contract": str(tmp_path / "contract.json")}
    process = subprocess.Popen(
        [sys.executable, "-m", "gateway", "serve"],
        env=os.environ
        | {
            "GATEWAY_UPSTREAMS": json.dumps([entry]),
            "GATEWAY_PORT": str(port),
            "GATEWAY_DATA_DIR": str(tmp_path / "data"),
            "GATEWAY_AUDIT_FILE": str(tmp_path / "audit.jsonl"),
        },
        stdout=subprocess.DEVNULL,
    )
    url = f"http://127.0.0.1:{port}"
    try:

        def up() -> bool:
            try:
                return httpx.get(f"{url}/ready").status_code == 200
            except httpx.TransportError:
                return False

        until(up, 30)
        stub.tokens, stub.delay = [" word"] * 20, 0.05
        body = {"model": "base", "stream": True, "messages": [{"role": "user", "content": "x"}]}
        with httpx.stream("POST", f"{url}/v1/chat/completions", json=body) as stream:
            pieces = stream.iter_text()
            first = next(pieces)
            process.send_signal(signal.SIGTERM)
            text = first + "".join(pieces)
        assert text.endswith("data: [DONE]\n\n")
        assert text.count('"content":" word"') == 20
        assert process.wait(10) in (0, -signal.SIGTERM)
        with pytest.raises(httpx.TransportError):
            httpx.get(f"{url}/health")
    finally:
        process.kill()
        process.wait()
    lines = [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text().splitlines()]
    (chat,) = [line for line in lines if line["route"] == "/v1/chat/completions"]
    assert (chat["status"], chat["completion_tokens"], chat["key"]) == (200, 20, "local")
