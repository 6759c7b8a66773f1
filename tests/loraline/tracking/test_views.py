"""The experiment opens as one of trainings, with a saved view of the columns that matter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from loraline.tracking import runs, store, tags, views
from tests.gateway.ui.conftest import browser

__all__ = ["browser"]


def experiment() -> Any:
    return store.connect().get_experiment_by_name("vllm-lora-training")


def test_a_new_experiment_has_the_view(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = experiment().tags
    assert result["mlflow.experimentKind"] == "custom_model_development"
    view = json.loads(result["mlflow.sharedViewState.trainings"])
    assert view["name"] == "Trainings"
    state = json.loads(view["state"])
    assert {"metrics.`tuned_bleu`", "attributes.`Dataset`", "params.`r`"} <= set(
        state["selectedColumns"]
    )
    # MLflow reads the filter, too.
    store.connect().search_runs([experiment().experiment_id], state["searchFilter"])


@pytest.mark.slow
def test_mlflows_page_shows_the_trainings_with_these_columns(
    mlflow_server: str, browser: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "seen")
    client = store.connect()
    number = client.get_experiment_by_name("seen").experiment_id
    for name, step in (("a-training", "train_qlora"), ("an-evaluation", "evaluate")):
        run = client.create_run(number, run_name=name)
        client.set_tag(run.info.run_id, "loraline.step", step)
        client.log_metric(run.info.run_id, "tuned_bleu", 71.25)
        client.log_param(run.info.run_id, "r", 8)
        client.log_text(run.info.run_id, "<h1>Verdict of the page</h1>", "report.html")
        place = runs.page_address(run, "report.html")
        client.set_tag(run.info.run_id, tags.NOTE, f"# Card\n\n[The report]({place})")
        client.set_terminated(run.info.run_id)

    page = browser.new_context(locale="en-GB", viewport={"width": 2400, "height": 900}).new_page()
    page.set_default_timeout(60_000)
    address = f"{mlflow_server}/#/experiments/{number}/runs"
    page.goto(f"{address}?viewStateShareKey={views.TRAININGS}")
    page.get_by_text("a-training").first.wait_for()
    for column in ("metrics.`tuned_bleu`", "attributes.`Dataset`", "params.`r`"):
        page.locator(f"[role=columnheader][col-id='{column}']").wait_for(state="attached")
    assert page.get_by_text("71.25").count()
    assert page.get_by_text("an-evaluation").count() == 0

    # A run's description leads to its report, which MLflow opens in a tab of its own.
    page.goto(f"{address}/{run.info.run_id}")
    with page.expect_popup() as opened:
        page.get_by_role("link", name="The report").click()
    report = opened.value.frame_locator("iframe").get_by_text("Verdict of the page")
    report.wait_for(timeout=60_000)
    page.context.close()
