"""The training step on several machines: a Job that a `resource` template makes and watches.

    train-group    makes the Job, a pod a machine, and waits for its end
    train-qlora    hands over the run ID of the training, or ends with the exit code of the group
    stop-group     suspends the Job of a workflow that was stopped

Kubernetes makes up for a lost pod. The other pods end with 75 then, and all go on together from the
last checkpoint. The Job belongs to the workflow and goes with it. Other trainers make other
objects.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import yaml
from resources import GRACE_SECONDS
from templates import DAY, RETRY, Settings, guard, metrics
from trainers import NAME, TRAINERS

if TYPE_CHECKING:
    from hera.workflows import Resource

Object = dict[str, Any]

EXECUTOR = {
    "containers": [
        {
            "name": "main",
            "resources": {
                "limits": {"memory": "512Mi"},
                "requests": {"cpu": "50m", "memory": "64Mi"},
            },
        }
    ],
    # Where Argo's own container writes the manifest; its image may have no such folder.
    "initContainers": [
        {
            "name": "init",
            "volumeMounts": [{"name": "tmp-dir-argo", "mountPath": "/tmp", "subPath": "0"}],
        }
    ],
}
"""Patch of the pods in which Argo makes and watches an object."""


def train_group(settings: Settings, alone: Object) -> Resource:
    """Make a group of machines and wait for its end, whatever it is.

    `alone` is the spec of a workflow that has only the training step, for one machine.
    """
    from hera.workflows import Parameter, Resource, models

    (step,) = alone["templates"]
    trainer = TRAINERS[settings.trainer]
    manifest = trainer.manifest(settings.classes[settings.machines], step, alone)
    return Resource(
        name="train-group",
        action="apply",
        set_owner_reference=True,
        success_condition=trainer.end_condition,
        manifest=as_yaml(manifest),
        inputs=[Parameter(name=each["name"]) for each in step["inputs"]["parameters"]],
        outputs=[
            Parameter(
                name="ended", value_from=models.ValueFrom(json_path=trainer.end_paths, default="")
            )
        ],
        # Longer than the Job may take, which ends with a checkpoint.
        active_deadline_seconds=DAY + 2 * GRACE_SECONDS,
        retry_strategy=retry_of_watching(),
        pod_spec_patch=json.dumps(EXECUTOR),
        synchronization=guard(large=True, registry=""),
        metrics=metrics("train-group"),
        labels={"app.kubernetes.io/component": "train-group"},
    )


def retry_of_watching() -> Any:
    """For a pod of Argo's that is lost while it watches."""
    from hera.workflows import RetryStrategy, models

    return RetryStrategy(
        limit=3,
        retry_policy="Always",
        expression=RETRY,
        backoff=models.Backoff(duration="15s", factor=models.IntOrString(root=3)),
    )


def stop_group(settings: Settings) -> Resource:
    """End the pods of a group whose workflow was stopped; they write a checkpoint.

    A Job that has ended stays as it is, with its pods and their logs.
    """
    from hera.workflows import Resource

    return Resource(
        name="stop-group",
        action="patch",
        merge_strategy="merge",
        flags=[TRAINERS[settings.trainer].resource, NAME],
        manifest=yaml.safe_dump({"spec": {"suspend": True}}),
        active_deadline_seconds=300,
        retry_strategy=retry_of_watching(),
        pod_spec_patch=json.dumps(EXECUTOR),
        labels={"app.kubernetes.io/component": "stop-group"},
    )


def as_yaml(manifest: Object) -> str:
    """A manifest as YAML in which inputs stand as JSON texts, whatever signs they hold."""
    # Without YAML aliases, which the same object in two places would get.
    text = yaml.safe_dump(json.loads(json.dumps(manifest)), sort_keys=False, width=10**6)
    return re.sub(
        r"'\{\{inputs\.parameters\.([\w-]+)\}\}'", r"{{=toJson(inputs.parameters['\1'])}}", text
    )
