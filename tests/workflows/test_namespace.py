"""The namespace has what the workflows name, and gives no more than they need."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "workflows/cluster"
SPECS = [
    document["spec"].get("workflowSpec", document["spec"])
    for document in map(yaml.safe_load, (f.read_text() for f in ROOT.glob("workflows/*.yaml")))
]
Object = dict[str, Any]


def objects(folder: str) -> dict[tuple[str, str], Object]:
    """Everything in the files that a folder's kustomization lists, by kind and name."""
    listed = yaml.safe_load((CLUSTER / folder / "kustomization.yaml").read_text())["resources"]
    result = {}
    for file in listed:
        if file.endswith(".yaml"):
            for made in yaml.safe_load_all((CLUSTER / folder / file).read_text()):
                result[made["kind"], made["metadata"]["name"]] = made
    return result


BASE = objects("base")
SERVER = objects("mlflow")
FOLDERS = ("base", "existing", "laptop", "mlflow", "trainers")


def test_every_file_is_listed_or_patched_in() -> None:
    assert {folder.name for folder in CLUSTER.iterdir()} == set(FOLDERS)
    for folder in FOLDERS:
        text = (CLUSTER / folder / "kustomization.yaml").read_text()
        for file in (CLUSTER / folder).glob("*.yaml"):
            assert file.stem == "kustomization" or file.name in text


def test_the_executor_may_report_results_make_a_job_and_nothing_else() -> None:
    assert BASE["Role", "loraline"]["rules"] == [
        {
            "apiGroups": ["argoproj.io"],
            "resources": ["workflowtaskresults"],
            "verbs": ["create", "patch"],
        },
        {"apiGroups": ["batch"], "resources": ["jobs"], "verbs": ["create", "get", "patch"]},
    ]
    assert BASE["ServiceAccount", "loraline"]["automountServiceAccountToken"] is False
    assert not [kind for kind, _ in BASE if kind.startswith("ClusterRole")]


def test_a_queue_for_each_class(script: Any) -> None:
    classes = script("workflows/resources.py").CLASSES

    assert BASE["ConfigMap", "loraline-semaphores"]["data"].keys() == classes.keys()


def test_what_the_workflows_name_is_there() -> None:
    text = str(SPECS)
    settings = BASE["ConfigMap", "loraline"]["data"]
    for spec in SPECS:
        for volume in spec["volumes"]:
            claim = volume["persistentVolumeClaim"]["claimName"]
            assert ("PersistentVolumeClaim", claim) in BASE
        assert ("ServiceAccount", spec["serviceAccountName"]) in BASE
        for template in spec["templates"]:
            for variable in template.get("container", {}).get("env", []):
                source = variable.get("valueFrom", {}).get("configMapKeyRef", {})
                assert source.get("optional", True) or source["key"] in settings
    for name in re.findall(r"'configMapKeyRef': \{'name': '([\w-]+)'", text):
        assert ("ConfigMap", name) in BASE


def test_mlflow_answers_to_the_name_that_the_steps_call_it() -> None:
    (container,) = SERVER["Deployment", "mlflow"]["spec"]["template"]["spec"]["containers"]
    allowed = next(a for a in container["args"] if a.startswith("--allowed-hosts=")).split("=")[1]
    uri = BASE["ConfigMap", "loraline"]["data"]["mlflow-tracking-uri"]
    host = uri.removeprefix("http://")

    assert {host, host.partition(":")[0]} <= set(allowed.split(","))
    assert SERVER["Service", "mlflow"]["spec"]["ports"][0]["port"] == int(host.partition(":")[2])


def test_mlflow_asks_who_is_there_and_lets_others_only_read() -> None:
    """Whoever moves an alias decides what is served."""
    (container,) = SERVER["Deployment", "mlflow"]["spec"]["template"]["spec"]["containers"]
    variables = {variable.pop("name"): variable for variable in map(dict, container["env"])}
    settings = SERVER["ConfigMap", "mlflow-auth"]["data"]["basic-auth.ini"]

    assert "--app-name=basic-auth" in container["args"]
    assert "default_permission = READ" in settings.splitlines()
    for name in ("USERNAME", "PASSWORD"):
        key = f"MLFLOW_TRACKING_{name}"
        # Without `optional`: a server without credentials does not start.
        assert variables[key] == {"valueFrom": {"secretKeyRef": {"name": "loraline", "key": key}}}
        assert variables[f"MLFLOW_AUTH_ADMIN_{name}"] == {"value": f"$({key})"}
    for name, key in (
        ("MLFLOW_FLASK_SERVER_SECRET_KEY", "flask-secret-key"),
        ("AUTH_STORE_URI", "auth-store-uri"),
    ):
        assert variables[name] == {"valueFrom": {"secretKeyRef": {"name": "mlflow", "key": key}}}


def test_the_steps_ask_mlflow_with_the_credentials_of_the_same_secret() -> None:
    asking = [
        {variable["name"]: variable.get("valueFrom") for variable in template["container"]["env"]}
        for spec in SPECS
        for template in spec["templates"]
        if "MLFLOW_TRACKING_URI" in str(template.get("container", {}).get("env"))
    ]
    assert asking
    for variables in asking:
        for key in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
            # Optional, since a server outside may not ask.
            source = {"name": "loraline", "key": key, "optional": True}
            assert variables[key] == {"secretKeyRef": source}


def test_mlflows_users_are_kept_where_the_secret_says(tmp_path: Path) -> None:
    """The command writes the file that MLflow reads, a % in the password included."""
    import configparser

    (container,) = SERVER["Deployment", "mlflow"]["spec"]["template"]["spec"]["containers"]
    (tmp_path / "basic-auth.ini").write_text(
        SERVER["ConfigMap", "mlflow-auth"]["data"]["basic-auth.ini"]
    )
    mlflow = tmp_path / "bin/mlflow"
    mlflow.parent.mkdir()
    mlflow.write_text('#!/bin/sh\necho "$@"\n')
    mlflow.chmod(0o755)
    shell, flag, program, name = container["command"]
    written = tmp_path / "written.ini"
    program = program.replace("/etc/mlflow", str(tmp_path))
    program = program.replace("/tmp/basic-auth.ini", str(written))
    uri = "postgresql://mlflow:a%40b@postgres/auth"
    environment = {"PATH": f"{mlflow.parent}:/usr/bin:/bin", "AUTH_STORE_URI": uri}
    command = [shell, flag, program, name, *container["args"]]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert ended.stdout.split() == ["server", *container["args"]]
    read = configparser.ConfigParser()
    read.read(written)
    assert read["mlflow"]["database_uri"] == uri
    assert written.stat().st_mode & 0o077 == 0


def test_other_namespaces_reach_mlflow_only_with_a_label() -> None:
    policy = SERVER["NetworkPolicy", "mlflow"]["spec"]
    pod = SERVER["Deployment", "mlflow"]["spec"]["template"]
    (port,) = pod["spec"]["containers"][0]["ports"]

    assert policy["podSelector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()
    assert policy["policyTypes"] == ["Ingress"]
    (rule,) = policy["ingress"]
    assert rule["from"] == [
        {"podSelector": {}},
        {"namespaceSelector": {"matchLabels": {"loraline/mlflow": "yes"}}},
    ]
    assert rule["ports"] == [{"protocol": "TCP", "port": port["name"]}]


def test_no_secret_has_a_value_here() -> None:
    for file in CLUSTER.rglob("*.yaml"):
        for made in yaml.safe_load_all(file.read_text()):
            assert made["kind"] != "Secret" or not made.keys() & {"data", "stringData"}
            assert "secretGenerator" not in made


@pytest.mark.parametrize("name", ["mlflow"])
def test_the_services_have_no_privileges(name: str) -> None:
    pod = SERVER["Deployment", name]["spec"]["template"]["spec"]

    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    for container in pod["containers"]:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }


def test_a_quota_does_not_shut_out_argos_own_containers() -> None:
    asked = {
        key.removeprefix("requests.") for key in BASE["ResourceQuota", "loraline"]["spec"]["hard"]
    }
    (limits,) = BASE["LimitRange", "loraline"]["spec"]["limits"]

    assert asked & {"cpu", "memory"} <= limits["defaultRequest"].keys()


@pytest.fixture(scope="module")
def built() -> dict[str, list[Object]]:
    """The objects of each overlay, as kubectl would apply them."""
    if not shutil.which("kubectl"):
        pytest.skip("kubectl is not installed")
    made = {}
    for name in ("existing", "laptop"):
        command = ["kubectl", "kustomize", str(CLUSTER / name)]
        built = subprocess.run(command, capture_output=True, text=True, check=True)
        made[name] = list(yaml.safe_load_all(built.stdout))
    return made


@pytest.mark.parametrize("name", ["existing", "laptop"])
def test_an_overlay_is_what_kubernetes_takes(built: dict[str, list[Object]], name: str) -> None:
    for made in built[name]:
        kubernetes_validate.validate(made, "1.34", strict=True)


def test_a_cluster_that_has_mlflow_gets_no_second_one(built: dict[str, list[Object]]) -> None:
    assert "mlflow" not in {made["metadata"]["name"] for made in built["existing"]}
    settings = [m["data"] for m in built["existing"] if m["metadata"]["name"] == "loraline"
                and m["kind"] == "ConfigMap"]  # fmt: skip
    assert settings == [
        {
            "mlflow-tracking-uri": "https://mlflow.example.com",
            "mlflow-s3-endpoint-url": "https://s3.example.com",
        }
    ]


def test_a_trainer_submits_and_changes_no_workflow(built: dict[str, list[Object]]) -> None:
    verbs = {
        made["metadata"]["name"]: {verb for rule in made["rules"] for verb in rule["verbs"]}
        for made in built["existing"]
        if made["kind"] == "Role"
    }
    assert verbs["loraline-trainer"] == {"create", "get", "list", "watch"}
    assert verbs["loraline-reviewer"] - verbs["loraline-trainer"] == {"update", "patch"}
