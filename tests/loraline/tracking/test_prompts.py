"""The prompt has a name and a number in MLflow's registry, whoever brought it."""

from __future__ import annotations

from pathlib import Path

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


@pytest.mark.parametrize("uri", ["prompts:/ask/1", "prompts:/ask@production"])
def test_the_registry_is_asked_by_version_or_alias(uri: str, workplace: Path) -> None:
    client = store.connect()
    client.register_prompt("ask", "Ask {{ question }} now")
    client.register_prompt("ask", "newer {{question}}")
    client.set_prompt_alias("ask", "production", 1)
    found = prompts.resolve(uri, None, client)
    assert found == Prompt("Ask {question} now", "ask", 1)
    assert found.uri == "prompts:/ask/1"
    assert prompts.register(client, found, "another") == found


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
