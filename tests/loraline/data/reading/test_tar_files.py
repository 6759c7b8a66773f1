"""Tar shards: members that share a name are one row, and nothing that holds rows is passed over."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from made_data import kept, picture

from loraline.data import dataset
from loraline.data.merged import Dataset
from loraline.data.reading import tar_files
from loraline.errors import UserError

ROW = json.dumps({"question": "Where is Arlon?", "answer": "Near the river."}).encode()
TURNS = (("user", "Where is Arlon?"), ("assistant", "Near the river."))


@pytest.fixture
def shard(tmp_path: Path, prepare: Callable[..., Dataset]) -> Callable[..., Dataset]:
    """A shard of some members, prepared."""

    def prepare_shard(members: dict[str, bytes], modality: str = "text") -> Dataset:
        with tarfile.open(tmp_path / "shard.tar", "w") as archive:
            for name, content in members.items():
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
        (tmp_path / "prompt.txt").write_text("{question}")
        merged = prepare(tmp_path, modality=modality, stop=True)
        dataset.refuse(merged.examples)
        return merged

    return prepare_shard


@pytest.mark.parametrize(
    "members",
    [
        {"0.json": ROW},
        {"0.JSON": ROW},
        {"0.json.gz": gzip.compress(ROW)},
        {"README": b"Towns.", "LICENSE.md": b"Free.", "0.json": ROW},
        {"0.json": ROW, "last.npy": b"\x93NUMPY"},
        {"._0.json": b"\0\5\x16\7", "0.json": ROW},
        {"0.json": ROW, "0.meta.json": b'{"answer": "Near the river.", "id": 3}'},
    ],
    ids=[
        "json",
        "capitals",
        "packed",
        "pages of the archive first",
        "another last",
        "a file of macOS",
        "two that agree",
    ],
)
def test_a_sample_is_a_row(members: dict[str, bytes], shard) -> None:
    assert [record.messages for record in kept(shard(members))] == [TURNS]


def test_a_member_of_a_sample_that_is_not_read_is_listed(shard) -> None:
    merged = shard({"0.json": ROW, "0.npy": b"\x93NUMPY"})
    assert merged.unused == {"npy": 1}
    assert len(kept(merged)) == 1


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"rows.jsonl": ROW}, "holds 'rows.jsonl', which can hold rows; unpack it"),
        ({"0.json": ROW, "deep/rows.csv.gz": b""}, "holds 'rows.csv.gz', which can hold rows"),
        ({"0.json": b"[" + ROW + b"]"}, r"its .json is a list, not an object"),
        ({"0.json": ROW, "0.wav": b"RIFF"}, "holds audio, and no base here hears"),
        ({"0.json": ROW, "0.meta.json": b'{"answer": "No."}'}, "two of its members say 'answer'"),
        ({"0.txt": b"a", "0.caption": b"b", "0.png": b""}, "two of its members say 'text'"),
        ({"0.json": b'{"text": "a"}', "0.txt": b"b"}, "two of its members say 'text'"),
        (
            {"0.npy": b"", "1.npy": b""},
            "holds no .json, .txt, picture, video or sound; .* '0.npy'",
        ),
        ({"0.txt": b"\xff\xfe"}, "its .txt is not UTF-8"),
        ({"0.json.gz": ROW}, "is not a whole gzip file"),
    ],
    ids=[
        "table",
        "packed table",
        "list",
        "sound",
        "two that differ",
        "two texts",
        "text and JSON",
        "arrays alone",
        "text",
        "broken packing",
    ],
)
def test_a_shard_that_is_not_read_is_refused_by_name(
    members: dict[str, bytes], message: str, shard
) -> None:
    with pytest.raises(UserError, match=message):
        shard(members)


def test_a_picture_of_a_type_that_is_not_read_is_not_passed_over(shard) -> None:
    with pytest.raises(UserError, match="is SVG, which is not read"):
        shard({"0.json": ROW, "0.svg": b"<svg/>"}, "vision")


def test_pictures_of_a_sample_stand_before_its_question(shard) -> None:
    (record,) = kept(shard({"0.json": ROW, "0.png": picture(1)}, "vision"))
    assert record.images == (picture(1),)
    assert record.messages[0] == ("user", "<image>Where is Arlon?")


@pytest.mark.parametrize("name", ["", "img", "page_"])
def test_pictures_of_a_sample_are_in_the_order_of_their_numbers(name: str, shard) -> None:
    pictures = {f"0.{name}{number}.png": picture(number) for number in range(12)}
    (record,) = kept(shard({"0.json": ROW, **pictures}, "vision"))
    assert record.images == tuple(pictures.values())


def test_pictures_of_a_sample_are_in_the_order_in_which_it_names_them(shard) -> None:
    row = {**json.loads(ROW), "images": ["x/0.b.png", "x/0.a.png"]}
    members = {"0.json": json.dumps(row).encode(), "0.a.png": picture(1), "0.b.png": picture(2)}
    (record,) = kept(shard(members, "vision"))
    assert record.images == (picture(2), picture(1))
    del members["0.a.png"]
    with pytest.raises(UserError, match="its object names 2 images, and its members are 1"):
        shard(members, "vision")


def test_a_member_that_is_there_twice_is_refused(tmp_path: Path, prepare) -> None:
    with tarfile.open(tmp_path / "shard.tar", "w") as archive:
        for content in (ROW, ROW.replace(b"river", b"hill")):
            member = tarfile.TarInfo("0.json")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    with pytest.raises(UserError, match=r"holds two members named '0.json'"):
        prepare(tmp_path)


@pytest.mark.parametrize("link", [tarfile.LNKTYPE, tarfile.SYMTYPE])
def test_a_member_that_is_a_link_is_not_passed_over(link: bytes, tmp_path: Path, prepare) -> None:
    with tarfile.open(tmp_path / "shard.tar", "w") as archive:
        for name, content in {"0.json": ROW, "0.png": picture(1), "1.json": ROW}.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        member = tarfile.TarInfo("1.png")
        member.type, member.linkname = link, "0.png"
        archive.addfile(member)
    merged = prepare(tmp_path, modality="vision", on=("unreadable=drop",))
    assert [len(record.images) for record in kept(merged)] == [1]
    assert merged.counts == {"unreadable drop": 1}
    assert "member '1.png' is a link" in merged.examples[0]["clause"]


def test_a_sample_whose_members_stand_apart_is_refused(shard) -> None:
    members = {"0.json": ROW, "1.json": ROW, "0.png": picture(0), "1.png": picture(1)}
    with pytest.raises(UserError, match=r"holds members of '0' in two places; .*--sort=name"):
        shard(members, "vision")


def archive_of(*names: str) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size = len(ROW)
            archive.addfile(member, io.BytesIO(ROW))
    return content.getvalue()


MEMBER = 2 * tarfile.BLOCKSIZE
"""Bytes of one of these members with its header."""

WHOLE = archive_of("0.json", "1.json", "2.json")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (WHOLE[: MEMBER + 100], "is not a whole tar archive: truncated header at byte 1024"),
        (WHOLE[:MEMBER], "is not a whole tar archive: empty header at byte 1024"),
        (WHOLE[: MEMBER + 600], "is not a whole tar archive: unexpected end of data"),
        (WHOLE[:MEMBER] + b"x" * 99 + WHOLE[MEMBER + 99 :], "whole tar archive: bad checksum"),
        (WHOLE + archive_of("3.json"), "goes on after the end of an archive"),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_a_shard_that_is_cut_broken_or_two_is_refused(
    content: bytes, message: str, packed: bool, tmp_path: Path
) -> None:
    file = tmp_path / ("shard.tar.gz" if packed else "shard.tar")
    file.write_bytes(gzip.compress(content) if packed else content)
    with pytest.raises(UserError, match=message):
        list(tar_files.rows(file, 2**20))
    file.write_bytes(gzip.compress(WHOLE) if packed else WHOLE)
    assert len(list(tar_files.rows(file, 2**20))) == 3
