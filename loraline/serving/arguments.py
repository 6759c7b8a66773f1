"""vLLM's arguments and environment for an adapter, from the contract alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from loraline.contract import Contract
from loraline.errors import UserError
from loraline.serving.names import base_name, compact_json, is_commit, model_uri
from loraline.serving.preflight import max_lora_rank
from loraline.serving.sizing import Demand, Plan

PORT = 8000
ADAPTERS = "/adapters"
CONFIG = "/etc/loraline"
CACHE = "/cache"
BASES = "/bases"
"""Where the manifest mounts its volumes."""

SHUTDOWN_SECONDS = 30
"""Time for running requests to finish."""


SHARED = (
    *("base", "base_revision", "modality", "chat_template", "min_pixels", "max_pixels"),
    *("dtype", "quantization", "trains_vision", "export"),
)
LENGTHS = ("max_length", "max_new_tokens")
COUNTS = ("max_images", "max_videos", "tools")
"""Fields that two contracts of one pod share, and fields of which the larger value counts."""


class Adapter(NamedTuple):
    """A registered adapter as the server knows it."""

    name: str
    """Model name that clients send."""

    uri: str
    """models:/NAME/VERSION."""

    path: str
    """Folder in the pod, a new one for each version: vLLM keys cached prefixes by it."""

    sha256: str
    """Digest of the adapter's folder."""

    rank: int
    """The highest rank of its modules."""

    @classmethod
    def of(cls, name: str, model: str, version: int | str, sha256: str, rank: int) -> Adapter:
        """A registered version that clients call `name`; UserError for an invalid name."""
        uri = model_uri(model, version)
        return cls(name, uri, f"{ADAPTERS}/{name}/v{int(version)}", sha256, rank)


CPU_ENV = {
    # The first request that asks for log-probabilities would wait for a compiler.
    "TORCH_COMPILE_DISABLE": "1",
}
"""Environment of a server without a GPU, beside that of any server."""


def on_cpu(args: Sequence[str]) -> list[str]:
    """The arguments of a server without a GPU; arguments for a CPU are kept."""
    cpu = list(args)
    if "--gpu-memory-utilization" not in cpu:
        return cpu
    # The share would be of all memory, and all of it would have to be free at the start.
    share = cpu.index("--gpu-memory-utilization")
    cpu[share : share + 2] = ["--kv-cache-memory-bytes", "1G"]
    # Requests to the base that run beside requests to an adapter get the adapter of the last slot;
    # one more slot, left empty, keeps them right.
    if "--max-loras" in cpu:
        slots = cpu.index("--max-loras") + 1
        cpu[slots] = str(int(cpu[slots]) + 1)
    return cpu


def arguments(
    contract: Contract,
    adapters: Sequence[Adapter],
    *,
    plan: Plan | None = None,
    base: str | None = None,
    merged: bool = False,
    spare: int = 0,
    videos: int = 0,
) -> list[str]:
    """Arguments of `vllm serve` for adapters of one base, or for a model that one is merged into.

    `base` is the base's place in the pod where that is not the contract's, `spare` the number of
    slots for adapters that are loaded later, `videos` the most of a request. Without adapters the
    base is served alone, without a plan the arguments suit a large card.
    """
    served = base_name(contract)
    for adapter in adapters:
        if served == adapter.name:
            raise UserError(
                f"the adapter's name {served!r} is also its base's name; clients could not tell "
                "the two apart, give the adapter another one"
            )
    vision = contract.modality == "vision"
    length = contract.max_model_len
    if merged:
        args = [adapters[0].path, "--served-model-name", adapters[0].name]
    else:
        args = [base or contract.base, "--served-model-name", served]
        if is_commit(contract.base_revision) and base is None:
            args += ["--revision", contract.base_revision]
        args += lora_arguments(contract, adapters, spare) if adapters else []
    # Beside these files a base may have Mistral's own, which vLLM would take first: another
    # tokenizer, config and names of weights than were measured.
    args += ["--tokenizer-mode", "hf", "--config-format", "hf", "--load-format", "safetensors"]
    args += ["--dtype", contract.dtype, "--max-model-len", str(length)]
    args += quantization(contract)
    utilization = plan.gpu_memory_utilization if plan else 0.9
    args += ["--gpu-memory-utilization", f"{utilization:g}"]
    args += ["--max-num-seqs", str(plan.max_num_seqs if plan else 64)]
    args += ["--max-num-batched-tokens", str(batched_tokens(contract))]
    if plan and plan.tensor_parallel_size > 1:
        args += ["--tensor-parallel-size", str(plan.tensor_parallel_size)]
    args += ["--chat-template", f"{CONFIG}/chat_template.jinja"]
    args += ["--chat-template-content-format", "openai" if vision else "string"]
    args += ["--generation-config", "vllm"]
    if contract.tools:
        args += ["--enable-auto-tool-choice", "--tool-call-parser", call_parser(contract)]
    if vision:
        videos = max(videos, contract.max_videos)
        counts = {"image": contract.max_images, "video": videos}
        args += ["--limit-mm-per-prompt", compact_json(counts)]
        if videos:
            # All frames of a request: by default vLLM silently takes only 32.
            args += ["--media-io-kwargs", compact_json({"video": {"num_frames": -1}})]
            # A request says how many of its frames make a second; vLLM refuses that from clients it
            # does not trust. Ours have the key, and the gateway takes no such field from anybody.
            args += ["--trust-request-mm-kwargs"]
        size = compact_json({"images_kwargs": {"size": image_size(contract)}})
        args += ["--mm-processor-kwargs", size]
        # A domain that cannot exist: images come in the request, the server fetches none.
        args += ["--allowed-media-domains", "data-uri-only.invalid"]
    args += ["--shutdown-timeout", str(SHUTDOWN_SECONDS), "--disable-fastapi-docs"]
    return [*args, "--disable-access-log-for-endpoints", "/health,/metrics,/ping"]


def quantization(contract: Contract) -> list[str]:
    """Arguments with which vLLM rounds the base as training did, as it loads it.

    Not `fp8`, which gives a whole weight one scale. The tower stays as it is, as in training.
    """
    if contract.quantization == "none":
        return []
    args = ["--quantization", "fp8_per_channel"]
    if contract.modality == "vision":
        args += ["--quantization-config", compact_json({"ignore": ["re:(.*\\.)?visual\\..*"]})]
    return args


CALL_PARSERS = {"Qwen": "hermes", "Mistral": "mistral", "Llama": "llama3_json"}
"""vLLM's parsers of calls by the prefix of a base's class (docs.vllm.ai, tool calling)."""


def call_parser(contract: Contract) -> str:
    """vLLM's parser of the base's calls, by its chat template or else by its class."""
    if "<tool_call>" in contract.chat_template:
        return "hermes"
    matching = (prefix for prefix in CALL_PARSERS if contract.architecture.startswith(prefix))
    return CALL_PARSERS[next(matching, "Qwen")]


def lora_arguments(contract: Contract, adapters: Sequence[Adapter], spare: int) -> list[str]:
    """Arguments for adapters, with `spare` more slots for those that are loaded later."""
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
        compact_json({"name": each.name, "path": each.path, "base_model_name": base_name(contract)})
        for each in adapters
    ]
    # Without it vLLM silently drops the tower's weights.
    return [*args, *(["--enable-tower-connector-lora"] if contract.trains_vision else [])]


def demand(
    contract: Contract,
    base_config: Mapping[str, Any],
    ranks: Sequence[int],
    *,
    merged: bool = False,
    videos: int = 0,
) -> Demand:
    """The memory demand of a server of adapters of these ranks, or of the base alone."""
    return Demand(
        config=base_config,
        dtype=contract.dtype,
        quantization=contract.quantization,
        max_model_len=contract.max_model_len,
        max_lora_rank=0 if merged or not ranks else max_lora_rank(max(ranks)),
        max_loras=len(ranks),
        tower=contract.trains_vision,
        # A video is as large as the largest image that the base takes.
        max_pixels=None if videos or contract.max_videos else contract.max_pixels,
        max_num_batched_tokens=batched_tokens(contract),
    )


def shared_contract(agreed: Contract, other: Contract) -> Contract:
    """The contract of a pod that serves both; a UserError names what they do not share."""
    for field in SHARED:
        mine, theirs = getattr(agreed, field), getattr(other, field)
        if mine != theirs:
            raise UserError(
                f"the adapter has {field} {mine!r} and the one beside it has {theirs!r}; "
                "serve them in two pods"
            )
    return agreed.model_copy(
        update={key: max(getattr(agreed, key), getattr(other, key)) for key in LENGTHS + COUNTS}
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
    if local_base or contract.is_folder:
        variables["HF_HUB_OFFLINE"] = "1"
    return variables


def startup_seconds(weights_gib: float, *, local_base: bool) -> int:
    """Budget for a start: the base at 50 MiB/s from the hub or 500 from a disk, read once, and
    three minutes to compile and capture; ten minutes at least."""
    rate = 0.5 if local_base else 0.05
    return max(600, 60 * math.ceil((weights_gib / rate + 180) / 60))


def batched_tokens(contract: Contract) -> int:
    """Tokens of a step. An image's are not split over steps when it is as long as a prompt."""
    return max(2048, contract.max_model_len) if contract.modality == "vision" else 2048


def image_size(contract: Contract) -> dict[str, int]:
    """Pixel limits as the image processor takes them, where both edges are areas."""
    if contract.min_pixels is None or contract.max_pixels is None:
        raise UserError(
            f"a vision adapter is served with both pixel limits, its contract has min_pixels "
            f"{contract.min_pixels} and max_pixels {contract.max_pixels}"
        )
    return {"shortest_edge": contract.min_pixels, "longest_edge": contract.max_pixels}
