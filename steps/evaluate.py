"""Measure base and adapter on the held-out rows, at the precision that will serve.

Reads: the logged model of the train_qlora run, `dataset/` of its prepare_data run.
Writes: `predictions.json` (base beside tuned, with token IDs), metrics on this run, on the training
run and on the logged model.

    python steps/evaluate.py --run-id "$(cat outputs/run-id)"
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from loraline import metrics, tracking
from loraline.step import step

if TYPE_CHECKING:
    from loraline.contract import Contract
    from loraline.encoding import Encoder, Row
    from loraline.generation import Answer
    from loraline.models import Base
    from loraline.records import Record


@dataclass(frozen=True)
class Measurement:
    """What one model did on the held-out rows."""

    answers: list[Answer]
    nll: list[float]


@step
@click.option("--run-id", required=True, help="MLflow run of train_qlora.")
def evaluate(run_id: str, out_dir: Path, force: bool) -> None:
    """Answer the held-out rows with base and adapter; log the metrics side by side."""
    client = tracking.connect()
    train_run = tracking.upstream_run(client, run_id, "train_qlora")
    data_run = tracking.ancestor(client, train_run, "prepare_data")
    fingerprint = tracking.fingerprint(__file__, {"upstream": run_id})
    if not force and (done := tracking.finished_run(client, "evaluate", fingerprint)):
        click.echo(f"evaluation of run {done.info.run_id} (reused)")
        tracking.hand_over(out_dir, done.info.run_id)
        return

    import mlflow

    from loraline import contract, models, records
    from loraline.encoding import Encoder

    with (
        tracking.open_run(
            "evaluate",
            name=f"evaluate {train_run.info.run_name}",
            fingerprint=fingerprint,
            upstream=train_run,
            parent=train_run,
        ) as run,
        tracking.artifacts(client, data_run.info.run_id, "dataset") as dataset,
        tracking.adapter(train_run) as adapter,
    ):
        agreed = contract.read(adapter)
        base = models.locate_measured(agreed)
        held_out = records.read(dataset / "test.parquet")
        encoder = Encoder.of(agreed, base)
        rows = [encoder.encode(record) for record in held_out]
        measured = measure(agreed, base, adapter, encoder, rows)
        answer_format = tracking.profile(client, train_run).answer_format
        mlflow.log_table(predictions(held_out, measured), "predictions.json")
        numbers = {
            f"{model}_{name}": value
            for model, found in measured.items()
            for name, value in score(found, held_out, rows, answer_format).items()
        }
        log_numbers(client, numbers, run, train_run, rows=len(rows))
    for name in ("bleu", "levenshtein", "exact_match", "perplexity"):
        click.echo(
            f"{name}: base {numbers[f'base_{name}']:.3f}, tuned {numbers[f'tuned_{name}']:.3f}"
        )
    tracking.hand_over(out_dir, run.info.run_id)


def measure(
    agreed: Contract, base: Base, adapter: Path, encoder: Encoder, rows: Sequence[Row]
) -> dict[str, Measurement]:
    """Base and tuned, in one load of the base."""
    from loraline import generation, models, progress

    loaded: Any = models.load(base, agreed.modality, quantize=False, dtype=agreed.dtype)
    measured = {}
    for name in ("base", "tuned"):
        model = models.attach(loaded, adapter) if name == "tuned" else loaded.eval()
        with progress.bar(f"evaluate {name}", 2 * len(rows)) as advance:
            nll = generation.negative_log_likelihoods(model, encoder, rows, advance)
            answers = generation.answers(model, encoder, rows, agreed.max_new_tokens, advance)
        measured[name] = Measurement(answers, nll)
    return measured


def score(
    measured: Measurement, held_out: Sequence[Record], rows: Sequence[Row], answer_format: str
) -> dict[str, float]:
    """Headline metrics and counts of one model; an empty or cut answer is scored as it is."""
    found = [answer.text for answer in measured.answers]
    wanted = [record.answer for record in held_out]
    tokens = [len(row.answer) for row in rows]
    return {
        "bleu": metrics.bleu(found, wanted, answer_format),
        "levenshtein": metrics.levenshtein(found, wanted, answer_format),
        "exact_match": metrics.exact_match(found, wanted, answer_format),
        "eval_loss": metrics.eval_loss(measured.nll, tokens),
        "perplexity": metrics.perplexity(measured.nll, tokens),
        "empty_answers": sum(not text for text in found),
        "truncated_answers": sum(answer.truncated for answer in measured.answers),
    }


def predictions(
    held_out: Sequence[Record], measured: dict[str, Measurement]
) -> dict[str, list[Any]]:
    """Columns of the predictions table, one entry a held-out row."""
    table: dict[str, list[Any]] = {
        "row": list(range(len(held_out))),
        "question": [record.question for record in held_out],
        "reference": [record.answer for record in held_out],
    }
    for model, found in measured.items():
        table[model] = [answer.text for answer in found.answers]
        table[f"{model}_tokens"] = [answer.tokens for answer in found.answers]
        table[f"{model}_nll"] = found.nll
    return table


def log_numbers(
    client: Any, numbers: dict[str, float], run: Any, train_run: Any, *, rows: int
) -> None:
    """Log the numbers here and where a reviewer compares: the training run and the logged model."""
    import mlflow

    # MLflow stores infinity as the largest float, which would look like a number.
    finite = {key: value if math.isfinite(value) else math.nan for key, value in numbers.items()}
    mlflow.log_metrics({**finite, "rows": rows}, run_id=run.info.run_id)
    mlflow.log_metrics(
        finite,
        run_id=train_run.info.run_id,
        model_id=train_run.data.tags[tracking.MODEL_ID],
    )


if __name__ == "__main__":
    evaluate()
