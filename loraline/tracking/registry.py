"""The model registry's rules: one version a logged model, and aliases that move one at a time.

`candidate` is the last version that passed the gate, `champion` the one that a person promoted.
`previous` is what to go back to: the champion before, or, as long as nothing was promoted, the
candidate before.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from typing import TYPE_CHECKING

from loraline.errors import UserError
from loraline.tracking import store
from loraline.tracking.lock import HOLDER
from loraline.tracking.tags import (
    ADAPTER_DIGEST,
    AUDIT,
    GATE_RUN,
    MODEL_NAME,
    MODEL_VERSION,
    REASON,
    RESULT,
    STEP,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion

CANDIDATE = "candidate"
CHAMPION = "champion"
PREVIOUS = "previous"

PROMOTED = "loraline.promoted"
PROMOTED_GATE = "loraline.promoted.gate_run_id"
"""The gate run that a version was promoted by; a rollback relies on it, not on later verdicts."""

ROLLED_BACK = "loraline.rolled_back"
REJECTED = "loraline.rejected"
"""Who did not want a version that had passed the gate, and why."""

LONGEST_REASON = 1000

PARENT = "mlflow.parentRunId"
"""MLflow's tag of the run that a run is nested under."""


def check_exists(client: MlflowClient, name: str) -> None:
    """Raise UserError, which lists the registered models, if there is none of this name."""
    from mlflow.exceptions import MlflowException

    try:
        if HOLDER not in client.get_registered_model(name).tags:
            return
    except MlflowException as error:
        # A name that MLflow takes for none is an invalid parameter.
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
    models = client.search_registered_models()
    names = [each.name for each in models if HOLDER not in each.tags] + ["..."] * bool(models.token)
    listed = ", ".join(names) or "none; make pipeline makes one"
    raise UserError(f"there is no registered model {name!r} in {store.uri()}; found: {listed}")


def version_of(client: MlflowClient, name: str, alias: str) -> ModelVersion | None:
    """The version that an alias points at, if there is one."""
    from mlflow.exceptions import MlflowException

    try:
        return client.get_model_version_by_alias(name, alias)
    except MlflowException as error:
        # Asked for an alias that is not set, MLflow says "invalid parameter".
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise


def no_version(client: MlflowClient, name: str, alias: str) -> UserError:
    """That no version has an alias, with the aliases that there are and the way to a champion."""
    aliases = client.get_registered_model(name).aliases
    listed = ", ".join(f"{each} (version {aliases[each]})" for each in sorted(aliases))
    if alias == CHAMPION and CANDIDATE in aliases:
        command = f"python steps/promote.py --model {name} --version {aliases[CANDIDATE]}"
        listed += f", and `{command}` makes it the champion"
    return UserError(
        f"--alias {alias}: no version of registered model {name!r} has this alias; found: "
        f"{listed or 'none'}"
    )


def versions_of_model(client: MlflowClient, name: str, model_id: str) -> list[str]:
    """All versions that a logged model is registered as, the first one first.

    There is one, unless MLflow's client repeated a request whose answer was lost.
    """
    entries = client.search_model_versions(f"name = '{name}'")
    versions = [int(entry.version) for entry in entries if entry.source == f"models:/{model_id}"]
    return [str(version) for version in sorted(versions)]


ABOUT = """Adapters that passed the quality gate, one a version.

`candidate` waits for a review, `champion` was promoted by a person, `previous` was it before.
Promote with `python steps/promote.py --model {name} --version N`, or with the workflow `promote`.
MLflow's own button *Promote model* copies a version: it moves no alias and asks no gate.
"""
"""Description of a registered model that has none."""


def register(client: MlflowClient, name: str, model_id: str) -> str:
    """The version of a logged model, made if there is none; the caller holds the lock."""
    import mlflow

    if versions := versions_of_model(client, name, model_id):
        return versions[0]
    # Registering by model ID keeps the link from the version to the run and its metrics.
    mlflow.register_model(f"models:/{model_id}", name)
    if not client.get_registered_model(name).description:
        client.update_registered_model(name, ABOUT.format(name=name))
    version, *repeated = versions_of_model(client, name, model_id)
    for surplus in repeated:
        client.delete_model_version(name, surplus)
    return version


def describe(
    client: MlflowClient, name: str, version: str, tags: Mapping[str, str], description: str
) -> None:
    """Say the last verdict on a version, in its tags and in its description alike."""
    client.update_model_version(name, version, description)
    for key, value in tags.items():
        client.set_model_version_tag(name, version, key, value)


def withdraw(client: MlflowClient, name: str, version: str) -> None:
    """Take `candidate` from a version that was rejected after all; the caller holds the lock.

    A champion stays: a person put it there.
    """
    candidate = version_of(client, name, CANDIDATE)
    if candidate is not None and str(candidate.version) == version:
        client.delete_registered_model_alias(name, CANDIDATE)


def move_candidate(client: MlflowClient, name: str, version: str) -> None:
    """Point `candidate` at a version; the caller holds the lock.

    Cut anywhere, it can be repeated: `previous` is written first, from what `candidate` says.
    """
    before = version_of(client, name, CANDIDATE)
    if before is not None and str(before.version) == version:
        return
    if before is not None and version_of(client, name, CHAMPION) is None:
        client.set_registered_model_alias(name, PREVIOUS, str(before.version))
    client.set_registered_model_alias(name, CANDIDATE, version)


def audit(client: MlflowClient, name: str, entry: str) -> None:
    """Write one line of the registered model's history, a tag that nothing overwrites."""
    at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    client.set_registered_model_tag(name, f"{AUDIT}.{at}.{uuid.uuid4().hex[:4]}", entry)


def other_champion(client: MlflowClient, name: str, model_id: str) -> ModelVersion | None:
    """The champion, unless it is this logged model itself."""
    champion = version_of(client, name, CHAMPION)
    return None if champion is None or champion.source == f"models:/{model_id}" else champion


def gate_run_of(client: MlflowClient, version: ModelVersion) -> str:
    """The gate run that passed a version; a UserError if none did, or a later one rejected it.

    The version's tags name the gate run, which has to agree with them: see `verified_gate_run`.
    """
    label = f"version {version.version} of {version.name!r}"
    if version.tags.get(RESULT) == "failed":
        raise UserError(f"{label} was rejected: {version.tags.get(REASON)}")
    if GATE_RUN not in version.tags:
        raise UserError(f"{label} did not come through quality_gate: its alias was set by hand")
    if rejected := rejection(client, version):
        raise UserError(f"{label} was rejected: {rejected}")
    return verified_gate_run(client, version, version.tags[GATE_RUN])


def verified_gate_run(client: MlflowClient, version: ModelVersion, gate_run: str) -> str:
    """The gate run that a version's tags name, once it says the same; UserError otherwise.

    It judged what the version's training run made, registered that as this version, and kept the
    digest that the version has. The numbers of versions begin anew with a registered model that
    was deleted and made again, so that the version's files have to be those of its run, too.
    """
    run = judgement(client, gate_run, version.run_id)
    logged = run.data.tags if run is not None else {}
    expected = {
        RESULT: "passed",
        MODEL_NAME: version.name,
        MODEL_VERSION: str(version.version),
        ADAPTER_DIGEST: version.tags.get(ADAPTER_DIGEST),
    }
    agrees = all(logged.get(tag) == value for tag, value in expected.items())
    if not agrees or not source_is_of_its_run(client, version):
        raise UserError(
            f"version {version.version} of {version.name!r} has tags that no gate wrote: its gate "
            f"run {gate_run} did not judge it; run quality_gate again with --force"
        )
    return gate_run


def source_is_of_its_run(client: MlflowClient, version: ModelVersion) -> bool:
    """Whether the logged model that a version was made of is one of the version's run.

    A logged model says which run made it, and nobody can change that.
    """
    from mlflow.exceptions import MlflowException

    scheme, _, model_id = str(version.source).partition("models:/")
    if scheme or not model_id:
        return False
    try:
        return bool(client.get_logged_model(model_id).source_run_id == version.run_id)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        return False


def rejection(client: MlflowClient, version: ModelVersion) -> str | None:
    """Why the last gate that judged a version's logged model rejected it; None if it passed.

    The gate runs have the last word, and not the version's tags: a gate that was killed, or whose
    answers were lost, has written to its own run first. The runs that the version and the training
    run name have to have passed it, too: by its clock, the machine of the last gate may be behind.
    """
    from mlflow.exceptions import MlflowException

    if not version.run_id:
        return None
    try:
        train_run = client.get_run(version.run_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None
    verdicts = gate_runs(client, train_run)
    named = {tags[GATE_RUN] for tags in (version.tags, train_run.data.tags) if GATE_RUN in tags}
    named_verdicts = [judgement(client, gate_run, version.run_id) for gate_run in sorted(named)]
    for run in (*verdicts[:1], *named_verdicts):
        if run is not None and run.data.tags[RESULT] != "passed":
            return run.data.tags.get(REASON) or f"by gate run {run.info.run_id}"
    return None


def judgement(client: MlflowClient, gate_run: str, train_run: str | None) -> Run | None:
    """The run of a gate that has judged what a training run made; None if it did not."""
    from mlflow.exceptions import MlflowException

    try:
        run = client.get_run(gate_run)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        return None
    tags = run.data.tags
    judged = tags.get(STEP) == "quality_gate" and RESULT in tags and tags.get(PARENT) == train_run
    return run if judged else None


def gate_runs(client: MlflowClient, train_run: Run) -> list[Run]:
    """All gate runs with a verdict on a training run's logged model, the latest first."""
    from mlflow.entities import ViewType

    parent = f"tags.`{PARENT}` = '{train_run.info.run_id}'"
    condition = f"tags.`{STEP}` = 'quality_gate' and {parent}"
    gate_runs = client.search_runs(
        [train_run.info.experiment_id],
        condition,
        # A verdict is not taken back by deleting its run.
        run_view_type=ViewType.ALL,
        order_by=["attributes.start_time DESC"],
    )
    return [run for run in gate_runs if RESULT in run.data.tags]


def promoting_gate_run_of(client: MlflowClient, version: ModelVersion) -> str:
    """The gate run that a champion, of today or before, was promoted by.

    A later verdict on it does not count: judged again, an old champion is no better than its
    successor, which says nothing against going back to it. A version whose alias was set by hand
    was promoted by nothing and is held to its last verdict, as by `gate_run_of`.
    """
    if PROMOTED_GATE in version.tags:
        return verified_gate_run(client, version, version.tags[PROMOTED_GATE])
    return gate_run_of(client, version)


def promote(client: MlflowClient, name: str, reviewed: str | None, by: str) -> str:
    """Make the candidate the champion and the champion before it `previous`; return its version.

    `reviewed` is the version that a person looked at: another candidate is refused with a
    UserError, and so is one that was rolled back, unless `reviewed` names it. The caller holds the
    lock. Cut anywhere, it can be repeated.
    """
    candidate = version_of(client, name, CANDIDATE)
    if reviewed is not None and (candidate is None or str(candidate.version) != reviewed):
        raise UserError(why_not_candidate(client, name, reviewed, candidate, "promote"))
    if candidate is None:
        raise UserError(f"registered model {name!r} has no candidate: nothing to promote")
    version = str(candidate.version)
    gate_run = gate_run_of(client, candidate)
    before = version_of(client, name, CHAMPION)
    if before is not None and str(before.version) == version:
        return version
    for tag, verb in ((ROLLED_BACK, "rolled back"), (REJECTED, "rejected")):
        if reviewed is None and tag in candidate.tags:
            raise UserError(
                f"version {version} of {name!r} was {verb} {candidate.tags[tag]}: "
                f"to promote it again, name it with --version {version}"
            )
    replaced = str(before.version) if before else "none"
    audit(client, name, f"champion {replaced} -> {version}: promoted by {by}")
    client.set_model_version_tag(name, version, PROMOTED, f"by {by}, replacing {replaced}")
    client.set_model_version_tag(name, version, PROMOTED_GATE, gate_run)
    for tag in (ROLLED_BACK, REJECTED):
        if tag in candidate.tags:
            client.delete_model_version_tag(name, version, tag)
    if before is not None:
        client.set_registered_model_alias(name, PREVIOUS, replaced)
    elif version_of(client, name, PREVIOUS) is not None:
        client.delete_registered_model_alias(name, PREVIOUS)
    client.set_registered_model_alias(name, CHAMPION, version)
    return version


def reject(client: MlflowClient, name: str, reviewed: str, by: str, reason: str) -> str:
    """Take `candidate` from the version that a person looked at and does not want; return it.

    The gate's verdict on it stands: a later gate may make it the candidate again, and then it is
    promoted by its number alone. The caller holds the lock. Cut anywhere, it can be repeated.
    """
    reason = " ".join(reason.split())
    if not reason or len(reason) > LONGEST_REASON:
        raise UserError(f"a reason of 1 to {LONGEST_REASON} characters says why; got {len(reason)}")
    candidate = version_of(client, name, CANDIDATE)
    if candidate is None or str(candidate.version) != reviewed:
        raise UserError(why_not_candidate(client, name, reviewed, candidate, "reject"))
    champion = version_of(client, name, CHAMPION)
    if champion is not None and str(champion.version) == reviewed:
        raise UserError(
            f"version {reviewed} of {name!r} is the champion by now: --rollback goes back from it"
        )
    verdict = f"by {by}: {reason}"
    audit(client, name, f"candidate {reviewed}: rejected {verdict}")
    client.set_model_version_tag(name, reviewed, REJECTED, verdict)
    client.delete_registered_model_alias(name, CANDIDATE)
    return reviewed


def why_not_candidate(
    client: MlflowClient, name: str, reviewed: str, candidate: ModelVersion | None, verb: str
) -> str:
    """Why a version that a person named is not the candidate, to which `verb` is refused.

    `candidate` is the version that has the alias, if any has it.
    """
    versions = {str(v.version): v for v in client.search_model_versions(f"name = '{name}'")}
    if reviewed not in versions:
        listed = ", ".join(sorted(versions, key=int)) or "none"
        return f"registered model {name!r} has no version {reviewed}; found: {listed}"
    tags = versions[reviewed].tags
    if tags.get(RESULT) == "failed":
        return f"version {reviewed} of {name!r} was rejected: {tags.get(REASON)}"
    if candidate is None:
        return f"registered model {name!r} has no candidate: nothing to {verb}"
    named = candidate.version
    return f"the candidate of {name!r} is version {named}, not {reviewed}: review it first"


def roll_back(client: MlflowClient, name: str, by: str) -> str:
    """Make `previous` the champion again; return its version.

    It needs the gate run that promoted `previous`, whatever later verdicts say. `previous` is
    gone afterwards, so that a repeated call never goes back two steps. Raises UserError when there
    is nothing to go back to. The caller holds the lock.
    """
    champion, previous = (version_of(client, name, alias) for alias in (CHAMPION, PREVIOUS))
    if champion is None or previous is None:
        missing = CHAMPION if champion is None else PREVIOUS
        raise UserError(f"registered model {name!r} has no {missing}: nothing to go back to")
    promoting_gate_run_of(client, previous)
    version, replaced = str(previous.version), str(champion.version)
    if version != replaced:
        audit(client, name, f"champion {replaced} -> {version}: rolled back by {by}")
        client.set_model_version_tag(name, replaced, ROLLED_BACK, f"by {by}, to {version}")
        client.set_registered_model_alias(name, CHAMPION, version)
    client.delete_registered_model_alias(name, PREVIOUS)
    return version
