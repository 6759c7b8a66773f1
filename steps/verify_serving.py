"""Whether a running server serves what was measured; exit code 1 when it does not.

Reads: the version that the deploy_vllm run rendered, its contract, the held-out rows, the answers
that evaluate measured. The key is VLLM_API_KEY of the environment.
Writes: `verification.json` with what was found and every row that differs, agreement and latency.

    python steps/verify_serving.py --run-id "$(cat outputs/run-id)" --url http://127.0.0.1:8000
"""

from __future__ import annotations

import io
import statistics
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from loraline import tracking
from loraline.errors import UserError
from loraline.step import step

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

    from loraline.client import Served, Server
    from loraline.contract import Contract
    from loraline.encoding import Encoder
    from loraline.records import Record

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
    help="Share of answers that must be the measured ones; kernels round differently.",
)
def verify_serving(run_id: str, url: str, min_agreement: float, out_dir: Path, force: bool) -> None:
    """Hold a running server against what was measured: models, prompts, answers, latency."""
    from loraline import contract, server
    from loraline.client import Server

    client = tracking.connect()
    deploy_run = tracking.upstream_run(client, run_id, "deploy_vllm")
    train_run = tracking.ancestor(client, deploy_run, "train_qlora")
    rows = measured(client, deploy_run)
    running = Server(url)
    name = server.served_name(deploy_run.data.tags[tracking.MODEL_NAME])
    with tracking.adapter(train_run) as adapter:
        agreed = contract.read(adapter)
    served = running.models() if running.is_healthy() else {}
    problems, answers, numbers = [], {}, {}
    if name not in served:
        problems.append(f"the server does not list {name}, only {', '.join(served) or 'nothing'}")
    else:
        base = server.base_name(agreed) if server.base_name(agreed) in served else None
        answers = ask(running, rows, agreed, {"tuned": name, **({"base": base} if base else {})})
        problems += other_answers(rows, answers, min_agreement)
        problems += other_prompts(running, name, agreed, rows, answers["tuned"])
        numbers = {**agreements(rows, answers), **latency(running, name, rows, agreed)}
    with tracking.open_run(
        "verify_serving",
        name=f"verify {name}",
        fingerprint=tracking.fingerprint(__file__, {"upstream": run_id, "url": url}),
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
    click.echo(f"{url} serves what was measured")
    tracking.hand_over(out_dir, run.info.run_id)


def measured(client: MlflowClient, deploy_run: Run) -> list[dict[str, Any]]:
    """The rows of the predictions table, each with its record."""
    import mlflow

    from loraline import records

    eval_run = tracking.ancestor(client, deploy_run, "evaluate")
    data_run = tracking.ancestor(client, eval_run, "prepare_data")
    table = mlflow.artifacts.load_dict(f"runs:/{eval_run.info.run_id}/predictions.json")
    with tracking.artifacts(client, data_run.info.run_id, "dataset/test.parquet") as file:
        held_out = records.read(file)
    rows = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
    return [{**row, "record": held_out[row["row"]]} for row in rows]


def ask(
    running: Server, rows: Sequence[dict[str, Any]], agreed: Contract, models: dict[str, str]
) -> dict[str, list[Served]]:
    """Greedy answers to every row by column of the predictions table: tuned, and base if served."""
    found = {}
    for column, model in models.items():
        with ThreadPoolExecutor(AT_ONCE) as pool:
            answer = partial(attempt, running, model, agreed.max_new_tokens)
            found[column] = list(pool.map(answer, rows, [column] * len(rows)))
    return found


def attempt(running: Server, model: str, most: int, row: Mapping[str, Any], column: str) -> Served:
    """A row's answer; none from a server that refuses what had no answer when it was measured."""
    from loraline.client import Served

    try:
        return running.ask(model, row["record"], most)
    except UserError:
        if row[f"{column}_tokens"]:
            raise
        return Served([], "", [], 0.0)


def agreements(
    rows: Sequence[dict[str, Any]], answers: dict[str, list[Served]]
) -> dict[str, float]:
    """Share of answers that are token for token the measured ones."""
    return {
        f"{column}_agreement": sum(
            each.tokens == row[f"{column}_tokens"] for row, each in zip(rows, found, strict=True)
        )
        / len(rows)
        for column, found in answers.items()
    }


def other_answers(
    rows: Sequence[dict[str, Any]], answers: dict[str, list[Served]], least: float
) -> list[str]:
    """What is wrong with the answers: not the measured ones, or the base's."""
    problems = []
    for key, share in agreements(rows, answers).items():
        column = key.removesuffix("_agreement")
        if share < least:
            first = differences(rows, {column: answers[column]})[0]
            problems.append(
                f"{share:.0%} of the {column} answers are the measured ones, below {least:.0%}; "
                f"row {first['row']} first: measured {first['measured']!r}, "
                f"served {first['served']!r}"
            )
    apart = [row["tuned_tokens"] != row["base_tokens"] for row in rows]
    if "base" in answers and any(apart):
        pairs = zip(answers["tuned"], answers["base"], strict=True)
        if all(tuned.tokens == base.tokens for tuned, base in pairs):
            problems.append("adapter and base give the same answers, so the adapter has no effect")
    return problems


def other_prompts(
    running: Server,
    name: str,
    agreed: Contract,
    rows: Sequence[dict[str, Any]],
    answers: Sequence[Served],
) -> list[str]:
    """What is wrong with the tokens that the server makes of a request: template, pixel limits."""
    from loraline import models
    from loraline.encoding import Encoder

    base = models.Base(models.locate_tokenizer(agreed), agreed.base_revision, {})
    encoder = Encoder.of(agreed, base)
    for row, answer in zip(rows, answers, strict=True):
        if not answer.prompt:
            continue
        wanted = encoder.encode(row["record"]).prompt
        if answer.prompt != wanted:
            return [
                f"the prompt of row {row['row']} is {len(answer.prompt)} tokens on the server and "
                f"{len(wanted)} in training: another chat template, prompt or pixel limit"
            ]
    return other_pixels(running, name, agreed, encoder) if agreed.modality == "vision" else []


def other_pixels(running: Server, name: str, agreed: Contract, encoder: Encoder) -> list[str]:
    """Images just beyond both limits, which held-out rows may not hold."""
    for limit, area in (("min_pixels", agreed.min_pixels), ("max_pixels", agreed.max_pixels)):
        assert area is not None
        record = drawing(agreed, round((area * (0.25 if limit == "min_pixels" else 4)) ** 0.5))
        wanted = len(encoder.encode(record).prompt)
        found = len(running.ask(name, record, 1).prompt)
        if found != wanted:
            return [
                f"an image beyond {limit} is {found} tokens on the server, {wanted} in training"
            ]
    return []


def drawing(agreed: Contract, edge: int) -> Record:
    from PIL import Image

    from loraline.records import from_prompt

    file = io.BytesIO()
    Image.new("RGB", (max(edge, 4), max(edge, 4)), "white").save(file, "PNG")
    return from_prompt(agreed.prompt, "", "", file.getvalue())


def latency(
    running: Server, name: str, rows: Sequence[dict[str, Any]], agreed: Contract
) -> dict[str, float]:
    """Seconds of whole answers, asked one after another."""
    taken = [
        running.ask(name, row["record"], agreed.max_new_tokens).seconds
        for row in [row for row in rows if row["tuned_tokens"]][:SAMPLE]
    ] or [0.0]
    return {"latency_seconds_median": statistics.median(taken), "latency_seconds_max": max(taken)}


def differences(
    rows: Sequence[dict[str, Any]], answers: dict[str, list[Served]]
) -> list[dict[str, Any]]:
    return [
        {
            "row": row["row"],
            "model": column,
            "measured": row[column],
            "served": each.text,
            "first_other_token": next(
                (
                    place
                    for place, pair in enumerate(zip(row[f"{column}_tokens"], each.tokens))  # noqa: B905 - the shorter one ends it
                    if pair[0] != pair[1]
                ),
                min(len(row[f"{column}_tokens"]), len(each.tokens)),
            ),
        }
        for column, found in answers.items()
        for row, each in zip(rows, found, strict=True)
        if each.tokens != row[f"{column}_tokens"]
    ]


if __name__ == "__main__":
    verify_serving()
