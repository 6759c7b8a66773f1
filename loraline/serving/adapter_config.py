"""An adapter_config.json, as vLLM and as PEFT read it.

vLLM looks at a dozen of its keys and takes the rest on trust; PEFT, which measured the adapter,
reads them all. What either refuses or reads otherwise than the other is a finding.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

CONFIG = "adapter_config.json"

ACCEPTED_INITS = ("gaussian", "eva", "orthogonal", "mica", "lora_ga")
"""Initialisations that do not change the base's weights; with others the adapter fits another base
(the list of vLLM's `PEFTHelper`)."""

TASKS = ("SEQ_CLS", "SEQ_2_SEQ_LM", "CAUSAL_LM", "TOKEN_CLS", "QUESTION_ANS", "FEATURE_EXTRACTION")
"""PEFT's task types; others end its config class in a ValueError."""

PATTERNS_SINCE = (0, 32)
"""vLLM from here on reads rank_pattern and alpha_pattern: its `peft_helper.py` names neither from
0.18 to 0.31, and both in 0.32 and 0.33."""

REFUSED = {
    "use_dora": "set export: merged, or train without DoRA",
    "lora_bias": "train with lora_bias: false",
    "use_qalora": "train without QALoRA",
    "layer_replication": "train without layer_replication",
    "alora_invocation_tokens": "train a plain LoRA, not an activated one",
    "modules_to_save": "train no whole modules, or merge the adapter into its base",
}
"""Settings that vLLM refuses when they are set, or whose weights it refuses; with the remedy."""

IGNORED = {
    "target_parameters": "train the experts' layers in another way, or leave them out",
    "velora_config": "train a plain LoRA, without VeLoRA",
    "monteclora_config": "train a plain LoRA, without MonteCLoRA",
    "megatron_config": "train without Megatron",
}
"""Settings of PEFT that change an adapter's effect and that vLLM never reads."""

NEVER_SET = {
    "arrow_config": "train a plain LoRA, without Arrow",
    "kasa_config": "train a plain LoRA, without KaSA",
    "trainable_token_indices": "train no tokens, or merge the adapter into its base",
    "use_bdlora": "train without BD-LoRA",
}
"""Settings that make PEFT another method even where they are empty."""

SAVED_WHOLE = {"classifier", "score"}
"""Modules of classifiers that vLLM replaces whole; other bases have no such modules."""

HARMLESS = {
    *("auto_mapping", "base_model_name_or_path", "corda_config", "eva_config", "fan_in_fan_out"),
    *("inference_mode", "loftq_config", "lora_ga_config", "megatron_core"),
    *("peft_type", "peft_version", "qalora_group_size", "revision", "runtime_config"),
}
"""Keys without influence on a trained LoRA, or with a separate rule."""


@dataclass(frozen=True)
class Finding:
    """One reason not to serve an adapter."""

    key: str
    """The setting or tensor that it is about."""

    rule: str
    remedy: str

    def __str__(self) -> str:
        sentence = f"{self.key[:200]}: {self.rule}; {self.remedy}"
        # One line for any file: a key may contain newlines.
        return sentence if sentence.isprintable() else sentence.encode("unicode_escape").decode()


class Form(NamedTuple):
    """What a setting's value must look like."""

    fits: Callable[[Any], bool]
    expected: str


PATH_END = r"(.*\.)?({})$"
"""How PEFT and vLLM match a key of rank_pattern or alpha_pattern to a module's path."""

NUMBERED = r"(?:^|.*?\.){}\.(?P<idx>\d+)\."
"""How PEFT finds a layer's number after a name of layers_pattern."""


def is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    return isinstance(value, int | float)


def is_names(value: Any) -> bool:
    """A regular expression, or a list of names."""
    if isinstance(value, str):
        return is_expression(value)
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def is_expression(value: str) -> bool:
    try:
        re.compile(value)
    except (re.error, RecursionError, OverflowError):
        return False
    return True


def is_pattern(value: Any) -> bool:
    """An object whose keys are regular expressions for the ends of paths."""
    return isinstance(value, dict) and all(is_expression(PATH_END.format(key)) for key in value)


def is_layers_pattern(value: Any) -> bool:
    names = [value] if isinstance(value, str) else value
    return is_names(names) and all(is_expression(NUMBERED.format(name)) for name in names)


def is_layers(value: Any) -> bool:
    """One number has to be an int; those of a list are compared, and 1.0 is 1."""
    if not isinstance(value, list):
        return is_integer(value)
    return all(is_number(layer) and not isinstance(layer, bool) for layer in value)


def is_chance(value: Any) -> bool:
    return is_number(value) and not value > 1


def is_init(value: Any) -> bool:
    """PEFT ignores empty values."""
    return not value or isinstance(value, bool | str)


FORMS = {
    "lora_alpha": Form(is_number, "a number"),
    "lora_dropout": Form(is_chance, "a number up to 1"),
    "target_modules": Form(is_names, "a regular expression or a list of names"),
    "exclude_modules": Form(is_names, "a regular expression or a list of names"),
    "layers_to_transform": Form(is_layers, "a layer's number or a list of them"),
    "layers_pattern": Form(is_layers_pattern, "a regular expression or a list of them"),
    "rank_pattern": Form(is_pattern, "an object of regular expressions"),
    "alpha_pattern": Form(is_pattern, "an object of regular expressions"),
    "corda_config": Form(lambda value: isinstance(value, dict), "an object"),
    "eva_config": Form(lambda value: isinstance(value, dict), "an object"),
    "init_lora_weights": Form(is_init, "a switch or a name"),
    "lora_ga_config": Form(lambda value: isinstance(value, dict), "an object"),
    "task_type": Form(lambda value: value in TASKS, f"one of {', '.join(TASKS)}"),
}
NOT_NULL = {"alpha_pattern", "lora_dropout", "rank_pattern"}
"""Settings that may be left out, but not be null."""
REQUIRED = {"lora_alpha", "target_modules"}
KNOWN = {
    *FORMS,
    *REFUSED,
    *IGNORED,
    *NEVER_SET,
    "ensure_weight_tying",
    *HARMLESS,
    "r",
    "bias",
    "use_rslora",
}
"""All keys of PEFT's LoraConfig."""


def setting_findings(
    config: Mapping[str, Any],
    *,
    max_rank: int,
    merged: bool = False,
    vllm: tuple[int, int] = PATTERNS_SINCE,
) -> list[Finding]:
    """What is wrong with the settings alone, for this release of vLLM."""
    findings = form_findings(config)
    if config.get("peft_type") != "LORA":
        method = printed(config.get("peft_type")).strip("'")
        findings.append(Finding("peft_type", f"is {method}, not LORA", "train a LoRA"))
    findings += rank_findings(config, max_rank)
    if config.get("bias", "none") != "none":
        findings.append(Finding("bias", f"is {printed(config['bias'])}", "train with bias: none"))
    findings += [
        Finding(key, f"is {printed(config[key])}, which vLLM refuses", remedy)
        for key, remedy in REFUSED.items()
        if config.get(key) and not (merged and key == "use_dora")
        if not (key == "modules_to_save" and is_classifier(config[key]))
    ]
    findings += [
        Finding(key, f"is {printed(config[key])}, which makes it more than a LoRA", remedy)
        for key, remedy in NEVER_SET.items()
        if config.get(key) is not None
    ]
    findings += [
        Finding(key, f"is {printed(config[key])}, which vLLM does not read", remedy)
        for key, remedy in IGNORED.items()
        if config.get(key)
    ]
    init = config.get("init_lora_weights")
    if isinstance(init, str) and init.lower() != "gaussian" and init not in ACCEPTED_INITS:
        rule = f"is {printed(init)}, which changes the base's weights, or which PEFT does not know"
        findings.append(Finding("init_lora_weights", rule, "use another initialisation"))
    findings += [
        Finding(
            key, f"is {printed(value)}, which is no setting of PEFT's LoRA", "train a plain LoRA"
        )
        for key, value in config.items()
        if key not in KNOWN and value
    ]
    if vllm < PATTERNS_SINCE and not merged:
        findings += [
            Finding(key, f"is not read by vLLM {vllm[0]}.{vllm[1]}", "serve with 0.32 or later")
            for key in ("rank_pattern", "alpha_pattern")
            if config.get(key)
        ]
    return findings


def is_classifier(saved: Any) -> bool:
    return isinstance(saved, list) and all(
        isinstance(name, str) and name in SAVED_WHOLE for name in saved
    )


def form_findings(config: Mapping[str, Any]) -> list[Finding]:
    """Values that PEFT or vLLM cannot use, and combinations that PEFT refuses."""
    findings = []
    for key, form in FORMS.items():
        value = config.get(key)
        is_left_out = key not in config if key in NOT_NULL else value is None
        if is_left_out and key not in REQUIRED:
            continue
        if not form.fits(value):
            findings.append(
                Finding(key, f"is {printed(value)}, not {form.expected}", "train it anew")
            )
        elif key == "target_modules" and not value:
            findings.append(Finding(key, f"is {printed(value)}", "set it in the profile"))
    by_expression = isinstance(config.get("target_modules"), str)
    chosen = [
        key for key in ("layers_to_transform", "layers_pattern") if config.get(key) is not None
    ]
    if by_expression and chosen:
        rule = "PEFT takes none beside target_modules that is an expression"
        findings.append(Finding(chosen[0], rule, "name the modules in a list"))
    elif config.get("layers_pattern") and config.get("layers_to_transform") is None:
        rule = "PEFT takes none without layers_to_transform"
        findings.append(Finding("layers_pattern", rule, "name the layers"))
    return findings


def is_sound(config: Mapping[str, Any]) -> bool:
    """Whether ranks, scalings and targets can be computed from the settings."""
    return not form_findings(config) and not rank_findings(config, 2**31)


def rank_findings(config: Mapping[str, Any], max_rank: int) -> list[Finding]:
    """Ranks that are not whole numbers, or that exceed the server's."""
    pattern = config.get("rank_pattern")
    ranks = {"r": config.get("r"), **(pattern if isinstance(pattern, dict) else {})}
    findings = []
    for key, rank in ranks.items():
        if key == "r" and not rank:
            findings.append(Finding(key, f"is {printed(rank)}", "set it in the profile"))
        elif not (is_integer(rank) and 0 < rank <= max_rank):
            rule = f"rank {printed(rank)} is not between 1 and {max_rank}"
            findings.append(Finding(key, rule, "choose another rank or a higher --max-lora-rank"))
    return findings


def printed(value: Any) -> str:
    """A value as Python writes it, cut if it is long."""
    text = repr(value) if not isinstance(value, int) or abs(value) < 10**40 else "a huge number"
    return text if len(text) <= 80 else f"{text[:77]}..."


def rank_of(config: Mapping[str, Any], module: str) -> int:
    """A module's rank; the settings must have no findings."""
    return int(matched(config.get("rank_pattern"), module, config["r"]))


def scaling_of(config: Mapping[str, Any], module: str) -> float:
    """The scaling of a module's B·A: alpha / r, or alpha / sqrt(r); NaN if it is not a number."""
    rank, alpha = rank_of(config, module), config.get("lora_alpha")
    alpha = matched(config.get("alpha_pattern"), module, alpha)
    if not is_number(alpha):
        return math.nan
    try:
        return float(alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank)
    except OverflowError:
        return math.inf


def matched(pattern: Mapping[str, Any] | None, module: str, default: Any) -> Any:
    """The value of the first key that matches the end of a module's path, as PEFT has it."""
    for key, value in (pattern or {}).items():
        if re.match(PATH_END.format(key), module):
            return value
    return default


def is_target(config: Mapping[str, Any], module: str, head: str = "lm_head") -> bool:
    """Whether PEFT adapts a module of the base (`check_target_module_exists`).

    The settings' forms must be sound. `all-linear` leaves out the output head.
    """
    if named(module, config.get("exclude_modules")):
        return False
    targets = config.get("target_modules")
    if isinstance(targets, str):
        if targets.lower() == "all-linear":
            return not module.endswith((head, "embed_tokens"))
        return re.fullmatch(targets, module) is not None
    if module in (targets or []):
        return True
    layers = config.get("layers_to_transform")
    if not named(module, targets) or layers is None or layers == []:
        return named(module, targets)
    number = layer_number(module, config.get("layers_pattern"))
    return number is not None and number in ([layers] if isinstance(layers, int) else layers)


def named(module: str, names: str | list[str] | None) -> bool:
    """Whether an expression matches a path, or a name is its end."""
    if isinstance(names, str):
        return bool(names) and re.fullmatch(names, module) is not None
    return any(module == name or module.endswith(f".{name}") for name in names or [])


def layer_number(module: str, patterns: str | list[str] | None) -> int | None:
    """The number after a pattern's name; without patterns, the first number in the path."""
    if not patterns:
        match = re.match(r".*?\.[^.]*\.(?P<number>\d+)\.", module)
        return int(match["number"]) if match else None
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        if match := re.match(NUMBERED.format(pattern), module):
            return int(match["idx"])
    return None
