"""What to serve and where: everything that a manifest's bytes depend on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from loraline.delivery.gateway import Gateway
from loraline.delivery.options import Options
from loraline.delivery.placement import Placement
from loraline.delivery.tasks import Need
from loraline.errors import UserError
from loraline.tracking import store
from loraline.tracking.tags import ADAPTER_DIGEST, MODEL_NAME, MODEL_VERSION, REASON, RESULT

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from mlflow.entities.model_registry import RegisteredModel

Warn = Callable[[str], None]


@dataclass(frozen=True)
class Order:
    """One manifest: a registered version, its server, and the gateway in front of it."""

    name: str
    version: str
    digest: str
    """Digest of the version's files: those that the gate judged, or the champion's that are served
    as they are."""

    alias: str | None
    """Alias of another version of the same model, to be served beside this version."""

    beside: str | None
    """The version that has this alias."""

    beside_digest: str
    """Digest of that version's files, as its gate judged them; empty where there is none."""

    where: Placement
    gpu: str | None
    cards: int
    log: str
    """Log of a server's start on that card."""

    remembered: dict[str, str]
    """Activations learned from logs of this model, by card, as its tags have them."""

    image: str
    fetch: dict[str, str]
    tasks: str | None
    needs: tuple[Need, ...]
    gateway: Gateway | None

    @classmethod
    def of(
        cls,
        client: MlflowClient,
        gate_run: Run,
        options: Options,
        needs: Sequence[Need],
        gateway: Gateway | None,
        warn: Warn,
    ) -> Order:
        """The order of a command line for the version that a gate run passed.

        UserError when there is no such version, or it must not be served.
        """
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
        refuse_rejected(client, gate_run, warn, although_rejected=options.although_rejected)
        if alias and str(model.aliases.get(alias, version)) == version:
            raise UserError(f"--beside {alias}: no other version of {name} has this alias")
        beside = str(model.aliases[alias]) if alias else None
        if options.follow and options.follow not in model.aliases:
            has = ", ".join(sorted(model.aliases)) or "none"
            raise UserError(f"--follow {options.follow}: {name} has no such alias; it has {has}")
        return cls(
            name=name,
            version=version,
            digest=judged_digest(client, gate_run),
            alias=alias,
            beside=beside,
            beside_digest=digest_beside(client, name, beside, f"--beside {alias}"),
            where=options.placement(),
            gpu=options.gpu,
            cards=options.gpus,
            log=log.read_text(errors="replace") if log else "",
            remembered=calibration.remembered(model),
            image=Settings().image or "localhost/loraline:dev",
            fetch=store.pod_environment(),
            tasks=options.tasks,
            needs=tuple(needs),
            gateway=gateway,
        )


def registered(client: MlflowClient, name: str, version: str) -> RegisteredModel:
    """The registered model, if it and the version still exist."""
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


def judged_digest(client: MlflowClient, gate_run: Run) -> str:
    """The digest of the version that a gate run names; UserError unless a gate has judged it.

    The gate run itself has, or it found the champion's adapter trained once more: then the version
    has a gate run of its own, and files of its own in the registry.
    """
    from loraline.tracking import registry

    version = client.get_model_version(
        gate_run.data.tags[MODEL_NAME], gate_run.data.tags[MODEL_VERSION]
    )
    if version.run_id == gate_run.data.tags.get(registry.PARENT):
        registry.verified_gate_run(client, version, gate_run.info.run_id)
    else:
        registry.promoting_gate_run_of(client, version)
    return version.tags.get(ADAPTER_DIGEST, "")


def digest_beside(client: MlflowClient, name: str, version: str | None, flag: str) -> str:
    """The digest that a gate judged a version by, which an alias beside the ordered one names.

    UserError unless a gate passed that version. A later rejection counts as well, unless a person
    has promoted the version by that gate run.
    """
    from loraline.tracking import registry

    if version is None:
        return ""
    entry = client.get_model_version(name, version)
    try:
        registry.promoting_gate_run_of(client, entry)
    except UserError as error:
        raise UserError(f"{flag}: {error}") from error
    return entry.tags.get(ADAPTER_DIGEST, "")


def refuse_rejected(
    client: MlflowClient, gate_run: Run, warn: Warn, *, although_rejected: bool
) -> None:
    """Warn that a later gate has rejected the version; refuse it unless a person has promoted it by
    this very gate run, or the command line asks for it."""
    from loraline.tracking import registry

    name, version = gate_run.data.tags[MODEL_NAME], gate_run.data.tags[MODEL_VERSION]
    judged = client.get_model_version(name, version)
    reason = registry.rejection(client, judged)
    if reason is None and judged.tags.get(RESULT) == "failed":
        reason = judged.tags.get(REASON)
    if reason is None:
        return
    sentence = f"version {version} of {name!r} was rejected by a later gate: {reason}"
    promoted = judged.tags.get(registry.PROMOTED_GATE) == gate_run.info.run_id
    if not (promoted or although_rejected):
        raise UserError(f"{sentence}; to serve it anyway, add --although-rejected")
    warn(sentence)
