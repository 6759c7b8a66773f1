"""The pod's specification: init containers that fetch, the server, the follower of an alias."""

from __future__ import annotations

from pathlib import Path

from loraline.delivery.kube import Object, environment, literal, run_as, secret, unprivileged
from loraline.delivery.pod import Pod
from loraline.serving.arguments import ADAPTERS, CACHE, CONFIG, PORT, SHUTDOWN_SECONDS
from loraline.serving.cards import GPUS, PRODUCT
from loraline.serving.preflight import max_lora_rank
from loraline.tracking.signature import VERIFY_KEY

DRAIN_SECONDS = 10
"""Time for the Service to forget a pod before its server stops listening."""

SERVER_UID = 2000
"""User `vllm` of the server image."""

READY = Path(__file__).with_name("ready.py")
"""The readiness probe's program; the ConfigMap carries it into the pod."""


def fetches(pod: Pod) -> list[Object]:
    """One init container for each adapter; it fetches the adapter and checks digest and weights."""
    if not pod.adapters:
        return []
    rank = max_lora_rank(max(each.rank for each in pod.adapters))
    # A model that was trained whole has no base to be merged into.
    merges = pod.where.merged and pod.contract.train == "lora"
    merge = ["--merge", pod.base or pod.contract.base] if merges else []
    mounts = [
        {"name": "adapters", "mountPath": ADAPTERS},
        {"name": "tmp", "mountPath": "/tmp"},
        *(pod.base_mounts() if merge else []),
    ]
    home = {"HOME": "/tmp"} | ({"HF_HOME": f"{CACHE}/huggingface"} if merge else {})
    tokens = [hub_token(pod)] if merge else []
    return [
        {
            "name": "fetch-adapter" if number == 0 else f"fetch-adapter-{number}",
            "image": pod.image,
            "command": [
                *("python", "steps/fetch_adapter.py"),
                *("--model", literal(each.uri)),
                *("--sha256", each.sha256),
                *("--max-lora-rank", str(rank)),
                *map(literal, merge),
                *("--out-dir", each.path),
            ],
            "env": [*environment({**home, **pod.fetch_env}), *tokens, *credentials()],
            "resources": {"requests": {"cpu": "500m", "memory": pod.memory if merge else "1Gi"}},
            "securityContext": {**unprivileged(), "readOnlyRootFilesystem": True},
            "volumeMounts": mounts,
        }
        for number, each in enumerate(pod.adapters)
    ]


CREDENTIALS = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "MLFLOW_TRACKING_USERNAME",
    "MLFLOW_TRACKING_PASSWORD",
    "MLFLOW_TRACKING_TOKEN",
)
"""Keys of the Secret `loraline` that give read access to MLflow and its artifacts."""


def credentials() -> list[Object]:
    """The Secret's keys that a fetch needs, and no others."""
    return [
        *(secret(key, "loraline", key, optional=True) for key in CREDENTIALS),
        secret(VERIFY_KEY, "loraline", "verify-key", optional=True),
    ]


def hub_token(pod: Pod) -> Object:
    """The hub's token for a gated base, where the Secret has one."""
    return secret("HF_TOKEN", pod.secret, "hf-token", optional=True)


def serving(pod: Pod) -> Object:
    """The container with vLLM."""
    health = {"httpGet": {"path": "/health", "port": "http"}}
    return {
        "name": "vllm",
        "image": pod.where.serving_image,
        "command": ["vllm", "serve"],
        "args": [literal(arg) for arg in pod.arguments()],
        "env": [
            *environment(pod.variables()),
            secret("VLLM_API_KEY", pod.secret, "api-key"),
            hub_token(pod),
        ],
        "ports": [{"name": "http", "containerPort": PORT}],
        "resources": pod.resources(),
        "startupProbe": {
            **health,
            "periodSeconds": 10,
            "failureThreshold": pod.startup_seconds // 10,
        },
        "livenessProbe": {
            **health,
            "periodSeconds": 10,
            "timeoutSeconds": 5,
            "failureThreshold": 6,
        },
        # A healthy server may have lost its adapters; clients must not get the base's answers.
        "readinessProbe": {
            "exec": {"command": ["python3", f"{CONFIG}/{READY.name}", *pod.names]},
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
            *pod.base_mounts(),
            {"name": "shm", "mountPath": "/dev/shm"},
            {"name": "tmp", "mountPath": "/tmp"},
        ],
    }


def follower(pod: Pod) -> list[Object]:
    """The sidecar that follows an alias; it fetches as the init container does."""
    if pod.where.follow is None:
        return []
    fetch = fetches(pod)[0]
    rank = max_lora_rank(max(each.rank for each in pod.adapters))
    model = pod.adapters[0].uri.removeprefix("models:/").rpartition("/")[0]
    config = {"name": "config", "mountPath": CONFIG, "readOnly": True}
    return [
        {
            **fetch,
            "name": "follow-alias",
            "command": [
                *("python", "steps/follow_alias.py", "--model", literal(model)),
                *("--alias", pod.where.follow, "--url", f"http://127.0.0.1:{PORT}"),
                *("--contract", f"{CONFIG}/contract.json", "--adapters", ADAPTERS),
                *("--max-lora-rank", str(rank)),
            ],
            "env": [*fetch["env"], secret("VLLM_API_KEY", pod.secret, "api-key")],
            "volumeMounts": [*fetch["volumeMounts"], config],
        }
    ]


def volumes(pod: Pod) -> list[Object]:
    cards = pod.plan.tensor_parallel_size if pod.plan else 1
    shared = "2Gi" if cards == 1 else "16Gi"
    cache = {"persistentVolumeClaim": {"claimName": pod.resource}} if pod.hub else {}
    entries: list[Object] = [
        {"name": "adapters", "emptyDir": {}},
        {"name": "config", "configMap": {"name": pod.resource}},
        {"name": "cache", **(cache or {"emptyDir": {}})},
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": shared}},
        {"name": "tmp", "emptyDir": {}},
    ]
    if pod.where.base_volume:
        claim = {"claimName": pod.where.base_volume, "readOnly": True}
        entries.append({"name": "bases", "persistentVolumeClaim": claim})
    return entries


def node_terms(pod: Pod) -> Object:
    """Nodes whose label names the card, and nodes of clusters that do not label them."""
    if not (pod.where.on_card and pod.plan):
        return {}
    named = {"operator": "In", "values": list(GPUS[pod.plan.gpu].products)}
    rules: list[Object] = [named, {"operator": "DoesNotExist"}]
    terms = [{"matchExpressions": [{"key": PRODUCT, **rule}]} for rule in rules]
    return {"nodeSelectorTerms": terms}


def spec(pod: Pod) -> Object:
    """The pod's specification."""
    pod_spec: Object = {
        "enableServiceLinks": False,
        "automountServiceAccountToken": False,
        "securityContext": run_as(SERVER_UID),
        "terminationGracePeriodSeconds": DRAIN_SECONDS + SHUTDOWN_SECONDS + 20,
    }
    if not pod.where.cpu:
        taint = {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}
        pod_spec["tolerations"] = [taint]
    if terms := node_terms(pod):
        required = {"requiredDuringSchedulingIgnoredDuringExecution": terms}
        pod_spec["affinity"] = {"nodeAffinity": required}
    if pod.where.replicas > 1:
        pod_spec["topologySpreadConstraints"] = [
            {
                "maxSkew": 1,
                "topologyKey": "kubernetes.io/hostname",
                "whenUnsatisfiable": "ScheduleAnyway",
                "labelSelector": {"matchLabels": pod.selector},
            }
        ]
    return pod_spec | {
        "initContainers": fetches(pod),
        "containers": [serving(pod), *follower(pod)],
        "volumes": volumes(pod),
    }
