"""Rows come back from their shards as they went in."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from loraline import records
from loraline.records import IMAGE, VIDEO, Record, Video

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
turns = st.tuples(st.sampled_from(["system", "user", "assistant"]), texts)
videos = st.builds(
    Video, st.lists(st.binary(max_size=9), min_size=1, max_size=3).map(tuple), st.just(2.0)
)
rows = st.builds(
    Record,
    st.lists(turns, min_size=2, max_size=5).map(tuple),
    st.lists(st.binary(max_size=9), max_size=3).map(tuple),
    st.lists(videos, max_size=2).map(tuple),
)


@given(st.lists(rows, max_size=6))
def test_a_shard_holds_what_was_written(tmp_path_factory, written: list[Record]) -> None:
    shard = tmp_path_factory.mktemp("shard") / "a.parquet"
    records.write(shard, written)
    assert records.read(shard) == written


@given(st.lists(st.sampled_from([IMAGE, VIDEO, "text ", "<img>", "more"]), max_size=8))
def test_parts_are_the_text_and_the_tags_in_order(pieces: list[str]) -> None:
    result = records.content_parts("".join(pieces))
    back = {"image": IMAGE, "video": VIDEO}
    assert "".join(part.get("text") or back[part["type"]] for part in result) == "".join(pieces)
    assert sum(part["type"] == "image" for part in result) == pieces.count(IMAGE)


def test_a_folder_of_shards_is_read_in_order(tmp_path: Path) -> None:
    for number in (2, 0, 1):
        row = Record((("user", "q"), ("assistant", str(number))))
        records.write(tmp_path / f"{number:05d}.parquet", [row] * 2)
    assert [row.answer for row in records.iterate(tmp_path)] == ["0", "0", "1", "1", "2", "2"]


def test_the_question_is_the_users_last_turn() -> None:
    asked = (("user", "Open it."), ("assistant", "It is open."), ("user", "Which one?"))
    called = (("assistant", ""), ("tool", "gate 3"), ("assistant", "The third."))
    assert Record((*asked, *called)).question == "Which one?"
    assert Record(asked[:2]).question == "Open it."
