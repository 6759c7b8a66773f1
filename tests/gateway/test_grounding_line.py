"""Profile smoke-grounding through the whole line, and its adapter asked for boxes by uploads."""

from __future__ import annotations

import itertools
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import make_shapes
import mlflow
import pytest

from loraline.delivery import local
from loraline.evaluation.metrics import iou
from tests.gateway.test_pointing import box_of, stored
from tests.test_line import Line

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> Line:
    """A finished run of the line."""
    made = Line("smoke-grounding", tmp_path_factory.mktemp("grounding"))
    for part in ("steps", "workflows", "lora_profiles", "test_data"):
        (made.place / part).symlink_to(ROOT / part)
    ended = made.pipeline()
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return made


@pytest.fixture(scope="module")
def served(line: Line, start: Any) -> Iterator[tuple[Any, str]]:
    """A gateway before the manifest's server, and the adapter's name."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(line.place)
        with local.start(line.latest / "deploy-vllm" / "vllm.yaml", port) as server:
            patch.undo()
            entry = {"url": server.url, "name": server.adapter}
            with start(server.contract, entry, refresh_s=1) as gateway:
                yield gateway, server.adapter


def test_nine_of_ten_held_out_boxes_overlap_by_half(line: Line) -> None:
    client = mlflow.MlflowClient(line.store)
    metrics = client.get_run(line.output("evaluate")).data.metrics
    assert metrics["tuned_grounding_f1"] >= 0.9
    assert metrics["base_grounding_f1"] < 0.5


def test_the_served_adapter_points_at_what_is_uploaded(served: tuple[Any, str]) -> None:
    gateway, adapter = served
    scenes = list(itertools.islice(make_shapes.scenes(1), make_shapes.ROWS["test"]))

    def overlap(numbered: tuple[int, make_shapes.Scene]) -> float:
        number, scene = numbered
        answer = gateway.client.post(
            "/tasks/spatial-boxes",
            files={"files": ("shapes.png", stored(make_shapes.draw(scene), number % 8 + 1))},
            data={"model": adapter, "text": scene.shapes[0].other_name},
        )
        assert answer.status_code == 200, answer.text
        left, top, right, bottom = box_of(answer.json())
        return iou((left, top, right, bottom), scene.shapes[0].box(scene.scale))

    with ThreadPoolExecutor(4) as pool:
        overlaps = list(pool.map(overlap, enumerate(scenes)))
    assert sum(each >= 0.5 for each in overlaps) >= 0.9 * len(scenes), sorted(overlaps)[:40]
