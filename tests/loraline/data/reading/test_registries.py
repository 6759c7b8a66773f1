"""Registries of other tools are read as ours."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from made_data import kept, write_lines

from loraline.data.reading.entries import entries
from loraline.errors import UserError

TALK = [{"who": "ask", "says": "Where?"}, {"who": "reply", "says": "Here."}]
ASKED = (("user", "Where?"), ("assistant", "Here."))


def registry(folder: Path, content: object) -> Path:
    file = folder / "dataset_info.json"
    file.write_text(json.dumps(content))
    return file


def test_llama_factorys_registry_names_columns_and_tags(tmp_path: Path, prepare) -> None:
    write_lines(tmp_path / "talk.jsonl", [{"talk": TALK}])
    write_lines(tmp_path / "facts.jsonl", [{"ask": "Who?", "more": "", "reply": "Ada."}])
    file = registry(
        tmp_path,
        {
            "talk": {
                "file_name": "talk.jsonl",
                "formatting": "sharegpt",
                "columns": {"messages": "talk"},
                "tags": {
                    "role_tag": "who",
                    "content_tag": "says",
                    "user_tag": "ask",
                    "assistant_tag": "reply",
                },
            },
            "facts": {
                "file_name": "facts.jsonl",
                "columns": {"prompt": "ask", "query": "more", "response": "reply"},
            },
            "elsewhere": {"hf_hub_url": "somebody/set", "split": "train"},
        },
    )
    found = kept(prepare(f"{file}:talk,facts"))
    assert [record.messages for record in found] == [
        ASKED,
        (("user", "Who?"), ("assistant", "Ada.")),
    ]
    assert [entry.uri for entry in entries([str(file)])][2] == "hf://somebody/set:train"


def test_ms_swifts_registry_is_a_list(tmp_path: Path, prepare) -> None:
    write_lines(tmp_path / "rows.jsonl", [{"ask": "Where?", "reply": "Here."}])
    columns = {"ask": "query", "reply": "response"}
    file = registry(tmp_path, [{"dataset_path": "rows.jsonl", "columns": columns}])
    assert [record.messages for record in kept(prepare(file))] == [ASKED]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ({"features": {}, "splits": {}}, "describes one dataset and is no registry"),
        ({"a": {"file_name": "a.jsonl", "script_url": "a.py"}}, "'script_url', which is not read"),
        ({"a": {"formatting": "alpaca"}}, "names neither file_name nor hf_hub_url"),
        ({"a": {"file_name": "a.jsonl", "columns": {"odd": "b"}}}, "a column 'odd'"),
        ([{"subsets": []}], "has neither dataset_path nor hf_dataset_id"),
    ],
)
def test_what_a_registry_says_and_we_do_not_read_is_refused(
    content: object, told: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=told):
        entries([str(registry(tmp_path, content))])


def test_a_name_that_a_registry_has_not_is_refused(tmp_path: Path) -> None:
    file = registry(tmp_path, {"a": {"file_name": "a.jsonl"}})
    with pytest.raises(UserError, match="has no dataset 'b'; it has a"):
        entries([f"{file}:b"])
