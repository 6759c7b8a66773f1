"""GPUs that a server is planned for."""

from __future__ import annotations

from typing import NamedTuple


class Gpu(NamedTuple):
    """A card, as CUDA reports it."""

    memory: float
    """GiB."""

    products: tuple[str, ...]
    """Values of the node label PRODUCT for it."""

    bfloat16: bool = True
    fp8: bool = True
    """Whether it multiplies in FP8 (compute capability 8.9 and later)."""


PRODUCT = "nvidia.com/gpu.product"
"""Node label with the card's name, spaces as hyphens, by NVIDIA's GPU feature discovery."""

GPUS = {
    "T4": Gpu(14.56, ("Tesla-T4",), bfloat16=False, fp8=False),
    "RTX-4080": Gpu(15.5, ("NVIDIA-GeForce-RTX-4080", "NVIDIA-GeForce-RTX-4080-SUPER")),
    "L4": Gpu(21.99, ("NVIDIA-L4",)),
    "A10": Gpu(21.99, ("NVIDIA-A10", "NVIDIA-A10G"), fp8=False),
    "RTX-4090": Gpu(23.52, ("NVIDIA-GeForce-RTX-4090",)),
    "RTX-5090": Gpu(31.84, ("NVIDIA-GeForce-RTX-5090",)),
    "A100-40GB": Gpu(39.5, ("NVIDIA-A100-SXM4-40GB", "NVIDIA-A100-PCIE-40GB"), fp8=False),
    "L40S": Gpu(44.42, ("NVIDIA-L40S",)),
    "A100-80GB": Gpu(79.14, ("NVIDIA-A100-SXM4-80GB", "NVIDIA-A100-80GB-PCIe"), fp8=False),
    "H100-80GB": Gpu(79.11, ("NVIDIA-H100-80GB-HBM3", "NVIDIA-H100-PCIe")),
    "H200": Gpu(139.8, ("NVIDIA-H200",)),
}
"""From small to large. vLLM plans with the memory that CUDA reports (cudaMemGetInfo), which is half
a GiB below what nvidia-smi shows and differs by driver. The numbers are the lowest that public
reports of PyTorch's "total capacity" show; none was found for RTX-4080, L4 and H200, which are as
far below nvidia-smi's as RTX-4090's, A10's and H100's. RTX-5090's is the one with which the starts
behind VIDEO_ACTIVATION agree."""
