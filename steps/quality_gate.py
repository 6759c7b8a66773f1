"""Judge a candidate by limits, its base and the champion; register it if it passes all rules.

Reads: the metrics of the evaluate run, the adapter, the limits of the training run's profile.
Writes: `verdict.json`; for a candidate that passed, a registered version with alias `candidate`;
`scorecard.json` in the output folder, for the table at the end of a local run.

    python steps/quality_gate.py --run-id "$(cat outputs/run-id)"
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from loraline.step import limits_option, or_none, recipes_option, step
from loraline.tracking import description, fingerprints, run_profile, runs, store, tags

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

    from loraline.evaluation.rules import Verdict


@step
@click.option("--run-id", required=True, help="MLflow run of evaluate.")
@click.option(
    "--policy",
    callback=or_none,
    help="YAML file with limits that replace the profile's.  [default: the profile's gate]",
)
@limits_option
@recipes_option
@click.option(
    "--fail-on-reject", is_flag=True, help="End with exit code 1 if the candidate is rejected."
)
def quality_gate(
    run_id: str,
    policy: str | None,
    overrides: tuple[str, ...] | None,
    recipes: dict[str, Any],
    fail_on_reject: bool,
    out_dir: Path,
    force: bool,
) -> None:
    """Judge the tuned model by the policy's rules; register it if it passes them all.

    A rejected candidate is a result, not an error: the file `result` holds `failed` instead of
    `passed`, and the exit code is 0 unless --fail-on-reject is given.
    """
    import mlflow

    from loraline.evaluation import evidence, rules
    from loraline.tracking import lock

    client = store.connect()
    eval_run = runs.upstream_run(client, run_id, "evaluate")
    train_run = runs.ancestor(client, eval_run, "train_qlora")
    todays = run_profile.as_today(train_run, overrides, recipes)
    limits = rules.load(Path(policy) if policy else None, todays.gate, todays.metrics)
    name = run_profile.of_training(client, train_run).registered_model
    model_id = runs.model_id(train_run)

    def fingerprint(champion: str | None) -> str:
        inputs = {"upstream": run_id, "limits": limits.model_dump(), "champion": champion}
        return fingerprints.fingerprint(__file__, inputs)

    expected = fingerprint(other_champion(client, name, model_id))
    finished = None if force else runs.finished_run(client, "quality_gate", expected)
    if finished and still_holds(client, finished, train_run):
        lock.clear_dead(client, name)
        result = finished.data.tags[tags.RESULT]
        click.echo(f"verdict of run {finished.info.run_id} (reused): {result}")
        hand_over(out_dir, train_run, eval_run, finished, fail_on_reject)
        return

    data_run = runs.ancestor(client, train_run, "prepare_data")
    evidence.check_dataset(eval_run, train_run, data_run)
    with runs.adapter(train_run, eval_run) as adapter:
        served = servable(adapter, train_run.info.run_id)
        evidence.check_champion_again(eval_run, name, adapter)
    # The lock keeps the champion as it is between the verdict and the registration. It also guards
    # the training run's tags, which all gates of the run write.
    with lock.locked(client, name):
        champion = other_champion(client, name, model_id)
        measured = eval_run.data
        verdicts = [*rules.judge(measured.metrics, measured.tags, limits, champion), served]
        evidence.check_logged_once(client, eval_run, [verdict.metric for verdict in verdicts])
        result = "passed" if all(verdict.passed for verdict in verdicts) else "failed"
        with runs.open_run(
            "quality_gate",
            name=f"gate {train_run.info.run_name}",
            fingerprint=fingerprint(champion),
            upstream=eval_run,
            parent=train_run,
        ) as run:
            judged = [asdict(verdict) for verdict in verdicts]
            outcome = {tags.RESULT: result, tags.REASON: rules.reasons(verdicts)}
            mlflow.log_dict({"verdicts": judged, **outcome}, "verdict.json")
            outcome[tags.GATE_RUN] = run.info.run_id
            outcome[tags.ADAPTER_DIGEST] = train_run.data.tags[tags.ADAPTER_DIGEST]
            tag_runs(client, outcome, rules.markdown(verdicts), run, train_run)
            champion_again = measured.tags.get(tags.CHAMPION_AGAIN)
            register(client, name, outcome, run, train_run, champion_again)
    click.echo(rules.table(verdicts))
    click.echo(f"verdict: {result}")
    judged_run = client.get_run(run.info.run_id)
    hand_over(out_dir, train_run, eval_run, judged_run, fail_on_reject)


def other_champion(client: MlflowClient, name: str, model_id: str) -> str | None:
    """The version of today's champion, unless it is this logged model itself."""
    from loraline.tracking import registry

    champion = registry.other_champion(client, name, model_id)
    return str(champion.version) if champion else None


def servable(adapter: Path, run_id: str) -> Verdict:
    """A passed preflight; UserError if vLLM would not take the adapter or not apply all of it."""
    from loraline import contract
    from loraline.evaluation.rules import Verdict
    from loraline.serving import preflight

    preflight.check(adapter, contract.read(adapter), f"the adapter of run {run_id}")
    return Verdict("preflight_findings", 0, "at most", 0, True, "")


def tag_runs(
    client: MlflowClient, outcome: dict[str, str], table: str, run: Run, train_run: Run
) -> None:
    """Put the verdict where a reviewer looks: this run and the training run."""
    result, reason = outcome[tags.RESULT], outcome[tags.REASON]
    section = f"{description.HEADING}\n{result}: {reason}\n\n{table}\n\n"
    for target in (run, train_run):
        card = description.card(target.data.tags.get(tags.NOTE, ""))
        for key, value in (outcome | {tags.NOTE: description.of(section, card)}).items():
            client.set_tag(target.info.run_id, key, value)


def register(
    client: MlflowClient,
    name: str,
    outcome: dict[str, str],
    run: Run,
    train_run: Run,
    champion_again: str | None,
) -> None:
    """Register a logged model that passed, once however often the gate runs, and move the alias.

    A rejected model gets no version; a version from before loses the alias and says why. If the
    adapter is that of the champion, trained again, `champion_again` is the champion's version, and
    nothing is registered. The caller holds the registered model's lock.
    """
    from loraline.tracking import registry, signature

    model_id, passed = train_run.data.tags[tags.MODEL_ID], outcome[tags.RESULT] == "passed"
    if passed and champion_again is not None:
        for target in (run, train_run):
            client.set_tag(target.info.run_id, tags.MODEL_NAME, name)
            client.set_tag(target.info.run_id, tags.MODEL_VERSION, champion_again)
        return
    if passed:
        registry.register(client, name, model_id)
    card = client.get_run(train_run.info.run_id).data.tags[tags.NOTE]
    versions = registry.versions_of_model(client, name, model_id)
    for version in versions:
        digest = outcome[tags.ADAPTER_DIGEST]
        signed = (signature.sign(name, version, digest) or "") if passed else ""
        registry.describe(client, name, version, outcome | {signature.SIGNATURE: signed}, card)
        if not passed:
            registry.withdraw(client, name, version)
    if not passed:
        return
    for target in (run, train_run):
        client.set_tag(target.info.run_id, tags.MODEL_NAME, name)
        client.set_tag(target.info.run_id, tags.MODEL_VERSION, versions[0])
    registry.move_candidate(client, name, versions[0])


def hand_over(
    out_dir: Path, train_run: Run, eval_run: Run, gate_run: Run, fail_on_reject: bool
) -> None:
    """Write the scorecard, the result and the run ID; end with 1 if a rejection is to fail."""
    from loraline.evaluation import scorecard

    result = gate_run.data.tags[tags.RESULT]
    card = json.dumps(scorecard.of(train_run, eval_run, gate_run), indent=2) + "\n"
    runs.hand_over(out_dir, gate_run.info.run_id, result=result, **{scorecard.FILE: card})
    if fail_on_reject and result == "failed":
        click.get_current_context().exit(1)


def still_holds(client: MlflowClient, finished: Run, train_run: Run) -> bool:
    """Whether an earlier verdict is still the last one, and its version candidate or champion."""
    from loraline.tracking import registry

    if train_run.data.tags.get(tags.GATE_RUN) != finished.info.run_id:
        return False
    if finished.data.tags[tags.RESULT] == "failed":
        return True
    name, version = finished.data.tags[tags.MODEL_NAME], finished.data.tags[tags.MODEL_VERSION]
    aliases = (registry.CANDIDATE, registry.CHAMPION)
    holders = [registry.version_of(client, name, alias) for alias in aliases]
    return any(holder is not None and str(holder.version) == version for holder in holders)


if __name__ == "__main__":
    quality_gate()
