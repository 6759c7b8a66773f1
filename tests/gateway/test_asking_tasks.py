"""Tasks over HTTP: the right request to the model, and its answer as items."""

from __future__ import annotations

import base64
import io
import json
import threading

import pytest
from PIL import Image

from tests.gateway.conftest import CONTRACT, TEXT, picture


def ask(gateway, task: str, *contents: bytes, **fields: str):
    files = [("files", (f"image{index}", content)) for index, content in enumerate(contents)]
    return gateway.client.post(f"/tasks/{task}", files=files or None, data=fields)


def test_an_answer_leaves_half_of_a_short_context_to_the_request(vision, stub, png) -> None:
    assert ask(vision, "spatial-boxes", png, text="square").status_code == 200
    assert stub.requests[0]["max_tokens"] == 256, "the server's context is 512 tokens"
    # vLLM lists no length for an adapter; its contract says which one the server was given.
    assert ask(vision, "spatial-boxes", png, text="square", model="tiny-lora").status_code == 200
    assert stub.requests[1]["max_tokens"] == 256
    answer = ask(vision, "spatial-boxes", png, text="square", max_tokens="300")
    assert (answer.status_code, answer.json()["code"]) == (422, "max_tokens")
    assert "from 1 to 256" in answer.json()["detail"]


@pytest.fixture(scope="module")
def old(start):
    """A gateway before a Qwen2.5-VL, which counts in pixels of the resized image."""
    contract = CONTRACT | {"architecture": "Qwen2_5_VLForConditionalGeneration"}
    with start(contract) as gateway:
        yield gateway


def test_a_task_goes_to_the_base_with_its_prompt_and_the_original_bytes(vision, stub, png) -> None:
    answer = ask(vision, "spatial-boxes", png, text="square")
    assert answer.status_code == 200, answer.text
    (request,) = stub.requests
    assert request["model"] == "base"
    assert request["temperature"] == 0
    assert request["repetition_detection"]["min_count"] > 1
    parts = request["messages"][-1]["content"]
    assert base64.b64decode(parts[0]["image_url"]["url"].partition(",")[2]) == png
    assert "'square'" in parts[1]["text"]


def test_boxes_come_back_in_the_original_image(vision, stub) -> None:
    stub.tokens = ['[{"bbox_2d": [250, 500, 750, 1000], "label": "square"}]']
    answer = ask(vision, "spatial-boxes", picture("PNG", (400, 200)), text="square").json()
    (item,) = answer["items"]
    assert item["label"] == "square"
    assert item["box_unit"] == pytest.approx([0.25, 0.5, 0.75, 1])
    assert item["box_pixels"] == [100, 100, 300, 200]
    assert answer["task"] == "spatial-boxes"
    assert answer["raw"] == stub.tokens[0]
    assert answer["model_uri"] is None
    assert answer["timing"]["parse_ms"] > 0


@pytest.mark.parametrize("turn", range(1, 9))
def test_pixels_of_the_resized_image_come_back_upright(old, stub, turn) -> None:
    """1280 x 960 is seen as 1288 x 952 and answered in those pixels (28 to a cell)."""
    exif = Image.Exif()
    exif[0x0112] = turn
    upright = (1280, 960)
    stored = upright if turn < 5 else upright[::-1]
    stub.tokens = ['[{"bbox_2d": [131, 233, 683, 838], "label": "cat"}]']
    content = picture("JPEG", stored, quality=10, exif=exif)
    contract = ask(old, "spatial-boxes", content, text="cat").json()
    assert (contract["image"]["width"], contract["image"]["height"]) == upright
    shown = contract["image"]["resized_width"], contract["image"]["resized_height"]
    (item,) = contract["items"]
    wanted = [131 / shown[0], 233 / shown[1], 683 / shown[0], 838 / shown[1]]
    assert item["box_unit"] == pytest.approx(wanted, abs=1e-3)


def test_what_was_mended_is_noted_and_counted(vision, stub, png) -> None:
    stub.tokens = ["[{'bbox_2d': [1, 2, 30, 40], 'label': 'a'}, {'bbox_2d': [581, 587, 655, 65"]
    stub.finish_reason = "length"
    answer = ask(vision, "spatial-boxes", png, text="a").json()
    assert len(answer["items"]) == 1
    assert answer["finish_reason"] == "length"
    assert any(note.startswith("cut") for note in answer["notes"])
    assert 'repaired_total{task="spatial-boxes"}' in vision.client.get("/metrics").text


def test_overlays_are_drawn_when_asked_for(vision, stub) -> None:
    stub.tokens = ['[{"bbox_2d": [250, 250, 750, 750], "label": "<script>"}]']
    content = picture("JPEG", (400, 200))
    drawn = ask(vision, "spatial-boxes", content, text="a", overlay="svg,png").json()["overlay"]
    assert drawn["svg"].startswith("<svg") and "<script" not in drawn["svg"]
    head, encoded = drawn["png"].split(",")
    assert head == "data:image/png;base64"
    assert Image.open(io.BytesIO(base64.b64decode(encoded))).size == (400, 200)


def test_more_pixels_than_pillow_opens_are_taken_where_the_setting_allows_them(
    start, stub, monkeypatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)
    stub.tokens = ['[{"bbox_2d": [250, 250, 750, 750], "label": "a"}]']
    with start(max_pixels=120_000) as gateway:
        answer = ask(gateway, "spatial-boxes", picture("PNG", (400, 300)), text="a", overlay="png")
        assert answer.status_code == 200
        refused = ask(gateway, "spatial-boxes", picture("PNG", (401, 300)), text="a")
        assert refused.json()["code"] == "media_pixels"


def test_a_task_streams_and_ends_with_its_items(vision, stub, png) -> None:
    stub.tokens = ['[{"bbox_2d": [1, ', '2, 30, 40], "label": "a"}]']
    answer = ask(vision, "spatial-boxes", png, text="a", stream="true")
    events = [event.split("\n") for event in answer.text.strip().split("\n\n")]
    assert [name for name, _ in events] == ["event: token", "event: token", "event: done"]
    done = json.loads(events[-1][1].removeprefix("data: "))
    assert len(done["items"]) == 1


def test_an_action_is_checked_and_never_done(vision, stub, png) -> None:
    stub.tokens = [
        '<tool_call>\n{"name": "computer_use", ',
        '"arguments": {"action": "format_disk"}}\n</tool_call>',
    ]
    answer = ask(vision, "computer", png, text="Format the disk.").json()
    assert not [item for item in answer["items"] if item["kind"] == "action"]
    assert any(note.startswith("refused") for note in answer["notes"])


def test_tasks_are_listed(vision) -> None:
    listed = vision.client.get("/tasks").json()["tasks"]
    names = {task["name"] for task in listed}
    assert {"ocr-text", "ocr-lines", "spatial-boxes", "computer", "mobile"} <= names
    assert names == set(vision.client.get("/info").json()["tasks"])


def test_a_user_adds_a_task_without_code(start, stub, png, tmp_path) -> None:
    (tmp_path / "colour.yaml").write_text(
        "title: Colour\ndescription: Says a colour.\ninputs: image\n"
        "prompts: {default: 'Which colour?'}\nanswer: text\nparser: text\n"
    )
    with start(tasks_dir=tmp_path) as gateway:
        answer = ask(gateway, "colour", png).json()
    assert answer["value"] == "one two three"
    assert stub.requests[0]["messages"][0]["content"][1]["text"] == "Which colour?"


def test_a_task_without_a_prompt_for_a_models_family_says_so(start, stub, tmp_path) -> None:
    (tmp_path / "why.yaml").write_text(
        "title: Why\ndescription: Says why.\ninputs: text\nanswer: text\nparser: text\n"
        "prompts: {qwen2-vl: Why, qwen2.5-vl: Why, qwen3-vl: Why}\n"
    )
    with start(TEXT, tasks_dir=tmp_path) as gateway:
        answer = ask(gateway, "why", options="{}")
    assert (answer.status_code, answer.json()["code"]) == (422, "model")
    assert not stub.requests


@pytest.mark.parametrize(
    ("task", "images", "fields", "code"),
    [
        ("spatial-boxes", 1, {}, "options"),
        ("spatial-boxes", 0, {"text": "a"}, "files"),
        ("spatial-boxes", 2, {"text": "a"}, "files"),
        ("spatial-boxes", 1, {"text": "a", "overlay": "gif"}, "overlay"),
        ("spatial-boxes", 1, {"text": "a", "max_tokens": "99999"}, "max_tokens"),
        ("spatial-boxes", 1, {"text": "a", "options": "[1]"}, "options"),
        ("spatial-boxes", 1, {"text": "a", "options": '{"width": 5}'}, "options"),
        ("spatial-boxes", 1, {"text": "a" * 20_000}, "options"),
        ("spatial-boxes", 1, {"question": "a"}, "field"),
        ("video-events", 1, {}, "files"),
    ],
)
def test_what_the_task_does_not_take_is_refused(vision, stub, png, task, images, fields, code):
    answer = ask(vision, task, *[png] * images, **fields)
    assert (answer.status_code, answer.json()["code"]) == (422, code)
    assert not stub.requests


def test_a_text_model_sees_no_image(text, png) -> None:
    assert ask(text, "recognition", png).json()["code"] == "files"


class TestCompare:
    def compare(self, gateway, *contents: bytes, **fields: str):
        files = [("files", ("image", content)) for content in contents]
        return gateway.client.post("/compare", files=files or None, data=fields)

    def test_base_and_adapter_stand_side_by_side(self, vision, stub, png) -> None:
        answer = self.compare(vision, png)
        assert answer.status_code == 200, answer.text
        result = answer.json()
        assert [each["model"] for each in result["answers"]] == ["base", "tiny-lora"]
        assert result["comparisons"] == [{"models": ["base", "tiny-lora"], "equal": True}]
        assert {request["model"] for request in stub.requests} == {"base", "tiny-lora"}
        base, adapter = sorted(stub.requests, key=lambda each: each["model"])
        assert base["messages"] == adapter["messages"]

    def test_boxes_are_laid_over_each_other(self, vision, stub, png) -> None:
        stub.tokens = ['[{"bbox_2d": [0, 0, 500, 500], "label": "a"}]']
        result = self.compare(vision, png, task="spatial-boxes", text="a").json()
        assert result["comparisons"][0]["iou"] == 1

    @pytest.mark.parametrize(
        "fields",
        [
            {"models": "base"},
            {"models": "base,base"},
            {"models": "a,b,c,d,e"},
            {"task": "spatial-boxes", "question": "x"},
            {"text": "x"},
            {"options": "{}"},
        ],
        ids=str,
    )
    def test_it_is_two_to_four_different_models(self, vision, stub, png, fields) -> None:
        assert self.compare(vision, png, **fields).status_code == 422
        assert not stub.requests

    def test_many_boxes_stop_no_stream(self, vision, stub, png, monkeypatch) -> None:
        from gateway.routes import compare

        threads = set()
        real = compare.compared

        def compared(*pair):
            threads.add(threading.current_thread())
            return real(*pair)

        monkeypatch.setattr(compare, "compared", compared)
        boxes = [{"bbox_2d": [n, n, n + 9, n + 9], "label": "a"} for n in range(900)]
        stub.tokens = [json.dumps(boxes)]
        result = self.compare(vision, png, task="spatial-boxes", text="a").json()
        assert result["comparisons"][0]["iou"] == 1
        assert vision.thread not in threads, "each pair of boxes is compared with each other"

    def test_a_model_that_fails_does_not_take_the_others_answer_away(self, vision, stub, png):
        # Each is tried twice.
        stub.failures_left = 3
        result = self.compare(vision, png).json()
        assert sum("problem" in each for each in result["answers"]) == 1


def test_overlaps_by_hand() -> None:
    from gateway.routes.compare import iou, mean_iou

    assert iou([0, 0, 2, 2], [1, 1, 3, 3]) == pytest.approx(1 / 7)
    assert iou([0, 0, 1, 1], [2, 2, 3, 3]) == 0
    boxes = [("a", [0, 0, 1, 1]), ("b", [0, 0, 1, 1])]
    assert mean_iou(boxes, boxes) == 1
    assert mean_iou(boxes, boxes[:1]) == 0.5
    assert mean_iou([("a", [0, 0, 1, 1])], [("b", [0, 0, 1, 1])]) == 0
