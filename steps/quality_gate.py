"""Hold a candidate against its profile's limits and vLLM's; register it if it keeps them all.

Reads: the metrics of the evaluate run, the limits of the training run's profile, the adapter.
Writes: `verdict.json`; for a candidate that passed, a registered version with alias `candidate`;
`scorecard.json` in the output folder, for the table at the end of a local run.

    python steps/quality_gate.py --run-id "$(cat outputs/run-id)"
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from loraline import tracking
from loraline.step import step

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

    from loraline.profiles import Gate

ALIAS = "candidate"


@dataclass(frozen=True)
class Verdict:
    """One rule: a metric, its value, its limit, and whether the value keeps it."""

    metric: str
    value: float | None
    limit: str
    passed: bool
    detail: str = ""
    """What a reviewer should know of a rule that was broken."""


@step
@click.option("--run-id", required=True, help="MLflow run of evaluate.")
def quality_gate(run_id: str, out_dir: Path, force: bool) -> None:
    """Compare the tuned model's metrics with the profile's limits; register it if it passes.

    A rejected candidate is a result, not an error: the exit code is 0 and the file `result` holds
    `failed` instead of `passed`.
    """
    from loraline import profiles

    client = tracking.connect()
    eval_run = tracking.upstream_run(client, run_id, "evaluate")
    train_run = tracking.ancestor(client, eval_run, "train_qlora")
    # Limits are today's policy, so they come from the file and not from the training run.
    limits = profiles.load(train_run.data.tags[tracking.PROFILE]).gate
    fingerprint = tracking.fingerprint(
        __file__, {"upstream": run_id, "limits": limits.model_dump()}
    )
    done = None if force else tracking.finished_run(client, "quality_gate", fingerprint)
    if done and still_holds(client, done):
        result = done.data.tags[tracking.RESULT]
        click.echo(f"verdict of run {done.info.run_id} (reused): {result}")
        write_scorecard(out_dir, eval_run, done)
        tracking.hand_over(out_dir, done.info.run_id, result=result)
        return

    with tracking.adapter(train_run) as adapter:
        verdicts = [*judge(eval_run.data.metrics, limits), servable(adapter)]
    result = "passed" if all(verdict.passed for verdict in verdicts) else "failed"
    with tracking.open_run(
        "quality_gate",
        name=f"gate {train_run.info.run_name}",
        fingerprint=fingerprint,
        upstream=eval_run,
        parent=train_run,
    ) as run:
        log_verdict(client, verdicts, result, run, train_run)
        if result == "passed":
            register(client, verdicts, run, train_run)
    for verdict in verdicts:
        value = "missing" if verdict.value is None else f"{verdict.value:.4g}"
        mark = "passed" if verdict.passed else "FAILED"
        click.echo(f"{verdict.metric}: {value}, limit {verdict.limit}: {mark}")
    click.echo(f"verdict: {result}")
    write_scorecard(out_dir, eval_run, client.get_run(run.info.run_id))
    tracking.hand_over(out_dir, run.info.run_id, result=result)


def judge(metrics: Mapping[str, float], limits: Gate) -> list[Verdict]:
    """One verdict a limit; a value that is missing or not finite keeps none."""
    rules = [
        ("tuned_eval_loss", "at most", limits.max_eval_loss),
        ("tuned_perplexity", "at most", limits.max_perplexity),
        ("tuned_bleu", "at least", limits.min_bleu),
        ("tuned_levenshtein", "at most", limits.max_levenshtein),
    ]
    verdicts = []
    for metric, direction, limit in rules:
        if limit is None:
            continue
        value = metrics.get(metric)
        kept = value is not None and math.isfinite(value)
        if kept and value is not None:
            kept = value <= limit if direction == "at most" else value >= limit
        verdicts.append(Verdict(metric, value, f"{direction} {limit:g}", kept))
    return verdicts


def servable(adapter: Path) -> Verdict:
    """Whether vLLM would take the adapter and apply all of it; the value counts what is wrong."""
    from loraline import contract, preflight

    agreed = contract.read(adapter)
    found = preflight.findings(adapter, agreed.base, agreed.trains_vision)
    told = "; ".join(map(str, found[:3])) + ("; and more" if len(found) > 3 else "")
    return Verdict("preflight_findings", len(found), "at most 0", not found, told)


def log_verdict(
    client: MlflowClient, verdicts: Sequence[Verdict], result: str, run: Run, train_run: Run
) -> None:
    """Put the verdict where a reviewer looks: this run and the training run."""
    import mlflow

    broken = [
        f"{v.metric} {v.value} is not {v.limit}" + (f" ({v.detail})" if v.detail else "")
        for v in verdicts
        if not v.passed
    ]
    tags = {tracking.RESULT: result, tracking.REASON: "; ".join(broken) or "all limits kept"}
    mlflow.log_dict({"verdicts": [asdict(verdict) for verdict in verdicts], **tags}, "verdict.json")
    for target in (run, train_run):
        for key, value in tags.items():
            client.set_tag(target.info.run_id, key, value)


def register(client: MlflowClient, verdicts: Sequence[Verdict], run: Run, train_run: Run) -> None:
    """Register the logged model, once however often the gate runs, and point the alias at it."""
    import mlflow

    name = tracking.profile(client, train_run).registered_model
    model_id = train_run.data.tags[tracking.MODEL_ID]
    version = registered_version(client, name, model_id)
    if version is None:
        # Registering by model ID keeps the link from the version to the run and its metrics.
        version = str(mlflow.register_model(f"models:/{model_id}", name).version)
    described = "\n".join(f"- {v.metric} {v.value:.4g}, limit {v.limit}" for v in verdicts)
    client.update_model_version(name, version, f"Passed the quality gate:\n\n{described}")
    client.set_model_version_tag(name, version, tracking.RESULT, "passed")
    for target in (run, train_run):
        client.set_tag(target.info.run_id, tracking.MODEL_NAME, name)
        client.set_tag(target.info.run_id, tracking.MODEL_VERSION, version)
    client.set_registered_model_alias(name, ALIAS, version)


def registered_version(client: MlflowClient, name: str, model_id: str) -> str | None:
    """The version that a logged model is registered as, if it is."""
    versions: Sequence[Any] = client.search_model_versions(f"name = '{name}'")
    source = f"models:/{model_id}"
    return next((str(found.version) for found in versions if found.source == source), None)


def write_scorecard(out_dir: Path, eval_run: Run, gate_run: Run) -> None:
    """Base beside tuned, the verdict, and the version if there is one."""
    numbers = eval_run.data.metrics
    tags = gate_run.data.tags
    scorecard = {
        "metrics": {
            name: {model: numbers.get(f"{model}_{name}") for model in ("base", "tuned")}
            for name in ("bleu", "levenshtein", "exact_match", "perplexity")
        },
        "rows": numbers.get("rows"),
        "result": tags[tracking.RESULT],
        "reason": tags[tracking.REASON],
        "model": tags.get(tracking.MODEL_NAME),
        "version": tags.get(tracking.MODEL_VERSION),
        "alias": ALIAS,
        "store": tracking.uri(),
    }
    out_dir.mkdir(parents=True, exist_ok=True)
    (out_dir / "scorecard.json").write_text(json.dumps(scorecard, indent=2) + "\n")


def still_holds(client: MlflowClient, done: Run) -> bool:
    """Whether an earlier verdict is still what the registry says."""
    from mlflow.exceptions import MlflowException

    if done.data.tags[tracking.RESULT] == "failed":
        return True
    try:
        found = client.get_model_version_by_alias(done.data.tags[tracking.MODEL_NAME], ALIAS)
    except MlflowException as error:
        if tracking.is_outage(error):
            raise
        return False
    return str(found.version) == done.data.tags[tracking.MODEL_VERSION]


if __name__ == "__main__":
    quality_gate()
