"""A workflow's file as Go reads it: 1e-4 is a number there, 12:30 and dates are texts."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Hashable, Iterator
from pathlib import Path
from typing import Any

import yaml

from runner.language import Object, Refused
from runner.shapes import brief
from runner.values import json_number

LITERAL = ("default", "enum", "value", "withItems")
"""Fields whose value is kept unchanged, nulls included."""


HALF_A_SIGN = re.compile("[\ud800-\udfff]")


class Loader(yaml.SafeLoader):
    """Resolves plain scalars as go-yaml 2 does, with which Argo reads its files."""


def number(_: Loader, node: yaml.ScalarNode) -> int | float:
    text = node.value.replace("_", "")
    if re.fullmatch(r"[-+]?0[0-7]+", text):
        text = text.replace("0", "0o", 1)
    try:
        return int(text, 0)
    except ValueError:
        return float(text)


def letter(_: Loader, node: yaml.ScalarNode) -> str:
    """To Argo a bare y or n is a boolean; to most who write it, it is a text."""
    line = node.start_mark.line + 1
    raise Refused(
        f"line {line}: {node.value} without quotes is a boolean to Argo; write it in quotes"
    )


def infinity(_: Loader, node: yaml.ScalarNode) -> None:
    line = node.start_mark.line + 1
    raise Refused(f"line {line}: {node.value} is no number that JSON has; put a text in quotes")


def mapping(loader: Loader, node: yaml.MappingNode) -> Iterator[Object]:
    """A mapping; Refused if a key is there twice, also through a merge."""
    loader.flatten_mapping(node)
    read: dict[Any, Any] = {}
    yield read  # what is in it may refer to it
    for key_node, value_node in node.value:
        key = loader.construct_object(key_node, deep=True)
        line = key_node.start_mark.line + 1
        if not isinstance(key, Hashable):
            raise Refused(
                f"line {line}: {{{{ opens two mappings; a text that begins so needs quotes"
            )
        if key in read:
            raise Refused(f"line {line}: {brief(key)} is there twice, which Argo refuses")
        read[key] = loader.construct_object(value_node)


Loader.yaml_implicit_resolvers = {
    sign: [
        (tag, pattern)
        for tag, pattern in resolvers
        if not tag.endswith((":timestamp", ":int", ":float"))
    ]
    for sign, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
Loader.add_implicit_resolver(
    "tag:loraline,2026:number",
    re.compile(
        r"[-+]?(?:0x[0-9a-fA-F_]+|0o[0-7_]+|0b[01_]+"
        r"|(?:\.[0-9_]+|[0-9][0-9_]*(?:\.[0-9_]*)?)(?:[eE][-+]?[0-9]+)?)$"
    ),
    list("-+.0123456789"),
)
Loader.add_implicit_resolver("tag:loraline,2026:letter", re.compile(r"[yYnN]$"), list("yYnN"))
Loader.add_implicit_resolver(
    "tag:loraline,2026:infinity",
    re.compile(r"[-+]?\.(?:inf|Inf|INF)$|\.(?:nan|NaN|NAN)$"),
    list("-+."),
)
Loader.add_constructor("tag:loraline,2026:infinity", infinity)
Loader.add_constructor("tag:yaml.org,2002:map", mapping)
Loader.add_constructor("tag:loraline,2026:letter", letter)
Loader.add_constructor("tag:loraline,2026:number", number)


def load(file: Path) -> Object:
    """The document in a file, without the fields that are null: Argo ignores them."""
    try:
        text = file.read_text(encoding="utf-8")
        document = yaml.load(text, Loader)
        if is_json(text):
            document = whole_signs(document)
        if not isinstance(document, dict):
            raise Refused(f"a workflow has to be a mapping, not {brief(document)}")
        mapping: Object = plain(document)
        return mapping
    except OSError as error:
        raise Refused(f"cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, ValueError) as error:
        raise Refused(f"is not YAML: {' '.join(str(error).split())}") from error
    except RecursionError as error:
        raise Refused("nests too deep to be read") from error


def is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def whole_signs(value: Any) -> Any:
    """A value whose texts have no lone surrogates, which JSON's escapes can spell.

    Two halves are one character, such as an emoji; to Go a lone half is invalid.
    """
    if isinstance(value, dict):
        return {whole_signs(key): whole_signs(member) for key, member in value.items()}
    if isinstance(value, list):
        return [whole_signs(member) for member in value]
    if isinstance(value, str) and HALF_A_SIGN.search(value):
        joined = value.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")
        return HALF_A_SIGN.sub("\ufffd", joined)
    return value


def plain(value: Any, *, literal: bool = False) -> Any:
    """What JSON can say of a YAML value; inside of a literal nulls are kept."""
    if isinstance(value, dict):
        return {
            key_text(plain(key)): plain(member, literal=literal or key in LITERAL)
            for key, member in value.items()
            if member is not None or literal
        }
    if isinstance(value, list):
        return [plain(member, literal=literal) for member in value]
    if isinstance(value, str) and HALF_A_SIGN.search(value):
        raise Refused(f"{brief(value)} has an escape of half a surrogate pair, which YAML has not")
    if value is not None and not isinstance(value, str | bool | int | float):
        raise Refused(f"{brief(value)} is a {type(value).__name__}, which JSON has not")
    if isinstance(value, float) and not math.isfinite(value):
        raise Refused(f"{brief(value)} is no number that JSON has")
    return value


def key_text(key: Any) -> str:
    if isinstance(key, str):
        return key
    if isinstance(key, bool):
        return "true" if key else "false"
    return "" if key is None else json_number(float(key)) if isinstance(key, int | float) else ""
