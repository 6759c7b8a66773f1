from __future__ import annotations

import socket
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import yaml

from loraline.delivery import cluster as delivery_cluster
from loraline.delivery.checkout import commit
from loraline.delivery.doubts import doubts
from loraline.delivery.gateway import Gateway
from loraline.delivery.page import Page
from loraline.errors import TryAgain, UserError

VERSION = {"loraline/registered-version": "models:/tiny-lora/3"}
DEPLOYMENT = {
    "apiVersion": "apps/v1",
    "kind": "Deployment",
    "metadata": {"name": "lora-tiny-lora", "annotations": VERSION},
}
VALUES = {"servingEngineSpec": {"modelSpec": [{"name": "tiny-lora", "annotations": VERSION}]}}

READY = ("updatedReplicas", "readyReplicas", "replicas")

Git = Callable[..., str]


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    file = tmp_path / "vllm.yaml"
    file.write_text(yaml.safe_dump(DEPLOYMENT))
    return file


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    folder = tmp_path / "checkout"
    subprocess.run(["git", "init", "--quiet", folder], check=True)
    for key in ("name", "email"):
        subprocess.run(["git", "-C", folder, "config", f"user.{key}", "a@example.org"], check=True)
    return folder


@pytest.fixture
def git(checkout: Path) -> Git:
    return lambda *words: subprocess.check_output(["git", "-C", checkout, *words], text=True)


@pytest.mark.parametrize("content", [DEPLOYMENT, VALUES], ids=["objects", "values"])
def test_the_commit_names_the_version(
    content: Any, manifest: Path, checkout: Path, git: Git
) -> None:
    manifest.write_text(yaml.safe_dump(content))
    assert "is in commit" in commit(manifest, checkout)
    assert git("log", "--format=%s") == "Serve models:/tiny-lora/3\n"
    assert git("status", "--porcelain") == ""
    assert "is committed already" in commit(manifest, checkout)


@pytest.mark.parametrize("known", [True, False])
def test_changes_of_someone_else_are_not_overwritten(
    known: bool, manifest: Path, checkout: Path, git: Git
) -> None:
    target = checkout / "lora-tiny-lora.yaml"
    if known:
        commit(manifest, checkout)
    target.write_text("an edit\n")
    with pytest.raises(UserError, match=f"{target} has changes that are not committed"):
        commit(manifest, checkout)
    assert target.read_text() == "an edit\n"


@pytest.mark.parametrize("known", [True, False])
def test_a_hook_that_refuses_leaves_the_checkout_as_it_was(
    known: bool, manifest: Path, checkout: Path, git: Git
) -> None:
    if known:
        commit(manifest, checkout)
        manifest.write_text(manifest.read_text() + "spec: {}\n")
    hook = checkout / ".git" / "hooks" / "pre-commit"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text("#!/bin/sh\necho 'the linter says no' >&2\nexit 1\n")
    hook.chmod(0o755)
    with pytest.raises(UserError, match="git commit failed: the linter says no"):
        commit(manifest, checkout)
    assert git("status", "--porcelain") == ""


def test_git_is_told_in_its_reason_not_in_its_advice(
    manifest: Path, checkout: Path, git: Git
) -> None:
    (checkout / ".git" / "index.lock").touch()
    with pytest.raises(UserError, match=r"Unable to create '.*/index\.lock': File exists"):
        commit(manifest, checkout)
    (checkout / ".git" / "index.lock").unlink()
    (checkout / ".gitignore").write_text("*.yaml\n")
    with pytest.raises(UserError, match=r"ignored by one of your \.gitignore files: lora-tiny"):
        commit(manifest, checkout)
    assert not (checkout / "lora-tiny-lora.yaml").exists()


def kubeconfig(file: Path, user: dict[str, str], **cluster: str) -> Path:
    content = {
        "clusters": [{"name": "c", "cluster": {"server": "https://127.0.0.1:9", **cluster}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "users": [{"name": "u", "user": user}],
        "current-context": "c",
    }
    file.write_text(yaml.safe_dump(content))
    return file


def test_a_missing_client_is_named_with_what_installs_it(
    manifest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery_cluster, "find_spec", lambda name: None)

    with pytest.raises(UserError, match=r"not installed: pip install '\.\[cluster\]'"):
        delivery_cluster.apply(manifest, print)


@pytest.mark.parametrize(
    "content",
    [None, "", "[1]", "{", "words", "current-context: ''\nclusters: []\ncontexts: []\nusers: []"],
)
def test_a_kubeconfig_without_a_cluster_is_named(
    content: str | None, manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "config"
    if content is not None:
        file.write_text(content)
    monkeypatch.setenv("KUBECONFIG", str(file))
    with pytest.raises(UserError, match=f"finds no cluster in kubeconfig {file}: ") as error:
        delivery_cluster.apply(manifest, print)
    assert "\n" not in str(error.value)


def test_a_cluster_that_does_not_answer_is_named_with_the_reason(
    manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(kubeconfig(tmp_path / "config", {})))
    with pytest.raises(TryAgain, match=r"https://127\.0\.0\.1:9 does not answer: .*refused"):
        delivery_cluster.apply(manifest, print)


def test_a_key_that_is_none_is_no_matter_of_time(
    manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("certificate", "key"):
        (tmp_path / name).write_text("no PEM")
    user = {f"client-{name}": str(tmp_path / name) for name in ("certificate", "key")}
    with socket.socket() as cluster:
        cluster.bind(("127.0.0.1", 0))
        cluster.listen()
        server = f"https://127.0.0.1:{cluster.getsockname()[1]}"
        file = kubeconfig(tmp_path / "config", user, server=server)
        monkeypatch.setenv("KUBECONFIG", str(file))
        with pytest.raises(UserError, match=f"{server} does not take the kubeconfig's keys: .*PEM"):
            delivery_cluster.apply(manifest, print)


@pytest.mark.parametrize("variable", ["MLFLOW_TRACKING_URI", "MLFLOW_S3_ENDPOINT_URL"])
def test_a_pod_that_has_to_fetch_needs_a_store(variable: str) -> None:
    fetching = {"name": "fetch-adapter", "env": [{"name": variable, "value": "http://mlflow"}]}
    pod = {"initContainers": [fetching]}
    deployment = {"spec": {"template": {"spec": pod}}}
    assert delivery_cluster.knows_store(deployment) == (variable == "MLFLOW_TRACKING_URI")


def claim(mode: str, storage: str = "10Gi") -> dict[str, Any]:
    return {
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "lora-tiny-lora"},
        "spec": {"accessModes": [mode], "resources": {"requests": {"storage": storage}}},
    }


def test_a_claim_that_would_have_to_change_is_told_with_what_to_do() -> None:
    one, several = claim("ReadWriteOnce"), claim("ReadWriteMany")
    with pytest.raises(UserError) as error:
        delivery_cluster.reconcile_claims([several, DEPLOYMENT], [one, DEPLOYMENT])
    assert "lora-tiny-lora is ReadWriteOnce, this number of replicas needs ReadWriteMany" in (
        str(error.value)
    )
    assert "--base-volume" in str(error.value) and "delete the Deployment" in str(error.value)
    delivery_cluster.reconcile_claims([several, DEPLOYMENT], [None, DEPLOYMENT])
    delivery_cluster.reconcile_claims([several], [several])


def test_a_claim_keeps_its_size_where_a_smaller_base_needs_less() -> None:
    """Kubernetes refuses to reduce one, and a larger one serves as well."""
    needs, has = claim("ReadWriteOnce", "10Gi"), claim("ReadWriteOnce", "30Gi")
    delivery_cluster.reconcile_claims([needs], [has])
    assert needs["spec"]["resources"]["requests"]["storage"] == "30Gi"
    needs, has = claim("ReadWriteOnce", "31Gi"), claim("ReadWriteOnce", "30720Mi")
    delivery_cluster.reconcile_claims([needs], [has])
    assert needs["spec"]["resources"]["requests"]["storage"] == "31Gi"


def test_what_an_image_does_not_say_is_doubted() -> None:
    known = {"MLFLOW_TRACKING_URI": "http://mlflow:5000"}
    pinned = f"registry.example/vllm:v0.32.0@sha256:{'0' * 64}"
    assert doubts("registry.example/loraline:1", known, pinned) == []
    message = doubts("registry.example/loraline:1", known, "registry.example/vllm:prod")
    assert [doubt.split(";")[0] for doubt in message] == [
        "registry.example/vllm:prod does not say which vLLM it holds",
        "registry.example/vllm:prod is not pinned by digest",
    ]
    assert "--server-image registry.example/vllm:prod@sha256:DIGEST" in message[1]


def test_what_the_gateways_replicas_do_not_share_is_doubted() -> None:
    server = "vllm/vllm-openai:v0.32.0@sha256:" + "0" * 64
    known = {"MLFLOW_TRACKING_URI": "http://mlflow:5000"}
    message = doubts("registry.example/loraline:1", known, server, Gateway("localhost/gateway:dev"))
    assert [sentence.partition(",")[0].partition(";")[0] for sentence in message] == [
        "the gateway's image localhost/gateway:dev is on no registry",
        "each replica of the gateway keeps jobs and sessions of its own",
        "each replica of the gateway counts rates and tokens on its own",
    ]
    page = Page("localhost/page:dev")
    shared = Gateway("registry.example/gateway:1", volume="kept", redis_port=6379, page=page)
    (sentence,) = doubts("registry.example/loraline:1", known, server, shared)
    assert sentence.startswith("the page's image localhost/page:dev is on no registry")
    shared = replace(shared, page=Page("registry.example/page:1"))
    assert doubts("registry.example/loraline:1", known, server, shared) == []


KEYS = {"secretName": "lora-a-gateway", "items": [{"key": "keys.json", "path": "keys.json"}]}


class TestSecrets:
    def deployment(self, *volumes: dict[str, Any], **more: Any) -> dict[str, Any]:
        pod = {"spec": {"volumes": list(volumes), **more}}
        return {"metadata": {"name": "lora-a-gateway"}, "spec": {"template": pod}}

    @pytest.mark.parametrize("there", [True, False])
    def test_credentials_that_are_not_in_the_namespace_are_warned_of(self, there: bool) -> None:
        key, tag = (
            {"name": name, "valueFrom": {"secretKeyRef": {"name": "loraline", "key": name} | more}}
            for name, more in (("AWS_ACCESS_KEY_ID", {"optional": True}), ("verify-key", {}))
        )
        plain = {"name": "HOME", "value": "/tmp"}
        deployment = self.deployment(initContainers=[{"env": [plain, key, tag]}])
        said: list[str] = []
        look = (lambda entry: entry) if there else (lambda entry: None)
        delivery_cluster.check_secrets([deployment], look, said.append)
        expected = (
            []
            if there
            else [
                "warning: there is no Secret loraline in this namespace, so that its pods fetch "
                "without AWS_ACCESS_KEY_ID, verify-key"
            ]
        )
        assert [sentence.partition(";")[0] for sentence in said] == expected

    def test_one_that_is_missing_is_named_with_what_makes_it(self) -> None:
        deployment = self.deployment({"name": "tmp"}, {"name": "keys", "secret": KEYS})
        with pytest.raises(UserError) as refused:
            delivery_cluster.check_secrets([deployment], lambda entry: None, print)
        assert str(refused.value).endswith(
            "the Secret lora-a-gateway of lora-a-gateway does not exist; make it: "
            "kubectl create secret generic lora-a-gateway --from-file=keys.json"
        )
        delivery_cluster.check_secrets([deployment], lambda entry: entry, print)

    @pytest.mark.parametrize(("status", "passes"), [(403, True), (500, False)])
    def test_who_may_not_read_secrets_is_not_stopped(self, status: int, passes: bool) -> None:
        from kubernetes.client import ApiException

        def look(entry: dict[str, Any]) -> dict[str, Any]:
            raise ApiException(status=status)

        deployment = self.deployment({"name": "keys", "secret": KEYS})
        if passes:
            delivery_cluster.check_secrets([deployment], look, print)
            return
        with pytest.raises(ApiException):
            delivery_cluster.check_secrets([deployment], look, print)


@pytest.mark.parametrize("refused", [True, False])
def test_a_roll_back_that_fails_says_whether_the_cluster_answered(
    refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kubernetes.client import ApiException
    from urllib3.exceptions import ProtocolError

    def apply(*_: Any) -> None:
        raise ApiException(403, "Forbidden") if refused else ProtocolError("reset")

    monkeypatch.setattr(delivery_cluster, "apply_object", apply)
    why = (
        "the cluster refused to put it back (403 Forbidden)"
        if refused
        else "the cluster did not answer"
    )
    with pytest.raises(TryAgain) as failed:
        delivery_cluster.roll_back(cast(Any, None), [(DEPLOYMENT, DEPLOYMENT)], "default")
    assert str(failed.value) == (
        f"lora-tiny-lora was not deployed, and is left half applied since {why}; "
        "deploy the version before it again"
    )


@pytest.mark.parametrize("other", ["models:/tiny-lora/4", None])
def test_what_somebody_else_has_applied_meanwhile_is_left(
    manifest: Path, monkeypatch: pytest.MonkeyPatch, other: str | None
) -> None:
    def deployment(version: str | None) -> dict[str, Any]:
        annotations = {"loraline/registered-version": version} if version else None
        template = {"metadata": {"annotations": annotations}, "spec": {}}
        spec = {"template": template, "progressDeadlineSeconds": 600, "replicas": 1}
        status = {"observedGeneration": 2, **dict.fromkeys(READY, 1)}
        return {**DEPLOYMENT, "spec": spec, "status": status}

    class Deployments:
        def get(self, **_: Any) -> Any:
            current = deployment(other)
            current["metadata"] = {**current["metadata"], "generation": 2}
            return SimpleNamespace(to_dict=lambda: current)

    applied = []
    manifest.write_text(yaml.safe_dump(deployment("models:/tiny-lora/3")))
    monkeypatch.setattr(delivery_cluster, "connect", lambda _: (None, "models"))
    monkeypatch.setattr(delivery_cluster, "live", lambda *_: deployment("models:/tiny-lora/2"))
    monkeypatch.setattr(delivery_cluster, "resource_type", lambda *_: Deployments())
    monkeypatch.setattr(
        delivery_cluster, "apply_object", lambda _, entry, __: applied.append(entry)
    )
    with pytest.raises(UserError) as error:
        delivery_cluster.apply(manifest, print)
    assert str(error.value) == (
        "lora-tiny-lora was applied by somebody else meanwhile, and is for "
        f"{other or 'something else'} now; that is left as it is"
    )
    assert len(applied) == 1, "and the version before is not put back over it"


def test_what_an_earlier_manifest_has_left_is_told() -> None:
    said: list[str] = []
    there = {"lora-tiny-lora", "lora-tiny-lora-gateway", "lora-tiny-lora-page"}

    def look(entry: dict[str, Any]) -> dict[str, Any] | None:
        return entry if entry["metadata"]["name"] in there else None

    delivery_cluster.warn_of_leftovers([DEPLOYMENT], look, said.append)
    assert [sentence.split(" of an")[0] for sentence in said] == [
        "warning: the Deployment lora-tiny-lora-gateway",
        "warning: the Deployment lora-tiny-lora-page",
        "warning: the HorizontalPodAutoscaler lora-tiny-lora",
    ]


def test_what_a_manifest_brings_again_is_no_leftover() -> None:
    gateway = {"kind": "Deployment", "metadata": {"name": "lora-tiny-lora-gateway"}}
    scaler = {"kind": "HorizontalPodAutoscaler", "metadata": {"name": "lora-tiny-lora"}}
    said: list[str] = []

    def look(entry: dict[str, Any]) -> dict[str, Any] | None:
        from kubernetes.client import ApiException

        if entry["metadata"]["name"].endswith("-page"):
            raise ApiException(403, "Forbidden")
        return None if entry["metadata"]["name"].endswith("-tasks") else entry

    delivery_cluster.warn_of_leftovers([DEPLOYMENT, gateway, scaler], look, said.append)
    assert said == []
