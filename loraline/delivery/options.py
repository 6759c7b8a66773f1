"""The flags of deploy_vllm: the options of a server, and of gateway and page in front of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from loraline.errors import UserError
from loraline.step import or_none

if TYPE_CHECKING:
    from loraline.delivery.gateway import Gateway
    from loraline.delivery.placement import Format, Placement

CPU = "cpu"
GATEWAY_IMAGE = "localhost/loraline-gateway:dev"
PAGE_IMAGE = "localhost/loraline-page:dev"
Command = TypeVar("Command", bound=Callable[..., Any])


@dataclass(frozen=True)
class GatewayOptions:
    """The command line's options for the gateway and the page."""

    gateway: bool = False
    gateway_image: str | None = None
    gateway_replicas: int | None = None
    gateway_host: str | None = None
    gateway_parent: str | None = None
    gateway_volume: str | None = None
    gateway_redis_port: int | None = None
    gateway_set: tuple[str, ...] = ()
    ui: bool = False
    ui_image: str | None = None
    ui_host: str | None = None
    ui_desk: str | None = None

    def check(self) -> None:
        """Raise a UserError for flags that need another, and for invalid settings."""
        for name, value in vars(self).items():
            flag = f"--{name.replace('_', '-')}"
            if name != "gateway" and value not in (None, (), False) and not self.gateway:
                raise UserError(f"{flag} needs --gateway")
            if name.startswith("ui_") and value is not None and not self.ui:
                raise UserError(f"{flag} needs --ui")
        for word in self.gateway_set:
            if not word.partition("=")[2]:
                raise UserError(f"--gateway-set {word!r} is not NAME=VALUE")

    def front_gateway(self, tasks: Sequence[tuple[str, str]]) -> Gateway | None:
        """The gateway with these task files, name and text; None without --gateway."""
        from loraline.delivery.gateway import Gateway
        from loraline.delivery.page import Page

        if not self.gateway:
            return None
        settings = dict(word.split("=", 1) for word in self.gateway_set)
        page = Page(self.ui_image or PAGE_IMAGE, self.ui_host, self.ui_desk) if self.ui else None
        gateway = Gateway(
            image=self.gateway_image or GATEWAY_IMAGE,
            replicas=self.gateway_replicas or 4,
            host=self.gateway_host,
            parent=self.gateway_parent,
            volume=self.gateway_volume,
            redis_port=self.gateway_redis_port,
            settings=tuple(sorted(settings.items())),
            tasks=tuple(tasks),
            page=page,
        )
        gateway.check()
        return gateway


@dataclass(frozen=True)
class Options:
    """The command line's options for the server."""

    gpu: str | None = None
    """Card to size for, or CPU; None for the smallest card that fits."""

    gpus: int = 1
    fraction: float = 1.0
    calibrate: Path | None = None
    replicas: int = 1
    prometheus: str | None = None
    monitor: bool = False
    namespace: str | None = None
    base_volume: str | None = None
    server_image: str | None = None
    beside: str | None = None
    follow: str | None = None
    although_rejected: bool = False
    merged: bool = False
    format: Format = "deployment"
    tasks: str | None = None
    """`beside` is a second server with the base alone, `instead` this one with wider limits."""

    task: tuple[str, ...] = ()
    tasks_dir: Path | None = None
    front: GatewayOptions = GatewayOptions()

    @classmethod
    def of(cls, flags: dict[str, Any]) -> Options:
        """From the command line's words."""
        front = {name: flags.pop(name) for name in GatewayOptions.__dataclass_fields__}
        return cls(**flags, front=GatewayOptions(**front))

    def check(self) -> None:
        """Raise a UserError for options that have no effect without another option."""
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
        if self.tasks is None and (self.task or (self.tasks_dir and not self.front.gateway)):
            raise UserError("--task and --tasks-dir need --tasks to say which server is for them")
        if self.tasks and self.format != "deployment":
            raise UserError(f"--tasks is of --format deployment, not of {self.format}")
        if self.front.gateway and self.format != "deployment":
            raise UserError(f"--gateway is of --format deployment, not of {self.format}")
        self.front.check()

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


FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)

FLAGS = (
    click.option("--gpu", callback=or_none, help="Card to size for, or cpu.  [default: smallest]"),
    click.option(
        "--gpus",
        type=click.IntRange(min=1),
        default=1,
        show_default=True,
        help="Most cards of one node to use.",
    ),
    click.option(
        "--gpu-fraction",
        "fraction",
        default=1.0,
        show_default=True,
        help="Share of one card to use.",
    ),
    click.option("--calibrate", type=FILE, help="Log of a server on --gpu to learn from."),
    click.option("--replicas", default=1, show_default=True, help="Most replicas."),
    click.option("--prometheus", callback=or_none, help="Prometheus that KEDA scales by."),
    click.option(
        "--service-monitor", "monitor", is_flag=True, help="Let the Prometheus operator scrape it."
    ),
    click.option("--namespace", callback=or_none, help="Namespace.  [default: the context's]"),
    click.option("--base-volume", callback=or_none, help="Claim with the base in its folder."),
    click.option("--server-image", callback=or_none, help="Image of vLLM, pinned by digest."),
    click.option("--beside", callback=or_none, metavar="ALIAS", help="Serve this version as well."),
    click.option(
        "--follow", callback=or_none, metavar="ALIAS", help="Load its later versions too."
    ),
    click.option(
        "--tasks",
        type=click.Choice(["beside", "instead"]),
        help="Limits that fit the gateway's tasks: of a second server, or of this one.",
    ),
    click.option("--task", multiple=True, help="Only this task; may be repeated.  [default: all]"),
    click.option("--tasks-dir", type=FOLDER, help="Folder with task files of your own."),
    click.option(
        "--gateway", is_flag=True, help="Add the gateway; its pods alone then reach the server."
    ),
    click.option("--gateway-image", callback=or_none, help="Image of the gateway."),
    click.option(
        "--gateway-replicas",
        type=click.IntRange(min=2),
        help="Most replicas of the gateway; two are always kept.  [default: 4]",
    ),
    click.option(
        "--gateway-host", callback=or_none, help="Host name of an Ingress to the gateway."
    ),
    click.option(
        "--gateway-parent",
        callback=or_none,
        metavar="NAMESPACE/NAME",
        help="Gateway of the Gateway API: HTTPRoutes for the hosts, not an Ingress.",
    ),
    click.option(
        "--gateway-volume",
        callback=or_none,
        help="Claim for jobs and sessions of all replicas.",
    ),
    click.option(
        "--gateway-redis-port",
        type=click.IntRange(1, 65535),
        help="Port of the Redis that replicas share; its address is in the Secret.",
    ),
    click.option(
        "--gateway-set",
        multiple=True,
        metavar="NAME=VALUE",
        help="A setting of the gateway, such as GATEWAY_RATE=60/minute; may be repeated.",
    ),
    click.option(
        "--ui", is_flag=True, help="Add the page in a browser, a client of the gateway alone."
    ),
    click.option("--ui-image", callback=or_none, help="Image of the page."),
    click.option("--ui-host", callback=or_none, help="Host name of an Ingress to the page."),
    click.option("--ui-desk", callback=or_none, help="Address of the desk, for Review and Train."),
    click.option("--merged", is_flag=True, help="Serve the base with the adapter merged into it."),
    click.option(
        "--format",
        type=click.Choice(["deployment", "kserve", "production-stack"]),
        default="deployment",
        show_default=True,
        help="Plain objects, KServe's InferenceService, or values for vLLM's Helm chart.",
    ),
    click.option(
        "--although-rejected", is_flag=True, help="Serve a version that a later gate rejected."
    ),
)


def server_options(command: Command) -> Command:
    """The command with all flags that describe a server."""
    for flag in reversed(FLAGS):
        command = flag(command)
    return command
