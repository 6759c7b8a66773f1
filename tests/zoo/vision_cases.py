"""Adapters for the vision-language bases: where the tower and the old paths matter."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import bases
from adapters import Case
from edits import Edit, cast, config, each, renamed, without
from text_cases import SEVEN

QV = r".*\.layers\.\d+\.self_attn\.(?:q|v)_proj"
LANGUAGE = r"model\.language_model\.layers\.\d+\.(?:self_attn|mlp)\.(?:" + "|".join(SEVEN) + ")"
ATTENTION = r"model\.visual\.blocks\.\d+\.attn\.(?:qkv|proj)"
MERGER = r"model\.visual\.(?:merger\.mlp\.[02]|merger\.linear_fc[12])"
DEEPSTACK = r"model\.visual\.deepstack_merger_list\.\d+\.linear_fc[12]"

TOWER_PATTERNS = {"rank_pattern": {r"blocks\.0\.attn\.qkv": 2}, "alpha_pattern": {"attn.proj": 32}}


def cases() -> Iterator[Case]:
    for base in bases.VISION:
        yield from vision(base)


def vision(base: str) -> Iterator[Case]:
    """Adapters for a vision-language base: a language model of 3 layers, a tower of 2 blocks."""
    short = base.replace(".", "")

    def case(name: str, targets: Any, *edits: Edit, tower: bool = False, **more: Any) -> Case:
        named = f"{short}-{name}" + ("-told" if tower else "")
        known = {key: more.pop(key) for key in ("retuned", "precision") if key in more}
        return Case(named, base, {"target_modules": targets} | more, edits, tower, **known)

    yield case("attention", QV)
    yield case("attention", QV, tower=True)
    yield case("seven", LANGUAGE)
    yield case("seven-by-name", list(SEVEN))
    yield case("seven-by-name", list(SEVEN), tower=True)
    yield case("tower", ATTENTION)
    yield case("tower", ATTENTION, tower=True)
    yield case("merger", MERGER)
    yield case("merger", MERGER, tower=True)
    yield case("language-and-merger", f"{LANGUAGE}|{MERGER}")
    yield case("language-and-merger", f"{LANGUAGE}|{MERGER}", tower=True)
    yield case("all-linear", "all-linear")
    yield case("all-linear", "all-linear", tower=True)
    yield case("patches", f"{QV}|model\\.visual\\.patch_embed\\.proj", tower=True)
    yield case("patches", r"model\.visual\.patch_embed\.proj")
    old = renamed("model.model.language_model.layers", "model.model.layers")
    own = renamed("model.model.language_model.layers", "model.language_model.model.layers")
    yield case("old-path", QV, old)
    yield case("servers-path", QV, own)
    yield case("text-path", QV, renamed("language_model.layers", "text_model.layers"))
    yield case("no-such-block", ATTENTION, renamed("blocks.1", "blocks.9"), tower=True)
    yield case("old-tower-path", ATTENTION, renamed("model.visual", "visual"), tower=True)
    if base == "qwen3-vl":
        yield case("deepstack", DEEPSTACK)
        yield case("deepstack", DEEPSTACK, tower=True)
    still = each(lambda key, value: value * ("visual" not in key))
    yield case("still-tower", f"{QV}|{ATTENTION}", still, retuned=True)
    yield case("still-tower", f"{QV}|{ATTENTION}", still, tower=True, retuned=True)
    yield case("still-language", f"{QV}|{ATTENTION}", moved_tower_alone(), retuned=True)
    yield case("head", rf"{QV}|lm_head")
    yield case("embeddings", rf"{QV}|.*embed_tokens")
    yield case("text-names", list(SEVEN), renamed("model.model.language_model", "model.model"))
    yield case("layers", QV, renamed("layers.2", "layers.8"))
    both = f"{QV}|{ATTENTION}"
    for tower in (False, True):
        yield case("tower-bfloat16", both, cast("bfloat16"), tower=tower, precision="bfloat16")
        yield case("tower-patterns", both, tower=tower, **TOWER_PATTERNS)
        yield case("tower-by-names", ["q_proj", "qkv"], tower=tower)
        yield case("tower-excluded", "all-linear", tower=tower, exclude_modules=r".*visual.*")
        yield case("tower-nan", both, spoilt("blocks.0"), tower=tower)
        yield case("tower-b-lost", both, without("blocks.1.attn.qkv.lora_B"), tower=tower)
        yield case("tower-untold", both, config(target_modules=QV), tower=tower)
        yield case("tower-lost", both, without("visual"), tower=tower)
    yield case("tower-narrow", both, narrowed("visual"), tower=True)
    yield case(
        "one-block", rf"{QV}|model\.visual\.blocks\.0\.mlp\.(?:\w+_fc\d|fc\d|\w+_proj)", tower=True
    )
    yield case("saved-merger", QV, modules_to_save=["merger"], tower=True)
    yield case("rank-16-tower", both, r=16, tower=True)


def spoilt(part: str) -> Edit:
    return each(lambda key, value: value * float("nan") if part in key else value)


def narrowed(part: str) -> Edit:
    """Half of the inputs of some of the modules."""
    return each(
        lambda key, value: (
            value[:, : value.shape[1] // 2] if part in key and "lora_A" in key else value
        )
    )


def moved_tower_alone() -> Edit:
    return each(lambda key, value: value * ("visual" in key or "lora_A" in key))
