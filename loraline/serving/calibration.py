"""A model's activations as logs of real servers show them: kept with the model, by card."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from loraline.errors import UserError
from loraline.serving import sizing
from loraline.serving.cards import GPUS

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import RegisteredModel

    from loraline.serving.sizing import Demand, Plan

TAG = "loraline.activation"
"""Tag of a registered model, with a card's name; its value is a text of `learned_text`."""


def remembered(model: RegisteredModel) -> dict[str, str]:
    """Activations from earlier logs, by card, as the model's tags have them."""
    return {
        key.removeprefix(f"{TAG}."): learned
        for key, learned in sorted(model.tags.items())
        if key.startswith(f"{TAG}.")
    }


def plan(
    demand: Demand,
    gpu: str | None,
    *,
    cards: int = 1,
    fraction: float = 1.0,
    log: str = "",
    remembered: Mapping[str, str],
    model: str,
    revision: str,
) -> Plan:
    """The cards and arguments that fit, with activations from `log` or from an earlier log.

    `remembered` are the tags of registered model `model`; they count for the same revision of
    the base. Without `gpu` the smallest card that fits. Raises UserError where none fits, and says
    where the activations were learned.
    """
    learned = {}
    for card, text in remembered.items():
        source = f"tag {TAG}.{card} of registered model {model}"
        gib = learned_gib(text, revision, demand, source)
        if gib is not None:
            learned[card] = gib
    if gpu is None:
        return sizing.smallest(demand, learned)
    if gpu not in GPUS:
        raise UserError(f"--gpu {gpu!r} is not known; accepted: cpu, {', '.join(GPUS)}")
    source = f"tag {TAG}.{gpu} of registered model {model}; delete it to forget"
    if log:
        learned[gpu] = sizing.calibrate(log, demand, gpu, cards=cards, fraction=fraction)
        source = "the log given"
    try:
        return sizing.plan(
            replace(demand, activation=learned.get(gpu)), gpu, cards=cards, fraction=fraction
        )
    except UserError as error:
        note = f" (activations learned from {source})" if gpu in learned else ""
        raise UserError(f"{error}{note}") from error


def learned_text(revision: str, learned: Plan, demand: Demand) -> str:
    """The base's revision, the activations in GiB, and the sizes at which they were learned: the
    tokens of a step and the pixels of an image."""
    sizes = f"{demand.max_num_batched_tokens} {sizing.largest_pixels(demand)}"
    return f"{revision} {learned.activation} {sizes}"


def learned_gib(text: str, revision: str, demand: Demand, source: str) -> float | None:
    """The activations in GiB that a tag holds for this revision of the base; None for another one.

    What was learned at smaller sizes than the demand's is the least that it needs: the estimate
    counts where that is more. So it does for a tag without sizes, as earlier versions wrote it.
    Raises UserError for what `learned_text` has not written.
    """
    words = text.split()
    try:
        gib, sizes = float(words[1]), [int(word) for word in words[2:]]
    except (IndexError, ValueError):
        gib, sizes = math.nan, []
    valid = len(words) in (2, 4) and math.isfinite(gib) and gib > 0
    if not valid or (sizes and (sizes[0] < 1 or sizes[1] < 0)):
        raise UserError(
            f"{source} is {text[:80]!r}, expected a revision, GiB, tokens and pixels; delete it"
        )
    if words[0] != revision:
        return None
    needed = (demand.max_num_batched_tokens, sizing.largest_pixels(demand))
    if sizes and all(need <= size for need, size in zip(needed, sizes, strict=True)):
        return gib
    return max(gib, sizing.activation_gib(demand))


def remember(client: MlflowClient, model: str, card: str, text: str) -> None:
    """Keep what a log taught about a card with the registered model."""
    client.set_registered_model_tag(model, f"{TAG}.{card}", text)
