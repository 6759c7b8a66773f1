"""A fresh MLflow store for each test, and steps run as their command lines."""

from __future__ import annotations

import functools
import gc
import importlib.util
import os
import shutil
import signal
import sqlite3
import sys
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from types import ModuleType

import mlflow_program
import pytest
from click.testing import CliRunner, Result
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).parent.parent

# Set before torch or MLflow is imported: no hub, no card, one thread, and no calls home. On a card
# sums are rounded otherwise, and the tiny adapters would be served in another type.
os.environ |= {
    "CUDA_VISIBLE_DEVICES": "",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "TOKENIZERS_PARALLELISM": "false",
}
for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "LORALINE_WORKFLOW_UID"):
    os.environ.pop(name, None)

# How long an example takes says how busy the machine is.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")

HEAVIEST = (
    "test_line.py",
    "steps/test_interruption.py",
    "steps/test_serve_local.py",
    "steps/test_evaluate.py",
    "loraline/training/test_trainer.py",
    "steps/test_quality_gate.py",
    "steps/test_promote.py",
    "steps/test_every_step.py",
    "loraline/data/test_dataset.py",
)
"""Files that take longest. They come first, or one worker would still run them when the other has
nothing left; `--no-loadscope-reorder` leaves it at that."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    first = [ROOT / "tests" / name for name in HEAVIEST]
    order = {path: place for place, path in enumerate(first)}
    items.sort(key=lambda item: order.get(item.path, len(first)))


frozen_modules = 0


def pytest_runtest_setup() -> None:
    """Spare the garbage collector what imported modules hold: it lives as long as the process.

    Each training begins with a collection, which would look through all of it: a quarter of the
    time of the tests that train.
    """
    global frozen_modules
    if len(sys.modules) > frozen_modules + 300:
        frozen_modules = len(sys.modules)
        gc.collect()
        gc.freeze()


def pytest_sessionfinish() -> None:
    gc.unfreeze()


def load_script(path: Path) -> ModuleType:
    """Import a script by its path; steps and workflows are files to run, not packages."""
    name = f"{path.parent.name}_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def signal_handlers() -> Iterator[None]:
    """A command that a test runs in this process handles signals; none of its handlers stays."""
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGALRM)
    before = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def script() -> Callable[[str], ModuleType]:
    """Import a step or workflow script by its path from the repository's root."""
    return lambda path: load_script(ROOT / path)


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A folder with a random tiny base of an architecture, built once a session."""
    tiny_bases = load_script(ROOT / "test_data" / "tiny_bases.py")
    corpus = [r"\frac{a}{b} + x^{2}", "What is the capital of France?"] * 4

    @functools.cache
    def build(architecture: str) -> Path:
        folder = tmp_path_factory.mktemp(architecture)
        tiny_bases.build(architecture, folder, corpus)
        return folder

    return build


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite store with MLflow's tables and nothing else; making the tables takes seconds.

    SQLite does not wait for the disk in this process: what a machine's end would cost is no test's
    matter, and a test commits a hundred times.
    """
    import mlflow
    from sqlalchemy import event
    from sqlalchemy.engine import Engine

    @event.listens_for(Engine, "connect")
    def without_waiting(connection: sqlite3.Connection, _: object) -> None:
        if isinstance(connection, sqlite3.Connection):
            connection.execute("PRAGMA synchronous=OFF")

    database = tmp_path_factory.mktemp("store") / "mlflow.db"
    mlflow.MlflowClient(f"sqlite:///{database}").search_experiments()
    return database


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty_store: Path) -> Iterator[Path]:
    """An empty folder to work in, with the repository's profiles and test data and a store."""
    import mlflow

    monkeypatch.chdir(tmp_path)
    for shared in ("lora_profiles", "test_data"):
        (tmp_path / shared).symlink_to(ROOT / shared)
    (tmp_path / "mlruns").mkdir()
    shutil.copy(empty_store, tmp_path / "mlruns" / "mlflow.db")
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlruns/mlflow.db")
    yield tmp_path
    while mlflow.active_run():
        mlflow.end_run()


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> Iterator[str]:
    """The address of a real MLflow server on 127.0.0.1, with a store of its own."""
    folder = tmp_path_factory.mktemp("server")
    shutil.copy(empty_store, folder / "mlflow.db")
    with mlflow_program.serving(folder, "--workers=2") as address:
        yield address


Answering = Callable[[int, str], str]


@pytest.fixture
def answering() -> Iterator[Answering]:
    """An HTTP server that gives every request one answer, whatever it is asked; its address."""
    servers = []

    def start(code: int, body: str) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                self.send_response(code)
                self.end_headers()
                self.wfile.write(body.encode())

            do_POST = do_GET

            def log_message(self, *arguments: object) -> None:
                pass

        servers.append(HTTPServer(("127.0.0.1", 0), Handler))
        Thread(target=servers[-1].serve_forever, args=(0.02,), daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


Step = Callable[..., Result]


@pytest.fixture
def step(workplace: Path) -> Step:
    """Run a step in this process; an unexpected exception is the test's failure."""

    def run(name: str, *arguments: str | Path) -> Result:
        command = getattr(load_script(ROOT / "steps" / f"{name}.py"), name)
        result = CliRunner().invoke(command, [str(argument) for argument in arguments])
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return run
