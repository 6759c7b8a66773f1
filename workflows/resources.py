"""Resource classes (CPU, memory, cards, nodes) and the pod patch for each.

Argo takes no parameters in `resources`. So the class is a parameter of the workflow, and the pod's
spec is patched with its values. A file of classes replaces these for a cluster. The names of shared
devices are those of NVIDIA's plugin.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, NonNegativeInt, PositiveInt, ValidationError

from loraline.errors import UserError

GPU_MEMORY = "nvidia.com/gpu.memory"
"""Node label with the MiB of a card, set by NVIDIA's GPU feature discovery."""


class Class(BaseModel):
    """Requests, the memory limit, and the devices and nodes that a class asks for."""

    model_config = ConfigDict(frozen=True, extra="forbid", coerce_numbers_to_str=True)

    cpu: str
    memory: str
    memory_limit: str
    device: str = ""
    gpus: PositiveInt = 1
    """Cards per machine; training runs in as many processes on each machine."""

    machines: PositiveInt = 1
    """Machines that train together; more than one are a Job of as many pods."""

    gpu_memory_above: NonNegativeInt = 0
    """The node's cards must have more MiB than this, by the label GPU_MEMORY; 0 takes any card."""

    nodes: Mapping[str, str] = {}
    """Labels that the node must have."""


GPU = "nvidia.com/gpu"
CLASSES: Mapping[str, Class] = {
    "cpu": Class(cpu="1", memory="2Gi", memory_limit="32Gi"),
    "gpu-small": Class(cpu="4", memory="16Gi", memory_limit="64Gi", device=GPU),
    "gpu-large": Class(
        cpu="8", memory="64Gi", memory_limit="256Gi", device=GPU, gpu_memory_above=60000
    ),
    "gpu-large-4": Class(
        cpu="32",
        memory="256Gi",
        memory_limit="768Gi",
        device=GPU,
        gpus=4,
        gpu_memory_above=60000,
    ),
    # The same on two machines; `cpu-2` is for trying out what several machines do.
    "gpu-large-2x4": Class(
        cpu="32",
        memory="256Gi",
        memory_limit="768Gi",
        device=GPU,
        gpus=4,
        machines=2,
        gpu_memory_above=60000,
    ),
    "cpu-2": Class(cpu="500m", memory="2Gi", memory_limit="32Gi", machines=2),
    # A part of a card: `nvidia.com/gpu.shared` with time slicing or MPS, `nvidia.com/mig-3g.40gb`
    # and the like with MIG.
    "gpu-shared": Class(cpu="2", memory="8Gi", memory_limit="32Gi", device=f"{GPU}.shared"),
}


def load(file: Path | None) -> Mapping[str, Class]:
    """The classes here, with changes and additions from a file.

    A class that is also here keeps the values that the file leaves out. Raises UserError for a file
    of another form.
    """
    if file is None:
        return CLASSES
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"classes {file} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict) or not all(isinstance(c, dict) for c in content.values()):
        raise UserError(f"classes {file} must hold the settings of each class by its name")
    classes = dict(CLASSES)
    for name, keys in content.items():
        ours = classes[name].model_dump(exclude_unset=True) if name in classes else {}
        try:
            classes[name] = Class.model_validate({**ours, **keys})
        except ValidationError as error:
            first_error = error.errors()[0]
            key = ".".join(map(str, first_error["loc"]))
            accepted = ", ".join(Class.model_fields)
            raise UserError(
                f"classes {file}: {name}: {key}: {first_error['msg']} (keys: {accepted})"
            ) from error
    return classes


GRACE_SECONDS = 900
"""From SIGTERM to SIGKILL for training: an optimizer step, an epoch's validation, and the upload of
a checkpoint, whose size training prints at its start; 45 GiB at 50 MiB a second."""

SMALL = Class(cpu="250m", memory="512Mi", memory_limit="4Gi")
"""For the steps that move files and rows: prepare, gate, deploy."""


def patch(resource_class: Class, grace_seconds: int | None = None) -> str:
    """The strategic merge patch of a pod's main container for a class."""
    # Two adjacent braces would end the expression around the patch.
    text = json.dumps(pod_fields(resource_class, grace_seconds), separators=(",", ":"))
    return text.replace("}}", "} }").replace("}}", "} }")


def pod_fields(resource_class: Class, grace_seconds: int | None = None) -> dict[str, Any]:
    """The fields of a pod's spec for a class."""
    limits = {"memory": resource_class.memory_limit}
    spec: dict[str, Any] = {"containers": [{"name": "main", "resources": {"limits": limits}}]}
    spec["containers"][0]["resources"]["requests"] = {
        "cpu": resource_class.cpu,
        "memory": resource_class.memory,
    }
    if resource_class.device:
        limits[resource_class.device] = str(resource_class.gpus)
        spec["tolerations"] = [{"key": "nvidia.com/gpu", "operator": "Exists"}]
    if resource_class.gpus > 1:
        # What train_qlora takes as --gpus; an argument cannot depend on the class.
        spec["containers"][0]["env"] = [
            {"name": "LORALINE_GPUS", "value": str(resource_class.gpus)}
        ]
    if grace_seconds is not None:
        spec["terminationGracePeriodSeconds"] = grace_seconds
    if resource_class.nodes:
        spec["nodeSelector"] = dict(resource_class.nodes)
    if resource_class.gpu_memory_above:
        above = {
            "key": GPU_MEMORY,
            "operator": "Gt",
            "values": [str(resource_class.gpu_memory_above)],
        }
        terms = {"nodeSelectorTerms": [{"matchExpressions": [above]}]}
        spec["affinity"] = {
            "nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": terms}
        }
    return spec


def entry_by_parameter(table: dict[str, str], parameter: str) -> str:
    """An expression for the entry of a table that a workflow parameter names."""
    entries = ",".join(f"'{key}':'{value}'" for key, value in table.items())
    return f"{{{{={{{entries}}}[workflow.parameters['{parameter}']]}}}}"
