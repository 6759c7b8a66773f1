"""Data as people have it: each small source is read rightly, or refused by name in one sentence.

The texts are in tests/data_cases/; the pictures that their rows name are drawn here. Each goes
through the step itself: exit code, report, and the rows that are logged.
"""

from __future__ import annotations

import io
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zlib import crc32

import mlflow
import numpy as np
import pytest
from click.testing import Result
from made_data import picture, write_lines
from PIL import Image

from loraline import records
from loraline.records import Record

CASES = Path(__file__).parents[1] / "data_cases"


@dataclass
class Logged:
    """What the step logged."""

    rows: list[Record]
    counts: dict[str, int]
    """Rows by check and action."""

    unused: dict[str, int]
    report: str


REFUSED = {
    "03-json-object-keyed-by-id": r"is an object of 600 entries keyed by name \('modeling/towns/",
    "04-text-and-tool-calls": "the base's chat template does not print tools",
    "05-tools-column-ignored": "the base's chat template does not print tools",
    "06-kto-label-false": "'label' would not be used; under prepare in the recipe, "
    "or in datasets.yaml, preference: good",
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


def answers(*expected: str) -> Callable[[Logged], None]:
    """The first answers are these."""

    def check(logged: Logged) -> None:
        assert set(expected) <= {record.answer for record in logged.rows}

    return check


def near_the_river(logged: Logged) -> None:
    assert logged.rows
    for record in logged.rows:
        assert record.answer.endswith("near the river.")
        assert [role for role, _ in record.messages] == ["user", "assistant"]


def only_the_last_is_learnt(logged: Logged) -> None:
    for record in logged.rows:
        assert [role for role, _ in record.messages] == ["user", "assistant"] * 2
        assert record.learnt_turns() == [3]
        assert record.answer.endswith("is near the river.")


def on_white(logged: Logged) -> None:
    assert logged.counts["appearance repair"] == 48
    for record in logged.rows:
        (image,) = pictures(record)
        assert image.getpixel((0, 0)) == (255, 255, 255)
        assert image.getpixel((80, 24)) == (0, 0, 0)


def scaled(logged: Logged) -> None:
    assert logged.counts["appearance repair"] == 24
    for record in logged.rows:
        (image,) = pictures(record)
        assert image.getextrema() == ((0, 255),) * 3


def first_picture(logged: Logged) -> None:
    assert not logged.counts.keys() - {"near_leaks keep"}
    assert [pictures(record)[0].size for record in logged.rows] == [(96, 64)] * 12


def pictures(record: Record) -> list[Image.Image]:
    return [Image.open(io.BytesIO(content)).convert("RGB") for content in record.images]


def be_brief(logged: Logged) -> None:
    assert all(record.messages[0] == ("system", "Be brief.") for record in logged.rows)


def indented(logged: Logged) -> None:
    assert logged.counts == {"line_ends keep": 12}
    assert all(record.answer.startswith("    n = ") for record in logged.rows)
    assert all(record.answer.endswith("\n    return n\n") for record in logged.rows)


def long_answers(logged: Logged) -> None:
    assert all("is near the river, east of the hills" in record.answer for record in logged.rows)


def numbers(logged: Logged) -> None:
    assert logged.counts["numbers repair"] == 12
    assert {record.answer for record in logged.rows} <= {str(n) for n in range(20)}


READ: dict[str, Callable[[Logged], None]] = {
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
    # No picture is like another, or they would be leaks.
    number = crc32(name.encode())
    mark = (100 + number % 50, number // 50 % 40)
    clear.putpixel(mark, (0, 0, 0, 255))
    deep = np.zeros((64, 64), np.float32)
    deep[20:40, 20:40] = 1
    deep[0, 0] = number % 1000 / 1000
    if name.endswith("_rgba.png"):
        clear.save(target)
    elif name.endswith("_la.png"):
        clear.convert("LA").save(target)
    elif name.endswith("_p.png"):
        indices = Image.new("P", clear.size, 0)
        indices.putpalette([0, 0, 0, 0, 0, 0])
        indices.paste(1, (70, 14, 90, 34))
        indices.putpixel(mark, 1)
        indices.save(target, transparency=0)
    elif name.endswith("_rgb.png"):
        opaque = Image.new("RGB", clear.size, (0, 0, 1))
        opaque.paste((0, 0, 0), (70, 14, 90, 34))
        opaque.putpixel(mark, (0, 0, 0))
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
        image = Image.open(io.BytesIO(picture(number, (96, 64))))
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


@pytest.fixture
def prepare(step: Callable[..., Result], workplace: Path) -> Callable[..., Logged]:
    """Run the step on a source; what it logged, and AssertionError where it refused."""

    def run(data: Path, *options: str, profile: str = "smoke-text") -> Logged:
        result = step("prepare_data", "--profile", profile, "--data", data, *options)
        assert result.exit_code == 0, result.stderr
        run_id = (workplace / "outputs" / "run-id").read_text()
        place = mlflow.artifacts.download_artifacts(
            run_id=run_id, artifact_path="", dst_path=str(workplace / "r")
        )
        logged = Path(place)
        manifest = json.loads((logged / "dataset" / "manifest.json").read_text())
        rows = [
            record
            for split in records.SPLITS
            for record in records.read(logged / "dataset" / f"{split}.parquet")
        ]
        report = (logged / "report" / "report.md").read_text()
        assert f"{len(rows)} kept" in report
        return Logged(rows, manifest["counts"], manifest["unused"], report)

    return run


@pytest.fixture
def refuse(step: Callable[..., Result], workplace: Path) -> Callable[..., str]:
    """Run the step on a source that it refuses; the one sentence that it says, and no run."""

    def run(data: Path, *options: str, profile: str = "smoke-text") -> str:
        result = step("prepare_data", "--profile", profile, "--data", data, *options)
        assert result.exit_code == 2, result.output
        *progress, refusal = result.stderr.strip().splitlines()
        assert all(line.startswith("read: ") for line in progress)
        sentence = refusal.removeprefix("prepare-data: ")
        assert len(sentence) <= 300
        assert not (workplace / "outputs").exists()
        return sentence

    return run


def rows_of(name: str) -> int:
    return 48 if name.startswith("16") else 24 if name.startswith("17") else 12


def profile_of(name: str) -> str:
    return "smoke-vision" if name[:2] in VISION else "smoke-text"


SMALL = ("--set", "split.test=0.3", "--set", "split.validation=0.3")
"""Of twelve rows in one file, a tenth can be none."""


@pytest.mark.parametrize("name", READ)
def test_a_source_is_read_as_it_is_meant(name: str, prepare, workplace: Path) -> None:
    logged = prepare(source(name, workplace / "data"), *SMALL, profile=profile_of(name))
    assert len(logged.rows) == rows_of(name)
    READ[name](logged)


@pytest.mark.parametrize("name", REFUSED)
def test_a_source_is_refused_by_name_in_one_sentence(name: str, refuse, workplace: Path) -> None:
    assert re.search(
        REFUSED[name], refuse(source(name, workplace / "data"), profile=profile_of(name))
    )


def test_one_object_over_many_lines_is_read_as_the_row_that_it_is(refuse) -> None:
    said = refuse(CASES / "02-json-one-pretty-object" / "one.json")
    assert "one.json: no rows for " in said
    assert "of 1 read" in said


def test_rows_under_one_key_of_an_object_are_read(prepare) -> None:
    near_the_river(prepare(CASES / "02-json-one-pretty-object" / "wrapped.json", *SMALL))


def test_no_case_is_without_a_test() -> None:
    there = {path.name for path in CASES.iterdir()}
    assert there == {*READ, *REFUSED, "02-json-one-pretty-object"}


def test_raw_base64_is_an_image(prepare, workplace: Path) -> None:
    data = source("31-windows-and-base64-paths", workplace / "data")
    (row,) = [
        row
        for row in map(json.loads, (data / "rows.jsonl").read_text().splitlines())
        if len(row["image"]) > 60
    ]
    (data / "rows.jsonl").unlink()
    logged = prepare(in_splits(data, row), "--on", "leaks=keep", profile="smoke-vision")
    assert [len(record.images) for record in logged.rows] == [1, 1, 1]


def in_splits(data: Path, row: dict[str, Any]) -> Path:
    """A folder that shows the picture of one row in each split, under other questions."""
    for split in records.SPLITS:
        write_lines(data / f"{split}.jsonl", [{**row, "question": f"{split}?", "answer": split}])
    return data


def test_media_lie_where_the_registry_says(prepare, workplace: Path) -> None:
    source("28-media-in-a-folder-of-their-own", workplace / "data")
    registry = workplace / "datasets.yaml"
    registry.write_text("towns: {uri: data, media: pictures}\n")
    logged = prepare(registry, profile="smoke-vision")
    assert [len(record.images) for record in logged.rows] == [1] * 12


@pytest.mark.parametrize(
    ("name", "encoding"),
    [("37-csv-gbk", "gbk"), ("21-csv-utf-16", "utf-16"), ("41-json-utf-16", "utf-16")],
)
def test_an_encoding_is_told_by_name(name: str, encoding: str, prepare, workplace: Path) -> None:
    logged = prepare(source(name, workplace / "data"), "--encoding", encoding, *SMALL)
    assert len(logged.rows) == 12
    assert not any("\ufffd" in record.answer for record in logged.rows)


def test_the_good_half_of_labelled_rows_is_learnt_when_asked(prepare, workplace: Path) -> None:
    data = source("06-kto-label-false", workplace / "data")
    labels = {
        row["messages"][-1]["content"]: row["label"]
        for file in data.glob("*.jsonl")
        for row in map(json.loads, file.read_text().splitlines())
    }
    registry = workplace / "datasets.yaml"
    registry.write_text("towns: {uri: data, preference: good}\n")
    logged = prepare(registry, *SMALL)
    assert {record.answer for record in logged.rows} == {a for a, good in labels.items() if good}
    assert logged.counts["preference out"] == list(labels.values()).count(False)


def test_the_report_lists_the_columns_that_are_not_used(prepare, workplace: Path) -> None:
    rows = [{"question": f"{n}?", "answer": f"{n}", "mood": "calm"} for n in range(40)]
    rows[0]["mood"] = ""
    logged = prepare(write_lines(workplace / "rows.jsonl", rows))
    assert logged.unused == {"mood": 39}
    assert "| mood | 39 | 97.5 % |" in logged.report
    page = (workplace / "r" / "report" / "report.html").read_text()
    assert "<td>mood</td>" in page


def test_a_sentence_is_short_whatever_the_file_is_called(refuse, workplace: Path) -> None:
    long = Path(("a folder with a long name " * 5).strip(), "and another " * 9 + "one")
    folder = workplace / long
    folder.mkdir(parents=True)
    (folder / "by_id.json").write_text(json.dumps({f"town {n}" * 9: {"a": n} for n in range(9)}))
    assert "write its values as a JSON array" in refuse(folder)


@pytest.mark.parametrize("window", [None, [0, 4095]])
def test_deep_pictures_are_scaled_by_their_range_or_by_the_window(
    window: list[int] | None, prepare, workplace: Path
) -> None:
    values = np.full((30, 40), 1000, np.uint16)
    values[:15] = 2000
    (workplace / "data").mkdir()
    Image.fromarray(values).save(workplace / "data" / "a.png")
    in_splits(workplace / "data", {"image": "a.png"})
    registry = workplace / "datasets.yaml"
    registry.write_text(f"scans: {{uri: data{f', window: {window}' if window else ''}}}\n")
    logged = prepare(registry, "--on", "leaks=keep", profile="smoke-vision")
    (image,) = pictures(logged.rows[0])
    assert image.getextrema()[0] == ((62, 125) if window else (0, 255))
