"""What vLLM would refuse, or accept and not apply; checked before anything is served.

vLLM looks at an adapter only after it has loaded the base, and then takes several kinds that do
nothing or do the wrong thing. Everything here is read from `adapter_config.json`, the safetensors
file and the base's `config.json`, without torch, in milliseconds.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from loraline.base.architectures import (
    SERVED,
    architecture_of,
    linears,
    tables,
)
from loraline.contract import BASE_CONFIG, WEIGHTS, Contract
from loraline.errors import UserError
from loraline.serving import expressions, model_weights
from loraline.serving.adapter_config import (
    CONFIG,
    PATTERNS_SINCE,
    Finding,
    is_integer,
    is_sound,
    printed,
    setting_findings,
)
from loraline.serving.adapter_weights import Layers, weight_findings, without_magnitudes
from loraline.serving.weights_file import read_tensors

LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Values that vLLM accepts for --max-lora-rank."""

ALLOWED = {".safetensors", ".json", ".jinja", ".txt", ".md", ".model"}
"""File types of an adapter; weights in any other form could run code when they are loaded."""

PICKLES = {".bin", ".pt", ".pth", ".pkl", ".ckpt"}


def findings(
    adapter: Path,
    base: str,
    trains_vision: bool,
    *,
    revision: str | None = None,
    max_rank: int = LORA_RANKS[-1],
    merged: bool = False,
    dtype: str = "bfloat16",
    vllm: tuple[int, int] = PATTERNS_SINCE,
) -> list[Finding]:
    """Everything that speaks against serving the adapter on `base`; empty when nothing does.

    `trains_vision` says whether the server will load tower and merger weights, `revision`
    which commit of the base it loads, `max_rank` its --max-lora-rank, `merged` that the adapter is
    merged into the base first, `dtype` the precision that it computes in, `vllm` its release.
    """
    config = read_json(adapter / CONFIG)
    base_config = read_json(adapter / BASE_CONFIG)
    if config is None or base_config is None:
        missing = CONFIG if config is None else BASE_CONFIG
        return [Finding(missing, "is missing or no JSON object", "train the adapter anew")]
    problems = setting_findings(config, max_rank=max_rank, merged=merged, vllm=vllm)
    problems += base_findings(config, base, revision)
    architecture = architecture_of(base_config)
    if architecture not in SERVED:
        accepted = ", ".join(sorted(SERVED))
        return [
            *problems,
            Finding(architecture, "is no known architecture", f"use one of {accepted}"),
        ]
    try:
        layers = Layers(linears(base_config), tables(base_config), SERVED[architecture])
    except (AttributeError, KeyError, TypeError, ValueError, ArithmeticError) as error:
        rule = f"does not say the base's sizes ({type(error).__name__}: {error})"
        return [*problems, Finding(BASE_CONFIG, rule, "log the adapter anew")]
    if not (adapter / WEIGHTS).is_file():
        return [*problems, no_weights(adapter)]
    try:
        tensors = read_tensors(adapter / WEIGHTS)
    except (OSError, ValueError) as error:
        return [*problems, Finding(WEIGHTS, f"cannot be read ({error})", "log the adapter anew")]
    if merged and config.get("use_dora"):
        tensors, wrong = without_magnitudes(tensors, layers)
        problems += wrong
    sound = is_sound(config)
    if sound and not expressions.all_terminate(config, [*layers.linears, *layers.tables]):
        rule = "has an expression that does not come to an end when it is compared with a path"
        return [*problems, Finding(CONFIG, rule, "list the modules' names")]
    return problems + weight_findings(
        tensors, config, layers, trains_vision=trains_vision, dtype=dtype, sound=sound
    )


def base_findings(config: Mapping[str, Any], base: str, revision: str | None) -> list[Finding]:
    """Findings if the base or its revision differs from the contract's."""
    problems = []
    for key, expected in (("base_model_name_or_path", base), ("revision", revision)):
        named = config.get(key)
        if named and expected and named != expected:
            rule = f"is {printed(named)}, the contract says {expected!r}"
            problems.append(Finding(key, rule, "serve the base it was trained on"))
    return problems


def no_weights(adapter: Path) -> Finding:
    pickles = sorted(path.name for path in adapter.glob("adapter_model.*") if path.name != WEIGHTS)
    if pickles:
        rule = "is a pickle, which can run code, and there is no safetensors file"
        return Finding(pickles[0], rule, "save it as safetensors")
    return Finding(WEIGHTS, "is missing or no file", "log the adapter anew")


def leftovers(adapter: Path) -> list[Path]:
    """Pickles beside the weights, of a trainer's state; neither PEFT nor vLLM reads them."""
    if not (adapter / WEIGHTS).is_file():
        return []
    return sorted(path for path in adapter.rglob("*") if path.suffix in PICKLES and path.is_file())


def strays(adapter: Path) -> list[Finding]:
    """Files that neither an adapter, a whole model nor a trainer's state is made of."""
    skipped = {*leftovers(adapter)}
    rule = f"is none of an adapter's files, which end in {', '.join(sorted(ALLOWED))}"
    return [
        Finding(path.relative_to(adapter).as_posix(), rule, "leave it out")
        for path in sorted(adapter.rglob("*"))
        if path.is_file() and path.suffix not in ALLOWED and path not in skipped
    ]


def check(
    adapter: Path,
    agreed: Contract,
    name: str,
    max_rank: int = LORA_RANKS[-1],
    vllm: tuple[int, int] | None = None,
) -> None:
    """Raise a UserError with what speaks against serving the adapter, the first things first.

    `vllm` is the server's release where it is known.
    """
    if foreign := strays(adapter):
        problems = foreign
    elif agreed.train == "full":
        base_config = read_json(adapter / BASE_CONFIG) or {}
        problems = model_weights.findings(adapter, base_config, agreed.dtype)
    else:
        problems = findings(
            adapter,
            agreed.base,
            agreed.trains_vision,
            revision=agreed.base_revision,
            max_rank=max_rank,
            merged=agreed.export == "merged",
            dtype=agreed.dtype,
            vllm=vllm or PATTERNS_SINCE,
        )
    if problems:
        more = f"; and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise UserError(f"{name} cannot be served: {'; '.join(map(str, problems[:3]))}{more}")


def max_lora_rank(rank: int) -> int:
    """The smallest rank that vLLM accepts and the adapter fits in; slots have this rank."""
    for accepted in LORA_RANKS:
        if rank <= accepted:
            return accepted
    raise UserError(f"adapter rank {rank} cannot be served: vLLM accepts up to {LORA_RANKS[-1]}")


def highest_rank(adapter: Path) -> int:
    """The highest rank of an adapter's modules, for which the server allocates its slots."""
    config = read_json(adapter / CONFIG) or {}
    pattern = config.get("rank_pattern")
    ranks = [config.get("r"), *(pattern.values() if isinstance(pattern, dict) else ())]
    return max([rank for rank in ranks if is_integer(rank)], default=0)


def read_json(file: Path) -> dict[str, Any] | None:
    """A file's JSON object, or None; Python's and PEFT's reader take NaN and infinity."""
    try:
        content = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None
