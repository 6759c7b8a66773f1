"""Adapters that a server might be given: made by real PEFT on tiny bases, then broken on purpose.

`tests/zoo/ask_vllm.py` shows each to a real vLLM once and keeps its verdict as a golden file; the
tests hold preflight against it. The cases stand in the modules beside this one.
"""

from __future__ import annotations

import copy
import functools
import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edits import Edit

BASE = "the/base"
MAX_RANK = 16
"""--max-lora-rank of the server that is asked."""


@dataclass(frozen=True)
class Case:
    """One adapter, and the server it is meant for."""

    name: str
    base: str
    """Name of the base that serves it, as `bases.build` knows it."""

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

    retuned: bool = False
    """Whether an edit changes what is meant, so that PEFT's reading of the files is the judge."""

    policy: str = ""
    """Why preflight refuses what vLLM would apply."""


def cases() -> list[Case]:
    import base_cases
    import file_cases
    import name_cases
    import number_cases
    import text_cases
    import vision_cases

    modules = (text_cases, vision_cases, number_cases, name_cases, file_cases, base_cases)
    return [case for module in modules for case in module.cases()]


def named(module: str, base: str) -> Any:
    """A maker of cases for one base: rank 4 on queries and values unless it says otherwise."""
    fields = {field for field in Case.__dataclass_fields__ if field not in ("options", "edits")}

    def case(name: str, *edits: Edit, **options: Any) -> Case:
        known = {key: options.pop(key) for key in fields & set(options)}
        targets = {"target_modules": ["q_proj", "v_proj"]}
        own = {"base": base, **known}
        return Case(f"{module}-{name}", options=targets | options, edits=edits, **own)

    return case


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
    tuned = trained(case, base)
    shutil.rmtree(folder, ignore_errors=True)
    tuned.save_pretrained(folder)
    finish(case, base, folder)
    return tuned


def copied(case: Case, base: Path, folder: Path, saved: dict[str, Path]) -> None:
    """The same without a model, from what an earlier case saved where only the edits differ."""
    key = repr((case.base, case.options, case.method, case.scale, case.trained_on, case.precision))
    if key not in saved:
        saved[key] = base.with_name(f"{base.name}-saved-{len(saved)}")
        trained(case, base).save_pretrained(saved[key])
    shutil.copytree(saved[key], folder)
    finish(case, base, folder)


def finish(case: Case, base: Path, folder: Path) -> None:
    shutil.copy(base / "config.json", folder / "base_config.json")
    for edit in case.edits:
        edit(folder)


def trained(case: Case, base: Path) -> Any:
    """A model of PEFT with random weights in the place of trained ones."""
    import peft
    import torch

    torch.manual_seed(0)
    options = dict(case.options)
    if case.method == "LoraConfig":
        options = {"r": 4, "lora_alpha": 8} | options
    model = copy.deepcopy(loaded(base, tuple(case.trained_on.items())))
    tuned = peft.get_peft_model(model, getattr(peft, case.method)(**options))
    for name, weight in tuned.named_parameters():
        # PEFT begins with zeros in lora_B, for embeddings in lora_embedding_A.
        begins_zero = "lora_B" in name or "lora_embedding_A" in name
        if (case.scale and begins_zero) or "vera_lambda" in name:
            torch.nn.init.normal_(weight, std=case.scale)
        if "lora_" in name:
            weight.data = weight.data.to(getattr(torch, case.precision)).float()
    tuned.peft_config["default"].base_model_name_or_path = BASE
    return tuned.eval()
