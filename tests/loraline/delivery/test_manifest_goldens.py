"""The manifest of every profile and of every way to serve, byte for byte.

After a change that is meant, `make render` writes them anew and git shows what changed.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from loraline.contract import Contract
from loraline.delivery import kube, manifest, tasks
from loraline.delivery.gateway import Gateway, Model
from loraline.delivery.page import Page
from loraline.delivery.placement import Placement
from loraline.delivery.tasks import Need
from loraline.profiles import catalog
from loraline.profiles.loading import load_profile
from loraline.profiles.profile import Profile
from loraline.serving import preflight, sizing, versions
from loraline.serving.arguments import Adapter, demand, startup_seconds
from loraline.serving.names import served_name

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
GOLDENS = HERE / "manifests"
PROFILES = catalog.names(ROOT / "lora_profiles")
GATEWAY_IMAGE = "localhost/loraline-gateway:dev"
PAGE = Page("localhost/loraline-page:dev")
PINNED = "vllm/vllm-openai:v0.32.0@sha256:" + "12" * 32

BY_USER = {
    "way-base-volume": {"bases"},
    "way-gateway-tasks": {"bases"},
    "way-gateway-everything": {"kept"},
}
"""Claims that the command line names."""

WAYS: dict[str, tuple[str, Placement, dict[str, Any]]] = {
    "namespace": ("standard", Placement(namespace="models", server_image=PINNED), {}),
    "several-replicas": ("standard", Placement(replicas=4), {}),
    "keda": (
        "qwen3-vl",
        Placement(replicas=4, prometheus="http://prometheus:9090", namespace="models"),
        {},
    ),
    "service-monitor": ("standard", Placement(monitor=True), {}),
    "base-volume": ("qwen3-vl", Placement(base_volume="bases"), {}),
    "merged": ("standard", Placement(merged=True), {}),
    "beside": ("standard", Placement(), {"beside": True}),
    "cpu": ("smoke-text", Placement(cpu=True, server_image="localhost/loraline:serve"), {}),
    "quarter-of-a-card": ("standard", Placement(fraction=0.25), {"gpu": "A100-80GB"}),
    "two-cards": ("qwen3-vl", Placement(), {"gpu": "RTX-4080", "cards": 2}),
    "on-its-card": ("standard", Placement(on_card=True), {"gpu": "A10"}),
    "follow": ("standard", Placement(follow="candidate"), {}),
    "kserve": ("standard", Placement(format="kserve"), {}),
    "kserve-vision": ("latex-ocr", Placement(format="kserve"), {}),
    "production-stack": ("standard", Placement(format="production-stack"), {}),
    "production-stack-vision": ("latex-ocr", Placement(format="production-stack"), {}),
    "production-stack-two-cards": (
        "qwen3-vl",
        Placement(format="production-stack", on_card=True),
        {"gpu": "RTX-4080", "cards": 2},
    ),
    "production-stack-cpu": (
        "smoke-text",
        Placement(format="production-stack", cpu=True),
        {},
    ),
    "gptq": ("standard", Placement(), {"quantized": True}),
    "gateway": ("standard", Placement(), {"gateway": Gateway(GATEWAY_IMAGE)}),
    "gateway-page": ("standard", Placement(), {"gateway": Gateway(GATEWAY_IMAGE, page=PAGE)}),
    "gateway-beside": (
        "standard",
        Placement(),
        {"gateway": Gateway(GATEWAY_IMAGE), "beside": True},
    ),
    "gateway-tasks": (
        "qwen3-vl",
        Placement(base_volume="bases"),
        {"gateway": Gateway(GATEWAY_IMAGE, host="ask.example.org"), "tasks_beside": True},
    ),
    "tasks-instead": ("qwen3-vl", Placement(), {"tasks_instead": True}),
    "gateway-everything": (
        "standard",
        Placement(namespace="models", monitor=True, server_image=PINNED),
        {
            "gateway": Gateway(
                "registry.example.org/gateway@sha256:" + "56" * 32,
                replicas=8,
                host="ask.example.org",
                parent="ingress/public",
                volume="kept",
                redis_port=6380,
                settings=(
                    ("GATEWAY_DRAIN_S", "60"),
                    ("GATEWAY_OIDC_AUDIENCE", "loraline"),
                    ("GATEWAY_OIDC_ISSUER", "https://login.example.org"),
                    ("GATEWAY_OTLP_ENDPOINT", "http://collector:4318/v1/traces"),
                ),
                tasks=(("summary.yaml", "title: Summary\n"),),
                page=Page(
                    "registry.example.org/page@sha256:" + "78" * 32,
                    host="page.example.org",
                    desk="http://desk:8090",
                ),
            )
        },
    ),
}


def contract_of(profile: Profile) -> Contract:
    """The contract that training with a profile writes, but for what only training knows."""
    vision = profile.modality == "vision"
    local = profile.base.startswith("test_data")
    return Contract(
        base=profile.base,
        base_revision="sha256:" + "cd" * 32 if local else "ef" * 20,
        modality=profile.modality,
        architecture=base_config(profile)["architectures"][0],
        prompt="Write the formula as LaTeX." if vision else "Question: {question}",
        chat_template="{% for m in messages %}\n{{ m.content }}{% endfor %}",
        min_pixels=profile.min_pixels,
        max_pixels=profile.max_pixels,
        max_length=profile.max_length,
        max_new_tokens=profile.max_new_tokens,
        dtype=profile.serve_dtype,
        r=profile.r,
        lora_alpha=profile.lora_alpha,
        target_modules=profile.target_modules,
        trains_vision=profile.trains_vision,
        adapter_sha256="ab" * 32,
    )


def base_config(profile: Profile) -> dict[str, Any]:
    if profile.base.startswith("test_data"):
        return json.loads((ROOT / profile.base / "config.json").read_text())
    name = profile.base.rpartition("/")[2]
    return json.loads((HERE.parent / "serving" / "bases" / f"{name}.json").read_text())


def rendered(
    name: str,
    where: Placement,
    *,
    gpu: str | None = None,
    cards: int = 1,
    beside: bool = False,
    quantized: bool = False,
    gateway: Gateway | None = None,
    tasks_beside: bool = False,
    tasks_instead: bool = False,
) -> list[dict[str, Any]]:
    profile = load_profile(name, ROOT / "lora_profiles")
    agreed, config = contract_of(profile), base_config(profile)
    if quantized:
        config |= {"quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 128}}
    videos, measured_otherwise = 0, ""
    if tasks_instead:
        wide = tasks.widened(agreed, [Need("clip", 4, 32, 1024, 602112, 2048)])
        videos, measured_otherwise = 1, tasks.differences(agreed, wide, 1)
        agreed = wide
    others, models = [], [Model(served_name(profile.registered_model), agreed)]
    if beside:
        other = f"{served_name(profile.registered_model)}-champion"
        path = f"/adapters/{other}/v2"
        uri = f"models:/{profile.registered_model}/2"
        others = [Adapter(other, uri, path, "34" * 32, 16)]
        champion = agreed.model_copy(update={"prompt": "Asked otherwise: {question}", "r": 16})
        models = [replace(models[0], role="candidate"), Model(other, champion, "champion")]
    ranks = [agreed.r, *(other.rank for other in others)]
    wanted = demand(agreed, config, ranks, merged=where.merged, videos=videos)
    plan = sizing.smallest(wanted, {})
    if gpu:
        plan = sizing.plan(wanted, gpu, cards=cards, fraction=where.fraction)
    pod = manifest.server(
        agreed,
        model_name=profile.registered_model,
        version=3,
        digest=agreed.adapter_sha256,
        image="localhost/loraline:dev",
        fetch_env={"MLFLOW_TRACKING_URI": "http://mlflow:5000"},
        beside=others,
        base_config=config,
        plan=None if where.cpu else plan,
        placement=where,
        videos=videos,
        measured_otherwise=measured_otherwise,
    )
    servers = [pod]
    if tasks_beside:
        needs = [Need("page", 1, 0, 1024, 602112, 256)]
        wide = tasks.widened(agreed, needs)
        card = sizing.smallest(demand(wide, config, [], videos=0), {})
        servers.append(manifest.tasks_server(wide, pod, videos=0, base_config=config, plan=card))
    return manifest.render(*servers, gateway=gateway, models=models)


def usual_place(name: str) -> Placement:
    """Where deploy_vllm places a profile's model when it is not told."""
    profile = load_profile(name, ROOT / "lora_profiles")
    if versions.needs_cpu(profile.serve_dtype, merged=profile.export == "merged"):
        return Placement(cpu=True)
    return Placement()


def everything() -> dict[str, list[dict[str, Any]]]:
    result = {name: rendered(name, usual_place(name)) for name in PROFILES}
    return result | {
        f"way-{way}": rendered(name, where, **options)
        for way, (name, where, options) in WAYS.items()
    }


ALL = everything()


def test_a_golden_manifest_for_each_and_no_other() -> None:
    assert {path.stem for path in GOLDENS.glob("*.yaml")} == set(ALL)


@pytest.mark.parametrize("name", ALL)
def test_the_manifest_is_the_golden_one(name: str) -> None:
    assert kube.to_yaml(ALL[name]) == (GOLDENS / f"{name}.yaml").read_text()


def containers(objects: list[dict[str, Any]]) -> list[dict[str, Any]]:
    result = []
    for entry in objects:
        spec = entry.get("spec", {})
        for pod in (spec.get("template", {}).get("spec"), spec.get("predictor")):
            if pod:
                result += [*pod.get("initContainers", []), *pod["containers"]]
        for model in entry.get("servingEngineSpec", {}).get("modelSpec", []):
            result += [model, model["initContainer"]]
    return result


@pytest.mark.parametrize("name", ALL)
def test_no_container_has_a_variable_twice(name: str) -> None:
    # A server-side apply refuses it, and otherwise the last of them counts.
    for container in containers(ALL[name]):
        variables = [variable["name"] for variable in container["env"]]
        assert len(variables) == len(set(variables)), variables


@pytest.mark.parametrize("name", ALL)
def test_no_secret_is_in_a_manifest(name: str) -> None:
    assert containers(ALL[name])
    assert not any(entry.get("kind") == "Secret" for entry in ALL[name])
    for container in containers(ALL[name]):
        for variable in container["env"]:
            hidden = ("KEY", "TOKEN", "PASSWORD", "SECRET")
            # A file's path is none; the file is one of a Secret.
            names_file = variable["name"].endswith("_FILE")
            if any(word in variable["name"] for word in hidden) and not names_file:
                assert set(variable) == {"name", "valueFrom"}, variable


@pytest.mark.parametrize("name", ALL)
def test_every_object_names_the_version_that_it_serves(name: str) -> None:
    for entry in ALL[name]:
        # A server of tasks has the base alone.
        if "metadata" in entry and not entry["metadata"]["name"].endswith("-tasks"):
            version = entry["metadata"]["annotations"]["loraline/registered-version"]
            assert version.endswith("/3")


def pod(name: str) -> dict[str, Any]:
    return next(e for e in ALL[name] if e.get("kind") == "Deployment")["spec"]["template"]["spec"]


def args(name: str) -> list[str]:
    return pod(name)["containers"][0]["args"]


def test_beside_serves_both_from_one_pod_with_a_slot_each() -> None:
    arguments = args("way-beside")
    start = arguments.index("--lora-modules") + 1
    modules = [json.loads(each) for each in arguments[start : start + 2]]
    names = ["mistral-7b-lora", "mistral-7b-lora-champion"]
    assert [module["name"] for module in modules] == names
    assert arguments[arguments.index("--max-loras") + 1] == "2"
    assert arguments[arguments.index("--max-lora-rank") + 1] == "16"
    assert len(pod("way-beside")["initContainers"]) == 2
    assert pod("way-beside")["containers"][0]["readinessProbe"]["exec"]["command"][2:] == names


def test_a_server_with_limits_of_tasks_says_that_it_was_measured_with_others() -> None:
    arguments = args("way-tasks-instead")
    limit = json.loads(arguments[arguments.index("--limit-mm-per-prompt") + 1])
    assert (limit["image"], limit["video"]) == (4, 1)
    deployment = next(e for e in ALL["way-tasks-instead"] if e["kind"] == "Deployment")
    message = deployment["metadata"]["annotations"]
    assert any(
        "images a request 1 to 4, videos a request 0 to 1" in each for each in message.values()
    )


def test_a_merged_model_is_served_without_adapters() -> None:
    assert "--enable-lora" not in args("way-merged")
    assert args("way-merged")[0] == "/adapters/mistral-7b-lora/v3"
    fetch = pod("way-merged")["initContainers"][0]["command"]
    assert fetch[fetch.index("--merge") + 1] == "mistralai/Mistral-7B-v0.1"


def test_an_alias_is_followed_by_a_sidecar_with_slots_to_spare() -> None:
    server_container, sidecar = pod("way-follow")["containers"]
    assert sidecar["command"][1] == "steps/follow_alias.py"
    assert sidecar["command"][sidecar["command"].index("--model") + 1] == "mistral-7b-lora"
    allowed = {"name": "VLLM_ALLOW_RUNTIME_LORA_UPDATING", "value": "1"}
    assert allowed in server_container["env"]
    assert allowed not in pod("standard")["containers"][0]["env"], "off by default"
    assert args("way-follow")[args("way-follow").index("--max-loras") + 1] == "3"


def test_a_share_of_a_card_has_its_resource_and_its_memory() -> None:
    assert args("way-quarter-of-a-card")[args("way-quarter-of-a-card").index(UTILIZATION) + 1] == (
        "0.225"
    )
    limits = pod("way-quarter-of-a-card")["containers"][0]["resources"]["limits"]
    assert limits == {"nvidia.com/gpu.shared": 1}


UTILIZATION = "--gpu-memory-utilization"


def test_a_named_card_is_the_one_it_is_placed_on_where_nodes_tell() -> None:
    required = "requiredDuringSchedulingIgnoredDuringExecution"
    terms = pod("way-on-its-card")["affinity"]["nodeAffinity"][required]["nodeSelectorTerms"]
    assert [term["matchExpressions"] for term in terms] == [
        [
            {
                "key": "nvidia.com/gpu.product",
                "operator": "In",
                "values": ["NVIDIA-A10", "NVIDIA-A10G"],
            }
        ],
        [{"key": "nvidia.com/gpu.product", "operator": "DoesNotExist"}],
    ]
    assert "affinity" not in pod("standard"), "the smallest that fits is no wish for that one"
    values = ALL["way-production-stack-two-cards"][0]["servingEngineSpec"]["modelSpec"][0]
    products = values["nodeSelectorTerms"][0]["matchExpressions"][0]["values"]
    assert products[0] == "NVIDIA-GeForce-RTX-4080"


@pytest.mark.parametrize("name", [name for name in ALL if "production-stack" in name])
def test_the_chart_gets_shared_memory_for_all_cards(name: str) -> None:
    values = ALL[name][0]["servingEngineSpec"]["modelSpec"][0]
    volumes = {volume["name"]: volume for volume in values["extraVolumes"]}
    size = "16Gi" if "two-cards" in name else "2Gi"
    assert volumes["shm"]["emptyDir"] == {"medium": "Memory", "sizeLimit": size}
    assert {"name": "shm", "mountPath": "/dev/shm"} in values["extraVolumeMounts"]
    assert "tensorParallelSize" not in values["vllmConfig"], "the chart would add a second shm"


def test_without_a_gpu_none_is_asked_for() -> None:
    spec = pod("way-cpu")
    assert "limits" not in spec["containers"][0]["resources"] and "tolerations" not in spec
    assert UTILIZATION not in args("way-cpu") and "--kv-cache-memory-bytes" in args("way-cpu")
    engine = ALL["way-production-stack-cpu"][0]["servingEngineSpec"]
    assert engine["modelSpec"][0]["requestGPU"] == 0 and engine["tolerations"] == []


def test_several_replicas_belong_to_the_autoscaler_and_update_one_by_one() -> None:
    objects = {entry["kind"]: entry for entry in ALL["way-several-replicas"]}
    assert "replicas" not in objects["Deployment"]["spec"]
    assert objects["Deployment"]["spec"]["strategy"]["rollingUpdate"]["maxSurge"] == 0
    assert objects["HorizontalPodAutoscaler"]["spec"]["maxReplicas"] == 4
    assert {"ScaledObject", "ServiceMonitor"} <= {entry["kind"] for entry in ALL["way-keda"]}


def test_the_start_has_time_for_the_weights() -> None:
    assert startup_seconds(0.01, local_base=True) == 600
    assert startup_seconds(60, local_base=False) == 1380
    for name in ("qwen3-vl", "smoke-text"):
        probe = pod(name)["containers"][0]["startupProbe"]
        spec = next(e for e in ALL[name] if e["kind"] == "Deployment")["spec"]
        assert spec["progressDeadlineSeconds"] > probe["failureThreshold"] * probe["periodSeconds"]


@pytest.mark.parametrize("name", ALL)
def test_every_claim_is_rendered_or_named_by_the_user(name: str) -> None:
    made = {e["metadata"]["name"] for e in ALL[name] if e.get("kind") == "PersistentVolumeClaim"}
    text = kube.to_yaml(ALL[name])
    named = {line.split(": ")[1] for line in text.splitlines() if "claimName: " in line}
    assert named == made | BY_USER.get(name, set())


def test_only_what_a_server_needs_is_reachable() -> None:
    policy = next(e for e in ALL["standard"] if e["kind"] == "NetworkPolicy")["spec"]
    ports = {port["port"] for rule in policy["egress"] for port in rule["ports"]}
    assert ports == {53, 443, 5000}
    by_address, by_address_6, inside = policy["egress"][1]["to"]
    assert by_address["ipBlock"] == {"cidr": "0.0.0.0/0", "except": ["169.254.0.0/16"]}
    assert by_address_6["ipBlock"]["cidr"] == "::/0"
    assert "fd00:ec2::254/128" in by_address_6["ipBlock"]["except"], "the cloud's metadata"
    assert inside == {"namespaceSelector": {}}, "Cilium takes no address of a pod"
    assert policy["ingress"][0]["ports"] == [{"port": 8000, "protocol": "TCP"}]


@pytest.mark.parametrize("name", PROFILES)
def test_the_plan_of_each_profile_fits_the_card_it_names(name: str) -> None:
    profile = load_profile(name, ROOT / "lora_profiles")
    config = base_config(profile)
    wanted = demand(contract_of(profile), config, [profile.r])
    result = sizing.smallest(wanted, {})
    assert result.fits and result.largest_len >= wanted.max_model_len
    assert str(result.max_num_seqs) == args(name)[args(name).index("--max-num-seqs") + 1]
    rank = preflight.max_lora_rank(profile.r)
    assert replace(wanted, max_lora_rank=rank) == wanted


if __name__ == "__main__":
    GOLDENS.mkdir(exist_ok=True)
    for old in GOLDENS.glob("*.yaml"):
        old.unlink()
    for name, objects in ALL.items():
        (GOLDENS / f"{name}.yaml").write_text(kube.to_yaml(objects))
