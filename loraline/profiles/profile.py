"""Named training recipes: one YAML file a profile, the file's stem is its name."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, NonNegativeInt, ValidationError, model_validator
from pydantic_core import ErrorDetails

from loraline.errors import UserError
from loraline.profiles.catalog import files, resolve
from loraline.profiles.keys import Data, Identity, Optimization, Serving, Trainable, Tune
from loraline.profiles.layered_yaml import override
from loraline.profiles.limits import Gate, Strict, check_metrics, metric_name
from loraline.profiles.preparation import Entry, Prepare, Split


# pydantic takes the keys of the last group first.
class Profile(Serving, Optimization, Trainable, Data, Identity):
    """One training recipe. Keys are named as in PEFT and TRL where they are passed through."""

    metrics: tuple[str, ...] = ()
    """Metrics of the user's own, measured beside ours: files ending with .py, or entry points of
    the group `loraline.metrics`."""

    seed: NonNegativeInt = 0
    """Seed of the adapter's initial weights and of the order of rows."""

    gate: Gate = Gate()
    """Limits that a candidate must keep."""

    @model_validator(mode="before")
    @classmethod
    def full_is_whole_and_merged(cls, content: Any) -> Any:
        """Under `train: full`, set quantization and export to their only possible values."""
        if isinstance(content, dict) and content.get("train") == "full":
            return {"quantization": "none", "export": "merged", **content}
        return content

    @model_validator(mode="after")
    def full_trains_no_adapter(self) -> Self:
        if self.train == "lora":
            return self
        if self.quantization != "none":
            raise ValueError(
                "train: full needs quantization: none, because quantized weights cannot learn"
            )
        if self.export != "merged":
            raise ValueError(
                "train: full needs export: merged, because a whole model comes out and no adapter"
            )
        adapter_keys = ("use_dora", "init_lora_weights", "loraplus_lr_ratio")
        if set_keys := [key for key in adapter_keys if getattr(self, key)]:
            raise ValueError(f"{set_keys[0]} is a way to train an adapter; train: full has none")
        return self

    @model_validator(mode="after")
    def served_as_the_server_can(self) -> Self:
        if self.use_dora and self.export == "adapter":
            raise ValueError("use_dora needs export: merged, because vLLM refuses DoRA adapters")
        return self

    @model_validator(mode="after")
    def fp8_is_served_as_it_was_trained(self) -> Self:
        if self.quantization != "fp8":
            return self
        if self.use_dora:
            raise ValueError(
                "use_dora needs quantization: nf4 or none, because it reads weights whole"
            )
        if self.export != "adapter":
            raise ValueError(
                "quantization: fp8 needs export: adapter, because merged weights would be rounded "
                "anew"
            )
        if self.serve_dtype != "bfloat16":
            raise ValueError(
                "quantization: fp8 needs serve_dtype: bfloat16, the type of its products"
            )
        return self

    @model_validator(mode="after")
    def measures_what_it_limits(self) -> Self:
        names = [metric_name(entry) for entry in self.metrics]
        for name in names:
            if not re.fullmatch("[a-z][a-z0-9_]{0,40}", name) or names.count(name) > 1:
                raise ValueError(
                    f"metrics: {name!r} is refused, a name is of small letters, digits and _, once"
                )
        check_metrics(self.gate, self.metrics)
        return self

    @model_validator(mode="after")
    def pixels_belong_to_vision(self) -> Self:
        limits = (self.min_pixels, self.max_pixels)
        if self.modality == "text":
            if limits != (None, None) or self.trains_vision or not self.tune.language:
                raise ValueError(
                    "min_pixels, max_pixels, merger_learning_rate, tower_learning_rate and tune "
                    "need modality: vision"
                )
        elif self.min_pixels is None or self.max_pixels is None:
            raise ValueError("modality: vision needs min_pixels and max_pixels")
        elif self.min_pixels > self.max_pixels:
            raise ValueError(f"min_pixels {self.min_pixels} is above max_pixels {self.max_pixels}")
        return self


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
    """Errors with one of each value that may be of two types, under the key that people write."""
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
