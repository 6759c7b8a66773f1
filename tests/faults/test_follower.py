"""The follower of an alias outlives every answer and serves what a gate judged."""

from __future__ import annotations

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import changes
import mlflow
import pytest
from mlflow.exceptions import MlflowException

from loraline import contract
from loraline.tracking import registry, store, tags

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
    message = follow(step, vllm, workplace, "--once").stdout
    assert message == f"loaded {MODEL}-v2, unloaded {MODEL}-v1\n"
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


def test_a_version_that_the_server_was_not_started_for_is_not_loaded(
    step, candidate, vllm: Vllm, workplace: Path
) -> None:
    step("quality_gate", "--run-id", candidate(name="one"))
    started_for = workplace / "one" / "adapter" / "contract.json"
    settings = json.loads(started_for.read_text())
    started_for.write_text(json.dumps(settings | {"max_images": 0}))
    result = follow(step, vllm, workplace, "--once")
    assert result.exit_code == 2
    assert result.stderr == (
        f"follow-alias: models:/{MODEL}/1 needs max_images 1, and the server was started for 0: "
        "deploy the version\n"
    )
    assert vllm.adapters == {}


@pytest.mark.parametrize("attack", ["digest", "gate run", "promotion"])
def test_a_version_with_tags_of_nobody_is_not_served(
    step, candidate, vllm: Vllm, workplace: Path, attack: str
) -> None:
    """Other files with their digest in the version's tags, or another run named as its gate."""
    step("quality_gate", "--run-id", candidate(name="one"))
    client = store.connect()
    version = client.get_model_version(MODEL, "1")
    if attack == "digest":
        stored = client.get_logged_model(version.source.removeprefix("models:/"))
        adapter = Path(stored.artifact_location.removeprefix("file://"), "artifacts", "adapter")
        changes.louder(adapter)
        digest = contract.folder_digest(adapter)
        client.set_model_version_tag(MODEL, "1", tags.ADAPTER_DIGEST, digest)
    elif attack == "gate run":
        client.set_model_version_tag(MODEL, "1", tags.GATE_RUN, version.run_id)
    else:
        client.set_model_version_tag(MODEL, "1", registry.PROMOTED_GATE, version.run_id)
    result = follow(step, vllm, workplace, "--once")
    assert result.exit_code == 2
    assert "has tags that no gate wrote" in result.stderr
    assert vllm.adapters == {}


@pytest.mark.parametrize("uri", ["1", "../1", "1/../1", "candidate", "-1", "1;id", "\u0661"])
def test_what_is_no_version_is_not_fetched(step, candidate, workplace: Path, uri: str) -> None:
    step("quality_gate", "--run-id", candidate(name="one"))
    model = f"models:/{MODEL}/{uri}" if uri != "1" else MODEL
    result = step("fetch_adapter", "--model", model, "--sha256", "0" * 64, "--out-dir", "fetched")
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    assert not (workplace / "fetched").exists()


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

    monkeypatch.setattr(module.Follower, "check", look)
    monkeypatch.setattr(module.time, "sleep", sleep)
    options = ("--model", MODEL, "--alias", "candidate", "--url", vllm.url)
    contract = ("--contract", str(workplace / "one" / "adapter" / "contract.json"))
    result = CliRunner().invoke(module.follow_alias, [*options, *contract, "--adapters", "a"])
    assert result.exit_code == 130
    assert result.stderr.count("follow-alias: ") == 4
    assert len(looks) == 3
