"""The forms of tests/data_forms.py: each row is kept exactly as it is meant, or refused by name."""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import tarfile
from pathlib import Path
from typing import Any

import data_forms
import pyarrow as pa
import pytest
import yaml
from data_forms import FORMS, Form
from made_data import kept, picture, write_lines

from loraline.data import dataset
from loraline.errors import UserError

IDS = [f"{form.peer}: {form.name}" for form in FORMS]


def write(form: Form, folder: Path) -> None:
    """The form's file, and the pictures that it may name."""
    ending, target = form.ending, folder / f"rows{form.ending}"
    folder.mkdir()
    rows = form.row if isinstance(form.row, list) else [form.row]
    line = json.dumps(form.row).encode()
    if isinstance(form.row, str):
        target.write_text(form.row)
    elif ending in (".jsonl", ".ndjson"):
        write_lines(target, rows)
    elif ending in (".json", ".bom.json"):
        text = json.dumps(form.row, indent=1 if form.name.startswith("one") else None)
        target.write_text(text, encoding="utf-8-sig" if "bom" in ending else "utf-8")
    elif ending == ".jsonl.gz":
        target.write_bytes(gzip.compress(line))
    elif ending == ".jsonl.zst":
        target.write_bytes(pa.compress(line, "zstd", asbytes=True))
    elif ending.endswith((".csv", ".tsv")):
        mark = {".semicolon.csv": ";", ".tsv": "\t"}.get(ending, ",")
        with target.open("w", newline="") as text_file:
            writer = csv.DictWriter(text_file, rows[0], delimiter=mark)
            writer.writeheader()
            writer.writerows(rows)
    elif ending == ".parquet":
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist(rows), target)
    elif ending.endswith(".arrow"):
        made = pa.Table.from_pylist(rows)
        new = pa.ipc.new_file if ending == ".file.arrow" else pa.ipc.new_stream
        with pa.OSFile(str(target), "wb") as sink, new(sink, made.schema) as writer:
            writer.write_table(made)
    elif ending == ".tar":
        with tarfile.open(target, "w") as archive:
            content = gzip.compress(line)
            member = tarfile.TarInfo("0.json.gz")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    else:
        target.write_bytes(line)
    if form.vision:
        (folder / "a.png").write_bytes(picture(1))
        (folder / "pictures").mkdir()
        (folder / "pictures" / "b.png").write_bytes(picture(1))
        (folder / "prompt.txt").write_text(
            "Read it." if "file_name" in str(form.row) else "{question}"
        )


def prepared(form: Form, prepare: Any, folder: Path) -> Any:
    write(form, folder / "data")
    data = folder / "data"
    if form.registry:
        data = folder / "datasets.yaml"
        data.write_text(yaml.safe_dump({"set": {"uri": "data", **form.registry}}))
    return prepare(data, modality="vision" if form.vision else "text", stop=True)


READ = [form for form in FORMS if form.turns is not None]
REFUSED = [form for form in FORMS if form.turns is None]


@pytest.mark.parametrize("form", READ, ids=lambda form: f"{form.peer}: {form.name}")
def test_a_public_form_becomes_the_turns_that_it_means(form: Form, prepare, tmp_path: Path) -> None:
    merged = prepared(form, prepare, tmp_path)
    (record,) = kept(merged)
    assert list(record.messages) == form.turns
    assert len(record.images) == (1 if form.vision else 0)
    answers = [number for number, (role, _) in enumerate(record.messages) if role == "assistant"]
    assert record.learnt_turns() == answers[-(form.learnt or len(answers)) :]
    called = [detail.calls for detail in record.details.values() if detail.calls]
    assert list(map(json.loads, called)) == ([form.calls] if form.calls else [])
    assert bool(record.tools) == bool(form.calls)
    assert json.loads(record.tools or "[]") == ([data_forms.TOOL] if form.calls else [])
    if "reasoning" in form.name:
        assert record.details[1].reasoning == "The map shows it."


@pytest.mark.parametrize("form", REFUSED, ids=lambda form: f"{form.peer}: {form.name}")
def test_a_public_form_that_is_not_read_is_refused_by_name(
    form: Form, prepare, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=form.refusal) as error:
        dataset.refuse_empty(prepared(form, prepare, tmp_path))
    assert len(re.sub(re.escape(str(tmp_path)), "", str(error.value))) <= 300


def test_the_data_page_lists_the_forms() -> None:
    page = data_forms.PAGE.read_text(encoding="utf-8")
    assert data_forms.written(page) == page, "write it with `python tests/data_forms.py`"
    assert len(FORMS) >= 60
    assert len(set(IDS)) == len(FORMS)
