"""The page before a real vLLM: a tiny model that points, seen in a Chromium."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import make_shapes
import pytest

from loraline.evaluation.metrics import iou
from tests.gateway.conftest import CONTRACT, vllm

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]
BASE = ROOT / "test_data/shapes/base-qwen3-vl"
PIXELS = (make_shapes.MIN_PIXELS, make_shapes.MAX_PIXELS)


@pytest.fixture(scope="module")
def pointing_page(tmp_path_factory: pytest.TempPathFactory, start: Any, open_page: Any) -> Any:
    folder = tmp_path_factory.mktemp("vllm")
    contract = CONTRACT | {
        "min_pixels": PIXELS[0],
        "max_pixels": PIXELS[1],
        "export": "merged",
    }
    with (
        vllm(BASE, folder, BASE / "chat_template.jinja", PIXELS) as url,
        start(contract, {"url": url, "name": "tiny"}, refresh_s=1) as gateway,
        open_page(gateway.url) as page,
    ):
        yield page


def test_what_a_model_found_is_where_the_shape_is(
    pointing_page: str, opened: Any, tmp_path: Path
) -> None:
    page = opened(pointing_page)
    page.set_default_timeout(60_000)
    scene = next(each for each in make_shapes.scenes(98) if len(each.shapes) == 1)
    picture = tmp_path / "shape.png"
    picture.write_bytes(make_shapes.draw(scene))
    page.wait_for_function("document.querySelector('#ask-task input')?.value")
    page.click("#ask-task input")
    page.get_by_role("option", name="Boxes", exact=True).first.click()
    page.set_input_files("#ask-box input[type=file]", str(picture))
    page.wait_for_selector("#ask-box img")
    page.fill("#ask-box textarea", scene.shapes[0].name)
    page.press("#ask-box textarea", "Enter")
    page.wait_for_selector(".ll-stage rect")

    rect = page.locator(".ll-stage rect").first
    x, y, width, height = (float(rect.get_attribute(n)) for n in ("x", "y", "width", "height"))
    wanted = scene.shapes[0].box(scene.scale)
    assert iou((x, y, x + width, y + height), wanted) >= 0.5


def test_the_pictures_of_the_docs_are_made_by_their_script(
    pointing_page: str, tmp_path: Path
) -> None:
    pytest.importorskip("playwright.sync_api")
    folder = os.environ.get("SCREENSHOTS", str(tmp_path))
    picture = str(ROOT / "test_data/shapes/images/0001.png")
    script = str(ROOT / "docs/page_screenshots.py")

    # A process of its own: the browser of the other tests is open in this one.
    result = subprocess.run(
        [sys.executable, script, pointing_page, picture, folder],
        capture_output=True,
        text=True,
        check=False,
    )

    if "no Chromium" in result.stderr:
        pytest.skip("no chromium on this machine")
    assert result.returncode == 0, result.stderr
    assert (Path(folder) / "ask.png").stat().st_size > 10_000
