"""Three and four models side by side in a Chromium: before a stub whose answers are known, and
before a real vLLM with a tiny base and its adapters."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import make_shapes
import pytest

from gateway.settings import Server
from tests.gateway.conftest import CONTRACT, vllm

pytestmark = pytest.mark.slow

BASE = Path(__file__).parents[3] / "test_data/shapes/base-qwen3-vl"
ADAPTERS = ("tiny-a", "tiny-b", "tiny-c")
PIXELS = (make_shapes.MIN_PIXELS, make_shapes.MAX_PIXELS)

OpenModels = Callable[..., AbstractContextManager[str]]


@pytest.fixture
def models_page(start: Any, open_page: Any, tmp_path: Path) -> OpenModels:
    """Open a page before a base and adapters of one server; its address."""

    @contextmanager
    def opened(url: str, contract: dict[str, Any], names: tuple[str, ...]) -> Iterator[str]:
        file = tmp_path / "contract.json"
        file.write_text(json.dumps(contract))
        entries = tuple(
            Server(url=url, contract=file, name=name, uri=f"models:/{name}/1") for name in names
        )
        with start(GATEWAY_UPSTREAMS=entries) as gateway, open_page(gateway.url) as page:
            yield page

    return opened


def choose_models(page: Any, base: str, names: tuple[str, ...]) -> None:
    """Open Compare, and choose the base and these adapters, whatever was chosen."""
    page.get_by_role("tab", name="Compare").click()
    page.wait_for_selector("#compare-model .token")
    for token in reversed(page.locator("#compare-model .token").all()):
        if token.inner_text().split(" · ")[0].strip() not in (base, *names):
            token.locator(".token-remove").click()
    chosen = page.locator("#compare-model .token").all_inner_texts()
    assert len(chosen) == 1 + len(names), chosen
    page.click("#compare-task input")
    page.get_by_role("option", name="Boxes", exact=True).first.click()


def compare(page: Any, picture: Path, text: str) -> Any:
    page.set_input_files("#compare-box input[type=file]", str(picture))
    page.wait_for_selector("#compare-box img")
    page.fill("#compare-box textarea", text)
    page.press("#compare-box textarea", "Enter")
    page.wait_for_selector("#compare-result section")
    return page.locator("#compare-result section")


def box(right: int, label: str = "it") -> str:
    return json.dumps([{"bbox_2d": [200, 200, right, 600], "label": label}])


ANSWERS = {"base": box(600), "tiny-a": box(600), "tiny-b": box(400), "tiny-c": box(600, "that")}


@pytest.fixture
def known_models(stub: Any, stub_url: str, models_page: OpenModels) -> Iterator[str]:
    """A page before the stub with a base and three adapters, whose answers differ as ANSWERS do."""
    listed = stub.models
    stub.models = [{"id": "base", "max_model_len": 512}]
    stub.models += [{"id": name, "max_model_len": 512, "parent": "base"} for name in ADAPTERS]
    stub.answers = {name: [answer] for name, answer in ANSWERS.items()}
    with models_page(stub_url, CONTRACT, ADAPTERS) as page:
        yield page
    stub.models = listed


AGREEMENTS = {
    2: "base and tiny-a: equal, boxes overlap by 1.00; "
    "base and tiny-b: different, boxes overlap by 0.50; "
    "tiny-a and tiny-b: different, boxes overlap by 0.50.",
    3: "base and tiny-a: equal, boxes overlap by 1.00; "
    "base and tiny-b: different, boxes overlap by 0.50; "
    "base and tiny-c: different, boxes overlap by 0.00; "
    "tiny-a and tiny-b: different, boxes overlap by 0.50; "
    "tiny-a and tiny-c: different, boxes overlap by 0.00; "
    "tiny-b and tiny-c: different, boxes overlap by 0.00.",
}
"""What is said of each pair, by the number of adapters beside the base."""


@pytest.mark.parametrize("adapters", [2, 3])
def test_three_and_four_answers_stand_side_by_side_with_each_pair_compared(
    adapters: int, known_models: str, opened: Any, stub: Any, drawing_file: Path
) -> None:
    names = ADAPTERS[:adapters]
    page = opened(known_models)
    choose_models(page, "base", names)

    columns = compare(page, drawing_file, "it")

    titles = columns.locator("h3").all_inner_texts()
    assert titles == [f"{at} · {name}" for at, name in zip("ABCD", ("base", *names), strict=False)]
    assert page.inner_text("#compare-line") == AGREEMENTS[adapters]
    tops = {round(column.bounding_box()["y"]) for column in columns.all()}
    assert len(tops) == 1, "the answers are not in one line"
    assert columns.locator(".ll-stage rect").count() == 1 + adapters
    marks = [column.locator("ins, del").count() > 0 for column in columns.all()]
    assert marks == [False, False, True, True][: 1 + adapters]
    assert columns.nth(2).locator("del").all_inner_texts() == ["600,"]
    assert columns.nth(2).locator("ins").all_inner_texts() == ["400,"]

    page.set_viewport_size({"width": 360, "height": 740})
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    tops = {round(column.bounding_box()["y"]) for column in columns.all()}
    assert len(tops) == 1 + adapters, "a phone shows them one below the other"


@pytest.mark.parametrize("adapters", [2, 3])
def test_a_blind_vote_between_three_and_four_counts_for_the_model_behind_the_letter(
    adapters: int, known_models: str, opened: Any, stub: Any, drawing_file: Path
) -> None:
    page = opened(known_models)
    choose_models(page, "base", ADAPTERS[:adapters])
    page.get_by_label("Blind").check()

    columns = compare(page, drawing_file, "it")

    letters = list("ABCD"[: 1 + adapters])
    assert columns.locator("h3").all_inner_texts() == letters
    assert "tiny-" not in page.inner_text("#compare-result")
    votes = page.locator("#compare-best label").all_inner_texts()
    assert votes == [*letters, "None is better"]
    halves = [column.inner_text().count("400") > 0 for column in columns.all()]
    letter = letters[halves.index(True)]
    page.get_by_label(letter, exact=True).check()
    page.click("#compare-vote")
    page.wait_for_function("document.querySelector('#compare-line').textContent.includes('vote')")
    assert f"{letter} · tiny-b" in columns.locator("h3").all_inner_texts()
    page.get_by_role("tab", name="History").click()
    page.wait_for_function(
        "document.querySelector('#history-turns').textContent.includes('best: tiny-b')"
    )


def test_a_model_that_fails_says_so_in_its_column_and_cannot_be_voted_for(
    known_models: str, opened: Any, stub: Any, drawing_file: Path
) -> None:
    stub.failing = {"tiny-b"}
    page = opened(known_models)
    choose_models(page, "base", ADAPTERS)

    columns = compare(page, drawing_file, "it")

    assert columns.count() == 4
    assert columns.nth(2).locator("[role=alert]").inner_text()
    assert columns.locator(".ll-stage rect").count() == 3
    assert page.inner_text("#compare-line").count("overlap") == 3
    votes = page.locator("#compare-best label").all_inner_texts()
    assert votes == ["A", "B", "D", "None is better"]


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Three adapters of the tiny base, each another way from it, as PEFT writes them."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForImageTextToText

    folder = tmp_path_factory.mktemp("adapters")
    config = LoraConfig(
        r=8,
        lora_alpha=16,
        target_modules=r".*language_model.*\.(q_proj|v_proj)",
        init_lora_weights=False,
        task_type="CAUSAL_LM",
    )
    made = {}
    for seed, name in enumerate(ADAPTERS):
        torch.manual_seed(seed)
        base = AutoModelForImageTextToText.from_pretrained(BASE, dtype=torch.float32)
        get_peft_model(base, config).save_pretrained(folder / name)
        made[name] = folder / name
    return made


@pytest.fixture(scope="module")
def real_models(
    adapters: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """A real vLLM with the tiny base and its three adapters; its address."""
    folder = tmp_path_factory.mktemp("vllm")
    with vllm(BASE, folder, BASE / "chat_template.jinja", PIXELS, adapters) as url:
        yield url


def test_a_real_server_of_four_tiny_models_is_compared(
    real_models: str, models_page: OpenModels, opened: Any, tmp_path: Path
) -> None:
    scene = next(each for each in make_shapes.scenes(98) if len(each.shapes) == 1)
    picture = tmp_path / "shape.png"
    picture.write_bytes(make_shapes.draw(scene))
    limits = {"min_pixels": PIXELS[0], "max_pixels": PIXELS[1]}
    with models_page(real_models, CONTRACT | limits, ADAPTERS) as url:
        for names in (ADAPTERS[:2], ADAPTERS):
            page = opened(url)
            page.set_default_timeout(60_000)
            choose_models(page, "tiny", names)

            columns = compare(page, picture, scene.shapes[0].name)

            titles = columns.locator("h3").all_inner_texts()
            assert [each.split(" · ")[1] for each in titles] == ["tiny", *names]
            assert columns.locator("[role=alert]").count() == 0
            answers = columns.locator(".ll-answer").all_inner_texts()
            assert len(set(answers)) > 1, answers
            said = page.inner_text("#compare-line")
            assert said.count(";") == len(names) * (len(names) + 1) / 2 - 1, said
            assert columns.nth(0).locator(".ll-stage rect").count() == 1, answers
