"""Registries of other tools are read as ours."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from made_data import kept, write_lines

from loraline.data.reading.entries import entries
from loraline.errors import UserError
from loraline.profiles.preparation import SourceSettings

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
    result = kept(prepare(f"{file}:talk,facts"))
    assert [record.messages for record in result] == [
        ASKED,
        (("user", "Who?"), ("assistant", "Ada.")),
    ]
    assert [entry.uri for entry in entries([str(file)])][2] == "hf://somebody/set:train"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("dataset_info.json", {"a": {"file_name": "a.json"}}),
        ("dataset_info.json", [{"dataset_path": "a.json"}]),
        ("axolotl.yaml", {"datasets": [{"path": "a.json", "type": "alpaca"}]}),
    ],
)
def test_what_a_registry_does_not_say_is_as_the_profile_says(
    name: str, content: object, tmp_path: Path
) -> None:
    (tmp_path / name).write_text(json.dumps(content))
    usual = SourceSettings(columns={"output": "reply"}, turns={"role": "who"})
    (entry,) = entries([str(tmp_path / name)], defaults=usual)
    assert (entry.columns, entry.turns) == ({"output": "reply"}, {"role": "who"})


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ('{"a": {"file_name": "a.jsonl"}, "a": {"file_name": "b.jsonl"}}', "a"),
        ('{"a": {"file_name": "a.jsonl", "file_name": "a.jsonl"}}', "file_name"),
    ],
)
def test_a_key_twice_in_a_registry_is_refused_as_in_ours(
    text: str, key: str, tmp_path: Path
) -> None:
    file = tmp_path / "dataset_info.json"
    file.write_text(text)
    with pytest.raises(UserError, match=f"is not valid JSON: key '{key}' is given twice"):
        entries([str(file)])


@pytest.mark.parametrize("name", ["dataset_info.json", "mine.yaml"])
def test_a_registry_that_is_nested_too_deeply_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("[" * 5000)
    with pytest.raises(UserError, match="is not valid"):
        entries([str(tmp_path / name)])


def test_ms_swifts_registry_is_a_list(tmp_path: Path, prepare) -> None:
    write_lines(tmp_path / "rows.jsonl", [{"ask": "Where?", "reply": "Here."}])
    columns = {"ask": "query", "reply": "response"}
    file = registry(tmp_path, [{"dataset_path": "rows.jsonl", "columns": columns}])
    assert [record.messages for record in kept(prepare(file))] == [ASKED]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"features": {}, "splits": {}}, "describes one dataset and is no registry"),
        ({"a": {"file_name": "a.jsonl", "script_url": "a.py"}}, "'script_url', which is not read"),
        ({"a": {"formatting": "alpaca"}}, "names neither file_name nor hf_hub_url"),
        ({"a": {"file_name": "a.jsonl", "columns": {"odd": "b"}}}, "a column 'odd'"),
        ({"a": {"file_name": "a.jsonl", "subset": "b"}}, "'subset', which is not read"),
        ({"a": {"file_name": "a.jsonl", "tags": {"odd_tag": "b"}}}, "a tag 'odd_tag'"),
        ([{"help": "?"}], "has neither dataset_path nor hf_dataset_id"),
        ([{"dataset_path": "a", "subsets": ["b"]}], "says subsets: "),
        ([{"dataset_path": "a", "split": ["test"]}], "says split: "),
        ([{"dataset_path": "a", "messages": {}}], "says messages: '{}', which is not read"),
    ],
)
def test_what_a_registry_says_and_we_do_not_read_is_refused(
    content: object, message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        entries([str(registry(tmp_path, content))])


def test_a_name_that_a_registry_has_not_is_refused(tmp_path: Path) -> None:
    file = registry(tmp_path, {"a": {"file_name": "a.jsonl"}})
    with pytest.raises(UserError, match="has no dataset 'b'; it has a"):
        entries([f"{file}:b"])


def axolotl(folder: Path, *datasets: object, **more: object) -> Path:
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump({"base_model": "x", "datasets": list(datasets), **more}))
    return file


def test_axolotls_configuration_names_files_columns_turns_and_roles(
    tmp_path: Path, prepare
) -> None:
    write_lines(tmp_path / "talk.jsonl", [{"talk": TALK}])
    write_lines(tmp_path / "facts.jsonl", [{"ask": "Who?", "more": "", "reply": "Ada."}])
    write_lines(tmp_path / "a.jsonl", [{"instruction": "What?", "input": "", "output": "This."}])
    file = axolotl(
        tmp_path,
        {
            "path": "talk.jsonl",
            "type": "chat_template",
            "chat_template": "chatml",
            "field_messages": "talk",
            "message_property_mappings": {"role": "who", "content": "says"},
            "roles": {"user": ["human", "ask"], "assistant": ["reply"]},
            "roles_to_train": ["assistant"],
            "train_on_eos": "turn",
        },
        {
            "path": "facts.jsonl",
            "type": {
                "system_prompt": "",
                "field_instruction": "ask",
                "field_input": "more",
                "field_output": "reply",
                "format": "{instruction}\n{input}",
                "no_input_format": "{instruction}",
            },
        },
        {"path": "json", "data_files": ["a.jsonl"], "ds_type": "json", "type": "alpaca"},
    )
    assert [record.messages for record in kept(prepare(file))] == [
        ASKED,
        (("user", "Who?"), ("assistant", "Ada.")),
        (("user", "What?"), ("assistant", "This.")),
    ]


def test_axolotls_datasets_may_be_on_the_hub_and_those_of_tests_are_for_validation(
    tmp_path: Path,
) -> None:
    file = axolotl(
        tmp_path,
        {"path": "some/set", "type": "sharegpt", "split": "train[:9]", "revision": "v1"},
        test_datasets=[{"path": "held.jsonl", "type": "alpaca", "split": "train"}],
    )
    listed = [(entry.uri, entry.split) for entry in entries([str(file)])]
    assert listed == [
        ("hf://some/set@v1:train[:9]", None),
        (f"{tmp_path}/held.jsonl", "validation"),
    ]


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"type": "completion"}, "has the type 'completion', which is not read; accepted: alpaca"),
        ({}, "has the type 'None', which is not read"),
        ({"type": "alpaca", "shards": 4}, "says shards: '4', which is not read"),
        ({"type": "alpaca", "split": "test"}, "says split: 'test', which is not read"),
        ({"type": "alpaca", "name": "subset"}, "says name: 'subset'"),
        ({"type": "chat_template", "roles_to_train": ["user"]}, "says roles_to_train: "),
        ({"type": "chat_template", "roles": {"user": ["a", "b"]}}, 'says "roles: user: '),
        ({"type": "chat_template", "message_field_training": "x"}, "message_field_training: x"),
        ({"type": "chat_template", "message_property_mappings": {"name": "x"}}, "says 'name: x'"),
        ({"type": {"field_output": "a", "format": "[INST] {instruction}"}}, "says format: "),
        ({"type": {"system_prompt": "Be brief."}}, "says system_prompt: "),
    ],
)
def test_what_axolotl_says_of_a_dataset_and_we_do_not_read_is_refused(
    said: dict[str, object], message: str, tmp_path: Path
) -> None:
    write_lines(tmp_path / "a.jsonl", [{"instruction": "?", "output": "!"}])
    with pytest.raises(UserError, match=message):
        entries([str(axolotl(tmp_path, {"path": "a.jsonl", **said}))])


@pytest.mark.parametrize("key", ["train_on_inputs", "rl", "pretraining_dataset"])
def test_what_axolotl_says_of_all_and_we_do_not_read_is_refused(key: str, tmp_path: Path) -> None:
    file = axolotl(tmp_path, {"path": "a/b", "type": "alpaca"}, **{key: "dpo"})
    with pytest.raises(UserError, match=f"says {key}: 'dpo', which is not read"):
        entries([str(file)])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {"model_name_or_path": "x", "dataset": "one, two", "dataset_dir": "data"},
            "no registry of datasets; --data data/dataset_info.json:one,two names its own",
        ),
        (
            {"model_name": "x", "dataset": {"path": "some/set"}},
            "says how to train \\(model_name\\)",
        ),
        ({"model": "x", "dataset": "some/set"}, "name its datasets with --data"),
    ],
)
def test_how_to_train_is_no_registry(content: object, message: str, tmp_path: Path) -> None:
    file = tmp_path / "train.yaml"
    file.write_text(yaml.safe_dump(content))
    with pytest.raises(UserError, match=message):
        entries([str(file)])
