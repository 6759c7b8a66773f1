"""The follower of an alias outlives every answer and serves what a gate judged."""

from __future__ import annotations

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import mlflow
import pytest
from mlflow.exceptions import MlflowException

from loraline.tracking import store

MODEL = "mistral-7b-lora"


class Vllm:
    """A server that lists, loads and unloads adapters, and holds none."""

    def __init__(self) -> None:
        self.adapters: dict[str, str] = {}
        served = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.answer({"data": [{"id": name} for name in ("base", *served.adapters)]})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if self.path.endswith("/load_lora_adapter") and "unload" not in self.path:
                    served.adapters[body["lora_name"]] = body["lora_path"]
                else:
                    served.adapters.pop(body["lora_name"], None)
                self.answer({})

            def answer(self, content: dict[str, Any]) -> None:
                self.send_response(200)
                self.end_headers()
                self.wfile.write(json.dumps(content).encode())

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()


@pytest.fixture
def vllm() -> Iterator[Vllm]:
    made = Vllm()
    yield made
    made.server.shutdown()
    made.server.server_close()


def follow(step: Any, vllm: Vllm, workplace: Path, *options: str) -> Any:
    return step(
        *("follow_alias", "--model", MODEL, "--alias", "candidate", "--url", vllm.url),
        *("--contract", workplace / "one" / "adapter" / "contract.json"),
        *("--adapters", workplace / "adapters", *options),
    )


def test_versions_come_and_go_with_the_alias_and_their_folders(
    step, candidate, vllm: Vllm, workplace: Path
) -> None:
    step("quality_gate", "--run-id", candidate(name="one"))
    assert follow(step, vllm, workplace, "--once").stdout == f"loaded {MODEL}-v1\n"
    step("quality_gate", "--run-id", candidate(name="two"))
    told = follow(step, vllm, workplace, "--once").stdout
    assert told == f"loaded {MODEL}-v2, unloaded {MODEL}-v1\n"
    assert list(vllm.adapters) == [f"{MODEL}-v2"]
    folder = workplace / "adapters" / "followed" / MODEL
    assert [path.name for path in folder.iterdir()] == ["v2"]


def test_an_alias_that_was_set_by_hand_serves_nothing(
    step, candidate, vllm: Vllm, workplace: Path
) -> None:
    step("quality_gate", "--run-id", candidate(name="one"))
    client = store.connect()
    source = client.get_model_version(MODEL, "1").source
    unjudged = mlflow.register_model(source, MODEL).version
    client.set_registered_model_alias(MODEL, "candidate", unjudged)
    result = follow(step, vllm, workplace, "--once")
    assert result.exit_code == 2
    assert "did not come through quality_gate" in result.stderr
    assert vllm.adapters == {}


def test_a_rejected_version_is_not_served(step, candidate, vllm: Vllm, workplace: Path) -> None:
    run_id = candidate(name="one")
    step("quality_gate", "--run-id", run_id)
    (workplace / "strict.yaml").write_text("min_bleu: 99\n")
    step("quality_gate", "--run-id", run_id, "--policy", "strict.yaml")
    store.connect().set_registered_model_alias(MODEL, "candidate", "1")
    result = follow(step, vllm, workplace, "--once")
    assert result.exit_code == 2
    assert "was rejected" in result.stderr
    assert vllm.adapters == {}


@pytest.mark.parametrize(
    "error",
    [
        MlflowException("no such artifact"),
        RecursionError("maximum recursion depth exceeded"),
        OSError(28, "No space left on device"),
        KeyError("data"),
        ValueError(""),
    ],
    ids=lambda error: type(error).__name__,
)
def test_no_answer_ends_the_follower(
    script, candidate, vllm: Vllm, workplace: Path, monkeypatch: pytest.MonkeyPatch, error
) -> None:
    from click.testing import CliRunner

    candidate(name="one")
    module = script("steps/follow_alias.py")
    looks: list[int] = []

    def look(self: object) -> None:
        looks.append(1)
        raise error

    def sleep(seconds: float) -> None:
        if len(looks) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(module.Follower, "look", look)
    monkeypatch.setattr(module.time, "sleep", sleep)
    options = ("--model", MODEL, "--alias", "candidate", "--url", vllm.url)
    contract = ("--contract", str(workplace / "one" / "adapter" / "contract.json"))
    result = CliRunner().invoke(module.follow_alias, [*options, *contract, "--adapters", "a"])
    assert result.exit_code == 130
    assert result.stderr.count("follow-alias: ") == 4
    assert len(looks) == 3
