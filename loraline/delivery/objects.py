"""The objects around a server's pod: Deployment, Service, claim, policies, autoscaler."""

from __future__ import annotations

from typing import Protocol
from urllib.parse import urlsplit

from loraline.addresses import redacted
from loraline.delivery import containers
from loraline.delivery.kube import Object, http_service, scrape
from loraline.delivery.pod import NAME, Pod
from loraline.errors import UserError
from loraline.serving.arguments import PORT

WAITING = 5
"""Requests that may wait at a replica before another replica starts."""

MONITORING: Object = {
    "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}
}
"""Where Prometheus runs, as policies name it."""

ANYWHERE: list[Object] = [
    {"ipBlock": {"cidr": "0.0.0.0/0", "except": ["169.254.0.0/16"]}},
    {"ipBlock": {"cidr": "::/0", "except": ["fe80::/10", "fd00:ec2::254/128"]}},
    {"namespaceSelector": {}},
]
"""Every peer but the cloud's metadata service: by address outside of the cluster, by selector
inside. Kubernetes means addresses for the outside, and Cilium enforces that."""

DNS: Object = {"ports": [{"port": 53, "protocol": protocol} for protocol in ("UDP", "TCP")]}


def config_map(pod: Pod) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": pod.metadata(),
        "data": {
            "chat_template.jinja": pod.contract.chat_template,
            "contract.json": pod.contract.model_dump_json(indent=2) + "\n",
            "prompt.txt": pod.contract.prompt,
            containers.READY.name: containers.READY.read_text(),
        },
    }


def claim(pod: Pod) -> list[Object]:
    """Keeps the hub's files, so that only the first start downloads the base."""
    if not pod.hub:
        return []
    return [
        {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": pod.metadata(),
            "spec": {
                "accessModes": ["ReadWriteOnce" if pod.where.replicas == 1 else "ReadWriteMany"],
                "resources": {"requests": {"storage": pod.storage}},
            },
        }
    ]


def deployment(pod: Pod) -> Object:
    # A second pod would wait for the GPU that the first one holds.
    strategy: Object = {"type": "Recreate"}
    replicas: Object = {"replicas": 1}
    if pod.where.replicas > 1:
        update = {"maxSurge": 0, "maxUnavailable": 1}
        strategy = {"type": "RollingUpdate", "rollingUpdate": update}
        # The autoscaler sets the number.
        replicas = {}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": pod.metadata(),
        "spec": {
            **replicas,
            "strategy": strategy,
            "progressDeadlineSeconds": pod.startup_seconds + 600,
            "selector": {"matchLabels": pod.selector},
            "template": {
                "metadata": {"labels": pod.labels, "annotations": pod.annotations},
                "spec": containers.spec(pod),
            },
        },
    }


def service(pod: Pod) -> Object:
    return http_service(pod.metadata(), pod.selector, PORT)


class Labelled(Protocol):
    """A pod with a selector: a server's or the gateway's."""

    @property
    def selector(self) -> dict[str, str]: ...

    def metadata(self) -> Object: ...


def disruption_budget(pod: Labelled) -> Object:
    """Nodes are drained one pod at a time; a single pod does not block a drain."""
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": pod.metadata(),
        "spec": {"maxUnavailable": 1, "selector": {"matchLabels": pod.selector}},
    }


def network_policy(pod: Pod) -> Object:
    """In: the gateway's pods, or without one the namespace's, since a key guards only a part of
    vLLM's addresses. Out: names, MLflow, its artifacts and the hub, never the cloud's metadata
    service."""
    urls = [value for value in pod.fetch_env.values() if "://" in value]
    ports = {port_of(url) for url in urls}
    if pod.hub or "MLFLOW_S3_ENDPOINT_URL" not in pod.fetch_env:
        ports.add(443)
    gateway_pods = {"matchLabels": {NAME: pod.gateway}} if pod.gateway else {}
    callers: list[Object] = [{"podSelector": gateway_pods}]
    if pod.where.monitor or pod.where.prometheus:
        callers.append(MONITORING)
    selector = pod.selector
    if pod.where.format == "kserve":
        selector = {"serving.kserve.io/inferenceservice": pod.resource}
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": pod.metadata(),
        "spec": {
            "podSelector": {"matchLabels": selector},
            "policyTypes": ["Ingress", "Egress"],
            "ingress": [{"from": callers, "ports": tcp(PORT)}],
            "egress": [
                DNS,
                {"to": ANYWHERE, "ports": tcp(*sorted(ports))},
            ],
        },
    }


def autoscaler(pod: Pod) -> list[Object]:
    """Follows the requests that wait; a replica is kept for ten minutes after the last one."""
    if pod.where.replicas == 1:
        return []
    scaled = {"apiVersion": "apps/v1", "kind": "Deployment", "name": pod.resource}
    behavior = {"scaleDown": {"stabilizationWindowSeconds": 600}}
    if pod.where.prometheus:
        # The operator labels what it scrapes: a model has one server a namespace.
        labels = f'namespace="{pod.where.namespace}",service="{pod.resource}"'
        query = f"sum(vllm:num_requests_waiting{{{labels}}})"
        trigger = {
            "serverAddress": pod.where.prometheus,
            "query": query,
            "threshold": str(WAITING),
        }
        return [
            {
                "apiVersion": "keda.sh/v1alpha1",
                "kind": "ScaledObject",
                "metadata": pod.metadata(),
                "spec": {
                    "scaleTargetRef": scaled,
                    "minReplicaCount": 1,
                    "maxReplicaCount": pod.where.replicas,
                    "advanced": {"horizontalPodAutoscalerConfig": {"behavior": behavior}},
                    "triggers": [{"type": "prometheus", "metadata": trigger}],
                },
            }
        ]
    waiting = {
        "metric": {"name": "vllm:num_requests_waiting"},
        "target": {"type": "AverageValue", "averageValue": str(WAITING)},
    }
    return [
        {
            "apiVersion": "autoscaling/v2",
            "kind": "HorizontalPodAutoscaler",
            "metadata": pod.metadata(),
            "spec": {
                "scaleTargetRef": scaled,
                "minReplicas": 1,
                "maxReplicas": pod.where.replicas,
                "metrics": [{"type": "Pods", "pods": waiting}],
                "behavior": behavior,
            },
        }
    ]


def service_monitor(pod: Pod) -> list[Object]:
    if not (pod.where.monitor or pod.where.prometheus):
        return []
    return [scrape(pod.metadata(), pod.selector, "http")]


def tcp(*ports: int) -> list[Object]:
    return [{"port": port, "protocol": "TCP"} for port in ports]


def port_of(url: str) -> int:
    """The port of an address; UserError where that is no port."""
    parts = urlsplit(url)
    try:
        return parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError as error:
        raise UserError(f"the address {redacted(url)} has no port from 1 to 65535") from error
