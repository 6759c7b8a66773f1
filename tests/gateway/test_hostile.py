from __future__ import annotations

import json
import logging
import os
from contextlib import suppress
from pathlib import Path

import pytest

from gateway import keys, logs
from tests.gateway import hostile
from tests.gateway.conftest import started

CORPUS = hostile.corpus()


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
        api_keys_file=folder / "keys.json", rate="100000/second", max_json_mb=8, max_body_mb=8
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
    assert document["code"]
    said = answer.text + str(answer.headers)
    for word in (hostile.SECRET, guarded.key, "Traceback", "site-packages", "/etc", "0x7f"):
        assert word not in said, said


def test_afterwards_nothing_of_it_is_anywhere(guarded, stub, png) -> None:
    """Also nothing of a right request, and of those that vLLM fails at."""
    secret = hostile.SECRET
    ask = {"model": "tiny-lora", "messages": [{"role": "user", "content": secret}]}
    for fault in ("", "status 400", "status 500", "garbage", "reset", "cut", "garbage json"):
        stub.fault = fault
        stub.tokens = [secret, secret]
        for stream in (False, True):
            guarded.client.post("/v1/chat/completions", json=ask | {"stream": stream})
            files = {"files": (f"{secret}.png", png)}
            guarded.client.post("/predict", files=files, data={"stream": str(stream).lower()})
            guarded.client.post("/tasks/recognition", files=files, data={"text": secret})
    guarded.client.get("/info", headers={"Authorization": f"Bearer {secret}"})
    guarded.client.get(f"/{secret}", headers={"X-Request-Id": secret, "traceparent": secret})
    log = guarded.log.read_text()
    assert log.count('"message": "request"') > 40
    metrics = guarded.client.get("/metrics").text
    assert 'loraline_gateway_requests_total{model="tiny-lora"' in metrics
    spans = "".join(span.to_json() for span in guarded.spans.get_finished_spans())
    assert "gen_ai.request.model" in spans
    for word in (secret, guarded.key, hostile.picture.__module__ + "x", "image0.png", "/etc"):
        assert word not in log
        assert word not in metrics
        assert word not in spans
    assert "vllms-own" not in log + metrics + spans


def test_no_file_is_left(guarded) -> None:
    uploads = guarded.settings.data_dir / "uploads"
    assert list(uploads.iterdir()) == []
    kept = [path for path in guarded.settings.data_dir.rglob("*") if path.is_file()]
    assert kept == []
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):
            assert not os.readlink(descriptor).startswith(str(uploads))


def test_a_name_is_shown_back_without_its_folders_and_controls(guarded, stub, png) -> None:
    files = {"files": ("C:\\fakepath\\ab\u202ec\x07.png", png)}
    answer = guarded.client.post("/predict", files=files)
    assert answer.status_code == 200, answer.text
    assert answer.json()["predictions"][0]["filename"] == "abc%07.png"


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
