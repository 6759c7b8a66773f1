"""From a reviewer's click to another answer: two versions of a real line, a real vLLM that follows
the champion, the gateway, the desk and the page, in a Chromium."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import mlflow
import pytest
import yaml
from ports import free_port

from loraline.delivery import local
from tests.gateway.conftest import _stub, settings_for, start, stub, stub_url
from tests.gateway.ui.conftest import browser, open_page, opened
from tests.test_line import Line, held_out

__all__ = ["_stub", "browser", "open_page", "opened", "settings_for", "start", "stub", "stub_url"]

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
MODEL = "tiny-mistral-lora"


def until(there: Callable[[], Any], seconds: float, what: str) -> Any:
    deadline = time.monotonic() + seconds
    while not (result := there()):
        assert time.monotonic() < deadline, f"waited {seconds:g} s for {what}"
        time.sleep(0.2)
    return result


@contextmanager
def running(line: Line, *command: str) -> Iterator[subprocess.Popen[bytes]]:
    """A program of the project beside the test, in the line's folder and with its store."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_TRACKING")}
    process = subprocess.Popen([sys.executable, *command], cwd=line.place, env=environment)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(20)


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> tuple[Line, list[dict[str, Any]]]:
    """A champion and a candidate, and the held-out rows that they answer differently."""
    made = Line("smoke-text", tmp_path_factory.mktemp("promoted"))
    for part in ("steps", "workflows", "test_data"):
        (made.place / part).symlink_to(ROOT / part)
    # Whatever was learnt, the gate lets it pass: limits count as the profile's file has them.
    profile = yaml.safe_load((ROOT / "lora_profiles/smoke-text.yaml").read_text())
    profile["gate"] = {"min_gain_over_base": None, "min_gain_over_champion": None}
    (made.place / "lora_profiles").mkdir()
    (made.place / "lora_profiles/smoke-text.yaml").write_text(yaml.safe_dump(profile))
    answers = []
    for changes in ("num_train_epochs=1", ""):
        ended = made.pipeline(changes)
        assert ended.returncode == 0, ended.stdout + ended.stderr
        mlflow.set_tracking_uri(made.store)
        answers.append(held_out(made, mlflow.MlflowClient()))
        if len(answers) == 1:
            promote = ("steps/promote.py", "--model", MODEL, "--version", "1")
            ended = made.run(*promote, "--out-dir", "promoted")
            assert ended.returncode == 0, ended.stderr
    rows = [
        {"asked": one["asked"], "1": one["tuned"], "2": two["tuned"]}
        for one, two in zip(*answers, strict=True)
        if one["tuned"] != two["tuned"] and two["tuned"].strip()
    ]
    assert rows, "both versions answer alike, so the test says nothing"
    return made, rows


@pytest.fixture(scope="module")
def served(
    line: tuple[Line, list[dict[str, Any]]], start: Any, open_page: Any
) -> Iterator[tuple[Any, str]]:
    """The champion's server with its follower, a gateway and a page with a desk before it."""
    made, _ = line
    run_id = (made.place / "promoted" / "run-id").read_text()
    follow = ("--run-id", run_id, "--follow", "champion", "--gpu", "cpu", "--out-dir", "served")
    ended = made.run("steps/deploy_vllm.py", *follow)
    assert ended.returncode == 0, ended.stderr
    manifest = made.place / "served" / "vllm.yaml"
    objects = {each["kind"]: each for each in yaml.safe_load_all(manifest.read_text())}
    sidecar = objects["Deployment"]["spec"]["template"]["spec"]["containers"][1]
    assert "steps/follow_alias.py" in sidecar["command"]
    with ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.chdir(made.place)
        server = stack.enter_context(local.start(manifest, free_port()))
        patch.undo()
        places = ("--adapters", str(server.folder / "adapters"), "--url", server.url)
        contract = ("--contract", str(server.folder / "config" / "contract.json"))
        alias = ("--model", MODEL, "--alias", "champion", "--interval", "1")
        stack.enter_context(running(made, "steps/follow_alias.py", *alias, *places, *contract))
        entry = {"url": server.url, "name": server.adapter, "uri": server.uri}
        gateway = stack.enter_context(start(server.contract, entry, refresh_s=1))
        port = free_port()
        desk = f"http://127.0.0.1:{port}"
        stack.enter_context(running(made, "-m", "loraline_cli.desk", "--port", str(port)))

        def alive() -> bool:
            with suppress(OSError), urllib.request.urlopen(f"{desk}/health"):
                return True
            return False

        until(alive, 60, "the desk")
        yield gateway, stack.enter_context(open_page(gateway.url, desk=desk))


def adapters(gateway: Any) -> dict[str, str]:
    """Registered versions that the gateway knows, and the names they are asked by."""
    models = gateway.client.get("/info").json()["models"]
    return {each["uri"]: each["id"] for each in models if each["parent"]}


def answer_on_the_page(page: Any, version: str, question: str) -> str:
    """The page's answer of a version to a question, asked as it was trained.

    The option is chosen by its version: the server calls the first one by the adapter's name until
    the follower has loaded it under a name of its own, which may be before or after the page opens.
    """
    page.wait_for_function("document.querySelector('#ask-task input')?.value")
    page.click("#ask-model input")
    page.get_by_role("option", name=f" · models:/{MODEL}/{version}").first.click()
    page.fill("#ask-box textarea", question)
    page.press("#ask-box textarea", "Enter")
    page.wait_for_selector("#ask-line .ll-line")
    said = page.inner_text("#ask-line .ll-line")
    assert "s in all" in said, said
    return str(page.input_value("#ask-answer textarea"))


def test_what_a_reviewer_promotes_is_what_answers_from_then_on(
    line: tuple[Line, list[dict[str, Any]]], served: tuple[Any, str], opened: Any
) -> None:
    row = line[1][0]
    gateway, url = served
    until(lambda: adapters(gateway).get(f"models:/{MODEL}/1"), 60, "version 1")
    page = opened(url)
    page.set_default_timeout(180_000)
    assert answer_on_the_page(page, "1", row["asked"]) == row["1"]

    page.get_by_role("tab", name="Review").click()
    page.wait_for_function(
        "document.querySelector('#review-cards')?.textContent.includes('candidate · 2')"
    )
    page.click("#review-promote")
    page.wait_for_function(
        "document.querySelector('#review-line')?.textContent.includes('Version 2 is the champion')"
    )

    until(lambda: adapters(gateway).get(f"models:/{MODEL}/2"), 120, "version 2")
    until(lambda: f"models:/{MODEL}/1" not in adapters(gateway), 60, "the end of version 1")
    page.reload()
    assert answer_on_the_page(page, "2", row["asked"]) == row["2"]

    # A program that names no version gets the champion, too.
    answer = gateway.client.post("/predict", data={"question": row["asked"]})
    assert answer.json()["predictions"][0]["caption"] == row["2"]
    assert answer.json()["model_uri"] == f"models:/{MODEL}/2"
