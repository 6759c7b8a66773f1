"""What vLLM would refuse, or accept and not apply; checked before anything is served.

vLLM looks at an adapter only after it has loaded the base, and then takes several kinds that do
nothing or do the wrong thing. Everything here is read from `adapter_config.json`, the safetensors
file and the base's `config.json`, without torch, in milliseconds.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loraline.base.architectures import (
    NOT_TRAINED,
    SERVED,
    TEXT,
    VISION,
    architecture_of,
    linears,
    projections,
    tables,
)
from loraline.contract import BASE_CONFIG, WEIGHTS, Contract
from loraline.errors import UserError
from loraline.serving import expressions, model_weights
from loraline.serving.adapter_config import (
    CONFIG,
    PATTERNS_SINCE,
    Finding,
    is_sound,
    is_whole,
    setting_findings,
    shown,
)
from loraline.serving.adapter_weights import Layers, weight_findings, without_magnitudes
from loraline.serving.weights_file import read_tensors

if TYPE_CHECKING:
    from loraline.profiles import Profile

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
        known = ", ".join(sorted(SERVED))
        return [*problems, Finding(architecture, "is no known architecture", f"use one of {known}")]
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
    if sound and not expressions.come_to_an_end(config, [*layers.linears, *layers.tables]):
        rule = "has an expression that does not come to an end when it is compared with a path"
        return [*problems, Finding(CONFIG, rule, "list the modules' names")]
    return problems + weight_findings(
        tensors, config, layers, trains_vision=trains_vision, dtype=dtype, sound=sound
    )


def base_findings(config: Mapping[str, Any], base: str, revision: str | None) -> list[Finding]:
    """Findings if the base or its revision differs from the contract's."""
    problems = []
    for key, wanted in (("base_model_name_or_path", base), ("revision", revision)):
        named = config.get(key)
        if named and wanted and named != wanted:
            rule = f"is {shown(named)}, the contract says {wanted!r}"
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
    known = {*leftovers(adapter)}
    rule = f"is none of an adapter's files, which end in {', '.join(sorted(ALLOWED))}"
    return [
        Finding(path.relative_to(adapter).as_posix(), rule, "leave it out")
        for path in sorted(adapter.rglob("*"))
        if path.is_file() and path.suffix not in ALLOWED and path not in known
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


def check_base(recipe: Profile, config: Mapping[str, Any]) -> None:
    """Refuse, before training, a base whose adapters the server is not known to apply.

    Towers and mergers of all VISION are applied, with the server's flag for them.
    """
    architecture = (config.get("architectures") or ["none"])[0]
    fitting = VISION if recipe.modality == "vision" else TEXT
    if architecture not in fitting:
        known = f" ({NOT_TRAINED[architecture]})" if architecture in NOT_TRAINED else ""
        raise UserError(
            f"a base of class {architecture} cannot be trained with modality: {recipe.modality}, "
            f"because its training and the size of its server are not known here{known}; it is for "
            f"{', '.join(sorted(fitting))}"
        )
    check_projections(recipe, config)
    method = (config.get("quantization_config") or {}).get("quant_method")
    if method == "bitsandbytes":
        raise UserError(
            f"{recipe.base} is stored in the 4 or 8 bits of bitsandbytes, which the server cannot "
            "load: name the model that it was made from; quantization: nf4 rounds it in training"
        )
    if recipe.quantization == "fp8" and config.get("quantization_config"):
        raise UserError(
            f"quantization: fp8 rounds an unquantized base, and {recipe.base} is quantized; name "
            "the model that it was made from"
        )
    if recipe.export == "merged" and config.get("quantization_config"):
        raise UserError(
            f"export: merged needs an unquantized base, and {recipe.base} is quantized; name the "
            "model that it was made from, or set export: adapter"
        )


def check_found(recipe: Profile, folder: Path | None) -> None:
    """The same in the first step, as far as the base is there: in this folder, or nowhere.

    What is meant to be a folder and is none is refused; what the hub did not give is not.
    """
    base = Path(recipe.base)
    config = (folder or base) / "config.json"
    if config.is_file():
        check_base(recipe, read_json(config) or {})
    elif folder is None and len(base.parts) > 1 and base.parent.is_dir() and not base.is_dir():
        raise UserError(f"base {recipe.base!r} is no folder here, and the hub did not give it")


def check_projections(recipe: Profile, config: Mapping[str, Any]) -> None:
    """Refuse layers that the base does not have, and a way to place tokens that depends on rows."""
    architecture = config["architectures"][0]
    names = projections(architecture)
    if unknown := [name for name in recipe.projections if name not in names]:
        raise UserError(
            f"target_modules: a base of class {architecture} has no {unknown[0]}; it has "
            f"{', '.join(names)}"
        )
    rope = config.get("rope_scaling") or config.get("rope_parameters") or {}
    if "longrope" in (rope.get("rope_type"), rope.get("type")):
        raise UserError(
            f"{recipe.base} places tokens by the length of a row (longrope), which its server does "
            "by its own limit: their numbers would differ; name the model for short contexts"
        )


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
    return max([rank for rank in ranks if is_whole(rank)], default=0)


def read_json(file: Path) -> dict[str, Any] | None:
    """A file's JSON object, or None; Python's and PEFT's reader take NaN and infinity."""
    try:
        content = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None
