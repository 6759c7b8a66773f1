"""A profile's keys as a form: name, type, bounds and what the source says of each."""

from __future__ import annotations

import ast
import inspect
from functools import cache
from itertools import pairwise
from typing import Any

from loraline import preparation, profiles
from loraline.profiles import Profile

SCALARS = ("string", "integer", "number", "boolean")


@cache
def documented() -> dict[str, dict[str, str]]:
    """What stands under each key, by class and key; pydantic leaves it in the source."""
    by_class: dict[str, dict[str, str]] = {}
    for module in (preparation, profiles):
        for definition in ast.parse(inspect.getsource(module)).body:
            if not isinstance(definition, ast.ClassDef):
                continue
            texts: dict[str, str] = {}
            for base in definition.bases:
                texts |= by_class.get(base.id, {}) if isinstance(base, ast.Name) else {}
            for line, after in pairwise(definition.body):
                if (
                    isinstance(line, ast.AnnAssign)
                    and isinstance(line.target, ast.Name)
                    and isinstance(after, ast.Expr)
                    and isinstance(after.value, ast.Constant)
                ):
                    texts[line.target.id] = " ".join(str(after.value.value).split())
            by_class[definition.name] = texts
    return by_class


@cache
def fields() -> tuple[dict[str, Any], ...]:
    """The keys that hold one value each; those of a block are named as --set has them."""
    schema = Profile.model_json_schema()
    return tuple(of_model("Profile", schema, schema.get("$defs", {}), ""))


def of_model(
    name: str, schema: dict[str, Any], blocks: dict[str, Any], prefix: str
) -> list[dict[str, Any]]:
    found = []
    for key, entry in schema["properties"].items():
        if "$ref" in entry:
            block = entry["$ref"].rpartition("/")[2]
            found += of_model(block, blocks[block], blocks, f"{prefix}{key}.")
            continue
        options = entry.get("anyOf", [entry])
        kind = next((each for each in options if each.get("type") in SCALARS), None)
        if kind is None:
            continue
        found.append(
            {
                "name": f"{prefix}{key}",
                "type": kind["type"],
                "choices": kind.get("enum"),
                "minimum": kind.get("minimum", kind.get("exclusiveMinimum")),
                "maximum": kind.get("maximum", kind.get("exclusiveMaximum")),
                "optional": any(each.get("type") == "null" for each in options),
                "doc": documented().get(name, {}).get(key, ""),
            }
        )
    return found


def form(profile: str) -> dict[str, Any]:
    """The form of a profile, filled with its own values; UserError for one that is none."""
    values = profiles.load(profile).model_dump(mode="json")

    def value(name: str) -> Any:
        found: Any = values
        for part in name.split("."):
            found = found[part]
        return found

    return {
        "profile": profile,
        "fields": [each | {"value": value(each["name"])} for each in fields()],
    }
