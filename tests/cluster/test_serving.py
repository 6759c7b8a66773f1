"""The rendered manifest on a real cluster: ready, killed, rolled on, rolled back, refused.

On a cluster of your own, its nodes need an image with the steps (LORALINE_TEST_IMAGE) and one with
vLLM's CPU build (LORALINE_TEST_SERVER_IMAGE, made by images/serve.Dockerfile), and its pods need an
address of this machine (LORALINE_TEST_HOST).
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow_program
import pytest
import yaml
from ports import free_port

pytestmark = pytest.mark.cluster

ROOT = Path(__file__).parents[2]
IMAGE = os.environ.get("LORALINE_TEST_IMAGE", "localhost/loraline:dev")
SERVER_IMAGE = os.environ.get("LORALINE_TEST_SERVER_IMAGE", "localhost/loraline:serve")
HOST = os.environ.get("LORALINE_TEST_HOST", "10.244.0.1")
NAMESPACE = "loraline-serving"
MODEL = "cluster-lora"
KEY = "a-key-for-this-test"
QUESTION = "What is the capital of France?"
TOKENS = 12


@dataclass
class Registered:
    """A version in the registry, the gate run that passed it, and what it answers."""

    version: str
    gate_run: str
    tokens: list[int]


def kubectl(*arguments: str, stdin: str | None = None) -> str:
    ended = subprocess.run(
        ["kubectl", "--namespace", NAMESPACE, *arguments],
        input=stdin,
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


@pytest.fixture(scope="module")
def serving(cluster: Any, images: None) -> Iterator[str]:
    made = yaml.safe_dump(
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}
    )
    kubectl("apply", "--filename", "-", stdin=made)
    secret = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": f"lora-{MODEL}"},
        "stringData": {"api-key": KEY},
    }
    kubectl("apply", "--filename", "-", stdin=yaml.safe_dump(secret))
    yield NAMESPACE
    kubectl("delete", "namespace", NAMESPACE, "--wait=false")


@pytest.fixture(scope="module")
def mlflow_server(serving: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An MLflow server on this machine that pods reach."""
    folder = tmp_path_factory.mktemp("mlflow")
    with mlflow_program.serving(folder, "--allowed-hosts=*", "--workers=1", host=HOST) as address:
        yield address


@pytest.fixture(scope="module")
def place(mlflow_server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("line")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for part in ("lora_profiles", "test_data"):
            (folder / part).symlink_to(ROOT / part)
        patch.setenv("MLFLOW_TRACKING_URI", mlflow_server)
        patch.setenv("LORALINE_IMAGE", IMAGE)
        yield folder


@pytest.fixture(scope="module")
def versions(place: Path, script) -> list[Registered]:
    """Two adapters of the tiny text base that answer differently, both through the gate."""
    return [register(place, script, seed) for seed in (1, 2)]


def register(place: Path, script, seed: int) -> Registered:
    import mlflow
    import peft
    import torch

    from loraline import contract
    from loraline.answering import logged_model
    from loraline.answering.hf import answers
    from loraline.base.encoding import Encoder
    from loraline.base.load import load
    from loraline.base.locate import locate
    from loraline.records import from_prompt
    from loraline.tracking import registry, runs, store
    from loraline.tracking.tags import (
        ADAPTER_DIGEST,
        MODEL_ID,
        MODEL_NAME,
        MODEL_VERSION,
        PROFILE,
        REASON,
        RESULT,
    )

    torch.manual_seed(seed)
    base = locate("test_data/text/base", None)
    model: Any = load(base, "text", quantization="none", dtype="float32")
    model.config.name_or_path = model.name_or_path = "test_data/text/base"
    tuned = peft.get_peft_model(
        model, peft.LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"])
    )
    for key, weight in tuned.named_parameters():
        if "lora_B" in key:
            torch.nn.init.normal_(weight, std=0.2)
    tuned.peft_config["default"].base_model_name_or_path = "test_data/text/base"
    adapter = place / str(seed) / "adapter"
    tuned.save_pretrained(adapter)
    shutil.copy(base.path / "config.json", adapter / contract.BASE_CONFIG)
    encoder = Encoder(base.path, "text")
    row = encoder.encode(from_prompt("{question}", QUESTION, "x"))
    result = answers(tuned.eval(), encoder, [row], TOKENS, lambda done, message: None)[0]
    contract.write(
        contract.Contract(
            base="test_data/text/base",
            base_revision=base.revision,
            modality="text",
            architecture=base.architecture,
            prompt="{question}",
            chat_template=encoder.chat_template,
            min_pixels=None,
            max_pixels=None,
            max_length=64,
            max_new_tokens=TOKENS,
            dtype="float32",
            r=8,
            lora_alpha=16,
            target_modules=("q_proj", "v_proj"),
            trains_vision=False,
            adapter_sha256=contract.sha256(adapter / contract.WEIGHTS),
        ),
        adapter,
    )
    client = store.connect()
    agreed = contract.read(adapter)
    with runs.open_run("prepare_data", name="data", fingerprint=f"p{seed}") as data:
        pass
    upstream = client.get_run(data.info.run_id)
    tags = {PROFILE: "smoke-text"}
    with runs.open_run(
        "train_qlora", name="lora", fingerprint=f"t{seed}", upstream=upstream, tags=tags
    ) as train:
        logged_model.log(adapter, agreed, "smoke-text")
    upstream = client.get_run(train.info.run_id)
    version = registry.register(client, MODEL, upstream.data.tags[MODEL_ID])
    tags = {
        RESULT: "passed",
        REASON: "",
        MODEL_NAME: MODEL,
        MODEL_VERSION: version,
        ADAPTER_DIGEST: upstream.data.tags[ADAPTER_DIGEST],
    }
    with runs.open_run(
        "quality_gate", name="gate", fingerprint=f"g{seed}", upstream=upstream, tags=tags
    ) as gate:
        mlflow.log_metric("rows", 1)
    return Registered(version, gate.info.run_id, result.tokens)


def deploy(place: Path, gate_run: str, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, ROOT / "steps/deploy_vllm.py", "--run-id", gate_run, "--gpu", "cpu"]
    command += ["--server-image", SERVER_IMAGE, "--namespace", NAMESPACE, *options]
    return subprocess.run([str(part) for part in command], capture_output=True, text=True)


@contextmanager
def forwarded() -> Iterator[str]:
    """The Service on a port of this machine."""
    port = free_port()
    process = subprocess.Popen(
        ["kubectl", "-n", NAMESPACE, "port-forward", f"service/lora-{MODEL}", f"{port}:8000"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    try:
        assert process.stdout is not None and b"Forwarding" in process.stdout.readline()
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(10)


def answer(url: str, key: str = KEY) -> list[int]:
    body = {
        "model": MODEL,
        "messages": [{"role": "user", "content": QUESTION}],
        "temperature": 0,
        "max_tokens": TOKENS,
        "return_token_ids": True,
    }
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
    asked = urllib.request.Request(f"{url}/v1/chat/completions", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(asked, timeout=60) as response:
        choice = json.load(response)["choices"][0]
    tokens = choice["token_ids"]
    return tokens[:-1] if choice["finish_reason"] == "stop" else tokens


def served() -> list[int]:
    with forwarded() as url:
        return answer(url)


def test_applied_manifest_becomes_ready_and_serves_the_candidate(
    place: Path, versions: list[Registered]
) -> None:
    from loraline.tracking import runs, store

    first, second = versions
    assert first.tokens != second.tokens
    ended = deploy(place, first.gate_run, "--apply")
    assert ended.returncode == 0, ended.stderr
    assert f"lora-{MODEL} is ready" in ended.stdout
    client = store.connect()
    train = runs.ancestor(client, client.get_run(first.gate_run), "train_qlora")
    assert train.data.tags["loraline.deployed"] == f"models:/{MODEL}/{first.version}"
    # What the step rendered is what kubectl and its strict validation take, too.
    assert "configured" in kubectl(
        "apply", "--server-side", "--force-conflicts", "--dry-run=server", "--validate=strict",
        "--filename", "outputs/vllm.yaml",
    ).replace("serverside-applied", "configured")  # fmt: skip
    with forwarded() as url:
        assert answer(url) == first.tokens
        with pytest.raises(urllib.error.HTTPError) as refused:
            answer(url, key="another key")
        assert refused.value.code == 401


def test_killed_pod_is_replaced_and_answers_the_same(versions: list[Registered]) -> None:
    kubectl("delete", "pod", "--selector", f"app.kubernetes.io/name=lora-{MODEL}", "--wait=true")
    kubectl("rollout", "status", f"deployment/lora-{MODEL}", "--timeout=300s")
    assert served() == versions[0].tokens


def test_next_version_rolls_out_and_the_last_one_comes_back(
    place: Path, versions: list[Registered]
) -> None:
    for wanted in (versions[1], versions[0]):
        ended = deploy(place, wanted.gate_run, "--apply")
        assert ended.returncode == 0, ended.stderr
        assert served() == wanted.tokens


def test_version_that_cannot_start_is_rolled_back(place: Path, versions: list[Registered]) -> None:
    from loraline.delivery.cluster import apply
    from loraline.errors import UserError

    assert deploy(place, versions[1].gate_run).returncode == 0
    manifest = place / "outputs" / "vllm.yaml"
    digest = next(
        entry["metadata"]["annotations"]["loraline/adapter-sha256"]
        for entry in yaml.safe_load_all(manifest.read_text())
    )
    broken = place / "broken.yaml"
    broken.write_text(manifest.read_text().replace(digest, "0" * 64))
    with pytest.raises(UserError) as refused:
        apply(broken, print)
    assert "was not deployed: fetch-adapter ended with exit code 2" in str(refused.value)
    assert "put back" in str(refused.value)
    kubectl("rollout", "status", f"deployment/lora-{MODEL}", "--timeout=300s")
    assert served() == versions[0].tokens
