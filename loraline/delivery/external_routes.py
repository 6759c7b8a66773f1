"""Ways to a Service from outside the cluster: an Ingress, or a route of a Gateway."""

from __future__ import annotations

from typing import Protocol

from loraline.delivery.kube import Object

ANSWER_SECONDS = 600
"""Default of GATEWAY_UPSTREAM_TIMEOUT_S: proxies in front must not cut an answer earlier."""


class Reachable(Protocol):
    """A pod with a Service of its own name."""

    @property
    def name(self) -> str: ...

    def metadata(self) -> Object: ...


def external_route(pod: Reachable, port: int, host: str | None, parent: str | None) -> list[Object]:
    """The object that routes `host` to the pod's Service: an HTTPRoute where `parent` names a
    Gateway (NAMESPACE/NAME) of the Gateway API, otherwise an Ingress; none without a host."""
    if host is None:
        return []
    return [route(pod, port, host, parent) if parent else ingress(pod, host)]


def ingress(pod: Reachable, host: str) -> Object:
    """An Ingress with TLS to the pod's Service, with the annotations of ingress-nginx."""
    backend = {"service": {"name": pod.name, "port": {"name": "http"}}}
    metadata = pod.metadata()
    # The controller's defaults refuse files of 1 MB and cut streams after a minute.
    metadata["annotations"] = metadata["annotations"] | {
        "nginx.ingress.kubernetes.io/proxy-body-size": "0",
        "nginx.ingress.kubernetes.io/proxy-buffering": "off",
        "nginx.ingress.kubernetes.io/proxy-request-buffering": "off",
        "nginx.ingress.kubernetes.io/proxy-read-timeout": str(ANSWER_SECONDS),
    }
    path = {"path": "/", "pathType": "Prefix", "backend": backend}
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "Ingress",
        "metadata": metadata,
        "spec": {
            # Keys are in headers, so the connection is encrypted.
            "tls": [{"hosts": [host], "secretName": f"{pod.name}-tls"}],
            "rules": [{"host": host, "http": {"paths": [path]}}],
        },
    }


def route(pod: Reachable, port: int, host: str, parent: str) -> Object:
    """An HTTPRoute of the Gateway API to the pod's Service."""
    namespace, _, name = parent.partition("/")
    return {
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "HTTPRoute",
        "metadata": pod.metadata(),
        "spec": {
            "parentRefs": [{"name": name, "namespace": namespace}],
            "hostnames": [host],
            "rules": [
                {
                    "backendRefs": [{"name": pod.name, "port": port}],
                    "timeouts": {"request": f"{ANSWER_SECONDS}s"},
                }
            ],
        },
    }
