"""Reading a profile by its name, and saying what is wrong with it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from loraline.errors import UserError
from loraline.profiles.catalog import files, resolve
from loraline.profiles.keys import Tune
from loraline.profiles.layered_yaml import override
from loraline.profiles.limits import Gate, Strict
from loraline.profiles.preparation import Entry, Prepare, Split
from loraline.profiles.profile import Profile


def load_profile(
    name: str,
    folder: Path | None = None,
    overrides: Sequence[str] = (),
    recipes: Mapping[str, dict[str, Any]] | None = None,
) -> Profile:
    """Read one profile; `overrides` are KEY=VALUE texts that count instead of the file's values,
    `recipes` the keys of profiles that came with the workflow and count instead of files.

    A UserError names what was wrong and what would be accepted.
    """
    if recipes and name in recipes:
        content, source = recipes[name], f"profile {name!r} of --recipes"
    else:
        available = files(folder)
        content, source = resolve(name, available), str(available[name])
    if overrides:
        content = override(content, overrides)
        source = f"{source} with {' '.join(overrides)}"
    try:
        return Profile.model_validate(content)
    except ValidationError as error:
        raise UserError(f"{source}: {'; '.join(complaints(error))}") from error


BLOCKS: dict[str, type[BaseModel]] = {
    "gate": Gate,
    "prepare": Prepare,
    "prepare.sources": Entry,
    "split": Split,
    "tune": Tune,
}
"""The model of each block of a profile, for messages about unknown keys."""


def complaints(error: ValidationError, model: type[Strict] = Profile) -> list[str]:
    """One clause for each thing wrong: the key, the value, and what is accepted."""
    clauses = []
    for item in without_branches(error.errors()):
        key = ".".join(str(part) for part in item["loc"])
        if item["type"] == "extra_forbidden":
            block = ".".join(part for part in item["loc"][:-1] if isinstance(part, str))
            keys = BLOCKS.get(block, model)
            accepted = ", ".join(sorted(keys.model_fields))
            clauses.append(f"unknown key {key!r} (accepted: {accepted})")
        elif item["type"] == "invalid_key":
            clauses.append(f"key {key!r} has to be a text")
        elif item["type"] == "missing":
            clauses.append(f"key {key!r} is missing")
        elif item["type"] == "value_error":
            clauses.append(item["msg"].removeprefix("Value error, "))
        elif item["type"] == "finite_number" and (model is Gate or key.startswith("gate.")):
            clauses.append(
                f"{key}: {item['input']!r} is refused, write null for a limit that is not checked"
            )
        else:
            clauses.append(f"{key}: {item['input']!r} is refused, {lower_first(item['msg'])}")
    return clauses


NUMBER = re.compile("(constrained-)?(int|float)")
"""What pydantic adds to the place of a value that may be a whole number or another one."""


def without_branches(errors: Sequence[ErrorDetails]) -> list[ErrorDetails]:
    """Errors, one alone for a value that may be of two types, under the key that people write."""
    kept_errors: list[ErrorDetails] = []
    places: dict[tuple[int | str, ...], int] = {}
    for item in errors:
        place, branch = item["loc"][:-1], item["loc"][-1:]
        if not (place and NUMBER.fullmatch(str(branch[0]))):
            kept_errors.append(item)
            continue
        of_the_type = item["type"].startswith(("int_", "float_"))
        item["loc"] = place
        if of_the_type:
            item["msg"] = "expected a number"
        if place not in places:
            places[place] = len(kept_errors)
            kept_errors.append(item)
        elif not of_the_type:
            kept_errors[places[place]] = item
    return kept_errors


def lower_first(text: str) -> str:
    return text[:1].lower() + text[1:]
