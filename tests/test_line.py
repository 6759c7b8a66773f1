"""The whole line with its real parts, once for text and once for vision, and what came of it."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from ports import free_port

from loraline.delivery import local
from loraline.tracking import views

ROOT = Path(__file__).parents[1]
TASKS = ("prepare-data", "train-qlora", "evaluate", "quality-gate", "deploy-vllm")
MODELS = {"smoke-text": "tiny-mistral-lora", "smoke-vision": "tiny-qwen3-vl-lora"}


@dataclass
class Line:
    """A finished run of the line in a folder of its own."""

    profile: str
    place: Path

    @property
    def latest(self) -> Path:
        return (self.place / "outputs" / "latest").resolve()

    @property
    def store(self) -> str:
        return f"sqlite:///{self.place}/mlruns/mlflow.db"

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_TRACKING")}
        return subprocess.run(
            [sys.executable, *command],
            cwd=self.place,
            env=environment,
            capture_output=True,
            text=True,
        )

    def pipeline(self, changes: str = "") -> subprocess.CompletedProcess[str]:
        """Run the line; `changes` are keys of the profile, as --set takes them."""
        runner = ("-m", "runner.run_local", "workflows/pipeline.yaml")
        return self.run(*runner, "-p", f"profile={self.profile}", "-p", f"set={changes}")

    def output(self, task: str, name: str = "run-id") -> str:
        return (self.latest / task / name).read_text()

    @contextmanager
    def served(self, manifest: Path | None = None, **environment: str) -> Iterator[Any]:
        """A server of the line's manifest, or of another one, started here on a free port."""
        port = free_port()
        with pytest.MonkeyPatch.context() as patch:
            # The contract names the base relative to where the line runs.
            patch.chdir(self.place)
            for name, value in environment.items():
                patch.setenv(name, value)
            rendered = self.latest / "deploy-vllm" / "vllm.yaml"
            with local.start(manifest or rendered, port) as server:
                patch.undo()
                yield server

    def scorecard(self) -> dict[str, Any]:
        return json.loads(self.output("quality-gate", "scorecard.json"))


PROFILES = [
    pytest.param(profile, marks=() if profile == "smoke-text" else pytest.mark.slow)
    for profile in MODELS
]
"""The line of texts runs in `make test`; `.ci/run` also runs that of pictures, and asks servers."""


@pytest.fixture(scope="module", params=PROFILES)
def line(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Line:
    """Run the line once; the folder has the repository's parts and a store of its own."""
    made = Line(request.param, tmp_path_factory.mktemp(request.param))
    for part in ("steps", "workflows", "lora_profiles", "test_data"):
        (made.place / part).symlink_to(ROOT / part)
    ended = made.pipeline()
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return made


@pytest.fixture(scope="module")
def client(line: Line) -> Any:
    import mlflow

    mlflow.set_tracking_uri(line.store)
    return mlflow.MlflowClient()


def test_tuned_beats_base_by_twenty_bleu_and_half_the_edits(line: Line) -> None:
    metrics = line.scorecard()["metrics"]
    assert metrics["bleu"]["tuned"][0] >= metrics["bleu"]["base"][0] + 20
    assert metrics["levenshtein"]["tuned"][0] <= metrics["levenshtein"]["base"][0] / 2
    assert metrics["perplexity"]["tuned"][0] < metrics["perplexity"]["base"][0]


def test_the_registry_holds_the_candidate(line: Line, client: Any) -> None:
    version = client.get_model_version_by_alias(MODELS[line.profile], "candidate")
    assert str(version.version) == "1"
    assert version.run_id == line.output("train-qlora")


def test_the_manifest_pins_the_version(line: Line) -> None:
    objects = list(yaml.safe_load_all(line.output("deploy-vllm", "vllm.yaml")))
    deployment = next(entry for entry in objects if entry["kind"] == "Deployment")
    pinned = f"models:/{MODELS[line.profile]}/1"
    assert deployment["metadata"]["annotations"]["loraline/registered-version"] == pinned
    fetch = deployment["spec"]["template"]["spec"]["initContainers"][0]["command"]
    assert fetch[fetch.index("--model") + 1] == pinned


def test_one_row_tells_the_candidates_story(line: Line, client: Any) -> None:
    train = client.get_run(line.output("train-qlora"))
    assert train.data.tags["loraline.gate.result"] == "passed"
    assert train.data.tags["loraline.upstream"] == line.output("prepare-data")
    assert {"loss", "eval_loss", "tuned_bleu", "base_bleu", "peak_memory_gib"} <= set(
        train.data.metrics
    )
    # No column of MLflow's table of trainings is empty.
    assert set(views.METRICS) <= set(train.data.metrics)
    assert set(views.PARAMS) <= set(train.data.params)
    assert set(views.TAGS) <= set(train.data.tags)
    for task in ("evaluate", "quality-gate", "deploy-vllm"):
        nested = client.get_run(line.output(task))
        assert nested.data.tags["mlflow.parentRunId"] == train.info.run_id
    pictures = {entry.path for entry in client.list_artifacts(train.info.run_id)}
    assert {"loss_curves.png", "profile.json"} <= pictures


def test_the_registered_model_answers_as_it_was_measured(line: Line, client: Any) -> None:
    import mlflow

    rows = held_out(line, client)[:4]
    # The contract names the base relative to where the line runs.
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(line.place)
        model = mlflow.pyfunc.load_model(f"models:/{MODELS[line.profile]}@candidate")
        result = model.predict([row["image"] or row["asked"] for row in rows])
    assert result == [row["tuned"] for row in rows]


@pytest.fixture(scope="module")
def running(line: Line, script) -> Iterator[Any]:
    """The manifest's server, with leave to change its adapters for the tests that spoil it."""
    with line.served(VLLM_ALLOW_RUNTIME_LORA_UPDATING="1") as server:
        yield server


@pytest.mark.slow
def test_the_server_answers_what_was_measured(
    line: Line, client: Any, script, running: Any
) -> None:
    serve_local = script("steps/serve_local.py")
    rows = held_out(line, client)

    def ask(model: str, row: dict[str, Any]) -> list[int]:
        body = serve_local.request(running, row["asked"])
        if row["image"]:
            url = f"data:image/png;base64,{row['image']}"
            body["messages"][0]["content"] = [
                {"type": "image_url", "image_url": {"url": url}},
                {"type": "text", "text": running.contract["prompt"]},
            ]
        return tokens_of(running.url, body | {"model": model, "return_token_ids": True})

    for model, column in ((running.adapter, "tuned_tokens"), (running.base, "base_tokens")):
        with ThreadPoolExecutor(4) as pool:
            served = list(pool.map(lambda row, model=model: ask(model, row), rows))
        assert served == [row[column] for row in rows]


def verified(line: Line, url: str) -> subprocess.CompletedProcess[str]:
    deployed = line.output("deploy-vllm")
    command = ("--run-id", deployed, "--url", url, "--min-agreement", "1", "--out-dir", "verified")
    return line.run("steps/verify_serving.py", *command)


@pytest.mark.slow
def test_verification_passes_on_the_manifests_server(line: Line, client: Any, running: Any) -> None:
    ended = verified(line, running.url)
    assert ended.returncode == 0, ended.stderr
    assert "serves what was measured" in ended.stdout
    run = client.get_run((line.place / "verified" / "run-id").read_text())
    assert run.data.metrics["tuned_agreement"] == run.data.metrics["base_agreement"] == 1
    assert 0 < run.data.metrics["latency_seconds_median"] < 60
    assert run.data.tags["loraline.verified"] == "passed"
    # Whoever starts the next one finds it by its own run, not by a file of the last.
    (line.place / "verified" / "run-id").unlink()


@pytest.mark.slow
def test_the_gateway_answers_what_was_measured(line: Line, client: Any, running: Any) -> None:
    """Uploads through /predict get the measured tokens, and so does verify_serving through it."""
    import httpx

    with gateway_before(line, running) as url:
        with httpx.Client(base_url=url, timeout=120) as door:

            def ask(model: str, row: dict[str, Any]) -> list[int]:
                fields = {"model": model, "token_ids": "true"}
                files = None
                if row["image"]:
                    files = {"files": ("row.png", base64.b64decode(row["image"]))}
                else:
                    fields["question"] = row["asked"]
                answer = door.post("/predict", data=fields, files=files)
                assert answer.status_code == 200, answer.text
                (result,) = answer.json()["predictions"]
                ended = result["finish_reason"] == "stop"
                return result["token_ids"][:-1] if ended else result["token_ids"]

            rows = held_out(line, client)
            for model, column in ((running.adapter, "tuned_tokens"), ("base", "base_tokens")):
                with ThreadPoolExecutor(4) as pool:
                    served = list(pool.map(lambda row, model=model: ask(model, row), rows))
                assert served == [row[column] for row in rows]
            info = door.get("/info").json()["models"]
        assert [each["uri"] for each in info if each["parent"]] == [
            f"models:/{MODELS[line.profile]}/1"
        ]
        ended = verified(line, url)
        assert ended.returncode == 0, ended.stderr
        (line.place / "verified" / "run-id").unlink()


@contextmanager
def gateway_before(line: Line, running: Any) -> Iterator[str]:
    """A gateway in front of the running server, with the contract that the manifest mounts."""
    port = free_port()
    upstream = {
        "url": running.url,
        "name": running.adapter,
        "uri": f"models:/{MODELS[line.profile]}/1",
        "contract": str(running.folder / "config" / "contract.json"),
    }
    variables = {"UPSTREAMS": json.dumps([upstream]), "PORT": str(port)}
    variables["DATA_DIR"] = str(line.place / "gateway")
    process = subprocess.Popen(
        [sys.executable, "-m", "gateway", "serve"],
        env=os.environ | {f"GATEWAY_{name}": value for name, value in variables.items()},
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
    )
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(300):
            assert process.poll() is None
            with suppress(OSError), urllib.request.urlopen(f"{url}/ready"):
                break
            time.sleep(0.1)
        else:
            raise AssertionError("the gateway did not start")
        yield url
    finally:
        process.terminate()
        process.wait(40)


@pytest.mark.slow
def test_verification_fails_without_the_adapter_and_with_another_one(
    line: Line, running: Any
) -> None:
    from safetensors.torch import load_file, save_file

    from loraline.serving.client import Server

    server, name = Server(running.url), running.adapter
    own = next((running.folder / "adapters" / name).glob("v*"))
    server.post("/v1/unload_lora_adapter", {"lora_name": name})
    ended = verified(line, running.url)
    assert ended.returncode == 1
    assert f"the server does not list {name}, only {running.base}" in ended.stderr

    other = shutil.copytree(own, running.folder / "other")
    weights = load_file(other / "adapter_model.safetensors")
    flipped = {key: -value if "lora_B" in key else value for key, value in weights.items()}
    save_file(flipped, other / "adapter_model.safetensors")
    server.post("/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(other)})
    ended = verified(line, running.url)
    assert ended.returncode == 1
    assert "of the tuned answers are the measured ones, below 100%; row" in ended.stderr
    assert "of the base answers" not in ended.stderr
    assert not (line.place / "verified" / "run-id").exists()
    server.post("/v1/unload_lora_adapter", {"lora_name": name})
    server.post("/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(own)})


def follow(line: Line, running: Any, *options: str) -> subprocess.CompletedProcess[str]:
    return line.run(
        *("steps/follow_alias.py", "--model", MODELS[line.profile], "--alias", "candidate"),
        *("--once", "--url", running.url, "--max-lora-rank", "64"),
        *("--contract", str(running.folder / "config" / "contract.json")),
        *("--adapters", str(running.folder / "adapters"), *options),
    )


@pytest.mark.slow
def test_an_alias_is_followed_without_a_restart(line: Line, client: Any, running: Any) -> None:
    from loraline.serving.client import Server

    name = f"{running.adapter}-v1"
    ended = follow(line, running)
    assert (ended.returncode, ended.stdout) == (0, f"loaded {name}\n"), ended.stderr
    assert follow(line, running).stdout == "", "nothing to do the second time"
    row = held_out(line, client)[0]
    result = measured_answer(line, Server(running.url), name)
    assert result == row["tuned_tokens"]
    # A version that the server was not made for, or that the alias no longer names.
    Server(running.url).post(
        "/v1/load_lora_adapter",
        {
            "lora_name": f"{running.adapter}-v7",
            "lora_path": str(running.folder / "adapters" / running.adapter / "v1"),
        },
    )
    assert follow(line, running).stdout == f"unloaded {running.adapter}-v7\n"
    refused = follow(line, running, "--alias", "nobody")
    assert refused.returncode == 2 and "has no alias nobody" in refused.stderr


def measured_answer(line: Line, server: Any, model: str) -> list[int]:
    import mlflow

    from loraline import records

    dataset = f"runs:/{line.output('prepare-data')}/dataset/test.parquet"
    record = records.read(Path(mlflow.artifacts.download_artifacts(dataset)))[0]
    return server.ask(model, record, 400).tokens


@pytest.mark.slow
def test_the_benchmark_fills_its_table_and_draws_it(line: Line, client: Any, running: Any) -> None:
    ended = line.run(
        *("steps/benchmark_serving.py", "--run-id", line.output("deploy-vllm")),
        *("--url", running.url, "--rate", "inf", "--prompts", "4", "--cold-start", "30"),
        *("--out-dir", "benchmark"),
    )
    assert ended.returncode == 0, ended.stderr
    assert "cold start under 60 s: 30 s, met" in ended.stdout
    run_id = (line.place / "benchmark" / "run-id").read_text()
    import mlflow

    table = mlflow.artifacts.load_dict(f"runs:/{run_id}/benchmark.json")["table"]
    assert len(table) == 2 * len({row["model"] for row in table})
    assert all(row["completed"] == 4 and row["failed"] == 0 for row in table)
    pictures = {entry.path for entry in client.list_artifacts(run_id)}
    assert {"throughput.png", "latency.png"} <= pictures


@pytest.mark.slow
def test_verification_fails_on_another_template(line: Line, script) -> None:
    if line.profile != "smoke-text":
        pytest.skip("one template is enough")
    rendered = line.output("deploy-vllm", "vllm.yaml")
    assert "[INST]" in rendered
    copy = line.place / "other-template.yaml"
    copy.write_text(rendered.replace("[INST]", "[ASK]"))
    with line.served(copy) as server:
        ended = verified(line, server.url)
    assert ended.returncode == 1
    assert "another chat template, prompt or pixel limit" in ended.stderr


def held_out(line: Line, client: Any) -> list[dict[str, Any]]:
    """The rows of the predictions table, with what was asked and the image in base64."""
    import mlflow

    from loraline import records

    table = mlflow.artifacts.load_dict(f"runs:/{line.output('evaluate')}/predictions.json")
    run_id = line.output("prepare-data")
    file = mlflow.artifacts.download_artifacts(f"runs:/{run_id}/dataset/test.parquet")
    prompt = mlflow.artifacts.load_text(f"runs:/{run_id}/dataset/prompt.txt")
    before, _, after = prompt.partition("{question}")
    rows = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
    for row, record in zip(rows, records.read(Path(file)), strict=True):
        asked = record.question.removeprefix(records.IMAGE)
        row["asked"] = asked.removeprefix(before).removesuffix(after)
        row["image"] = base64.b64encode(record.images[0]).decode() if record.images else None
    return rows


def tokens_of(url: str, body: dict[str, Any]) -> list[int]:
    """Token IDs of a greedy answer, without the end token."""
    request = urllib.request.Request(
        f"{url}/v1/chat/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=120) as answer:
        choice = json.load(answer)["choices"][0]
    tokens = choice["token_ids"]
    return tokens[:-1] if choice["finish_reason"] == "stop" else tokens


def test_an_unchanged_second_run_reuses_every_step(line: Line, client: Any) -> None:
    first = {task: line.output(task) for task in TASKS}
    count = len(client.search_runs(["1"], max_results=100))
    again = line.pipeline()
    assert again.returncode == 0, again.stdout + again.stderr
    assert {task: line.output(task) for task in TASKS} == first
    assert len(client.search_runs(["1"], max_results=100)) == count


def test_the_closing_table_shows_base_beside_tuned(line: Line) -> None:
    printed = line.run("workflows/summary.py", "outputs/latest").stdout
    for word in ("bleu", "levenshtein", "exact_match", "perplexity", "base", "tuned"):
        assert word in printed
    assert f"models:/{MODELS[line.profile]}/1 @candidate" in printed
    assert "vllm.yaml" in printed
    assert line.store in printed
