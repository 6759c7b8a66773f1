"""The page's objects: it reaches the gateway alone, and holds no key of vLLM's or MLflow's."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from loraline.delivery.gateway import Gateway
from loraline.delivery.page import Page
from loraline.delivery.placement import Placement
from loraline.errors import UserError
from tests.loraline.delivery.test_gateway import objects, pod, selects, variables

PAGE = Page("localhost/loraline-page:dev")
NAME = "lora-latex-ocr-page"
FRONT = "lora-latex-ocr-gateway"


def rendered(page: Page | None = PAGE, **more: Any) -> dict[str, dict[str, Any]]:
    return objects(Gateway("localhost/loraline-gateway:dev", page=page, **more))


class TestWhoReachesWhom:
    def test_it_reaches_names_and_the_gateway_and_nothing_else(self) -> None:
        result = rendered()
        names, gateway = result[NAME]["NetworkPolicy"]["spec"]["egress"]
        assert {port["port"] for port in names["ports"]} == {53}
        assert gateway["ports"] == [{"port": 8080, "protocol": "TCP"}]
        (peer,) = gateway["to"]
        assert selects(peer["podSelector"], result[FRONT])
        assert not selects(peer["podSelector"], result["lora-latex-ocr"])

    def test_the_server_does_not_let_it_in(self) -> None:
        result = rendered()
        (rule,) = result["lora-latex-ocr"]["NetworkPolicy"]["spec"]["ingress"]
        assert not any(selects(each["podSelector"], result[NAME]) for each in rule["from"])

    def test_a_desk_is_reached_on_its_port_alone(self) -> None:
        result = rendered(replace(PAGE, desk="http://desk.loraline:8090"))[NAME]
        assert result["NetworkPolicy"]["spec"]["egress"][-1]["ports"] == [
            {"port": 8090, "protocol": "TCP"}
        ]
        assert variables(result)["UI_DESK"] == "http://desk.loraline:8090"

    def test_it_knows_the_gateway_by_its_service(self) -> None:
        result = rendered()
        port = result[FRONT]["Service"]["spec"]["ports"][0]["port"]
        assert variables(result[NAME])["UI_GATEWAY"] == f"http://{FRONT}:{port}"


class TestSecrets:
    def test_it_holds_what_seals_its_cookies_and_no_other_secret(self) -> None:
        spec = pod(rendered(redis_port=6379)[NAME])
        (container,) = spec["containers"]
        named = [each for each in container["env"] if "valueFrom" in each]
        assert named == [
            {
                "name": "UI_SECRET",
                "valueFrom": {
                    "secretKeyRef": {"name": NAME, "key": "secret", "optional": True},
                },
            }
        ]
        assert not any("secret" in volume for volume in spec["volumes"])
        assert not {"envFrom"} & set(container)
        assert spec["automountServiceAccountToken"] is False

    def test_its_settings_are_settings_of_the_page(self) -> None:
        pytest.importorskip("gradio", reason="the page is an extra: pip install '.[ui]'")
        from gateway.ui.settings import Settings

        result = rendered(replace(PAGE, desk="http://desk:8090"), host="ask.example.org")[NAME]
        known = {f"UI_{name.upper()}" for name in Settings.model_fields} | {"GRADIO_TEMP_DIR"}
        env = {each["name"] for each in pod(result)["containers"][0]["env"]}
        assert env <= known
        Settings(**{
            name.removeprefix("UI_").lower(): value
            for name, value in variables(result).items()
            if name.startswith("UI_")
        })  # fmt: skip


def test_its_pod_writes_only_to_folders_with_a_size() -> None:
    spec = pod(rendered()[NAME])
    assert spec["securityContext"]["runAsNonRoot"] and spec["securityContext"]["runAsUser"]
    (container,) = spec["containers"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": True,
    }
    assert {mount["name"] for mount in container["volumeMounts"]} == {"uploads", "tmp"}
    assert all(volume["emptyDir"]["sizeLimit"] for volume in spec["volumes"])


def test_another_setting_starts_a_new_pod_and_the_gateways_stay() -> None:
    def annotations(page: Page) -> list[Any]:
        result = rendered(page)
        return [
            result[name]["Deployment"]["spec"]["template"]["metadata"]["annotations"]
            for name in (NAME, FRONT)
        ]

    first, second = annotations(PAGE), annotations(replace(PAGE, desk="http://desk:8090"))
    assert first[0] != second[0]
    assert first[1] == second[1]


class TestWaysIn:
    def test_there_is_none_unless_a_host_is_named(self) -> None:
        assert set(rendered()[NAME]) == {"Deployment", "Service", "NetworkPolicy"}

    def test_an_ingress_is_encrypted_and_lets_streams_through(self) -> None:
        ingress = rendered(replace(PAGE, host="page.example.org"))[NAME]["Ingress"]
        assert ingress["spec"]["tls"] == [
            {"hosts": ["page.example.org"], "secretName": f"{NAME}-tls"}
        ]
        message = ingress["metadata"]["annotations"]
        assert message["nginx.ingress.kubernetes.io/proxy-buffering"] == "off"
        (rule,) = ingress["spec"]["rules"]
        backend = rule["http"]["paths"][0]["backend"]["service"]
        assert backend == {"name": NAME, "port": {"name": "http"}}

    def test_a_gateway_of_the_gateway_api_gets_a_route_to_its_port(self) -> None:
        result = rendered(replace(PAGE, host="page.example.org"), parent="ingress/public")[NAME]
        (rule,) = result["HTTPRoute"]["spec"]["rules"]
        assert rule["backendRefs"] == [{"name": NAME, "port": 7860}]

    @pytest.mark.parametrize(
        ("page", "more", "sentence"),
        [
            ({"host": "My page"}, {}, "host of the page 'My page' is not accepted"),
            ({"desk": "http://me:x@desk"}, {}, "--ui-desk is not an address such as http://desk"),
            ({"desk": "http://desk:port"}, {}, "http://desk:port has no port from 1 to 65535"),
            ({"desk": "http://desk:99999"}, {}, "http://desk:99999 has no port from 1 to 65535"),
            ({"host": "a.b"}, {"host": "a.b"}, "a.b is the host of gateway and page"),
        ],
    )
    def test_what_would_be_refused_later_is_refused_in_one_sentence(
        self, page: dict[str, Any], more: dict[str, Any], sentence: str
    ) -> None:
        with pytest.raises(UserError, match=sentence):
            rendered(replace(PAGE, **page), **more)


def test_all_objects_are_in_the_namespace_of_the_server() -> None:
    gateway = Gateway("localhost/loraline-gateway:dev", page=replace(PAGE, host="page.example.org"))
    result = objects(gateway, where=Placement(namespace="models"))[NAME]
    assert {entry["metadata"]["namespace"] for entry in result.values()} == {"models"}
