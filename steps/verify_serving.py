"""Compare a running server with the evaluation; exit code 1 where it differs.

Reads: the version that the deploy_vllm run rendered, its contract, the held-out rows, the answers
that evaluate measured. The key is VLLM_API_KEY of the environment.
Writes: `verification.json` with the problems and every row that differs, agreement and latency.

    python steps/verify_serving.py --run-id "$(cat outputs/latest-pipeline/deploy-vllm/run-id)" \
        --url http://127.0.0.1:8000
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from loraline.serving.agreement import (
    agreements,
    answer_problems,
    differences,
    measured_rows,
    refusals,
)
from loraline.step import step
from loraline.tracking import fingerprints, runs, store, tags

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

    from loraline.contract import Contract
    from loraline.serving.client import Served, Server

REPORT = "verification.json"
AT_ONCE = 8
SAMPLE = 10
"""Requests at a time for the answers, and one after another for the latency."""


@step
@click.option("--run-id", required=True, help="MLflow run of deploy_vllm.")
@click.option("--url", required=True, help="Address of the server.")
@click.option(
    "--min-agreement",
    type=click.FloatRange(0, 1),
    default=0.9,
    show_default=True,
    help="Share of answers that must equal the measured ones; GPU kernels round differently.",
)
def verify_serving(run_id: str, url: str, min_agreement: float, out_dir: Path) -> None:
    """Compare a running server with the evaluation: models, prompts, answers; measure latency."""
    from loraline import contract
    from loraline.serving import names
    from loraline.serving.client import Server
    from loraline.serving.prompt_agreement import prompt_problems

    client = store.connect()
    deploy_run = runs.upstream_run(client, run_id, "deploy_vllm")
    train_run = runs.ancestor(client, deploy_run, "train_qlora")
    rows = measured(client, deploy_run)
    running = Server(url)
    name = names.served_name(deploy_run.data.tags[tags.MODEL_NAME])
    with runs.adapter(train_run, deploy_run) as adapter:
        agreed = contract.read(adapter)
    running.check_health()
    served = running.models()
    problems, answers, numbers = [], {}, {}
    if name not in served:
        problems.append(f"the server does not list {name}, only {', '.join(served) or 'nothing'}")
    else:
        base = names.base_name(agreed) if names.base_name(agreed) in served else None
        answers = ask(running, rows, agreed, {"tuned": name, **({"base": base} if base else {})})
        problems += refusals(rows, answers) + answer_problems(rows, answers, min_agreement)
        problems += prompt_problems(running, name, agreed, rows, answers["tuned"])
        answered = [row for row, tuned in zip(rows, answers["tuned"], strict=True) if tuned.tokens]
        numbers = {**agreements(rows, answers), **latency(running, name, answered, agreed)}
    with runs.open_run(
        "verify_serving",
        name=f"verify {name}",
        fingerprint=fingerprints.fingerprint(__file__, {"upstream": run_id, "url": url}),
        upstream=deploy_run,
        parent=train_run,
    ) as run:
        import mlflow

        mlflow.log_metrics({**numbers, "rows": len(rows), "problems": len(problems)})
        mlflow.log_dict({"problems": problems, "rows": differences(rows, answers)}, REPORT)
        mlflow.set_tag("loraline.verified", "failed" if problems else "passed")
    for key, value in sorted(numbers.items()):
        click.echo(f"{key}: {value:.3g}")
    for problem in problems:
        click.echo(f"verify-serving: {problem}", err=True)
    if problems:
        raise SystemExit(1)
    click.echo(f"{running.name} serves what was measured")
    runs.hand_over(out_dir, run.info.run_id)


def measured(client: MlflowClient, deploy_run: Run) -> list[dict[str, Any]]:
    """The rows of the predictions table, each with its record."""
    import mlflow

    from loraline import records

    eval_run = runs.ancestor(client, deploy_run, "evaluate")
    data_run = runs.ancestor(client, eval_run, "prepare_data")
    table = mlflow.artifacts.load_dict(f"runs:/{eval_run.info.run_id}/predictions.json")
    with runs.dataset(client, data_run, "test") as dataset:
        held_out = records.read(dataset / "test.parquet")
    return measured_rows(table, held_out)


def ask(
    running: Server, rows: Sequence[dict[str, Any]], agreed: Contract, models: dict[str, str]
) -> dict[str, list[Served]]:
    """Greedy answers to every row by column of the predictions table: tuned, and base if served."""
    columns = {}
    for column, model in models.items():
        with ThreadPoolExecutor(AT_ONCE) as pool:
            answer = partial(attempt, running, model, agreed.max_new_tokens)
            columns[column] = list(pool.map(answer, rows))
    return columns


def attempt(running: Server, model: str, most: int, row: Mapping[str, Any]) -> Served:
    """A row's answer, empty when the server refuses the row."""
    from loraline.serving.client import Refused, Served

    try:
        return running.ask(model, row["record"], most)
    except Refused as error:
        return Served([], "", [], 0.0, str(error))


def latency(
    running: Server, name: str, rows: Sequence[dict[str, Any]], agreed: Contract
) -> dict[str, float]:
    """Seconds of whole answers, asked one after another."""
    most = agreed.max_new_tokens
    seconds = [running.ask(name, row["record"], most).seconds for row in rows[:SAMPLE]] or [0.0]
    return {
        "latency_seconds_median": statistics.median(seconds),
        "latency_seconds_max": max(seconds),
    }


if __name__ == "__main__":
    verify_serving()
