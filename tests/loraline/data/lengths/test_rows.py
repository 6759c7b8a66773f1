"""Lengths are those of the rows as they are trained."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_data import picture, prefixing_base, profile
from PIL import Image

from loraline.base import pixels
from loraline.base.encoding import Encoder
from loraline.data.lengths.rows import Estimate, Exact, Lengths, lengths, tokenizer_folder
from loraline.errors import UserError
from loraline.records import IMAGE, VIDEO, Record, Video

ROOT = Path(__file__).parents[4]

LIMITS = {"min_pixels": 3136, "max_pixels": 50176}


@pytest.mark.parametrize(
    "architecture",
    ["mistral", "prefixing", "by lines", "metaspace", "qwen2-vl", "qwen2.5-vl", "qwen3-vl"],
)
def test_exact_lengths_are_those_of_the_encoder(architecture: str, tiny_base, tmp_path) -> None:
    modality = "vision" if architecture.startswith("qwen") else "text"
    by_lines = (
        "{% for m in messages %}{{ m.role }}:\n{{ m.content }}{{ eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}assistant:\n{% endif %}"
    )
    if architecture in ("prefixing", "by lines", "metaspace"):
        template = None if architecture == "prefixing" else by_lines
        folder = prefixing_base(tmp_path, template, metaspace=architecture == "metaspace")
    else:
        folder = tiny_base(architecture)
    recipe = profile(modality, base=str(folder), **(LIMITS if modality == "vision" else {}))
    ruler = lengths(tokenizer_folder(str(folder), None), recipe)
    encoder = Encoder(folder, modality, **(LIMITS if modality == "vision" else {}))
    rows = [
        Record((("user", "What is the capital of France?"), ("assistant", "Paris, \n they say."))),
        Record((("user", "a"), ("assistant", "b"), ("user", "ä"), ("assistant", r"\frac{a}{b}"))),
    ]
    if modality == "vision":
        shown = (picture(0, (300, 50)), picture(1, (61, 203)))
        rows.append(Record((("user", f"{IMAGE}a {IMAGE} b"), ("assistant", "c")), shown))
    sizes = [[Image.open(io.BytesIO(image)).size[::-1] for image in row.images] for row in rows]
    expected = [encoder.encode(row) for row in rows]
    result = ruler.measure(rows, sizes)
    assert isinstance(ruler, Exact)
    assert result == [(len(row), len(row.answer)) for row in expected]


@given(st.integers(20, 3000), st.integers(20, 3000), st.sampled_from([28, 32]))
def test_the_size_rule_is_transformers(height: int, width: int, cell: int) -> None:
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

    limits = {"min_pixels": 50176, "max_pixels": 1003520}
    assert pixels.resized(height, width, cell=cell, **limits) == smart_resize(
        height, width, cell, **limits
    )


def test_without_the_base_lengths_are_an_estimate_that_says_so() -> None:
    recipe = profile("vision", base="Qwen/Qwen3-VL-8B-Instruct", **LIMITS)
    ruler = lengths(None, recipe)
    assert isinstance(ruler, Estimate)
    text = Record((("user", "word " * 72), ("assistant", "word " * 36)))
    ((row, answer),) = ruler.measure([text], [[]])
    assert (row, answer) == (5 + 100 + 5 + 50, 55)
    image = Record((("user", f"{IMAGE}a"), ("assistant", "b")), (b"",))
    ((row, _),) = ruler.measure([image], [[(64, 96)]])
    assert row == 2 + 6 + 6 + 6


def test_a_base_that_nobody_has_is_out_of_reach() -> None:
    assert tokenizer_folder("nobody/has-this-model", None) is None


@pytest.mark.parametrize("architecture", ["qwen2-vl", "qwen2.5-vl", "qwen3-vl"])
def test_a_videos_length_grows_with_its_frames(
    architecture: str, tiny_base, tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny_base(architecture), tmp_path / "base")

    def ruler() -> Lengths:
        return lengths(folder, profile("vision", base=str(folder), **LIMITS))

    def video(frames: int) -> Record:
        shown = Video(tuple(picture(n, (112, 112), "JPEG") for n in range(frames)), 2.0)
        return Record((("user", f"{VIDEO}a"), ("assistant", "b")), (), (shown,))

    rows = [video(4), video(8), video(16)]
    assert not ruler().shows_videos
    with pytest.raises(UserError, match="the chat template has no place for videos"):
        ruler().measure(rows, [[(112, 112)]] * 3)

    template = (folder / "chat_template.jinja").read_text()
    place = "{% elif part.type == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
    (folder / "chat_template.jinja").write_text(
        template.replace("{% else %}{{ part.text }}", place + "{% else %}{{ part.text }}")
    )
    assert ruler().shows_videos
    four, eight, sixteen = (row for row, _ in ruler().measure(rows, [[(112, 112)]] * 3))
    assert sixteen > eight > four
    assert len(ruler().encoder.encode(rows[0])) == four
