"""The profile of a training run: as it was used then, and as it is today."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from loraline.errors import UserError
from loraline.tracking import identity, runs
from loraline.tracking.tags import OVERRIDES, PROFILE, PROFILE_DIGEST

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

    from loraline.profiles.profile import Profile


def of_training(client: MlflowClient, train_run: Run) -> Profile:
    """The resolved profile that a training run was made with."""
    from loraline.profiles.profile import Profile

    with runs.artifacts(client, train_run.info.run_id, "profile.json") as file:
        text = file.read_bytes()
    try:
        values = json.loads(text)
        identity.expect(train_run, PROFILE_DIGEST, identity.values_digest(values), "profile.json")
        recipe = Profile.model_validate(values)
    except (ValueError, RecursionError) as error:
        raise UserError(
            identity.changed("train_qlora", f"profile.json is no profile: {str(error)[:200]}")
        ) from error
    name = train_run.data.params.get("registered_model", recipe.registered_model)
    if recipe.registered_model != name:
        logged = f"registered model {recipe.registered_model!r}"
        change = f"profile.json says {logged}, its parameter {name!r}"
        raise UserError(identity.changed("train_qlora", change))
    return recipe


def as_today(
    train_run: Run,
    overrides: Sequence[str] | None = None,
    recipes: Mapping[str, dict[str, Any]] | None = None,
) -> Profile:
    """The profile of a training run as it is today, with `overrides`; None where none are given.

    Limits are today's policy, so they come from the file, the workflow or the step's own options,
    and never from the run, whose tags others can write. Raises UserError where the training was
    given other limits by --set and this step was given nothing. Which profile it is, the run's
    parameter says, which nobody can change; UserError where its tag says something else.
    """
    from loraline.profiles.loading import load_profile

    name = train_run.data.tags.get(PROFILE, "")
    trained_with = train_run.data.params.get("profile", name)
    if name != trained_with:
        change = f"its tag {PROFILE} says {name!r}, its parameter {trained_with!r}"
        raise UserError(identity.changed("train_qlora", change))
    if overrides is None and (limits := tagged_limits(train_run)):
        raise UserError(
            f"run {train_run.info.run_id} was trained with the limits {', '.join(limits)[:200]}, "
            "which anyone who may set its tags can change: give this step the limits that shall "
            "count with --set, or --set '' for the profile's own"
        )
    return load_profile(name, overrides=overrides or (), recipes=recipes)


def tagged_limits(train_run: Run) -> list[str]:
    """The limits among what was set for a training last, by its tag.

    UserError where the tag is of another form.
    """
    change = f"its tag {OVERRIDES} is no list of KEY=VALUE"
    try:
        overrides = json.loads(train_run.data.tags.get(OVERRIDES, "[]"))
    except (ValueError, RecursionError) as error:
        raise UserError(identity.changed("train_qlora", change)) from error
    if not isinstance(overrides, list) or not all(isinstance(each, str) for each in overrides):
        raise UserError(identity.changed("train_qlora", change))
    return [each for each in overrides if re.match(r"gate\b", each)]
