"""The page's pod and the objects around it: Deployment, Service, policy, and a way in."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

from loraline.delivery import gateway
from loraline.delivery.external_routes import external_route
from loraline.delivery.gateway import GatewayPod
from loraline.delivery.kube import Object, environment, http_service, run_as, secret, unprivileged
from loraline.delivery.objects import ANYWHERE, DNS, port_of, tcp
from loraline.delivery.page import Page
from loraline.delivery.pod import NAME

PORT = 7860
UPLOADS = "/uploads"
UID = 8737
"""User of the page's image."""


@dataclass(frozen=True)
class PagePod:
    """The page's pod; every object around it carries its name, labels and the version behind."""

    page: Page
    behind: GatewayPod

    @property
    def name(self) -> str:
        return f"{self.behind.servers[0].resource}-page"

    @property
    def selector(self) -> dict[str, str]:
        return {NAME: self.name}

    @property
    def labels(self) -> dict[str, str]:
        part = {"app.kubernetes.io/component": "page", "app.kubernetes.io/part-of": "loraline"}
        return self.selector | part

    @property
    def annotations(self) -> dict[str, str]:
        """Includes a digest of what the pod reads at its start: a change starts a new one."""
        read = json.dumps(self.variables(), sort_keys=True)
        return {
            "loraline/registered-version": self.behind.servers[0].adapters[0].uri,
            "loraline/config-sha256": hashlib.sha256(read.encode()).hexdigest(),
        }

    def metadata(self) -> Object:
        namespace = self.behind.servers[0].where.namespace
        placed = {"namespace": namespace} if namespace else {}
        return {
            "name": self.name,
            **placed,
            "labels": self.labels,
            "annotations": self.annotations,
        }

    def variables(self) -> dict[str, str]:
        """Settings of the page: addresses alone, no key."""
        env = {
            # It asks every visitor for a key of the gateway.
            "UI_HOST": "0.0.0.0",  # noqa: S104
            "UI_PORT": str(PORT),
            "UI_GATEWAY": self.behind.address,
            "GRADIO_TEMP_DIR": UPLOADS,
        }
        if self.behind.gateway.host:
            env["UI_PUBLIC_GATEWAY"] = f"https://{self.behind.gateway.host}"
        if self.page.desk:
            env["UI_DESK"] = self.page.desk
        return env


def objects(pod: PagePod) -> list[Object]:
    """The page's objects, in apply order."""
    return [
        deployment(pod),
        service(pod),
        network_policy(pod),
        *external_route(pod, PORT, pod.page.host, pod.behind.gateway.parent),
    ]


def container(pod: PagePod) -> Object:
    http_get = {"httpGet": {"path": "/health", "port": "http"}}
    return {
        "name": "page",
        "image": pod.page.image,
        "env": [
            *environment(pod.variables()),
            # Without it, a restart asks every visitor for the key again.
            secret("UI_SECRET", pod.name, "secret", optional=True),
        ],
        "ports": [{"name": "http", "containerPort": PORT}],
        "resources": {
            "requests": {"cpu": "250m", "memory": "512Mi"},
            "limits": {"memory": "2Gi"},
        },
        "startupProbe": {**http_get, "periodSeconds": 2, "failureThreshold": 60},
        "readinessProbe": {**http_get, "periodSeconds": 5, "failureThreshold": 2},
        "livenessProbe": {
            **http_get,
            "periodSeconds": 10,
            "timeoutSeconds": 5,
            "failureThreshold": 6,
        },
        "securityContext": {**unprivileged(), "readOnlyRootFilesystem": True},
        "volumeMounts": [
            {"name": "uploads", "mountPath": UPLOADS},
            {"name": "tmp", "mountPath": "/tmp"},
        ],
    }


def deployment(pod: PagePod) -> Object:
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": pod.metadata(),
        "spec": {
            # What a visitor has open lives in the process, so there is one. It is no client's way:
            # programs ask the gateway.
            "replicas": 1,
            "strategy": {
                "type": "RollingUpdate",
                "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0},
            },
            "progressDeadlineSeconds": 600,
            "selector": {"matchLabels": pod.selector},
            "template": {
                "metadata": {"labels": pod.labels, "annotations": pod.annotations},
                "spec": {
                    "enableServiceLinks": False,
                    "automountServiceAccountToken": False,
                    "securityContext": run_as(UID),
                    "containers": [container(pod)],
                    "volumes": [
                        {"name": "uploads", "emptyDir": {"sizeLimit": "2Gi"}},
                        {"name": "tmp", "emptyDir": {"sizeLimit": "256Mi"}},
                    ],
                },
            },
        },
    }


def service(pod: PagePod) -> Object:
    return http_service(pod.metadata(), pod.selector, PORT)


def network_policy(pod: PagePod) -> Object:
    """In: everybody, since it asks for keys. Out: names, the gateway, and the desk."""
    doors = [{"podSelector": {"matchLabels": pod.behind.selector}}]
    egress: list[Object] = [DNS, {"to": doors, "ports": tcp(gateway.PORT)}]
    if pod.page.desk:
        egress.append({"to": ANYWHERE, "ports": tcp(port_of(pod.page.desk))})
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": pod.metadata(),
        "spec": {
            "podSelector": {"matchLabels": pod.selector},
            "policyTypes": ["Ingress", "Egress"],
            "ingress": [{"ports": tcp(PORT)}],
            "egress": egress,
        },
    }
