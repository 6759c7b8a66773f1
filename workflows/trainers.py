"""What can make a group of machines: Kubernetes' own Job, Kubeflow's TrainJob, KubeRay's RayJob.

A trainer is the manifest of an object, and the condition by which Argo sees its end.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from resources import GRACE_SECONDS, Class, pod_fields
from templates import DAY

Object = dict[str, Any]

NAME = "{{workflow.name}}-train"
"""Name of the object; a retried pod of Argo finds the object by it."""

SERVICE = "loraline-training"
"""The namespace's headless Service, by which the pods of a Job have names in the DNS."""

PORT = 29500
"""Where the first pod waits for the others."""

TRY_AGAIN = 75
RESTARTS = 3
"""How often each pod may end with 75; pods that the cluster takes away are not counted."""

LABELS = {
    "app.kubernetes.io/name": "loraline",
    "app.kubernetes.io/component": "train-group",
    # `argo logs` shows the pods that have it.
    "workflows.argoproj.io/workflow": "{{workflow.name}}",
}


class Trainer(NamedTuple):
    """An object that trains on several machines."""

    resource: str
    """What kubectl calls it."""

    manifest: Callable[[Class, Object, Object], Object]
    """From a class, the step's template, and the spec of a workflow with only that template."""

    end_condition: str
    """Argo's condition for its end, with or without success."""

    end_paths: str
    """kubectl paths of how it ended, which the step after the group gets."""


def job(resource_class: Class, step: Object, alone: Object) -> Object:
    """An Indexed Job with a pod for each machine of a class."""
    first = f"{NAME}-0.{SERVICE}:{PORT}"
    main = container(
        resource_class, step, group_flags(resource_class, "$(JOB_COMPLETION_INDEX)", first)
    )
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": NAME, "labels": LABELS},
        "spec": {
            # Explicit, so that a retried workflow resumes a Job that was suspended.
            "suspend": False,
            "completionMode": "Indexed",
            "completions": resource_class.machines,
            "parallelism": resource_class.machines,
            "activeDeadlineSeconds": DAY,
            "backoffLimit": RESTARTS * resource_class.machines,
            # The first machine ends with 0 only when the adapter is logged.
            "successPolicy": {"rules": [{"succeededIndexes": "0"}]},
            "podFailurePolicy": {"rules": failure_rules()},
            "template": {
                "metadata": {"labels": LABELS},
                "spec": {
                    "restartPolicy": "Never",
                    "subdomain": SERVICE,
                    # A container's first process ignores a SIGTERM that it does not yet listen to.
                    "shareProcessNamespace": True,
                    "automountServiceAccountToken": False,
                    **pod(resource_class, step, alone),
                    "containers": [{**main, "name": "main"}],
                },
            },
        },
    }


def failure_rules() -> list[Object]:
    """A pod that the cluster removes is replaced; a pod that ends with 75 is replaced a few times.

    Any other exit code ends the group, and becomes that of the step.
    """
    codes = {"containerName": "main", "values": [TRY_AGAIN]}
    return [
        {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
        {"action": "Count", "onExitCodes": {**codes, "operator": "In"}},
        {"action": "FailJob", "onExitCodes": {**codes, "operator": "NotIn"}},
    ]


def train_job(resource_class: Class, step: Object, alone: Object) -> Object:
    """A TrainJob of Kubeflow Trainer 2.2, on its runtime `torch-distributed`.

    Its torch plugin gives each pod a number and the first one's address, in variables named PET_….
    What a TrainJob has no field for is a patch of the runtime.
    """
    first = "$(PET_MASTER_ADDR):$(PET_MASTER_PORT)"
    main = container(resource_class, step, group_flags(resource_class, "$(PET_NODE_RANK)", first))
    patched = {key: main[key] for key in ("securityContext", "volumeMounts")}
    spec = {**pod(resource_class, step, alone), "containers": [{"name": "node", **patched}]}
    node = {"template": {"metadata": {"labels": LABELS}, "spec": spec}}
    jobs = {"replicatedJobs": [{"name": "node", "template": {"spec": node}}]}
    return {
        "apiVersion": "trainer.kubeflow.org/v1alpha1",
        "kind": "TrainJob",
        "metadata": {"name": NAME, "labels": LABELS},
        "spec": {
            "suspend": False,
            "activeDeadlineSeconds": DAY,
            "runtimeRef": {"name": "torch-distributed"},
            "trainer": {
                **{key: main[key] for key in ("image", "command", "args", "env")},
                "numNodes": resource_class.machines,
                "numProcPerNode": resource_class.gpus,
                "resourcesPerNode": main["resources"],
            },
            "runtimePatches": [
                {"manager": "loraline", "trainingRuntimeSpec": {"template": {"spec": jobs}}}
            ],
        },
    }


def ray_job(resource_class: Class, step: Object, alone: Object) -> Object:
    """A RayJob of KubeRay: a Ray cluster with a worker per machine, removed after the training.

    A shell runs the entrypoint, so the step's arguments are passed as variables.
    """
    main = container(resource_class, step, [])
    words = [*main.pop("command"), *main.pop("args")]
    variables = {f"LORALINE_WORD_{n:02}": word for n, word in enumerate(words)}
    variables |= {
        "LORALINE_NODES": str(resource_class.machines),
        "LORALINE_GPUS": str(resource_class.gpus),
    }
    kept_variables = [each for each in main["env"] if each["name"] not in variables]
    new_variables = [{"name": name, "value": value} for name, value in variables.items()]
    head = {**main, "name": "ray-head", "env": [*kept_variables, *new_variables], "resources": HEAD}
    worker = {**main, "name": "ray-worker", "env": kept_variables}
    common = {"serviceAccountName": alone["serviceAccountName"]}
    common |= {key: alone[key] for key in ("securityContext",)}
    common |= {"automountServiceAccountToken": False, "volumes": volumes(step, alone)}
    size = dict.fromkeys(("replicas", "minReplicas", "maxReplicas"), resource_class.machines)
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": {"name": NAME, "labels": LABELS},
        "spec": {
            "suspend": False,
            "activeDeadlineSeconds": DAY,
            "backoffLimit": 0,
            "shutdownAfterJobFinishes": True,
            "entrypoint": "python -m loraline.training.on_ray",
            "rayClusterSpec": {
                "headGroupSpec": {
                    # The head trains nothing.
                    "rayStartParams": {"num-cpus": "0", "num-gpus": "0"},
                    "template": templated({**common, "containers": [head]}),
                },
                "workerGroupSpecs": [
                    {
                        "groupName": "machines",
                        **size,
                        "rayStartParams": {},
                        "template": templated(
                            {**common, **pod(resource_class, step, alone), "containers": [worker]}
                        ),
                    }
                ],
            },
        },
    }


HEAD = {"requests": {"cpu": "500m", "memory": "2Gi"}, "limits": {"memory": "4Gi"}}


def templated(spec: Object) -> Object:
    return {"metadata": {"labels": LABELS}, "spec": spec}


def group_flags(resource_class: Class, number: str, first: str) -> list[str]:
    """The flags that describe the group to the step."""
    return ["--nodes", str(resource_class.machines), "--node", number, "--first-node", first]


def container(resource_class: Class, step: Object, others: list[str]) -> Object:
    """The step's container for one of several machines, with the resources of a class."""
    (granted,) = pod_fields(resource_class)["containers"]
    alone = step["container"]
    return {
        **alone,
        "args": [*alone["args"], *others],
        "env": [*alone["env"], *granted.get("env", [])],
        "resources": granted["resources"],
    }


def pod(resource_class: Class, step: Object, alone: Object) -> Object:
    """The fields of a machine's pod, without its container."""
    fields = pod_fields(resource_class, GRACE_SECONDS)
    del fields["containers"]
    return {
        "serviceAccountName": alone["serviceAccountName"],
        "securityContext": alone["securityContext"],
        "volumes": volumes(step, alone),
        **fields,
    }


def volumes(step: Object, alone: Object) -> list[Object]:
    return [*alone["volumes"], *step["volumes"]]


TRAINERS = {
    # A Job that ended well has the conditions SuccessCriteriaMet and Complete, any other one
    # FailureTarget and Failed; the second ones are there once the last pod has ended.
    "job": Trainer(
        "job",
        job,
        "status.conditions.1.type in (Complete, Failed)",
        "{.status.conditions[1].type}: {.status.conditions[1].message}",
    ),
    "trainjob": Trainer(
        "trainjob",
        train_job,
        "status.conditions.0.type in (Complete, Failed)",
        "{.status.conditions[0].type}: {.status.conditions[0].message}",
    ),
    "rayjob": Trainer(
        "rayjob",
        ray_job,
        "status.jobDeploymentStatus in (Complete, Failed, ValidationFailed)",
        "{.status.jobStatus}: {.status.message}",
    ),
}
