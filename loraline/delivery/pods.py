"""Why a pod does not start, in the cluster's words."""

from __future__ import annotations

from loraline.delivery.kube import Object

FATAL = ("CreateContainerConfigError", "ErrImageNeverPull", "InvalidImageName")
"""Reasons of a container that waits for what never comes."""


def containers_of(pod: Object) -> list[Object]:
    status = pod.get("status", {})
    return [*status.get("initContainerStatuses", []), *status.get("containerStatuses", [])]


def failure(pod: Object) -> str | None:
    """Why a pod can never start, in the words of its container's status."""
    for container in containers_of(pod):
        waiting = container["state"].get("waiting", {})
        ended = container["state"].get("terminated") or container["lastState"].get("terminated")
        if waiting.get("reason") in FATAL:
            return f"{container['name']}: {waiting['message']}"
        # Exit code 2 is a user's mistake in all of this project's programs.
        if ended and ended["exitCode"] == 2:
            return f"{container['name']} ended with exit code 2{last_log_line(pod, container)}"
        if container["restartCount"] >= 3:
            return f"{container['name']} ended {container['restartCount']} times"
    return None


def waits_for(pod: Object) -> list[str]:
    """What a pod waits for, if the cluster gives a message: a node, an image, a restart."""
    reasons = [
        condition["message"]
        for condition in pod.get("status", {}).get("conditions", [])
        if condition["type"] == "PodScheduled" and condition.get("message")
    ]
    for container in containers_of(pod):
        waiting = container["state"].get("waiting", {})
        if waiting.get("message"):
            message = " ".join(waiting["message"].split())
            reasons.append(f"{container['name']}: {waiting['reason']}: {message}")
    return reasons


def last_log_line(pod: Object, container: Object) -> str:
    """A container's last line of log, as the end of a sentence; empty without one."""
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
