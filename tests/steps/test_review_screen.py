"""Review and Train in a Chromium, before a real desk and a real registry."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import pytest
import uvicorn

from gateway.keys import entry, new_key
from loraline.tracking import registry
from loraline_cli.desk.app import create_app
from tests.cli.test_desk_training import logged, run_folder
from tests.gateway.conftest import _stub, settings_for, start, stub, stub_url
from tests.gateway.ui.conftest import browser, open_page, opened

__all__ = ["_stub", "browser", "open_page", "opened", "settings_for", "start", "stub", "stub_url"]

pytestmark = pytest.mark.slow

MODEL = "mistral-7b-lora"


@pytest.fixture
def desk_page(
    start: Any, open_page: Any, stub: Any, workplace: Path
) -> Iterator[tuple[str, dict[str, str]]]:
    """A page with a desk: its address, and the keys of a reviewer who trains and of a guest."""
    from gateway.ui import server

    made = {name: new_key(name) for name in ("rita", "gus")}
    file = workplace / "keys.json"
    entries = [json.loads(entry(key)) for _, key in made.values()]
    entries[0]["roles"] = ["reviewer", "trainer"]
    file.write_text(json.dumps(entries))
    listening = server.bind("127.0.0.1", 0)
    running = uvicorn.Server(server.config(create_app(file)))
    thread = threading.Thread(target=running.run, args=([listening],), daemon=True)
    thread.start()
    desk = f"http://127.0.0.1:{listening.getsockname()[1]}"
    with start(api_keys_file=file) as gateway, open_page(gateway.url, desk=desk) as url:
        yield url, {name: key for name, (key, _) in made.items()}
    running.should_exit = True
    thread.join(10)


def signed_in(opened: Any, url: str, key: str, **options: Any) -> Any:
    page = opened(url, **options)
    page.fill("#key", key)
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_function("document.querySelector('#ask-task input')?.value")
    return page


def says(page: Any, field: str, words: str) -> None:
    page.wait_for_function(
        "([field, words]) => document.querySelector(field)?.textContent.includes(words)",
        arg=[field, words],
    )


def test_a_reviewer_promotes_what_they_saw_and_a_guest_sees_nothing(
    desk_page: Any, opened: Any, candidate: Any, step: Any
) -> None:
    url, keys = desk_page
    run = candidate(name="one")
    with mlflow.start_run(run_id=run):
        mlflow.log_text("<h1>Report of it</h1>", "report.html")
        worst = {"row": [0], "question": ["Who?"], "reference": ["Ann"], "tuned": ["<b>Bob</b>"]}
        mlflow.log_table(worst, "predictions.json")
    step("quality_gate", "--run-id", run)

    guest = signed_in(opened, url, keys["gus"])
    assert guest.get_by_role("tab", name="Review").count() == 0
    page = signed_in(opened, url, keys["rita"])
    page.get_by_role("tab", name="Review").click()
    says(page, "#review-cards", "candidate · 1")
    says(page, "#review-cards", "<b>Bob</b>")
    page.click("#review-open-report")
    frame = page.frame_locator("#review-report iframe")
    assert frame.locator("h1").inner_text() == "Report of it"

    page.click("#review-reject")
    says(page, "#review-line", "say why")
    page.click("#review-promote")
    says(page, "#review-line", "Version 1 is the champion now.")
    says(page, "#review-history", "promoted by rita")
    champion = registry.version_of(mlflow.MlflowClient(), MODEL, "champion")
    assert champion is not None and str(champion.version) == "1"


def training_form(page: Any, setting: str, preset: str, value: str) -> None:
    """Open the Train screen with smoke-text, and set a key of it that has this preset."""
    page.get_by_role("tab", name="Train").click()
    page.wait_for_function("document.querySelector('#train-profile input')?.value")
    page.click("#train-profile input")
    page.get_by_role("option", name="smoke-text", exact=True).click()
    page.get_by_role("button", name="Settings of the profile").click()
    field = page.get_by_label(setting, exact=True)
    # The form of the profile that was chosen before is replaced.
    pytest.importorskip("playwright.sync_api").expect(field).to_have_value(preset)
    field.fill(value)
    field.press("Tab")
    says(page, "#train-overrides", f"{setting}={value}")


def test_a_trainer_fills_the_form_and_sees_what_the_data_are_like(
    desk_page: Any, opened: Any
) -> None:
    url, keys = desk_page
    page = signed_in(opened, url, keys["rita"])
    training_form(page, "r", "8", "4")

    page.set_default_timeout(90_000)
    page.click("#train-check")
    says(page, "#train-line", "The data can be prepared.")
    assert page.frame_locator("#train-checked iframe").locator("body").inner_text()


def step_of(point: Any) -> int:
    return int(point.step)


def test_the_loss_of_each_training_is_seen_when_it_is_chosen(
    desk_page: Any, opened: Any, workplace: Path
) -> None:
    url, keys = desk_page
    run_folder(workplace, "pipeline-none")
    for number in (1, 2):
        run_folder(workplace, f"pipeline-{number}")
        losses = {step: number + 10 / step for step in range(1, 60)}
        logged(f"pipeline-{number}", str(number), loss=losses, eval_loss={59: number + 0.5})
    page = signed_in(opened, url, keys["rita"])
    page.get_by_role("tab", name="Train").click()
    # The latest is chosen.
    says(page, "#train-phase", "pipeline-2")
    says(page, "#train-loss", "Training loss")
    # The form of the profile comes after the trainings, and leaves what is said of them.
    page.wait_for_function("document.querySelector('#train-overrides')")
    for number in (1, 2):
        page.click("#train-run input")
        page.get_by_role("option", name=f"pipeline-{number}", exact=True).click()
        says(page, "#train-loss", f"Training loss {number + 10 / 59:.4g} at step 59;")
        ends = page.locator("#train-loss .ll-ends").all_inner_texts()
        assert [each.split() for each in ends] == [[f"{number + 10:d}"], ["0", "step", "59"]]
        colours = "['polyline', 'circle'].map((mark) => getComputedStyle(document.querySelector("
        colours += (
            "`#train-loss svg .ll-validation ${mark}`))[mark == 'circle' ? 'fill' : 'stroke'])"
        )
        line, dot = page.evaluate(colours)
        assert line == dot != "rgb(0, 0, 0)"

    page.click("#train-run input")
    page.get_by_role("option", name="pipeline-none", exact=True).click()
    says(page, "#train-loss", "No loss is logged")
    assert not page.get_by_role("button", name="The loss as a table").is_visible()


def test_a_training_is_started_in_the_browser_and_watched_to_its_end(
    desk_page: Any, opened: Any, workplace: Path
) -> None:
    url, keys = desk_page
    page = signed_in(opened, url, keys["rita"])
    training_form(page, "num_train_epochs", "8", "1")

    # The desk was started without a cluster.
    page.click("#train-submit")
    says(page, "#train-line", "started without --namespace")

    page.set_default_timeout(60_000)
    page.click("#train-start")
    says(page, "#train-phase", "Running")
    says(page, "#train-nodes", "prepare-data")
    page.set_default_timeout(600_000)
    # Curves grow while it trains: the first point comes long before the last.
    says(page, "#train-loss figcaption", "Training loss")
    assert "Running" in page.inner_text("#train-phase")
    says(page, "#train-phase", "Succeeded")
    says(page, "#train-loss figcaption", "validation loss")
    assert page.locator("#train-loss svg .ll-training polyline").count() == 1
    assert page.locator("#train-loss svg .ll-validation circle").count() >= 1
    page.get_by_role("button", name="The loss as a table").click()
    table = page.locator("#train-loss-table tbody tr")
    table.first.wait_for()
    nodes = page.locator("#train-nodes").inner_text()
    for step in ("prepare-data", "train-qlora", "evaluate", "quality-gate"):
        assert f"✔ {step}" in nodes
    assert "quality-gate" in page.input_value("#train-log textarea")
    assert not page.locator("#train-stop").is_enabled()
    (run,) = mlflow.MlflowClient().search_runs(
        [mlflow.get_experiment_by_name("vllm-lora-training").experiment_id],
        "tags.`loraline.step` = 'train_qlora'",
    )
    assert run.info.status == "FINISHED" and float(run.data.params["num_train_epochs"]) == 1
    last = max(mlflow.MlflowClient().get_metric_history(run.info.run_id, "loss"), key=step_of)
    assert f"Training loss {last.value:.4g} at step {last.step};" in page.inner_text("#train-loss")
    assert table.last.inner_text().split("\t")[:2] == [str(last.step), f"{last.value:.4g}"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_serious_fault_in_review_and_train_and_both_fit_a_phone(
    scheme: str, desk_page: Any, opened: Any, candidate: Any, step: Any, workplace: Path
) -> None:
    run_folder(workplace, "pipeline-1")
    logged("pipeline-1", loss={1: 4.0, 2: 2.0, 3: 1.0}, eval_loss={3: 1.5})
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    url, keys = desk_page
    step("quality_gate", "--run-id", candidate(name="one"))
    page = signed_in(opened, url, keys["rita"], color_scheme=scheme)
    for name, field, words in (
        ("Review", "#review-cards", "candidate · 1"),
        ("Train", "#train-loss", "Training loss 1 at step 3"),
    ):
        page.set_viewport_size({"width": 1280, "height": 900})
        page.get_by_role("tab", name=name).click()
        says(page, field, words)
        # What becomes usable fades in, and is faint on the way.
        page.wait_for_function(
            "[...document.querySelectorAll('button')].every(b => !b.getAnimations().length)"
        )
        serious = [
            (each["id"], [node["html"][:160] for node in each["nodes"][:4]])
            for each in axe.Axe().run(page).response["violations"]
            if each["impact"] in ("serious", "critical")
        ]
        assert serious == [], name
        page.set_viewport_size({"width": 360, "height": 740})
        assert page.evaluate("document.documentElement.scrollWidth") <= 360, name
