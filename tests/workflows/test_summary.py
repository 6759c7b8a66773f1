"""The closing table: what a run came to, in words, and what to do next."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

CARD: dict[str, Any] = {
    "metrics": {
        "bleu": {"base": [6.6, 5.0, 8.0], "tuned": [98.8, 97.0, 99.5]},
        "levenshtein": {"base": [0.9, None, None], "tuned": [0.01, 0.0, 0.02]},
    },
    "champion": None,
    "rows": 72.0,
    "evaluate": "e1",
    "train": "t1",
    "experiment": "1",
    "result": "passed",
    "reason": "all rules kept",
    "model": "tiny-mistral-lora",
    "version": "3",
    "alias": "candidate",
    "store": "sqlite:////somewhere/mlflow.db",
}


@pytest.fixture
def summary(script, tmp_path: Path):
    def run(**changes: Any) -> Result:
        gate = tmp_path / "quality-gate"
        gate.mkdir(exist_ok=True)
        (gate / "scorecard.json").write_text(json.dumps(CARD | changes))
        result = CliRunner().invoke(
            script("workflows/summary.py").summary, [str(tmp_path)], env={"COLUMNS": "200"}
        )
        assert result.exit_code == 0, result.output
        return result

    return run


def test_base_stands_beside_tuned_with_intervals(summary) -> None:
    printed = summary().stdout
    assert "72 held-out rows, with 95% intervals" in printed
    assert "6.600 (5.000 to 8.000)" in printed
    assert "98.800 (97.000 to 99.500)" in printed
    assert "champion" not in printed


def test_the_champion_has_a_column_of_its_own(summary) -> None:
    metrics = {"bleu": CARD["metrics"]["bleu"] | {"champion": [99.0, 98.0, 99.9]}}
    printed = summary(champion="2", metrics=metrics).stdout
    assert "champion v2" in printed
    assert "99.000 (98.000 to 99.900)" in printed


def test_a_candidate_that_passed_is_served_and_promoted_by_printed_commands(
    summary, tmp_path: Path
) -> None:
    (tmp_path / "deploy-vllm").mkdir()
    (tmp_path / "deploy-vllm" / "vllm.yaml").touch()
    printed = summary().stdout
    assert f"python steps/serve_local.py {tmp_path}/deploy-vllm/vllm.yaml" in printed
    (tmp_path.parent / "latest").unlink(missing_ok=True)
    (tmp_path.parent / "latest").symlink_to(tmp_path.name)
    printed = summary().stdout
    assert "passed: registered as models:/tiny-mistral-lora/3 @candidate" in printed
    assert "make serve" in printed
    assert "python steps/promote.py --model tiny-mistral-lora --version 3" in printed


def test_the_table_says_what_it_cost(summary) -> None:
    cost = {"train_seconds": 39.2, "train_tokens_per_second": 8004.0, "peak_memory_gib": None}
    assert "cost        trained in 39 s, 8,004 tokens/s\n" in summary(cost=cost).stdout
    assert "cost" not in summary().stdout


def test_a_rejection_is_said_in_words(summary) -> None:
    reason = "gain_over_champion_levenshtein_low -0.03947 is not above 0; rows 3 is not at least 20"
    printed = summary(result="failed", reason=reason, champion="1", version=None).stdout
    assert "FAILED: not surely better than champion v1 (gain_over_champion_leven" in printed
    assert "; rows 3 is not at least 20" in printed
    assert "docs/own_data.md, What comes out," in printed
    page = (Path(__file__).parents[2] / "docs" / "own_data.md").read_text()
    assert "\n## What comes out\n" in page
    assert "promote" not in printed


@pytest.mark.parametrize(
    ("store", "page"),
    [
        ("sqlite:////x/mlflow.db", "make mlflow, then http://127.0.0.1:5000/#/experiments/1/runs/"),
        ("http://mlflow:5000", "http://mlflow:5000/#/experiments/1/runs/"),
    ],
)
def test_the_runs_and_the_report_are_linked(summary, store: str, page: str) -> None:
    printed = summary(store=store).stdout
    assert f"{page}t1\n" in printed
    assert f"{page}e1/artifacts (report.html)" in printed


def test_a_metric_of_ones_own_stands_in_the_table(summary) -> None:
    metrics = CARD["metrics"] | {"word_error": {"base": [0.9, 0.8, 1], "tuned": [0.123, 0.1, 0.2]}}
    printed = summary(metrics=metrics, better={"word_error": "lower"}).stdout
    (row,) = [line for line in printed.splitlines() if "word_error" in line]
    assert "0.123 (0.100 to 0.200)" in row and "lower" in row
