from __future__ import annotations

import asyncio
import hashlib
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import httpx
import jwt
import pytest
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric import rsa

from gateway import keys, settings
from gateway import oidc as tokens
from gateway.oidc import name_of
from gateway.settings import Settings
from loraline.errors import UserError
from tests.gateway.conftest import ask_chat, started
from tests.gateway.stub import served
from tests.gateway.test_faults import until


@pytest.fixture
def keyed(start, tmp_path, stub):
    """A gateway with two keys: one may ask all, one the base alone."""
    entries, given = [], {}
    for name, more in (("alice", {}), ("bob", {"models": ["base"]})):
        given[name], entry = keys.new_key(name)
        entries.append(entry.model_dump(exclude_none=True) | more)
    (tmp_path / "keys.json").write_text(json.dumps(entries))
    with start(api_keys_file=tmp_path / "keys.json") as gateway:
        gateway.keys = given
        gateway.file = tmp_path / "keys.json"
        yield gateway


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def test_a_key_lets_in_and_is_never_passed_on(keyed, stub) -> None:
    answer = ask_chat(keyed, headers=bearer(keyed.keys["alice"]))
    assert answer.status_code == 200
    assert "Authorization" not in stub.headers[0]


@pytest.mark.parametrize(
    "header",
    [
        {},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer wrong"},
        {"Authorization": "Basic YWxpY2U6"},
        {"Authorization": "Bearer a.b.c"},
        {"Authorization": b"Bearer \xff\xfe"},
    ],
    ids=str,
)
def test_no_key_and_a_wrong_one_are_told_the_same(keyed, stub, header) -> None:
    answer = ask_chat(keyed, headers=header)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.json()["error"]["message"] == "Send a valid key as Authorization: Bearer KEY."
    assert not stub.requests


def test_a_key_in_the_address_is_none(keyed) -> None:
    assert keyed.client.get("/info", params={"api_key": keyed.keys["alice"]}).status_code == 401


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/info"),
        ("GET", "/metrics"),
        ("GET", "/tasks"),
        ("POST", "/tasks/ocr"),
        ("GET", "/v1/models"),
        ("POST", "/v1/chat/completions"),
        ("POST", "/predict"),
        ("POST", "/compare"),
        ("POST", "/jobs"),
        ("GET", "/jobs"),
        ("GET", "/jobs/" + "0" * 32),
        ("GET", "/jobs/" + "0" * 32 + "/results.jsonl"),
        ("DELETE", "/jobs/" + "0" * 32),
        ("POST", "/sessions"),
        ("GET", "/sessions"),
        ("GET", "/sessions/" + "0" * 32),
        ("PATCH", "/sessions/" + "0" * 32),
        ("DELETE", "/sessions/" + "0" * 32),
        ("POST", "/sessions/" + "0" * 32 + "/turns"),
        ("GET", "/sessions/" + "0" * 32 + "/export"),
        ("GET", "/sessions/" + "0" * 32 + "/media/x"),
    ],
)
def test_every_address_that_tells_or_does_something_wants_a_key(keyed, method, path) -> None:
    assert keyed.client.request(method, path).status_code == 401


def test_the_docs_and_the_probes_want_no_key(keyed) -> None:
    for path in ("/", "/health", "/ready", "/docs", "/openapi.json"):
        assert keyed.client.get(path).status_code == 200


def test_a_key_is_checked_before_the_body_is_read(keyed, stub) -> None:
    def endless():
        yield b"--x\r\n"
        raise AssertionError("the body was asked for")

    answer = keyed.client.post(
        "/predict",
        content=b"no form at all",
        headers={"content-type": "multipart/form-data; boundary=x"},
    )
    assert answer.status_code == 401


def test_a_key_sees_its_models_alone(keyed) -> None:
    bob = bearer(keyed.keys["bob"])
    listed = keyed.client.get("/v1/models", headers=bob).json()["data"]
    assert [model["id"] for model in listed] == ["base"]
    assert ask_chat(keyed, headers=bob).status_code == 404
    assert ask_chat(keyed, headers=bob, model="base").status_code == 200


def test_a_key_for_some_models_is_answered_by_the_first_that_it_may_ask(keyed, stub, png) -> None:
    bob, files = bearer(keyed.keys["bob"]), {"files": ("x", png)}
    answer = keyed.client.post("/predict", files=files, headers=bob)
    assert (answer.status_code, answer.json().get("model")) == (200, "base"), answer.text
    alice = bearer(keyed.keys["alice"])
    assert keyed.client.post("/predict", files=files, headers=alice).json()["model"] == "tiny-lora"
    refused = keyed.client.post("/compare", files=files, headers=bob)
    assert (refused.status_code, refused.json()["code"]) == (422, "models")
    assert "this key" in refused.json()["detail"]
    assert keyed.client.post("/compare", files=files, headers=alice).status_code == 200


@pytest.fixture
def several(settings_for, tmp_path, stub, monkeypatch):
    """Four adapters of one server, two of each role, and a key for some of the models."""
    names = ["new-a", "new-b", "old-a", "old-b"]
    listed = [
        {"id": name, "object": "model", "root": f"/adapters/{name}/v1", "parent": "base"}
        for name in names
    ]
    monkeypatch.setattr(stub, "models", [stub.models[0], *listed])
    roles = ["candidate", "candidate", "champion", "champion"]
    servers = tuple(
        settings_for(server={"name": name, "role": role}).servers[0]
        for name, role in zip(names, roles, strict=True)
    )

    @contextmanager
    def gateway_for(*models: str):
        key, entry = keys.new_key("carol")
        entries = [entry.model_dump(exclude_none=True) | {"models": models}]
        (tmp_path / "keys.json").write_text(json.dumps(entries))
        settings = settings_for(GATEWAY_UPSTREAMS=servers, api_keys_file=tmp_path / "keys.json")
        with started(settings) as gateway:
            gateway.client.headers.update(bearer(key))
            yield gateway

    return gateway_for


def test_a_role_and_a_default_are_those_of_the_key(several, stub, png) -> None:
    files = {"files": ("x", png)}
    with several("new-b", "old-b") as gateway:
        client = gateway.client
        for path, fields, model in (
            ("/predict", {}, "new-b"),
            ("/predict", {"model": "candidate"}, "new-b"),
            ("/predict", {"model": "champion"}, "old-b"),
            ("/tasks/recognition", {}, "new-b"),
            ("/tasks/recognition", {"model": "champion"}, "old-b"),
        ):
            answer = client.post(path, files=files, data=fields).json()
            assert answer.get("model") == model, (path, fields, answer)
        answer = client.post("/compare", files=files).json()
        assert [each["model"] for each in answer["answers"]] == ["new-b", "old-b"]
        for name in ("base", "new-a"):
            refused = client.post("/predict", files=files, data={"model": name})
            assert (refused.status_code, refused.json()["code"]) == (404, "model_unknown")
        job = client.post("/jobs", files=files, data={"task": "recognition"}).json()["id"]
        until(lambda: client.get(f"/jobs/{job}").json()["state"] == "done")
        result = json.loads(client.get(f"/jobs/{job}/results.jsonl").text)
        assert result["answer"]["model"] == "new-b"


def test_a_key_for_no_model_that_is_up_is_refused_clearly(several, stub, png) -> None:
    with several("gone") as gateway:
        for path in ("/predict", "/tasks/recognition", "/compare"):
            answer = gateway.client.post(path, files={"files": ("x", png)})
            assert (answer.status_code, answer.json()["code"]) == (404, "model_unknown"), path
            assert answer.json()["detail"] == "None of the models that are up is for this key."
    assert not stub.requests


def test_a_key_for_all_compares_the_first_of_each_role(several, stub, png) -> None:
    with several("base", "new-a", "new-b", "old-a", "old-b") as gateway:
        answer = gateway.client.post("/compare", files={"files": ("x", png)}).json()
    assert [each["model"] for each in answer["answers"]] == ["base", "new-a", "old-a", "new-b"]


def test_the_servers_key_goes_to_the_server_alone(start, stub) -> None:
    stub.key = "vllms-own"
    try:
        with start(vllm_api_key="vllms-own") as gateway:
            answer = ask_chat(gateway)
            assert answer.status_code == 200
            assert stub.headers[0]["Authorization"] == "Bearer vllms-own"
            assert "vllms-own" not in answer.text + str(answer.headers)
    finally:
        stub.key = None


def test_a_changed_file_is_taken_and_a_broken_one_is_not(keyed, monkeypatch) -> None:
    monkeypatch.setattr(keys, "RELOAD_S", 0)
    carol, entry = keys.new_key("carol")
    keyed.file.write_text(json.dumps([entry.model_dump(exclude_none=True)]))
    os.utime(keyed.file, (1, 1))
    assert ask_chat(keyed, headers=bearer(carol)).status_code == 200
    assert ask_chat(keyed, headers=bearer(keyed.keys["alice"])).status_code == 401
    keyed.file.write_text("[")
    os.utime(keyed.file, (2, 2))
    assert ask_chat(keyed, headers=bearer(carol)).status_code == 200


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("{", "Invalid JSON"),
        ('[{"name": "a", "key": "b"}]', "sha256: Field required"),
        ('[{"name": "a", "sha256": "plain"}]', "should match pattern"),
        ('[{"name": "a b", "sha256": "' + "0" * 64 + '"}]', "should match pattern"),
    ],
)
def test_a_file_of_another_form_stops_the_start(tmp_path, content, why) -> None:
    (tmp_path / "keys.json").write_text(content)
    with pytest.raises(UserError, match=why):
        keys.read(tmp_path / "keys.json")


def test_without_keys_it_listens_on_this_machine_only() -> None:
    with pytest.raises(ValueError, match="GATEWAY_API_KEYS_FILE"):
        Settings(host="0.0.0.0")  # noqa: S104


def test_the_command_line_says_so_in_one_sentence_and_exits_with_2() -> None:
    def run(*args: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "gateway", *args],
            env=os.environ | variables,
            capture_output=True,
            text=True,
        )

    ended = run("serve", GATEWAY_HOST="0.0.0.0")  # noqa: S104
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith("gateway: without keys the gateway listens on 127.0.0.1 only")
    assert ended.stderr.count("\n") == 1
    ended = run("serve", GATEWAY_RAET="1/second")
    assert (ended.returncode, ended.stderr) == (
        2,
        "gateway: GATEWAY_RAET is not a setting; docs/gateway.md lists them\n",
    )
    ended = run("serve", GATEWAY_UPSTREAMS="[{]")
    assert ended.returncode == 2 and ended.stderr.count("\n") == 1, ended.stderr
    made = run("new-key", "alice")
    key = made.stdout.split("\n")[0].removeprefix("key, shown once: ")
    entry = json.loads(made.stdout.split("\n")[1].removeprefix("entry of the keys' file: "))
    assert keys.Key(**entry).sha256 == hashlib.sha256(key.encode()).hexdigest()


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("GATEWAY_DATA_DIR", "/etc/passwd/data", "cannot be written: Not a directory"),
        ("GATEWAY_DATA_DIR", "/proc/data", "cannot be written: No such file or directory"),
        ("GATEWAY_AUDIT_FILE", "/etc/passwd/audit", "cannot be written: File exists"),
        ("GATEWAY_AUDIT_FILE", "/", "cannot be written: Is a directory"),
        ("GATEWAY_PDF_FONT", "/none.ttf", "is no file"),
        ("GATEWAY_MAX_JSON_MB", "inf", "finite number"),
        ("GATEWAY_CACHE_MB", "inf", "finite number"),
        ("GATEWAY_CLIENT_STALL_S", "inf", "finite number"),
    ],
)
def test_a_setting_that_cannot_be_used_is_one_sentence_at_the_start(
    tmp_path, name, value, why
) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "gateway", "serve"],
        env=os.environ | {"GATEWAY_DATA_DIR": str(tmp_path), "GATEWAY_PORT": "0", name: value},
        capture_output=True,
        text=True,
        timeout=20,
    )
    assert ended.returncode == 2, ended
    assert ended.stderr.startswith(f"gateway: {name}: ") and why in ended.stderr
    assert ended.stderr.count("\n") == 1


class Issuer:
    """An OpenID provider with one key."""

    def __init__(self) -> None:
        self.key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        self.other = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        self.url = ""
        self.fetches = 0
        self.status = 200
        self.delay = 0.0

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/.well-known/openid-configuration", self.discovery)
        app.router.add_get("/keys", self.keys)
        return app

    async def discovery(self, _: web.Request) -> web.Response:
        return web.json_response({"issuer": self.url, "jwks_uri": f"{self.url}/keys"})

    async def keys(self, _: web.Request) -> web.Response:
        self.fetches += 1
        await asyncio.sleep(self.delay)
        if self.status != 200:
            return web.Response(status=self.status)
        key = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(self.key.public_key()))
        return web.json_response({"keys": [key | {"kid": "one", "alg": "RS256", "use": "sig"}]})

    def token(self, key=None, algorithm="RS256", kid="one", **claims) -> str:
        claims = {
            "iss": self.url,
            "aud": "loraline",
            "sub": "dora",
            "exp": time.time() + 60,
        } | claims
        claims = {name: value for name, value in claims.items() if value is not None}
        return jwt.encode(claims, key or self.key, algorithm, headers={"kid": kid})


@pytest.fixture(scope="module")
def issuer():
    result = Issuer()
    with served(result.app()) as url:
        result.url = url
        yield result


@pytest.fixture(scope="module")
def oidc(start, issuer):
    with start(oidc_issuer=issuer.url, oidc_audience="loraline") as gateway:
        yield gateway


def test_a_token_of_the_issuer_lets_in(oidc, issuer, stub) -> None:
    assert ask_chat(oidc, headers=bearer(issuer.token())).status_code == 200


@pytest.mark.parametrize(
    "change",
    [
        {"exp": 1},
        {"exp": None},
        {"sub": None},
        {"aud": "another"},
        {"iss": "http://another"},
        {"nbf": 4_000_000_000},
        {"kid": "unknown"},
        {"key": "other"},
        {"algorithm": "HS256", "key": "k" * 32},
        {"algorithm": "none", "key": None},
    ],
    ids=str,
)
def test_any_other_token_does_not(oidc, issuer, stub, change) -> None:
    if change.get("key") == "other":
        change = {"key": issuer.other}
    if change.get("algorithm") == "none":
        _, claims, _ = issuer.token().split(".")
        token = f"eyJhbGciOiJub25lIiwia2lkIjoib25lIn0.{claims}."
    else:
        token = issuer.token(**change)
    assert ask_chat(oidc, headers=bearer(token)).status_code == 401
    assert not stub.requests


def test_unknown_keys_do_not_make_it_ask_the_issuer_each_time(oidc, issuer) -> None:
    before = issuer.fetches
    for number in range(20):
        ask_chat(oidc, headers=bearer(issuer.token(kid=f"unknown{number}")))
    assert issuer.fetches <= before + 1


@pytest.fixture
def fresh(start):
    """An issuer of its own, and a gateway that has not asked it yet."""
    issuer = Issuer()
    with served(issuer.app()) as url:
        issuer.url = url
        with start(oidc_issuer=url, oidc_audience="loraline") as gateway:
            yield gateway, issuer


def statuses(gateway, issuer, count: int) -> list[int]:
    """What the tokens of as many visitors at once are answered with."""

    def ask(number: int) -> int:
        token = issuer.token(sub=str(number))
        return httpx.get(f"{gateway.url}/info", headers=bearer(token), timeout=30).status_code

    with ThreadPoolExecutor(count) as threads:
        return list(threads.map(ask, range(count)))


def test_a_burst_of_tokens_asks_the_issuer_once(fresh, stub) -> None:
    gateway, issuer = fresh
    issuer.delay = 0.5
    assert statuses(gateway, issuer, 8) == [200] * 8
    assert issuer.fetches == 1


def test_an_issuer_that_fails_is_asked_again_after_a_pause_and_not_by_each_token(
    fresh, stub, monkeypatch
) -> None:
    gateway, issuer = fresh
    issuer.status, issuer.delay = 500, 0.2
    for _ in range(2):
        assert statuses(gateway, issuer, 8) == [503] * 8
    answer = gateway.client.get("/info", headers=bearer(issuer.token()))
    assert answer.json()["code"] == "oidc_unavailable"
    assert 1 <= int(answer.headers["retry-after"]) <= 5
    assert issuer.fetches == 1
    issuer.status = 200
    monkeypatch.setattr(tokens, "PAUSE_S", 0)
    assert statuses(gateway, issuer, 2) == [200] * 2
    assert issuer.fetches == 2


def test_known_keys_stay_valid_and_fast_while_the_issuer_fails(fresh, stub, monkeypatch) -> None:
    gateway, issuer = fresh
    assert statuses(gateway, issuer, 1) == [200]
    monkeypatch.setattr(tokens, "KEYS_S", 0)
    issuer.status, issuer.delay = 500, 1.0
    with ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(statuses, gateway, issuer, 1)
        while issuer.fetches < 2:
            time.sleep(0.01)
        began = time.perf_counter()
        assert statuses(gateway, issuer, 8) == [200] * 8
        assert time.perf_counter() - began < 0.8
        assert waiting.result() == [200]
    assert statuses(gateway, issuer, 8) == [200] * 8
    assert issuer.fetches == 2


def derived(subject: str) -> str:
    return f"{subject[:31]}-{hashlib.sha256(subject.encode()).hexdigest()[:32]}"


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("d" * 64 + "1", "d" * 64 + "2"),
        ("d" * 64, "d" * 64 + "1"),
        ("do\x00ra", "dora"),
        ("do\x00ra", "do\x01ra"),
        ("\x00", "\x01"),
        ("\ud800", "\ud801"),
        ("d" * 65, derived("d" * 65)),
    ],
    ids=repr,
)
def test_two_subjects_are_two_callers(oidc, issuer, stub, first, second) -> None:
    """What one of them keeps, the other must not find."""
    session = oidc.client.post("/sessions", json={}, headers=bearer(issuer.token(sub=first)))
    assert session.status_code == 201, session.text
    path = f"/sessions/{session.json()['id']}"
    assert oidc.client.get(path, headers=bearer(issuer.token(sub=first))).status_code == 200
    assert oidc.client.get(path, headers=bearer(issuer.token(sub=second))).status_code == 404


def test_a_caller_has_the_subjects_name_of_64_printable_characters_at_most() -> None:
    for subject in ("dora", "d" * 64, "auth0|5f7c8ec7c33c6c004bbafe82", "Zoë Ångström"):
        assert name_of(subject) == subject
    for subject in ("d" * 65, "do\nra", "x" * 100_000):
        assert len(name_of(subject)) <= 64 and name_of(subject).isprintable()


def test_a_service_of_the_gateways_name_is_no_setting(monkeypatch) -> None:
    """Kubernetes writes its address into each pod of the namespace."""
    for name in ("SERVICE_HOST", "SERVICE_PORT", "SERVICE_PORT_HTTP", "PORT_8080_TCP_ADDR"):
        monkeypatch.setenv(f"GATEWAY_{name}", "10.0.0.1")
    monkeypatch.setenv("GATEWAY_PORT", "tcp://10.0.0.1:8081")
    assert settings.read().port == 8080
