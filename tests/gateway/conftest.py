"""A gateway on loopback before a stub of vLLM, each with a loop in a thread of its own."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from PIL import Image
from ports import free_port

from gateway import server
from gateway.app import create_app
from gateway.settings import Server, Settings
from tests.gateway.stub import Stub, served

CONTRACT = {
    "base": "base",
    "base_revision": "0" * 40,
    "modality": "vision",
    "architecture": "Qwen3VLForConditionalGeneration",
    "prompt": "Write the formula as LaTeX.",
    "prompt_uri": "prompts:/formula/1",
    "boxes": None,
    "chat_template": "{{ messages }}",
    "min_pixels": 4704,
    "max_pixels": 1003520,
    "max_length": 256,
    "max_new_tokens": 64,
    "dtype": "bfloat16",
    "r": 16,
    "lora_alpha": 32,
    "target_modules": ["q_proj"],
    "trains_vision": False,
    "adapter_sha256": "ab" * 32,
}
TEXT = CONTRACT | {
    "modality": "text",
    "architecture": "MistralForCausalLM",
    "prompt": "Answer in a few words. {question}",
    "min_pixels": None,
    "max_pixels": None,
}


class Started:
    """A running gateway: its client, its application and its log."""

    def __init__(self, url: str, app: Any, settings: Settings, thread: threading.Thread) -> None:
        self.url = url
        self.app = app
        self.settings = settings
        self.thread = thread
        self.client = httpx.Client(base_url=url, timeout=30)

    @property
    def gateway(self) -> Any:
        return self.app.state.gateway


@pytest.fixture(scope="session")
def _stub() -> Iterator[tuple[Stub, str]]:
    stub = Stub()
    with served(stub.app()) as url:
        yield stub, url


@pytest.fixture
def stub(_stub: tuple[Stub, str]) -> Stub:
    _stub[0].reset()
    return _stub[0]


@pytest.fixture(scope="session")
def stub_url(_stub: tuple[Stub, str]) -> str:
    return _stub[1]


@pytest.fixture(scope="session")
def settings_for(
    stub_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Settings]:
    """Settings before the stub; `contract` is the adapter's, `server` fields of its entry."""

    def make(
        contract: dict[str, Any] | None = CONTRACT,
        server: dict[str, Any] | None = None,
        **set_to: Any,
    ) -> Settings:
        folder = tmp_path_factory.mktemp("gateway")
        entry: dict[str, Any] = {"url": stub_url, "uri": "models:/tiny-lora/3"}
        if contract is not None:
            (folder / "contract.json").write_text(json.dumps(contract))
            entry["contract"] = folder / "contract.json"
        return Settings(
            **{
                "GATEWAY_UPSTREAMS": (Server(**entry | (server or {})),),
                "data_dir": folder / "data",
                "refresh_s": 0.2,
                **set_to,
            }
        )

    return make


@contextlib.contextmanager
def started(settings: Settings) -> Iterator[Started]:
    app = create_app(settings)
    listening = server.bind("127.0.0.1", 0)
    running_server = uvicorn.Server(server.config(settings, app))
    thread = threading.Thread(target=running_server.run, args=([listening],), daemon=True)
    thread.start()
    url = f"http://127.0.0.1:{listening.getsockname()[1]}"
    deadline = time.monotonic() + 30
    while not running_server.started:
        assert time.monotonic() < deadline and thread.is_alive(), "the gateway did not start"
        time.sleep(0.01)
    result = Started(url, app, settings, thread)
    try:
        yield result
    finally:
        result.client.close()
        running_server.should_exit = True
        thread.join(10)


@pytest.fixture(scope="session")
def start(settings_for: Callable[..., Settings]) -> Callable[..., Any]:
    """Start a gateway with these settings, for a with-block."""
    return lambda *args, **set_to: started(settings_for(*args, **set_to))


@pytest.fixture(scope="session")
def _vision(start: Callable[..., Any]) -> Iterator[Started]:
    with start() as gateway:
        yield gateway


@pytest.fixture
def vision(_vision: Started, stub: Stub) -> Started:
    """A gateway before an adapter that reads formulas; shared, so nothing of it may be changed."""
    return _vision


@pytest.fixture
def session(vision: Started) -> str:
    """A session of `vision`'s, without turns."""
    return str(vision.client.post("/sessions", json={"title": "Formulas"}).json()["id"])


@pytest.fixture(scope="session")
def _text(start: Callable[..., Any]) -> Iterator[Started]:
    with start(TEXT) as gateway:
        yield gateway


@pytest.fixture
def text(_text: Started, stub: Stub) -> Started:
    return _text


@contextlib.contextmanager
def vllm(
    base: Path,
    folder: Path,
    template: Path,
    pixels: tuple[int, int] | None,
    adapters: Mapping[str, Path] | None = None,
) -> Iterator[str]:
    """A real vLLM that serves a tiny base as `tiny`; its address. Its log is in `folder`.

    `pixels` are the limits of an image; None serves texts alone. `adapters` are served by name.
    """
    beside = Path(sys.executable).with_name("vllm")
    executable = str(beside) if beside.is_file() else shutil.which("vllm")
    if executable is None:
        pytest.skip("vllm is not installed")
    port = free_port()
    args = ["--served-model-name", "tiny", "--dtype", "float32", "--max-model-len", "512"]
    args += ["--kv-cache-memory-bytes", "256M", "--generation-config", "vllm"]
    args += ["--chat-template", str(template), "--enforce-eager"]
    args += ["--host", "127.0.0.1", "--port", str(port), "--max-num-seqs", "8"]
    if pixels:
        size = {"images_kwargs": {"size": {"shortest_edge": pixels[0], "longest_edge": pixels[1]}}}
        args += ["--limit-mm-per-prompt", '{"image": 1, "video": 0}']
        args += ["--mm-processor-kwargs", json.dumps(size)]
    if adapters:
        # vLLM's CPU build answers for the base with the last slot's adapter: that one stays empty.
        args += ["--enable-lora", "--max-loras", str(len(adapters) + 1), "--lora-modules"]
        args += [f"{name}={path}" for name, path in adapters.items()]
    log = (folder / "log").open("w")
    server = subprocess.Popen(
        [executable, "serve", str(base), *args],
        env=os.environ | {"TORCH_COMPILE_DISABLE": "1", "VLLM_NO_USAGE_STATS": "1"},
        stdout=log,
        stderr=log,
        start_new_session=True,
    )
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(1200):
            assert server.poll() is None, (folder / "log").read_text()[-3000:]
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/health"):
                break
            time.sleep(0.2)
        else:
            raise AssertionError("the server did not start")
        yield url
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(30)


def picture(
    kind: str = "PNG", size: tuple[int, int] = (64, 48), mode: str = "RGB", **options: Any
) -> bytes:
    file = io.BytesIO()
    Image.effect_noise(size, 64).convert(mode).save(file, kind, **options)
    return file.getvalue()


@pytest.fixture(scope="session")
def png() -> bytes:
    return picture()


@pytest.fixture(scope="session")
def formula() -> Path:
    return Path(__file__).parents[2] / "test_data/vision/images/0001.png"


def ask_chat(gateway: Started, headers: Any = None, **more: Any) -> httpx.Response:
    body = {"model": "tiny-lora", "messages": [{"role": "user", "content": "Hello"}], **more}
    return gateway.client.post("/v1/chat/completions", json=body, headers=headers)
