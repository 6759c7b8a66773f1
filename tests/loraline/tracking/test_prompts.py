"""The prompt has a name and a number in MLflow's registry, whoever brought it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from loraline.errors import UserError
from loraline.tracking import prompts, store
from loraline.tracking.prompts import Prompt


def test_a_file_is_registered_on_first_use_and_found_again(workplace: Path) -> None:
    client = store.connect()
    (workplace / "prompt.txt").write_text("Say it: {question}\n")
    given = prompts.resolve(None, workplace / "prompt.txt", client)
    first = prompts.register(client, given, "support-prompt")
    assert first == Prompt("Say it: {question}", "support-prompt", 1)
    assert prompts.register(client, given, "support-prompt") == first
    other = prompts.register(client, Prompt("Tell: {question}"), "support-prompt")
    assert other.version == 2
    assert client.load_prompt("prompts:/support-prompt/1").template == "Say it: {{question}}"


def test_an_equal_version_is_found_among_hundreds(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = store.connect()
    for number in range(4):
        client.register_prompt("ask", f"{number}: {{{{question}}}}")
    search = client.search_prompt_versions
    pages = []

    def paged(name: str, page_token: str | None = None) -> Any:
        pages.append(page_token)
        return search(name, max_results=2, page_token=page_token)

    monkeypatch.setattr(client, "search_prompt_versions", paged)
    assert prompts.register(client, Prompt("0: {question}"), "ask").version == 1
    assert len(pages) == 2


def test_a_registry_that_is_away_gets_no_second_version(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.exceptions import MlflowException

    client = store.connect()
    prompts.register(client, Prompt("Say it: {question}"), "ask")

    def fail(name: str, page_token: str | None = None) -> Any:
        raise MlflowException("API request failed: Max retries exceeded")

    with monkeypatch.context() as patches:
        patches.setattr(client, "search_prompt_versions", fail)
        with pytest.raises(MlflowException, match="Max retries"):
            prompts.register(client, Prompt("Say it: {question}"), "ask")
    assert len(client.search_prompt_versions("ask")) == 1


@pytest.mark.parametrize("uri", ["prompts:/ask/1", "prompts:/ask@production"])
def test_the_registry_is_asked_by_version_or_alias(uri: str, workplace: Path) -> None:
    client = store.connect()
    client.register_prompt("ask", "Ask {{ question }} now")
    client.register_prompt("ask", "newer {{question}}")
    client.set_prompt_alias("ask", "production", 1)
    result = prompts.resolve(uri, None, client)
    assert result == Prompt("Ask {question} now", "ask", 1)
    assert result.uri == "prompts:/ask/1"
    assert prompts.register(client, result, "another") == result


@pytest.mark.parametrize("uri", ["prompts:/nobody/1", "prompts:/nobody@here", "prompts:/nobody"])
def test_a_prompt_that_is_not_there_is_said(uri: str, workplace: Path) -> None:
    with pytest.raises(UserError, match=rf"--prompt {uri} is not in MLflow at sqlite"):
        prompts.resolve(uri, None, store.connect())


@pytest.mark.parametrize("template", ["Look: <image> {question}", "<video>"])
def test_a_prompt_with_a_media_tag_is_refused(template: str, tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text(template)
    with pytest.raises(UserError, match="the prompt must not contain <"):
        prompts.resolve(str(tmp_path / "p.txt"), None, None)


def test_a_prompt_file_that_cannot_be_read_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read: No such file"):
        prompts.resolve(str(tmp_path / "gone.txt"), None, None)
    (tmp_path / "p.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="is not UTF-8"):
        prompts.resolve(str(tmp_path / "p.txt"), None, None)


class TestLink:
    @pytest.fixture
    def runs(self, workplace: Path) -> Any:
        """The store, and what makes a run with parameters in it."""
        client = store.connect()
        experiment = client.get_experiment_by_name("vllm-lora-training").experiment_id

        def run(**params: str) -> Any:
            made = client.create_run(experiment)
            for name, value in params.items():
                client.log_param(made.info.run_id, name, value)
            return client.get_run(made.info.run_id)

        return client, run

    def test_a_run_shows_the_version_that_it_was_asked_with(self, runs: Any) -> None:
        client, run = runs
        client.register_prompt("ask", "Ask {{question}}")
        client.register_prompt("ask", "Tell {{question}}")
        user = run()
        for _ in range(2):
            prompts.link(client, run(prompt_uri="prompts:/ask/2"), user)
        linked = client.get_run(user.info.run_id).data.tags["mlflow.linkedPrompts"]
        assert json.loads(linked) == [{"name": "ask", "version": "2"}]

    @pytest.mark.parametrize("params", [{}, {"prompt_uri": "prompts:/gone/1"}])
    def test_without_a_prompt_there_is_no_link(self, runs: Any, params: dict[str, str]) -> None:
        client, run = runs
        user = run()
        prompts.link(client, run(**params), user)
        assert "mlflow.linkedPrompts" not in client.get_run(user.info.run_id).data.tags
