"""The gateway's objects: nothing else reaches the server, and no key is in a manifest."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from gateway.settings import Settings
from loraline.delivery import manifest, tasks
from loraline.delivery.gateway import RESERVED, Gateway, Model
from loraline.delivery.placement import Placement
from loraline.delivery.tasks import Need
from loraline.errors import UserError
from loraline.serving.arguments import Adapter
from tests.loraline.delivery.test_manifest import VISION

Object = dict[str, Any]
GATEWAY = Gateway("localhost/loraline-gateway:dev")
NAME = "lora-latex-ocr-gateway"


def objects(
    gateway: Gateway = GATEWAY, where: Placement | None = None, **more: Any
) -> dict[str, dict[str, Object]]:
    """The rendered objects by name and kind."""
    named = {"model_name": "latex-ocr", "version": 3, "image": "loraline:test"}
    models = more.pop("models", [Model("latex-ocr", VISION)])
    second = more.pop("tasks_server", None)
    pod = manifest.server(VISION, **named, digest="ab" * 32, placement=where, **more)
    servers = [pod, manifest.tasks_server(second, pod, videos=0)] if second else [pod]
    by_name: dict[str, dict[str, Object]] = {}
    for entry in manifest.render(*servers, gateway=gateway, models=models):
        by_name.setdefault(entry["metadata"]["name"], {})[entry["kind"]] = entry
    return by_name


def front(*args: Any, **more: Any) -> dict[str, Object]:
    return objects(*args, **more)[NAME]


def pod(made: dict[str, Object]) -> Object:
    spec: Object = made["Deployment"]["spec"]["template"]["spec"]
    return spec


def variables(made: dict[str, Object]) -> dict[str, str]:
    env = pod(made)["containers"][0]["env"]
    return {each["name"]: each["value"] for each in env if "value" in each}


def selects(selector: Object, made: dict[str, Object]) -> bool:
    """Whether a pod selector matches the pods of a Deployment."""
    labels = made["Deployment"]["spec"]["template"]["metadata"]["labels"]
    return bool(selector["matchLabels"].items() <= labels.items())


class TestWhoReachesWhom:
    def test_the_gateways_pods_alone_reach_the_servers_port(self) -> None:
        made = objects()
        rule = made["lora-latex-ocr"]["NetworkPolicy"]["spec"]["ingress"]
        assert len(rule) == 1 and len(rule[0]["from"]) == 1
        assert rule[0]["ports"] == [{"port": 8000, "protocol": "TCP"}]
        allowed = rule[0]["from"][0]["podSelector"]
        assert selects(allowed, made[NAME])
        assert not selects(allowed, made["lora-latex-ocr"])

    def test_without_a_gateway_the_namespaces_pods_reach_it(self) -> None:
        named = {"model_name": "latex-ocr", "version": 3, "image": "i", "digest": "ab" * 32}
        entries = manifest.render(manifest.server(VISION, **named))
        policy = next(each for each in entries if each["kind"] == "NetworkPolicy")
        assert policy["spec"]["ingress"][0]["from"] == [{"podSelector": {}}]
        assert not any("gateway" in entry["metadata"]["name"] for entry in entries)

    def test_the_gateway_reaches_names_and_the_servers_and_nothing_else(self) -> None:
        made = objects()
        names, servers = made[NAME]["NetworkPolicy"]["spec"]["egress"]
        assert {port["port"] for port in names["ports"]} == {53}
        assert servers["ports"] == [{"port": 8000, "protocol": "TCP"}]
        assert selects(servers["to"][0]["podSelector"], made["lora-latex-ocr"])

    def test_addresses_of_the_settings_are_let_out_but_never_the_clouds_metadata(self) -> None:
        oidc = ("GATEWAY_OIDC_ISSUER", "https://login.example.org")
        traces = ("GATEWAY_OTLP_ENDPOINT", "http://collector:4318/v1/traces")
        made = front(replace(GATEWAY, settings=(oidc, traces), redis_port=6379))
        world = made["NetworkPolicy"]["spec"]["egress"][-1]
        assert [port["port"] for port in world["ports"]] == [443, 4318, 6379]
        assert "169.254.0.0/16" in world["to"][0]["ipBlock"]["except"]

    def test_prometheus_comes_to_the_port_that_asks_for_no_key(self) -> None:
        made = front(where=Placement(monitor=True))
        clients, prometheus = made["NetworkPolicy"]["spec"]["ingress"]
        assert clients == {"ports": [{"port": 8080, "protocol": "TCP"}]}
        assert prometheus["ports"] == [{"port": 8081, "protocol": "TCP"}]
        assert "monitoring" in str(prometheus["from"])
        assert made["ServiceMonitor"]["spec"]["endpoints"][0]["port"] == "metrics"
        assert {port["name"] for port in made["Service"]["spec"]["ports"]} == {"http", "metrics"}
        assert variables(made)["GATEWAY_METRICS_PORT"] == "8081"
        assert "GATEWAY_METRICS_PORT" not in variables(front())

    def test_a_server_of_tasks_is_behind_the_same_gateway(self) -> None:
        wide = tasks.widened(VISION, [Need("page", 2, 0, 1024, 602112, 256)])
        made = objects(tasks_server=wide)
        rule = made["lora-latex-ocr-tasks"]["NetworkPolicy"]["spec"]["ingress"]
        assert selects(rule[0]["from"][0]["podSelector"], made[NAME])
        peers = made[NAME]["NetworkPolicy"]["spec"]["egress"][1]["to"]
        reached = [peer["podSelector"]["matchLabels"]["app.kubernetes.io/name"] for peer in peers]
        assert reached == ["lora-latex-ocr", "lora-latex-ocr-tasks"]
        entries = json.loads(variables(made[NAME])["GATEWAY_UPSTREAMS"])
        assert entries[1] == {
            "url": "http://lora-latex-ocr-tasks:8000",
            "contract": "/etc/loraline/lora-latex-ocr-tasks.json",
        }
        written = json.loads(made[NAME]["ConfigMap"]["data"]["lora-latex-ocr-tasks.json"])
        assert written["max_pixels"] == 602112


class TestSecrets:
    def test_keys_are_a_file_of_a_secret_and_the_servers_key_is_its_own(self) -> None:
        made = front(replace(GATEWAY, redis_port=6379))
        spec = pod(made)
        volume = next(each for each in spec["volumes"] if each["name"] == "keys")
        assert volume["secret"]["secretName"] == NAME
        assert variables(made)["GATEWAY_API_KEYS_FILE"] == "/etc/loraline-keys/keys.json"
        named = {
            each["name"]: each["valueFrom"]["secretKeyRef"]
            for each in spec["containers"][0]["env"]
            if "valueFrom" in each
        }
        assert named == {
            "GATEWAY_VLLM_API_KEY": {"name": "lora-latex-ocr", "key": "api-key"},
            "GATEWAY_REDIS_URL": {"name": NAME, "key": "redis-url"},
        }

    @pytest.mark.parametrize("name", RESERVED)
    def test_what_the_manifest_sets_is_not_set_by_hand(self, name: str) -> None:
        with pytest.raises(UserError, match=f"--gateway-set {name}: the manifest sets it itself"):
            front(replace(GATEWAY, settings=((name, "x"),)))

    def test_a_password_in_an_address_is_refused_and_not_repeated(self) -> None:
        hidden = "http://me:secret@collector:4318"
        with pytest.raises(UserError, match="its address holds a name or password") as refused:
            front(replace(GATEWAY, settings=(("GATEWAY_OTLP_ENDPOINT", hidden),)))
        assert "secret" not in str(refused.value)


class TestPods:
    def test_they_have_no_right_that_they_do_not_need(self) -> None:
        spec = pod(front())
        assert spec["securityContext"]["runAsNonRoot"] and spec["securityContext"]["runAsUser"]
        assert spec["automountServiceAccountToken"] is False
        container = spec["containers"][0]
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
        }
        written = {m["name"] for m in container["volumeMounts"] if not m.get("readOnly")}
        assert written == {"data", "tmp"}

    def test_they_start_when_a_server_lists_its_models_and_then_stay(self) -> None:
        container = pod(front())["containers"][0]
        paths = {
            name: container[f"{name}Probe"]["httpGet"]["path"]
            for name in ("startup", "readiness", "liveness")
        }
        assert paths == {"startup": "/ready", "readiness": "/health", "liveness": "/health"}
        made = objects()
        server = pod(made["lora-latex-ocr"])["containers"][0]["startupProbe"]
        waited = container["startupProbe"]["failureThreshold"] * 5
        assert waited > server["failureThreshold"] * server["periodSeconds"]
        deployment = made[NAME]["Deployment"]["spec"]
        assert deployment["progressDeadlineSeconds"] > waited

    def test_running_answers_have_time_to_end(self) -> None:
        spec = pod(front(replace(GATEWAY, settings=(("GATEWAY_DRAIN_S", "90"),))))
        assert spec["terminationGracePeriodSeconds"] > 90
        assert pod(front())["terminationGracePeriodSeconds"] > 30

    def test_two_are_always_kept_and_one_at_a_time_goes(self) -> None:
        made = front(replace(GATEWAY, replicas=7))
        scaler = made["HorizontalPodAutoscaler"]["spec"]
        assert (scaler["minReplicas"], scaler["maxReplicas"]) == (2, 7)
        assert "replicas" not in made["Deployment"]["spec"], "the number is the autoscaler's"
        assert made["PodDisruptionBudget"]["spec"]["maxUnavailable"] == 1
        update = made["Deployment"]["spec"]["strategy"]["rollingUpdate"]
        assert update == {"maxSurge": 1, "maxUnavailable": 0}

    @pytest.mark.parametrize(
        "change",
        [
            {"settings": (("GATEWAY_RATE", "1/minute"),)},
            {"tasks": (("summary.yaml", "title: x\n"),)},
        ],
    )
    def test_a_change_of_what_they_read_at_the_start_starts_new_ones(
        self, change: dict[str, Any]
    ) -> None:
        first, second = (
            front(gateway)["Deployment"]["spec"]["template"]["metadata"]["annotations"]
            for gateway in (GATEWAY, replace(GATEWAY, **change))
        )
        assert first != second

    def test_their_settings_are_settings_of_the_gateway(self) -> None:
        made = front(
            replace(GATEWAY, redis_port=6379, tasks=(("summary.yaml", "x"),)),
            where=Placement(monitor=True),
        )
        known = {f"GATEWAY_{name.upper()}" for name in Settings.model_fields}
        env = {each["name"] for each in pod(made)["containers"][0]["env"]}
        assert env <= known | {"GATEWAY_UPSTREAMS"}

    def test_every_file_that_they_are_told_of_is_mounted(self) -> None:
        made = front(replace(GATEWAY, tasks=(("summary.yaml", "title: Summary\n"),)))
        volume = next(each for each in pod(made)["volumes"] if each["name"] == "config")
        paths = {f"/etc/loraline/{item['path']}" for item in volume["configMap"]["items"]}
        for entry in json.loads(variables(made)["GATEWAY_UPSTREAMS"]):
            assert entry["contract"] in paths
        assert f"{variables(made)['GATEWAY_TASKS_DIR']}/summary.yaml" in paths
        keys = {item["key"] for item in volume["configMap"]["items"]}
        assert keys == set(made["ConfigMap"]["data"])


class TestModels:
    def test_each_adapter_is_asked_with_its_own_prompt_and_the_servers_limits(self) -> None:
        other = VISION.model_copy(
            update={"prompt": "Describe the scan.", "max_new_tokens": 9, "max_pixels": 50176}
        )
        made = front(
            models=[Model("latex-ocr", VISION, "candidate"), Model("old", other, "champion")],
            beside=[Adapter("old", "models:/latex-ocr/2", "/adapters/old/v2", "cd" * 32, 8)],
        )
        entries = json.loads(variables(made)["GATEWAY_UPSTREAMS"])
        assert [(each["name"], each["uri"], each["role"]) for each in entries] == [
            ("latex-ocr", "models:/latex-ocr/3", "candidate"),
            ("old", "models:/latex-ocr/2", "champion"),
        ]
        old = json.loads(made["ConfigMap"]["data"]["old.json"])
        assert (old["prompt"], old["max_new_tokens"]) == ("Describe the scan.", 9)


class TestWaysIn:
    def test_there_is_none_unless_a_host_is_named(self) -> None:
        assert not {"Ingress", "HTTPRoute"} & set(front())
        assert front()["Service"]["spec"].get("type", "ClusterIP") == "ClusterIP"

    def test_an_ingress_lets_uploads_and_streams_through_and_is_encrypted(self) -> None:
        ingress = front(replace(GATEWAY, host="ask.example.org"))["Ingress"]
        message = ingress["metadata"]["annotations"]
        assert message["nginx.ingress.kubernetes.io/proxy-body-size"] == "0"
        assert message["nginx.ingress.kubernetes.io/proxy-buffering"] == "off"
        assert ingress["spec"]["tls"][0]["hosts"] == ["ask.example.org"]

    def test_a_gateway_of_the_gateway_api_gets_a_route_instead(self) -> None:
        made = front(replace(GATEWAY, host="ask.example.org", parent="ingress/public"))
        assert "Ingress" not in made
        assert made["HTTPRoute"]["spec"]["parentRefs"] == [
            {"name": "public", "namespace": "ingress"}
        ]
        assert made["HTTPRoute"]["spec"]["rules"][0]["backendRefs"] == [
            {"name": NAME, "port": 8080}
        ]

    @pytest.mark.parametrize(
        ("change", "sentence"),
        [
            ({"replicas": 1}, "1 replicas of the gateway are fewer than the 2"),
            ({"host": "Ask me"}, "host of the gateway 'Ask me' is not accepted"),
            ({"parent": "ingress/public"}, "--gateway-parent needs --gateway-host or --ui-host"),
            ({"host": "a.b", "parent": "public"}, "--gateway-parent 'public' is not NAMESPACE/NAM"),
            ({"host": "a.b", "parent": "a/B c"}, "part of --gateway-parent 'B c' is not accepted"),
            ({"volume": "my volume"}, "volume of the gateway 'my volume' is not accepted"),
            ({"redis_port": 0}, "port 0 of Redis is not from 1 to 65535"),
            (
                {"settings": (("GATEWAY_HOST", "::1"),)},
                "GATEWAY_HOST=::1: no other pod would reach",
            ),
            ({"tasks": (("my task.yaml", ""),)}, "task file 'my task.yaml' has a name"),
        ],
    )
    def test_what_kubernetes_would_refuse_is_refused_in_one_sentence(
        self, change: dict[str, Any], sentence: str
    ) -> None:
        with pytest.raises(UserError) as refused:
            front(replace(GATEWAY, **change))
        assert sentence in str(refused.value) and "\n" not in str(refused.value)


def test_jobs_are_found_again_by_who_made_them() -> None:
    assert front()["Service"]["spec"]["sessionAffinity"] == "ClientIP"
    made = front(replace(GATEWAY, volume="kept"))
    assert "sessionAffinity" not in made["Service"]["spec"]
    data = next(each for each in pod(made)["volumes"] if each["name"] == "data")
    assert data["persistentVolumeClaim"] == {"claimName": "kept"}
