"""From an order and the adapter's files to the manifest, sized for a card."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loraline import contract
from loraline.contract import Contract
from loraline.delivery import kube, manifest, tasks
from loraline.delivery.gateway import Model
from loraline.delivery.order import Order
from loraline.errors import UserError
from loraline.serving import arguments, calibration, names, preflight, sizing, versions
from loraline.serving.arguments import Adapter
from loraline.serving.sizing import Plan
from loraline.tracking import identity, runs

if TYPE_CHECKING:
    from mlflow import MlflowClient

ROLES = {"champion": "candidate", "candidate": "champion"}
"""The ordered version's role for the gateway, by the alias of the version beside it."""


def rendered(
    client: MlflowClient, adapter: Path, order: Order, say: Callable[[str], None]
) -> tuple[str, Plan | None]:
    """The manifest as YAML, and the plan that the adapter's server is sized by, if any.

    `adapter` is the folder with the version's files. UserError for what vLLM or Kubernetes would
    refuse, and for what fits no card.
    """
    agreed = contract.read(adapter)
    preflight.check(
        adapter,
        agreed,
        f"{order.name} version {order.version}",
        vllm=versions.version_of(order.where.serving_image),
    )
    if agreed.export == "merged":
        order = replace(order, where=replace(order.where, merged=True))
    base_config = preflight.read_json(adapter / contract.BASE_CONFIG) or {}
    ranks = [preflight.highest_rank(adapter)]
    served = Model(names.served_name(order.name), agreed, ROLES.get(order.alias or ""))
    beside, models = [], [served]
    if order.beside:
        agreed, other, model = join_beside(agreed, order)
        beside, ranks, models = [other], [*ranks, other.rank], [served, model]
    videos, otherwise = 0, ""
    measured = wide = agreed
    if order.tasks:
        wide = tasks.widened(agreed, order.needs)
    if order.tasks == "instead":
        agreed, videos = wide, tasks.videos(order.needs)
        otherwise = tasks.differences(measured, wide, videos)
    sizing.check_length(wide.max_model_len, base_config)
    plan = size(client, agreed, base_config, ranks, order, videos)
    servers = [
        manifest.server(
            agreed,
            model_name=order.name,
            version=order.version,
            digest=order.digest,
            image=order.image,
            fetch_env=order.fetch,
            rank=ranks[0],
            beside=beside,
            base_config=base_config,
            plan=plan,
            placement=order.where,
            videos=videos,
            measured_otherwise=otherwise,
        )
    ]
    if otherwise:
        say(f"the adapter was measured with other limits: {otherwise}")
    if order.tasks == "beside":
        videos = tasks.videos(order.needs)
        # The log is of the adapter's server; this one knows of it as a later order would.
        remembered = calibration.remembered(client.get_registered_model(order.name))
        later = replace(order, log="", remembered=remembered)
        tasks_plan = size(client, wide, base_config, [], later, videos)
        second = manifest.tasks_server(
            wide, servers[0], videos=videos, base_config=base_config, plan=tasks_plan
        )
        servers.append(second)
        say(f"tasks are served by {second.resource}, which has no adapter")
    objects = manifest.render(*servers, gateway=order.gateway, models=models)
    return kube.to_yaml(objects), plan


def join_beside(agreed: Contract, order: Order) -> tuple[Contract, Adapter, Model]:
    """The contract that serves both versions, and the other version; it must fit the same base.

    UserError where the other version's files are not those that its gate judged.
    """
    assert order.beside is not None
    with runs.logged_adapter(f"{order.name}/{order.beside}") as folder:
        digest = contract.folder_digest(folder)
        if digest != order.beside_digest:
            difference = f"the adapter has digest {digest}, its version {order.beside_digest}"
            changed = identity.changed("quality_gate", difference)
            raise UserError(f"--beside {order.alias}: {changed}")
        other, rank = contract.read(folder), preflight.highest_rank(folder)
        preflight.check(
            folder,
            other,
            names.model_uri(order.name, order.beside),
            vllm=versions.version_of(order.where.serving_image),
        )
    name = f"{names.served_name(order.name)[:38].strip('-')}-{order.alias}"
    names.checked_name(name, "name of the adapter beside it,")
    adapter = Adapter.of(name, order.name, order.beside, digest, rank)
    role = order.alias if order.alias in ROLES else None
    return arguments.shared_contract(agreed, other), adapter, Model(name, other, role)


def size(
    client: MlflowClient,
    agreed: Contract,
    base_config: Mapping[str, Any],
    ranks: Sequence[int],
    order: Order,
    videos: int,
) -> Plan | None:
    """The cards and arguments that fit, None for CPUs; what a log teaches is remembered with the
    model."""
    if order.where.cpu:
        return None
    # The follower's two spare slots count as well.
    slots = [*ranks, *list(ranks[:1]) * (2 if order.where.follow else 0)]
    demand = arguments.demand(agreed, base_config, slots, merged=order.where.merged, videos=videos)
    plan = calibration.plan(
        demand,
        order.gpu,
        cards=order.cards,
        fraction=order.where.fraction,
        log=order.log,
        remembered=order.remembered,
        model=order.name,
        revision=agreed.base_revision,
    )
    if order.log:
        text = calibration.learned_text(agreed.base_revision, plan, demand)
        calibration.remember(client, order.name, plan.gpu, text)
    return plan
