"""The effect of an adapter's weights on a base: which layers they change, and by how much.

Both directions are held against `adapter_config.json`: vLLM applies every weight of the file that
fits a layer, PEFT only those that the config targets, and what neither finds a layer for does
nothing.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from loraline.base.architectures import Linears
from loraline.contract import WEIGHTS
from loraline.serving.adapter_config import (
    CONFIG,
    Finding,
    is_target,
    printed,
    rank_of,
    scaling_of,
)
from loraline.serving.weights_file import Tensor, rounded

PREFIX = r"base_model\.model\.(?P<module>.+)\."
KEY = re.compile(PREFIX + r"(?:lora_(?P<side>[AB])\.weight|lora_embedding_(?P<table>[AB]))")
MAGNITUDE = re.compile(PREFIX + "lora_magnitude_vector")
BASE_LAYER = re.compile(r"(?:.*\.)?(?:embed_tokens|lm_head)\.base_layer\.weight")
"""Weights of the base that PEFT writes beside an adapter on its embeddings; both skip them."""

FAINT = 1e-6
"""A matrix of weights moved by less, in all its entries together (Frobenius norm), is the same:
that is below float32's rounding of any matrix whose norm is 10 or more."""

LARGEST = {"float16": 65504.0, "bfloat16": 3.39e38, "float32": 3.4e38}


class Layers(NamedTuple):
    """The layers of a base that an adapter may have weights for."""

    linears: Linears
    tables: Linears
    """Head and embeddings, as (inputs, outputs)."""

    tables_applied: bool
    """Whether vLLM applies adapters on them."""

    def size(self, module: str) -> tuple[int, int] | None:
        return self.linears.get(module) or self.tables.get(module)


Pair = dict[str, Tensor]


def weight_findings(
    tensors: Mapping[str, Tensor],
    config: Mapping[str, Any],
    layers: Layers,
    *,
    trains_vision: bool,
    dtype: str,
    sound: bool,
) -> list[Finding]:
    """What is wrong with the weights on a base of these layers, served in `dtype`.

    `sound` says that the config's settings can be worked with.
    """
    pairs, findings = paired(tensors, layers)
    if not tensors:
        return [Finding(WEIGHTS, "holds no tensors", "log the adapter anew")]
    changes = {}
    for module, pair in pairs.items():
        wrong = pair_findings(module, pair, config, layers, sound=sound)
        findings += wrong
        if sound and not wrong:
            changes[module] = change(pair, scaling_of(config, module), dtype)
            findings += change_findings(module, changes[module], dtype)
    findings += tower_findings(pairs, changes, trains_vision)
    if sound:
        findings += target_findings(pairs, changes, config, layers)
    if changes and all(change < FAINT for change in changes.values()) and not findings:
        findings.append(no_effect(pairs))
    return findings


def paired(tensors: Mapping[str, Tensor], layers: Layers) -> tuple[dict[str, Pair], list[Finding]]:
    """The matrices of each module, and the other tensors."""
    findings: list[Finding] = []
    pairs: dict[str, Pair] = {}
    for key, tensor in tensors.items():
        if BASE_LAYER.fullmatch(key):
            continue
        match = KEY.fullmatch(key)
        if not match:
            findings.append(Finding(key, "is no LoRA weight", "train LoRA matrices only"))
        elif not fits(match["module"], match["table"], layers):
            findings.append(Finding(key, "matches no linear layer of the base", hint(key, layers)))
        else:
            pairs.setdefault(match["module"], {})[match["side"] or match["table"]] = tensor
        findings += number_findings(key, tensor)
    return pairs, findings


def number_findings(key: str, tensor: Tensor) -> list[Finding]:
    """What is wrong with a tensor's numbers."""
    try:
        finite = tensor.finite()
    except ValueError as error:
        return [Finding(key, str(error), "save it in a type of float")]
    if finite:
        return []
    return [Finding(key, "holds NaN or infinity", "train again, at a lower rate")]


def fits(module: str, table: str | None, layers: Layers) -> bool:
    """Whether vLLM has a layer of that name; an embedding's weights have other suffixes."""
    if module in layers.tables:
        return layers.tables_applied and module.endswith("embed_tokens") == bool(table)
    return module in layers.linears and not table


def pair_findings(
    module: str, pair: Pair, config: Mapping[str, Any], layers: Layers, *, sound: bool
) -> list[Finding]:
    """What is wrong with one module's two matrices, A of (rank, in) and B of (out, rank)."""
    if set(pair) != {"A", "B"}:
        return [Finding(module, f"has lora_{min(pair)} alone", "log the adapter anew")]
    size = layers.size(module)
    stored_rank = pair["A"].shape[0] if pair["A"].shape else 0
    rank = rank_of(config, module) if sound else stored_rank
    assert size is not None
    expected = ((rank, size[0]), (size[1], rank))
    if (pair["A"].shape, pair["B"].shape) != expected:
        rule = f"has shapes {pair['A'].shape} and {pair['B'].shape}, the base needs "
        rule += f"{expected[0]} and {expected[1]}"
        return [Finding(module, rule, "serve the base that it was trained on")]
    return []


def change(pair: Pair, scaling: float, dtype: str) -> float:
    """The norm of what the matrices add to a layer's weights, B·A times alpha / r.

    As vLLM forms it: both rounded to the serving type, B multiplied by the scaling in that type.
    NaN or infinity where that is not finite. From the two products of (rank, rank), since
    |BA|² = sum(BᵀB * AAᵀ); cancelled ranks are multiplied out.
    """
    import numpy as np

    with np.errstate(all="ignore"):
        try:
            a, b = rounded(pair["A"].values(), dtype), rounded(pair["B"].values(), dtype)
        except ValueError:
            return 0.0
        b = rounded(b * np.float32(scaling), dtype)
        if not (np.isfinite(a).all() and np.isfinite(b).all()):
            return math.nan
        a, b = a.astype(np.float64), b.astype(np.float64)
        square = float(((b.T @ b) * (a @ a.T)).sum())
        norms = float((a * a).sum() * (b * b).sum())
        if square <= 1e-12 * norms:
            return float(np.linalg.norm(b @ a))
    return math.sqrt(square) if math.isfinite(square) else math.inf


def change_findings(module: str, size: float, dtype: str) -> list[Finding]:
    if size <= LARGEST[dtype]:
        return []
    rule = f"lora_B times lora_alpha / r is not finite in {dtype}"
    return [Finding(module, rule, "train again, at a lower rate, or with another lora_alpha")]


def tower_findings(
    pairs: Mapping[str, Pair], changes: Mapping[str, float], trains_vision: bool
) -> list[Finding]:
    """Effective weights of the vision tower that the server was not started for."""
    rule = "is in the vision tower, whose weights the server would drop in silence"
    remedy = "leave the tower out, or state it in the profile"
    return [
        Finding(module, rule, remedy)
        for module in pairs
        if is_vision(module) and not trains_vision and not changes.get(module, 1.0) < FAINT
    ]


def is_vision(module: str) -> bool:
    return ".visual." in f".{module}"


def target_findings(
    pairs: Mapping[str, Pair],
    changes: Mapping[str, float],
    config: Mapping[str, Any],
    layers: Layers,
) -> list[Finding]:
    """Targets without weights, and effective weights that are not targets."""
    findings = []
    targets = {module for module in (*layers.linears, *layers.tables) if is_target(config, module)}
    if not targets:
        rule = f"{printed(config.get('target_modules'))} names no layer of the base"
        findings.append(Finding("target_modules", rule, "serve the base that it was trained on"))
    if config.get("ensure_weight_tying") and targets & {*layers.tables}:
        rule = "PEFT adapts the tied layer too, vLLM does not"
        findings.append(Finding("ensure_weight_tying", rule, "leave head and embeddings out"))
    without_weights = [
        module for module in (*layers.linears, *layers.tables) if module in targets - {*pairs}
    ]
    if without_weights:
        rule = (
            f"is a target of {CONFIG}, but {WEIGHTS} holds no weights for it{more(without_weights)}"
        )
        findings.append(
            Finding(without_weights[0], rule, "log the adapter anew, or serve the base it fits")
        )
    untargeted = [
        name for name in pairs if name not in targets and not changes.get(name, 1.0) < FAINT
    ]
    if untargeted:
        rule = f"has weights that vLLM applies, but is no target of {CONFIG}{more(untargeted)}"
        findings.append(Finding(untargeted[0], rule, "log the adapter anew"))
    return findings


def more(names: list[str]) -> str:
    return f" and {len(names) - 1} more" if len(names) > 1 else ""


def no_effect(pairs: Mapping[str, Pair]) -> Finding:
    """A finding if the adapter changes no layer, with the reason if one matrix shows it."""
    for side in ("B", "A"):
        if not any(pair[side].values().any() for pair in pairs.values() if side in pair):
            rule = f"all lora_{side} weights are zero, so the answers are the base's"
            return Finding(WEIGHTS, rule, "train it")
    rule = "moves no layer of the base, so the answers are the base's"
    return Finding(WEIGHTS, rule, "train it, or with another lora_alpha")


def without_magnitudes(
    tensors: Mapping[str, Tensor], layers: Layers
) -> tuple[dict[str, Tensor], list[Finding]]:
    """The tensors without DoRA's magnitudes, and what is wrong with the magnitudes."""
    findings: list[Finding] = []
    others: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        match = MAGNITUDE.fullmatch(key)
        size = layers.linears.get(match["module"]) if match else None
        if not match:
            others[key] = tensor
        elif size is None:
            findings.append(Finding(key, "matches no linear layer of the base", hint(key, layers)))
        elif tensor.shape != (size[1],):
            rule = f"has shape {tensor.shape}, and the layer has {size[1]} outputs"
            findings.append(Finding(key, rule, "merge it into its own base"))
        else:
            findings += number_findings(key, tensor)
    return others, findings


def hint(key: str, layers: Layers) -> str:
    """The most likely meaning of a key that matches nothing."""
    layer = re.search(r"layers\.(\d+)\.", key)
    numbers = [re.search(r"layers\.(\d+)\.", name) for name in layers.linears]
    depth = max(int(number[1]) for number in numbers if number)
    if "lm_head" in key or "embed_tokens" in key:
        return "vLLM takes no adapter on the head or the embeddings of this base; leave them out"
    if layer and int(layer[1]) > depth:
        return f"the base has {depth + 1} layers; serve the base that it was trained on"
    if any(name.startswith("model.language_model.") for name in layers.linears):
        return "its path must go through model.language_model; save it with transformers 5"
    return "serve the base that it was trained on"
