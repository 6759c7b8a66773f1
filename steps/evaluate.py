"""Measure base, adapter and champion on the held-out rows, at the precision that will serve.

Reads: the logged model of the train_qlora run, `dataset/` of its prepare_data run, the champion.
Writes: `predictions.json` (with token IDs), `measurements.json` (intervals, fingerprints),
`report.html`, `contact_sheet.png`, metrics on this run, the training run and the logged model.

    python steps/evaluate.py --run-id "$(cat outputs/run-id)"
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from loraline.step import recipes_option, step
from loraline.tracking import (
    datasets,
    description,
    fingerprints,
    identity,
    prompts,
    run_profile,
    runs,
    store,
    tags,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

    from loraline.evaluation.measurement import Comparison, Measurement
    from loraline.evaluation.report import Evaluation


@step
@click.option("--run-id", required=True, help="MLflow run of train_qlora.")
@click.option(
    "--engine",
    type=click.Choice(["auto", "hf", "vllm"]),
    default="auto",
    show_default=True,
    help="Generate with Hugging Face or with vLLM; auto takes vLLM where there is a GPU.",
)
@recipes_option
def evaluate(run_id: str, engine: str, recipes: dict[str, Any], out_dir: Path, force: bool) -> None:
    """Answer the held-out rows with base, adapter and champion; log the metrics side by side."""
    from loraline.evaluation import measurement, plugins
    from loraline.tracking import registry

    client = store.connect()
    train_run = runs.upstream_run(client, run_id, "train_qlora")
    data_run = runs.ancestor(client, train_run, "prepare_data")
    recipe = run_profile.of_training(client, train_run)
    model_id = runs.model_id(train_run)
    champion = registry.other_champion(client, recipe.registered_model, model_id)
    chosen = measurement.chosen_engine(engine, recipe.serve_dtype)
    # Without the --set of the training, whose limits are no concern of the evaluation.
    custom_metrics = plugins.load(run_profile.as_today(train_run, (), recipes).metrics)
    against = champion and [champion.source, str(champion.version)]
    inputs = {"upstream": run_id, "engine": chosen, "champion": against}
    if custom_metrics:
        inputs["metrics"] = [[plugin.name, plugin.digest] for plugin in custom_metrics]
    fingerprint = fingerprints.fingerprint(__file__, inputs)
    if not force and (finished := runs.finished_run(client, "evaluate", fingerprint)):
        click.echo(f"evaluation of run {finished.info.run_id} (reused)")
        runs.hand_over(out_dir, finished.info.run_id)
        return

    import mlflow
    import yaml

    from loraline import contract, records
    from loraline.base import locate
    from loraline.base.encoding import Encoder
    from loraline.evaluation import metrics, report
    from loraline.evaluation.champion import comparable_champion

    started = time.monotonic()
    with (
        runs.open_run(
            "evaluate",
            name=f"evaluate {train_run.info.run_name}",
            fingerprint=fingerprint,
            upstream=train_run,
            parent=train_run,
        ) as run,
        runs.dataset(client, data_run, "test") as dataset,
        runs.adapter(train_run) as adapter,
    ):
        agreed = contract.read(adapter)
        # The contract says whether rows show videos, which only hf measures.
        chosen = measurement.chosen_engine(engine, recipe.serve_dtype, agreed.max_videos)
        base = locate.locate_measured(agreed)
        held_out = records.read(dataset / "test.parquet")
        encoder = Encoder.of(agreed, base)
        digests = measurement.fingerprints(encoder, agreed, held_out)
        mlflow.set_tags({f"{tags.MEASURED}.{key}": digest for key, digest in digests.items()})
        mlflow.set_tag(tags.ADAPTER_DIGEST, train_run.data.tags[tags.ADAPTER_DIGEST])
        mlflow.set_tag(tags.DATASET_DIGEST, identity.recorded(data_run, tags.DATASET_DIGEST))
        datasets.log_dataset(data_run, run, "evaluation")
        prompts.link(client, data_run, run)
        mlflow.log_params({"engine": chosen, "dtype": agreed.dtype})
        mlflow.log_param("quantization", agreed.quantization)
        mlflow.set_tag(tags.METRICS, plugins.as_tag(custom_metrics))
        compared = comparable_champion(champion, held_out, agreed, digests)
        with compared as (other, champion_story):
            adapters = {"base": None, "tuned": adapter, **other}
            measured = measurement.measure(chosen, agreed, base, adapters, encoder, held_out)
        mlflow.log_table(measurement.predictions(held_out, measured), "predictions.json")
        comparison = measurement.compare(
            {
                model: measurement.scores(answered, held_out, recipe.answer_format, custom_metrics)
                for model, answered in measured.items()
            }
        )
        headline = (*metrics.HEADLINE, *(plugin.name for plugin in custom_metrics))
        log_numbers(comparison, measured, headline, run, train_run)
        log_details(comparison, digests, chosen, recipe.answer_format)
        engine_took = f"{chosen}, {time.monotonic() - started:,.1f} s"
        evaluation = report.Evaluation(
            train_run.info.run_name,
            report.facts(agreed, train_run, data_run, champion_story),
            held_out,
            measured,
            comparison,
            recipe.answer_format,
            report.curves(client, train_run),
            yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False),
            agreed.prompt,
            report.costs(train_run, engine_took),
            {plugin.name: plugin.higher_is_better for plugin in custom_metrics},
        )
        log_report(client, evaluation, run, train_run)
    print_headline(comparison, headline)
    runs.hand_over(out_dir, run.info.run_id)


def log_numbers(
    comparison: Comparison,
    measured: Mapping[str, Measurement],
    headline: Sequence[str],
    run: Run,
    train_run: Run,
) -> None:
    """Log all numbers here, and the headline where a reviewer compares runs and models."""
    import mlflow

    from loraline.evaluation import measurement

    numbers = measurement.numbers(comparison, measured)
    tuned = measured["tuned"]
    sizes = {"rows": len(tuned.answers), "target_tokens": sum(tuned.tokens)}
    mlflow.log_metrics({**numbers, **sizes}, run_id=run.info.run_id)
    mlflow.log_metrics(
        {
            f"{model}_{name}": numbers[f"{model}_{name}"]
            for model in comparison.values
            for name in headline
        },
        run_id=train_run.info.run_id,
        model_id=train_run.data.tags[tags.MODEL_ID],
    )


def log_details(
    comparison: Comparison, digests: Mapping[str, str], engine: str, answer_format: str
) -> None:
    """Log what the numbers mean: intervals, how they were made, what they were measured on."""
    import mlflow

    from loraline.evaluation import bootstrap, metrics

    mlflow.log_dict(
        {
            **asdict(comparison),
            "interval": {"level": bootstrap.LEVEL, "resamples": bootstrap.RESAMPLES},
            "bleu_signature": metrics.bleu_signature(answer_format),
            "engine": engine,
            "fingerprints": dict(digests),
        },
        "measurements.json",
    )


def log_report(client: MlflowClient, evaluation: Evaluation, run: Run, train_run: Run) -> None:
    """Log the page, the images' sheet, and the model card as the training run's description."""
    import mlflow

    from loraline.evaluation import report
    from loraline.evaluation.contact_sheet import contact_sheet

    mlflow.log_text(report.render(evaluation), "report.html")
    if sheet := contact_sheet(evaluation):
        mlflow.log_figure(sheet, "contact_sheet.png")
    card = report.model_card(evaluation, runs.page_address(run, "report.html"))
    mlflow.log_text(card, "model_card.md")
    # An earlier verdict of the gate stays in the description, as it stays in the tags.
    note = client.get_run(train_run.info.run_id).data.tags.get(tags.NOTE, "")
    note = description.of(description.verdict(note), card)
    client.set_tag(train_run.info.run_id, tags.NOTE, note)


def print_headline(comparison: Comparison, headline: Sequence[str]) -> None:
    for name in headline:
        values = (f"{model} {row[name].value:.3f}" for model, row in comparison.values.items())
        gains = (
            f"gain over {other} {gains[name].low:.3f} to {gains[name].high:.3f}"
            for other, gains in comparison.gains.items()
        )
        click.echo(f"{name}: {', '.join(values)} ({', '.join(gains)})")


if __name__ == "__main__":
    evaluate()
