from __future__ import annotations

import asyncio
import json
import logging
import os
import runpy
from contextlib import suppress
from pathlib import Path

import pytest

from gateway import keys, logs
from tests.gateway import hostile
from tests.gateway.conftest import started

CORPUS = hostile.corpus()
VLLMS_KEY = "the-servers-own-key"


@pytest.fixture(scope="module")
def guarded(settings_for, tmp_path_factory):
    """A gateway with a key, its log and its traces written where they can be read."""
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    folder = tmp_path_factory.mktemp("guarded")
    key, entry = keys.new_key("alice")
    (folder / "keys.json").write_text(json.dumps([entry.model_dump(exclude_none=True)]))
    settings = settings_for(
        api_keys_file=folder / "keys.json",
        vllm_api_key=VLLMS_KEY,
        rate="100000/second",
        max_json_mb=8,
        max_body_mb=8,
    )
    with started(settings) as gateway:
        spans = InMemorySpanExporter()
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(spans))
        tracer = gateway.gateway.tracer
        tracer.provider, tracer.tracer = provider, provider.get_tracer("test")
        root, handlers, level = (
            logging.getLogger(),
            logging.getLogger().handlers[:],
            logging.root.level,
        )
        logs.set_up(settings)
        log = (folder / "log").open("w")
        root.handlers[0].setStream(log)
        # The client of this test lives in the same process.
        root.handlers[0].addFilter(lambda line: not line.name.startswith(("http", "asyncio")))
        gateway.client.headers["Authorization"] = f"Bearer {key}"
        gateway.key, gateway.log, gateway.spans = key, folder / "log", spans
        yield gateway
        root.handlers[:], root.level = handlers, level
        logs.audit.propagate = True


def test_the_corpus_is_large_enough() -> None:
    assert len(CORPUS) >= 150
    assert len({request.name for request in CORPUS}) == len(CORPUS)


@pytest.mark.parametrize("request_", CORPUS, ids=lambda request: request.name)
def test_it_is_refused_and_told_nothing(guarded, stub, request_) -> None:
    answer = guarded.client.request(request_.method, request_.path, **request_.sent)
    assert 400 <= answer.status_code < 500, answer.text
    assert answer.status_code not in (401, 429)
    assert not stub.requests
    document = answer.json()
    document = document.get("error", document)
    assert document["code"] == request_.code, answer.text
    said = answer.text + str(answer.headers)
    for word in (hostile.SECRET, guarded.key, "Traceback", "site-packages", "/etc", "0x7f"):
        assert word not in said, said


def test_afterwards_nothing_of_it_is_anywhere(guarded, stub, stub_url, png) -> None:
    """Also nothing of a right request, and of those that vLLM fails at."""
    secret = hostile.SECRET
    ask = {"model": "tiny-lora", "messages": [{"role": "user", "content": secret}]}
    answers = []
    for fault in ("", "status 400", "status 500", "garbage", "reset", "cut", "garbage json"):
        stub.fault = fault
        stub.tokens = [secret, secret]
        for stream in (False, True):
            files = {"files": (f"{secret}.png", png)}
            data = {"stream": str(stream).lower()}
            answers += [
                guarded.client.post("/v1/chat/completions", json=ask | {"stream": stream}),
                guarded.client.post("/predict", files=files, data=data),
                guarded.client.post("/tasks/recognition", files=files, data={"text": secret}),
            ]

    async def fails(*_: object) -> None:
        raise ValueError(f"{secret} in /root/vllm")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(guarded.gateway.upstreams, "complete", fails)
        answers.append(guarded.client.post("/v1/chat/completions", json=ask))
    assert answers[-1].json()["error"]["code"] == "internal"
    assert secret not in answers[-1].text
    address = stub_url.removeprefix("http://")
    for answer in answers:
        said = answer.text + str(answer.headers)
        for word in (guarded.key, address, "at 0x", "/root", "Traceback", "site-packages"):
            assert word not in said, said
    guarded.client.get("/info", headers={"Authorization": f"Bearer {secret}"})
    guarded.client.get(f"/{secret}", headers={"X-Request-Id": secret, "traceparent": secret})
    log = guarded.log.read_text()
    assert log.count('"message": "request"') > 40
    metrics = guarded.client.get("/metrics").text
    assert 'loraline_gateway_requests_total{model="tiny-lora"' in metrics
    spans = "".join(span.to_json() for span in guarded.spans.get_finished_spans())
    assert "gen_ai.request.model" in spans
    words = [secret, guarded.key, VLLMS_KEY, address, str(guarded.settings.data_dir)]
    words += ["image0.png", "/etc", "/root", "at 0x", "Traceback", "site-packages"]
    for word in words:
        assert word not in log, word
        assert word not in metrics, word
        assert word not in spans, word


def test_no_file_is_left(guarded) -> None:
    uploads = guarded.settings.data_dir / "uploads"
    assert list(uploads.iterdir()) == []
    kept = [path for path in guarded.settings.data_dir.rglob("*") if path.is_file()]
    assert kept == []
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):
            assert not os.readlink(descriptor).startswith(str(uploads))


@pytest.mark.parametrize("folder", ["C:\\fakepath\\", "../../etc/"])
def test_a_name_is_shown_back_without_its_folders_and_controls(guarded, stub, png, folder) -> None:
    files = {"files": (f"{folder}ab\u202ec\x07.png", png)}
    answer = guarded.client.post("/predict", files=files)
    assert answer.status_code == 200, answer.text
    assert answer.json()["predictions"][0]["filename"] == "abc%07.png"


def test_a_task_that_fails_is_logged_without_its_words(caplog) -> None:
    loop = asyncio.new_event_loop()
    logs.silence_tasks(loop)
    loop.call_exception_handler(
        {"message": hostile.SECRET, "exception": ValueError(hostile.SECRET)}
    )
    loop.close()
    (record,) = [each for each in caplog.records if each.name == "gateway"]
    line = logs.Json().format(record)
    assert "ValueError" in line
    assert hostile.SECRET not in line


def test_files_that_a_killed_process_left_are_swept(settings_for) -> None:
    settings = settings_for()
    left = settings.data_dir / "uploads" / "left"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"x")
    folder = left.with_name("folder")
    folder.mkdir()
    (folder / "left").write_bytes(b"x")
    with started(settings):
        assert not left.exists() and not folder.exists()


def test_exceptions_are_logged_by_type_and_place(tmp_path: Path) -> None:
    try:
        raise ValueError(hostile.SECRET)
    except ValueError as error:
        record = logging.LogRecord(
            "x", 40, "f", 1, "failed", None, (type(error), error, error.__traceback__)
        )
    for formatter in (logs.Json(), logs.Text()):
        line = formatter.format(record)
        assert "ValueError" in line and "test_hostile.py" in line
        assert hostile.SECRET not in line


def test_a_failure_is_logged_under_its_request_id() -> None:
    record = logging.LogRecord("x", 40, "f", 1, "failed", None, None)
    record.request_id = "ab12"
    for formatter in (logs.Json(), logs.Text()):
        assert "ab12" in formatter.format(record)


def test_places_do_not_say_where_libraries_lie(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A virtual environment often lies in the folder of the gateway."""
    monkeypatch.setattr(logs, "ROOT", tmp_path)
    library = tmp_path / ".venv/lib/python3/site-packages/fastapi/routing.py"
    library.parent.mkdir(parents=True)
    library.write_text("def ask():\n    raise ValueError('x')\nask()\n")
    with pytest.raises(ValueError, match="x") as raised:
        runpy.run_path(str(library))
    assert logs.places(raised.value)[-1] == "fastapi/routing.py:2 ask"
