"""How vLLM is started for an adapter: its arguments and environment, from the contract alone."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from loraline.contract import Contract
from loraline.errors import UserError
from loraline.preflight import max_lora_rank
from loraline.sizing import Demand, Plan

PORT = 8000
ADAPTERS = "/adapters"
CONFIG = "/etc/loraline"
CACHE = "/cache"
BASES = "/bases"
"""Where the manifest mounts its volumes."""

SHUTDOWN_SECONDS = 30
"""Time for running requests to finish."""

OLDEST = (0, 18)
"""vLLM below it runs code that a model repository names, whatever it is told (CVE-2026-27893)."""

TESTED = "v0.32.0"
"""Tag of the version that this project is tested with."""

HALF_ON_GPUS = "vLLM applies adapters on GPUs in bfloat16 or float16 only"
"""Its Triton kernels for LoRA assert it (`lora_shrink_op.py`); seen with vLLM 0.24 on an H200."""

PLUGIN_SINCE = (0, 28)
"""vLLM from here on reads bitsandbytes bases only with vllm-bnb-plugin in its image."""


LABEL = "[a-z0-9]([a-z0-9-]*[a-z0-9])?"
"""What Kubernetes takes as a name (RFC 1123)."""

SHARED = (
    *("base", "base_revision", "modality", "chat_template", "min_pixels", "max_pixels"),
    *("dtype", "trains_vision", "export"),
)
LENGTHS = ("max_length", "max_new_tokens")
"""What two contracts served by one pod agree on, and what it takes the larger of."""


class Adapter(NamedTuple):
    """One registered adapter as the server knows it."""

    name: str
    """Model name that clients send."""

    uri: str
    """models:/NAME/VERSION."""

    path: str
    """Folder in the pod, a new one for each version: vLLM keys cached prefixes by it."""

    sha256: str
    rank: int
    """The highest of its modules."""

    @classmethod
    def of(cls, name: str, model: str, version: int | str, sha256: str, rank: int) -> Adapter:
        """A version of a registered model that clients call `name`; UserError if it is none."""
        uri = model_uri(model, version)
        return cls(name, uri, f"{ADAPTERS}/{name}/v{int(version)}", sha256, rank)


class OnCpu(NamedTuple):
    """What takes the place of an argument or variable when there is no GPU, and why."""

    instead: tuple[str, ...]
    why: str


CPU_ARGS = {
    "--gpu-memory-utilization": OnCpu(
        ("--kv-cache-memory-bytes", "1G"),
        "the share would be of all memory, and all of it would have to be free at the start",
    ),
    "--max-loras": OnCpu(
        ("--max-loras", "{one more}"),
        "requests to the base that run beside requests to an adapter get the adapter of the last "
        "slot; one more slot, left empty, keeps them right",
    ),
}
"""Arguments with one value each."""

CPU_ENV = {
    "TORCH_COMPILE_DISABLE": OnCpu(
        ("1",), "the first request that asks for log-probabilities would wait for a compiler"
    ),
}


def on_cpu(args: Sequence[str]) -> list[str]:
    """The arguments with those of CPU_ARGS replaced; the same for what was replaced before."""
    found: list[str] = []
    if CPU_ARGS["--gpu-memory-utilization"].instead[0] in args:
        return list(args)
    rest = iter(args)
    for arg in rest:
        if arg in CPU_ARGS:
            value = next(rest)
            flag, instead = CPU_ARGS[arg].instead
            found += [flag, str(int(value) + 1) if instead == "{one more}" else instead]
        else:
            found.append(arg)
    return found


def arguments(
    contract: Contract,
    adapters: Sequence[Adapter],
    *,
    plan: Plan | None = None,
    base: str | None = None,
    merged: bool = False,
    spare: int = 0,
) -> list[str]:
    """Arguments of `vllm serve` for adapters of one base, or for a model that one is merged into.

    `base` is the base's place in the pod where that is not the contract's, `spare` the number of
    slots for adapters that are loaded later. Without a plan the arguments suit a large card.
    """
    served = base_name(contract)
    for adapter in adapters:
        if served == adapter.name:
            raise UserError(
                f"the adapter's name {served!r} is also its base's name; clients could not tell "
                "the two apart, give the adapter another one"
            )
    vision = contract.modality == "vision"
    length = max_model_len(contract)
    if merged:
        args = [adapters[0].path, "--served-model-name", adapters[0].name]
    else:
        args = [base or contract.base, "--served-model-name", served]
        if is_commit(contract.base_revision) and base is None:
            args += ["--revision", contract.base_revision]
        args += lora_arguments(contract, adapters, spare)
    args += ["--dtype", contract.dtype, "--max-model-len", str(length)]
    utilization = plan.gpu_memory_utilization if plan else 0.9
    args += ["--gpu-memory-utilization", f"{utilization:g}"]
    args += ["--max-num-seqs", str(plan.max_num_seqs if plan else 64)]
    args += ["--max-num-batched-tokens", str(batched_tokens(contract))]
    if plan and plan.tensor_parallel_size > 1:
        args += ["--tensor-parallel-size", str(plan.tensor_parallel_size)]
    args += ["--chat-template", f"{CONFIG}/chat_template.jinja"]
    args += ["--chat-template-content-format", "openai" if vision else "string"]
    args += ["--generation-config", "vllm"]
    if vision:
        args += ["--limit-mm-per-prompt", compact({"image": 1, "video": 0})]
        size = compact({"images_kwargs": {"size": image_size(contract)}})
        args += ["--mm-processor-kwargs", size]
        # A domain that cannot exist: images come in the request, the server fetches none.
        args += ["--allowed-media-domains", "data-uri-only.invalid"]
    args += ["--shutdown-timeout", str(SHUTDOWN_SECONDS), "--disable-fastapi-docs"]
    return [*args, "--disable-access-log-for-endpoints", "/health,/metrics,/ping"]


def lora_arguments(contract: Contract, adapters: Sequence[Adapter], spare: int) -> list[str]:
    rank = max_lora_rank(max(adapter.rank for adapter in adapters))
    args = [
        "--enable-lora",
        "--max-loras",
        str(len(adapters) + spare),
        "--max-lora-rank",
        str(rank),
    ]
    args.append("--lora-modules")
    args += [
        compact({"name": each.name, "path": each.path, "base_model_name": base_name(contract)})
        for each in adapters
    ]
    # Without it vLLM drops the tower's weights and says nothing.
    return [*args, *(["--enable-tower-connector-lora"] if contract.trains_vision else [])]


def demand(
    contract: Contract,
    base_config: Mapping[str, Any],
    ranks: Sequence[int],
    *,
    merged: bool = False,
) -> Demand:
    """What a server of adapters of these ranks asks of a card's memory."""
    return Demand(
        config=base_config,
        dtype=contract.dtype,
        max_model_len=max_model_len(contract),
        max_lora_rank=0 if merged else max_lora_rank(max(ranks)),
        max_loras=len(ranks),
        tower=contract.trains_vision,
        max_pixels=contract.max_pixels,
        max_num_batched_tokens=batched_tokens(contract),
    )


def together(agreed: Contract, other: Contract) -> Contract:
    """The contract of a pod that serves both; a UserError names what they do not share."""
    for field in SHARED:
        mine, theirs = getattr(agreed, field), getattr(other, field)
        if mine != theirs:
            raise UserError(
                f"the adapter has {field} {mine!r} and the one beside it has {theirs!r}; "
                "serve them in two pods"
            )
    return agreed.model_copy(
        update={key: max(getattr(agreed, key), getattr(other, key)) for key in LENGTHS}
    )


def environment(contract: Contract, *, local_base: bool, startup_seconds: int) -> dict[str, str]:
    """Environment of the server; its user may have no entry in the image and no home."""
    variables = {
        "HOME": CACHE,
        "USER": "vllm",
        "HF_HOME": f"{CACHE}/huggingface",
        "TORCHINDUCTOR_CACHE_DIR": f"{CACHE}/inductor",
        "TRITON_CACHE_DIR": f"{CACHE}/triton",
        "VLLM_CACHE_ROOT": f"{CACHE}/vllm",
        "VLLM_CONFIG_ROOT": f"{CACHE}/config",
        "VLLM_ENGINE_READY_TIMEOUT_S": str(startup_seconds),
        # A request for a thousand answers would hold the card for all others.
        "VLLM_MAX_N_SEQUENCES": "8",
        "VLLM_NO_USAGE_STATS": "1",
    }
    if local_base or is_folder(contract):
        variables["HF_HUB_OFFLINE"] = "1"
    return variables


def startup_seconds(weights_gib: float, *, local_base: bool) -> int:
    """Budget for a start: the base at 50 MiB/s from the hub or 500 from a disk, read once, and
    three minutes to compile and capture; ten minutes at least."""
    rate = 0.5 if local_base else 0.05
    return max(600, 60 * math.ceil((weights_gib / rate + 180) / 60))


def check_image(image: str, base_config: Mapping[str, Any]) -> None:
    """Refuse an image whose vLLM is too old, or that cannot read a quantized base.

    vLLM's own image says its version, by tag or by digest; what other images hold is taken on trust
    where their tag does not say.
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
    method = (base_config.get("quantization_config") or {}).get("quant_method")
    if method == "bitsandbytes" and stock and (version is None or version >= PLUGIN_SINCE):
        raise UserError(
            f"the base is quantized by bitsandbytes, which {image} cannot read; build an image "
            "from it with vllm-bnb-plugin and name that with --server-image"
        )


def version_of(image: str) -> tuple[int, int] | None:
    """vLLM's version as the image's tag has it."""
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
    method = (base_config.get("quantization_config") or {}).get("quant_method")
    if method and contract.dtype == "float32":
        raise UserError(
            f"a base quantized by {method} is not served in float32; set serve_dtype: bfloat16"
        )


def needs_cpu(dtype: str, *, merged: bool) -> bool:
    """Whether no GPU could serve what was measured in this precision."""
    return dtype == "float32" and not merged


def is_folder(contract: Contract) -> bool:
    """Whether the base is a folder rather than a hub model."""
    return contract.base_revision.startswith("sha256:")


def is_commit(revision: str) -> bool:
    return re.fullmatch(r"[0-9a-f]{40}", revision) is not None


def base_name(contract: Contract) -> str:
    """Name that clients use for the bare base."""
    return PurePosixPath(contract.base).name if is_folder(contract) else contract.base


def max_model_len(contract: Contract) -> int:
    """Room for the longest training row and an answer, in tokens, in steps of 256."""
    tokens = contract.max_length + contract.max_new_tokens
    return max(512, -(-tokens // 256) * 256)


def batched_tokens(contract: Contract) -> int:
    """Tokens of a step. An image's are not split over steps when it is as long as a prompt."""
    return max(2048, max_model_len(contract)) if contract.modality == "vision" else 2048


def image_size(contract: Contract) -> dict[str, int]:
    """Pixel limits as the image processor takes them, where both edges are areas."""
    if contract.min_pixels is None or contract.max_pixels is None:
        raise UserError(
            f"a vision adapter is served with both pixel limits, its contract has min_pixels "
            f"{contract.min_pixels} and max_pixels {contract.max_pixels}"
        )
    return {"shortest_edge": contract.min_pixels, "longest_edge": contract.max_pixels}


def model_uri(model_name: str, version: int | str) -> str:
    """The registered version's address, refused when MLflow or a pod could not carry it."""
    if not model_name.strip() or not model_name.isprintable() or set(model_name) & set("/:"):
        raise UserError(
            f"registered model name {model_name!r} is not accepted: use printable characters "
            "without / and :"
        )
    if not re.fullmatch(r"[1-9][0-9]*", str(version)):
        raise UserError(f"version {str(version)!r} of {model_name} is not a positive integer")
    return f"models:/{model_name}/{version}"


def served_name(model_name: str) -> str:
    """A registered model's name as a DNS label; names that had to change keep a digest apart."""
    slug = re.sub(r"[^a-z0-9]+", "-", model_name.lower()).strip("-")
    if slug == model_name and len(slug) <= 50:
        return slug
    digest = hashlib.sha256(model_name.encode()).hexdigest()[:8]
    return f"{slug[:40].strip('-')}-{digest}".strip("-")


def checked_name(name: str, what: str = "name", longest: int = 50) -> str:
    """The name, if it is a DNS label (RFC 1123), with room for our prefixes."""
    if len(name) <= longest and re.fullmatch(LABEL, name):
        return name
    raise UserError(
        f"{what} {name!r} is not accepted: use up to {longest} lower-case letters, digits and "
        "hyphens, with a letter or digit at both ends"
    )


def checked_subdomain(name: str, what: str) -> str:
    """The name, if it is one of the labels of DNS with dots between them, as claims have."""
    if len(name) <= 253 and re.fullmatch(rf"{LABEL}(\.{LABEL})*", name):
        return name
    raise UserError(
        f"{what} {name!r} is not accepted: use up to 253 lower-case letters, digits, hyphens and "
        "dots, with a letter or digit at both ends of each part"
    )


def compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))
