"""The gateway in front of a rendered server: the operator's options, and its settings."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass

from loraline.contract import Contract
from loraline.delivery.kube import Object
from loraline.delivery.page import Page
from loraline.delivery.pod import NAME, Pod
from loraline.errors import UserError
from loraline.serving import arguments
from loraline.serving.arguments import CONFIG
from loraline.serving.names import checked_subdomain

PORT = 8080
METRICS_PORT = 8081
KEYS = f"{CONFIG}-keys"
DATA = "/data"
LEAST_REPLICAS = 2
DRAIN = "GATEWAY_DRAIN_S"
RESERVED = (
    *("GATEWAY_UPSTREAMS", "GATEWAY_VLLM_API_KEY", "GATEWAY_API_KEYS_FILE", "GATEWAY_REDIS_URL"),
    *("GATEWAY_PORT", "GATEWAY_METRICS_PORT", "GATEWAY_DATA_DIR", "GATEWAY_TASKS_DIR"),
)
"""Settings that the manifest sets itself, or takes from a Secret."""

LOOPBACK = ("127.0.0.1", "::1", "localhost")


@dataclass(frozen=True)
class Gateway:
    """The operator's options for the gateway."""

    image: str
    replicas: int = 4
    """Most replicas; at least two always run."""

    host: str | None = None
    """Host name for access from outside the cluster; None for no such access."""

    parent: str | None = None
    """Gateway of the Gateway API, NAMESPACE/NAME, for a route instead of an Ingress."""

    volume: str | None = None
    """Claim for jobs and sessions that all replicas can write."""

    redis_port: int | None = None
    """Port of the Redis that replicas share; its address is in the Secret."""

    settings: tuple[tuple[str, str], ...] = ()
    """Other settings, name and value."""

    tasks: tuple[tuple[str, str], ...] = ()
    """The operator's task files, name and text."""

    page: Page | None = None
    """The page in front; None for none."""

    def check(self) -> None:
        """Raise a UserError for what Kubernetes would refuse or the manifest makes itself."""
        if self.replicas < LEAST_REPLICAS:
            raise UserError(
                f"{self.replicas} replicas of the gateway are fewer than the {LEAST_REPLICAS} that "
                "are always kept"
            )
        if self.host is not None:
            checked_subdomain(self.host, "host of the gateway")
        hosts = [self.host, self.page.host if self.page else None]
        if self.parent is not None and hosts == [None, None]:
            raise UserError(
                "--gateway-parent needs --gateway-host or --ui-host to say for which host"
            )
        if self.host is not None and hosts[0] == hosts[1]:
            raise UserError(
                f"{self.host} is the host of gateway and page; give each one of its own"
            )
        if self.parent is not None:
            if self.parent.count("/") != 1:
                raise UserError(f"--gateway-parent {self.parent!r} is not NAMESPACE/NAME")
            for part in self.parent.split("/"):
                checked_subdomain(part, "part of --gateway-parent")
        if self.volume is not None:
            checked_subdomain(self.volume, "volume of the gateway")
        if self.redis_port is not None and not 0 < self.redis_port < 65536:
            raise UserError(f"port {self.redis_port} of Redis is not from 1 to 65535")
        for name, value in self.settings:
            if name in RESERVED:
                raise UserError(
                    f"--gateway-set {name}: the manifest sets it itself, or reads it from a Secret"
                )
            if name == "GATEWAY_HOST" and value in LOOPBACK:
                raise UserError(f"--gateway-set {name}={value}: no other pod would reach it")
            if re.search(r"://[^/?#]*@", value):
                raise UserError(
                    f"--gateway-set {name}: its address holds a name or password, and the manifest "
                    "and MLflow would show it; give an address without"
                )
        for name, _ in self.tasks:
            if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,200}", name):
                raise UserError(f"task file {name!r} has a name that a ConfigMap does not take")
        if self.page is not None:
            self.page.check()


@dataclass(frozen=True)
class Model:
    """An adapter as the gateway asks it: with the contract that it was measured with."""

    name: str
    contract: Contract
    role: str | None = None
    """`candidate` or `champion`, where both are served."""


@dataclass(frozen=True)
class GatewayPod:
    """The gateway's pod; every object around it carries its name, labels and the version behind."""

    gateway: Gateway
    servers: tuple[Pod, ...]
    models: tuple[Model, ...]

    @property
    def name(self) -> str:
        return f"{self.servers[0].resource}-gateway"

    @property
    def address(self) -> str:
        """As other pods of the namespace reach it."""
        return f"http://{self.name}:{PORT}"

    @property
    def monitored(self) -> bool:
        where = self.servers[0].where
        return bool(where.monitor or where.prometheus)

    @property
    def selector(self) -> dict[str, str]:
        return {NAME: self.name}

    @property
    def labels(self) -> dict[str, str]:
        part = {"app.kubernetes.io/component": "gateway", "app.kubernetes.io/part-of": "loraline"}
        return self.selector | part

    @property
    def annotations(self) -> dict[str, str]:
        """Includes a digest of what a pod reads at its start, so that a change starts new pods."""
        read = json.dumps([self.files(), self.variables()], sort_keys=True)
        return {
            "loraline/registered-version": self.servers[0].adapters[0].uri,
            "loraline/config-sha256": hashlib.sha256(read.encode()).hexdigest(),
        }

    def metadata(self) -> Object:
        namespace = self.servers[0].where.namespace
        placed = {"namespace": namespace} if namespace else {}
        return {
            "name": self.name,
            **placed,
            "labels": self.labels,
            "annotations": self.annotations,
        }

    def contracts(self) -> dict[str, Contract]:
        """Contracts by file. Each adapter's has its own prompt and longest answer, and the limits
        of the server that it shares; a server of tasks has those of the base alone."""
        served = self.servers[0].contract
        shared = {"min_pixels": served.min_pixels, "max_pixels": served.max_pixels}
        by_file = {
            f"{model.name}.json": model.contract.model_copy(update=shared) for model in self.models
        }
        for pod in self.servers[1:]:
            # A server of tasks has the bare base: nothing is merged into it.
            by_file[f"{pod.resource}.json"] = pod.contract.model_copy(update={"export": "adapter"})
        return by_file

    def files(self) -> dict[str, str]:
        """The ConfigMap: contracts, and the operator's task files."""
        contracts = {
            name: agreed.model_dump_json(indent=2) + "\n"
            for name, agreed in self.contracts().items()
        }
        return contracts | {f"task.{name}": text for name, text in self.gateway.tasks}

    def upstreams(self) -> list[dict[str, str]]:
        """Value of GATEWAY_UPSTREAMS: an entry an adapter, and one for a server of tasks."""
        first = self.servers[0]
        uris = {adapter.name: adapter.uri for adapter in first.adapters}
        entries = []
        for model in self.models:
            role = {"role": model.role} if model.role else {}
            entries.append(
                {
                    "url": f"http://{first.resource}:{arguments.PORT}",
                    "contract": f"{CONFIG}/{model.name}.json",
                    "name": model.name,
                    "uri": uris[model.name],
                    **role,
                }
            )
        for pod in self.servers[1:]:
            url = f"http://{pod.resource}:{arguments.PORT}"
            entries.append({"url": url, "contract": f"{CONFIG}/{pod.resource}.json"})
        return entries

    def variables(self) -> dict[str, str]:
        env = {
            # It asks every client for a key.
            "GATEWAY_HOST": "0.0.0.0",  # noqa: S104
            **dict(self.gateway.settings),
            "GATEWAY_UPSTREAMS": json.dumps(self.upstreams(), separators=(",", ":")),
            "GATEWAY_API_KEYS_FILE": f"{KEYS}/keys.json",
            "GATEWAY_DATA_DIR": DATA,
            "GATEWAY_PORT": str(PORT),
        }
        if self.monitored:
            env["GATEWAY_METRICS_PORT"] = str(METRICS_PORT)
        if self.gateway.tasks:
            env["GATEWAY_TASKS_DIR"] = f"{CONFIG}/tasks"
        return env

    @property
    def startup_seconds(self) -> int:
        return max(pod.startup_seconds for pod in self.servers) + 300
