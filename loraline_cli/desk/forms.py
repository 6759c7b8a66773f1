"""A profile's keys as a form: name, type, bounds and documentation of each key."""

from __future__ import annotations

import ast
import inspect
from functools import cache
from itertools import pairwise
from typing import Any

from loraline.profiles import keys, limits, preparation, profile
from loraline.profiles.loading import load_profile
from loraline.profiles.profile import Profile

SCALARS = ("string", "integer", "number", "boolean")


@cache
def documented() -> dict[str, dict[str, str]]:
    """The docstring under each key, by class and key; pydantic leaves it in the source."""
    by_class: dict[str, dict[str, str]] = {}
    for module in (limits, preparation, keys, profile):
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
    """The keys with a scalar value; keys of a block are named as --set names them."""
    schema = Profile.model_json_schema()
    return tuple(of_model("Profile", schema, schema.get("$defs", {}), ""))


def of_model(
    name: str, schema: dict[str, Any], blocks: dict[str, Any], prefix: str
) -> list[dict[str, Any]]:
    fields = []
    for key, entry in schema["properties"].items():
        if "$ref" in entry:
            block = entry["$ref"].rpartition("/")[2]
            fields += of_model(block, blocks[block], blocks, f"{prefix}{key}.")
            continue
        options = entry.get("anyOf", [entry])
        scalar = next((each for each in options if each.get("type") in SCALARS), None)
        if scalar is None:
            continue
        fields.append(
            {
                "name": f"{prefix}{key}",
                "type": scalar["type"],
                "choices": scalar.get("enum"),
                "minimum": scalar.get("minimum", scalar.get("exclusiveMinimum")),
                "maximum": scalar.get("maximum", scalar.get("exclusiveMaximum")),
                "optional": any(each.get("type") == "null" for each in options),
                "doc": documented().get(name, {}).get(key, ""),
            }
        )
    return fields


def form(profile: str) -> dict[str, Any]:
    """The form of a profile with its values; UserError for an unknown profile."""
    values = load_profile(profile).model_dump(mode="json")

    def value(name: str) -> Any:
        node: Any = values
        for part in name.split("."):
            node = node[part]
        return node

    return {
        "profile": profile,
        "fields": [each | {"value": value(each["name"])} for each in fields()],
    }
