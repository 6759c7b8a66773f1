"""Pictures are told by their content, and are read as phones write them."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_data import kept, picture, sixteen_bits, write_lines
from PIL import Image

from loraline.data import dataset
from loraline.data.reading import images
from loraline.errors import UserError

ROW = {"question": "What is it?", "answer": "A town."}


def heic(colour: tuple[int, int, int], turned: bool = False) -> bytes:
    """A picture as phones write it."""
    pillow_heif = pytest.importorskip("pillow_heif", reason="HEIC is an extra: '.[heic]'")
    pillow_heif.register_heif_opener()
    buffer = io.BytesIO()
    exif = Image.Exif()
    if turned:
        exif[0x0112] = 6
    Image.new("RGB", (80, 60), colour).save(buffer, "HEIF", quality=90, exif=exif.tobytes())
    return buffer.getvalue()


def write(folder: Path, name: str, content: bytes) -> Path:
    folder.mkdir()
    (folder / name).write_bytes(content)
    write_lines(folder / "rows.jsonl", [{"image": name, **ROW}])
    return folder


@pytest.mark.parametrize("name", ["a.heic", "a.HEIF", "a.jpg"])
def test_a_phones_picture_is_stored_as_png(name: str, tmp_path: Path, prepare) -> None:
    folder = write(tmp_path / "data", name, heic((200, 20, 20)))
    merged = prepare(folder, modality="vision", stop=True)
    assert merged.counts["appearance repair"] == 1
    assert merged.counts["media_type repair"] == (name == "a.jpg")
    ((content,),) = (record.images for record in kept(merged))
    stored = Image.open(io.BytesIO(content))
    assert stored.format == "PNG"
    assert stored.size == (80, 60)
    red, green, blue = stored.convert("RGB").getpixel((40, 30))
    assert red == pytest.approx(200, abs=6)
    assert green == pytest.approx(20, abs=6)
    assert blue == pytest.approx(20, abs=6)


def test_a_phones_picture_is_upright(tmp_path: Path, prepare) -> None:
    folder = write(tmp_path / "data", "a.heic", heic((9, 99, 9), turned=True))
    ((content,),) = (record.images for record in kept(prepare(folder, modality="vision")))
    assert Image.open(io.BytesIO(content)).size == (60, 80)


def test_a_phones_picture_can_be_refused(tmp_path: Path, prepare) -> None:
    folder = write(tmp_path / "data", "a.heic", heic((9, 99, 9)))
    with pytest.raises(UserError, match="is turned, partly transparent, HEIC, or deeper"):
        dataset.refuse(prepare(folder, modality="vision", on=("appearance=fail",)).examples)


def test_without_its_reader_a_phones_picture_is_refused_by_name(
    tmp_path: Path, prepare, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pillow_heif", None)
    folder = write(tmp_path / "data", "a.heic", b"\0\0\0\x1cftypheic\0\0\0\0mif1heic")
    with pytest.raises(UserError, match=r"is HEIC, which the extra `heic` reads; pip install"):
        dataset.refuse(prepare(folder, modality="vision").examples)


@pytest.mark.parametrize(
    ("begin", "message"),
    [
        (b"\0\0\0\x1cftypavif", "AVIF"),
        (b"\0\0\0\x1cftypisom", "a video"),
        (b"%PDF-1.7", "PDF, which is not read; give its pages as PNG"),
        (b"\0" * 128 + b"DICM", "DICOM"),
        (b"DICM", "DICOM"),
        (b"\x93NUMPY", "a NumPy array"),
        (b"v/1\1", "OpenEXR"),
        (b"8BPS", "PSD"),
        (b"P6 8 8 255\n", "PPM"),
        (b"\xff\x0a", "JPEG XL"),
        (b"<?xml version='1.0'?><svg/>", "SVG"),
        (b"<!-- drawn --><svg/>", "SVG"),
        (b"qoif", "QOI"),
        (b"icns", "ICNS"),
        (b"DDS ", "DDS"),
        (b"\n\x05\x01", "PCX"),
        (b"\x1f\x8b", "packed with gzip"),
        (b"version https://git-lfs.github.com/spec/v1", "a pointer of Git LFS; `git lfs pull`"),
        (b"\n<!DOCTYPE html>", "a page of HTML"),
    ],
)
def test_a_whole_picture_of_another_type_is_told_by_its_name(
    begin: bytes, message: str, tmp_path: Path, prepare
) -> None:
    folder = write(tmp_path / "data", "a.png", begin + b" " * 40)
    with pytest.raises(UserError, match=f"image 'a.png' is {message}"):
        dataset.refuse(prepare(folder, modality="vision").examples)


def test_letters_that_begin_like_a_type_do_not_make_one(tmp_path: Path, prepare) -> None:
    folder = write(tmp_path / "data", "a.png", b"P6x" + picture())
    with pytest.raises(UserError, match="cannot be decoded"):
        dataset.refuse(prepare(folder, modality="vision").examples)


@pytest.mark.parametrize("before", ["", "data:image/png;base64,"])
def test_base64_may_be_broken_into_lines(before: str, tmp_path: Path, prepare) -> None:
    row = {"image": before + base64.encodebytes(picture(1)).decode(), **ROW}
    write_lines(tmp_path / "data" / "rows.jsonl", [row])
    (record,) = kept(prepare(tmp_path / "data", modality="vision", stop=True))
    assert record.images == (picture(1),)


def test_a_data_uri_with_other_letters_is_refused(tmp_path: Path, prepare) -> None:
    write_lines(tmp_path / "data" / "rows.jsonl", [{"image": "data:image/png;base64,é", **ROW}])
    with pytest.raises(UserError, match="image in a data URI is not base64"):
        dataset.refuse(prepare(tmp_path / "data", modality="vision").examples)


@pytest.mark.parametrize("before", ["", "data:image/jpeg;base64,"])
def test_base64_may_be_of_the_alphabet_for_addresses(before: str, tmp_path: Path, prepare) -> None:
    """With - and _ instead of + and /, and often without the = at its end."""
    file = io.BytesIO()
    Image.effect_noise((40, 31), 90).convert("RGB").save(file, "JPEG")
    content = file.getvalue() + b"\0" * ((1 - len(file.getvalue())) % 3)
    encoded = base64.urlsafe_b64encode(content).decode().rstrip("=")
    assert "-" in encoded and "_" in encoded and len(encoded) % 4
    write_lines(tmp_path / "data" / "rows.jsonl", [{"image": before + encoded, **ROW}])
    (record,) = kept(prepare(tmp_path / "data", modality="vision", stop=True))
    assert record.images == (content,)


@pytest.mark.parametrize("window", [None, (0, 4000)])
@pytest.mark.parametrize("turned", [False, True])
def test_a_deep_picture_whose_lowest_value_is_white_is_inverted(
    window: tuple[int, int] | None, turned: bool
) -> None:
    values = np.full((3, 4), 1000, np.uint16)
    values[0, 0] = 3000
    buffer = io.BytesIO()
    tags = {262: 0} | ({0x0112: 3} if turned else {})
    Image.fromarray(values).save(buffer, "TIFF", tiffinfo=tags)
    image = Image.open(buffer)
    assert (image.mode, image.tag_v2[262]) == ("I;16", 0)
    shown = np.asarray(images.standardized(image, window))
    low, high = window or (1000, 3000)
    lightest = round(255 * (high - 1000) / (high - low))
    assert shown[1, 1] == lightest
    corner = shown[-1, -1] if turned else shown[0, 0]
    assert corner == round(255 * (high - 3000) / (high - low))


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_a_window_is_not_passed_over_for_colour_of_sixteen_bits(
    channels: int, tmp_path: Path, prepare
) -> None:
    """Pillow reads the higher 8 bits, so values up to 4095 would be nearly black."""
    values = np.full((30, 40, channels), 0x8042, np.uint16)
    values[..., -1] = 0xFFFF if channels in (2, 4) else 0x8042
    write(tmp_path / "data", "a.png", sixteen_bits(values))
    for name, more in (("own", ""), ("windowed", ", window: [0, 4095]")):
        (tmp_path / f"{name}.yaml").write_text(f"scans: {{uri: data{more}}}\n")
    ((content,),) = (
        record.images for record in kept(prepare(tmp_path / "own.yaml", modality="vision"))
    )
    assert Image.open(io.BytesIO(content)).convert("RGB").getpixel((0, 0)) == (128, 128, 128)
    merged = prepare(tmp_path / "windowed.yaml", modality="vision")
    with pytest.raises(UserError, match=r"'a\.png' has 16 bits a channel.*convert it to 8 bits"):
        dataset.refuse(merged.examples)


def test_frames_of_a_video_are_read_as_images_are(tmp_path: Path, prepare) -> None:
    """Grey of 16 bits over the range of all frames, upright, and on white."""
    folder = tmp_path / "data"
    folder.mkdir()
    for name, high in (("deep-0.png", 1000), ("deep-1.png", 3000)):
        values = np.full((60, 80), 1000, np.uint16)
        values[0, 0] = 500
        values[30:] = high
        Image.fromarray(values).save(folder / name)
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.new("RGB", (80, 60), "red").save(folder / "turned.jpg", exif=turned)
    Image.new("RGBA", (60, 80), (0, 0, 0, 0)).save(folder / "clear.png")
    rows = [["deep-0.png", "deep-1.png"], ["turned.jpg", "clear.png"]]
    question = {"question": "<video>What is it?", "answer": "A town."}
    write_lines(folder / "rows.jsonl", [{"videos": [names], **question} for names in rows])

    merged = prepare(folder, modality="vision")

    deep, others = (record.videos[0].frames for record in kept(merged))
    lower = [Image.open(io.BytesIO(frame)).convert("L").getpixel((40, 50)) for frame in deep]
    assert lower == [pytest.approx(51, abs=2), pytest.approx(255, abs=2)]
    upright, clear = (Image.open(io.BytesIO(frame)) for frame in others)
    assert upright.size == (60, 80)
    assert clear.convert("L").getpixel((30, 30)) == 255
    assert merged.counts["appearance repair"] == 2
    refused = prepare(folder, modality="vision", on=("appearance=fail",))
    with pytest.raises(UserError, match=r"a frame of video .* is turned, partly transparent, or"):
        dataset.refuse(refused.examples)


def test_a_deep_picture_is_white_where_it_is_transparent() -> None:
    values = np.array([[0, 1000], [3000, 0]], np.uint16)
    image = Image.fromarray(values)
    image.info["transparency"] = 0
    assert np.asarray(images.standardized(image)).tolist() == [[255, 0], [255, 255]]
    image.info["transparency"] = 7
    assert np.asarray(images.standardized(image)).tolist() == [[0, 85], [255, 0]]
    image = Image.fromarray(np.zeros((2, 2), np.uint16))
    image.info["transparency"] = 0
    assert np.asarray(images.standardized(image)).tolist() == [[255, 255], [255, 255]]


@pytest.mark.parametrize("mode", ["P", "RGB", "L"])
def test_a_picture_of_one_transparent_color_is_white_where_it_has_it(mode: str) -> None:
    """As GIF and PNG keep it: a color's number, or the color, that is not to be seen."""
    image = Image.new(mode, (2, 1), 0)
    image.putpixel((1, 0), {"P": 1, "RGB": (7, 7, 7), "L": 7}[mode])
    if mode == "P":
        image.putpalette([0, 0, 0, 7, 7, 7])
    image.info["transparency"] = (0, 0, 0) if mode == "RGB" else 0
    shown = images.standardized(image).convert("RGB")
    assert [shown.getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), (7, 7, 7)]


@pytest.mark.parametrize("tags", [{50706: b"\1\4\0\0"}, {254: 1}])
def test_the_preview_in_a_cameras_raw_file_is_no_picture(
    tags: dict[int, Any], tmp_path: Path, prepare
) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (40, 30)).save(buffer, "TIFF", tiffinfo=tags)
    folder = write(tmp_path / "data", "a.tif", buffer.getvalue())
    with pytest.raises(UserError, match=r"'a\.tif' is a camera's raw file, of which a preview"):
        dataset.refuse(prepare(folder, modality="vision").examples)


def test_of_a_phones_two_pictures_the_first_is_the_picture(tmp_path: Path, prepare) -> None:
    """MPO holds the picture and, behind it, a preview or a second lens's."""
    buffer = io.BytesIO()
    first, second = (Image.new("RGB", (80, 60), colour) for colour in ("white", "black"))
    first.save(buffer, "MPO", save_all=True, append_images=[second])
    folder = write(tmp_path / "data", "a.jpg", buffer.getvalue())
    ((content,),) = (record.images for record in kept(prepare(folder, modality="vision")))
    assert Image.open(io.BytesIO(content)).convert("L").getpixel((40, 30)) == 255


def test_a_file_whose_name_could_be_base64_is_a_file(tmp_path: Path, prepare) -> None:
    folder = write(tmp_path / "data", "pictures", picture(1))
    (record,) = kept(prepare(folder, modality="vision"))
    assert record.images == (picture(1),)
