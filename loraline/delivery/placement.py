"""Where a server runs, and how many replicas it has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from loraline.serving import versions

SERVER_IMAGE = f"vllm/vllm-openai:{versions.TESTED}"
CPU_IMAGE = f"vllm/vllm-openai-cpu:{versions.TESTED}"

Format = Literal["deployment", "kserve", "production-stack"]


@dataclass(frozen=True)
class Placement:
    """Where and how often the server runs; nothing here changes what it answers."""

    format: Format = "deployment"
    namespace: str | None = None
    cpu: bool = False
    """Serve without a GPU, by an image with vLLM's CPU build."""

    fraction: float = 1.0
    """Share of one card, by a device plugin that shares cards."""

    on_card: bool = False
    """Only on nodes with the planned card, as far as nodes have labels for it."""

    replicas: int = 1
    """Most replicas; above one they follow the waiting requests."""

    prometheus: str | None = None
    """Address of the Prometheus that KEDA asks; without it the autoscaler is Kubernetes' own."""

    monitor: bool = False
    """Whether there is a ServiceMonitor of the server for the Prometheus operator."""

    base_volume: str | None = None
    """Claim that holds the base in a folder of its name; otherwise a claim caches a hub model."""

    merged: bool = False
    """Merge the adapter into its base at the start and serve the result."""

    follow: str | None = None
    """Alias whose later versions a sidecar loads without a restart; None for no sidecar."""

    server_image: str | None = None
    """Image of vLLM; by default vLLM's own, for GPUs or for CPUs."""

    @property
    def serving_image(self) -> str:
        return self.server_image or (CPU_IMAGE if self.cpu else SERVER_IMAGE)
