"""Throughput and latency of a running server: base beside adapter, over request rates.

Reads: `benchmark/` of the prepare_data run, its held-out rows as requests; vllm is installed here.
The key is VLLM_API_KEY of the environment.
Writes: `benchmark.json` (one row a model, workload and rate), `throughput.png` and `latency.png`.

    python steps/benchmark_serving.py --run-id "$(cat outputs/latest-pipeline/deploy-vllm/run-id)" \
        --url http://127.0.0.1:8000
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from loraline.errors import UserError
from loraline.serving import vllm_bench
from loraline.step import step
from loraline.tracking import fingerprints, runs, store, tags

if TYPE_CHECKING:
    from matplotlib.figure import Figure


REPORT = "benchmark.json"
COLD_START, ANSWER_512, PER_MINUTE = 60.0, 5.0, 10.0
"""Targets: seconds to a ready server, seconds for 512 tokens, requests a minute."""


@step
@click.option("--run-id", required=True, help="MLflow run of deploy_vllm.")
@click.option("--url", required=True, help="Address of the server.")
@click.option(
    "--rate",
    "rates",
    multiple=True,
    type=click.FloatRange(0, min_open=True),
    default=(1.0, 4.0, float("inf")),
    help="Requests per second; inf sends all at once.  [default: 1, 4 and inf]",
)
@click.option(
    "--prompts",
    type=click.IntRange(1),
    default=50,
    show_default=True,
    help="Requests at each rate.",
)
@click.option(
    "--goodput",
    default="ttft:1000 tpot:100",
    show_default=True,
    help="Limits of a good request, in milliseconds.",
)
@click.option(
    "--cold-start",
    type=click.FloatRange(0),
    help="Seconds until the server was ready, as you timed them.",
)
def benchmark_serving(
    run_id: str,
    url: str,
    rates: Sequence[float],
    prompts: int,
    goodput: str,
    cold_start: float | None,
    out_dir: Path,
) -> None:
    """Measure a running server with `vllm bench serve` on the task's rows and on random ones."""
    from loraline import contract
    from loraline.base import locate
    from loraline.serving import names
    from loraline.serving.client import Server

    client = store.connect()
    deploy_run = runs.upstream_run(client, run_id, "deploy_vllm")
    train_run = runs.ancestor(client, deploy_run, "train_qlora")
    data_run = runs.ancestor(client, train_run, "prepare_data")
    name = names.served_name(deploy_run.data.tags[tags.MODEL_NAME])
    with runs.adapter(train_run, deploy_run) as adapter:
        agreed = contract.read(adapter)
    server = Server(url)
    listed = server.models()
    models = [model for model in (names.base_name(agreed), name) if model in listed]
    if name not in models:
        raise UserError(
            f"the server at {server.name} does not list {name}, only {', '.join(listed)}"
        )
    tokenizer = locate.locate_tokenizer(agreed)
    with (
        tempfile.TemporaryDirectory() as folder,
        runs.artifacts(client, data_run.info.run_id, "benchmark") as requests,
    ):
        rows = vllm_bench.of_rows(requests, agreed.max_new_tokens)
        table = [
            vllm_bench.run(
                server.url, model, workload, rate, prompts, goodput, tokenizer, Path(folder)
            )
            for workload in (("rows", *rows), ("random", *vllm_bench.RANDOM))
            for model in models
            for rate in rates
        ]
    verdicts = targets(table, name, cold_start)
    with runs.open_run(
        "benchmark_serving",
        name=f"benchmark {name}",
        fingerprint=fingerprints.fingerprint(__file__, {"upstream": run_id, "url": url}),
        upstream=deploy_run,
        parent=train_run,
    ) as run:
        import mlflow

        mlflow.log_params(
            {"url": server.name, "rates": rates, "prompts": prompts, "goodput": goodput}
        )
        mlflow.log_dict({"table": table, "targets": verdicts}, REPORT)
        mlflow.log_metrics(headline(table, name))
        mlflow.log_figure(figure(table, ("tokens_per_second", "goodput")), "throughput.png")
        mlflow.log_figure(figure(table, ("ttft_median_ms", "tpot_median_ms")), "latency.png")
    for row in table:
        click.echo(
            f"{row['workload']} {row['model']} at {row['rate']:g}/s: "
            f"{row['tokens_per_second']:.1f} tokens/s, TTFT {row['ttft_median_ms']:.0f} ms, "
            f"TPOT {row['tpot_median_ms']:.1f} ms, {row['failed']} failed"
        )
    for target, verdict in verdicts.items():
        click.echo(f"{target}: {verdict}")
    runs.hand_over(out_dir, run.info.run_id)


def targets(table: Sequence[dict[str, Any]], name: str, cold_start: float | None) -> dict[str, str]:
    """Each target with the number measured, and whether it is met; 512 tokens are extrapolated."""
    adapter = [row for row in table if row["model"] == name]
    slowest = max(row["ttft_median_ms"] + 511 * row["tpot_median_ms"] for row in adapter) / 1000
    most = max(row["requests_per_second"] for row in adapter) * 60

    def verdict(met: bool) -> str:
        return "met" if met else "not met"

    start = "not measured"
    if cold_start is not None:
        start = f"{cold_start:.0f} s, {verdict(cold_start < COLD_START)}"
    return {
        f"cold start under {COLD_START:.0f} s": start,
        f"512 tokens under {ANSWER_512:.0f} s": (
            f"{slowest:.2f} s (TTFT + 511 TPOT), {verdict(slowest < ANSWER_512)}"
        ),
        f"{PER_MINUTE:.0f} requests a minute": f"{most:.0f}, {verdict(most >= PER_MINUTE)}",
    }


def headline(table: Sequence[dict[str, Any]], name: str) -> dict[str, float]:
    """The adapter's numbers on the task's rows, at the highest rate."""
    rows = [row for row in table if row["model"] == name and row["workload"] == "rows"]
    best = max(rows, key=lambda row: row["rate"])
    return {key: float(best[key]) for key in vllm_bench.FIELDS.values() if best[key] is not None}


def figure(table: Sequence[dict[str, Any]], metrics: tuple[str, str]) -> Figure:
    """Two metrics over the request rate, a line a model and workload."""
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(10, 4), layout="constrained")
    for axes, metric in zip(drawn.subplots(1, 2), metrics, strict=True):
        for workload, model in sorted({(row["workload"], row["model"]) for row in table}):
            rows = [row for row in table if (row["workload"], row["model"]) == (workload, model)]
            rates = ["all at once" if row["rate"] == float("inf") else row["rate"] for row in rows]
            values = [row[metric] or 0 for row in rows]
            axes.plot(list(map(str, rates)), values, marker="o", label=f"{model}, {workload}")
        axes.set(xlabel="requests a second", ylabel=metric.replace("_", " "), ylim=(0, None))
        axes.legend(fontsize="small")
    return drawn


if __name__ == "__main__":
    benchmark_serving()
