"""Apply a rendered manifest to a cluster, wait until it is ready, and roll back if it is not."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loraline.delivery.doubts import NO_STORE
from loraline.delivery.kube import Object, name_of, read
from loraline.delivery.pods import failure, waits_for
from loraline.errors import TryAgain, UserError

if TYPE_CHECKING:
    from kubernetes.client import ApiException
    from kubernetes.dynamic import DynamicClient
    from urllib3.exceptions import HTTPError

MANAGER = "loraline"
"""Field manager of server-side apply: a field that it set before and omits now is removed."""

SERVER_FIELDS = ("managedFields", "resourceVersion", "uid", "creationTimestamp", "generation")
POLL_SECONDS = 2
UNPULLED = ("ErrImagePull", "ImagePullBackOff")
PULL_SECONDS = 120
"""How long an image may be refused before it counts as one that does not exist."""

OWN_CONFIG = Path("~/.kube/config").expanduser()
MISREAD = (TypeError, AttributeError, LookupError)
"""The client library's exceptions for an invalid kubeconfig."""

Say = Callable[[str], None]


class Replaced(UserError):
    """Somebody else has applied another manifest of the same name meanwhile; theirs is left."""


def apply(manifest: Path, say: Say) -> None:
    """Apply the objects to the current context's cluster and wait until the server is ready.

    If it does not become ready, or this process is stopped, what was there before is applied
    again and what was made is deleted, but for a claim, which holds what was downloaded. UserError
    says the reason; TryAgain when the cluster does not answer. What somebody else has applied
    meanwhile is left as it is, and Replaced says so.
    """
    if find_spec("kubernetes") is None:
        raise UserError(
            "--apply needs the Kubernetes client, which is not installed: pip install '.[cluster]'"
        )
    from kubernetes.client import ApiException
    from urllib3.exceptions import HTTPError

    objects = read(manifest)
    deployments = [each for each in objects if each.get("kind") == "Deployment"]
    if not deployments:
        raise UserError("--apply needs --format deployment; others are applied by their own tools")
    name = name_of(objects)
    try:
        client, namespace = connect(deployments[0])
        if not knows_store(deployments[0]):
            raise UserError(f"--apply: {NO_STORE}")
        check_secrets(deployments, lambda each: live(client, each, namespace), say)
        warn_of_leftovers(objects, lambda each: live(client, each, namespace), say)
        before = [live(client, each, namespace) for each in objects]
        reconcile_claims(objects, before)
        changed: list[tuple[Object, Object | None]] = []
        try:
            for entry, previous in zip(objects, before, strict=True):
                apply_object(client, entry, namespace)
                changed.append((entry, previous))
            say(f"applied {len(objects)} objects to namespace {namespace}, waiting for the server")
            for deployment in deployments:
                wait(client, deployment, namespace, say)
        except Replaced:
            raise
        except BaseException as error:
            rollback = roll_back(client, changed, namespace)
            if isinstance(error, ApiException):
                raise refused(error, f"{name} was not deployed", rollback) from error
            if isinstance(error, UserError):
                raise UserError(f"{name} was not deployed: {error}; {rollback}") from error
            say(f"{name} was not deployed; {rollback}")
            raise
    except ApiException as error:
        raise refused(error, "the cluster refused") from error
    except HTTPError as error:
        raise unreachable(error) from error
    say(f"{name} is ready")


def check_secrets(
    deployments: Sequence[Object], lookup: Callable[[Object], Object | None], say: Say
) -> None:
    """Raise a UserError for a Secret that pods mount and that does not exist: they would wait for
    it in silence. Warn of a missing optional one that init containers take credentials from."""
    for deployment in deployments:
        pod = deployment["spec"]["template"]["spec"]
        for volume in pod.get("volumes", []):
            if "secret" in volume and is_absent(name := volume["secret"]["secretName"], lookup):
                files = " ".join(f"--from-file={item['key']}" for item in volume["secret"]["items"])
                raise UserError(
                    f"--apply: the Secret {name} of {deployment['metadata']['name']} does not "
                    f"exist; make it: kubectl create secret generic {name} {files}"
                )
        variables = [each for init in pod.get("initContainers", []) for each in init["env"]]
        sources = [each["valueFrom"]["secretKeyRef"] for each in variables if "valueFrom" in each]
        for name in dict.fromkeys(source["name"] for source in sources if source.get("optional")):
            if is_absent(name, lookup):
                keys = ", ".join(dict.fromkeys(s["key"] for s in sources if s["name"] == name))
                say(
                    f"warning: there is no Secret {name} in this namespace, so that its pods fetch "
                    f"without {keys}; where MLflow or its artifacts ask for one, make it there"
                )


def warn_of_leftovers(
    objects: Sequence[Object], lookup: Callable[[Object], Object | None], say: Say
) -> None:
    """Warn of what an earlier manifest of this name brought and this one does not have: nobody
    removes it. An old gateway would ask the new version with the old one's prompt."""
    from kubernetes.client import ApiException

    name = name_of(objects)
    ours = {(each["kind"], each["metadata"]["name"]) for each in objects}
    optional = [
        ("apps/v1", "Deployment", f"{name}-{part}") for part in ("gateway", "page", "tasks")
    ]
    optional.append(("autoscaling/v2", "HorizontalPodAutoscaler", name))
    for version, word, other in optional:
        entry = {"apiVersion": version, "kind": word, "metadata": {"name": other}}
        # Who may not read it is not stopped.
        with suppress(ApiException):
            if (word, other) not in ours and lookup(entry) is not None:
                say(
                    f"warning: the {word} {other} of an earlier manifest stays as it is, and this "
                    "manifest has none; delete it, or deploy with the options that it came from"
                )


def is_absent(secret: str, lookup: Callable[[Object], Object | None]) -> bool:
    """Whether a Secret does not exist; False where this user may not read Secrets."""
    from kubernetes.client import ApiException

    try:
        return lookup({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": secret}}) is None
    except ApiException as error:
        if error.status != 403:
            raise
        return False


def reconcile_claims(objects: Sequence[Object], before: Sequence[Object | None]) -> None:
    """Keep the size of an existing claim that is larger than needed: Kubernetes shrinks none.

    Raises UserError where a claim would have to change its access modes.
    """
    from kubernetes.utils.quantity import parse_quantity

    for entry, previous in zip(objects, before, strict=True):
        if entry["kind"] != "PersistentVolumeClaim" or previous is None:
            continue
        needed_modes, modes = (", ".join(each["spec"]["accessModes"]) for each in (entry, previous))
        if needed_modes != modes:
            name = entry["metadata"]["name"]
            raise UserError(
                f"--apply: the claim {name} is {modes}, this number of replicas needs "
                f"{needed_modes}, and Kubernetes changes neither; serve from a claim of yours with "
                f"--base-volume, or delete the Deployment and the claim {name}, and the base is "
                "downloaded again"
            )
        needed, size = (each["spec"]["resources"]["requests"] for each in (entry, previous))
        if parse_quantity(size["storage"]) > parse_quantity(needed["storage"]):
            needed["storage"] = size["storage"]


def knows_store(deployment: Object) -> bool:
    """Whether all init containers, if there are any, have the address of an MLflow server."""
    fetching = deployment["spec"]["template"]["spec"].get("initContainers", [])
    variables = (variable["name"] for each in fetching for variable in each.get("env", []))
    return not fetching or "MLFLOW_TRACKING_URI" in variables


def refused(error: ApiException, problem: str, note: str = "") -> UserError | TryAgain:
    """The cluster's message; TryAgain for a server's error and for too many requests (429)."""
    try:
        reason = json.loads(error.body or "")["message"]
    except (ValueError, LookupError, TypeError):
        reason = f"{error.status} {error.reason}"
    sentence = "; ".join(filter(None, (f"{problem}: {reason}", note)))
    return (TryAgain if error.status == 429 or error.status >= 500 else UserError)(sentence)


def unreachable(error: HTTPError) -> UserError | TryAgain:
    """TryAgain if nobody answers; UserError for credentials that the cluster refuses."""
    from kubernetes.client import Configuration
    from urllib3.exceptions import SSLError

    host = Configuration.get_default_copy().host
    cause = getattr(error, "reason", None) or error
    if isinstance(cause, SSLError):
        return UserError(f"the cluster at {host} does not take the kubeconfig's keys: {cause}")
    return TryAgain(f"the cluster at {host} does not answer: {str(cause).rpartition(': ')[2]}")


POD_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
"""Where a pod finds the namespace of its service account."""


def connect(deployment: Object) -> tuple[DynamicClient, str]:
    """A client of the cluster, and the namespace of the objects; UserError without a kubeconfig."""
    from kubernetes import client, config
    from kubernetes.config import ConfigException
    from kubernetes.dynamic import DynamicClient
    from yaml import YAMLError

    namespace = "default"
    # The library looks at the variable only when it is imported.
    file = os.environ.get("KUBECONFIG")
    try:
        if not (file or OWN_CONFIG.exists()) and "KUBERNETES_SERVICE_HOST" in os.environ:
            config.load_incluster_config()
            if POD_NAMESPACE.is_file():
                namespace = POD_NAMESPACE.read_text().strip()
        else:
            config.load_kube_config(file)
            _, context = config.list_kube_config_contexts(file)
            namespace = context["context"].get("namespace", namespace)
    except (ConfigException, YAMLError, OSError, ValueError, *MISREAD) as error:
        reason = " ".join(str(error).split())
        place = file or OWN_CONFIG
        raise UserError(f"--apply finds no cluster in kubeconfig {place}: {reason}") from error
    return (
        DynamicClient(client.ApiClient()),
        deployment["metadata"].get("namespace", namespace),
    )


def resource_type(client: DynamicClient, entry: Object) -> Any:
    from kubernetes.dynamic.exceptions import ResourceNotFoundError

    try:
        return client.resources.get(api_version=entry["apiVersion"], kind=entry["kind"])
    except ResourceNotFoundError as error:
        raise UserError(f"the cluster does not know {entry['kind']}") from error


def live(client: DynamicClient, entry: Object, namespace: str) -> Object | None:
    """The object as the cluster has it, without the fields that the cluster writes."""
    from kubernetes.dynamic.exceptions import NotFoundError

    try:
        resource = resource_type(client, entry).get(
            name=entry["metadata"]["name"], namespace=namespace
        )
    except NotFoundError:
        return None
    content: Object = resource.to_dict()
    content.pop("status", None)
    for field in SERVER_FIELDS:
        content["metadata"].pop(field, None)
    return content


def apply_object(client: DynamicClient, entry: Object, namespace: str) -> None:
    resource_type(client, entry).server_side_apply(
        body=entry,
        name=entry["metadata"]["name"],
        namespace=namespace,
        field_manager=MANAGER,
        force_conflicts=True,
    )


def wait(client: DynamicClient, deployment: Object, namespace: str, say: Say) -> None:
    """Return when every pod of the new template is ready; UserError if that cannot happen,
    Replaced if the Deployment has another template by now.

    Each reason for waiting is printed once.
    """
    resource = resource_type(client, deployment)
    name = deployment["metadata"]["name"]
    deadline = time.monotonic() + deployment["spec"]["progressDeadlineSeconds"]
    unpulled: float | None = None
    reported: set[str] = set()
    while time.monotonic() < deadline:
        current = resource.get(name=name, namespace=namespace).to_dict()
        check_ours(deployment, current)
        status = current.get("status", {})
        replicas = current["spec"].get("replicas", 1)
        if (
            status.get("observedGeneration") == current["metadata"]["generation"]
            and status.get("updatedReplicas") == replicas
            and status.get("readyReplicas") == replicas == status.get("replicas")
        ):
            return
        for condition in status.get("conditions", []):
            if condition.get("reason") == "ProgressDeadlineExceeded":
                raise UserError(condition["message"])
        pods = pods_of(client, deployment, namespace)
        for pod in pods:
            if reason := failure(pod):
                raise UserError(reason)
        waiting = [reason for pod in pods for reason in waits_for(pod)]
        for reason in waiting:
            if reason not in reported:
                say(f"waiting: {reason}")
                reported.add(reason)
        # A registry may be down for a moment; a wrong name stays wrong.
        pulls = [reason for reason in waiting if any(word in reason for word in UNPULLED)]
        unpulled = (unpulled or time.monotonic()) if pulls else None
        if unpulled is not None and time.monotonic() - unpulled > PULL_SECONDS:
            raise UserError(pulls[0])
        time.sleep(POLL_SECONDS)
    raise UserError("it was not ready in time")


def check_ours(deployment: Object, current: Object) -> None:
    """Raise Replaced if a Deployment in the cluster has not the template that was applied."""
    expected, actual = (
        each["spec"]["template"]["metadata"].get("annotations") or {}
        for each in (deployment, current)
    )
    if not expected.items() <= actual.items():
        version = actual.get("loraline/registered-version", "something else")
        raise Replaced(
            f"{deployment['metadata']['name']} was applied by somebody else meanwhile, and is for "
            f"{version} now; that is left as it is"
        )


def pods_of(client: DynamicClient, deployment: Object, namespace: str) -> list[Object]:
    """The pods of this template, not those of the previous template."""
    annotations = deployment["spec"]["template"]["metadata"]["annotations"]
    labels = deployment["spec"]["selector"]["matchLabels"]
    selector = ",".join(f"{key}={value}" for key, value in labels.items())
    pods = client.resources.get(api_version="v1", kind="Pod")
    matching = pods.get(namespace=namespace, label_selector=selector).to_dict()["items"]
    return [
        pod
        for pod in matching
        if annotations.items() <= (pod["metadata"].get("annotations") or {}).items()
    ]


def roll_back(
    client: DynamicClient, changed: Sequence[tuple[Object, Object | None]], namespace: str
) -> str:
    """Apply the earlier objects again and delete the new ones; return in words what was done.

    Raises TryAgain when the cluster does not answer.
    """
    from kubernetes.client import ApiException
    from kubernetes.dynamic.exceptions import NotFoundError
    from urllib3.exceptions import HTTPError

    actions = set()
    try:
        for entry, previous in changed:
            if previous is not None:
                apply_object(client, previous, namespace)
                actions.add("what was there is put back")
            elif entry["kind"] == "PersistentVolumeClaim":
                actions.add("the claim with what was downloaded is kept")
            else:
                with suppress(NotFoundError):
                    resource_type(client, entry).delete(
                        name=entry["metadata"]["name"], namespace=namespace
                    )
                actions.add("what was made is deleted")
    except (ApiException, HTTPError) as error:
        name = changed[0][0]["metadata"]["name"]
        why = "the cluster did not answer"
        if isinstance(error, ApiException):
            why = f"the cluster refused to put it back ({error.status} {error.reason})"
        raise TryAgain(
            f"{name} was not deployed, and is left half applied since {why}; "
            "deploy the version before it again"
        ) from error
    return ", ".join(sorted(actions, reverse=True)) or "nothing was changed"
