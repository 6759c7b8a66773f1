"""Every format that rows come in, and the one record that each becomes."""

from __future__ import annotations

import base64
import contextlib
import csv
import gzip
import io
import itertools
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_data import film, kept, picture, write_lines

from loraline.data import dataset, shards
from loraline.data.checks import BadRow
from loraline.data.reading import formats, readers
from loraline.data.reading.formats import Reading
from loraline.errors import UserError
from loraline.records import IMAGE, VIDEO, Detail

ASKED = [("user", "Where?"), ("assistant", "Here.")]
TWO_ANSWERS = [("user", "a"), ("assistant", "A"), ("user", "b"), ("assistant", "B")]

TEXT_ROWS = {
    "messages": {
        "messages": [
            {"role": "user", "content": "Where?"},
            {"role": "assistant", "content": "Here."},
        ]
    },
    "conversations": {
        "conversations": [{"from": "human", "value": "Where?"}, {"from": "gpt", "value": "Here."}]
    },
    "alpaca": {"instruction": "Where?", "input": "", "output": "Here."},
    "prompt_completion": {"prompt": "Where?", "completion": "Here."},
    "question_answer": {"question": "Where?", "answer": "Here."},
}


@pytest.mark.parametrize("name", TEXT_ROWS)
def test_a_text_row_of_each_format_is_recognised_by_its_keys(name: str) -> None:
    made = formats.draft(TEXT_ROWS[name], Reading(None))
    assert (made.format, made.turns) == (name, ASKED)


def test_alpacas_input_follows_its_instruction() -> None:
    row = {"instruction": "Translate.", "input": "Haus", "output": "house", "system": "Be brief."}
    made = formats.draft(row, Reading(None))
    assert made.turns == [
        ("system", "Be brief."),
        ("user", "Translate.\nHaus"),
        ("assistant", "house"),
    ]


def test_history_comes_before_the_question() -> None:
    row = {"query": "And now?", "response": "Now too.", "history": [["Where?", "Here."]]}
    made = formats.draft(row, Reading(None))
    assert made.turns == [*ASKED, ("user", "And now?"), ("assistant", "Now too.")]


def test_prompt_and_completion_may_be_lists_of_messages() -> None:
    turns = TEXT_ROWS["messages"]["messages"]
    made = formats.draft({"prompt": turns[:1], "completion": turns[1:]}, Reading(None))
    assert (made.format, made.turns) == ("messages", ASKED)


def test_the_prompt_goes_around_single_questions_and_not_around_conversations() -> None:
    how = Reading("Say it: {question}")
    assert formats.draft(TEXT_ROWS["question_answer"], how).turns[0] == ("user", "Say it: Where?")
    assert formats.draft(TEXT_ROWS["messages"], how).turns[0] == ("user", "Where?")


def test_a_prompt_without_a_place_for_the_question_is_refused() -> None:
    with pytest.raises(UserError, match=r"must contain \{question\}"):
        formats.draft(TEXT_ROWS["question_answer"], Reading("Say it."))


def test_columns_go_by_the_names_that_the_registry_gives_them() -> None:
    how = Reading(None, {"question": "ask", "answer": "reply"})
    assert formats.draft({"ask": "Where?", "reply": "Here."}, how).turns == ASKED


def test_a_column_that_the_registry_names_and_no_row_has_is_said() -> None:
    how = Reading(None, {"question": "aks"})
    with pytest.raises(BadRow, match="has no column 'aks', which `columns` names for question"):
        formats.draft({"question": "Where?", "answer": "Here.", "ask": "Why?"}, how)


EMPTY_CELLS = [
    ({"question": "Where?", "answer": None}, {}, "answer is empty"),
    ({"question": "Where?", "answer": float("nan")}, {}, "answer is empty"),
    ({"question": None, "answer": "Here."}, {}, "question is empty"),
    ({"instruction": "Where?", "output": None, "system": None}, {}, "output is empty"),
    ({"input": None, "output": "Here."}, {}, "input is empty"),
    ({"image": "a.png", "text": None}, {}, "text is empty"),
    ({"id": 3, "messages": None}, {}, "messages is empty"),
    ({"ask": "Where?", "reply": None}, {"question": "ask", "answer": "reply"}, "reply is empty"),
    ({"ask": None, "reply": "Here."}, {"question": "ask", "answer": "reply"}, "ask is empty"),
    ({"question": "Where?", "answer": "Here.", "reply": None}, {"answer": "reply"}, "reply is"),
    ({"question": "Where?", "n": None}, {"answer": "{n:letter}"}, "n is empty"),
    ({"question": "Where?", "n": None}, {"answer": "{n[0]}"}, "n is empty"),
]


@pytest.mark.parametrize(("row", "columns", "clause"), EMPTY_CELLS)
def test_a_column_that_a_row_leaves_empty_is_no_missing_column(
    row: dict[str, object], columns: dict[str, str], clause: str
) -> None:
    with pytest.raises(BadRow, match=clause) as bad:
        formats.draft(row, Reading("p {question}", columns))
    assert bad.value.check == "empty"


@pytest.mark.parametrize("row", [{"question": "Where?"}, {"answer": "Here."}, {"question": None}])
def test_a_column_that_a_row_lacks_is_a_matter_of_the_format(row: dict[str, object]) -> None:
    with pytest.raises(BadRow, match=r"expected strings .*prepare\.columns.*datasets\.yaml") as bad:
        formats.draft(row, Reading(None))
    assert bad.value.check == "format"


def test_a_misspelt_column_is_named_with_its_place_and_the_nearest_one() -> None:
    how = Reading(None, {"question": "aks", "answer": "reply"}, columns_from="prepare.columns")
    with pytest.raises(BadRow) as bad:
        formats.draft({"ticket": "7", "ask": "Where?", "reply": "Here."}, how)
    assert bad.value.check == "format"
    assert bad.value.clause == (
        "has no column 'aks', which prepare.columns names for question; it has ticket, ask, "
        "reply; did you mean 'ask'?"
    )


def test_an_optional_column_may_be_missing_from_a_row() -> None:
    how = Reading(None, {"question": "ask", "system": "rules"})
    assert formats.draft({"ask": "Where?", "answer": "Here."}, how).turns == [
        ("user", "Where?"),
        ("assistant", "Here."),
    ]


def test_parts_of_a_message_become_tags_and_media() -> None:
    data = f"data:image/png;base64,{base64.b64encode(picture()).decode()}"
    content = [
        {"type": "text", "text": "Compare "},
        {"type": "image_url", "image_url": {"url": data}},
        {"type": "text", "text": " with "},
        {"type": "image", "image": "b.png"},
    ]
    row = {
        "messages": [{"role": "user", "content": content}, {"role": "assistant", "content": "x"}]
    }
    made = formats.draft(row, Reading(None))
    assert made.turns[0] == ("user", f"Compare {IMAGE} with {IMAGE}")
    assert made.images == [data, "b.png"]


def test_parts_of_openais_responses_are_those_of_its_messages() -> None:
    content = [
        {"type": "input_image", "image_url": "a.png", "detail": "low"},
        {"type": "input_text", "text": "What is it?"},
    ]
    answer = [{"type": "output_text", "text": "A cat.", "annotations": [], "logprobs": []}]
    row = {
        "messages": [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]
    }
    made = formats.draft(row, Reading(None))
    assert made.turns == [("user", f"{IMAGE}What is it?"), ("assistant", "A cat.")]
    assert made.images == ["a.png"]
    # A table holds parts as JSON text.
    for turn in row["messages"]:
        turn["content"] = json.dumps(turn["content"])
    assert formats.draft(row, Reading(None)).turns == made.turns


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": "a.png", "detail": "low"}},
        {"type": "input_image", "image_url": "a.png", "detail": "low"},
    ],
)
def test_a_detail_of_an_image_is_listed_as_not_used(part: dict[str, object]) -> None:
    row = {
        "messages": [
            {"role": "user", "content": [part, {"type": "text", "text": "Where?"}]},
            {"role": "assistant", "content": "x"},
        ]
    }
    made = formats.draft(row, Reading(None))
    assert made.images == ["a.png"]
    assert made.listed == ["messages[].detail"]


@pytest.mark.parametrize(
    ("part", "key"),
    [
        ({"type": "text", "text": "Where?", "image": "a.png"}, "image"),
        ({"text": "Where?", "image": "a.png"}, "image"),
        ({"type": "text", "text": "Where?", "value": "When?"}, "value"),
        ({"type": "image", "image": "a.png", "text": "Where?"}, "text"),
        ({"type": "image", "image": "a.png", "path": "b.png"}, "path"),
        ({"type": "video", "video": "a.mp4", "image": "b.png"}, "image"),
    ],
)
def test_a_part_of_a_message_says_one_thing(part: dict[str, object], key: str) -> None:
    row = {"messages": [{"role": "user", "content": [part]}, {"role": "assistant", "content": "x"}]}
    with pytest.raises(BadRow, match=f"'{key}' would not be used"):
        formats.draft(row, Reading(None))
    part[key] = next(value for name, value in part.items() if name not in ("type", key))
    formats.draft(row, Reading(None))


@pytest.mark.parametrize("key", ["file_name", "image", "images"])
def test_an_image_with_text_is_asked_with_the_prompt(key: str) -> None:
    value = ["a.png"] if key == "images" else "a.png"
    made = formats.draft({key: value, "text": "a cat"}, Reading("What is it?"))
    assert made.format == "pairs"
    assert made.turns == [("user", f"{IMAGE}What is it?"), ("assistant", "a cat")]


def test_several_images_of_a_question_stand_before_it() -> None:
    row = {"question": "Which?", "answer": "both", "images": ["a.png", "b.png"]}
    assert formats.draft(row, Reading(None)).turns[0] == ("user", f"{IMAGE}{IMAGE}Which?")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({}, "found nothing"),
        ({"question": "a"}, "expected strings question and answer, found question"),
        ({"instruction": "a", "output": [3, 4]}, "output is a list, expected text"),
        ({"question": "a", "answers": {"text": ["b"]}}, "answers is an object, expected text"),
        ({"instruction": "a", "output": [[3]]}, "output is a list, expected text"),
        ({"messages": [{"role": "judge", "content": "x"}]}, "unknown role 'judge'"),
        ({"instruction": "a", "input": ["b"], "output": "c"}, "input is a list, expected text"),
        ({"query": "a", "response": "b", "history": [["c", ["d"]]]}, "history is not a list of"),
        ({"messages": []}, "messages holds no turns"),
        ({"messages": {"a": "x"}}, "messages is an object, expected a list of turns"),
        ({"conversations": "x"}, "conversations is a text, expected a list of turns"),
        ({"messages": ["x"]}, "found 1 text without a role"),
        ({"messages": ["x", 3]}, "a turn of messages is a text, not an object"),
        ({"messages": ["Human: x", "Assistant: y"]}, "a text that begins with 'Human:'"),
        (
            {"messages": [{"role": "user", "text": "x"}]},
            "a user turn has neither content nor value",
        ),
        (
            {"messages": [{"role": "user", "content": 3}]},
            "content of the user turn is a number, not text",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "audio"}]}]},
            "a part of type 'audio' is a sound",
        ),
        ({"image": 3, "text": "x"}, "neither a path nor its content"),
        ("text", "expected an object with named fields, found a text"),
    ],
)
def test_a_row_of_no_format_says_what_was_expected(row: object, message: str) -> None:
    with pytest.raises(BadRow, match=message) as bad:
        formats.draft(row, Reading("p {question}"))
    assert bad.value.check in ("format", "roles", "modality")


ROWS = [{"question": f"What is {n}?", "answer": f'"{n}", they say, und ähnlich'} for n in range(40)]


def write_rows(folder: Path, kind: str) -> Path:
    folder.mkdir()
    file = folder / f"data.{kind}"
    if kind == "jsonl":
        write_lines(file, ROWS)
    elif kind == "json":
        file.write_text(json.dumps(ROWS, indent=1))
    elif kind in ("csv", "tsv"):
        with file.open("w", newline="") as text:
            writer = csv.DictWriter(text, ROWS[0], delimiter="\t" if kind == "tsv" else ",")
            writer.writeheader()
            writer.writerows(ROWS)
    elif kind == "parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist(ROWS), file, row_group_size=7)
    elif kind == "tar":
        with tarfile.open(file, "w") as archive:
            for number, row in enumerate(ROWS):
                add(archive, f"{number:03}.json", json.dumps(row).encode())
    return folder


def add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "tsv", "parquet", "tar"])
def test_rows_are_the_same_from_every_kind_of_file(kind: str, tmp_path: Path, prepare) -> None:
    merged = prepare(write_rows(tmp_path / "data", kind), size=300)
    expected = [(("user", row["question"]), ("assistant", row["answer"])) for row in ROWS]
    assert [record.messages for record in kept(merged)] == expected
    assert merged.formats == {"question_answer": 40}


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_an_empty_cell_is_dropped_as_empty_from_every_kind_of_file(
    kind: str, tmp_path: Path, prepare
) -> None:
    rows = [*ROWS[:9], {"question": "What is 9?", "answer": None}]
    folder = tmp_path / "data"
    folder.mkdir()
    if kind == "jsonl":
        write_lines(folder / "data.jsonl", rows)
    elif kind == "csv":
        with (folder / "data.csv").open("w", newline="") as text:
            writer = csv.DictWriter(text, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    else:
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist(rows), folder / "data.parquet")
    merged = prepare(folder, on=("empty=drop",))
    assert merged.counts == {"empty drop": 1}
    assert len(kept(merged)) == 9


TABLES = {
    "quoted line breaks": 'question,answer\n"What\nis\n1?",one\n\n,two\n"What is 3?",\n',
    "Excel": '\ufeffsep=;\r\nquestion;answer\r\n"What\r\nis 1?";one\r\n;two\r\n;\r\nWhat is 4?;',
    "CR alone": "\rquestion,answer\rWhat is 1?,one\r\r,two\rWhat is 3?,\r",
    "broken": 'question,answer\n\n\n"What\nis 1?",one,1\nWhat is 2?,"tw"o\n"What,',
}
LINES = {
    "quoted line breaks": ["row 2 (line 6)", "row 3 (line 7)"],
    "Excel": ["row 2 (line 5)", "row 4 (line 7)"],
    "CR alone": ["row 2 (line 5)", "row 3 (line 6)"],
    "broken": ["row 1 (line 4)", "row 2 (line 6)", "row 3 (line 7)"],
}


def test_a_json_file_may_begin_with_an_empty_line(tmp_path: Path, prepare) -> None:
    row = {"question": "Where?", "answer": "Here."}
    for indent, content in itertools.product((None, 1), (row, {"data": [row]}, [row])):
        (tmp_path / "rows.json").write_text(f"\n{json.dumps(content, indent=indent)}\n")
        assert [list(record.messages) for record in kept(prepare(tmp_path))] == [ASKED]


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("ending", ["csv", "csv.gz"])
def test_a_row_of_a_table_is_named_with_the_line_at_which_it_begins(
    table: str, ending: str, tmp_path: Path, prepare
) -> None:
    content = TABLES[table].encode()
    file = tmp_path / f"data.{ending}"
    file.write_bytes(gzip.compress(content) if ending.endswith("gz") else content)
    merged = prepare(file, on=("empty=drop", "unreadable=drop"))
    assert [example["place"] for example in merged.examples] == [
        f"{file} {place}" for place in LINES[table]
    ]


def test_a_kept_row_of_a_table_has_its_line(tmp_path: Path, prepare) -> None:
    (tmp_path / "data.csv").write_text('question,answer\n"Who\nis 1?",one\nWho is 2?,two\n')
    merged = prepare(tmp_path / "data.csv")
    assert [merged.place(n).partition(".csv ")[2] for n in (0, 1)] == [
        "row 1 (line 2)",
        "row 2 (line 4)",
    ]


def test_a_json_file_may_hold_one_object_a_line(tmp_path: Path, prepare) -> None:
    write_lines(tmp_path / "data" / "data.json", ROWS)
    assert len(kept(prepare(tmp_path / "data"))) == 40


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"question,question,answer\na,b,c\n", "has two columns named 'question'"),
        ("question,answer\na,b\n".encode("utf-16"), "is UTF-16; save it as UTF-8"),
    ],
)
def test_a_header_by_which_no_row_can_be_told_is_refused(
    content: bytes, message: str, tmp_path: Path, prepare
) -> None:
    (tmp_path / "data.csv").write_bytes(content)
    with pytest.raises(UserError, match=message):
        prepare(tmp_path)


def test_an_image_folder_has_a_metadata_file(tmp_path: Path, prepare) -> None:
    folder = tmp_path / "data"
    write_lines(folder / "metadata.jsonl", [{"file_name": "a/0.png", "text": "zero"}])
    (folder / "a").mkdir()
    (folder / "a" / "0.png").write_bytes(picture())
    (folder / "prompt.txt").write_text("What is it?")
    (record,) = kept(prepare(folder, modality="vision"))
    assert record.images == (picture(),)


def test_a_tar_shard_holds_samples_by_name(tmp_path: Path, prepare) -> None:
    (tmp_path / "data").mkdir()
    with tarfile.open(tmp_path / "data" / "shard-000.tar", "w") as archive:
        for number in range(3):
            add(archive, f"s/{number}.txt", f"number {number}".encode())
            add(archive, f"s/{number}.png", picture(number))
        turns = [
            {"from": "human", "value": f"{IMAGE}{IMAGE}Same?"},
            {"from": "gpt", "value": "no"},
        ]
        row = {"conversations": turns, "images": ["x.0.png", "x.1.png"]}
        add(archive, "s/x.json", json.dumps(row).encode())
        add(archive, "s/x.0.png", picture(7))
        add(archive, "s/x.1.png", picture(8))
    (tmp_path / "data" / "prompt.txt").write_text("What is it?")
    merged = prepare(tmp_path / "data", modality="vision")
    assert [len(record.images) for record in kept(merged)] == [1, 1, 1, 2]
    assert kept(merged)[3].images == (picture(7), picture(8))
    assert merged.formats == {"pairs": 3, "conversations": 1}


def test_parquet_holds_images_as_hugging_face_writes_them(tmp_path: Path, prepare) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [{"image": {"bytes": picture(n), "path": f"{n}.png"}, "text": str(n)} for n in range(3)]
    (tmp_path / "data").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "data" / "train.parquet")
    (tmp_path / "data" / "prompt.txt").write_text("Read.")
    merged = prepare(tmp_path / "data", modality="vision")
    assert [record.images[0] for record in kept(merged)] == [picture(n) for n in range(3)]


@pytest.mark.parametrize("bits", [16, 32])
def test_a_float_of_fewer_bits_is_the_number_that_was_written(
    bits: int, tmp_path: Path, prepare
) -> None:
    numbers = pa.array(np.array([0.1, 12.5], f"float{bits}"))
    answers = pa.chunked_array([numbers, pa.nulls(1, numbers.type)])
    table = pa.table({"question": ["A tenth?", "A half more?", "A third?"], "answer": answers})
    pq.write_table(table, tmp_path / "a.parquet")
    records = kept(prepare(tmp_path, on=("empty=drop",)))
    assert [record.answer for record in records] == ["0.1", "12.5"]


def test_a_video_of_an_earlier_dataset_is_refused_by_name(tmp_path: Path, prepare) -> None:
    (tmp_path / "a.mp4").write_bytes(film())
    rows = [{"video": "a.mp4", "question": "What moves?", "answer": "Nothing."}]
    merged = prepare(write_lines(tmp_path / "data.jsonl", rows), modality="vision")
    (tmp_path / "earlier").mkdir()
    shards.write(merged, tmp_path / "earlier")
    (example,) = prepare(tmp_path / "earlier", modality="vision").examples
    assert "a video of an earlier dataset is sampled already" in example["clause"]


def test_media_of_turns_and_of_a_column_are_not_mixed() -> None:
    parts = [{"type": "image", "image": "b.png"}], "x", [{"type": "image"}], "y"
    roles = ["user", "assistant"] * 2
    turns = [{"role": role, "content": part} for role, part in zip(roles, parts, strict=True)]
    with pytest.raises(BadRow, match="its turns name media, and so does a column"):
        formats.draft({"images": ["a.png"], "messages": turns}, Reading(None))


def test_text_images_and_videos_mix_in_one_set_of_many_turns(tmp_path: Path, prepare) -> None:
    folder = tmp_path / "data"
    (folder).mkdir()
    (folder / "a.png").write_bytes(picture(1))
    (folder / "b.png").write_bytes(picture(2))
    (folder / "c.mp4").write_bytes(film())

    def turns(*said: str) -> list[dict[str, str]]:
        return [{"from": "gpt" if i % 2 else "human", "value": s} for i, s in enumerate(said)]

    rows = [
        {"conversations": turns("Hello", "Hi", "How are you?", "Well.")},
        {
            "conversations": turns(f"{IMAGE}What?", "A cat.", f"And {IMAGE}?", "A dog."),
            "images": ["a.png", "b.png"],
        },
        {"conversations": turns(f"{VIDEO}What happens?", "It grows lighter."), "video": "c.mp4"},
    ]
    write_lines(folder / "data.jsonl", rows)
    text, images, video = kept(prepare(folder, modality="vision"))
    assert [role for role, _ in text.messages] == ["user", "assistant"] * 2
    assert len(images.images) == 2
    assert [part["type"] for part in images.prompt()[0]["content"]] == ["image", "text"]
    assert len(video.videos[0].frames) == 6
    assert video.videos[0].fps == pytest.approx(2.0)


KEYS = """messages conversations role content from value type text image images video question
answer instruction output history system objects image_url url prompt completion input"""
keys = st.sampled_from(KEYS.split())
leaves = st.none() | st.booleans() | st.integers() | st.sampled_from(["user", "gpt", "image", ""])
rows = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=5)
)


@given(rows)
@settings(max_examples=300)
def test_whatever_a_row_holds_it_is_a_draft_or_a_bad_row(row: object) -> None:
    with contextlib.suppress(BadRow):
        made = formats.draft(row, Reading("Look: {question}"))
        assert all(isinstance(text, str) for turn in made.turns for text in turn)


CALL = {"name": "open_gate", "arguments": {"town": "Arlon", "width": None}}
OTHER = {"name": "close_gate", "arguments": {"number": 7}}


@pytest.mark.parametrize("ending", [".parquet", ".arrow"])
def test_a_call_in_a_table_has_no_arguments_of_other_calls(ending: str, tmp_path: Path) -> None:
    rows = [
        {
            "tools": [{"name": call["name"], "parameters": {"properties": properties}}],
            "messages": [
                {"role": "user", "content": "Do it."},
                {"role": "assistant", "content": None, "tool_calls": [{"function": call}]},
            ],
        }
        for call, properties in ((CALL, {"town": {"type": "string"}}), (OTHER, {"number": {}}))
    ]
    rows[1]["tools"][0]["parameters"]["properties"] = {"number": {"type": "number"}}
    table, file = pa.Table.from_pylist(rows), tmp_path / f"rows{ending}"
    if ending == ".parquet":
        pq.write_table(table, file)
    else:
        with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
    made = [formats.draft(row, Reading(None)) for row in readers.rows(file, 0, None, 2**20)]
    called = [json.loads(draft.details[1].calls)[0]["function"] for draft in made]
    assert [call["arguments"] for call in called] == [{"town": "Arlon"}, {"number": 7}]
    offered = [json.loads(draft.tools)[0]["function"]["parameters"] for draft in made]
    assert [list(parameters["properties"]) for parameters in offered] == [["town"], ["number"]]


@pytest.mark.parametrize("ending", [".parquet", ".arrow"])
def test_a_table_with_two_columns_of_one_name_is_refused(ending: str, tmp_path: Path) -> None:
    table = pa.table([["?"], ["a"], ["b"]], names=["question", "answer", "answer"])
    file = tmp_path / f"rows{ending}"
    if ending == ".parquet":
        pq.write_table(table, file)
    else:
        with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
    with pytest.raises(UserError, match="has two columns named 'answer'; rename one"):
        list(readers.rows(file, 0, None, 2**20))


SAID = [{"role": "user", "content": "Where?"}, {"role": "assistant", "content": "Here."}]


def test_a_longer_history_keeps_its_order() -> None:
    row = {"query": "C?", "response": "c", "history": [["A?", "a"], ["B?", "b"]]}
    texts = [text for _, text in formats.draft(row, Reading(None)).turns]
    assert texts == ["A?", "a", "B?", "b", "C?", "c"]


@pytest.mark.parametrize(
    "row",
    [
        {"instruction": "b", "output": "B", "history": [["a", "A"]]},
        {"prompt": "Human: a\n\nAssistant: A\n\nHuman: b\n\nAssistant:", "completion": "B"},
        {"messages": [{"role": role, "content": text} for role, text in TWO_ANSWERS]},
    ],
)
def test_the_last_answer_alone_is_learnt_where_the_registry_says_so(row: dict[str, Any]) -> None:
    for learn, learnt in (("all", [True, True]), ("last", [False, True])):
        made = formats.draft(row, Reading(None, learn=learn))
        assert made.turns == TWO_ANSWERS
        assert [made.details.get(n, Detail()).learnt for n in (1, 3)] == learnt


def test_a_number_for_an_answer_is_noted() -> None:
    made = formats.draft({"question": "How many?", "answer": 3}, Reading(None))
    assert (made.turns[-1], made.number) == (
        ("assistant", "3"),
        "answer is a number, expected text",
    )


@pytest.mark.parametrize("weight", [0.5, 2, "yes"])
def test_a_weight_between_none_and_all_is_refused(weight: object) -> None:
    row = {"messages": [SAID[0], {**SAID[1], "weight": weight}]}
    with pytest.raises(BadRow, match="is neither 0 nor 1"):
        formats.draft(row, Reading(None))


def test_a_turn_that_nothing_learns_cannot_have_weight() -> None:
    row = {"messages": [{**SAID[0], "weight": 1}, SAID[1]]}
    with pytest.raises(BadRow, match="nothing learns a user turn"):
        formats.draft(row, Reading(None))


def test_what_follows_the_last_learnt_answer_is_left_out() -> None:
    row = {"messages": [*SAID, SAID[0], {**SAID[1], "content": "There.", "weight": 0}]}
    assert formats.draft(row, Reading(None)).turns == ASKED


@pytest.mark.parametrize("empty", ["", " \n", None, [], [{"type": "text", "text": ""}]], ids=repr)
@pytest.mark.parametrize("role", ["system", "developer"])
def test_an_empty_system_turn_is_none(empty: object, role: str) -> None:
    system = {"from": role, "value": empty}
    row: dict[str, Any] = {"conversations": [system, *TEXT_ROWS["conversations"]["conversations"]]}
    assert formats.draft(row, Reading(None)).turns == ASKED
    row = {"messages": [{"role": role, "content": empty}, *SAID]}
    assert formats.draft(row, Reading(None)).turns == ASKED
    with_column = formats.draft({**row, "system": "Be brief."}, Reading(None))
    assert with_column.turns == [("system", "Be brief."), *ASKED]
    assert formats.draft({"messages": SAID, "system": empty}, Reading(None)).turns == ASKED


def test_a_system_column_may_be_parts_of_text() -> None:
    row = {"messages": SAID, "system": [{"text": "Be "}, {"text": "brief."}]}
    assert formats.draft(row, Reading(None)).turns == [("system", "Be brief."), *ASKED]


def test_a_system_column_may_say_what_the_system_turn_says() -> None:
    turns = [{"role": "system", "content": "Be brief."}, *SAID]
    made = formats.draft({"messages": turns, "system": "Be brief."}, Reading(None))
    assert made.turns == [("system", "Be brief."), *ASKED]
    with pytest.raises(BadRow, match=r"'system' would not be used; .*\(the row has another system"):
        formats.draft({"messages": turns, "system": "Be long."}, Reading(None))
    with pytest.raises(BadRow, match="'system_prompt' would not be used"):
        formats.draft({"messages": SAID, "system": "a", "system_prompt": "b"}, Reading(None))


@pytest.mark.parametrize("role", ["ai", "Chatbot", "model"])
def test_an_assistant_goes_by_several_names(role: str) -> None:
    turns = [{"role": "prompter", "content": "Where?"}, {"role": role, "content": "Here."}]
    assert formats.draft({"messages": turns}, Reading(None)).turns == ASKED


CODE = "    n = 1\n    return n\n"


@pytest.mark.parametrize(
    ("row", "preference"),
    [
        (
            {"chosen": f"\n\nHuman: def f():\n\nAssistant: {CODE}", "rejected": "x"},
            "good",
        ),
        ({"prompt": "\n\nHuman: def f():\n\nAssistant:", "completion": CODE}, None),
        (
            {"system": "", "chat": f"USER: def f():\n\n\nASSISTANT: {CODE} <|endoftext|>\n\n\n"},
            None,
        ),
    ],
)
def test_an_answer_in_a_dialogue_keeps_its_indentation(row: Any, preference: Any) -> None:
    made = formats.draft(row, Reading(None, preference=preference))
    assert made.turns == [("user", "def f():"), ("assistant", CODE)]


def test_calls_in_a_turn_of_their_own_join_those_before_them() -> None:
    call = {"from": "function_call"}
    turns = [
        {"from": "human", "value": "Where?"},
        {**call, "value": '{"name": "first", "arguments": {}}'},
        {**call, "value": '{"name": "second", "arguments": {}}'},
        {"from": "observation", "value": "Here."},
        {"from": "gpt", "value": "Here."},
    ]
    tools = json.dumps([{"name": name, "parameters": {}} for name in ("first", "second")])
    made = formats.draft({"conversations": turns, "tools": tools}, Reading(None))
    names = [each["function"]["name"] for each in json.loads(made.details[1].calls)]
    assert names == ["first", "second"]


def test_a_picture_that_a_turn_names_stands_where_it_was_named() -> None:
    turns = [{**SAID[0], "content": "<img>a.png</img>\nWhere?"}, SAID[1]]
    made = formats.draft({"messages": turns}, Reading(None, vision=True))
    assert (made.images, made.turns[0]) == (["a.png"], ("user", f"{IMAGE}\nWhere?"))


@pytest.mark.parametrize(
    "row",
    [
        {"question": "<img>a.png</img>\nWhere?", "answer": "Here."},
        {"instruction": "<img>a.png</img>\nWhere?", "output": "Here."},
    ],
)
def test_a_picture_that_a_question_names_stands_where_it_was_named(row: dict[str, str]) -> None:
    made = formats.draft(row, Reading(None, vision=True))
    assert (made.images, made.turns[0]) == (["a.png"], ("user", f"{IMAGE}\nWhere?"))


@pytest.mark.parametrize(
    "text",
    ["<img>a.png</img> Where?", "<audio>a.wav</audio> What?", "<|audio_bos|><|AUDIO|> What?"],
)
def test_media_that_a_text_names_are_refused_where_nothing_shows_them(
    text: str, tmp_path: Path, prepare
) -> None:
    write_lines(tmp_path / "a.jsonl", [{"question": text, "answer": "Here."}])
    with pytest.raises(UserError, match=r"the user turn names .* \(check modality"):
        dataset.refuse(prepare(tmp_path).examples)


@pytest.mark.parametrize("text", ["What does <img> do?", "Write <audio></audio>.", "<video>?"])
def test_tags_of_html_are_text(text: str, tmp_path: Path, prepare) -> None:
    write_lines(tmp_path / "a.jsonl", [{"question": text, "answer": f"{text} It shows."}])
    assert len(kept(prepare(tmp_path, stop=True))) == 1
