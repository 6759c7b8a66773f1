"""The Kubernetes objects that serve a registered adapter exactly as its contract says."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from loraline.contract import Contract
from loraline.errors import UserError

SERVER_IMAGE = "vllm/vllm-openai:v0.32.0"
PORT = 8000

ADAPTERS = "/adapters"
CONFIG = "/etc/loraline"
CACHE = "/cache"

LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Values that vLLM accepts for --max-lora-rank."""

STARTUP_SECONDS = 1800
"""Budget for downloading and loading the base and for capturing CUDA graphs."""

DRAIN_SECONDS = 10
"""Time for the Service to forget a pod before its server stops listening."""

SHUTDOWN_SECONDS = 30
"""Time for running requests to finish."""

SERVER_UID = 2000
"""User `vllm` of the server image."""

Object = dict[str, Any]


def render(
    contract: Contract,
    *,
    model_name: str,
    version: int | str,
    image: str,
    name: str | None = None,
    namespace: str | None = None,
    fetch_env: Mapping[str, str] | None = None,
    server_image: str = SERVER_IMAGE,
) -> list[Object]:
    """ConfigMap, Deployment and Service for version `version` of registered model `model_name`.

    `name` is the model name that clients send, made of `model_name` when not given. `image` holds
    the steps; its init container fetches the adapter, with `fetch_env` (where MLflow and its
    artifacts are) and the optional Secret `loraline` (their credentials). The optional Secret
    named like the Deployment holds the server's `api-key` and, for gated bases, `hf-token`.

    Raises UserError for what Kubernetes or vLLM would refuse.
    """
    model = model_uri(model_name, version)
    name = served_name(model_name) if name is None else checked_name(name)
    # A Service named vllm would give every pod of the namespace a VLLM_PORT that vLLM cannot read,
    # and one that starts with a digit is refused.
    resource = f"lora-{name}"
    path = f"{ADAPTERS}/{name}/v{int(version)}"
    labels = {"app.kubernetes.io/name": resource, "app.kubernetes.io/part-of": "loraline"}
    annotations = {
        "loraline/registered-version": model,
        "loraline/adapter-sha256": contract.adapter_sha256,
        "loraline/base-revision": contract.base_revision,
        **({"loraline/prompt": contract.prompt_uri} if contract.prompt_uri else {}),
    }

    def metadata() -> Object:
        placed = {"namespace": namespace} if namespace else {}
        return {
            "name": resource,
            **placed,
            "labels": dict(labels),
            "annotations": dict(annotations),
        }

    config_map = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": metadata(),
        "data": {
            "chat_template.jinja": contract.chat_template,
            "contract.json": contract.model_dump_json(indent=2) + "\n",
            "prompt.txt": contract.prompt,
        },
    }
    fetch = {
        "name": "fetch-adapter",
        "image": image,
        "command": [
            *("python", "steps/fetch_adapter.py"),
            *("--model", literal(model)),
            *("--sha256", contract.adapter_sha256),
            *("--out-dir", path),
        ],
        "env": environment({"HOME": "/tmp", **(fetch_env or {})}),
        "envFrom": [{"secretRef": {"name": "loraline", "optional": True}}],
        "securityContext": unprivileged(),
        "volumeMounts": [{"name": "adapters", "mountPath": ADAPTERS}],
    }
    health = {"httpGet": {"path": "/health", "port": "http"}}
    server = {
        "name": "vllm",
        "image": server_image,
        "command": ["vllm", "serve"],
        "args": [literal(arg) for arg in server_args(contract, name, path)],
        "env": [
            *environment(server_environment(contract)),
            secret("VLLM_API_KEY", resource, "api-key"),
            secret("HF_TOKEN", resource, "hf-token"),
        ],
        "ports": [{"name": "http", "containerPort": PORT}],
        "resources": {
            "requests": {"cpu": "2", "memory": "8Gi"},
            "limits": {"nvidia.com/gpu": 1},
        },
        # vLLM listens only after it has loaded the adapter, so one address answers all three.
        "startupProbe": {**health, "periodSeconds": 10, "failureThreshold": STARTUP_SECONDS // 10},
        "livenessProbe": {
            **health,
            "periodSeconds": 10,
            "timeoutSeconds": 5,
            "failureThreshold": 6,
        },
        "readinessProbe": {
            **health,
            "periodSeconds": 5,
            "timeoutSeconds": 5,
            "failureThreshold": 2,
        },
        "lifecycle": {"preStop": {"exec": {"command": ["sleep", str(DRAIN_SECONDS)]}}},
        "securityContext": unprivileged(),
        "volumeMounts": [
            {"name": "adapters", "mountPath": ADAPTERS, "readOnly": True},
            {"name": "config", "mountPath": CONFIG, "readOnly": True},
            {"name": "cache", "mountPath": CACHE},
            {"name": "shm", "mountPath": "/dev/shm"},
        ],
    }
    deployment = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": metadata(),
        "spec": {
            "replicas": 1,
            # A second pod would wait for the GPU that the first one holds.
            "strategy": {"type": "Recreate"},
            "progressDeadlineSeconds": STARTUP_SECONDS + 600,
            "selector": {"matchLabels": {"app.kubernetes.io/name": resource}},
            "template": {
                "metadata": {"labels": dict(labels), "annotations": dict(annotations)},
                "spec": {
                    "enableServiceLinks": False,
                    "automountServiceAccountToken": False,
                    "securityContext": {
                        "runAsNonRoot": True,
                        "runAsUser": SERVER_UID,
                        "runAsGroup": SERVER_UID,
                        "fsGroup": SERVER_UID,
                        "seccompProfile": {"type": "RuntimeDefault"},
                    },
                    "terminationGracePeriodSeconds": DRAIN_SECONDS + SHUTDOWN_SECONDS + 20,
                    "tolerations": [
                        {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}
                    ],
                    "initContainers": [fetch],
                    "containers": [server],
                    "volumes": [
                        {"name": "adapters", "emptyDir": {}},
                        {"name": "config", "configMap": {"name": resource}},
                        {"name": "cache", "emptyDir": {}},
                        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "2Gi"}},
                    ],
                },
            },
        },
    }
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata(),
        "spec": {
            "selector": {"app.kubernetes.io/name": resource},
            "ports": [{"name": "http", "port": PORT, "targetPort": "http"}],
        },
    }
    return [config_map, deployment, service]


def server_args(contract: Contract, name: str, path: str) -> list[str]:
    """Arguments of `vllm serve` for the adapter `name` in folder `path`."""
    base = base_name(contract)
    if base == name:
        raise UserError(
            f"the adapter's name {name!r} is also its base's name; clients could not tell the two "
            "apart, give the adapter another one"
        )
    adapter = {"name": name, "path": path, "base_model_name": base}
    length = max_model_len(contract)
    vision = contract.modality == "vision"
    args = [contract.base, "--served-model-name", base]
    if re.fullmatch(r"[0-9a-f]{40}", contract.base_revision):
        args += ["--revision", contract.base_revision]
    args += ["--enable-lora", "--max-loras", "1", "--max-lora-rank", str(max_lora_rank(contract.r))]
    args += ["--lora-modules", compact(adapter)]
    if contract.trains_vision:
        # Without it vLLM drops the tower's weights and says nothing.
        args += ["--enable-tower-connector-lora"]
    args += ["--dtype", contract.dtype, "--max-model-len", str(length)]
    args += ["--gpu-memory-utilization", "0.90", "--max-num-seqs", "64"]
    # An image's tokens are not split over steps when the step is as long as the longest prompt.
    args += ["--max-num-batched-tokens", str(max(2048, length) if vision else 2048)]
    args += ["--chat-template", f"{CONFIG}/chat_template.jinja"]
    args += ["--chat-template-content-format", "openai" if vision else "string"]
    args += ["--generation-config", "vllm"]
    if vision:
        args += ["--limit-mm-per-prompt", compact({"image": 1, "video": 0})]
        args += [
            "--mm-processor-kwargs",
            compact({"images_kwargs": {"size": image_size(contract)}}),
        ]
        # A domain that cannot exist: images come in the request, the server fetches none.
        args += ["--allowed-media-domains", "data-uri-only.invalid"]
    args += ["--shutdown-timeout", str(SHUTDOWN_SECONDS), "--disable-fastapi-docs"]
    return [*args, "--disable-access-log-for-endpoints", "/health,/metrics,/ping"]


def server_environment(contract: Contract) -> dict[str, str]:
    """Environment of the server; its user may have no entry in the image and no home."""
    variables = {
        "HOME": CACHE,
        "USER": "vllm",
        "HF_HOME": f"{CACHE}/huggingface",
        "TORCHINDUCTOR_CACHE_DIR": f"{CACHE}/inductor",
        "TRITON_CACHE_DIR": f"{CACHE}/triton",
        "VLLM_CACHE_ROOT": f"{CACHE}/vllm",
        "VLLM_CONFIG_ROOT": f"{CACHE}/config",
        "VLLM_ENGINE_READY_TIMEOUT_S": str(STARTUP_SECONDS),
        "VLLM_NO_USAGE_STATS": "1",
    }
    if is_folder(contract):
        variables["HF_HUB_OFFLINE"] = "1"
    return variables


def is_folder(contract: Contract) -> bool:
    """Whether the base is a folder rather than a hub model."""
    return contract.base_revision.startswith("sha256:")


def base_name(contract: Contract) -> str:
    """Name that clients use for the bare base."""
    return PurePosixPath(contract.base).name if is_folder(contract) else contract.base


def max_lora_rank(rank: int) -> int:
    """The smallest rank that vLLM accepts and the adapter fits in; slots are allocated at it."""
    for accepted in LORA_RANKS:
        if rank <= accepted:
            return accepted
    raise UserError(f"adapter rank {rank} cannot be served: vLLM accepts up to {LORA_RANKS[-1]}")


def max_model_len(contract: Contract) -> int:
    """Room for the longest training row and an answer, in tokens, in steps of 256."""
    tokens = contract.max_length + contract.max_new_tokens
    return max(512, -(-tokens // 256) * 256)


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


def checked_name(name: str) -> str:
    if len(name) <= 50 and re.fullmatch(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?", name):
        return name
    raise UserError(
        f"name {name!r} is not accepted: use up to 50 lower-case letters, digits and hyphens, "
        "with a letter or digit at both ends"
    )


def unprivileged() -> Object:
    return {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


def secret(variable: str, name: str, key: str) -> Object:
    reference = {"name": name, "key": key, "optional": True}
    return {"name": variable, "valueFrom": {"secretKeyRef": reference}}


def environment(variables: Mapping[str, str]) -> list[Object]:
    return [{"name": key, "value": literal(value)} for key, value in sorted(variables.items())]


def literal(text: str) -> str:
    """Keep Kubernetes from replacing `$(NAME)`, which could print a secret."""
    return text.replace("$", "$$")


def compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


def to_yaml(objects: list[Object]) -> str:
    """One YAML document an object, the same bytes for the same objects."""
    import yaml

    class Dumper(yaml.SafeDumper):
        """Writes texts of several lines as blocks, so that they can be reviewed."""

        def ignore_aliases(self, data: Any) -> bool:
            return True

    def text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
        if not value.replace("\n", "").isprintable():
            style = '"'
        elif "\n" in value:
            style = "|"
        else:
            # Kubernetes reads YAML with rules of its own: y, n and 1e3 are no strings to it.
            plain = len(value) > 1 and (value[0].isalpha() or value.startswith(("/", "--")))
            style = "" if plain else "'"
        return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)

    Dumper.add_representer(str, text)
    return yaml.dump_all(
        objects, Dumper=Dumper, sort_keys=False, explicit_start=True, allow_unicode=True, width=100
    )
