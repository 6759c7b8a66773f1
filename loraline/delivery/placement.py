"""Where and how often a server runs."""

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
    """Without a GPU, by an image with vLLM's CPU build."""

    fraction: float = 1.0
    """Share of one card, by a device plugin that hands out shared ones."""

    on_card: bool = False
    """Only on nodes with the card of the plan, as far as nodes say which one they have."""

    replicas: int = 1
    """Most replicas; above one they follow the waiting requests."""

    prometheus: str | None = None
    """Address of the Prometheus that KEDA asks; without it the autoscaler is Kubernetes' own."""

    monitor: bool = False
    """Whether a ServiceMonitor tells the Prometheus operator of the server."""

    base_volume: str | None = None
    """Claim that holds the base in a folder of its name; else a hub model is cached in one."""

    merged: bool = False
    """Merge the adapter into its base at the start and serve the result."""

    follow: str | None = None
    """Alias whose later versions a sidecar loads without a restart; off unless it is named."""

    server_image: str | None = None
    """Image of vLLM; by default vLLM's own, for GPUs or for CPUs."""

    @property
    def serving_image(self) -> str:
        return self.server_image or (CPU_IMAGE if self.cpu else SERVER_IMAGE)
