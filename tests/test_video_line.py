"""Profile smoke-video through the whole line, and its adapter asked for the films it never saw."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import pytest
import yaml

from tests.test_line import Line

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> Line:
    """A finished run of the line."""
    made = Line("smoke-video", tmp_path_factory.mktemp("video"))
    for part in ("steps", "workflows", "lora_profiles", "test_data"):
        (made.place / part).symlink_to(ROOT / part)
    ended = made.pipeline()
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return made


def test_nine_of_ten_moves_are_named_by_the_compass(line: Line) -> None:
    client = mlflow.MlflowClient(line.store)
    metrics = client.get_run(line.output("evaluate")).data.metrics
    assert metrics["tuned_exact_match"] >= 0.9
    assert metrics["base_exact_match"] < 0.1


def test_the_gate_passes_and_the_server_takes_a_video_a_request(line: Line) -> None:
    assert line.output("quality-gate", "result") == "passed"
    manifest = (line.latest / "deploy-vllm" / "vllm.yaml").read_text()
    (deployment,) = (made for made in yaml.safe_load_all(manifest) if made["kind"] == "Deployment")
    (server,) = deployment["spec"]["template"]["spec"]["containers"]
    args = server["args"]
    assert args[args.index("--limit-mm-per-prompt") + 1] == '{"image":1,"video":1}'


@pytest.fixture(scope="module")
def running(line: Line) -> Iterator[Any]:
    """The manifest's server, started here."""
    with line.served() as server:
        yield server


def test_the_server_answers_the_films_as_was_measured(line: Line, running: Any) -> None:
    deployed = line.output("deploy-vllm")
    command = ("--run-id", deployed, "--url", running.url, "--min-agreement", "1")
    ended = line.run("steps/verify_serving.py", *command, "--out-dir", "verified")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "serves what was measured" in ended.stdout
