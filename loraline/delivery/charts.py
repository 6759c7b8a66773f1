"""The same pod for KServe and for the Helm chart of vLLM's production-stack."""

from __future__ import annotations

import re

from loraline.delivery import containers, objects
from loraline.delivery.kube import Object, environment, run_as, unprivileged
from loraline.delivery.pod import Pod
from loraline.errors import UserError
from loraline.serving.arguments import CONFIG, PORT


def inference_service(pod: Pod) -> Object:
    """KServe's object in its plain-Deployment mode, with the same pod."""
    container = {**containers.serving(pod), "name": "kserve-container"}
    predictor = {**containers.spec(pod), "containers": [container, *containers.follower(pod)]}
    return {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {
            **pod.metadata(),
            "annotations": {
                **pod.annotations,
                "serving.kserve.io/deploymentMode": "RawDeployment",
            },
        },
        "spec": {
            "predictor": {
                "minReplicas": 1,
                "maxReplicas": pod.where.replicas,
                "deploymentStrategy": objects.deployment(pod)["spec"]["strategy"],
                **predictor,
            }
        },
    }


def chart_resources(pod: Pod) -> Object:
    """The server's resources, in the chart's keys."""
    resources = pod.resources()
    return {
        "requestCPU": int(resources["requests"]["cpu"]),
        "requestMemory": resources["requests"]["memory"],
        "requestGPU": resources.get("limits", {}).get(pod.card, 0),
        "requestGPUType": pod.card,
    }


def helm_values(pod: Pod) -> Object:
    """Values for the chart `vllm-stack` of vLLM's production-stack."""
    container, fetch = containers.serving(pod), containers.fetches(pod)[0]
    image = re.fullmatch(r"(.+?):([\w.-]+(?:@sha256:\w+)?)", pod.where.serving_image)
    if image is None:
        raise UserError(f"production-stack needs a tag in {pod.where.serving_image}")
    # The chart runs `vllm serve MODEL --host ... --port ...` and has separate values for
    # chat templates.
    args = [arg.replace(f"{CONFIG}/", "/templates/") for arg in pod.arguments()[1:]]
    skip = args.index("--chat-template")
    del args[skip : skip + 2]
    # The chart's own shared memory comes only with tensorParallelSize in vllmConfig.
    kept_volumes = {"adapters", "cache", "bases", "shm", "tmp"}
    variables, claim = pod.variables(), {}
    if pod.hub:
        # The chart makes a claim for the hub's cache and sets its path.
        claim = {"pvcStorage": pod.storage, "pvcAccessMode": ["ReadWriteOnce"]}
        del variables["HF_HOME"]
    model = {
        "name": pod.adapters[0].name,
        "annotations": pod.annotations,
        "podAnnotations": pod.annotations,
        "repository": image[1],
        "tag": image[2],
        "modelURL": pod.arguments()[0],
        "replicaCount": 1,
        **chart_resources(pod),
        **containers.node_terms(pod),
        **claim,
        "chatTemplate": "chat_template.jinja",
        "chatTemplateConfigMap": pod.contract.chat_template,
        # By default the chart switches prefix caching off.
        "vllmConfig": {"enablePrefixCaching": True, "extraArgs": args},
        "env": [*environment(variables), containers.hub_token(pod)],
        "initContainer": {
            **{key: fetch[key] for key in ("name", "image", "command", "resources")},
            "env": fetch["env"],
            "extraVolumeMounts": fetch["volumeMounts"],
        },
        "extraVolumes": [
            {"name": "cache", "emptyDir": {}} if each["name"] == "cache" else each
            for each in containers.volumes(pod)
            if each["name"] in kept_volumes
        ],
        "extraVolumeMounts": [
            each for each in container["volumeMounts"] if each["name"] in kept_volumes
        ],
    }
    key = {"secretName": pod.secret, "secretKey": "api-key"}
    return {
        "servingEngineSpec": {
            "vllmApiKey": key,
            "securityContext": run_as(containers.SERVER_UID),
            "containerSecurityContext": unprivileged(),
            "strategy": objects.deployment(pod)["spec"]["strategy"],
            "startupProbe": {
                "initialDelaySeconds": 15,
                **container["startupProbe"],
                "httpGet": {"path": "/health", "port": PORT},
            },
            "tolerations": containers.spec(pod).get("tolerations", []),
            "modelSpec": [model],
        }
    }
