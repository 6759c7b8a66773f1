"""Profile smoke-grounding through the whole line on a base of each generation: uploads through
/predict get the measured tokens of all held-out rows, verify_serving passes through the gateway,
and the adapter that was trained to the end points at what is uploaded.

tests/test_line.py has the tokens of texts and of formulas.
"""

from __future__ import annotations

import base64
import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import make_shapes
import mlflow
import pytest
import yaml

from loraline.evaluation.metrics import iou
from tests.gateway.test_pointing import box_of, stored
from tests.test_line import Line, held_out, verified

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
OF_PROFILE = make_shapes.OF_PROFILE
FAMILIES = (OF_PROFILE, "qwen2-vl", "qwen2.5-vl")


@pytest.fixture(scope="module", params=FAMILIES)
def line(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Line:
    """A finished run of the line. Of the older generations one epoch is enough to be asked."""
    made = Line("smoke-grounding", tmp_path_factory.mktemp(request.param))
    for part in ("steps", "workflows", "test_data"):
        (made.place / part).symlink_to(ROOT / part)
    profile = yaml.safe_load((ROOT / "lora_profiles/smoke-grounding.yaml").read_text())
    if request.param != OF_PROFILE:
        profile |= {"base": f"test_data/shapes/base-{request.param}", "num_train_epochs": 1}
        profile["gate"] = {"min_gain_over_base": None}
        # Their tokenizers cut the prompt into more tokens.
        profile["max_length"] = 192
    (made.place / "lora_profiles").mkdir()
    (made.place / "lora_profiles/smoke-grounding.yaml").write_text(yaml.safe_dump(profile))
    ended = made.pipeline()
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return made


@pytest.fixture(scope="module")
def served(line: Line, start: Any) -> Iterator[tuple[Any, Any]]:
    """The manifest's server, and a gateway before it."""
    # What an earlier line's test has set is another store.
    with line.served(MLFLOW_TRACKING_URI=line.store) as server:
        entry = {"url": server.url, "name": server.adapter}
        with start(server.contract, entry, refresh_s=1, rate="100000/minute") as gateway:
            yield server, gateway


def test_predict_gets_the_measured_tokens_of_all_held_out_rows(
    line: Line, served: tuple[Any, Any]
) -> None:
    server, gateway = served
    mlflow.set_tracking_uri(line.store)
    rows = held_out(line, mlflow.MlflowClient())
    assert len(rows) == make_shapes.ROWS["test"]

    def ask(model: str, row: dict[str, Any]) -> list[int]:
        files = {"files": ("row.png", base64.b64decode(row["image"]))}
        fields = {"model": model, "token_ids": "true", "question": row["asked"]}
        answer = gateway.client.post("/predict", data=fields, files=files)
        assert answer.status_code == 200, answer.text
        (result,) = answer.json()["predictions"]
        ended = result["finish_reason"] == "stop"
        tokens: list[int] = result["token_ids"]
        return tokens[:-1] if ended else tokens

    for model, column in ((server.adapter, "tuned_tokens"), (server.base, "base_tokens")):
        with ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(lambda row, model=model: ask(model, row), rows))
        assert answers == [row[column] for row in rows]
        assert len({tuple(tokens) for tokens in answers}) > 10, "they say nothing if all are alike"


def test_verify_serving_passes_through_the_gateway(line: Line, served: tuple[Any, Any]) -> None:
    ended = verified(line, served[1].url)
    assert ended.returncode == 0, ended.stderr
    assert "serves what was measured" in ended.stdout


@pytest.mark.parametrize("line", [OF_PROFILE], indirect=True)
def test_nine_of_ten_held_out_boxes_overlap_by_half(line: Line) -> None:
    client = mlflow.MlflowClient(line.store)
    metrics = client.get_run(line.output("evaluate")).data.metrics
    assert metrics["tuned_grounding_f1"] >= 0.9
    assert metrics["base_grounding_f1"] < 0.5


@pytest.mark.parametrize("line", [OF_PROFILE], indirect=True)
def test_the_served_adapter_points_at_what_is_uploaded(served: tuple[Any, Any]) -> None:
    server, gateway = served
    scenes = list(itertools.islice(make_shapes.scenes(1), make_shapes.ROWS["test"]))

    def overlap(numbered: tuple[int, make_shapes.Scene]) -> float:
        number, scene = numbered
        answer = gateway.client.post(
            "/tasks/spatial-boxes",
            files={"files": ("shapes.png", stored(make_shapes.draw(scene), number % 8 + 1))},
            data={"model": server.adapter, "text": scene.shapes[0].other_name},
        )
        assert answer.status_code == 200, answer.text
        left, top, right, bottom = box_of(answer.json())
        return iou((left, top, right, bottom), scene.shapes[0].box(scene.scale))

    with ThreadPoolExecutor(4) as pool:
        overlaps = list(pool.map(overlap, enumerate(scenes)))
    assert sum(each >= 0.5 for each in overlaps) >= 0.9 * len(scenes), sorted(overlaps)[:40]
