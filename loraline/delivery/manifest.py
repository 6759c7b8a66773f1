"""The Kubernetes objects that serve a registered adapter exactly as its contract says."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from loraline.contract import Contract
from loraline.delivery.kube import Object, environment, literal, secret, unprivileged
from loraline.delivery.placement import Placement
from loraline.errors import UserError
from loraline.serving import arguments as serving_arguments
from loraline.serving import versions
from loraline.serving.arguments import (
    ADAPTERS,
    BASES,
    CACHE,
    CONFIG,
    PORT,
    SHUTDOWN_SECONDS,
    Adapter,
)
from loraline.serving.cards import GPUS, PRODUCT
from loraline.serving.names import base_name, checked_name, checked_subdomain, served_name
from loraline.serving.preflight import max_lora_rank
from loraline.serving.sizing import Plan

DRAIN_SECONDS = 10
"""Time for the Service to forget a pod before its server stops listening."""

SERVER_UID = 2000
"""User `vllm` of the server image."""

WAITING = 5
"""Requests that may wait at a replica before another one is started."""

SERVES = (
    "import json,os,sys,urllib.request as u;"
    f"r=u.Request('http://127.0.0.1:{PORT}/v1/models',"
    "headers={'Authorization':'Bearer '+os.environ.get('VLLM_API_KEY','')});"
    "sys.exit(not {*sys.argv[1:]}<={m['id'] for m in json.load(u.urlopen(r,timeout=4))['data']})"
)
"""Ends with 0 when the server lists the models that are its arguments."""


def render(
    contract: Contract,
    *,
    model_name: str,
    version: int | str,
    image: str,
    name: str | None = None,
    fetch_env: Mapping[str, str] | None = None,
    rank: int | None = None,
    beside: Sequence[Adapter] = (),
    base_config: Mapping[str, Any] | None = None,
    plan: Plan | None = None,
    placement: Placement | None = None,
) -> list[Object]:
    """The objects that serve version `version` of registered model `model_name`, in apply order.

    `name` is the model name that clients send, made of `model_name` when not given. `image` holds
    the steps; its init container fetches the adapter, with `fetch_env` (where MLflow and its
    artifacts are) and the optional Secret `loraline` (their credentials). The Secret named like
    the Deployment holds the server's `api-key` and, for gated bases, `hf-token`. `rank` is the
    highest of the adapter's modules, `beside` other adapters of the same base for the same pod.

    Raises UserError for what Kubernetes or vLLM would refuse.
    """
    where = placement or Placement()
    name = served_name(model_name) if name is None else checked_name(name)
    sha256 = contract.adapter_sha256
    adapter = Adapter.of(name, model_name, version, sha256, rank or contract.r)
    check(contract, where, base_config or {}, beside)
    # A Service named vllm would give every pod of the namespace a VLLM_PORT that vLLM cannot read,
    # and one that starts with a digit is refused.
    pod = Pod(contract, (adapter, *beside), f"lora-{name}", image, fetch_env or {}, where, plan)
    if where.format == "production-stack":
        return [pod.helm_values()]
    made = [pod.config_map(), *pod.claim()]
    if where.format == "kserve":
        return [*made, pod.inference_service(), pod.network_policy()]
    made += [pod.deployment(), pod.service(), pod.disruption_budget(), pod.network_policy()]
    return [*made, *pod.autoscaler(), *pod.service_monitor()]


def check(
    contract: Contract,
    where: Placement,
    base_config: Mapping[str, Any],
    beside: Sequence[Adapter],
) -> None:
    """Raise a UserError for what cannot be combined or would be refused later."""
    if where.namespace is not None:
        checked_name(where.namespace, "namespace", longest=63)
    if where.base_volume is not None:
        checked_subdomain(where.base_volume, "base volume")
    if where.prometheus and not re.fullmatch(r"https?://[\w.:/-]+", where.prometheus):
        raise UserError(f"address {where.prometheus!r} of Prometheus is not an http(s) URL")
    if where.follow is not None:
        checked_name(where.follow, "alias to follow,")
        if where.merged or where.replicas > 1 or where.format == "production-stack":
            raise UserError(
                "an alias is followed by one replica that serves adapters, as a deployment or with "
                "KServe"
            )
    if where.merged and beside:
        raise UserError("a merged model is served alone; leave out the adapter beside it")
    if beside and where.format == "production-stack":
        raise UserError("production-stack runs one init container; serve one adapter with it")
    if where.format != "deployment" and (where.replicas > 1 or where.prometheus or where.monitor):
        raise UserError(
            f"{where.format} scales and is watched in its own ways; --replicas, --prometheus and "
            "--service-monitor are of --format deployment"
        )
    if where.format == "production-stack" and where.namespace:
        raise UserError("values of a Helm chart name no namespace; give it to helm install")
    if where.replicas < 1:
        raise UserError(f"{where.replicas} replicas serve nothing; give at least one")
    versions.check_image(where.serving_image, base_config)
    versions.check_precision(contract, base_config, cpu=where.cpu, merged=where.merged)


@dataclass(frozen=True)
class Pod:
    """One server pod and the objects around it."""

    contract: Contract
    adapters: tuple[Adapter, ...]
    resource: str
    """Name of all objects."""

    image: str
    fetch_env: Mapping[str, str]
    where: Placement
    plan: Plan | None

    @property
    def labels(self) -> dict[str, str]:
        return {"app.kubernetes.io/name": self.resource, "app.kubernetes.io/part-of": "loraline"}

    @property
    def annotations(self) -> dict[str, str]:
        first = self.adapters[0]
        found = {
            "loraline/registered-version": first.uri,
            "loraline/adapter-sha256": first.sha256,
            "loraline/base-revision": self.contract.base_revision,
        }
        if self.contract.prompt_uri:
            found["loraline/prompt"] = self.contract.prompt_uri
        if len(self.adapters) > 1:
            found["loraline/beside"] = ", ".join(each.uri for each in self.adapters[1:])
        if self.plan:
            cards = f"{self.plan.tensor_parallel_size} x {self.plan.gpu}"
            found["loraline/sized-for"] = f"{cards}, {self.plan.account()}"
        return found

    @property
    def selector(self) -> dict[str, str]:
        return {"app.kubernetes.io/name": self.resource}

    @property
    def hub(self) -> bool:
        """Whether the base comes from the model hub."""
        return not self.contract.is_folder and self.where.base_volume is None

    @property
    def base(self) -> str | None:
        """The base's folder in the pod, when a claim holds it."""
        if self.where.base_volume is None:
            return None
        return f"{BASES}/{base_name(self.contract).rpartition('/')[2]}"

    @property
    def startup_seconds(self) -> int:
        weights = self.plan.weights * self.plan.tensor_parallel_size if self.plan else 60
        return serving_arguments.startup_seconds(weights, local_base=not self.hub)

    def metadata(self) -> Object:
        placed = {"namespace": self.where.namespace} if self.where.namespace else {}
        return {
            "name": self.resource,
            **placed,
            "labels": self.labels,
            "annotations": self.annotations,
        }

    def config_map(self) -> Object:
        return {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": self.metadata(),
            "data": {
                "chat_template.jinja": self.contract.chat_template,
                "contract.json": self.contract.model_dump_json(indent=2) + "\n",
                "prompt.txt": self.contract.prompt,
            },
        }

    @property
    def storage(self) -> str:
        """Room for the base in its hub's cache."""
        weights = self.plan.weights * self.plan.tensor_parallel_size if self.plan else 60
        return f"{10 * math.ceil((1.2 * weights + 5) / 10)}Gi"

    def claim(self) -> list[Object]:
        """Keeps the hub's files, so that only the first start downloads the base."""
        if not self.hub:
            return []
        return [
            {
                "apiVersion": "v1",
                "kind": "PersistentVolumeClaim",
                "metadata": self.metadata(),
                "spec": {
                    "accessModes": [
                        "ReadWriteOnce" if self.where.replicas == 1 else "ReadWriteMany"
                    ],
                    "resources": {"requests": {"storage": self.storage}},
                },
            }
        ]

    def fetches(self) -> list[Object]:
        """One init container an adapter: fetched, held against its digest and looked through."""
        rank = max_lora_rank(max(each.rank for each in self.adapters))
        merge = ["--merge", self.base or self.contract.base] if self.where.merged else []
        mounts = [
            {"name": "adapters", "mountPath": ADAPTERS},
            {"name": "tmp", "mountPath": "/tmp"},
            *(self.base_mounts() if merge else []),
        ]
        home = {"HOME": "/tmp"} | ({"HF_HOME": f"{CACHE}/huggingface"} if merge else {})
        tokens = [secret("HF_TOKEN", self.resource, "hf-token", optional=True)] if merge else []
        return [
            {
                "name": "fetch-adapter" if number == 0 else f"fetch-adapter-{number}",
                "image": self.image,
                "command": [
                    *("python", "steps/fetch_adapter.py"),
                    *("--model", literal(each.uri)),
                    *("--sha256", each.sha256),
                    *("--max-lora-rank", str(rank)),
                    *map(literal, merge),
                    *("--out-dir", each.path),
                ],
                "env": [*environment({**home, **self.fetch_env}), *tokens],
                "envFrom": [{"secretRef": {"name": "loraline", "optional": True}}],
                "resources": {
                    "requests": {"cpu": "500m", "memory": self.memory if merge else "1Gi"}
                },
                "securityContext": {**unprivileged(), "readOnlyRootFilesystem": True},
                "volumeMounts": mounts,
            }
            for number, each in enumerate(self.adapters)
        ]

    def base_mounts(self) -> list[Object]:
        found: list[Object] = [{"name": "cache", "mountPath": CACHE}]
        if self.where.base_volume:
            found.append({"name": "bases", "mountPath": BASES, "readOnly": True})
        return found

    @property
    def memory(self) -> str:
        """What vLLM takes beside a quarter of the weights on their way to the card, or, to merge an
        adapter, all of them."""
        weights = self.plan.weights * self.plan.tensor_parallel_size if self.plan else 16.0
        return f"{8 + math.ceil(weights / (1 if self.where.merged else 4))}Gi"

    def arguments(self) -> list[str]:
        args = serving_arguments.arguments(
            self.contract,
            self.adapters,
            plan=self.plan,
            base=self.base,
            merged=self.where.merged,
            # The next version is loaded before the last one goes.
            spare=2 if self.where.follow else 0,
        )
        return serving_arguments.on_cpu(args) if self.where.cpu else args

    def variables(self) -> dict[str, str]:
        found = serving_arguments.environment(
            self.contract, local_base=not self.hub, startup_seconds=self.startup_seconds
        )
        if self.where.follow:
            found["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] = "1"
        if self.where.cpu:
            found |= {name: entry.instead[0] for name, entry in serving_arguments.CPU_ENV.items()}
        return found

    @property
    def card(self) -> str:
        """The resource to ask for; NVIDIA's device plugin renames cards that it hands out twice."""
        return "nvidia.com/gpu" if self.where.fraction == 1 else "nvidia.com/gpu.shared"

    def resources(self) -> Object:
        if self.where.cpu:
            return {"requests": {"cpu": "1", "memory": "3Gi"}}
        requests = {"cpu": "2", "memory": self.memory}
        return {
            "requests": requests,
            "limits": {self.card: self.plan.tensor_parallel_size if self.plan else 1},
        }

    def serving(self) -> Object:
        """The container with vLLM."""
        health = {"httpGet": {"path": "/health", "port": "http"}}
        names = [each.name for each in self.adapters]
        return {
            "name": "vllm",
            "image": self.where.serving_image,
            "command": ["vllm", "serve"],
            "args": [literal(arg) for arg in self.arguments()],
            "env": [
                *environment(self.variables()),
                secret("VLLM_API_KEY", self.resource, "api-key"),
                secret("HF_TOKEN", self.resource, "hf-token", optional=True),
            ],
            "ports": [{"name": "http", "containerPort": PORT}],
            "resources": self.resources(),
            "startupProbe": {
                **health,
                "periodSeconds": 10,
                "failureThreshold": self.startup_seconds // 10,
            },
            "livenessProbe": {
                **health,
                "periodSeconds": 10,
                "timeoutSeconds": 5,
                "failureThreshold": 6,
            },
            # A healthy server may have lost its adapters; clients must not get the base's answers.
            "readinessProbe": {
                "exec": {"command": ["python3", "-c", SERVES, *names]},
                "periodSeconds": 10,
                "timeoutSeconds": 5,
                "failureThreshold": 2,
            },
            "lifecycle": {"preStop": {"exec": {"command": ["sleep", str(DRAIN_SECONDS)]}}},
            # The root file system stays writable: NVIDIA's container hooks write into it.
            "securityContext": unprivileged(),
            "volumeMounts": [
                {"name": "adapters", "mountPath": ADAPTERS, "readOnly": True},
                {"name": "config", "mountPath": CONFIG, "readOnly": True},
                *self.base_mounts(),
                {"name": "shm", "mountPath": "/dev/shm"},
                {"name": "tmp", "mountPath": "/tmp"},
            ],
        }

    def follower(self) -> list[Object]:
        """The sidecar that follows an alias; it fetches as the init container does."""
        if self.where.follow is None:
            return []
        fetch = self.fetches()[0]
        rank = max_lora_rank(max(each.rank for each in self.adapters))
        model = self.adapters[0].uri.removeprefix("models:/").rpartition("/")[0]
        config = {"name": "config", "mountPath": CONFIG, "readOnly": True}
        return [
            {
                **fetch,
                "name": "follow-alias",
                "command": [
                    *("python", "steps/follow_alias.py", "--model", literal(model)),
                    *("--alias", self.where.follow, "--url", f"http://127.0.0.1:{PORT}"),
                    *("--contract", f"{CONFIG}/contract.json", "--adapters", ADAPTERS),
                    *("--max-lora-rank", str(rank)),
                ],
                "env": [*fetch["env"], secret("VLLM_API_KEY", self.resource, "api-key")],
                "volumeMounts": [*fetch["volumeMounts"], config],
            }
        ]

    def volumes(self) -> list[Object]:
        cards = self.plan.tensor_parallel_size if self.plan else 1
        shared = "2Gi" if cards == 1 else "16Gi"
        cache = {"persistentVolumeClaim": {"claimName": self.resource}} if self.hub else {}
        found: list[Object] = [
            {"name": "adapters", "emptyDir": {}},
            {"name": "config", "configMap": {"name": self.resource}},
            {"name": "cache", **(cache or {"emptyDir": {}})},
            {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": shared}},
            {"name": "tmp", "emptyDir": {}},
        ]
        if self.where.base_volume:
            claim = {"claimName": self.where.base_volume, "readOnly": True}
            found.append({"name": "bases", "persistentVolumeClaim": claim})
        return found

    def security(self) -> Object:
        return {
            "runAsNonRoot": True,
            "runAsUser": SERVER_UID,
            "runAsGroup": SERVER_UID,
            "fsGroup": SERVER_UID,
            "seccompProfile": {"type": "RuntimeDefault"},
        }

    def node_terms(self) -> Object:
        """Nodes whose label names the card, and nodes of clusters that do not label them."""
        if not (self.where.on_card and self.plan):
            return {}
        named = {"operator": "In", "values": list(GPUS[self.plan.gpu].products)}
        rules: list[Object] = [named, {"operator": "DoesNotExist"}]
        terms = [{"matchExpressions": [{"key": PRODUCT, **rule}]} for rule in rules]
        return {"nodeSelectorTerms": terms}

    def spec(self) -> Object:
        """The pod's specification."""
        found: Object = {
            "enableServiceLinks": False,
            "automountServiceAccountToken": False,
            "securityContext": self.security(),
            "terminationGracePeriodSeconds": DRAIN_SECONDS + SHUTDOWN_SECONDS + 20,
        }
        if not self.where.cpu:
            taint = {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}
            found["tolerations"] = [taint]
        if terms := self.node_terms():
            required = {"requiredDuringSchedulingIgnoredDuringExecution": terms}
            found["affinity"] = {"nodeAffinity": required}
        if self.where.replicas > 1:
            found["topologySpreadConstraints"] = [
                {
                    "maxSkew": 1,
                    "topologyKey": "kubernetes.io/hostname",
                    "whenUnsatisfiable": "ScheduleAnyway",
                    "labelSelector": {"matchLabels": self.selector},
                }
            ]
        return found | {
            "initContainers": self.fetches(),
            "containers": [self.serving(), *self.follower()],
            "volumes": self.volumes(),
        }

    def deployment(self) -> Object:
        # A second pod would wait for the GPU that the first one holds.
        strategy: Object = {"type": "Recreate"}
        replicas: Object = {"replicas": 1}
        if self.where.replicas > 1:
            update = {"maxSurge": 0, "maxUnavailable": 1}
            strategy = {"type": "RollingUpdate", "rollingUpdate": update}
            # The number belongs to the autoscaler.
            replicas = {}
        return {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": self.metadata(),
            "spec": {
                **replicas,
                "strategy": strategy,
                "progressDeadlineSeconds": self.startup_seconds + 600,
                "selector": {"matchLabels": self.selector},
                "template": {
                    "metadata": {"labels": self.labels, "annotations": self.annotations},
                    "spec": self.spec(),
                },
            },
        }

    def service(self) -> Object:
        return {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": self.metadata(),
            "spec": {
                "selector": self.selector,
                "ports": [{"name": "http", "port": PORT, "targetPort": "http"}],
            },
        }

    def disruption_budget(self) -> Object:
        """Nodes are drained one pod at a time; a single one does not block them."""
        return {
            "apiVersion": "policy/v1",
            "kind": "PodDisruptionBudget",
            "metadata": self.metadata(),
            "spec": {"maxUnavailable": 1, "selector": {"matchLabels": self.selector}},
        }

    def network_policy(self) -> Object:
        """In: the namespace's pods, since a key guards only a part of vLLM's addresses. Out: names,
        MLflow, its artifacts and the hub, never the cloud's metadata service."""
        urls = [value for value in self.fetch_env.values() if "://" in value]
        ports = {port_of(url) for url in urls}
        if self.hub or "MLFLOW_S3_ENDPOINT_URL" not in self.fetch_env:
            ports.add(443)
        world = {"ipBlock": {"cidr": "0.0.0.0/0", "except": ["169.254.0.0/16"]}}
        callers: list[Object] = [{"podSelector": {}}]
        if self.where.monitor or self.where.prometheus:
            name = {"kubernetes.io/metadata.name": "monitoring"}
            callers.append({"namespaceSelector": {"matchLabels": name}})
        chosen = self.selector
        if self.where.format == "kserve":
            chosen = {"serving.kserve.io/inferenceservice": self.resource}
        return {
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": self.metadata(),
            "spec": {
                "podSelector": {"matchLabels": chosen},
                "policyTypes": ["Ingress", "Egress"],
                "ingress": [{"from": callers, "ports": [{"port": PORT, "protocol": "TCP"}]}],
                "egress": [
                    {"ports": [{"port": 53, "protocol": protocol} for protocol in ("UDP", "TCP")]},
                    {
                        "to": [world],
                        "ports": [{"port": port, "protocol": "TCP"} for port in sorted(ports)],
                    },
                ],
            },
        }

    def autoscaler(self) -> list[Object]:
        """Follows the requests that wait; a replica is kept for ten minutes after the last one."""
        if self.where.replicas == 1:
            return []
        scaled = {"apiVersion": "apps/v1", "kind": "Deployment", "name": self.resource}
        down = {"scaleDown": {"stabilizationWindowSeconds": 600}}
        if self.where.prometheus:
            query = f'sum(vllm:num_requests_waiting{{service="{self.resource}"}})'
            asked = {
                "serverAddress": self.where.prometheus,
                "query": query,
                "threshold": str(WAITING),
            }
            return [
                {
                    "apiVersion": "keda.sh/v1alpha1",
                    "kind": "ScaledObject",
                    "metadata": self.metadata(),
                    "spec": {
                        "scaleTargetRef": scaled,
                        "minReplicaCount": 1,
                        "maxReplicaCount": self.where.replicas,
                        "advanced": {"horizontalPodAutoscalerConfig": {"behavior": down}},
                        "triggers": [{"type": "prometheus", "metadata": asked}],
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
                "metadata": self.metadata(),
                "spec": {
                    "scaleTargetRef": scaled,
                    "minReplicas": 1,
                    "maxReplicas": self.where.replicas,
                    "metrics": [{"type": "Pods", "pods": waiting}],
                    "behavior": down,
                },
            }
        ]

    def service_monitor(self) -> list[Object]:
        if not (self.where.monitor or self.where.prometheus):
            return []
        return [
            {
                "apiVersion": "monitoring.coreos.com/v1",
                "kind": "ServiceMonitor",
                "metadata": self.metadata(),
                "spec": {
                    "selector": {"matchLabels": self.selector},
                    "endpoints": [{"port": "http", "path": "/metrics", "interval": "15s"}],
                },
            }
        ]

    def inference_service(self) -> Object:
        """KServe's object in its plain-Deployment mode, with the same pod."""
        container = {**self.serving(), "name": "kserve-container"}
        predictor = {**self.spec(), "containers": [container, *self.follower()]}
        return {
            "apiVersion": "serving.kserve.io/v1beta1",
            "kind": "InferenceService",
            "metadata": {
                **self.metadata(),
                "annotations": {
                    **self.annotations,
                    "serving.kserve.io/deploymentMode": "RawDeployment",
                },
            },
            "spec": {
                "predictor": {
                    "minReplicas": 1,
                    "maxReplicas": self.where.replicas,
                    "deploymentStrategy": self.deployment()["spec"]["strategy"],
                    **predictor,
                }
            },
        }

    def chart_resources(self) -> Object:
        """The server's resources in the chart's words."""
        found = self.resources()
        return {
            "requestCPU": int(found["requests"]["cpu"]),
            "requestMemory": found["requests"]["memory"],
            "requestGPU": found.get("limits", {}).get(self.card, 0),
            "requestGPUType": self.card,
        }

    def helm_values(self) -> Object:
        """Values for the chart `vllm-stack` of vLLM's production-stack."""
        container, fetch = self.serving(), self.fetches()[0]
        image = re.fullmatch(r"(.+?):([\w.-]+(?:@sha256:\w+)?)", self.where.serving_image)
        if image is None:
            raise UserError(f"production-stack needs a tag in {self.where.serving_image}")
        # The chart runs `vllm serve MODEL --host ... --port ...` and has a place of its own for
        # chat templates.
        args = [arg.replace(f"{CONFIG}/", "/templates/") for arg in self.arguments()[1:]]
        skip = args.index("--chat-template")
        del args[skip : skip + 2]
        # The chart's own shared memory comes only with tensorParallelSize in vllmConfig.
        own = {"adapters", "cache", "bases", "shm", "tmp"}
        variables, claim = self.variables(), {}
        if self.hub:
            # The chart makes the hub's cache a claim of its own and says where it is.
            claim = {"pvcStorage": self.storage, "pvcAccessMode": ["ReadWriteOnce"]}
            del variables["HF_HOME"]
        shown = [{"name": "MLFLOW_TRACKING_USERNAME"}, {"name": "MLFLOW_TRACKING_PASSWORD"}]
        shown += [{"name": "AWS_ACCESS_KEY_ID"}, {"name": "AWS_SECRET_ACCESS_KEY"}]
        keys = [secret(each["name"], "loraline", each["name"], optional=True) for each in shown]
        model = {
            "name": self.adapters[0].name,
            "annotations": self.annotations,
            "podAnnotations": self.annotations,
            "repository": image[1],
            "tag": image[2],
            "modelURL": self.arguments()[0],
            "replicaCount": 1,
            **self.chart_resources(),
            **self.node_terms(),
            **claim,
            "chatTemplate": "chat_template.jinja",
            "chatTemplateConfigMap": self.contract.chat_template,
            # The chart switches prefix caching off unless it is told otherwise.
            "vllmConfig": {"enablePrefixCaching": True, "extraArgs": args},
            "env": [*environment(variables), container["env"][-1]],
            "initContainer": {
                **{key: fetch[key] for key in ("name", "image", "command", "resources")},
                "env": [*fetch["env"], *keys],
                "extraVolumeMounts": fetch["volumeMounts"],
            },
            "extraVolumes": [
                {"name": "cache", "emptyDir": {}} if each["name"] == "cache" else each
                for each in self.volumes()
                if each["name"] in own
            ],
            "extraVolumeMounts": [
                each for each in container["volumeMounts"] if each["name"] in own
            ],
        }
        key = {"secretName": self.resource, "secretKey": "api-key"}
        return {
            "servingEngineSpec": {
                "vllmApiKey": key,
                "securityContext": self.security(),
                "containerSecurityContext": unprivileged(),
                "strategy": self.deployment()["spec"]["strategy"],
                "startupProbe": {
                    "initialDelaySeconds": 15,
                    **container["startupProbe"],
                    "httpGet": {"path": "/health", "port": PORT},
                },
                "tolerations": self.spec().get("tolerations", []),
                "modelSpec": [model],
            }
        }


def port_of(url: str) -> int:
    parts = urlsplit(url)
    return parts.port or (443 if parts.scheme == "https" else 80)
