"""The Kubernetes objects that serve a registered adapter exactly as its contract says."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from loraline.contract import Contract
from loraline.delivery import charts, gateway_objects, objects
from loraline.delivery.gateway import Gateway, Model
from loraline.delivery.kube import Object
from loraline.delivery.placement import Placement
from loraline.delivery.pod import Pod
from loraline.errors import UserError
from loraline.serving import versions
from loraline.serving.arguments import Adapter
from loraline.serving.names import checked_name, checked_subdomain, served_name
from loraline.serving.sizing import Plan


def server(
    contract: Contract,
    *,
    model_name: str,
    version: int | str,
    digest: str,
    image: str,
    name: str | None = None,
    fetch_env: Mapping[str, str] | None = None,
    rank: int | None = None,
    beside: Sequence[Adapter] = (),
    base_config: Mapping[str, Any] | None = None,
    plan: Plan | None = None,
    placement: Placement | None = None,
    videos: int = 0,
    measured_otherwise: str = "",
) -> Pod:
    """The pod that serves version `version` of registered model `model_name`.

    `digest` is that of the adapter's folder, `name` the model name that clients send, made of
    `model_name` when not given. `image` holds the steps; its init container fetches the adapter,
    with `fetch_env` (where MLflow and its artifacts are) and the optional Secret `loraline` (their
    credentials). The Secret named like the Deployment holds the server's `api-key` and, for gated
    bases, `hf-token`. `rank` is the highest of the adapter's modules, `beside` other adapters of
    the same base for the same pod. `videos` is the most that a request may bring, and
    `measured_otherwise` how the server's limits differ from those of the adapter's evaluation.

    Raises UserError for what Kubernetes or vLLM would refuse.
    """
    where = placement or Placement()
    name = served_name(model_name) if name is None else checked_name(name)
    adapter = Adapter.of(name, model_name, version, digest, rank or contract.r)
    check(contract, where, base_config or {}, beside, videos)
    # A Service named vllm would give every pod of the namespace a VLLM_PORT that vLLM cannot read,
    # and one that starts with a digit is refused.
    resource = f"lora-{name}"
    return Pod(
        contract,
        (adapter, *beside),
        resource,
        resource,
        image,
        fetch_env or {},
        where,
        plan,
        videos,
        measured_otherwise,
    )


def tasks_server(
    contract: Contract,
    first: Pod,
    *,
    videos: int,
    base_config: Mapping[str, Any] | None = None,
    plan: Plan | None = None,
) -> Pod:
    """The pod of a second server, with the base alone and limits that fit tasks.

    Its name is the first server's with `-tasks`, and its key the same. Raises UserError as `server`
    does.
    """
    where = replace(first.where, merged=False, follow=None)
    check(contract, where, base_config or {}, (), videos)
    resource = f"{first.resource}-tasks"
    return Pod(contract, (), resource, first.secret, first.image, {}, where, plan, videos)


def render(
    *servers: Pod, gateway: Gateway | None = None, models: Sequence[Model] = ()
) -> list[Object]:
    """The objects of an adapter's server, of one for tasks beside it, and of the gateway in front
    of both, in apply order. `models` are the first server's adapters, as the gateway asks them."""
    if servers[0].where.format == "production-stack":
        return [charts.helm_values(servers[0])]
    if gateway is None:
        return [entry for pod in servers for entry in server_objects(pod)]
    servers = tuple(replace(pod, gateway=f"{servers[0].resource}-gateway") for pod in servers)
    entries = [entry for pod in servers for entry in server_objects(pod)]
    return entries + gateway_objects.objects(gateway, servers, models)


def server_objects(pod: Pod) -> list[Object]:
    """A server's pod and all objects that it needs, in apply order."""
    where = pod.where
    entries = [objects.config_map(pod), *objects.claim(pod)]
    if where.format == "kserve":
        return [*entries, charts.inference_service(pod), objects.network_policy(pod)]
    entries += [
        objects.deployment(pod),
        objects.service(pod),
        objects.disruption_budget(pod),
        objects.network_policy(pod),
    ]
    return [*entries, *objects.autoscaler(pod), *objects.service_monitor(pod)]


def check(
    contract: Contract,
    where: Placement,
    base_config: Mapping[str, Any],
    beside: Sequence[Adapter],
    videos: int,
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
    versions.check_image(where.serving_image, base_config, contract.quantization)
    if videos or contract.max_videos:
        versions.check_videos(where.serving_image)
    versions.check_precision(contract, base_config, cpu=where.cpu, merged=where.merged)
