"""The objects around the gateway's pod: Deployment, Service, policies, autoscaler."""

from __future__ import annotations

from collections.abc import Sequence

from loraline.delivery import page_objects
from loraline.delivery.containers import DRAIN_SECONDS
from loraline.delivery.external_routes import external_route
from loraline.delivery.gateway import (
    DATA,
    DRAIN,
    KEYS,
    LEAST_REPLICAS,
    METRICS_PORT,
    PORT,
    Gateway,
    GatewayPod,
    Model,
)
from loraline.delivery.kube import Object, environment, run_as, scrape, secret, unprivileged
from loraline.delivery.objects import ANYWHERE, DNS, MONITORING, disruption_budget, port_of, tcp
from loraline.delivery.pod import Pod
from loraline.serving import arguments
from loraline.serving.arguments import CONFIG

UID = 8737
"""User of the gateway's image."""

BUSY = 70
"""Percent of the requested processor time at which another replica is started."""

ADDRESSES = ("GATEWAY_OIDC_ISSUER", "GATEWAY_OIDC_JWKS_URL", "GATEWAY_OTLP_ENDPOINT")
"""Settings that are addresses, which the gateway's pods have to reach."""


def objects(gateway: Gateway, servers: Sequence[Pod], models: Sequence[Model]) -> list[Object]:
    """The gateway's objects and the page's, in apply order. The first server has the adapters of
    `models`; a second one has their base for tasks. UserError for what cannot be."""
    gateway.check()
    pod = GatewayPod(gateway, tuple(servers), tuple(models))
    return [
        config_map(pod),
        deployment(pod),
        service(pod),
        disruption_budget(pod),
        network_policy(pod),
        autoscaler(pod),
        *external_route(pod, PORT, gateway.host, gateway.parent),
        *service_monitor(pod),
        *(page_objects.objects(page_objects.PagePod(gateway.page, pod)) if gateway.page else ()),
    ]


def config_map(pod: GatewayPod) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": pod.metadata(),
        "data": pod.files(),
    }


def container(pod: GatewayPod) -> Object:
    def http_get(path: str) -> Object:
        return {"httpGet": {"path": path, "port": "http"}}

    redis = []
    if pod.gateway.redis_port is not None:
        redis = [secret("GATEWAY_REDIS_URL", pod.name, "redis-url")]
    ports = [{"name": "http", "containerPort": PORT}]
    if pod.monitored:
        ports.append({"name": "metrics", "containerPort": METRICS_PORT})
    return {
        "name": "gateway",
        "image": pod.gateway.image,
        "env": [
            *environment(pod.variables()),
            secret("GATEWAY_VLLM_API_KEY", pod.servers[0].secret, "api-key"),
            *redis,
        ],
        "ports": ports,
        # Two images are decoded at a time, of 64 megapixels at most, and videos in processes.
        "resources": {
            "requests": {"cpu": "500m", "memory": "512Mi"},
            "limits": {"memory": "4Gi"},
        },
        # It starts when a server lists its models, and then stays: with vLLM away clients get
        # an error that says when to come back, not a refused connection.
        "startupProbe": {
            **http_get("/ready"),
            "periodSeconds": 5,
            "failureThreshold": pod.startup_seconds // 5,
        },
        "readinessProbe": {**http_get("/health"), "periodSeconds": 5, "failureThreshold": 2},
        "livenessProbe": {
            **http_get("/health"),
            "periodSeconds": 10,
            "timeoutSeconds": 5,
            "failureThreshold": 6,
        },
        "lifecycle": {"preStop": {"exec": {"command": ["sleep", str(DRAIN_SECONDS)]}}},
        "securityContext": {**unprivileged(), "readOnlyRootFilesystem": True},
        "volumeMounts": [
            {"name": "config", "mountPath": CONFIG, "readOnly": True},
            {"name": "keys", "mountPath": KEYS, "readOnly": True},
            {"name": "data", "mountPath": DATA},
            {"name": "tmp", "mountPath": "/tmp"},
        ],
    }


def pod_spec(pod: GatewayPod) -> Object:
    """The specification of the gateway's pod: container, configuration, keys and data."""
    paths = {
        name: f"tasks/{name.removeprefix('task.')}" if name.startswith("task.") else name
        for name in pod.files()
    }
    items = [{"key": name, "path": path} for name, path in paths.items()]
    volume = pod.gateway.volume
    data = {"persistentVolumeClaim": {"claimName": volume}} if volume else {"emptyDir": {}}
    drain = int(dict(pod.gateway.settings).get(DRAIN, 30))
    return {
        "enableServiceLinks": False,
        "automountServiceAccountToken": False,
        "securityContext": run_as(UID),
        "terminationGracePeriodSeconds": DRAIN_SECONDS + drain + 20,
        "topologySpreadConstraints": [
            {
                "maxSkew": 1,
                "topologyKey": "kubernetes.io/hostname",
                "whenUnsatisfiable": "ScheduleAnyway",
                "labelSelector": {"matchLabels": pod.selector},
            }
        ],
        "containers": [container(pod)],
        "volumes": [
            {"name": "config", "configMap": {"name": pod.name, "items": items}},
            {
                "name": "keys",
                "secret": {
                    "secretName": pod.name,
                    "items": [{"key": "keys.json", "path": "keys.json"}],
                },
            },
            {"name": "data", **data},
            {"name": "tmp", "emptyDir": {}},
        ],
    }


def deployment(pod: GatewayPod) -> Object:
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": pod.metadata(),
        "spec": {
            # The autoscaler sets the number of replicas.
            "strategy": {
                "type": "RollingUpdate",
                "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0},
            },
            "progressDeadlineSeconds": pod.startup_seconds + 600,
            "selector": {"matchLabels": pod.selector},
            "template": {
                "metadata": {"labels": pod.labels, "annotations": pod.annotations},
                "spec": pod_spec(pod),
            },
        },
    }


def service(pod: GatewayPod) -> Object:
    ports = [{"name": "http", "port": PORT, "targetPort": "http"}]
    if pod.monitored:
        ports.append({"name": "metrics", "port": METRICS_PORT, "targetPort": "metrics"})
    # The client that made a job or session reaches the only replica that has it.
    sticky = {} if pod.gateway.volume else {"sessionAffinity": "ClientIP"}
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": pod.metadata(),
        "spec": {"selector": pod.selector, **sticky, "ports": ports},
    }


def autoscaler(pod: GatewayPod) -> Object:
    """Scales by processor use: the gateway decodes images and passes on every event."""
    target = {"type": "Utilization", "averageUtilization": BUSY}
    return {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": pod.metadata(),
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": pod.name},
            "minReplicas": LEAST_REPLICAS,
            "maxReplicas": pod.gateway.replicas,
            "metrics": [{"type": "Resource", "resource": {"name": "cpu", "target": target}}],
            "behavior": {"scaleDown": {"stabilizationWindowSeconds": 300}},
        },
    }


def network_policy(pod: GatewayPod) -> Object:
    """In: everybody, since it asks for keys; Prometheus to the port that asks for none.
    Out: names, the servers, and what the settings name."""
    ingress: list[Object] = [{"ports": tcp(PORT)}]
    if pod.monitored:
        ingress.append({"from": [MONITORING], "ports": tcp(METRICS_PORT)})
    servers = [{"podSelector": {"matchLabels": each.selector}} for each in pod.servers]
    egress: list[Object] = [DNS, {"to": servers, "ports": tcp(arguments.PORT)}]
    settings = dict(pod.gateway.settings)
    ports = {port_of(settings[name]) for name in ADDRESSES if name in settings}
    if pod.gateway.redis_port is not None:
        ports.add(pod.gateway.redis_port)
    if ports:
        egress.append({"to": ANYWHERE, "ports": tcp(*sorted(ports))})
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": pod.metadata(),
        "spec": {
            "podSelector": {"matchLabels": pod.selector},
            "policyTypes": ["Ingress", "Egress"],
            "ingress": ingress,
            "egress": egress,
        },
    }


def service_monitor(pod: GatewayPod) -> list[Object]:
    if not pod.monitored:
        return []
    return [scrape(pod.metadata(), pod.selector, "metrics")]
