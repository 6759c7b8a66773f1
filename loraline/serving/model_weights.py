"""What would keep vLLM from serving a model that was trained whole, seen before it is served."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from loraline.base.architectures import SERVED, architecture_of, parameters
from loraline.contract import model_files
from loraline.serving.adapter_config import Finding
from loraline.serving.weights_file import Tensor, read_tensors

LOG_ANEW = "log the model anew"
NAMES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}
"""safetensors' names of the types that a model is served in."""


def findings(folder: Path, base_config: dict[str, Any], dtype: str) -> list[Finding]:
    """Everything that speaks against serving the model in `folder` in the place of its base."""
    try:
        config_file, *weights = model_files(folder)
        config = json.loads(config_file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        return [Finding("config.json", f"cannot be read with its weights ({error})", LOG_ANEW)]
    trained, expected = architecture_of(config), architecture_of(base_config)
    if trained != expected or trained not in SERVED:
        rule = f"is of class {trained}, its base of {expected}"
        return [Finding("architectures", rule, "serve the model that was trained")]
    tensors: dict[str, Tensor] = {}
    for file in weights:
        try:
            tensors |= read_tensors(file)
        except (OSError, ValueError) as error:
            return [Finding(file.name, f"cannot be read ({error})", LOG_ANEW)]
    problems = [
        Finding(name, "holds NaN or infinity", "train again, at a lower rate")
        for name, tensor in tensors.items()
        if tensor.dtype == NAMES[dtype] and not tensor.finite()
    ]
    problems += [
        Finding(name, f"is of type {tensor.dtype}, measured was {dtype}", LOG_ANEW)
        for name, tensor in tensors.items()
        if tensor.dtype != NAMES[dtype]
    ]
    count = sum(math.prod(tensor.shape) for tensor in tensors.values())
    expected_count = sum(parameters(base_config))
    if count != expected_count:
        rule = f"hold {count} parameters, the base has {expected_count}"
        problems.append(Finding("the weights", rule, LOG_ANEW))
    return problems
