"""Render the vLLM server for a registered version, exactly as its contract says.

Reads: the version that the quality_gate run registered, its contract and its base's config.
Writes: `vllm.yaml` in MLflow and in the output folder; with --apply the objects in a cluster, with
--git a commit in a checkout.

    python steps/deploy_vllm.py --run-id "$(cat outputs/latest/quality-gate/run-id)"
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from loraline.errors import UserError
from loraline.step import not_empty, step
from loraline.tracking import fingerprints, runs, store
from loraline.tracking.tags import ADAPTER_DIGEST, MODEL_NAME, MODEL_VERSION, REASON, RESULT

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from mlflow.entities.model_registry import RegisteredModel

    from loraline.contract import Contract
    from loraline.delivery.placement import Format, Placement
    from loraline.delivery.tasks import Need
    from loraline.serving.arguments import Adapter
    from loraline.serving.sizing import Plan

MANIFEST = "vllm.yaml"
CPU = "cpu"
DEPLOYED = "loraline.deployed"
"""Tag of a training run: the version that --apply has brought to a cluster, where it is ready."""

FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@dataclass(frozen=True)
class Options:
    """What the command line says of the server."""

    gpu: str | None
    """Card to size for, or CPU; None for the smallest card that fits."""

    gpus: int
    fraction: float
    calibrate: Path | None
    replicas: int
    prometheus: str | None
    monitor: bool
    namespace: str | None
    base_volume: str | None
    server_image: str | None
    beside: str | None
    follow: str | None
    although_rejected: bool
    merged: bool
    format: Format
    tasks: str | None
    """`beside` is a second server with the base alone, `instead` this one with wider limits."""

    task: tuple[str, ...]
    tasks_dir: Path | None

    def check(self) -> None:
        """Raise a UserError for options that say nothing without another one."""
        names_card = self.gpu not in (None, CPU)
        if self.calibrate and not names_card:
            raise UserError("--calibrate needs --gpu to say which card the log is of")
        if (self.gpus, self.fraction) != (1, 1.0) and not names_card:
            raise UserError("--gpus and --gpu-fraction need --gpu to say of which card")
        if self.prometheus and not self.namespace:
            raise UserError(
                "--prometheus needs --namespace: KEDA asks it for this server's requests, and "
                "another namespace may have a server of that name"
            )
        if self.tasks is None and (self.task or self.tasks_dir):
            raise UserError("--task and --tasks-dir need --tasks to say which server is for them")
        if self.tasks and self.format != "deployment":
            raise UserError(f"--tasks is of --format deployment, not of {self.format}")

    def placement(self) -> Placement:
        from loraline.delivery.placement import Placement

        return Placement(
            format=self.format,
            namespace=self.namespace,
            cpu=self.gpu == CPU,
            fraction=self.fraction,
            on_card=self.gpu not in (None, CPU),
            replicas=self.replicas,
            prometheus=self.prometheus,
            monitor=self.monitor,
            base_volume=self.base_volume,
            merged=self.merged,
            follow=self.follow,
            server_image=self.server_image,
        )


@step
@click.option("--run-id", required=True, help="MLflow run of quality_gate.")
@click.option("--gpu", callback=not_empty, help="Card to size for, or cpu.  [default: smallest]")
@click.option(
    "--gpus",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Most cards of one node to use.",
)
@click.option(
    "--gpu-fraction", "fraction", default=1.0, show_default=True, help="Share of one card to use."
)
@click.option("--calibrate", type=FILE, help="Log of a server on --gpu to learn from.")
@click.option("--replicas", default=1, show_default=True, help="Most replicas.")
@click.option("--prometheus", callback=not_empty, help="Prometheus that KEDA scales by.")
@click.option(
    "--service-monitor", "monitor", is_flag=True, help="Let the Prometheus operator scrape it."
)
@click.option("--namespace", callback=not_empty, help="Namespace.  [default: the context's]")
@click.option("--base-volume", callback=not_empty, help="Claim with the base in its folder.")
@click.option("--server-image", callback=not_empty, help="Image of vLLM, pinned by digest.")
@click.option("--beside", callback=not_empty, metavar="ALIAS", help="Serve this version as well.")
@click.option("--follow", callback=not_empty, metavar="ALIAS", help="Load its later versions too.")
@click.option(
    "--tasks",
    type=click.Choice(["beside", "instead"]),
    help="Limits that fit the gateway's tasks: of a second server, or of this one.",
)
@click.option("--task", multiple=True, help="Only this task; may be repeated.  [default: all]")
@click.option(
    "--tasks-dir",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder with task files of your own.",
)
@click.option("--merged", is_flag=True, help="Serve the base with the adapter merged into it.")
@click.option(
    "--format",
    type=click.Choice(["deployment", "kserve", "production-stack"]),
    default="deployment",
    show_default=True,
    help="Plain objects, KServe's InferenceService, or values for vLLM's Helm chart.",
)
@click.option(
    "--although-rejected", is_flag=True, help="Serve a version that a later gate rejected."
)
@click.option("--apply", is_flag=True, help="Apply to the current context and wait until ready.")
@click.option("--git", type=click.Path(path_type=Path), help="Folder of a checkout to commit to.")
def deploy_vllm(
    run_id: str, out_dir: Path, force: bool, apply: bool, git: Path | None, **flags: Any
) -> None:
    """Render the Kubernetes manifest of a vLLM server for the version that passed the gate."""
    from loraline.delivery import checkout, cluster
    from loraline.serving import names, versions

    options = Options(**flags)
    client = store.connect()
    gate_run = runs.upstream_run(client, run_id, "quality_gate")
    train_run = runs.ancestor(client, gate_run, "train_qlora")
    if options.gpu is None:
        recipe = runs.profile(client, train_run)
        merged = options.merged or recipe.export == "merged"
        if versions.needs_cpu(recipe.serve_dtype, merged=merged):
            options = replace(options, gpu=CPU)
    options.check()
    order = Order.of(client, gate_run, options)
    fingerprint = fingerprints.fingerprint(__file__, {"upstream": run_id, **asdict(order)})
    done = None if force else runs.finished_run(client, "deploy_vllm", fingerprint)
    if done is None:
        import mlflow

        with runs.open_run(
            "deploy_vllm",
            name=f"deploy {order.name} v{order.version}",
            fingerprint=fingerprint,
            upstream=gate_run,
            parent=train_run,
            tags={
                MODEL_NAME: order.name,
                MODEL_VERSION: order.version,
                ADAPTER_DIGEST: order.digest,
            },
        ) as run:
            with runs.adapter(train_run, gate_run) as adapter:
                text, plan = manifest(client, adapter, order, click.echo)
            mlflow.log_text(text, MANIFEST)
            mlflow.log_params({f"sized.{k}": v for k, v in vars(plan).items()} if plan else {})
    deployed = (done or run).info.run_id
    with runs.artifacts(client, deployed, MANIFEST) as rendered:
        out_dir.mkdir(parents=True, exist_ok=True)
        (out_dir / MANIFEST).write_bytes(rendered.read_bytes())
    cpus = ", for CPUs" if order.where.cpu else ""
    click.echo(f"manifest {out_dir / MANIFEST} ({'reused' if done else 'rendered'}{cpus})")
    if git:
        click.echo(checkout.commit(out_dir / MANIFEST, git))
    for doubt in cluster.doubts(order.image, order.fetch, order.where.serving_image):
        click.echo(f"warning: {doubt}", err=True)
    if apply:
        cluster.apply(out_dir / MANIFEST, click.echo)
        version = names.model_uri(order.name, order.version)
        client.set_tag(train_run.info.run_id, DEPLOYED, version)
    runs.hand_over(out_dir, deployed)


@dataclass(frozen=True)
class Order:
    """What is to be served and where: everything that the manifest's bytes depend on."""

    name: str
    version: str
    digest: str
    """Of the adapter's files, as the gate judged them."""

    alias: str | None
    beside: str | None
    """Another version of the same model: the one with this alias."""

    where: Placement
    gpu: str | None
    cards: int
    log: str
    """What a server on that card printed at its start."""

    remembered: dict[str, str]
    """What logs of this model have taught, by card: the base's revision and GiB."""

    image: str
    fetch: dict[str, str]
    tasks: str | None
    needs: tuple[Need, ...]

    @classmethod
    def of(cls, client: MlflowClient, gate_run: Run, options: Options) -> Order:
        from gateway import tasks
        from loraline.serving import calibration
        from loraline.tracking.settings import Settings

        tags = gate_run.data.tags
        if tags[RESULT] != "passed":
            raise UserError(
                f"--run-id {gate_run.info.run_id} rejected its candidate "
                f"({tags[REASON]}): nothing to deploy"
            )
        name, version = tags[MODEL_NAME], tags[MODEL_VERSION]
        alias, log = options.beside, options.calibrate
        model = registered(client, name, version)
        refuse_rejected(client, gate_run, options)
        if alias and str(model.aliases.get(alias, version)) == version:
            raise UserError(f"--beside {alias}: no other version of {name} has this alias")
        if options.follow and options.follow not in model.aliases:
            has = ", ".join(sorted(model.aliases)) or "none"
            raise UserError(f"--follow {options.follow}: {name} has no such alias; it has {has}")
        return cls(
            name=name,
            version=version,
            digest=tags.get(ADAPTER_DIGEST, ""),
            alias=alias,
            beside=str(model.aliases[alias]) if alias else None,
            where=options.placement(),
            gpu=options.gpu,
            cards=options.gpus,
            log=log.read_text(errors="replace") if log else "",
            remembered=calibration.remembered(model),
            image=Settings().image or "localhost/loraline:dev",
            fetch=store.pod_environment(),
            tasks=options.tasks,
            needs=tasks.needs(options.task, options.tasks_dir) if options.tasks else (),
        )


def registered(client: MlflowClient, name: str, version: str) -> RegisteredModel:
    """The registered model, if it and the version are still there."""
    from mlflow.exceptions import MlflowException

    try:
        client.get_model_version(name, version)
        return client.get_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        raise UserError(
            f"version {version} of registered model {name!r}, which the gate registered, was "
            "deleted: run quality_gate again with --force"
        ) from error


def refuse_rejected(client: MlflowClient, gate_run: Run, options: Options) -> None:
    """Say that a later gate has rejected the version; refuse it unless a person has promoted it by
    this very gate run, or the command line asks for it."""
    from loraline.tracking import registry

    name, version = gate_run.data.tags[MODEL_NAME], gate_run.data.tags[MODEL_VERSION]
    found = client.get_model_version(name, version)
    reason = registry.rejection(client, found)
    if reason is None and found.tags.get(RESULT) == "failed":
        reason = found.tags.get(REASON)
    if reason is None:
        return
    told = f"version {version} of {name!r} was rejected by a later gate: {reason}"
    promoted = found.tags.get(registry.PROMOTED_GATE) == gate_run.info.run_id
    if not (promoted or options.although_rejected):
        raise UserError(f"{told}; to serve it all the same, add --although-rejected")
    click.echo(f"warning: {told}", err=True)


def manifest(
    client: MlflowClient, adapter: Path, order: Order, tell: Callable[[str], None]
) -> tuple[str, Plan | None]:
    """The server's manifest as YAML, and the card that it is sized for, if any."""
    from loraline import contract
    from loraline.delivery import kube, manifest, tasks
    from loraline.serving import preflight, sizing, versions

    agreed = contract.read(adapter)
    preflight.check(
        adapter,
        agreed,
        f"{order.name} version {order.version}",
        vllm=versions.version_of(order.image),
    )
    if agreed.export == "merged":
        order = replace(order, where=replace(order.where, merged=True))
    base_config = preflight.read_json(adapter / preflight.BASE_CONFIG) or {}
    ranks = [preflight.highest_rank(adapter)]
    beside = []
    if order.beside:
        agreed, other = join(agreed, order)
        beside, ranks = [other], [*ranks, other.rank]
    videos, otherwise = 0, ""
    measured, wide = agreed, tasks.widened(agreed, order.needs) if order.tasks else agreed
    if order.tasks == "instead":
        agreed, videos = wide, tasks.videos(order.needs)
        otherwise = tasks.told(measured, wide, videos)
    sizing.check_length(wide.max_model_len, base_config)
    plan = None if order.where.cpu else size(client, agreed, base_config, ranks, order, videos)
    objects = manifest.render(
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
    if otherwise:
        tell(f"the adapter was measured with other limits: {otherwise}")
    if order.tasks == "beside":
        videos = tasks.videos(order.needs)
        card = None if order.where.cpu else size(client, wide, base_config, [], order, videos)
        second = manifest.render_base(
            wide,
            model_name=order.name,
            image=order.image,
            videos=videos,
            base_config=base_config,
            plan=card,
            placement=order.where,
        )
        objects += second
        tell(f"tasks are served by {second[0]['metadata']['name']}, which has no adapter")
    return kube.to_yaml(objects), plan


def join(agreed: Contract, order: Order) -> tuple[Contract, Adapter]:
    """The contract that serves both versions, and the other version; it must fit the same base."""
    from loraline import contract
    from loraline.serving import arguments, names, preflight, versions

    assert order.beside is not None
    with runs.logged_adapter(f"{order.name}/{order.beside}") as folder:
        digest = contract.folder_digest(folder)
        other, rank = contract.read(folder), preflight.highest_rank(folder)
        preflight.check(
            folder,
            other,
            names.model_uri(order.name, order.beside),
            vllm=versions.version_of(order.image),
        )
    name = f"{names.served_name(order.name)[:38].strip('-')}-{order.alias}"
    names.checked_name(name, "name of the adapter beside it,")
    adapter = arguments.Adapter.of(name, order.name, order.beside, digest, rank)
    return arguments.together(agreed, other), adapter


def size(
    client: MlflowClient,
    agreed: Contract,
    base_config: dict[str, Any],
    ranks: list[int],
    order: Order,
    videos: int = 0,
) -> Plan:
    """The cards and arguments that fit; what a log teaches is remembered with the model."""
    from loraline.serving import arguments, calibration

    # The follower's two spare slots count as well.
    ranks = ranks + ranks[:1] * (2 if order.where.follow else 0)
    plan = calibration.plan(
        arguments.demand(agreed, base_config, ranks, merged=order.where.merged, videos=videos),
        order.gpu,
        cards=order.cards,
        fraction=order.where.fraction,
        log=order.log,
        told=order.remembered,
        model=order.name,
        revision=agreed.base_revision,
    )
    if order.log:
        calibration.remember(client, order.name, agreed.base_revision, plan)
    return plan


if __name__ == "__main__":
    deploy_vllm()
