"""The parameters of each workflow, with defaults and descriptions for the UI."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import templates
from templates import Settings


def parameter(name: str, value: str, description: str, enum: list[str] | None = None) -> Any:
    from hera.workflows import Parameter

    return Parameter(name=name, value=value, description=description, enum=enum)


def one_profile(settings: Settings) -> list[Any]:
    return [
        parameter(
            "profile",
            "smoke-vision",
            "Recipe: a file in lora_profiles/, or one of `recipes`.",
            list(templates.registered_models(settings)),
        ),
        parameter("data", "", "Where the rows are; empty for the profile's own data."),
        parameter("set", "", "Keys of the profile for this run, such as learning_rate=1e-4."),
        parameter("recipes", "", "Profiles instead of those in the image: YAML, keys by name."),
        *where(settings),
    ]


def many_profiles(settings: Settings) -> list[Any]:
    profile, data, *rest = one_profile(settings)
    profile.description = (
        "Recipe whose data is prepared; its registered model is that of all `profiles`."
    )
    listed = '["smoke-vision"]'
    return [
        profile,
        parameter("profiles", listed, "The recipes to compare: names, as a JSON list."),
        data,
        *rest,
    ]


def a_version(settings: Settings) -> list[Any]:
    return [
        parameter("model", "tiny-qwen3-vl-lora", "Name of the registered model."),
        parameter("version", "", "The version that was reviewed; empty for the candidate."),
        *where(settings),
    ]


def new_data(settings: Settings) -> list[Any]:
    profile, data, *rest = one_profile(settings)
    data.value = "s3://loraline-data/latest"
    data.description = "Where new rows arrive; read anew at each run."
    return [profile, data, *rest]


def where(settings: Settings) -> list[Any]:
    return [
        parameter(
            "resources",
            settings.machines or "cpu",
            "Class of what training and evaluation run on; see docs/cluster.md.",
            list(settings.offered),
        ),
        parameter("image", settings.image, "Image of the steps that need no GPU."),
        parameter("gpu-image", settings.gpu_image, "Image of training and evaluation."),
        parameter(
            "notify",
            "no",
            "Whether the webhook in the Secret's `webhook-url` is told how the workflow ended.",
            ["yes", "no"],
        ),
    ]


PARAMETERS: dict[str, Callable[[Settings], list[Any]]] = {
    "pipeline": one_profile,
    "sweep": many_profiles,
    "promote": a_version,
    "retrain": new_data,
}
