"""What is shown first of a server is a question that it answers right."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlflow
import pytest

from loraline.delivery import example
from loraline.tracking import registry, runs, store

PROMPT = "Answer in a few words. {question} Please."


@pytest.mark.parametrize(
    ("question", "reference", "tuned", "right"),
    [
        ("Answer in a few words. Who? Please.", "Ann", " Ann", True),
        ("Answer in a few words. Who? Please.", "Ann", "Bea", False),
        ("Answer in a few words. Who? Please.", "", "", False),
        ("[user] Hello\n[assistant] Hi\n[user] Who?", "Ann", "Ann", False),
        ("Answer in a few words. Who? Please.", "one\ntwo", "one\ntwo", False),
        ("<image>Answer in a few words. Who? Please.", "Ann", "Ann", True),
        ("<video>Answer in a few words. Who? Please.", "Ann", "Ann", False),
        ("<image><video>Answer in a few words. Who? Please.", "Ann", "Ann", False),
        ("Answer in a few words. <video>Who? Please.", "Ann", "Ann", False),
        ("<image><image>Answer in a few words. Who? Please.", "Ann", "Ann", False),
    ],
)
def test_only_one_question_with_its_right_answer_is_an_example(
    question: str, reference: str, tuned: str, right: bool
) -> None:
    row = {"question": question, "reference": reference, "tuned": tuned}
    assert example.is_right(row, PROMPT) is right


@pytest.mark.parametrize(
    ("question", "right"),
    [
        ("Who?", True),
        ("[1] Who?", True),
        ("[system] Be brief.\n[user] Who?", False),
        ("[user] Hello\n[assistant] Hi\n[user] Who?", False),
    ],
)
def test_without_words_in_the_prompt_several_turns_are_no_example(
    question: str, right: bool
) -> None:
    row = {"question": question, "reference": "Ann", "tuned": "Ann"}
    assert example.is_right(row, "{question}") is right


@pytest.mark.parametrize("table", [[], {}, {"columns": ["row"], "data": [[1]]}, {"columns": 1}])
def test_an_evaluation_of_another_form_is_none(table: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    logged = SimpleNamespace(info=SimpleNamespace(run_id="r"))
    client = SimpleNamespace(get_model_version=lambda *_: None, get_run=lambda _: logged)
    monkeypatch.setattr(store, "connect", lambda: client)
    monkeypatch.setattr(registry, "promoting_gate_run_of", lambda *_: "r")
    monkeypatch.setattr(runs, "ancestor", lambda *_: logged)
    monkeypatch.setattr(mlflow.artifacts, "load_dict", lambda _: table)
    assert example.of_version("models:/m/1", PROMPT) == []


def test_the_prompt_is_left_to_the_server() -> None:
    assert example.question_in("Answer in a few words. Who? Please.", PROMPT) == "Who?"
    assert example.question_in("<image>Write it down.", "Write it down.") == ""


def test_examples_are_left_for_the_page_with_their_images(tmp_path: Path) -> None:
    images = (None, b"\xff\xd8 a photo", b"\x89PNG")
    made = [example.Example("Who is it?", image, "Ann") for image in images]
    example.write(made, tmp_path / "examples")

    lines = (tmp_path / "examples" / example.LIST).read_text().splitlines()
    assert [json.loads(line)["files"] for line in lines] == [[], ["1.jpg"], ["2.png"]]
    assert json.loads(lines[0])["text"] == "Who is it?"
    assert (tmp_path / "examples" / "2.png").read_bytes() == b"\x89PNG"
    example.write([], tmp_path / "examples")
    assert (tmp_path / "examples" / example.LIST).read_text() == ""
