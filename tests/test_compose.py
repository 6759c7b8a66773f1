"""The services of compose/, for people without a cluster: what can be held without an engine."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "compose/compose.yaml").read_text()
SERVICES: dict[str, Any] = yaml.safe_load(TEXT)["services"]
EXAMPLE = dict(
    line.split("=", 1)
    for line in (ROOT / "compose/.env.example").read_text().splitlines()
    if line and not line.startswith("#")
)
VARIABLE = re.compile(r"\$\{(\w+)(?::[-?][^}]*)?\}")
OURS = {"STEPS_IMAGE", "SERVE_IMAGE", "GPU_IMAGE", "GATEWAY_IMAGE", "PAGE_IMAGE"}


def of(kind: str) -> dict[str, Any]:
    """The services that a profile starts."""
    return {name: each for name, each in SERVICES.items() if kind in each.get("profiles", [kind])}


def test_the_example_has_every_variable_and_no_other() -> None:
    assert set(VARIABLE.findall(TEXT)) == set(EXAMPLE)


def test_no_secret_has_a_value() -> None:
    secrets = {name for name in EXAMPLE if re.search("PASSWORD|SECRET|API_KEY", name)}
    assert secrets and all(EXAMPLE[name] == "" for name in secrets)
    for name in secrets:
        assert f"${{{name}:?" in TEXT, "a service would start without it"


@pytest.mark.parametrize("kind", ["cpu", "gpu"])
def test_each_profile_has_the_whole_line(kind: str) -> None:
    assert set(of(kind)) == {
        "postgres", "s3", "folders", "bucket", "mlflow", "desk",
        f"vllm-{kind}", f"gateway-{kind}", f"page-{kind}",
    }  # fmt: skip
    for each in of(kind).values():
        waits = each.get("depends_on", {})
        assert set(waits) <= set(of(kind))
        for name, how in waits.items() if isinstance(waits, dict) else ():
            assert how["condition"] != "service_healthy" or "healthcheck" in of(kind)[name]


@pytest.mark.parametrize("kind", ["cpu", "gpu"])
def test_the_page_has_neither_the_servers_key_nor_a_way_to_mlflow(kind: str) -> None:
    page = of(kind)[f"page-{kind}"]
    assert not re.search("VLLM|MLFLOW|AWS|S3_", str(page))
    assert page["networks"] == ["front"]
    assert {"postgres", "s3", "mlflow"}.isdisjoint(
        name for name, each in of(kind).items() if "front" in each.get("networks", ())
    )


def test_nothing_is_reached_from_other_machines() -> None:
    for each in SERVICES.values():
        assert all(port.startswith("127.0.0.1:") for port in each.get("ports", ()))


def test_services_are_shut_in_but_the_two_that_cannot_be() -> None:
    open_ones = {name for name, each in SERVICES.items() if not each.get("read_only")}
    # A database sets up its own folder; what makes folders does so as root, without a network.
    assert open_ones == {"postgres", "folders"}
    assert SERVICES["folders"]["network_mode"] == "none"


def test_images_are_ours_or_pinned_as_on_the_cluster() -> None:
    cluster = "".join(path.read_text() for path in (ROOT / "workflows/cluster").rglob("*.yaml"))
    for name, each in SERVICES.items():
        image = each["image"]
        ours = VARIABLE.match(image)
        assert image.startswith("localhost/") or (ours and ours[1] in OURS) or ":" in image, name
    assert SERVICES["s3"]["image"] in cluster


def test_every_setting_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    from gateway.settings import Settings

    pytest.importorskip("gradio", reason="the page is an extra: pip install '.[ui]'")
    from gateway.ui.settings import Settings as Page

    gateway = SERVICES["gateway-cpu"]["environment"]
    page = SERVICES["page-cpu"]["environment"]
    known = {f"GATEWAY_{name.upper()}" for name in Settings.model_fields} | {"GATEWAY_UPSTREAMS"}
    assert set(gateway) <= known
    assert set(page) <= {f"UI_{name.upper()}" for name in Page.model_fields}


def test_commands_name_programs_of_the_repository() -> None:
    for each in SERVICES.values():
        for word in each.get("command", ()):
            if str(word).startswith("steps/"):
                assert (ROOT / word).is_file()
