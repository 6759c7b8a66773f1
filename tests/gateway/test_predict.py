from __future__ import annotations

import json

import pytest

from gateway.served import Model
from loraline.records import from_prompt
from loraline.serving import client as serving_client
from tests.gateway.conftest import CONTRACT, TEXT, picture


def ask(gateway, *contents: bytes, **fields: str):
    files = [("files", (f"image{index}.png", content)) for index, content in enumerate(contents)]
    return gateway.client.post("/predict", files=files or None, data=fields)


def events(answer) -> list[tuple[str, dict]]:
    result = []
    for event in answer.text.split("\n\n"):
        if event.strip():
            name, data = event.split("\n", 1)
            result.append((name.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    return result


def test_an_image_is_asked_with_the_contract_and_its_original_bytes(vision, stub, png) -> None:
    answer = ask(vision, png)
    assert answer.status_code == 200
    record = from_prompt(CONTRACT["prompt"], "", "", png)
    assert stub.requests == [serving_client.request("tiny-lora", record, 64)]


def test_a_question_is_put_into_the_prompt(text, stub) -> None:
    answer = ask(text, question="Who is Mieb?")
    assert answer.status_code == 200, answer.text
    record = from_prompt(TEXT["prompt"], "Who is Mieb?", "")
    assert stub.requests == [serving_client.request("tiny-lora", record, 64)]


def test_the_answer_has_the_documented_shape(vision, png) -> None:
    answer = ask(vision, png).json()
    (prediction,) = answer["predictions"]
    assert prediction["image_index"] == 0
    assert prediction["filename"] == "image0.png"
    assert prediction["caption"] == "one two three"
    assert prediction["image"]["width"], prediction["image"]["height"] == (64, 48)
    assert answer["model_uri"] == "models:/tiny-lora/3"
    assert answer["usage"] == {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
    assert answer["finish_reason"] == "stop"
    assert answer["processing_time_ms"] > 0
    assert set(answer["timing"]) == {
        "upload_ms",
        "queue_ms",
        "ttft_ms",
        "generate_ms",
        "parse_ms",
    }


def test_an_answer_stands_without_the_space_around_it_as_it_was_measured(vision, stub, png):
    stub.tokens = ["\n one", " two \n"]
    assert ask(vision, png).json()["predictions"][0]["caption"] == "one two"


def test_each_image_has_a_prediction_in_order(vision, stub, png) -> None:
    answer = ask(vision, png, picture("JPEG"), picture("WEBP")).json()
    assert [each["image_index"] for each in answer["predictions"]] == [0, 1, 2]
    assert len(stub.requests) == 3
    assert answer["usage"]["total_tokens"] == 30


def test_a_stream_ends_with_the_document_that_is_sent_without_one(vision, png) -> None:
    whole = ask(vision, png).json()
    answer = ask(vision, png, stream="true")
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["x-accel-buffering"] == "no"
    result = events(answer)
    assert [data["text"] for name, data in result if name == "token"] == ["one", " two", " three"]
    name, done = result[-1]
    assert name == "done"
    for key in ("predictions", "model_uri", "usage", "finish_reason"):
        assert done[key] == whole[key]
    assert done["timing"]["ttft_ms"] > 0


def test_tokens_are_given_when_asked_for(vision, png) -> None:
    assert ask(vision, png, token_ids="true").json()["predictions"][0]["token_ids"] == [0, 1, 2, 2]


def test_a_cut_answer_says_so(vision, stub, png) -> None:
    stub.finish_reason = "length"
    answer = ask(vision, png).json()
    assert answer["finish_reason"] == "length"
    assert answer["predictions"][0]["notes"] == ["The answer is cut: it reached the most tokens."]


def test_the_size_is_that_of_the_upright_image(vision) -> None:
    from PIL import Image

    exif = Image.Exif()
    exif[0x0112] = 6
    answer = ask(vision, picture("JPEG", (640, 480), exif=exif)).json()
    image = answer["predictions"][0]["image"]
    assert (image["width"], image["height"]) == (480, 640)
    assert (image["resized_width"], image["resized_height"]) == (480, 640)


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"question": "What?"}, "question"),
        ({"max_tokens": "65"}, "max_tokens"),
        ({"max_tokens": "-1"}, "max_tokens"),
        ({"stream": "perhaps"}, "field"),
        ({"modle": "base"}, "field"),
    ],
)
def test_a_field_that_would_do_nothing_or_too_much_is_refused(vision, stub, png, fields, code):
    answer = ask(vision, png, **fields)
    assert (answer.status_code, answer.json()["code"]) == (422, code)
    assert not stub.requests


def test_a_text_model_takes_no_files_and_needs_a_question(text, png) -> None:
    assert ask(text, png, question="Who?").json()["code"] == "files"
    assert ask(text, model="tiny-lora").json()["code"] == "question"


@pytest.mark.parametrize("tag", ["<image>", "<video>"])
def test_a_question_with_the_tag_of_a_file_is_refused(start, stub, png, tag) -> None:
    with start(CONTRACT | {"prompt": "Where is {question}?"}) as gateway:
        assert ask(gateway, png, question="the block").status_code == 200
        refused = ask(gateway, png, question=f"the block {tag}")
    assert (refused.status_code, refused.json()["code"]) == (422, "question")
    assert tag in refused.json()["detail"]


def test_a_model_is_named_by_its_role_too(vision, stub, png) -> None:
    assert ask(vision, png, model="base").status_code == 200
    assert stub.requests[0]["model"] == "base"
    unknown = ask(vision, png, model="gpt-4")
    assert (unknown.status_code, unknown.json()["code"]) == (404, "model_unknown")


def test_a_model_without_a_contract_has_no_prompt(start, stub, png) -> None:
    with start(None) as gateway:
        assert ask(gateway, png).json()["code"] == "no_contract"


def test_the_version_is_the_one_that_the_server_loaded() -> None:
    from gateway.served import versioned

    assert versioned("models:/formula/3", "/adapters/formula/v5") == "models:/formula/5"
    assert versioned("models:/formula/3", "formula") == "models:/formula/3"
    assert versioned("", "/adapters/formula/v5") == ""


def test_families_are_told_apart() -> None:
    from gateway.served import family_of

    assert family_of("Qwen2VLForConditionalGeneration") == "qwen2-vl"
    assert family_of("Qwen2_5_VLForConditionalGeneration") == "qwen2.5-vl"
    assert family_of("Qwen/Qwen3-VL-8B-Instruct") == "qwen3-vl"
    assert family_of("MistralForCausalLM") == "default"
    assert Model("x", None, None, adapted=False).version == ""
