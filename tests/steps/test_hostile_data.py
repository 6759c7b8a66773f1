"""A folder made to do harm ends with counted drops or one clear error, in bounded memory."""

from __future__ import annotations

import io
import json
import os
import re
import struct
import subprocess
import sys
import tarfile
import zlib
from html.parser import HTMLParser
from pathlib import Path

import pytest
from made_data import picture, write_lines

ROOT = Path(__file__).parents[2]
SCRIPT = '<script>alert("x")</script><img src=x onerror=alert(1)>|`*_[a](javascript:x)'


def row(name: str, text: str) -> dict[str, str]:
    return {"file_name": name, "text": text}


def bomb(width: int, height: int) -> bytes:
    """A PNG of some kilobytes that says it has so many black pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    body = zlib.compress(bytes(2**20), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


@pytest.fixture
def folder(workplace: Path) -> Path:
    """Good rows among all kinds of bad ones."""
    place = workplace / "hostile"
    place.mkdir()
    (workplace / "secret.png").write_bytes(picture(99))
    for number in range(60):
        (place / f"{number}.png").write_bytes(picture(number))
    (place / "link.png").symlink_to(workplace / "secret.png")
    (place / "bomb.png").write_bytes(bomb(40_000, 40_000))
    (place / "page.png").write_text("<html><script>alert(1)</script></html>")
    (place / "photo.jpg").write_bytes(picture(70))
    os.mkfifo(place / "pipe.png")
    rows = [
        *(row(f"{number}.png", f"picture {number}") for number in range(60)),
        row("../secret.png", "climbs"),
        row(str(workplace / "secret.png"), "absolute"),
        row("link.png", "a link to elsewhere"),
        row("bomb.png", "bomb"),
        row("page.png", "page"),
        row("pipe.png", "waits for ever"),
        row("nul\0.png", "NUL in a name"),
        row("photo.jpg", "a PNG by content"),
        row("0.png", SCRIPT),
        row("1.png", "NUL \0 in a text"),
        row(SCRIPT + ".png", "name with a script"),
        "\0\0\0",
        "[" * 100_000,
        '{"file_name": "2.png", "text": ' + "9" * 5000 + "}",
        b"\xff\xfe".decode("latin-1"),
    ]
    write_lines(place / "metadata.jsonl", rows)
    (place / "prompt.txt").write_text("What is it? <b>&</b>")
    return place


DROPS = tuple(
    word
    for check in ("unreadable", "format", "media_missing", "media_broken", "media_limits", "roles")
    for word in ("--on", f"{check}=drop")
)


def test_bad_rows_are_dropped_and_good_ones_kept(step, folder: Path, workplace: Path) -> None:
    arguments = ("--profile", "smoke-vision", "--data", folder, *DROPS, "--check-only")
    result = step("prepare_data", *arguments)
    assert result.exit_code == 0, result.stderr
    report = (workplace / "outputs" / "report.md").read_text().replace("\\_", "_")
    assert "75 rows read, 63 kept." in report
    for counted in (
        "media_missing | drop | 6",
        "media_broken | drop | 1",
        "media_limits | drop | 1",
        "media_type | repair | 1",
        "unreadable | drop | 4",
        "characters | repair | 1",
    ):
        assert f"| {counted} |" in report


def test_without_leave_to_drop_it_is_one_clear_error(step, folder: Path, workplace: Path) -> None:
    result = step("prepare_data", "--profile", "smoke-vision", "--data", folder)
    assert result.exit_code == 2
    *progress, refusal = result.stderr.strip().splitlines()
    assert "metadata.jsonl line 61: image '../secret.png' lies outside of" in refusal
    assert all(line.startswith("read: ") for line in progress)
    assert not (workplace / "outputs").exists()


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))


def test_the_report_escapes_everything(step, folder: Path, workplace: Path) -> None:
    arguments = ("--profile", "smoke-vision", "--data", folder, *DROPS, "--check-only")
    assert step("prepare_data", *arguments).exit_code == 0
    page = (workplace / "outputs" / "report.html").read_text()
    tags = Tags()
    tags.feed(page)
    assert not {"script", "b", "iframe", "a"} & {tag for tag, _ in tags.seen}
    assert not [name for _, result in tags.seen for name in result if name.startswith("on")]
    assert all(
        (result["src"] or "").startswith("data:image/jpeg;base64,")
        for tag, result in tags.seen
        if tag == "img"
    )
    assert "default-src 'none'" in page
    assert "&lt;script&gt;" in page
    summary = (workplace / "outputs" / "report.md").read_text()
    assert "<" not in summary
    assert "](javascript" not in summary.replace("\\]", "")


def test_a_tar_of_bombs_is_dropped(step, workplace: Path) -> None:
    place = workplace / "tar"
    place.mkdir()
    with tarfile.open(place / "shard.tar", "w") as archive:

        def add(name: str, content: bytes, kind: bytes = tarfile.REGTYPE, link: str = "") -> None:
            member = tarfile.TarInfo(name)
            member.size, member.type, member.linkname = len(content), kind, link
            archive.addfile(member, io.BytesIO(content))

        for number in range(60):
            add(f"{number:02}.png", picture(number))
            add(f"{number:02}.txt", f"picture {number}".encode())
        add("bomb.png", bomb(40_000, 40_000))
        add("bomb.txt", b"bomb")
        add("../../climbs.png", picture(77))
        add("../../climbs.txt", b"climbs")
        add("link.png", b"", tarfile.SYMTYPE, "/etc/passwd")
        add("link.txt", b"link")
        add("device.png", b"", tarfile.CHRTYPE)
        add("huge.json", b" " * 40_000_000)
    (place / "prompt.txt").write_text("What?")
    arguments = ("--profile", "smoke-vision", "--data", place, *DROPS, "--check-only")
    result = step("prepare_data", *arguments)
    assert result.exit_code == 0, result.stderr
    report = (workplace / "outputs" / "report.md").read_text()
    assert "65 rows read, 61 kept" in report
    assert re.search(r"media\\_limits \| drop \| 1 ", report)
    # The link, the device, and what is too large.
    assert re.search(r"unreadable \| drop \| 3 ", report)
    assert not (workplace.parent / "climbs.png").exists()


def test_an_archive_in_a_tar_is_refused_by_its_name(step, workplace: Path) -> None:
    place = workplace / "tar"
    place.mkdir()
    with tarfile.open(place / "shard.tar", "w") as archive:
        for name, content in (("a.png", picture(1)), ("a.txt", b"one"), ("nested.zip", b"PK")):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    (place / "prompt.txt").write_text("What?")
    result = step("prepare_data", "--profile", "smoke-vision", "--data", place, *DROPS)
    assert result.exit_code == 2
    assert "shard.tar holds 'nested.zip', which can hold rows; unpack it" in result.stderr


def test_a_tar_that_lies_about_its_length_is_one_clear_error(step, workplace: Path) -> None:
    place = workplace / "tar"
    place.mkdir()
    with tarfile.open(place / "shard.tar", "w") as archive:
        member = tarfile.TarInfo("a.png")
        member.size = 5000
        archive.addfile(member, io.BytesIO(bytes(5000)))
    content = (place / "shard.tar").read_bytes()
    (place / "shard.tar").write_bytes(content[:3000])
    (place / "prompt.txt").write_text("What?")
    result = step("prepare_data", "--profile", "smoke-vision", "--data", place)
    assert (result.exit_code, "shard.tar is not a whole tar archive" in result.stderr) == (2, True)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("data.json", b'[{"question": "a", "answer": "b"}, {"qu', "not valid JSON after row 1"),
        ("data.json", b"hello", "neither a JSON array of rows nor one JSON object a line"),
        ("data.parquet", b"PAR1 but not really", "data.parquet is broken"),
        ("data.tar", b"no tar at all" * 100, "data.tar is not a whole tar archive"),
        ("data.csv", b'question,answer\n"never closed', "is not valid CSV"),
        ("data.csv", b"question,answer\n\xff,b\n", "data.csv row 1 (line 2) is not UTF-8"),
        ("data.csv", b"question,answer\na,b,c\n", "row 1 (line 2) has more fields than the header"),
    ],
)
def test_a_broken_file_is_one_clear_error(
    step, workplace: Path, name: str, content: bytes, message: str
) -> None:
    place = workplace / "broken"
    place.mkdir()
    (place / name).write_bytes(content)
    result = step("prepare_data", "--profile", "smoke-text", "--data", place)
    assert result.exit_code == 2
    *progress, refusal = result.stderr.strip().splitlines()
    assert message in refusal
    assert all(line.startswith("read: ") for line in progress)


def test_a_line_of_a_gigabyte_is_skipped_in_bounded_memory(workplace: Path) -> None:
    place = workplace / "long"
    rows = [json.dumps({"question": f"q{n}", "answer": f"a{n}"}) for n in range(60)]
    place.mkdir()
    with (place / "data.jsonl").open("wb") as file:
        file.write("\n".join(rows[:30]).encode() + b"\n")
        file.write(b'{"question": "')
        # A hole in the file: a gigabyte of NUL bytes that takes no disk.
        file.seek(2**30, os.SEEK_CUR)
        file.write(b'"}\n' + "\n".join(rows[30:]).encode() + b"\n")
    program = (
        "import re\nfrom pathlib import Path\nfrom loraline.data.reading import readers\n"
        "found = list(readers.rows(Path('long/data.jsonl'), 0, None, 2**25))\n"
        "(bad,) = [row for row in found if not isinstance(row, dict)]\n"
        "peak = re.search(r'VmHWM:\\s+(\\d+)', Path('/proc/self/status').read_text())[1]\n"
        "print(len(found), bad.clause, peak)"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    count, clause, kilobytes = re.fullmatch(r"(\d+) (.*) (\d+)\n", done.stdout).groups()
    assert (count, clause) == ("61", "is longer than 33554432 bytes (limit row_bytes)")
    assert int(kilobytes) < 400_000


def test_a_row_of_json_without_an_end_is_one_clear_error(step, workplace: Path) -> None:
    place = workplace / "endless"
    place.mkdir()
    (place / "data.json").write_bytes(b'[{"question": "' + b"a" * 3_000_000 + b'", "answer": "b"}]')
    arguments = ("--profile", "smoke-text", "--data", place, "--limit", "row_bytes=1000000")
    result = step("prepare_data", *arguments)
    assert (result.exit_code, "holds a row longer than 1000000 bytes" in result.stderr) == (2, True)
