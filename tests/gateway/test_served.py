"""Which models stand behind a server's list, and whose contract is whose."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gateway.keys import entry as entry_of
from gateway.keys import new_key
from gateway.served import Entry, Model, models_of
from gateway.settings import Server
from loraline.contract import Contract
from tests.gateway.conftest import CONTRACT, picture, started
from tests.gateway.stub import Stub, served
from tests.gateway.test_faults import until

URL = "http://lora-radiology:8000"


def entry(export: str = "adapter", prompt: str = "Describe it.", **fields: Any) -> Entry:
    contract = Contract.model_validate(CONTRACT | {"export": export, "prompt": prompt})
    return Entry(Server(url=URL, **fields), contract)


def listing(*names: str, base: str = "base") -> Any:
    """What vLLM answers: the base with its length, and adapters with their folders."""
    items: list[dict[str, Any]] = [{"id": base, "root": base, "max_model_len": 512}]
    for name in names:
        version = name.rpartition("-v")[2] if "-v" in name else "3"
        items.append({"id": name, "root": f"/adapters/radiology/v{version}", "parent": base})
    return {"data": items}


def by_name(models: list[Model]) -> dict[str, Model]:
    return {model.name: model for model in models}


def test_one_adapter_is_the_contracts_and_the_base_is_what_it_says() -> None:
    models = by_name(models_of([entry(uri="models:/radiology/3")], listing("radiology")))
    assert models["radiology"].adapted and models["radiology"].uri == "models:/radiology/3"
    assert not models["base"].adapted and models["base"].role == "base"
    assert models["base"].contract is not None


def test_two_adapters_of_one_server_have_a_contract_each() -> None:
    entries = [
        entry(name="radiology", role="candidate", prompt="New."),
        entry(name="radiology-champion", role="champion", prompt="Old."),
    ]
    models = by_name(models_of(entries, listing("radiology", "radiology-champion")))
    prompts = {name: model.contract and model.contract.prompt for name, model in models.items()}
    assert prompts["radiology"] == "New." and prompts["radiology-champion"] == "Old."
    roles = {name: model.role for name, model in models.items()}
    assert roles == {"base": "base", "radiology": "candidate", "radiology-champion": "champion"}


@pytest.mark.parametrize(
    ("names", "own"),
    [
        (["radiology"], "radiology"),
        (["radiology", "radiology-v4"], "radiology-v4"),
        (["radiology-v9", "radiology-v10"], "radiology-v10"),
        (["radiology-champion", "radiology"], "radiology"),
    ],
)
def test_a_server_that_follows_an_alias_is_asked_for_its_newest_version(
    names: list[str], own: str
) -> None:
    asked = entry(name="radiology", uri="models:/radiology/3")
    models = [model for model in models_of([asked], listing(*names)) if model.adapted]
    assert [model.name for model in models] == [own]
    version = own.rpartition("-v")[2] if "-v" in own else "3"
    assert models[0].uri == f"models:/radiology/{version}"


def test_the_name_of_a_followed_adapter_is_its_newest_version_for_every_client(
    start: Any, stub: Stub, tmp_path: Path
) -> None:
    """The follower loads the version under a name of its own soon after the server's start: who
    asked by the adapter's name goes on, and a key for that name as well."""
    key, made = new_key("alice")
    file = tmp_path / "keys.json"
    file.write_text(f"[{entry_of(made.model_copy(update={'models': ('tiny-lora',)}))}]")
    before = stub.models
    adapter = {"object": "model", "parent": "base", "root": "/adapters/tiny-lora/v"}
    listed = [{"id": "base", "max_model_len": 512}, adapter | {"id": "tiny-lora"}]
    stub.models = [*listed, adapter | {"id": "tiny-lora-v4", "root": "/adapters/tiny-lora/v4"}]
    try:
        with start(server={"name": "tiny-lora"}, api_keys_file=file) as gateway:
            client = gateway.client
            client.headers["Authorization"] = f"Bearer {key}"
            asked = {"model": "tiny-lora"}
            answer = client.post("/predict", data=asked, files={"files": ("x.png", picture())})
            assert answer.status_code == 200, answer.text
            assert answer.json()["model_uri"] == "models:/tiny-lora/4"
            chat = asked | {"messages": [{"role": "user", "content": "Hello"}]}
            assert client.post("/v1/chat/completions", json=chat).status_code == 200
            cards = [model["id"] for model in client.get("/info").json()["models"]]
    finally:
        stub.models = before
    assert [each["model"] for each in stub.requests] == ["tiny-lora-v4"] * 2
    assert cards == ["tiny-lora-v4"]


def test_a_base_alone_has_a_size_for_its_images_and_no_prompt_of_its_own() -> None:
    (model,) = models_of([entry()], listing())
    assert not model.adapted and model.shown_size(640, 480) is not None


@pytest.mark.parametrize("fields", [{}, {"name": "base"}])
def test_a_merged_model_is_the_adapter(fields: dict[str, str]) -> None:
    (model,) = models_of([entry("merged", **fields)], listing())
    assert model.adapted and model.role is None


def test_an_adapter_that_no_contract_is_of_is_neither_a_base_nor_asked_as_trained() -> None:
    models = by_name(models_of([entry(name="radiology")], listing("radiology", "other")))
    assert not models["other"].adapted
    assert (models["other"].contract, models["other"].role) == (None, None)


class TestTwoServers:
    """An adapter's server, and one with the same base and more room for tasks."""

    @pytest.fixture
    def both(self, stub, stub_url, settings_for, tmp_path):
        roomy = Stub()
        roomy.models = [{"id": "base", "object": "model", "root": "base", "max_model_len": 32768}]
        with served(roomy.app()) as url:
            single = settings_for()
            first = single.servers[0]
            second = Server(url=url, contract=first.contract)
            settings = settings_for(GATEWAY_UPSTREAMS=(first, second))
            with started(settings) as gateway:
                yield gateway, stub, roomy

    def test_tasks_go_to_the_one_with_room_and_questions_to_the_adapters(self, both, png) -> None:
        gateway, narrow, roomy = both
        files = {"files": ("x.png", png)}
        assert gateway.client.post("/tasks/recognition", files=files).status_code == 200
        assert (len(narrow.requests), len(roomy.requests)) == (0, 1)
        assert gateway.client.post("/predict", files=files).status_code == 200
        assert gateway.client.post("/predict", files=files, data={"model": "base"}).is_success
        assert (len(narrow.requests), len(roomy.requests)) == (2, 1)

    def test_a_jobs_tasks_go_to_the_one_with_room_too(self, both, png) -> None:
        gateway, narrow, roomy = both
        for model, data in enumerate(({}, {"model": "base"})):
            job = gateway.client.post(
                "/jobs", files={"files": ("x.png", png)}, data={"task": "recognition", **data}
            ).json()["id"]
            path = f"/jobs/{job}"
            until(lambda path=path: gateway.client.get(path).json()["state"] == "done", 10)
            assert (len(narrow.requests), len(roomy.requests)) == (0, model + 1)

    def test_the_base_is_listed_once(self, both) -> None:
        gateway, _, _ = both
        names = [model["id"] for model in gateway.client.get("/v1/models").json()["data"]]
        assert names == ["base", "tiny-lora"]


def test_adapters_of_one_server_are_compared_each_with_its_own_prompt(
    stub, stub_url, settings_for, tmp_path, png, monkeypatch
) -> None:
    old = {"id": "old-lora", "object": "model", "root": "/adapters/old/v2", "parent": "base"}
    monkeypatch.setattr(stub, "models", [*stub.models, old])
    first = settings_for(server={"name": "tiny-lora", "role": "candidate"}).servers[0]
    changed = CONTRACT | {"prompt": "Read the formula."}
    second = settings_for(changed, {"name": "old-lora", "role": "champion"}).servers[0]
    with started(settings_for(GATEWAY_UPSTREAMS=(first, second))) as gateway:
        assert gateway.client.get("/ready").json()["servers_down"] == 0
        answer = gateway.client.post("/compare", files={"files": ("x.png", png)}).json()
    assert [each["model"] for each in answer["answers"]] == ["base", "tiny-lora", "old-lora"]
    prompts = {body["model"]: body["messages"][0]["content"][-1]["text"] for body in stub.requests}
    assert prompts["old-lora"] == "Read the formula."
    assert prompts["tiny-lora"] == CONTRACT["prompt"]


def test_the_gateway_says_its_version(start, monkeypatch) -> None:
    import tomllib
    from importlib import metadata

    from gateway.routes import state

    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    with start() as gateway:
        for address in ("/", "/info"):
            assert gateway.client.get(address).json()["version"] == project["version"]
    # An image has a copy of the sources, and no installed distribution.

    def not_installed(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(state, "version", not_installed)
    assert state.package_version() == project["version"]
