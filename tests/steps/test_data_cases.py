"""Data as people have it: each small source is read rightly, or refused by name in one sentence.

The texts are in tests/data_cases/; the pictures that their rows name are drawn here.
"""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import pytest
from made_data import kept, picture, write_lines
from PIL import Image

from loraline.data import dataset, report
from loraline.data.merged import Dataset
from loraline.errors import UserError
from loraline.records import Record

CASES = Path(__file__).parents[2] / "data_cases"
TEXT_BASE = str(Path(__file__).parents[3] / "test_data/text/base")

REFUSED = {
    "03-json-object-keyed-by-id": r"is an object of 600 entries keyed by name \('modeling/towns/",
    "04-text-and-tool-calls": "the base's chat template does not print tools",
    "05-tools-column-ignored": "the base's chat template does not print tools",
    "06-kto-label-false": "'label' would not be used; in datasets.yaml, preference: good",
    "08-reasoning-content": "the base's chat template does not print reasoning_content",
    "09-audio-column": "holds audios, and no base here hears",
    "10-context-column": r"'context' would not be used; .*columns: \{question: \"\{context\}",
    "15-all-rows-counted-out": r"no rows for train of 12 read: 12 dropped by too_long "
    r"\(max_length 128\)",
    "20-avif-heic-svg-pdf": r"image 'i/Arlon.avif' is AVIF, which is not read; convert it to PNG",
    "21-csv-utf-16": "is UTF-16; save it as UTF-8",
    "23-content-null-tool-calls": "the base's chat template does not print tools",
    "25-bbox-placeholders-without-boxes": "holds <ref-object>, and the source has no `boxes`",
    "28-media-in-a-folder-of-their-own": "'Kain.png' cannot be read: No such file or directory; "
    "say where media lie with `media: folder`",
    "31-windows-and-base64-paths": r"cannot be read: .*; write / in its path, not \\",
    "37-csv-gbk": "is not UTF-8; convert it, or name its encoding",
    "41-json-utf-16": "is UTF-16; save it as UTF-8",
    "51-function-call-with-text": "the base's chat template does not print (tools|text)",
    "53-one-file-named-after-a-split": "all go to test, as the name test_socratic_style.jsonl "
    "says; set `split` in datasets.yaml, or rename it",
    "12-image-text-and-answer": r"text and answer stand beside the image; say which asks, as in "
    r"columns: \{question: text\}",
}
"""What is said of the sources that are refused."""


def answers(*expected: str) -> Callable[[Dataset], None]:
    """The first answers are these."""

    def check(merged: Dataset) -> None:
        assert set(expected) <= {record.answer for record in kept(merged)}

    return check


def rows(merged: Dataset) -> list[Record]:
    return kept(merged)


def near_the_river(merged: Dataset) -> None:
    found = rows(merged)
    assert found
    for record in found:
        assert record.answer.endswith("near the river.")
        assert [role for role, _ in record.messages] == ["user", "assistant"]


def only_the_last_is_learnt(merged: Dataset) -> None:
    for record in rows(merged):
        assert [role for role, _ in record.messages] == ["user", "assistant"] * 2
        assert record.learnt() == [3]
        assert record.answer.endswith("is near the river.")


def on_white(merged: Dataset) -> None:
    assert merged.counts["appearance repair"] == 48
    for record in rows(merged):
        (image,) = pictures(record)
        assert image.getpixel((0, 0)) == (255, 255, 255)
        assert image.getpixel((80, 24)) == (0, 0, 0)


def scaled(merged: Dataset) -> None:
    assert merged.counts["appearance repair"] == 24
    for record in rows(merged):
        (image,) = pictures(record)
        assert image.getextrema() == ((0, 255),) * 3


def first_picture(merged: Dataset) -> None:
    assert not merged.counts.keys() - {"near_leaks keep"}
    assert [pictures(record)[0].size for record in rows(merged)] == [(96, 64)] * 12


def pictures(record: Record) -> list[Image.Image]:
    return [Image.open(io.BytesIO(content)).convert("RGB") for content in record.images]


def be_brief(merged: Dataset) -> None:
    assert all(record.messages[0] == ("system", "Be brief.") for record in rows(merged))


def indented(merged: Dataset) -> None:
    assert merged.counts == {"line_ends keep": 12}
    assert all(record.answer.startswith("    n = ") for record in rows(merged))
    assert all(record.answer.endswith("\n    return n\n") for record in rows(merged))


def long_answers(merged: Dataset) -> None:
    assert all("is near the river, east of the hills" in record.answer for record in rows(merged))


def numbers(merged: Dataset) -> None:
    assert merged.counts["numbers repair"] == 12
    assert {record.answer for record in rows(merged)} <= {str(n) for n in range(20)}


READ: dict[str, Callable[[Dataset], None]] = {
    "01-json-with-bom": near_the_river,
    "07-weight-0": only_the_last_is_learnt,
    "14-columns-name-shadowed": long_answers,
    "16-transparency-not-rgba": on_white,
    "17-16-bit-and-float-images": scaled,
    "18-phone-photo-mpo": first_picture,
    "24-llamafactory-v1-parts": near_the_river,
    "26-empty-system": near_the_river,
    "27-swift-conversation-pairs": near_the_river,
    "30-answer-is-a-number": numbers,
    "32-html-video-tag-in-text": answers(
        "Write <video> and then a source for Arlon, and close it."
    ),
    "33-developer-role": be_brief,
    "34-arrow-file-format": near_the_river,
    "35-swift-loss-false": only_the_last_is_learnt,
    "42-csv-cr-only": near_the_river,
    "47-code-loses-its-indentation": indented,
    "48-label-beside-a-null-answer": answers("A", "B", "C"),
}
"""What holds of the sources that are read."""

VISION = {"12", "16", "17", "18", "20", "25", "28", "31"}


def draw(name: str, target: Path) -> None:
    """The picture that a row names."""
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    ending = target.suffix
    clear = Image.new("RGBA", (160, 48), (0, 0, 0, 0))
    clear.paste((0, 0, 0, 255), (70, 14, 90, 34))
    deep = np.zeros((64, 64), np.float32)
    deep[20:40, 20:40] = 1
    if name.endswith("_rgba.png"):
        clear.save(target)
    elif name.endswith("_la.png"):
        clear.convert("LA").save(target)
    elif name.endswith("_p.png"):
        indices = Image.new("P", clear.size, 0)
        indices.putpalette([0, 0, 0, 0, 0, 0])
        indices.paste(1, (70, 14, 90, 34))
        indices.save(target, transparency=0)
    elif name.endswith("_rgb.png"):
        opaque = Image.new("RGB", clear.size, (0, 0, 1))
        opaque.paste((0, 0, 0), (70, 14, 90, 34))
        opaque.save(target, transparency=(0, 0, 1))
    elif name.endswith("_16.png"):
        Image.fromarray((deep * 4000 + 100).astype(np.uint16)).save(target)
    elif name.endswith("_f.tif"):
        Image.fromarray(deep).save(target)
    elif ending == ".jpg":
        pair = [picture(crc32(f"{name}{n}".encode()), (96, 64)) for n in range(2)]
        first, second = (Image.open(io.BytesIO(content)) for content in pair)
        first.save(target, "MPO", save_all=True, append_images=[second])
    elif ending == ".svg":
        target.write_text('<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>')
    else:
        image = Image.open(io.BytesIO(picture(crc32(name.encode()), (96, 64))))
        image.save(target, {".jp2": "JPEG2000"}.get(ending, ending[1:].upper()))


def source(name: str, folder: Path) -> Path:
    """A copy of a case with its pictures; its registry, if it has one."""
    shutil.copytree(CASES / name, folder, dirs_exist_ok=True)
    for file in folder.glob("*.jsonl"):
        for line in file.read_text().splitlines():
            row = json.loads(line)
            for image in [row.get("image"), *row.get("images", ())]:
                if image and len(image) < 60 and not image.startswith(("/", "file:")):
                    place = "pictures" if name.startswith("28") else "."
                    if "\\" not in image:
                        draw(image, folder / place / image)
    registry = folder / "datasets.yaml"
    return registry if registry.is_file() else folder


def prepared(name: str, prepare: Any, folder: Path, **changes: Any) -> Dataset:
    data = source(name, folder)
    changes = {"stop": True, "on": ("leaks=keep", "duplicates=keep")} | changes
    if name[:2] in VISION:
        merged = prepare(data, modality="vision", **changes)
    else:
        merged = prepare(data, base=TEXT_BASE, max_length=128, max_new_tokens=32, **changes)
    dataset.refuse(merged.examples)
    return merged


@pytest.mark.parametrize("name", READ)
def test_a_source_is_read_as_it_is_meant(name: str, prepare, tmp_path: Path) -> None:
    READ[name](prepared(name, prepare, tmp_path / "data"))


@pytest.mark.parametrize("name", REFUSED)
def test_a_source_is_refused_by_name_in_one_sentence(name: str, prepare, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=REFUSED[name]) as error:
        dataset.refuse_empty(prepared(name, prepare, tmp_path / "data"))
    said = str(error.value)
    assert len(said) <= 300
    assert "\n" not in said


@pytest.mark.parametrize("file", ["one.json", "wrapped.json"])
def test_one_object_over_many_lines_is_read(file: str, prepare, tmp_path: Path) -> None:
    data = CASES / "02-json-one-pretty-object" / file
    found = [record.answer for record in kept(prepare(data))]
    assert found == ["In the south."] if file == "one.json" else len(found) > 1


def test_no_case_is_without_a_test() -> None:
    there = {path.name for path in CASES.iterdir()}
    assert there == {*READ, *REFUSED, "02-json-one-pretty-object"}


def test_raw_base64_is_an_image(prepare, tmp_path: Path) -> None:
    folder = source("31-windows-and-base64-paths", tmp_path / "data")
    merged = prepare(folder, modality="vision", on=("media_missing=drop",))
    assert len(kept(merged)[0].images) == 1


def test_media_lie_where_the_registry_says(prepare, tmp_path: Path) -> None:
    source("28-media-in-a-folder-of-their-own", tmp_path / "data")
    registry = tmp_path / "datasets.yaml"
    registry.write_text("towns: {uri: data, media: pictures}\n")
    assert len(kept(prepare(registry, modality="vision"))) == 12


@pytest.mark.parametrize(
    ("name", "encoding", "count"),
    [("37-csv-gbk", "gbk", 12), ("21-csv-utf-16", "utf-16", 12), ("41-json-utf-16", "utf-16", 12)],
)
def test_an_encoding_is_told_by_name(
    name: str, encoding: str, count: int, prepare, tmp_path: Path
) -> None:
    merged = prepare(source(name, tmp_path / "data"), encoding=encoding)
    assert len(kept(merged)) == count
    assert not any("\ufffd" in record.answer for record in kept(merged))


def test_the_good_half_of_labelled_rows_is_learnt_when_asked(prepare, tmp_path: Path) -> None:
    source("06-kto-label-false", tmp_path / "data")
    registry = tmp_path / "datasets.yaml"
    registry.write_text("towns: {uri: data, preference: good}\n")
    merged = prepare(registry)
    assert all(record.answer.endswith("near the river.") for record in kept(merged))
    assert merged.counts["preference out"] > 0


def test_the_report_lists_the_columns_that_are_not_used(prepare, tmp_path: Path) -> None:
    rows = [{"question": f"{n}?", "answer": f"{n}", "mood": "calm"} for n in range(20)]
    rows[0]["mood"] = ""
    merged = prepare(write_lines(tmp_path / "rows.jsonl", rows))
    assert merged.unused == {"mood": 19}
    report.write(merged, tmp_path / "report")
    assert "| mood | 19 | 95.0 % |" in (tmp_path / "report" / "report.md").read_text()
    assert "<td>mood</td>" in (tmp_path / "report" / "report.html").read_text()


def test_a_sentence_is_short_whatever_the_file_is_called(prepare, tmp_path: Path) -> None:
    folder = tmp_path / ("a folder with a long name " * 5).strip() / ("and another " * 9).strip()
    folder.mkdir(parents=True)
    (folder / "by_id.json").write_text(json.dumps({f"town {n}" * 9: {"a": n} for n in range(9)}))
    with pytest.raises(UserError, match="write its values as a JSON array") as error:
        prepare(folder)
    assert len(str(error.value)) <= 300


@pytest.mark.parametrize("window", [None, [0, 4095]])
def test_deep_pictures_are_scaled_by_their_range_or_by_the_window(
    window: list[int] | None, prepare, tmp_path: Path
) -> None:
    values = np.full((30, 40), 1000, np.uint16)
    values[:15] = 2000
    (tmp_path / "data").mkdir()
    Image.fromarray(values).save(tmp_path / "data" / "a.png")
    write_lines(
        tmp_path / "data" / "rows.jsonl", [{"image": "a.png", "question": "?", "answer": "!"}]
    )
    registry = tmp_path / "datasets.yaml"
    registry.write_text(f"scans: {{uri: data{f', window: {window}' if window else ''}}}\n")
    ((image,),) = map(pictures, kept(prepare(registry, modality="vision")))
    assert image.getextrema()[0] == ((62, 125) if window else (0, 255))
