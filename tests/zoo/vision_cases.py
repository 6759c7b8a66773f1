"""Adapters for the vision-language bases: where the tower and the old paths matter."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import bases
from adapters import Case
from edits import Edit, each, renamed
from text_cases import SEVEN

QV = r".*\.layers\.\d+\.self_attn\.(?:q|v)_proj"
LANGUAGE = r"model\.language_model\.layers\.\d+\.(?:self_attn|mlp)\.(?:" + "|".join(SEVEN) + ")"
ATTENTION = r"model\.visual\.blocks\.\d+\.attn\.(?:qkv|proj)"
MERGER = r"model\.visual\.(?:merger\.mlp\.[02]|merger\.linear_fc[12])"
DEEPSTACK = r"model\.visual\.deepstack_merger_list\.\d+\.linear_fc[12]"


def cases() -> Iterator[Case]:
    for base in bases.VISION:
        yield from vision(base)


def vision(base: str) -> Iterator[Case]:
    """Adapters for a vision-language base: a language model of 3 layers, a tower of 2 blocks."""
    short = base.replace(".", "")

    def case(
        name: str, targets: Any, *edits: Edit, tower: bool = False, retuned: bool = False
    ) -> Case:
        named = f"{short}-{name}" + ("-told" if tower else "")
        return Case(named, base, {"target_modules": targets}, edits, tower, retuned=retuned)

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


def moved_tower_alone() -> Edit:
    return each(lambda key, value: value * ("visual" in key or "lora_A" in key))
