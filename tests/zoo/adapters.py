"""Adapters that a server might be given: made by real PEFT on tiny bases, then broken on purpose.

`tests/zoo/ask_vllm.py` shows each to a real vLLM once and keeps its verdict as a golden file; the
tests hold preflight against it.
"""

from __future__ import annotations

import copy
import functools
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

BASE = "the/base"
MAX_RANK = 16
"""--max-lora-rank of the server that is asked."""

SEVEN = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
QV = r".*\.layers\.\d+\.self_attn\.(?:q|v)_proj"
LANGUAGE = r"model\.language_model\.layers\.\d+\.(?:self_attn|mlp)\.(?:" + "|".join(SEVEN) + ")"
ATTENTION = r"model\.visual\.blocks\.\d+\.attn\.(?:qkv|proj)"
MERGER = r"model\.visual\.(?:merger\.mlp\.[02]|merger\.linear_fc[12])"
DEEPSTACK = r"model\.visual\.deepstack_merger_list\.\d+\.linear_fc[12]"

Edit = Callable[[Path], None]
Tensors = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """One adapter, and the server it is meant for."""

    name: str
    base: str
    """Architecture of the base that serves it."""

    options: dict[str, Any] = field(default_factory=dict)
    """What its LoraConfig says beyond rank 4 and alpha 8."""

    edits: tuple[Edit, ...] = ()
    tower: bool = False
    """Whether the server runs with --enable-tower-connector-lora."""

    method: str = "LoraConfig"
    scale: float = 0.3
    """Standard deviation of the random lora_B; zero leaves it as PEFT begins."""

    trained_on: dict[str, int] = field(default_factory=dict)
    """Sizes in which the base that it was trained on differs from the one that serves it."""

    precision: str = "float32"
    """What the weights are rounded to before they are saved."""

    policy: str = ""
    """Why preflight refuses what vLLM would apply."""


def config(remove: tuple[str, ...] = (), **settings: Any) -> Edit:
    def edit(folder: Path) -> None:
        file = folder / "adapter_config.json"
        content = json.loads(file.read_text()) | settings
        file.write_text(json.dumps({k: v for k, v in content.items() if k not in remove}))

    return edit


def weights(change: Callable[[Tensors], Tensors]) -> Edit:
    def edit(folder: Path) -> None:
        from safetensors.torch import load_file, save_file

        file = folder / "adapter_model.safetensors"
        changed = change(load_file(file))
        save_file({key: tensor.contiguous() for key, tensor in changed.items()}, file)

    return edit


def renamed(old: str, new: str) -> Edit:
    return weights(lambda found: {key.replace(old, new): value for key, value in found.items()})


def without(part: str) -> Edit:
    return weights(lambda found: {key: v for key, v in found.items() if part not in key})


def each(change: Callable[[str, Any], Any]) -> Edit:
    return weights(lambda found: {key: change(key, value) for key, value in found.items()})


def first(change: Callable[[Any], Any]) -> Edit:
    """Change the first lora_B alone."""

    def edit(found: Tensors) -> Tensors:
        key = min(key for key in found if "lora_B" in key)
        return found | {key: change(found[key])}

    return weights(edit)


def plus(key: str, *shape: int) -> Edit:
    import torch

    return weights(lambda found: found | {key: torch.ones(*shape)})


def cast(dtype: str) -> Edit:
    import torch

    return each(lambda key, value: value.to(getattr(torch, dtype)))


def filled(value: float) -> Edit:
    return first(lambda tensor: tensor.index_fill(0, tensor.new_zeros(1).long(), value))


def cut(folder: Path) -> None:
    file = folder / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-64])


def removed(name: str) -> Edit:
    return lambda folder: (folder / name).unlink()


def as_pickle(folder: Path) -> None:
    import torch
    from safetensors.torch import load_file

    file = folder / "adapter_model.safetensors"
    torch.save(load_file(file), folder / "adapter_model.bin")
    file.unlink()


def resized(key: str, value: Any) -> Any:
    """An adapter's matrix with rank 8 where it had 4."""
    import torch

    return torch.cat([value, value], 0 if "lora_A" in key else 1)


def to_rank_32(key: str, value: Any) -> Any:
    return resized(key, resized(key, resized(key, value)))


Q0 = "base_model.model.model.layers.0.self_attn.q_proj"
NOT_PEFT = "PEFT, which measured the adapter, ignores weights of this name"


def text() -> Iterator[Case]:
    """Adapters for the text base: 3 layers, 128 wide."""

    def case(name: str, *edits: Edit, **options: Any) -> Case:
        own = {
            key: options.pop(key)
            for key in ("scale", "method", "trained_on", "precision")
            if key in options
        }
        policy = options.pop("policy", "")
        targets = {"target_modules": ["q_proj", "v_proj"]}
        return Case(f"text-{name}", "mistral", targets | options, edits, policy=policy, **own)

    seven = list(SEVEN)
    yield case("plain")
    yield case("seven", target_modules=seven, r=8)
    yield case("k-alone", target_modules=["k_proj"])
    yield case("o-down", target_modules=["o_proj", "down_proj"])
    yield case("rank-1", r=1)
    yield case("rank-3", r=3)
    yield case("rank-16", r=16)
    yield case("rslora", use_rslora=True)
    yield case("rank-pattern", rank_pattern={"q_proj": 2})
    yield case("rank-pattern-path", rank_pattern={"layers.1.self_attn.q_proj": 8})
    yield case("alpha-pattern", alpha_pattern={"v_proj": 32})
    yield case("both-patterns", rank_pattern={"q_proj": 8}, alpha_pattern={"q_proj": 32})
    yield case("regex", target_modules=r".*layers\.[01]\.mlp\.(?:up|down)_proj")
    yield case("all-linear", target_modules="all-linear")
    yield case("two-layers", layers_to_transform=[0, 2])
    yield case("excluded", exclude_modules=["v_proj"])
    yield case("gaussian", init_lora_weights="gaussian")
    yield case("orthogonal", init_lora_weights="orthogonal")
    yield case("eva-in-config", config(init_lora_weights="eva"))
    yield case("lora-ga-in-config", config(init_lora_weights="lora_ga"))
    yield case("bfloat16", cast("bfloat16"), precision="bfloat16")
    yield case("float16", cast("float16"), precision="float16")
    yield case("float64", cast("float64"))
    yield case("huge-alpha", lora_alpha=64)

    yield case("dora", use_dora=True)
    yield case("bias-all", bias="all")
    yield case("bias-lora-only", bias="lora_only")
    yield case("lora-bias", lora_bias=True)
    yield case("saved-head", modules_to_save=["lm_head"])
    yield case("saved-embeddings", modules_to_save=["embed_tokens"])
    yield case("saved-norm", modules_to_save=["norm"])
    yield case("lora-head", target_modules=["q_proj", "lm_head"])
    yield case("lora-embeddings", target_modules=["q_proj", "embed_tokens"])
    yield case("trained-tokens", trainable_token_indices=[1, 2])
    yield case("rank-32", r=32)
    yield case("rank-pattern-32", rank_pattern={"q_proj": 32})
    yield case("rank-zero", config(r=0))
    yield case("rank-missing", config(("r",)))
    yield case("alpha-missing", config(("lora_alpha",)))
    yield case("alpha-zero", config(lora_alpha=0))
    yield case("targets-missing", config(("target_modules",)))
    yield case("rank-pattern-negative", config(rank_pattern={"q_proj": -1}))
    yield case("olora", init_lora_weights="olora")
    yield case("pissa", init_lora_weights="pissa")
    yield case("pissa-niter", init_lora_weights="pissa_niter_4")
    yield case("loftq-in-config", config(init_lora_weights="loftq"))
    yield case("corda-in-config", config(init_lora_weights="corda"))
    yield case("unknown-init-in-config", config(init_lora_weights="other"))
    yield case("alora", alora_invocation_tokens=[3, 4])
    yield case("layer-replication", config(layer_replication=[[0, 2], [1, 3]]))
    yield case("qalora-in-config", config(use_qalora=True))
    yield case("bdlora-in-config", config(use_bdlora={"nblocks": 2}))
    yield case("ia3", method="IA3Config", target_modules=["k_proj"], feedforward_modules=[])
    yield case("loha", method="LoHaConfig")
    yield case("lokr", method="LoKrConfig")
    yield case("vera", method="VeraConfig", target_modules=["q_proj"])
    yield case("a-alone", without("lora_B"))
    yield case("b-alone", without("lora_A"))
    yield case("b-missing-once", without("layers.1.self_attn.q_proj.lora_B"))
    yield case("leftover-name", renamed("lora_A.weight", "lora_A.default.weight"))
    yield case("unknown-projection", renamed("q_proj", "query"))
    yield case("other-layer-kind", renamed("self_attn.q_proj", "self_attn.gate_proj"))
    yield case("norm-weight", plus("base_model.model.model.norm.weight", 128))
    yield case("bias-weight", plus(f"{Q0}.lora_B.bias", 128))
    yield case("cut-file", cut)
    yield case("no-tensors", weights(lambda found: {}))
    yield case("no-weights-file", removed("adapter_model.safetensors"))
    yield case("no-config-file", removed("adapter_config.json"))
    yield case("pickle", as_pickle, policy="a pickle can run code when it is loaded")
    yield case("config-rank-too-high", config(r=8))
    yield case("tensor-rank-too-high", each(resized))
    yield case("tensor-rank-over-limit", each(to_rank_32))
    yield case("no-prefix", renamed("base_model.model.", ""), policy=NOT_PEFT)
    yield case("half-prefix", renamed("base_model.model.", "base_model."))
    yield case("doubled-model", renamed(".model.model.layers", ".model.model.model.layers"))
    yield case("vision-path", renamed(".model.layers", ".model.language_model.layers"))
    yield case("no-such-layer", renamed("layers.2", "layers.7"))
    yield case("all-layers-too-high", renamed("layers.", "layers.1"))
    yield case("no-layer-number", renamed("layers.0.", "layers."))
    yield case("layer-lost", without("layers.1."))
    yield case("module-lost", without("layers.1.self_attn.q_proj"))
    yield case("nan", filled(float("nan")))
    yield case("infinity", filled(float("inf")))
    yield case("zero-b", scale=0.0)
    yield case("zero-a", each(lambda key, value: value * ("lora_B" in key)))
    yield case("transposed", each(lambda key, value: value.T))
    yield case("wider-output", first(lambda value: value.repeat(2, 1)))
    yield case("narrower-output", first(lambda value: value[:32]))
    yield case("smaller-sibling", trained_on={"hidden_size": 64})
    yield case("wider-sibling", trained_on={"hidden_size": 256})
    yield case("deeper-sibling", trained_on={"num_hidden_layers": 5})
    yield case("shallower-sibling", trained_on={"num_hidden_layers": 2}, target_modules=seven)
    yield case("more-value-heads", trained_on={"num_key_value_heads": 4})
    yield case("fewer-value-heads", trained_on={"num_key_value_heads": 1})
    yield case(
        "other-base-name",
        config(base_model_name_or_path="other/base"),
        policy="the contract names another base",
    )


def vision(base: str) -> Iterator[Case]:
    """Adapters for a vision-language base: a language model of 3 layers, a tower of 2 blocks."""
    short = base.replace(".", "")

    def case(name: str, targets: Any, *edits: Edit, tower: bool = False, policy: str = "") -> Case:
        named = f"{short}-{name}" + ("-told" if tower else "")
        return Case(named, base, {"target_modules": targets}, edits, tower, policy=policy)

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
    yield case("old-path", QV, old, policy="" if base == "qwen3-vl" else NOT_PEFT)
    yield case("servers-path", QV, own, policy=NOT_PEFT)
    yield case("text-path", QV, renamed("language_model.layers", "text_model.layers"))
    yield case("no-such-block", ATTENTION, renamed("blocks.1", "blocks.9"), tower=True)
    yield case("old-tower-path", ATTENTION, renamed("model.visual", "visual"), tower=True,
               policy=NOT_PEFT)  # fmt: skip
    if base == "qwen3-vl":
        yield case("deepstack", DEEPSTACK)
        yield case("deepstack", DEEPSTACK, tower=True)


def cases() -> list[Case]:
    found = [*text()]
    for base in ("qwen2-vl", "qwen2.5-vl", "qwen3-vl"):
        found += vision(base)
    return found


@functools.cache
def loaded(base: Path, sizes: tuple[tuple[str, int], ...] = ()) -> Any:
    """The base in float32, or a random sibling of it with other sizes."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

    if sizes:
        torch.manual_seed(1)
        own = AutoConfig.from_pretrained(base)
        own.update(dict(sizes))
        return AutoModelForCausalLM.from_config(own)
    kind = json.loads((base / "config.json").read_text())["architectures"][0]
    auto = AutoModelForCausalLM if kind.endswith("ForCausalLM") else AutoModelForImageTextToText
    return auto.from_pretrained(base, dtype=torch.float32)


def make(case: Case, base: Path, folder: Path) -> Any:
    """Write the adapter to `folder`; returns the model as it was trained, before any edit."""
    import peft
    import torch

    torch.manual_seed(0)
    options = dict(case.options)
    if case.method == "LoraConfig":
        options = {"r": 4, "lora_alpha": 8} | options
    model = copy.deepcopy(loaded(base, tuple(case.trained_on.items())))
    tuned = peft.get_peft_model(model, getattr(peft, case.method)(**options))
    for name, weight in tuned.named_parameters():
        if (case.scale and "lora_B" in name) or "vera_lambda" in name:
            torch.nn.init.normal_(weight, std=case.scale)
        if "lora_" in name:
            weight.data = weight.data.to(getattr(torch, case.precision)).float()
    tuned.peft_config["default"].base_model_name_or_path = BASE
    shutil.rmtree(folder, ignore_errors=True)
    tuned.save_pretrained(folder)
    shutil.copy(base / "config.json", folder / "base_config.json")
    for edit in case.edits:
        edit(folder)
    return tuned.eval()
