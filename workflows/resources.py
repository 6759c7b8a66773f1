"""Named classes of what a step gets of a node, and the pod patch that asks for it.

Argo takes no parameters in `resources`, so the class is a parameter of the workflow and the pod's
spec is patched with what it stands for. The names of shared devices are those of NVIDIA's plugin;
edit them to what the cluster's nodes advertise.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple


class Class(NamedTuple):
    """Requests, the memory limit, and the devices that a class asks for."""

    cpu: str
    memory: str
    memory_limit: str
    device: str = ""
    label: str = ""
    """Value of the label `loraline/gpu` on the nodes that the class wants."""

    gpus: int = 1
    """How many of the device; training runs in as many processes."""


CLASSES = {
    "cpu": Class(cpu="1", memory="2Gi", memory_limit="32Gi"),
    "gpu-small": Class(
        cpu="4",
        memory="16Gi",
        memory_limit="64Gi",
        device="nvidia.com/gpu",
        label="small",
    ),
    "gpu-large": Class(
        cpu="8",
        memory="64Gi",
        memory_limit="256Gi",
        device="nvidia.com/gpu",
        label="large",
    ),
    "gpu-large-4": Class(
        cpu="32",
        memory="256Gi",
        memory_limit="768Gi",
        device="nvidia.com/gpu",
        label="large",
        gpus=4,
    ),
    # A part of a card: `nvidia.com/gpu.shared` with time slicing or MPS, `nvidia.com/mig-3g.40gb`
    # and the like with MIG.
    "gpu-shared": Class(cpu="2", memory="8Gi", memory_limit="32Gi", device="nvidia.com/gpu.shared"),
}

GRACE_SECONDS = 900
"""From SIGTERM to SIGKILL for training: an optimizer step, an epoch's validation, and the upload of
a checkpoint, whose size training prints at its start; 45 GiB at 50 MiB a second."""

SMALL = Class(cpu="250m", memory="512Mi", memory_limit="4Gi")
"""For the steps that move files and rows: prepare, gate, deploy."""


def patch(wanted: Class, grace_seconds: int | None = None) -> str:
    """The strategic merge patch that gives a pod's main container what a class stands for."""
    limits = {"memory": wanted.memory_limit}
    spec: dict[str, Any] = {"containers": [{"name": "main", "resources": {"limits": limits}}]}
    spec["containers"][0]["resources"]["requests"] = {"cpu": wanted.cpu, "memory": wanted.memory}
    if wanted.device:
        limits[wanted.device] = str(wanted.gpus)
        spec["tolerations"] = [{"key": "nvidia.com/gpu", "operator": "Exists"}]
    if wanted.gpus > 1:
        # What train_qlora takes as --gpus; an argument cannot depend on the class.
        spec["containers"][0]["env"] = [{"name": "LORALINE_GPUS", "value": str(wanted.gpus)}]
    if grace_seconds is not None:
        spec["terminationGracePeriodSeconds"] = grace_seconds
    if wanted.label:
        spec["nodeSelector"] = {"loraline/gpu": wanted.label}
    # Two braces side by side would end the expression that the patch stands in.
    return json.dumps(spec, separators=(",", ":")).replace("}}", "} }").replace("}}", "} }")


def chosen(table: dict[str, str], parameter: str) -> str:
    """An expression for the entry of a table that a workflow parameter names."""
    entries = ",".join(f"'{key}':'{value}'" for key, value in table.items())
    return f"{{{{={{{entries}}}[workflow.parameters['{parameter}']]}}}}"
