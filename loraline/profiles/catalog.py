"""The folders of profiles, and a file's keys with those of the profile that it extends."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from loraline.errors import UserError
from loraline.profiles.layered_yaml import merge, read_yaml

FOLDER = Path("lora_profiles")


def folders() -> list[Path]:
    """Where profiles are looked for, in this order: the current folder, the user's, ours."""
    installed = Path(__file__).parents[1] / "lora_profiles"
    checkout = Path(__file__).parents[2] / "lora_profiles"
    user = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    return [FOLDER, user / "loraline" / "profiles", installed, checkout]


def files(folder: Path | None = None) -> dict[str, Path]:
    """The file of each profile by its name; of two with one name the first folder's counts."""
    paths: dict[str, Path] = {}
    for place in folders() if folder is None else [folder]:
        for path in sorted(place.glob("*.yaml")):
            paths.setdefault(path.stem, path)
    return dict(sorted(paths.items()))


def names(folder: Path | None = None) -> list[str]:
    """Names of all profiles, sorted."""
    return list(files(folder))


def resolve(
    name: str, available: Mapping[str, Path], heirs: tuple[str, ...] = ()
) -> dict[str, Any]:
    """A profile's keys, with those of the profile that it extends; `heirs` are the profiles that
    extend this one."""
    if name in heirs:
        circle = " extends ".join([*heirs[heirs.index(name) :], name])
        raise UserError(f"{available[name]}: extends goes in a circle: {circle}")
    if name not in available:
        accepted = ", ".join(available) or (
            "none; run it in a folder that holds lora_profiles/, such as loraline's checkout"
        )
        place = f"{available[heirs[-1]]}: extends an " if heirs else ""
        raise UserError(f"{place}unknown profile {name!r}; accepted: {accepted}")
    path = available[name]
    try:
        content = read_yaml(path)
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold keys and values, found {content!r}")
    if "extends" not in content:
        return content
    parent = content.pop("extends")
    if not isinstance(parent, str):
        raise UserError(f"{path}: extends: {parent!r} is refused, name one profile")
    return merge(resolve(parent, available, (*heirs, name)), content)
