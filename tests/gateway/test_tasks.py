"""A task is a file; what is wrong in one is said in a sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from gateway import tasks
from gateway.parsing import PARSERS
from loraline.errors import UserError

BUILT_IN = tasks.load(None)
GOOD: dict[str, Any] = {
    "title": "Plates",
    "description": "Reads number plates.",
    "inputs": "image",
    "variables": {"country": "Malaysia"},
    "prompts": {"default": "Read all number plates of {country} as JSON."},
    "answer": {"type": "array", "items": {"type": "string"}},
    "parser": "json",
}


def written(folder: Path, change: dict[str, Any] | None = None) -> Path:
    (folder / "plates.yaml").write_text(yaml.safe_dump(GOOD | (change or {})))
    return folder


def test_the_promised_tasks_are_there() -> None:
    assert sorted(BUILT_IN) == [
        "computer", "document-html", "document-markdown", "key-facts", "mobile", "ocr-lines",
        "ocr-text", "recognition", "recognition-boxes", "spatial-3d", "spatial-boxes",
        "spatial-points", "video-events", "video-moments",
    ]  # fmt: skip


@pytest.mark.parametrize("name", sorted(BUILT_IN))
def test_every_task_asks_every_family_that_sees(name: str) -> None:
    task = BUILT_IN[name]
    given = {name: "x" for name, default in task.variables.items() if default is None}
    media = [{"type": "image_url", "image_url": {"url": "data:,"}}]
    for family in (*tasks.SHOWING, "default"):
        *_, user = task.messages(family, media, **given, width=10, height=20)
        text = next(part["text"] for part in user["content"] if part["type"] == "text")
        assert text
        assert "{" not in text or "{text}" not in text
        assert (user["content"][0] != media[0]) == (family == "qwen2.5-vl")
    with pytest.raises(UserError, match="family 'text' sees none"):
        task.prompt("text", **given)


def test_parsers_are_known_by_the_same_names() -> None:
    assert set(tasks.Parser.__args__) == set(PARSERS)  # type: ignore[attr-defined]


def test_a_file_in_a_folder_is_a_task(tmp_path: Path) -> None:
    task = tasks.load(written(tmp_path))["plates"]
    assert task.prompt("qwen3-vl") == "Read all number plates of Malaysia as JSON."
    assert task.prompt("qwen3-vl", country="Chile") == "Read all number plates of Chile as JSON."
    assert set(tasks.load(tmp_path)) == {*BUILT_IN, "plates"}


def test_what_a_caller_writes_is_not_filled_again(tmp_path: Path) -> None:
    task = tasks.load(written(tmp_path))["plates"]
    asked = task.prompt("qwen3-vl", country="{width} {country}", width=9)
    assert asked == "Read all number plates of {width} {country} as JSON."


def test_screens_are_named_in_the_familys_own_pixels() -> None:
    task = BUILT_IN["computer"]
    assert "28x56" in str(task.system("qwen2.5-vl", text="x", width=28, height=56))
    assert "1000x1000" in str(task.system("qwen3-vl", text="x", width=28, height=56))


def test_a_request_asks_for_what_the_parser_needs() -> None:
    assert BUILT_IN["spatial-boxes"].sampling("qwen2-vl")["skip_special_tokens"] is False
    sampling = BUILT_IN["ocr-lines"].sampling("qwen3-vl")
    assert "skip_special_tokens" not in sampling
    assert (sampling["temperature"], sampling["max_tokens"]) == (0, 8192)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "task spatial-boxes needs variable 'text'"),
        ({"text": None}, "task spatial-boxes needs variable 'text'"),
        ({"text": "x", "colour": "red"}, "has no variable 'colour'; accepted: text"),
        ({"text": "x" * 10_001}, "variable 'text' has 10,001 characters, the limit is 10,000"),
    ],
)
def test_a_wrong_variable_is_refused_in_one_sentence(given: dict[str, Any], message: str) -> None:
    with pytest.raises(tasks.PromptError, match=message):
        BUILT_IN["spatial-boxes"].prompt("qwen3-vl", **given)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"promts": {}}, "unknown key 'promts' (accepted: answer, description"),
        ({"parser": "yaml"}, "parser: 'yaml' is refused, input should be 'text', 'json'"),
        ({"inputs": "audio"}, "inputs: 'audio' is refused"),
        ({"prompts": {"qwen2-vl": "{country}"}}, "prompts has none for qwen2.5-vl, qwen3-vl"),
        ({"prompts": {"gpt": "{country}", "default": "x"}}, "unknown family 'gpt' (accepted: "),
        ({"prompts": {"default": "Read."}}, "no prompt has a place for variable {country}"),
        ({"variables": {"width": "3"}}, "variable 'width' is refused"),
        ({"answer": {"type": "objekt"}}, "answer is no JSON schema"),
        ({"answer": {"$ref": "https://x/y"}}, "answer refers to 'https://x/y'"),
        ({"limits": {"max_tokens": 3}}, "unknown key 'limits.max_tokens'"),
        (
            {"limits": {"min_pixels": 9, "max_pixels": 8}},
            "limits.min_pixels 9 is above max_pixels 8",
        ),
    ],
)
def test_a_wrong_file_is_refused_in_one_sentence(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError) as refusal:
        tasks.load(written(tmp_path, change))
    assert message in str(refusal.value)
    assert "plates.yaml" in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("content", ["title: [", "- a", "just text", ""])
def test_a_file_that_is_no_task_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "plates.yaml").write_text(content)
    with pytest.raises(UserError, match=r"plates\.yaml"):
        tasks.load(tmp_path)


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no folder"):
        tasks.load(tmp_path / "absent")
