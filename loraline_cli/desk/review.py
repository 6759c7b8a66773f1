"""What a reviewer sees of a registered model, and the moves that they may make."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from loraline.errors import TryAgain, UserError
from loraline.tracking import registry, runs, tags
from loraline.tracking.lock import HOLDER
from loraline_cli import main
from loraline_cli.desk.argo import Argo

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion

ALIASES = (registry.CANDIDATE, registry.CHAMPION, registry.PREVIOUS)
MOST_BYTES = 32 * 2**20
"""Bytes of a report that are handed on."""

REPORT, PREDICTIONS = "report.html", "predictions.json"

WORST_ROWS, LONGEST_CELL = 3, 300
"""Rows of a card, and characters of each of their texts."""

VOTE = "loraline.vote"
"""Tags of a version, one for each blind vote: `won`, `lost` or `even`, by whom."""


def models(client: MlflowClient) -> list[str]:
    """Registered models, without the registry's locks."""
    registered = client.search_registered_models(max_results=1000)
    return sorted(each.name for each in registered if HOLDER not in each.tags)


def board(client: MlflowClient, name: str) -> dict[str, Any]:
    """The versions that have an alias, what each was measured at, and what was done so far."""
    registry.check_exists(client, name)
    cards = {}
    for alias in ALIASES:
        version = registry.version_of(client, name, alias)
        if version is not None:
            cards[alias] = card(client, version)
    history = client.get_registered_model(name).tags
    lines = [
        f"{key.removeprefix(f'{tags.AUDIT}.').rpartition('.')[0]} {history[key]}"
        for key in sorted(history, reverse=True)
        if key.startswith(f"{tags.AUDIT}.")
    ]
    return {"model": name, "versions": cards, "history": lines}


def card(client: MlflowClient, version: ModelVersion) -> dict[str, Any]:
    """A version: the verdict with each rule, numbers and intervals, worst rows, lineage, cost."""
    from loraline.evaluation import scorecard

    document: dict[str, Any] = {
        "version": str(version.version),
        "result": version.tags.get(tags.RESULT),
        "reason": version.tags.get(tags.REASON),
        "adapter": version.tags.get(tags.ADAPTER_DIGEST),
        "promoted": version.tags.get(registry.PROMOTED),
        "rejected": version.tags.get(registry.REJECTED),
        "rolled_back": version.tags.get(registry.ROLLED_BACK),
        "votes": votes(version),
        "rules": [],
        "metrics": {},
    }
    gate = run_of(client, version.tags.get(tags.GATE_RUN))
    if gate is not None:
        text = artifact(client, gate, "verdict.json")
        document["rules"] = json.loads(text)["verdicts"] if text else []
        evaluation = run_of(client, gate.data.tags.get(tags.UPSTREAM))
        if evaluation is not None:
            document["metrics"] = scorecard.intervals(evaluation)
            document["rows"] = evaluation.data.metrics.get("rows")
            document["compared_with"] = evaluation.data.tags.get(tags.CHAMPION)
            document["evaluate"] = evaluation.info.run_id
            document["worst"] = worst(artifact(client, evaluation, PREDICTIONS))
    training = run_of(client, version.run_id)
    if training is not None:
        document |= {
            "profile": training.data.tags.get(tags.PROFILE),
            "dataset": training.data.tags.get(tags.DATASET_DIGEST),
            "prompt": prompt(client, training),
            "train": training.info.run_id,
            "cost": json.loads(training.data.tags.get(tags.SPENT, "{}")),
        }
    return document


def votes(version: ModelVersion) -> dict[str, int]:
    """How often people found a version's answer best, without knowing whose it was."""
    cast = [value.split()[0] for key, value in version.tags.items() if key.startswith(f"{VOTE}.")]
    return {result: cast.count(result) for result in ("won", "lost", "even") if result in cast}


def vote(client: MlflowClient, by: str, compared: Sequence[str], best: str | None) -> None:
    """Keep a blind vote on every registered version that took part: they are even where none was
    best, and have all lost where `best` is `other`, a model that is not registered."""
    if best not in (None, "other", *compared):
        raise UserError("the best is one of those that were compared")
    versions = [uri.removeprefix("models:/").rpartition("/") for uri in compared]
    for name, _, _ in versions:
        registry.check_exists(client, name)
    at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    key = f"{VOTE}.{at}.{uuid.uuid4().hex[:8]}"
    for uri, (name, _, number) in zip(compared, versions, strict=True):
        result = "even" if best is None else "won" if uri == best else "lost"
        client.set_model_version_tag(name, number, key, f"{result} by {by}")


def worst(predictions: str | None) -> list[dict[str, str]]:
    """Held-out rows whose answers are farthest from their references, by edits, the worst first."""
    from rapidfuzz.distance import Levenshtein

    table = json.loads(predictions) if predictions else {"columns": [], "data": []}
    rows = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
    wrong = [row for row in rows if row["tuned"].strip() != row["reference"].strip()]

    def distance(row: dict[str, str]) -> float:
        return float(Levenshtein.normalized_distance(row["reference"], row["tuned"]))

    columns = ("question", "reference", "tuned", "champion")
    return [
        {name: row[name][:LONGEST_CELL] for name in columns if name in row}
        for row in sorted(wrong, key=distance, reverse=True)[:WORST_ROWS]
    ]


def run_of(client: MlflowClient, run_id: str | None) -> Run | None:
    """The run of that ID; None if it was deleted."""
    from mlflow.exceptions import MlflowException

    if not run_id:
        return None
    try:
        return client.get_run(run_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None


def artifact(client: MlflowClient, run: Run, name: str) -> str | None:
    """A file of a run as text; None if the run has no such file."""
    if name not in {each.path for each in client.list_artifacts(run.info.run_id)}:
        return None
    with runs.artifacts(client, run.info.run_id, name) as path:
        return path.read_text()


def prompt(client: MlflowClient, training: Run) -> str | None:
    """The registered prompt version that the adapter was trained with."""
    data = runs.ancestor(client, training, "prepare_data")
    uri: str | None = data.data.params.get("prompt_uri")
    return uri


def report(client: MlflowClient, name: str, version: str) -> str:
    """The evaluation's report of a version as HTML; UserError if there is none."""
    registry.check_exists(client, name)
    versions = {
        str(each.version): each for each in client.search_model_versions(f"name = '{name}'")
    }
    if version not in versions:
        raise UserError(f"registered model {name!r} has no version {version}")
    gate = run_of(client, versions[version].tags.get(tags.GATE_RUN))
    evaluation = run_of(client, gate.data.tags.get(tags.UPSTREAM)) if gate else None
    html = artifact(client, evaluation, REPORT) if evaluation else None
    if html is None or len(html) > MOST_BYTES:
        raise UserError(f"version {version} of {name!r} has no report that can be shown")
    return html


def move(
    client: MlflowClient, name: str, by: str, act: str, version: str | None, reason: str | None
) -> str:
    """Promote, reject or roll back by the function of steps/promote.py; returns what was done.

    `version` was looked at: the candidate, or the champion to go back from.
    """
    registry.check_exists(client, name)
    step = main.load(main.HOME / "steps/promote.py")
    if act != "rollback" and not version:
        raise UserError("name the version that was reviewed")
    if act == "reject" and not (reason or "").strip():
        raise UserError("say why the candidate is not wanted")
    moved = step.move(
        client,
        name,
        by,
        version=version,
        rollback=act == "rollback",
        reason=reason if act == "reject" else None,
    )
    done = {"promote": "is the champion now", "reject": "was rejected"}
    return f"Version {moved} {done.get(act, 'is the champion again')}."


def answered(argo: Argo, model: str, act: str, version: str | None) -> str:
    """Answer the workflows that wait for what a reviewer decided; what came of it, in a sentence.

    The move is made by then, in the reviewer's name: the workflow's own promotion finds it done and
    goes on to the server.
    """
    decisions = {"promote": "yes", "reject": "no"}
    if act not in decisions or version is None or argo.missing():
        return ""
    try:
        names = argo.answer(model, version, decisions[act])
    except (UserError, TryAgain) as error:
        return f"Workflows that wait for it were not answered: {error}."
    return f"Answered: {', '.join(names)}." if names else ""
