"""One server's pod: its models, its files, and its demands on a node."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from loraline.contract import Contract
from loraline.delivery.kube import Object
from loraline.delivery.placement import Placement
from loraline.serving import arguments as serving_arguments
from loraline.serving.arguments import BASES, CACHE, Adapter
from loraline.serving.names import base_name
from loraline.serving.sizing import Plan

NAME = "app.kubernetes.io/name"
"""Label that selects a server's or a gateway's pods."""


@dataclass(frozen=True)
class Pod:
    """One server's pod; every object around it carries its name and labels."""

    contract: Contract
    adapters: tuple[Adapter, ...]
    """The first was measured; a server of tasks has none."""

    resource: str
    """Name of all objects."""

    secret: str
    """Secret with the server's `api-key` and, for gated bases, `hf-token`."""

    image: str
    fetch_env: Mapping[str, str]
    where: Placement
    plan: Plan | None
    videos: int = 0
    """Most videos of a request."""

    measured_otherwise: str = ""
    """How the server's limits differ from those of the adapter's evaluation."""

    gateway: str | None = None
    """Name of the gateway whose pods alone may reach the server; None lets in the namespace's."""

    @property
    def labels(self) -> dict[str, str]:
        return {NAME: self.resource, "app.kubernetes.io/part-of": "loraline"}

    @property
    def annotations(self) -> dict[str, str]:
        entries = {}
        if self.adapters:
            entries["loraline/registered-version"] = self.adapters[0].uri
            entries["loraline/adapter-sha256"] = self.adapters[0].sha256
        entries["loraline/base-revision"] = self.contract.base_revision
        if self.measured_otherwise:
            entries["loraline/measured-otherwise"] = self.measured_otherwise
        if self.contract.prompt_uri and self.adapters:
            entries["loraline/prompt"] = self.contract.prompt_uri
        if len(self.adapters) > 1:
            entries["loraline/beside"] = ", ".join(each.uri for each in self.adapters[1:])
        if self.plan:
            cards = f"{self.plan.tensor_parallel_size} x {self.plan.gpu}"
            entries["loraline/sized-for"] = f"{cards}, {self.plan.account()}"
        return entries

    @property
    def names(self) -> list[str]:
        """Models that the server has to list before it is ready."""
        return [each.name for each in self.adapters] or [base_name(self.contract)]

    @property
    def selector(self) -> dict[str, str]:
        return {NAME: self.resource}

    @property
    def hub(self) -> bool:
        """Whether the base comes from the model hub."""
        return not self.contract.is_folder and self.where.base_volume is None

    @property
    def base(self) -> str | None:
        """The base's folder in the pod, when a claim holds it."""
        if self.where.base_volume is None:
            return None
        return f"{BASES}/{base_name(self.contract).rpartition('/')[2]}"

    @property
    def startup_seconds(self) -> int:
        weights = self.plan.weights * self.plan.tensor_parallel_size if self.plan else 60
        return serving_arguments.startup_seconds(weights, local_base=not self.hub)

    def metadata(self) -> Object:
        placed = {"namespace": self.where.namespace} if self.where.namespace else {}
        return {
            "name": self.resource,
            **placed,
            "labels": self.labels,
            "annotations": self.annotations,
        }

    @property
    def storage(self) -> str:
        """Room for the base in its hub's cache."""
        weights = self.plan.weights * self.plan.tensor_parallel_size if self.plan else 60
        return f"{10 * math.ceil((1.2 * weights + 5) / 10)}Gi"

    def base_mounts(self) -> list[Object]:
        mounts: list[Object] = [{"name": "cache", "mountPath": CACHE}]
        if self.where.base_volume:
            mounts.append({"name": "bases", "mountPath": BASES, "readOnly": True})
        return mounts

    @property
    def memory(self) -> str:
        """What vLLM takes beside a quarter of the weights on their way to the card, or, to merge an
        adapter, all of them."""
        weights = self.plan.weights * self.plan.tensor_parallel_size if self.plan else 16.0
        return f"{8 + math.ceil(weights / (1 if self.where.merged else 4))}Gi"

    def arguments(self) -> list[str]:
        args = serving_arguments.arguments(
            self.contract,
            self.adapters,
            plan=self.plan,
            base=self.base,
            merged=self.where.merged,
            # The next version is loaded before the current version is unloaded.
            spare=2 if self.where.follow else 0,
            videos=self.videos,
        )
        return serving_arguments.on_cpu(args) if self.where.cpu else args

    def variables(self) -> dict[str, str]:
        env = serving_arguments.environment(
            self.contract, local_base=not self.hub, startup_seconds=self.startup_seconds
        )
        if self.where.follow:
            env["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] = "1"
        if self.where.cpu:
            env |= serving_arguments.CPU_ENV
        return env

    @property
    def card(self) -> str:
        """The resource to request; NVIDIA's device plugin renames shared cards."""
        return "nvidia.com/gpu" if self.where.fraction == 1 else "nvidia.com/gpu.shared"

    def resources(self) -> Object:
        if self.where.cpu:
            return {"requests": {"cpu": "1", "memory": "3Gi"}}
        requests = {"cpu": "2", "memory": self.memory}
        return {
            "requests": requests,
            "limits": {self.card: self.plan.tensor_parallel_size if self.plan else 1},
        }
