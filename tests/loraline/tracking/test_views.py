"""The experiment opens as one of trainings, with a saved view of the columns that matter."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from loraline.tracking import store, views
from tests.gateway.ui.conftest import browser

__all__ = ["browser"]


def experiment() -> Any:
    return store.connect().get_experiment_by_name("vllm-lora-training")


def test_a_new_experiment_has_the_view(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tags = experiment().tags
    assert tags["mlflow.experimentKind"] == "custom_model_development"
    view = json.loads(tags["mlflow.sharedViewState.trainings"])
    assert view["name"] == "Trainings"
    state = json.loads(view["state"])
    assert {"metrics.`tuned_bleu`", "attributes.`Dataset`", "params.`r`"} <= set(
        state["selectedColumns"]
    )
    # MLflow reads the filter, too.
    store.connect().search_runs([experiment().experiment_id], state["searchFilter"])


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """MLflow's page on a store with one training."""
    monkeypatch.chdir(tmp_path)
    client = store.connect()
    run = client.create_run(experiment().experiment_id, run_name="a-training")
    client.set_tag(run.info.run_id, "loraline.step", "train_qlora")
    client.log_metric(run.info.run_id, "tuned_bleu", 71.25)
    client.log_param(run.info.run_id, "r", 8)
    client.set_terminated(run.info.run_id)
    other = client.create_run(experiment().experiment_id, run_name="an-evaluation")
    client.set_tag(other.info.run_id, "loraline.step", "evaluate")
    client.set_terminated(other.info.run_id)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--workers", "1"]
    command += ["--port", str(port), "--backend-store-uri", store.uri()]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            with suppress(OSError), urllib.request.urlopen(f"{url}/health"):
                break
            time.sleep(0.1)
        yield url
    finally:
        process.terminate()
        process.wait(20)


@pytest.mark.slow
def test_mlflows_page_shows_the_trainings_with_these_columns(
    server: str, browser: Any, tmp_path: Path
) -> None:
    page = browser.new_context(locale="en-GB", viewport={"width": 2400, "height": 900}).new_page()
    page.set_default_timeout(60_000)
    address = f"{server}/#/experiments/{experiment().experiment_id}/runs"
    page.goto(f"{address}?viewStateShareKey={views.TRAININGS}")
    page.get_by_text("a-training").first.wait_for()
    page.get_by_role("columnheader", name="tuned_bleu").wait_for()
    page.screenshot(path=str(tmp_path / "page.png"))
    assert page.get_by_text("71.25").count()
    assert page.get_by_role("columnheader", name="Dataset").count()
    assert page.get_by_text("an-evaluation").count() == 0
