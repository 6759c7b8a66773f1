"""Bring a rendered manifest to where it takes effect: a cluster, or a checkout that one follows."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loraline.errors import TryAgain, UserError

if TYPE_CHECKING:
    from kubernetes.dynamic import DynamicClient

MANAGER = "loraline"
"""Field manager of server-side apply: what it set before and does not set now, it removes."""

SERVER_FIELDS = ("managedFields", "resourceVersion", "uid", "creationTimestamp", "generation")
POLL_SECONDS = 2
FATAL = ("CreateContainerConfigError", "ErrImageNeverPull", "InvalidImageName")

Object = dict[str, Any]
Say = Callable[[str], None]


def commit(manifest: Path, folder: Path) -> str:
    """Put the manifest into a folder of a git checkout and commit it; returns what was done.

    Raises UserError when the folder is in no checkout or git refuses.
    """
    objects = read(manifest)
    if shutil.which("git") is None or not folder.is_dir():
        raise UserError(f"--git {folder}: git is not installed or the folder does not exist")
    target = folder.resolve() / f"{name_of(objects)}.yaml"
    git(folder, "rev-parse", "--show-toplevel")
    target.write_bytes(manifest.read_bytes())
    git(folder, "add", "--", str(target))
    if not git(folder, "status", "--porcelain", "--", str(target)):
        return f"{target} is committed already"
    version = next(
        (
            entry["metadata"]["annotations"]["loraline/registered-version"]
            for entry in objects
            if "metadata" in entry
        ),
        name_of(objects),
    )
    git(folder, "commit", "--quiet", "--message", f"Serve {version}", "--", str(target))
    return f"{target} is in commit {git(folder, 'rev-parse', '--short', 'HEAD')}"


def git(folder: Path, *arguments: str) -> str:
    ended = subprocess.run(
        ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=False
    )
    if ended.returncode:
        reason = (ended.stderr or ended.stdout).strip().splitlines() or ["no reason given"]
        raise UserError(f"--git {folder}: git {arguments[0]} failed: {reason[-1]}")
    return ended.stdout.strip()


def apply(manifest: Path, say: Say) -> None:
    """Apply the objects to the current context's cluster and wait until the server is ready.

    When it does not become ready, what was there before is applied again, or what was made is
    deleted, and a UserError tells the reason. TryAgain when the cluster does not answer.
    """
    from kubernetes.client import ApiException
    from kubernetes.config import ConfigException
    from urllib3.exceptions import HTTPError

    objects = read(manifest)
    deployment = next((each for each in objects if each.get("kind") == "Deployment"), None)
    if deployment is None:
        raise UserError("--apply needs --format deployment; others are applied by their own tools")
    try:
        client, namespace = connect(deployment)
        before = [live(client, each, namespace) for each in objects]
        try:
            for entry in objects:
                put(client, entry, namespace)
            say(f"applied {len(objects)} objects to namespace {namespace}, waiting for the server")
            wait(client, deployment, namespace)
        except (UserError, ApiException, KeyboardInterrupt) as error:
            roll_back(client, objects, before, namespace)
            done = "put back" if any(before) else "deleted"
            reason = error.reason if isinstance(error, ApiException) else error
            if isinstance(error, KeyboardInterrupt):
                raise
            raise UserError(f"{name_of(objects)} was not deployed: {reason}; {done}") from error
    except ConfigException as error:
        raise UserError(f"--apply finds no cluster: {error}") from error
    except ApiException as error:
        raise UserError(f"the cluster refused: {error.status} {error.reason}") from error
    except HTTPError as error:
        raise TryAgain(f"the cluster does not answer: {type(error).__name__}") from error
    say(f"{name_of(objects)} is ready")


def read(manifest: Path) -> list[Object]:
    import yaml

    return [entry for entry in yaml.safe_load_all(manifest.read_text()) if entry]


def name_of(objects: Sequence[Object]) -> str:
    """The name that all objects share; a chart's values have their model's."""
    if "metadata" in objects[0]:
        return str(objects[0]["metadata"]["name"])
    return f"lora-{objects[0]['servingEngineSpec']['modelSpec'][0]['name']}"


def connect(deployment: Object) -> tuple[DynamicClient, str]:
    from kubernetes import client, config
    from kubernetes.dynamic import DynamicClient

    namespace = "default"
    # The library looks at the variable only when it is imported.
    file = os.environ.get("KUBECONFIG")
    try:
        config.load_kube_config(file)
        _, context = config.list_kube_config_contexts(file)
        namespace = context["context"].get("namespace", namespace)
    except config.ConfigException:
        config.load_incluster_config()
    return (
        DynamicClient(client.ApiClient()),
        deployment["metadata"].get("namespace", namespace),
    )


def kind(client: DynamicClient, entry: Object) -> Any:
    from kubernetes.dynamic.exceptions import ResourceNotFoundError

    try:
        return client.resources.get(api_version=entry["apiVersion"], kind=entry["kind"])
    except ResourceNotFoundError as error:
        raise UserError(f"the cluster does not know {entry['kind']}") from error


def live(client: DynamicClient, entry: Object, namespace: str) -> Object | None:
    """The object as the cluster has it, without what the cluster itself writes."""
    from kubernetes.dynamic.exceptions import NotFoundError

    try:
        found = kind(client, entry).get(name=entry["metadata"]["name"], namespace=namespace)
    except NotFoundError:
        return None
    content: Object = found.to_dict()
    content.pop("status", None)
    for field in SERVER_FIELDS:
        content["metadata"].pop(field, None)
    return content


def put(client: DynamicClient, entry: Object, namespace: str) -> None:
    kind(client, entry).server_side_apply(
        body=entry,
        name=entry["metadata"]["name"],
        namespace=namespace,
        field_manager=MANAGER,
        force_conflicts=True,
    )


def wait(client: DynamicClient, deployment: Object, namespace: str) -> None:
    """Return when every pod of the new template is ready; a UserError when that will not be."""
    resource = kind(client, deployment)
    name = deployment["metadata"]["name"]
    deadline = time.monotonic() + deployment["spec"]["progressDeadlineSeconds"]
    while time.monotonic() < deadline:
        found = resource.get(name=name, namespace=namespace).to_dict()
        status = found.get("status", {})
        wanted = found["spec"].get("replicas", 1)
        if (
            status.get("observedGeneration") == found["metadata"]["generation"]
            and status.get("updatedReplicas") == wanted
            and status.get("readyReplicas") == wanted == status.get("replicas")
        ):
            return
        for condition in status.get("conditions", []):
            if condition.get("reason") == "ProgressDeadlineExceeded":
                raise UserError(condition["message"])
        if reason := failure(client, deployment, namespace):
            raise UserError(reason)
        time.sleep(POLL_SECONDS)
    raise UserError("it was not ready in time")


def failure(client: DynamicClient, deployment: Object, namespace: str) -> str | None:
    """What keeps a pod of this template from ever starting, in the words of its container."""
    wanted = deployment["spec"]["template"]["metadata"]["annotations"]
    pods = client.resources.get(api_version="v1", kind="Pod")
    labels = deployment["spec"]["selector"]["matchLabels"]
    selector = ",".join(f"{key}={value}" for key, value in labels.items())
    for pod in pods.get(namespace=namespace, label_selector=selector).to_dict()["items"]:
        if not wanted.items() <= (pod["metadata"].get("annotations") or {}).items():
            continue
        status = pod.get("status", {})
        containers = status.get("initContainerStatuses", []) + status.get("containerStatuses", [])
        for container in containers:
            waiting = container["state"].get("waiting", {})
            ended = container["state"].get("terminated") or container["lastState"].get("terminated")
            if waiting.get("reason") in FATAL:
                return f"{container['name']}: {waiting['message']}"
            # The user's mistake, as all of this project's programs end with it.
            if ended and ended["exitCode"] == 2:
                return f"{container['name']} ended with exit code 2{last_words(pod, container)}"
            if container["restartCount"] >= 3:
                return f"{container['name']} ended {container['restartCount']} times"
    return None


def last_words(pod: Object, container: Object) -> str:
    from kubernetes.client import ApiException, CoreV1Api

    place = (pod["metadata"]["name"], pod["metadata"]["namespace"])
    for previous in (False, True):
        try:
            log = CoreV1Api().read_namespaced_pod_log(
                *place, container=container["name"], tail_lines=1, previous=previous
            )
        except ApiException:
            continue
        if log.strip():
            return f": {log.strip()}"
    return ""


def roll_back(
    client: DynamicClient, objects: Sequence[Object], before: Sequence[Object | None], space: str
) -> None:
    """What was there is applied again, what was not is deleted."""
    from kubernetes.dynamic.exceptions import NotFoundError

    for entry, previous in zip(objects, before, strict=True):
        if previous is not None:
            put(client, previous, space)
            continue
        try:
            kind(client, entry).delete(name=entry["metadata"]["name"], namespace=space)
        except NotFoundError:
            continue
