"""The whole way of a box, through a real vLLM: upload, turn, resize, answer, parser and overlay.

The bases of test_data/shapes point at what the pictures show, each in its generation's coordinates.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import exif_turns
import make_shapes
import pytest
from PIL import Image, ImageOps

from loraline.evaluation.metrics import iou
from tests.gateway.conftest import CONTRACT, vllm

pytestmark = pytest.mark.slow

SHAPES = Path(__file__).parents[2] / "test_data" / "shapes"
FAMILIES = {
    "qwen2-vl": "Qwen2VLForConditionalGeneration",
    "qwen2.5-vl": "Qwen2_5_VLForConditionalGeneration",
    "qwen3-vl": "Qwen3VLForConditionalGeneration",
}
PIXELS = (make_shapes.MIN_PIXELS, make_shapes.MAX_PIXELS)


@pytest.fixture(scope="module", params=list(FAMILIES))
def pointing(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, start: Any
) -> Iterator[Any]:
    """A gateway before a base that points."""
    base = SHAPES / f"base-{request.param}"
    folder = tmp_path_factory.mktemp("vllm")
    contract = CONTRACT | {
        "architecture": FAMILIES[request.param],
        "min_pixels": PIXELS[0],
        "max_pixels": PIXELS[1],
        "export": "merged",
    }
    with (
        vllm(base, folder, base / "chat_template.jinja", PIXELS) as url,
        start(contract, {"url": url, "name": "tiny"}, refresh_s=1) as gateway,
    ):
        yield gateway


def stored(content: bytes, orientation: int) -> bytes:
    """The picture as a camera stores it that was held in this way; upright it is the same."""
    image = Image.open(io.BytesIO(content)).convert("RGB")
    image.getexif()[0x0112] = exif_turns.BACK[orientation]
    turned = ImageOps.exif_transpose(image)
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    turned.save(file, "PNG", exif=exif)
    return file.getvalue()


def ask(gateway: Any, content: bytes, name: str, **fields: str) -> dict[str, Any]:
    answer = gateway.client.post(
        "/tasks/spatial-boxes",
        files={"files": ("shapes.png", content)},
        data={"model": "tiny", "text": name, **fields},
    )
    assert answer.status_code == 200, answer.text
    result: dict[str, Any] = answer.json()
    return result


def box_of(answer: dict[str, Any], kind: str = "box_pixels") -> tuple[float, ...]:
    """The only box of an answer; an empty one when there is none."""
    result = [tuple(item[kind]) for item in answer["items"] if item["kind"] == "box"]
    return result[0] if len(result) == 1 else (0, 0, 0, 0)


def test_nine_of_ten_boxes_are_where_the_shape_is(pointing: Any) -> None:
    scenes = list(itertools.islice(make_shapes.scenes(99), 200))

    def overlap(numbered: tuple[int, make_shapes.Scene]) -> float:
        number, scene = numbered
        content = stored(make_shapes.draw(scene), number % 8 + 1)
        answer = ask(pointing, content, scene.shapes[0].name)
        assert (answer["image"]["height"], answer["image"]["width"]) == scene.size
        left, top, right, bottom = box_of(answer)
        return iou((left, top, right, bottom), scene.shapes[0].box(scene.scale))

    with ThreadPoolExecutor(4) as pool:
        overlaps = list(pool.map(overlap, enumerate(scenes)))
    assert sum(each >= 0.5 for each in overlaps) >= 180, sorted(overlaps)[:40]


def test_a_picture_of_three_sizes_has_the_same_box(pointing: Any) -> None:
    """Of one shape: between two of them so small a model may choose anew at another sharpness."""
    alone = (scene for scene in make_shapes.scenes(98) if len(scene.shapes) == 1)
    for scene in itertools.islice(alone, 20):
        name, result = scene.shapes[0].name, []
        for size in ((112, 84), (336, 252), (1000, 750)):
            large = make_shapes.draw(make_shapes.Scene(scene.shapes, 9.0))
            image = Image.open(io.BytesIO(large)).resize(size, Image.Resampling.LANCZOS)
            file = io.BytesIO()
            image.save(file, "PNG")
            result.append(box_of(ask(pointing, file.getvalue(), name), "box_unit"))
        for other in result[1:]:
            assert all(abs(a - b) <= 0.02 for a, b in zip(result[0], other, strict=True)), result


def test_the_overlay_is_drawn_where_the_box_is(pointing: Any) -> None:
    scene = next(make_shapes.scenes(97))
    content = stored(make_shapes.draw(scene), 6)
    answer = ask(pointing, content, scene.shapes[0].name, overlay="svg")
    left, top, right, bottom = box_of(answer)
    root = ElementTree.fromstring(answer["overlay"]["svg"])  # noqa: S314 - our own
    (drawn,) = root.iter("{http://www.w3.org/2000/svg}rect")
    place = [float(drawn.get(name, "nan")) for name in ("x", "y", "width", "height")]
    assert place == [left, top, right - left, bottom - top]
