"""What the flags ask for: sources in a registry or by their address, and what is said of each."""

from __future__ import annotations

import codecs
import json
import posixpath
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, ValidationError

from loraline.data.reading import registries
from loraline.errors import UserError

REGISTRY = "datasets.yaml"

FLAG = re.compile(
    r"(?P<uri>.+?)(?:%(?P<percent>\d+(?:\.\d+)?)|#(?P<rows>\d+))?(?:\*(?P<weight>\d+(?:\.\d+)?))?"
)

Coordinates = Literal["pixels", "unit", "thousand"]


class Entry(BaseModel):
    """One source as asked for: in the registry, or by a flag."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    uri: str = Field(min_length=1)
    """Path, s3://, hf://, dvc:// or mlflow://."""

    sample: str = Field("", pattern=r"^(%\d+(\.\d+)?|#0*[1-9]\d*)?$")
    """`%50` takes about half of the rows, `#2000` takes 2,000; chosen by content."""

    weight: PositiveFloat = 1
    """How often a training row of this source stands in the dataset; 0.5 keeps half of them."""

    columns: Mapping[str, str] = {}
    """Our name of a column to the source's, as in `question: ask`, or to a template of several."""

    ignore: tuple[str, ...] = ()
    """Columns that are left out on purpose."""

    turns: Mapping[str, str] = {}
    """Our name of a turn's keys (`role`, `content`) and roles to the source's."""

    learn: Literal["all", "last"] = "all"
    """Answers of a conversation that are learnt."""

    preference: Literal["good"] | None = None
    """`good` learns the chosen answers of preference data; null refuses such data."""

    media: str | None = None
    """Folder that media are named from; null is the data file's own."""

    window: tuple[float, float] | None = None
    """Values of a picture of more than 8 bits that are black and white; null goes by its own."""

    encoding: str = ""
    """Of text files that are not UTF-8, as Python names it."""

    boxes: Coordinates | None = None
    """Coordinates of bounding boxes in the rows; null leaves numbers alone."""

    split: Literal["train", "validation", "test"] | None = None
    """The split that all rows go to; null goes by file names, or by content."""


def entries(flags: Sequence[str], encoding: str = "") -> list[Entry]:
    """What the flags ask for: a registry file, a name in a registry, or a URI.

    `encoding` is that of text files whose registry entry names none.
    """
    known = read_registry(Path(REGISTRY)) if Path(REGISTRY).is_file() else {}
    found: list[Entry] = []
    for flag in flags:
        file, _, chosen_names = flag.partition(".json:") if ".json:" in flag else (flag, "", "")
        if is_registry(flag):
            found += read_registry(Path(flag)).values()
        elif chosen_names and is_registry(f"{file}.json"):
            registry = read_registry(Path(f"{file}.json"))
            for name in chosen_names.split(","):
                if name not in registry:
                    accepted = ", ".join(list(registry)[:5])
                    raise UserError(f"{file}.json has no dataset {name[:40]!r}; it has {accepted}")
                found.append(registry[name])
        else:
            found.append(asked_for(flag, known))
    if encoding:
        found = [
            entry if entry.encoding else entry.model_copy(update={"encoding": encoding})
            for entry in found
        ]
    for entry in found:
        try:
            codecs.lookup(entry.encoding or "utf-8")
        except LookupError:
            raise UserError(
                f"encoding {entry.encoding!r} is unknown; write it as utf-16, gbk, latin-1 or so"
            ) from None
    return found


def asked_for(flag: str, known: Mapping[str, Entry]) -> Entry:
    """A name in a registry or a URI, with a sample and a weight after it."""
    match = FLAG.fullmatch(flag)
    if Path(flag).exists() or match is None:
        return known.get(flag) or Entry(uri=flag)
    uri, percent, rows, weight = match.group("uri", "percent", "rows", "weight")
    entry = known.get(uri) or Entry(uri=uri)
    if percent or rows:
        entry = entry.model_copy(update={"sample": f"%{percent}" if percent else f"#{rows}"})
    if weight:
        entry = entry.model_copy(update={"weight": float(weight)})
    if percent and not 0 < float(percent) <= 100:
        raise UserError(f"--data {flag!r}: a sample of %{percent} is not between 0 and 100")
    if rows and not int(rows):
        raise UserError(f"--data {flag!r} asks for a sample of no rows")
    if entry.weight <= 0:
        raise UserError(f"--data {flag!r}: a weight of {weight} is not above 0")
    return entry


def is_registry(flag: str) -> bool:
    """Whether a flag names a registry: ours, LLaMA-Factory's or ms-swift's."""
    return flag.endswith((".yaml", ".yml")) or posixpath.basename(flag) == registries.FILE


def read_registry(file: Path) -> dict[str, Entry]:
    """Named sources of a registry; relative paths count from its folder."""
    import yaml

    try:
        text = file.read_text(encoding="utf-8-sig")
        content = json.loads(text) if file.suffix == ".json" else yaml.safe_load(text)
    except FileNotFoundError as error:
        raise UserError(f"registry {file} does not exist") from error
    except (yaml.YAMLError, ValueError) as error:
        language = "JSON" if file.suffix == ".json" else "YAML"
        raise UserError(
            f"{file} is not valid {language}: {' '.join(str(error).split())[:160]}"
        ) from error
    if file.suffix == ".json":
        content = registries.translated(file, content)
    if not isinstance(content, dict) or not content:
        raise UserError(f"{file} must hold names of datasets, each with a uri")
    found = {}
    for name, fields in content.items():
        try:
            entry = Entry(**fields) if isinstance(fields, dict) else Entry(uri=fields)
        except ValidationError as error:
            wrong = error.errors()[0]
            key = ".".join(str(part) for part in wrong["loc"])
            accepted = ", ".join(Entry.model_fields)
            raise UserError(
                f"{file}: dataset {name!r}, key {key!r}: {wrong['msg'].lower()} (keys: {accepted})"
            ) from error
        if "://" not in entry.uri:
            entry = entry.model_copy(update={"uri": str(file.parent / entry.uri)})
            if entry.media and (file.parent / entry.media).is_dir():
                entry = entry.model_copy(update={"media": str(file.parent / entry.media)})
        found[str(name)] = entry
    return found
