"""The parts of a workflow's file that Kubernetes defines: their fields, and the fields' types.

Nothing here obeys them, but a cluster reads them strictly: one that it does not know, or of another
type, and it takes no part of the workflow. The fields are those of Kubernetes 1.34's `core/v1` and
of Argo 3.7. Of volumes, affinities and metrics only the outermost are looked at.
"""

from __future__ import annotations

import re
from typing import Any

TEXT, WHOLE, TRUTH = "a text", "a whole number", "true or false"
ANYTHING = "anything"
LABELS = "a mapping of texts"
QUANTITIES = "a mapping of amounts such as 1, 500m or 2Gi (podSpecPatch takes references)"
Schema = Any
"""A type's name from above, a mapping of fields, or a list with the schema of its members."""

AMOUNT = re.compile(r"[+-]?[0-9.]+(?:[eE][-+]?[0-9]+|[KMGTPE]i|[numkMGTPE])?")

SELINUX = {"level": TEXT, "role": TEXT, "type": TEXT, "user": TEXT}
PROFILE = {"localhostProfile": TEXT, "type": TEXT}
AS_WHOM = {
    "appArmorProfile": PROFILE,
    "runAsGroup": WHOLE,
    "runAsNonRoot": TRUTH,
    "runAsUser": WHOLE,
    "seLinuxOptions": SELINUX,
    "seccompProfile": PROFILE,
    "windowsOptions": ANYTHING,
}
SECURITY_OF_A_POD = {
    **AS_WHOM,
    "fsGroup": WHOLE,
    "fsGroupChangePolicy": TEXT,
    "seLinuxChangePolicy": TEXT,
    "supplementalGroups": [WHOLE],
    "supplementalGroupsPolicy": TEXT,
    "sysctls": [{"name": TEXT, "value": TEXT}],
}
SECURITY_OF_A_CONTAINER = {
    **AS_WHOM,
    "allowPrivilegeEscalation": TRUTH,
    "capabilities": {"add": [TEXT], "drop": [TEXT]},
    "privileged": TRUTH,
    "procMount": TEXT,
    "readOnlyRootFilesystem": TRUTH,
}
METADATA = {"annotations": LABELS, "labels": LABELS}
KEY = {"key": TEXT, "name": TEXT, "optional": TRUTH}
SOURCES = (
    *("awsElasticBlockStore", "azureDisk", "azureFile", "cephfs", "cinder", "configMap", "csi"),
    *("downwardAPI", "emptyDir", "ephemeral", "fc", "flexVolume", "flocker", "gcePersistentDisk"),
    *("gitRepo", "glusterfs", "hostPath", "image", "iscsi", "nfs", "persistentVolumeClaim"),
    *("photonPersistentDisk", "portworxVolume", "projected", "quobyte", "rbd", "scaleIO"),
    *("secret", "storageos", "vsphereVolume"),
)

OF_A_POD: dict[str, Schema] = {
    "affinity": {
        "nodeAffinity": ANYTHING,
        "podAffinity": ANYTHING,
        "podAntiAffinity": ANYTHING,
    },
    "automountServiceAccountToken": TRUTH,
    "executor": {"serviceAccountName": TEXT},
    "metrics": {"prometheus": [ANYTHING]},
    "nodeSelector": LABELS,
    "priorityClassName": TEXT,
    "securityContext": SECURITY_OF_A_POD,
    "tolerations": [
        {
            "effect": TEXT,
            "key": TEXT,
            "operator": TEXT,
            "tolerationSeconds": WHOLE,
            "value": TEXT,
        }
    ],
    "volumes": [{"name": TEXT, **dict.fromkeys(SOURCES, ANYTHING)}],
}
BY_PART: dict[str, dict[str, Schema]] = {
    "metadata": METADATA,
    "spec": {
        **OF_A_POD,
        "archiveLogs": TRUTH,
        "imagePullSecrets": [{"name": TEXT}],
        "podDisruptionBudget": {
            "maxUnavailable": ANYTHING,
            "minAvailable": ANYTHING,
            "selector": ANYTHING,
            "unhealthyPodEvictionPolicy": TEXT,
        },
        "podGC": {"deleteDelayDuration": TEXT, "labelSelector": ANYTHING, "strategy": TEXT},
        "podMetadata": METADATA,
        "priority": WHOLE,
        "ttlStrategy": {
            "secondsAfterCompletion": WHOLE,
            "secondsAfterFailure": WHOLE,
            "secondsAfterSuccess": WHOLE,
        },
        "volumeClaimGC": {"strategy": TEXT},
        "workflowMetadata": {**METADATA, "labelsFrom": ANYTHING},
    },
    "cron": {"workflowMetadata": METADATA},
    "template": {**OF_A_POD, "metadata": METADATA},
    "container": {
        "imagePullPolicy": TEXT,
        "resources": {"claims": ANYTHING, "limits": QUANTITIES, "requests": QUANTITIES},
        "securityContext": SECURITY_OF_A_CONTAINER,
        "volumeMounts": [
            {
                "mountPath": TEXT,
                "mountPropagation": TEXT,
                "name": TEXT,
                "readOnly": TRUTH,
                "recursiveReadOnly": TEXT,
                "subPath": TEXT,
                "subPathExpr": TEXT,
            }
        ],
    },
    "env": {
        "valueFrom": {
            "configMapKeyRef": KEY,
            "fieldRef": {"apiVersion": TEXT, "fieldPath": TEXT},
            "fileKeyRef": ANYTHING,
            "resourceFieldRef": ANYTHING,
            "secretKeyRef": KEY,
        }
    },
}
"""Fields that Kubernetes defines, by the part of the file that has them."""

POD_GC = ("", "OnPodCompletion", "OnPodSuccess", "OnWorkflowCompletion", "OnWorkflowSuccess")


def fault(part: str, fields: dict[str, Any]) -> str:
    """What a cluster would refuse in a part's fields, in words; empty if it accepts them all."""
    for field, schema in BY_PART.get(part, {}).items():
        if field in fields and (message := fault_of(field, schema, fields[field])):
            return message
    strategy = fields["podGC"].get("strategy", "") if part == "spec" and "podGC" in fields else ""
    if strategy not in POD_GC:
        return f"podGC.strategy {strategy} is none of {', '.join(POD_GC[1:])}"
    return ""


def fault_of(path: str, schema: Schema, value: Any) -> str:
    if isinstance(schema, list):
        if not isinstance(value, list):
            return f"{path} has to be a list, not {value!r}"
        return first(fault_of(f"{path}[{n}]", schema[0], item) for n, item in enumerate(value))
    if isinstance(schema, dict):
        if not isinstance(value, dict):
            return f"{path} has to be a mapping, not {value!r}"
        if unknown := sorted(value.keys() - schema.keys()):
            return f"{path} has no field {unknown[0]}, only {', '.join(sorted(schema))}"
        return first(fault_of(f"{path}.{key}", schema[key], item) for key, item in value.items())
    return "" if fits(schema, value) else f"{path} has to be {schema}, not {value!r}"


def first(faults: Any) -> str:
    return next((message for message in faults if message), "")


def fits(schema: str, value: Any) -> bool:
    """Whether a value has the type of that name."""
    match schema:
        case "a text":
            return isinstance(value, str)
        case "a whole number":
            return isinstance(value, int) and not isinstance(value, bool)
        case "true or false":
            return isinstance(value, bool)
        case "a mapping of texts":
            return isinstance(value, dict) and all(isinstance(v, str) for v in value.values())
        case "anything":
            return True
    return isinstance(value, dict) and all(is_amount(amount) for amount in value.values())


def is_amount(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return False
    return bool(AMOUNT.fullmatch(str(value)))


NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
LABEL = re.compile(r"([A-Za-z0-9]([-\w.]{0,61}[A-Za-z0-9])?)?", re.ASCII)
LONGEST_NAME = 63
"""Most characters of a workflow's name that Argo accepts."""

LONGEST_CRON = 52
"""The same for a CronWorkflow, whose workflows have its name and eleven characters more."""

LONGEST_PREFIX = 253
"""Characters of generateName that Kubernetes takes at most; it cuts longer ones in a name."""


def fault_of_metadata(
    name: str, generated: str, labels: dict[str, str], longest: int = LONGEST_NAME
) -> str:
    """What is wrong with a workflow's names and labels, in words; empty if nothing is."""
    if not name and not generated:
        return "needs a name or a generateName"
    if name and not NAME.fullmatch(name):
        return f"name {name!r} has to be of small letters, digits, dashes and dots between them"
    if len(name) > longest:
        return f"name {name!r} has {len(name)} characters; Argo takes {longest}"
    # A generated name continues with letters and digits.
    if generated and not NAME.fullmatch(f"{generated}a"):
        return f"generateName {generated!r} has to be of small letters, digits, dashes and dots"
    if len(generated) > LONGEST_PREFIX:
        return f"generateName has {len(generated)} characters; Kubernetes takes {LONGEST_PREFIX}"
    for key, value in labels.items():
        prefix, slash, last = key.rpartition("/")
        plain_key = last and LABEL.fullmatch(last) and (NAME.fullmatch(prefix) or not slash)
        if not plain_key or not LABEL.fullmatch(value):
            return f"label {key}: {value!r} is not of letters, digits, dashes, dots and underscores"
    return ""
