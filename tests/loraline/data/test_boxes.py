"""Boxes arrive in the coordinates that the base was trained on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_data import kept, picture, profile, write_lines

from loraline.data import boxes
from loraline.data.checks import BadRow
from loraline.records import IMAGE

RECIPE = profile("vision", min_pixels=3136, max_pixels=1003520)
SIZE = (480, 640)

units = st.integers(0, 999).map(lambda n: n / 1000)


@st.composite
def unit_boxes(draw):
    left, right = sorted(draw(st.lists(units, min_size=2, max_size=2, unique=True)))
    top, bottom = sorted(draw(st.lists(units, min_size=2, max_size=2, unique=True)))
    return left, top, right, bottom


@given(unit_boxes(), st.sampled_from(["pixels", "unit", "thousand"]))
def test_every_coordinate_system_says_the_same_box(box, coordinates: str) -> None:
    height, width = SIZE
    scale = {"pixels": (width, height), "unit": (1, 1), "thousand": (1000, 1000)}[coordinates]
    numbers = [share * scale[i % 2] for i, share in enumerate(box)]
    assert boxes.to_unit(numbers, SIZE, coordinates) == pytest.approx(box)


@given(unit_boxes(), st.sampled_from(["qwen2_vl", "qwen3_vl"]))
def test_thousandths_come_back_as_they_went(box, target: str) -> None:
    there = boxes.from_unit(box, SIZE, target, RECIPE)
    assert boxes.to_unit(there, SIZE, "thousand") == pytest.approx(box, abs=1e-9)


@given(unit_boxes(), st.tuples(st.integers(50, 4000), st.integers(50, 4000)))
def test_pixels_of_the_resized_image_are_within_half_a_pixel(box, size) -> None:
    from loraline.base.pixels import resized

    tall, wide = resized(*size, cell=28, min_pixels=3136, max_pixels=1003520)
    result = boxes.from_unit(box, size, "qwen2_5_vl", RECIPE)
    for number, share, length in zip(result, box, (wide, tall, wide, tall), strict=True):
        assert abs(number - share * length) <= 0.5


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("qwen2_vl", "<|box_start|>(250,500),(500,1000)<|box_end|>"),
        ("qwen3_vl", '{"bbox_2d": [250, 500, 500, 1000]}'),
        ("qwen2_5_vl", '{"bbox_2d": [161, 238, 322, 476]}'),
    ],
)
def test_a_placeholder_is_filled_in_the_words_of_the_base(target: str, expected: str) -> None:
    turns = [("user", "Where is the <ref-object>?"), ("assistant", "<bbox>")]
    objects = {"ref": ["cat"], "bbox": [[160, 240, 320, 480]]}
    named = boxes.with_names(turns, objects)
    filled = boxes.convert(named, objects, [SIZE], "pixels", target, RECIPE)
    assert filled == [("user", "Where is the cat?"), ("assistant", expected)]


def test_boxes_in_the_text_are_converted_where_they_stand() -> None:
    text = 'At {"bbox_2d": [0.25, 0.5, 0.5, 1.0], "label": "cat"} and [1, 2, 3, 4].'
    turns = boxes.convert([("assistant", text)], None, [SIZE], "unit", "qwen3_vl", RECIPE)
    message = 'At {"bbox_2d": [250, 500, 500, 1000], "label": "cat"} and [1, 2, 3, 4].'
    assert turns == [("assistant", message)]


@pytest.mark.parametrize(
    ("box", "message"),
    [
        ([320, 240, 160, 480], "is not left, top, right, bottom"),
        ([0, 0, 700, 480], r"lies outside of its image \(pixels, 640 x 480\)"),
        ([0, 0, 5], "is not four numbers"),
        ([0, 0, "a", 5], "is not four numbers"),
    ],
)
def test_a_bad_box_is_refused(box: list, message: str) -> None:
    with pytest.raises(BadRow, match=message):
        boxes.convert(
            [("assistant", "<bbox>")], {"bbox": [box]}, [SIZE], "pixels", "qwen3_vl", RECIPE
        )


@pytest.mark.parametrize(
    ("text", "objects", "message"),
    [
        ("<bbox><bbox>", {"bbox": [[0, 0, 1, 1]]}, "more <bbox> than objects"),
        ("none", {"bbox": [[0, 0, 1, 1]]}, "more objects than <bbox>"),
        ("<bbox>", {"bbox": [[0, 0, 1, 1]], "image_id": [3]}, "a box is of image 3"),
    ],
)
def test_placeholders_and_boxes_match_one_to_one(text: str, objects: dict, message: str) -> None:
    with pytest.raises(BadRow, match=message):
        boxes.convert([("assistant", text)], objects, [SIZE], "pixels", "qwen3_vl", RECIPE)


def test_boxes_of_the_first_qwen_vl_are_read() -> None:
    turns = [("assistant", "<ref>cat</ref><box>(250,500),(500,1000)</box>")]
    message = "<ref>cat</ref><|box_start|>(250,500),(500,1000)<|box_end|>"
    converted = boxes.convert(turns, None, [SIZE], "thousand", "qwen2_vl", RECIPE)
    assert converted == [("assistant", message)]


@pytest.mark.parametrize(
    "answer",
    [
        '{"bbox_2d": [1, 2, 3]}',
        '{"bbox_2d": [0, 0, 56, 42, 9]}',
        '{"bbox_2d": ["0", "0", "56", "42"]}',
        '{"bbox_2d": [[0, 0, 56, 42], [1, 1, 5, 5]]}',
        '{"bbox": null}',
        "{'bbox_2d': [0, 0, 56, 42]}",
        "<|box_start|>(1,2),(3)<|box_end|>",
        "<box>(1,2)</box>",
        '{"bbox_2d": [0, 0, 56, 42]} and {"bbox_2d": [x1, y1, x2, y2]}',
    ],
)
def test_a_box_in_an_answer_is_converted_or_refused(answer: str) -> None:
    with pytest.raises(BadRow, match="is not a box of four numbers"):
        boxes.convert([("assistant", answer)], None, [SIZE], "pixels", "qwen3_vl", RECIPE)


def test_a_question_may_show_the_form_of_boxes() -> None:
    turns = [("user", 'Answer as {"bbox_2d": [x1, y1, x2, y2]}.'), ("assistant", "none")]
    assert boxes.convert(turns, None, [SIZE], "pixels", "qwen3_vl", RECIPE) == turns


@pytest.mark.parametrize(
    ("base", "expected"),
    [
        ("Qwen/Qwen2-VL-7B-Instruct", "qwen2_vl"),
        ("Qwen/Qwen2.5-VL-3B-Instruct", "qwen2_5_vl"),
        ("Qwen/Qwen3-VL-8B-Instruct", "qwen3_vl"),
        ("mistralai/Mistral-7B-v0.1", None),
    ],
)
def test_the_convention_is_the_bases(base: str, expected: str | None) -> None:
    assert boxes.convention(base, None) == expected


def test_a_folder_tells_its_convention_in_its_config() -> None:
    folder = Path(__file__).parents[3] / "test_data/vision/base"
    assert boxes.convention("test_data/vision/base", folder) == "qwen3_vl"


def test_boxes_of_a_source_are_converted_on_the_way(tmp_path: Path, prepare) -> None:
    (tmp_path / "a.png").write_bytes(picture(size=(200, 100)))
    answer = '[{"bbox_2d": [20, 10, 100, 50], "label": "cat"}]'
    rows = [
        {"image": "a.png", "question": f"{IMAGE}Find it.", "answer": answer},
        {
            "image": "a.png",
            "question": f"{IMAGE}Find that.",
            "answer": answer.replace("100", "300"),
        },
    ]
    write_lines(tmp_path / "data.jsonl", rows)
    registry = tmp_path / "all.yaml"
    registry.write_text(json.dumps({"street": {"uri": "data.jsonl", "boxes": "pixels"}}))
    merged = prepare(registry, modality="vision", base="./Qwen3-VL-none", on=("boxes=drop",))
    assert merged.work.boxes == "qwen3_vl"
    assert [record.answer for record in kept(merged)] == [
        '[{"bbox_2d": [100, 100, 500, 500], "label": "cat"}]'
    ]
    assert merged.counts == {"boxes drop": 1}


def prepared_boxes(prepare, folder: Path, objects: dict, answer: str, **options):
    (folder / "a.png").write_bytes(picture(size=(200, 100)))
    row = {"image": "a.png", "question": f"{IMAGE}Where is the <ref-object>?", "answer": answer}
    write_lines(folder / "data.jsonl", [row | {"objects": objects}])
    registry = folder / "all.yaml"
    registry.write_text(json.dumps({"street": {"uri": "data.jsonl", "boxes": "pixels"}}))
    return prepare(registry, modality="vision", base="./Qwen3-VL-none", **options)


def test_a_placeholder_of_a_box_may_be_a_value_of_json(tmp_path: Path, prepare) -> None:
    objects = {"ref": ["cat", "cat"], "bbox": [[20, 10, 100, 50]]}
    answer = '[{"bbox_2d": <bbox>, "label": "<ref-object>"}]'
    merged = prepared_boxes(prepare, tmp_path, objects, answer)
    assert kept(merged)[0].messages == (
        ("user", f"{IMAGE}Where is the cat?"),
        ("assistant", '[{"bbox_2d": [100, 100, 500, 500], "label": "cat"}]'),
    )


@pytest.mark.parametrize(
    ("name", "check"),
    [
        ("cat\x07", "characters"),
        ("cat\ud800", "characters"),
        (f"cat{IMAGE}", "tags"),
        (["cat"], "boxes"),
    ],
)
def test_a_name_of_objects_is_checked_like_other_text(
    name: object, check: str, tmp_path: Path, prepare
) -> None:
    objects = {"ref": [name], "bbox": [[20, 10, 100, 50]]}
    on = ("characters=drop", "tags=drop", "boxes=drop")
    merged = prepared_boxes(prepare, tmp_path, objects, "<bbox>", on=on)
    assert merged.counts == {f"{check} drop": 1}


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"ref": ["cat", "dog"]}, "more names in `objects` than <ref-object>"),
        ({"ref": []}, "more <ref-object> than names"),
        ({"bbox_type": "norm1"}, "objects have the bbox_type 'norm1', not pixels"),
    ],
)
def test_objects_that_say_something_else_are_refused(
    more: dict, message: str, tmp_path: Path, prepare
) -> None:
    objects = {"ref": ["cat"], "bbox": [[20, 10, 100, 50]], "bbox_type": "real"}
    assert len(kept(prepared_boxes(prepare, tmp_path, objects, "<bbox>"))) == 1
    merged = prepared_boxes(prepare, tmp_path, objects | more, "<bbox>")
    assert message in merged.examples[0]["clause"]
