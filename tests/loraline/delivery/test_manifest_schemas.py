"""Every golden manifest against the schema of who reads it, strictly: a field too many is one.

Kubernetes' own objects by kubernetes-validate; KEDA's and the Prometheus operator's by models made
of their definitions (cloudcoil); the Gateway API's route by the fields of its v1 that are ours;
KServe's by the pod that is in it and by the fields that its SDK 0.21 names beside it; the values of
vLLM's chart by its values' types, and by the pod that its template makes of them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from cloudcoil.models.keda.v1alpha1 import ScaledObject
from cloudcoil.models.prometheus_operator.v1 import ServiceMonitor

KUBERNETES = "1.34"
MODELS = {"ScaledObject": ScaledObject, "ServiceMonitor": ServiceMonitor}
INVALID = (jsonschema.ValidationError, kubernetes_validate.ValidationError)
Object = dict[str, Any]

OBJECTS: list[Any] = [
    pytest.param(entry, id=f"{file.stem}-{entry.get('kind', 'values')}")
    for file in sorted((Path(__file__).parent / "manifests").glob("*.yaml"))
    for entry in yaml.safe_load_all(file.read_text())
]

PREDICTOR = {
    "minReplicas": {"type": "integer", "minimum": 0},
    "maxReplicas": {"type": "integer", "minimum": 1},
    "deploymentStrategy": {"type": "object"},
    "labels": {"type": "object"},
    "annotations": {"type": "object"},
}
"""Fields of KServe's predictor, of those beside the pod's own, that are ours to use."""

TEXT, TEXTS = {"type": "string"}, {"type": "array", "items": {"type": "string"}}
ANY, MANY, NUMBER = {"type": "object"}, {"type": "array"}, {"type": "integer"}


def closed(**fields: Object) -> Object:
    return {"type": "object", "properties": fields, "additionalProperties": False}


CHART = closed(
    servingEngineSpec=closed(
        vllmApiKey=closed(secretName=TEXT, secretKey=TEXT),
        securityContext=ANY,
        containerSecurityContext=ANY,
        strategy=ANY,
        startupProbe=closed(
            initialDelaySeconds=NUMBER,
            periodSeconds=NUMBER,
            failureThreshold=NUMBER,
            httpGet=closed(path=TEXT, port=NUMBER),
        ),
        tolerations=MANY,
        modelSpec={
            "type": "array",
            "items": closed(
                name=TEXT,
                annotations=ANY,
                podAnnotations=ANY,
                repository=TEXT,
                tag=TEXT,
                modelURL=TEXT,
                replicaCount=NUMBER,
                requestCPU=NUMBER,
                requestMemory=TEXT,
                requestGPU=NUMBER,
                requestGPUType=TEXT,
                nodeSelectorTerms=MANY,
                pvcStorage=TEXT,
                pvcAccessMode=TEXTS,
                chatTemplate=TEXT,
                chatTemplateConfigMap=TEXT,
                vllmConfig=closed(enablePrefixCaching={"type": "boolean"}, extraArgs=TEXTS),
                env=MANY,
                initContainer=closed(
                    name=TEXT,
                    image=TEXT,
                    command=TEXTS,
                    env=MANY,
                    resources=ANY,
                    extraVolumeMounts=MANY,
                ),
                extraVolumes=MANY,
                extraVolumeMounts=MANY,
            ),
        },
    )
)
"""Values of the chart vllm-stack (vLLM production-stack) that are ours to use, as its own schema
and template take them."""

ROUTE = closed(
    apiVersion={"const": "gateway.networking.k8s.io/v1"},
    kind={"const": "HTTPRoute"},
    metadata=ANY,
    spec=closed(
        parentRefs={"type": "array", "items": closed(name=TEXT, namespace=TEXT), "maxItems": 32},
        hostnames=TEXTS,
        rules={
            "type": "array",
            "items": closed(
                backendRefs={"type": "array", "items": closed(name=TEXT, port=NUMBER)},
                timeouts=closed(
                    request={"type": "string", "pattern": "^([0-9]{1,5}(h|m|s|ms)){1,4}$"}
                ),
            ),
        },
    ),
)


def complaint(entry: Object) -> Exception | None:
    """Why the readers of an object would refuse it, if they would."""
    try:
        if "servingEngineSpec" in entry:
            jsonschema.validate(entry, CHART)
            kubernetes_validate.validate(charted(entry), KUBERNETES, strict=True)
        elif entry["kind"] == "InferenceService":
            predictor = entry["spec"]["predictor"]
            own = {key: value for key, value in predictor.items() if key in PREDICTOR}
            jsonschema.validate(own, closed(**PREDICTOR))
            pod = {key: value for key, value in predictor.items() if key not in PREDICTOR}
            deployment = deployed(entry["metadata"], pod, own["deploymentStrategy"])
            kubernetes_validate.validate(deployment, KUBERNETES, strict=True)
            assert set(entry) == {"apiVersion", "kind", "metadata", "spec"}
            assert set(entry["spec"]) == {"predictor"}
        elif entry["kind"] == "HTTPRoute":
            jsonschema.validate(entry, ROUTE)
        elif model := MODELS.get(entry["kind"]):
            read = model.model_validate(entry)
            # Pydantic leaves out what the model does not know.
            assert read.model_dump(mode="json", by_alias=True, exclude_unset=True) == entry
        else:
            kubernetes_validate.validate(entry, KUBERNETES, strict=True)
    except (ValueError, AssertionError, *INVALID) as error:
        return error
    return None


def deployed(metadata: Object, pod: Object, strategy: Object) -> Object:
    labels = {"app": "server"}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "server", "annotations": metadata.get("annotations", {})},
        "spec": {
            "strategy": strategy,
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": pod},
        },
    }


def charted(values: Object) -> Object:
    """The Deployment that the chart's template makes of the values."""
    engine = values["servingEngineSpec"]
    model = engine["modelSpec"][0]
    init = model["initContainer"]
    key = engine["vllmApiKey"]
    reference = {"name": key["secretName"], "key": key["secretKey"]}
    gpus = {model["requestGPUType"]: model["requestGPU"]}
    requests = {"cpu": model["requestCPU"], "memory": model["requestMemory"], **gpus}
    mounts, volumes = [*model["extraVolumeMounts"]], [*model["extraVolumes"]]
    if "pvcStorage" in model:
        mounts.append({"name": "storage", "mountPath": "/data"})
        volumes.append({"name": "storage", "persistentVolumeClaim": {"claimName": "storage"}})
    mounts.append({"name": "chat-templates", "mountPath": "/templates"})
    volumes.append({"name": "chat-templates", "configMap": {"name": "chat-templates"}})
    container = {
        "name": "vllm",
        "image": f"{model['repository']}:{model['tag']}",
        "securityContext": engine["containerSecurityContext"],
        "command": ["vllm", "serve", model["modelURL"], *model["vllmConfig"]["extraArgs"]],
        "env": [
            {"name": "VLLM_API_KEY", "valueFrom": {"secretKeyRef": reference}},
            *model["env"],
        ],
        "startupProbe": engine["startupProbe"],
        "resources": {"requests": requests, "limits": gpus},
        "volumeMounts": mounts,
    }
    pod: Object = {
        "securityContext": engine["securityContext"],
        "initContainers": [
            {
                **{
                    field: init[field] for field in ("name", "image", "command", "env", "resources")
                },
                "volumeMounts": init["extraVolumeMounts"],
            }
        ],
        "containers": [container],
        "volumes": volumes,
        "tolerations": engine["tolerations"],
    }
    if terms := model.get("nodeSelectorTerms"):
        required = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}
        pod["affinity"] = {"nodeAffinity": required}
    for each in [*pod["initContainers"], container]:
        assert {mount["name"] for mount in each["volumeMounts"]} <= {v["name"] for v in volumes}
        paths = [mount["mountPath"] for mount in each["volumeMounts"]]
        assert len(paths) == len(set(paths)) and len({v["name"] for v in volumes}) == len(volumes)
    return deployed({"annotations": model["annotations"]}, pod, engine["strategy"])


@pytest.mark.parametrize("entry", OBJECTS)
def test_every_object_keeps_its_readers_schema(entry: Object) -> None:
    assert complaint(entry) is None


def test_all_kinds_are_there() -> None:
    kinds = {each.values[0].get("kind", "values") for each in OBJECTS}
    assert {"Deployment", "InferenceService", "ScaledObject", "ServiceMonitor", "values"} <= kinds
    assert {"Ingress", "HTTPRoute", "HorizontalPodAutoscaler"} <= kinds


def misspelled(entry: Object, path: list[Any], wrong: Any) -> Object:
    """A copy of the entry with something else at a path."""
    copy: Object = yaml.safe_load(yaml.safe_dump(entry))
    place: Any = copy
    for part in path[:-1]:
        place = place[part]
    place[path[-1]] = wrong
    return copy


MODEL = ["servingEngineSpec", "modelSpec", 0]
MISTAKES: dict[str, list[tuple[list[Any], Any]]] = {
    "Service": [(["sepc"], {}), (["spec", "ports", 0, "port"], "eight")],
    "Ingress": [(["spec", "rules", 0, "hosts"], []), (["spec", "tls", 0, "hosts"], "ask")],
    "HTTPRoute": [
        (["spec", "hostname"], "ask"),
        (["spec", "rules", 0, "backendRefs", 0, "port"], "8080"),
        (["spec", "rules", 0, "timeouts", "request"], "ten minutes"),
    ],
    "ScaledObject": [
        (["spec", "maxReplica"], 4),
        (["spec", "maxReplicaCount"], "many"),
        (["spec", "triggers", 0, "metadata", "threshold"], {}),
        (["spec", "advanced", "horizontalPodAutoscalerConfig", "behaviour"], {}),
    ],
    "ServiceMonitor": [
        (["spec", "endpoint"], []),
        (["spec", "selector"], "all"),
        (["spec", "endpoints", 0, "intervals"], "15s"),
    ],
    "InferenceService": [
        (["spec", "predictor", "minReplica"], 1),
        (["spec", "predictor", "maxReplicas"], "4"),
        (["spec", "predictor", "deploymentStrategy", "type"], 1),
        (["spec", "predictor", "containers", 0, "arg"], []),
    ],
    "values": [
        ([*MODEL, "requestCPU"], "2"),
        ([*MODEL, "vllmConfig", "extraArg"], []),
        ([*MODEL, "extraVolumes", 0, "emptyDirectory"], {}),
        ([*MODEL, "env", 0, "value"], 1),
        ([*MODEL, "initContainer", "volumeMounts"], []),
    ],
}


@pytest.mark.parametrize(
    ("kind", "path", "wrong"),
    [(kind, path, wrong) for kind, mistakes in MISTAKES.items() for path, wrong in mistakes],
)
def test_a_mistake_in_an_object_is_found(kind: str, path: list[Any], wrong: Any) -> None:
    entry = next(e.values[0] for e in OBJECTS if e.values[0].get("kind", "values") == kind)
    assert complaint(misspelled(entry, path, wrong)) is not None
