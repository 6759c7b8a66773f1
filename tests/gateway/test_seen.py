"""What operators see: metrics, audit lines, traces, and what Grafana and Prometheus read."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from pathlib import Path

import pytest
import yaml
from aiohttp import web
from ports import free_port

from gateway import logs
from gateway.metrics import Metrics
from tests.gateway.conftest import ask_chat
from tests.gateway.stub import served
from tests.gateway.test_faults import until
from tests.gateway.test_uploads import film

MONITORING = Path(__file__).parents[2] / "gateway/monitoring"


def series() -> dict[str, set[str]]:
    """Names of all series with their labels."""
    result = {}
    for metric in Metrics().registry._names_to_collectors.items():
        name, collector = metric
        result[name] = set(getattr(collector, "_labelnames", ()))
    return result


def expressions() -> list[str]:
    rules = yaml.safe_load((MONITORING / "alerts.yaml").read_text())
    result = [rule["expr"] for group in rules["spec"]["groups"] for rule in group["rules"]]
    dashboard = json.loads((MONITORING / "dashboard.json").read_text())
    return result + [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]


@pytest.mark.parametrize("expression", expressions())
def test_alerts_and_panels_ask_for_series_and_labels_that_there_are(expression) -> None:
    known = series()
    names = re.findall(r"loraline_gateway_\w+", expression)
    assert names
    for name in names:
        assert name in known, name
    labels = set(re.findall(r"(\w+)=~?\"", expression))
    labels |= {
        label.strip()
        for group in re.findall(r"by \(([^)]*)\)", expression)
        for label in group.split(",")
    }
    # From Kubernetes, and of histograms.
    labels -= {"namespace", "pod", "le"}
    assert labels <= set().union(*(known[name] for name in names)), labels


def test_every_series_is_on_the_dashboard() -> None:
    shown = " ".join(expressions())
    for name in series():
        if name.startswith("loraline_gateway") and name.endswith(("_total", "_bucket")):
            assert name in shown, name


def test_requests_are_counted_by_route_task_model_and_status(start, stub, png) -> None:
    with start() as gateway:
        ask_chat(gateway)
        ask_chat(gateway, model="none")
        gateway.client.post("/tasks/recognition", files={"files": ("x", png)})
        gateway.client.get("/nothing/here")
        text = gateway.client.get("/metrics").text
    for line in (
        'requests_total{model="tiny-lora",route="/v1/chat/completions",status="200",task=""} 1.0',
        'requests_total{model="",route="/v1/chat/completions",status="404",task=""} 1.0',
        'requests_total{model="base",route="/tasks/{task}",status="200",task="recognition"} 1.0',
        'requests_total{model="",route="unmatched",status="404",task=""} 1.0',
        'tokens_total{direction="completion",model="tiny-lora"} 3.0',
        'refused_total{code="model_unknown",route="/v1/chat/completions"} 1.0',
        'model_up{model="tiny-lora"} 1.0',
        "running 0.0",
    ):
        assert f"loraline_gateway_{line}" in text, line


def test_metrics_may_have_a_port_of_their_own(start, stub) -> None:
    import urllib.request

    from gateway import server

    port = free_port()
    with start(metrics_port=port) as gateway:
        server.serve_metrics(gateway.settings, gateway.gateway.metrics.registry)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
            assert b"loraline_gateway_running" in answer.read()


@pytest.fixture
def audit_lines(tmp_path):
    """Reads the audit lines that were written since the test began."""
    handler = logging.FileHandler(tmp_path / "audit")
    handler.setFormatter(logs.Json())
    logs.audit.addHandler(handler)
    level = logs.audit.level
    logs.audit.setLevel(logging.INFO)
    yield lambda: list(map(json.loads, (tmp_path / "audit").read_text().splitlines()))
    logs.audit.removeHandler(handler)
    logs.audit.setLevel(level)


def test_an_audit_line_says_who_asked_what_for_how_much(start, stub, png, audit_lines) -> None:
    with start() as gateway:
        answer = gateway.client.post("/predict", files={"files": ("x", png)})
        assert gateway.client.get("/health").status_code == 200
        assert gateway.client.get("/ready").status_code == 200
    lines = audit_lines()
    assert not {line["route"] for line in lines} & {"/health", "/ready"}, "a kubelet's probes"
    (line,) = [line for line in lines if line["route"] == "/predict"]
    assert line["request_id"] == answer.headers["x-request-id"]
    assert line["key"] == "local"
    assert (line["model"], line["version"]) == ("tiny-lora", "models:/tiny-lora/3")
    assert (line["prompt_tokens"], line["completion_tokens"]) == (7, 3)
    assert line["digests"] == [hashlib.sha256(png).hexdigest()]
    assert line["status"] == 200 and line["bytes_in"] > len(png) and line["ms"] > 0


def test_an_audit_line_of_a_comparison_has_the_tokens_of_all_models(
    start, stub, png, audit_lines
) -> None:
    with start() as gateway:
        assert gateway.client.post("/compare", files={"files": ("x", png)}).status_code == 200
    (line,) = audit_lines()
    assert (line["route"], line["digests"]) == ("/compare", [hashlib.sha256(png).hexdigest()])
    assert (line["prompt_tokens"], line["completion_tokens"]) == (14, 6)


@pytest.mark.parametrize("task", ["", "recognition", "video-events"])
def test_an_audit_line_has_the_digests_of_a_jobs_and_a_comparisons_media(
    start, stub, png, audit_lines, task
) -> None:
    content = film(1) if task.startswith("video") else png
    files = {"files": ("x", content)}
    with start() as gateway:
        job = gateway.client.post("/jobs", files=files, data={"task": task}).json()["id"]
        until(lambda: gateway.client.get(f"/jobs/{job}").json()["state"] == "done")
        answer = gateway.client.post("/compare", files=files, data={"task": task})
        assert answer.status_code == 200, answer.text
    digests = [
        line["digests"]
        for line in audit_lines()
        if line["method"] == "JOB" or line["route"] == "/compare"
    ]
    assert digests == [[hashlib.sha256(content).hexdigest()]] * 2


def test_a_request_id_of_a_client_is_kept_when_it_is_a_uuid(vision) -> None:
    given = "0123456789abcdef0123456789abcdef"
    assert vision.client.get("/", headers={"X-Request-Id": given}).headers["x-request-id"] == given
    other = vision.client.get("/", headers={"X-Request-Id": "my own words"})
    assert re.fullmatch("[0-9a-f]{32}", other.headers["x-request-id"])


def test_a_trace_leads_through_to_vllm(start, stub) -> None:
    """The collector is a real one over HTTP; vLLM gets the span below the client's."""
    received: list[bytes] = []

    async def collect(request: web.Request) -> web.Response:
        received.append(await request.read())
        return web.Response()

    app = web.Application()
    app.router.add_post("/v1/traces", collect)
    with served(app) as url, start(otlp_endpoint=f"{url}/v1/traces") as gateway:
        trace = "0af7651916cd43dd8448eb211c80319c"
        ask_chat(gateway, headers={"traceparent": f"00-{trace}-b7ad6b7169203331-01"})
        gateway.gateway.tracer.provider.force_flush()
        until(lambda: received)
    carried = stub.headers[0]["traceparent"]
    assert carried.startswith(f"00-{trace}-") and "b7ad6b7169203331" not in carried
    sent = b"".join(received)
    assert bytes.fromhex(trace) in sent
    assert bytes.fromhex(carried.split("-")[2]) in sent
    assert b"POST /v1/chat/completions" in sent and b"gen_ai.usage.output_tokens" in sent


def test_without_a_collector_no_tracing_library_is_loaded() -> None:
    import subprocess
    import sys

    program = (
        "import sys; from gateway.app import create_app; from gateway.settings import Settings\n"
        "create_app(Settings())\n"
        "heavy = {'opentelemetry.sdk', 'redis', 'fpdf', 'av', 'torch', 'transformers', 'mlflow',"
        " 'numpy', 'pyarrow', 'scipy'}\n"
        "print(*sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == ""
