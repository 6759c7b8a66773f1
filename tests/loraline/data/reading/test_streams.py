"""Files are told apart by what is in them, and what cannot be read is said in short."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from made_data import kept

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
    found = kept(prepare(tmp_path, encoding=encoding, size=300, on=("leaks=keep",)))
    assert [record.messages for record in found] == EXPECTED


@pytest.mark.parametrize(
    ("name", "content", "encoding", "told"),
    [
        ("a.jsonl", LINES.encode(), "latin-1", "is UTF-8, not latin-1; leave out --encoding"),
        ("a.jsonl", LINES.encode("latin-1"), "", "is not UTF-8; convert it, or name its encoding"),
        ("a.jsonl", LINES.encode("utf-16-le"), "", "is UTF-16; save it as UTF-8"),
        ("a.jsonl", LINES.encode("latin-1"), "ascii", "is not ascii: byte 0xf9 cannot be decoded"),
        ("a.jsonl", b"{}", "klingon", "encoding 'klingon' is unknown"),
        ("a.jsonl.gz", gzip.compress(LINES.encode())[:200], "", "is not a whole gzip file"),
        ("a.jsonl.gz", LINES.encode(), "", "is not a whole gzip file"),
        ("a.json", b"// towns\n[]", "", "is not JSON: it begins with a comment"),
        ("a.json", b"{\n  question: 'a',\n}", "", "is not valid JSON.*JSON5"),
        ("a.json", b"[{question: 'a'}]", "", "is not valid JSON after row 0.*JSON5"),
        ("a.json", '[{"question": "\xe9"}]'.encode("latin-1"), "", "nor UTF-8; name its encoding"),
    ],
)
def test_what_cannot_be_read_is_said_in_one_short_sentence(
    name: str, content: bytes, encoding: str, told: str, tmp_path: Path, prepare
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=told) as error:
        prepare(tmp_path, encoding=encoding, stop=True)
    said = str(error.value).replace(str(tmp_path), "")
    assert len(said) < 200
    assert "\n" not in said
