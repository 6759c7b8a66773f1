"""Warnings about a manifest that would not run on most clusters."""

from __future__ import annotations

from collections.abc import Mapping

from loraline.delivery.gateway import Gateway
from loraline.serving import versions

NO_STORE = (
    "the pod has no MLflow server to fetch the adapter from; set MLFLOW_TRACKING_URI to one that "
    "it reaches, and register the model there"
)

HERE_ALONE = (
    "the manifest serves on this machine (make serve); for a cluster, set MLFLOW_TRACKING_URI to a "
    "server that pods reach, and LORALINE_IMAGE to an image on a registry"
)


def doubts(
    image: str, fetch: Mapping[str, str], server_image: str, gateway: Gateway | None = None
) -> list[str]:
    """Warnings about a manifest: images that are on no registry or unpinned, no address of MLflow
    for the init container, and gateway replicas that share no volume or Redis."""
    if "MLFLOW_TRACKING_URI" not in fetch and image.startswith("localhost/") and gateway is None:
        # The other sentences do not help a user without a cluster.
        return [HERE_ALONE]
    sentences = [] if "MLFLOW_TRACKING_URI" in fetch else [NO_STORE]
    if image.startswith("localhost/"):
        sentences.append(
            f"the init container's image {image} is on no registry; LORALINE_IMAGE names one"
        )
    if versions.version_of(server_image) is None:
        sentences.append(
            f"{server_image} does not say which vLLM it holds; one before "
            f"{versions.OLDEST[0]}.{versions.OLDEST[1]} may run code from a model repository"
        )
    if "@sha256:" not in server_image:
        sentences.append(
            f"{server_image} is not pinned by digest; pass --server-image "
            f"{server_image}@sha256:DIGEST, with the digest that your registry or `docker buildx "
            "imagetools inspect` shows for it"
        )
    if gateway is not None and gateway.image.startswith("localhost/"):
        sentences.append(
            f"the gateway's image {gateway.image} is on no registry; --gateway-image names one"
        )
    page = gateway.page if gateway is not None else None
    if page is not None and page.image.startswith("localhost/"):
        sentences.append(f"the page's image {page.image} is on no registry; --ui-image names one")
    if gateway is not None and gateway.volume is None:
        sentences.append(
            "each replica of the gateway keeps jobs and sessions of its own, and loses them with "
            "its pod; --gateway-volume names a claim that all of them can write"
        )
    if gateway is not None and gateway.redis_port is None:
        sentences.append(
            "each replica of the gateway counts rates and tokens on its own, so that a key may ask "
            "as often at each; --gateway-redis-port lets them share a Redis"
        )
    return sentences
