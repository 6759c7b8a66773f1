"""The MLflow store: its address, and whether it answers."""

from __future__ import annotations

import logging
import os
import re
import socket
from collections.abc import Iterator
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from loraline.addresses import redacted, scrubbed
from loraline.errors import TryAgain, UserError, first_line
from loraline.process import full_disk
from loraline.tracking import sqlite_store, views

if TYPE_CHECKING:
    from mlflow import MlflowClient

CONNECT_TIMEOUT = 5.0
"""Seconds to wait for the tracking server's port before the step ends with "try again"."""


def uri() -> str:
    """The tracking URI that this process uses, without credentials."""
    from loraline.tracking.settings import Settings

    return redacted(Settings().store_uri())


def pod_environment() -> dict[str, str]:
    """Where a pod finds this process's MLflow and its artifacts; never a credential.

    A store on this machine's disk is of no use to a pod and stays out.
    """
    from loraline.tracking.settings import Settings

    settings = Settings()
    variables = {"MLFLOW_S3_ENDPOINT_URL": redacted(settings.s3_endpoint)}
    if settings.tracking_uri.startswith(("http://", "https://")):
        variables["MLFLOW_TRACKING_URI"] = uri()
    return {key: value for key, value in variables.items() if value}


def connect(*, read_only: bool = False) -> MlflowClient:
    """Open the store and select the experiment, which is made where it is missing.

    With `read_only` it is not made: a server's pod reads versions, of whatever experiment, and may
    have no right to write.
    Raises TryAgain when the server does not answer and UserError when the URI cannot be used.
    """
    from loraline.tracking.settings import Settings

    settings = Settings()
    # MLflow's own defaults retry for many minutes, which hides an absent server from its user.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
    # Its password is for the server that was named, and a POST would arrive as a GET.
    os.environ.setdefault("MLFLOW_ALLOW_HTTP_REDIRECTS", "false")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    expect_answer(settings.store_uri())

    import mlflow
    from mlflow.exceptions import MlflowException

    # New tables are not news to the step's user, and an error is raised as well as logged.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    logging.getLogger("alembic").setLevel(logging.CRITICAL)
    artifacts = artifact_location(settings.store_uri())
    sqlite_store.make_ready(settings.store_uri(), artifacts or "")
    mlflow.set_tracking_uri(settings.store_uri())
    try:
        client = mlflow.MlflowClient()
        if client.get_experiment_by_name(settings.experiment) is None:
            if read_only:
                return client
            create_experiment(client, settings.experiment, artifacts)
        mlflow.set_experiment(settings.experiment)
    except Exception as error:
        reason = scrubbed(first_line(error))
        file = sqlite_store.file_of(settings.store_uri())
        if file is not None and "out-of-date database schema" in reason:
            sentence = sqlite_store.table_problem(file, settings.store_uri(), refused=True)
            raise UserError(sentence or reason) from error
        if full_disk.sentence(error, uri()):
            raise
        if sentence := refusal(error):
            raise UserError(sentence) from error
        if isinstance(error, ModuleNotFoundError):
            raise UserError(
                f"MLflow at {uri()} needs the package {error.name!r}, which is not installed; "
                "postgresql:// and sqlite:/// need none"
            ) from error
        if is_outage(error):
            raise TryAgain(f"MLflow at {uri()} does not answer: {reason}") from error
        if isinstance(error, MlflowException | ValueError) or is_from_sqlalchemy(error):
            raise UserError(f"MLflow at {uri()} cannot be used: {reason}") from error
        raise
    return client


def create_experiment(client: MlflowClient, name: str, artifacts: str | None) -> None:
    """Make the experiment, unless another process has made it meanwhile.

    A SQL store would otherwise freeze "./mlruns" of whoever came first as its artifact location.
    """
    from mlflow.exceptions import MlflowException

    try:
        client.create_experiment(name, artifact_location=artifacts, tags=views.tags())
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def expect_answer(store_uri: str) -> None:
    """Raise TryAgain if no server listens at the tracking address, UserError for a bad address."""
    try:
        parts = urlsplit(store_uri)
        # The property raises as well, for what is no number.
        port = parts.port if parts.scheme in ("http", "https") else None
    except ValueError as error:
        raise UserError(
            f"MLFLOW_TRACKING_URI {uri()!r} is not accepted: its port is no number; use http(s)://HOST:PORT"
        ) from error
    if parts.scheme == "sqlite":
        return
    if parts.scheme not in ("http", "https"):
        if parts.scheme.partition("+")[0] in ("postgresql", "mysql", "mssql"):
            return
        raise UserError(
            f"MLFLOW_TRACKING_URI {uri()!r} is not accepted: use http(s)://, sqlite:/// or another "
            "SQL store (file stores are closed by MLflow 3)"
        )
    if not parts.hostname:
        raise UserError(f"MLFLOW_TRACKING_URI {uri()!r} names no host: use http(s)://HOST:PORT")
    if behind_proxy(parts.scheme, parts.hostname):
        return
    port = port or (443 if parts.scheme == "https" else 80)
    try:
        socket.create_connection((parts.hostname, port), CONNECT_TIMEOUT).close()
    except OSError as error:
        raise TryAgain(
            f"MLflow at {uri()} does not answer ({error.strerror or error}); "
            "start it or set MLFLOW_TRACKING_URI"
        ) from error


def behind_proxy(scheme: str, host: str) -> bool:
    """Whether requests go through a proxy, so that the host need not be reached from here."""
    from urllib.request import getproxies, proxy_bypass

    proxies = getproxies()
    return bool(proxies.get(scheme) or proxies.get("all")) and not proxy_bypass(host)


def artifact_location(store_uri: str) -> str | None:
    """Absolute artifact folder for a local store; a server decides for itself."""
    from loraline.tracking.settings import local_store

    if not store_uri.startswith("sqlite"):
        return None
    return (local_store() / "artifacts").as_uri()


def is_from_sqlalchemy(error: Exception) -> bool:
    return type(error).__module__.startswith("sqlalchemy")


def is_outage(error: BaseException) -> bool:
    """Whether an exception means that the tracking server or its store went away."""
    signs = (
        "requests.exceptions.Connection",
        "requests.exceptions.Timeout",
        "urllib3.exceptions",
        "botocore.exceptions.EndpointConnection",
        "psycopg.OperationalError",
        "psycopg2.OperationalError",
    )
    for cause in causes(error):
        name = f"{type(cause).__module__}.{type(cause).__name__}"
        if name.startswith(signs) or any(sign in str(cause) for sign in PASSING):
            return True
        answer = STORAGE_ANSWER.search(str(cause))
        if answer and answer["code"] in STORAGE_PASSING:
            return True
    return is_locked(error)


PASSING = (
    "Max retries exceeded",
    "database is locked",
    # botocore, of whose errors MLflow keeps the words alone when it downloads.
    "Could not connect to the endpoint URL",
    "Connection was closed before we received a valid response",
    "timeout on endpoint URL",
)
"""Parts of messages about failures that pass by themselves."""

STORAGE_ANSWER = re.compile(
    r"An error occurred \((?P<code>[\w.]*)\) when calling the (?P<call>\w+)"
)
"""botocore's message about an error that S3 answers."""

STORAGE_PASSING = (
    *("500", "502", "503", "504", "429"),
    *("InternalError", "RequestTimeout", "ServiceUnavailable", "SlowDown", "Throttling"),
)
"""S3's codes of such failures; botocore gives the status where the body has no code."""


def is_locked(error: BaseException) -> bool:
    """Whether another process holds a SQLite store, here or behind a server, for itself."""
    return any(
        "sqlite3" in f"{type(cause).__module__} {cause}" and "is locked" in str(cause)
        for cause in causes(error)
    )


def refusal(error: BaseException) -> str | None:
    """The message where a store is read-only, an artifact store or a server refuses, a server
    redirects, or the artifacts can only be reached through a server; None for other exceptions."""
    for cause in causes(error):
        answer = STORAGE_ANSWER.search(str(cause))
        if answer and answer["code"] not in STORAGE_PASSING:
            return (
                f"the artifact store of MLflow at {uri()} refused {answer['call']} "
                f"({answer['code'] or 'without a reason'}): look at its bucket and at the AWS_ "
                "variables with its credentials"
            )
    if any("attempt to write a readonly database" in str(cause) for cause in causes(error)):
        return (
            f"MLflow at {uri()} cannot be written (attempt to write a readonly database): let "
            "this user write the file and its folder"
        )
    if any("failed with error code 401" in str(cause) for cause in causes(error)):
        return (
            f"MLflow at {uri()} requires a user: set MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD to those of a user (for steps in a cluster they are keys of "
            "the Secret loraline)"
        )
    if any("failed with error code 403" in str(cause) for cause in causes(error)):
        user = os.environ.get("MLFLOW_TRACKING_USERNAME", "this user")
        return (
            f"MLflow at {uri()} does not allow {user} to do this: ask its administrator for the "
            "permission. If it refuses the host name in its address, add that to its "
            "--allowed-hosts"
        )
    redirects = [REDIRECT.search(str(cause)) for cause in causes(error)]
    if answered := next(filter(None, redirects), None):
        return (
            f"MLflow at {uri()} answers {answered['code']}, a redirect; it is not followed: set "
            "MLFLOW_TRACKING_URI to the server itself"
        )
    if any("an mlflow-artifacts URI was supplied" in str(cause) for cause in causes(error)):
        return (
            f"the experiment in {uri()} was made by an MLflow server, which keeps its files: set "
            "MLFLOW_TRACKING_URI to that server, or MLFLOW_EXPERIMENT_NAME to another name"
        )
    return None


REDIRECT = re.compile(r"failed with error code (?P<code>30[12378])\b")
"""The message of MLflow's client about a redirect that it does not follow."""

UNFIT = re.compile(r"outside the artifact directory|is a named pipe")
"""MLflow's messages about artifacts that are links or not plain files."""


def unfit(name: str, error: Exception) -> str | None:
    """The message for artifacts that MLflow does not copy, such as links; None for other errors."""
    if not UNFIT.search(str(error)):
        return None
    reason = str(error).strip().splitlines()[-1]
    return f"{name} cannot be downloaded, since it holds a link or no plain file: {reason}"


def causes(error: BaseException) -> Iterator[BaseException]:
    """An exception and what was behind it, each once."""
    visited: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in visited:
        visited.add(id(cause))
        yield cause
        cause = cause.__cause__ or cause.__context__
