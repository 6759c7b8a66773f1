"""What vLLM would refuse, or accept and not apply, seen before anything is served.

vLLM looks at an adapter only after it has loaded the base, and then takes several kinds that do
nothing or do the wrong thing. Everything here is read from `adapter_config.json`, the safetensors
file and the base's `config.json`, without torch, in milliseconds.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loraline.base.architectures import TEXT, VISION, Linears, linears
from loraline.contract import WEIGHTS, Contract
from loraline.errors import UserError
from loraline.serving.weights_file import Tensor, read_tensors

if TYPE_CHECKING:
    from loraline.profiles import Profile

CONFIG = "adapter_config.json"
BASE_CONFIG = "base_config.json"
"""The base's config.json, which training keeps beside the adapter."""

LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Values that vLLM accepts for --max-lora-rank."""

KEY = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])\.weight")
MAGNITUDE = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_magnitude_vector")


REFUSED_SETTINGS = {
    "use_dora": "set export: merged, or train without DoRA",
    "lora_bias": "train with lora_bias: false",
    "use_qalora": "train without QALoRA",
    "use_bdlora": "train without BD-LoRA",
    "layer_replication": "train without layer_replication",
    "alora_invocation_tokens": "train a plain LoRA, not an activated one",
    "modules_to_save": "train no whole modules, or merge the adapter into its base",
    "trainable_token_indices": "train no tokens, or merge the adapter into its base",
}
"""Settings of PEFT that vLLM refuses when they are set, with the remedy."""

ACCEPTED_INITS = ("gaussian", "eva", "orthogonal", "mica", "lora_ga")
"""Initialisations that leave the base's weights alone; with others the adapter fits another base
(the list of vLLM's `PEFTHelper`)."""


@dataclass(frozen=True)
class Finding:
    """One reason not to serve an adapter."""

    key: str
    """The setting or tensor that it is about."""

    rule: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.key}: {self.rule}; {self.remedy}"


def findings(
    adapter: Path,
    base: str,
    trains_vision: bool,
    *,
    revision: str | None = None,
    max_rank: int = LORA_RANKS[-1],
    merged: bool = False,
) -> list[Finding]:
    """Everything that speaks against serving the adapter on `base`; empty when nothing does.

    `trains_vision` says whether the server will be told of tower and merger weights, `revision`
    which commit of the base it loads, `max_rank` its --max-lora-rank, `merged` that the adapter is
    merged into the base first.
    """
    config = read_json(adapter / CONFIG)
    base_config = read_json(adapter / BASE_CONFIG)
    if config is None or base_config is None:
        missing = CONFIG if config is None else BASE_CONFIG
        return [Finding(missing, "is missing or no JSON object", "train the adapter anew")]
    found = setting_findings(config, base, revision, max_rank, merged)
    architecture = str((base_config.get("architectures") or ["none"])[0])
    if architecture not in TEXT | VISION:
        known = ", ".join(sorted(TEXT | VISION))
        return [*found, Finding(architecture, "is no known architecture", f"use one of {known}")]
    pickles = sorted(path.name for path in adapter.iterdir() if path.suffix in (".bin", ".pt"))
    found += [
        Finding(name, "is a pickle, which can run code", "save it as safetensors")
        for name in pickles
    ]
    try:
        tensors = read_tensors(adapter / WEIGHTS)
    except (OSError, ValueError) as error:
        return [*found, Finding(WEIGHTS, f"cannot be read ({error})", "log the adapter anew")]
    modules = linears(base_config)
    if merged and config.get("use_dora"):
        tensors, wrong = without_magnitudes(tensors, modules)
        found += wrong
    return found + weight_findings(tensors, config, modules, trains_vision)


def check(adapter: Path, agreed: Contract, name: str, max_rank: int = LORA_RANKS[-1]) -> None:
    """Raise a UserError with what speaks against serving the adapter, the first things first."""
    found = findings(
        adapter,
        agreed.base,
        agreed.trains_vision,
        revision=agreed.base_revision,
        max_rank=max_rank,
        merged=agreed.export == "merged",
    )
    if found:
        more = f"; and {len(found) - 3} more" if len(found) > 3 else ""
        raise UserError(f"{name} cannot be served: {'; '.join(map(str, found[:3]))}{more}")


def check_base(recipe: Profile, config: Mapping[str, Any]) -> None:
    """Refuse, before it is trained on, a base of whose adapters the server applies nothing known.

    Towers and mergers of all VISION are applied, once the server is told of them.
    """
    architecture = (config.get("architectures") or ["none"])[0]
    fitting = VISION if recipe.modality == "vision" else TEXT
    if architecture not in fitting:
        raise UserError(
            f"a base of class {architecture} cannot be trained with modality: {recipe.modality}, "
            "because what vLLM does with its adapters is not known; it is for "
            f"{', '.join(sorted(fitting))}"
        )
    method = (config.get("quantization_config") or {}).get("quant_method")
    if method == "bitsandbytes":
        raise UserError(
            f"{recipe.base} is stored in the 4 or 8 bits of bitsandbytes, which the server cannot "
            "load: name the model that it was made from; quantization: nf4 rounds it in training"
        )
    if recipe.export == "merged" and config.get("quantization_config"):
        raise UserError(
            f"export: merged needs an unquantized base, and {recipe.base} is quantized; name the "
            "model that it was made from, or set export: adapter"
        )


def max_lora_rank(rank: int) -> int:
    """The smallest rank that vLLM accepts and the adapter fits in; slots are allocated at it."""
    for accepted in LORA_RANKS:
        if rank <= accepted:
            return accepted
    raise UserError(f"adapter rank {rank} cannot be served: vLLM accepts up to {LORA_RANKS[-1]}")


def highest_rank(adapter: Path) -> int:
    """The highest rank of an adapter's modules, for which the server allocates its slots."""
    config = read_json(adapter / CONFIG) or {}
    return max([int(config.get("r") or 0), *(config.get("rank_pattern") or {}).values()])


def setting_findings(
    config: Mapping[str, Any], base: str, revision: str | None, max_rank: int, merged: bool
) -> list[Finding]:
    """What is wrong with the adapter's settings alone."""
    found = []
    if config.get("peft_type") != "LORA":
        found.append(
            Finding("peft_type", f"is {config.get('peft_type')}, not LORA", "train a LoRA")
        )
    for key in ("r", "lora_alpha", "target_modules"):
        if not config.get(key):
            found.append(Finding(key, f"is {config.get(key)!r}", "set it in the profile"))
    ranks = {"r": config.get("r"), **(config.get("rank_pattern") or {})}
    for key, rank in ranks.items():
        if rank is not None and not (isinstance(rank, int) and 0 < rank <= max_rank):
            rule = f"rank {rank!r} is not between 1 and {max_rank}"
            found.append(Finding(key, rule, "choose another rank or a higher --max-lora-rank"))
    if config.get("bias", "none") != "none":
        found.append(Finding("bias", f"is {config['bias']!r}", "train with bias: none"))
    found += [
        Finding(key, f"is {config[key]!r}, which vLLM refuses", remedy)
        for key, remedy in REFUSED_SETTINGS.items()
        if config.get(key) and not (merged and key == "use_dora")
    ]
    init = config.get("init_lora_weights")
    if isinstance(init, str) and init.lower() not in ACCEPTED_INITS:
        rule = f"is {init!r}, which changes the base's weights"
        found.append(Finding("init_lora_weights", rule, "use another initialisation"))
    for key, wanted in (("base_model_name_or_path", base), ("revision", revision)):
        named = config.get(key)
        if named and wanted and named != wanted:
            rule = f"is {named!r}, the contract says {wanted!r}"
            found.append(Finding(key, rule, "serve the base it was trained on"))
    return found


def weight_findings(
    tensors: Mapping[str, Tensor],
    config: Mapping[str, Any],
    modules: Linears,
    trains_vision: bool,
) -> list[Finding]:
    """What is wrong with the weights on a base of these linear layers."""
    found: list[Finding] = []
    sides: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        match = KEY.fullmatch(key)
        if not match:
            found.append(Finding(key, "is no LoRA weight", "train LoRA matrices only"))
        elif match["module"] not in modules:
            found.append(Finding(key, "matches no linear layer of the base", hint(key, modules)))
        else:
            sides.setdefault(match["module"], {})[match["side"]] = tensor
        if not tensor.finite:
            found.append(Finding(key, "holds NaN or infinity", "train again, at a lower rate"))
    for module, pair in sides.items():
        found += pair_findings(module, pair, rank_of(module, config), modules, trains_vision)
    lost = [module for module in modules if is_target(module, config) and module not in sides]
    if not tensors:
        found.append(Finding(WEIGHTS, "holds no tensors", "log the adapter anew"))
    elif lost:
        rule = f"is a target of {CONFIG}, but {WEIGHTS} holds no weights for it"
        rule += f" and {len(lost) - 1} more" if len(lost) > 1 else ""
        found.append(Finding(lost[0], rule, "log the adapter anew, or serve the base it fits"))
    for side in ("A", "B"):
        if sides and all(pair[side].zero for pair in sides.values() if side in pair):
            rule = f"all lora_{side} weights are zero, so the answers are the base's"
            found.append(Finding(WEIGHTS, rule, "train it"))
    return found


def without_magnitudes(
    tensors: Mapping[str, Tensor], modules: Linears
) -> tuple[dict[str, Tensor], list[Finding]]:
    """The tensors but for DoRA's magnitudes, one for each output, and what is wrong with those."""
    found, kept = [], {}
    for key, tensor in tensors.items():
        match = MAGNITUDE.fullmatch(key)
        if not match:
            kept[key] = tensor
        elif match["module"] not in modules:
            found.append(Finding(key, "matches no linear layer of the base", hint(key, modules)))
        elif not tensor.finite or tensor.shape != (modules[match["module"]][1],):
            rule = f"has shape {tensor.shape}, or holds NaN or infinity"
            found.append(Finding(key, rule, "train again, or merge it into its own base"))
    return kept, found


def pair_findings(
    module: str, pair: Mapping[str, Tensor], rank: int, modules: Linears, trains_vision: bool
) -> list[Finding]:
    """What is wrong with one module's two matrices, A of (rank, in) and B of (out, rank)."""
    found = []
    if ".visual." in f".{module}" and not trains_vision:
        rule = "is in the vision tower, whose weights the server would drop in silence"
        remedy = "leave the tower out, or state it in the profile"
        found.append(Finding(module, rule, remedy))
    if set(pair) != {"A", "B"}:
        rule = f"has lora_{min(pair)} alone"
        return [*found, Finding(module, rule, "log the adapter anew")]
    wanted = ((rank, modules[module][0]), (modules[module][1], rank))
    if (pair["A"].shape, pair["B"].shape) != wanted:
        rule = f"has shapes {pair['A'].shape} and {pair['B'].shape}, the base needs "
        rule += f"{wanted[0]} and {wanted[1]}"
        found.append(Finding(module, rule, "serve the base that it was trained on"))
    return found


def rank_of(module: str, config: Mapping[str, Any]) -> int:
    """A module's rank: PEFT's rank_pattern matches the end of its path, else r holds."""
    for pattern, rank in (config.get("rank_pattern") or {}).items():
        if re.fullmatch(rf"(?:.*\.)?(?:{pattern})", module):
            return int(rank)
    return int(config.get("r") or 0)


def is_target(module: str, config: Mapping[str, Any]) -> bool:
    """Whether PEFT adapts a module: by pattern, or by the ends of paths in some layers."""
    targets = config.get("target_modules") or []
    if matches(module, config.get("exclude_modules") or []) or not matches(module, targets):
        return False
    layers = config.get("layers_to_transform")
    if layers is None or isinstance(targets, str):
        return True
    patterns = config.get("layers_pattern") or [r"[^.]*"]
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        if layer := re.match(rf".*\.{pattern}\.(\d+)\.", module):
            return int(layer[1]) in ([layers] if isinstance(layers, int) else layers)
    return False


def matches(module: str, targets: str | list[str]) -> bool:
    if isinstance(targets, str):
        return re.fullmatch(targets, module) is not None
    return any(module == target or module.endswith(f".{target}") for target in targets)


def hint(key: str, modules: Linears) -> str:
    """What a key that matches nothing most likely is."""
    layer = re.search(r"layers\.(\d+)\.", key)
    depth = max(int(found[1]) for name in modules if (found := re.search(r"layers\.(\d+)\.", name)))
    if "lm_head" in key or "embed_tokens" in key:
        return "vLLM takes no adapter on the head or the embeddings; leave them out"
    if layer and int(layer[1]) > depth:
        return f"the base has {depth + 1} layers; serve the base that it was trained on"
    if any(name.startswith("model.language_model.") for name in modules):
        return "its path must go through model.language_model; save it with transformers 5"
    return "serve the base that it was trained on"


def read_json(file: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(file.read_text())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None
