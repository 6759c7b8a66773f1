"""Files are told apart by what is in them, and what cannot be read is said in short."""

from __future__ import annotations

import gzip
import io
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from made_data import kept

from loraline.data.checks import BadRow
from loraline.data.reading import json_files, readers
from loraline.errors import UserError

ROWS = [{"question": f"Où est {n} ?", "answer": f"Près de l'étang {n}."} for n in range(40)]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
EXPECTED = [(("user", row["question"]), ("assistant", row["answer"])) for row in ROWS]


@pytest.mark.parametrize(
    ("name", "content", "encoding"),
    [
        ("a.jsonl", LINES.encode("utf-8-sig"), ""),
        ("a.jsonl", LINES.encode("latin-1"), "latin-1"),
        ("a.jsonl", LINES.encode("utf-16"), "utf-16"),
        ("a.jsonl", LINES.replace("\n", "\r").encode(), ""),
        ("a.json", json.dumps(ROWS, ensure_ascii=False).encode("utf-16-le"), "utf-16-le"),
        (
            "a.jsonl.gz",
            gzip.compress(LINES[:900].encode()) + gzip.compress(LINES[900:].encode()),
            "",
        ),
        ("a.json.gz", gzip.compress(json.dumps(ROWS).encode()), ""),
        ("a.jsonl.gz", gzip.compress(LINES.encode("latin-1")), "latin-1"),
    ],
)
def test_rows_are_the_same_in_whatever_they_are_packed_and_encoded(
    name: str, content: bytes, encoding: str, tmp_path: Path, prepare
) -> None:
    (tmp_path / name).write_bytes(content)
    result = kept(prepare(tmp_path, encoding=encoding, size=300, on=("leaks=keep",)))
    assert [record.messages for record in result] == EXPECTED


@pytest.mark.parametrize(
    ("name", "content", "encoding", "message"),
    [
        ("a.jsonl", LINES.encode(), "latin-1", "is UTF-8, not latin-1; leave out --encoding"),
        ("a.jsonl", LINES.encode("latin-1"), "", r"a\.jsonl is not UTF-8; .* such as cp1252"),
        ("a.jsonl", LINES.encode("utf-16-le"), "", "is UTF-16-LE; .* give --encoding utf-16-le"),
        ("a.jsonl", LINES.encode("utf-16-be"), "", "is UTF-16-BE; .* give --encoding utf-16-be"),
        ("a.jsonl", LINES.encode("latin-1"), "ascii", "is not ascii: byte 0xf9 cannot be decoded"),
        (
            "a.jsonl",
            LINES.replace("'", "\u2019").encode("cp1252"),
            "latin-1",
            r"would hold the control character U\+0092; give another --encoding, such as cp1252",
        ),
        ("a.jsonl", b"{}", "klingon", "encoding 'klingon' is unknown"),
        ("a.jsonl.gz", gzip.compress(LINES.encode())[:200], "", "is not a whole gzip file"),
        ("a.jsonl.gz", LINES.encode(), "", "is not a whole gzip file"),
        (
            "a.jsonl",
            gzip.compress(LINES.encode()),
            "",
            "is no text but packed with gzip; name it .gz",
        ),
        ("a.csv", pa.compress(b"a,b", "zstd", asbytes=True), "", "with Zstandard; name it .zst"),
        ("a.jsonl", b"PK\3\4" + b"\0" * 40, "", "is no text but a ZIP archive; unpack it"),
        ("a.jsonl", b"PAR1" + b"\0" * 40, "", "is no text but Parquet; name it .parquet"),
        ("a.json", b"ARROW1" + b"\0" * 40, "", "is no text but Arrow; name it .arrow"),
        ("a.csv", b"SQLite format 3\0", "", "is no text but an SQLite database"),
        ("a.jsonl", json.dumps(ROWS[:2]).encode(), "", "holds a JSON array, .* name it .json"),
        ("a.jsonl", json.dumps(ROWS[0], indent=1).encode(), "", "objects over many lines; name it"),
        ("a.parquet", LINES.encode(), "", "is broken"),
        ("a.arrow", LINES.encode(), "", "is broken"),
        ("a.feather", b"FEA1" + b"\0" * 40, "", "is Feather 1, which .* write_feather writes"),
        ("a.jsonl", b"FEA1" + b"\0" * 40, "", "is no text but Feather 1"),
        ("a.csv", b'question,answer\r"1\n2",3\r', "", "a line ends with CR alone; save it with LF"),
        ("a.tar", LINES.encode(), "", "is not a whole tar archive"),
        (
            "a.json",
            b'{"images": [{"id": 1}], "annotations": [{"id": 1}]}',
            "",
            r"is an object of 2 lists \('images', 'annotations'\), not a row; join the annotations",
        ),
        ("a.json", b"// towns\n[]", "", "is not JSON: it begins with a comment"),
        ("a.json", b"{\n  question: 'a',\n}", "", "is not valid JSON.*JSON5"),
        ("a.json", b"[{question: 'a'}]", "", "is not valid JSON after row 0.*JSON5"),
        ("a.json", '[{"question": "\xe9"}]'.encode("latin-1"), "", "nor UTF-8; name its encoding"),
    ],
)
def test_what_cannot_be_read_is_said_in_one_short_sentence(
    name: str, content: bytes, encoding: str, message: str, tmp_path: Path, prepare
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        prepare(tmp_path, encoding=encoding, stop=True)
    said = str(error.value).replace(str(tmp_path), "")
    assert len(said) < 200
    assert "\n" not in said


@pytest.mark.parametrize("name", ["a.jl", "a.jsonlines", "a.NDJSON"])
def test_lines_go_by_several_endings(name: str, tmp_path: Path, prepare) -> None:
    (tmp_path / name).write_text(LINES)
    assert [record.messages for record in kept(prepare(tmp_path))] == EXPECTED


@pytest.mark.parametrize("name", ["a.feather", "a.ipc"])
def test_arrow_files_go_by_several_endings(name: str, tmp_path: Path, prepare) -> None:
    import pyarrow.feather

    pyarrow.feather.write_feather(pa.Table.from_pylist(ROWS), str(tmp_path / name))
    assert [record.messages for record in kept(prepare(tmp_path))] == EXPECTED


@pytest.mark.parametrize("form", [pa.ipc.new_file, pa.ipc.new_stream])
@pytest.mark.parametrize("end", [5, -3, 60])
def test_an_arrow_file_whose_texts_end_elsewhere_is_broken(
    form: Callable[..., Any], end: int, tmp_path: Path, prepare
) -> None:
    """pyarrow believes what a file says of itself, and reads beyond its end."""
    table = pa.table({"question": ["aa", "cc"], "answer": ["b" * 7, "d" * 11]})
    content = io.BytesIO()
    with form(content, table.schema) as writer:
        writer.write_table(table)
    ends = struct.pack("<3i", 0, 7, 18)
    assert content.getvalue().count(ends) == 1
    broken = content.getvalue().replace(ends, struct.pack("<3i", 0, 7, end))
    (tmp_path / "a.arrow").write_bytes(broken)
    with pytest.raises(UserError, match=r"a\.arrow is broken: "):
        prepare(tmp_path)


def test_the_line_that_excel_reads_before_a_header_names_the_delimiter(
    tmp_path: Path, prepare
) -> None:
    lines = "".join(f"{row['question']}|{row['answer']}\r\n" for row in ROWS)
    (tmp_path / "a.csv").write_bytes(f"sep=|\r\nquestion|answer\r\n{lines}".encode())
    assert [record.messages for record in kept(prepare(tmp_path))] == EXPECTED


def test_a_row_with_more_fields_than_the_header_is_unreadable(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_text("question,answer\nWhere?,Here.,There.\nWhen?,Now.\n")
    first, second = readers.rows(file, 0, None, 2**20)
    assert isinstance(first, BadRow)
    assert "has more fields than the header" in str(first)
    assert second == {"question": "When?", "answer": "Now."}


@pytest.mark.parametrize("number", [2**63, 2**64, 10**25])
def test_a_number_beyond_64_bits_is_kept_in_a_list_too(number: int) -> None:
    parsed = json_files.parse(b'{"counts": [%d]}' % number)
    assert parsed == {"counts": [number]}
    assert type(parsed["counts"][0]) is int
