"""A real vLLM of each Qwen-VL generation behind the gateway: /predict gets the tokens that the line
itself gets when it asks the server. The line's own test holds both against what was measured."""

from __future__ import annotations

import io
import json

import pytest
from PIL import Image

from loraline.records import from_prompt
from loraline.serving.client import Server
from tests.gateway.conftest import CONTRACT, TEXT, vllm

pytestmark = pytest.mark.slow

TEMPLATE = (
    "{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for p in m.content %}{% if p.type == 'text' %}{{ p.text }}{% else %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% endif %}{% endfor %}{% endif %}{% endfor %}"
)
ARCHITECTURES = {
    "qwen2-vl": "Qwen2VLForConditionalGeneration",
    "qwen2.5-vl": "Qwen2_5_VLForConditionalGeneration",
    "qwen3-vl": "Qwen3VLForConditionalGeneration",
    "mistral": "MistralForCausalLM",
}
"""By the names of the tiny bases."""


@pytest.fixture(scope="module", params=list(ARCHITECTURES))
def behind(request, tiny_base, tmp_path_factory, start):
    """vLLM with a tiny base, and a gateway before it that knows its contract."""
    base = request.param
    vision = base != "mistral"
    folder = tmp_path_factory.mktemp("vllm")
    (folder / "template.jinja").write_text(TEMPLATE)
    contract = (CONTRACT if vision else TEXT) | {
        "architecture": ARCHITECTURES[base],
        "min_pixels": 4704 if vision else None,
        "max_pixels": 9408 if vision else None,
        "max_new_tokens": 24,
        "export": "merged",
    }
    pixels = (4704, 9408) if vision else None
    with (
        vllm(tiny_base(base), folder, folder / "template.jinja", pixels) as url,
        start(contract, {"url": url, "name": "tiny"}, refresh_s=1) as gateway,
    ):
        gateway.contract, gateway.direct = contract, Server(url)
        yield gateway


def pictures() -> list[bytes]:
    """Of many sizes and types, one turned and one with transparency."""
    result = []
    exif = Image.Exif()
    exif[0x0112] = 6
    for number, (kind, size, more) in enumerate(
        [
            ("PNG", (64, 64), {}),
            ("JPEG", (300, 100), {}),
            ("JPEG", (120, 200), {"exif": exif}),
            ("WEBP", (77, 91), {}),
            ("BMP", (33, 60), {}),
            ("PNG", (512, 512), {}),
        ]
    ):
        image = Image.effect_noise(size, 40 + number * 20).convert("RGB")
        if number == 5:
            image.putalpha(128)
        file = io.BytesIO()
        image.save(file, kind, **more)
        result.append(file.getvalue())
    return result


def test_predict_gets_the_tokens_that_the_line_gets(behind) -> None:
    prompt, most = behind.contract["prompt"], behind.contract["max_new_tokens"]
    vision = behind.contract["modality"] == "vision"
    asked = [("", content) for content in pictures()] if vision else []
    asked += [] if vision else [(f"Question {number}?", None) for number in range(6)]
    answers = set()
    for question, content in asked:
        served = behind.direct.ask("tiny", from_prompt(prompt, question, "", content), most)
        data = {"token_ids": "true"} | ({"question": question} if question else {})
        files = {"files": ("row", content)} if content else None
        answer = behind.client.post("/predict", data=data, files=files)
        assert answer.status_code == 200, answer.text
        (result,) = answer.json()["predictions"]
        tokens = result["token_ids"]
        assert (tokens[:-1] if result["finish_reason"] == "stop" else tokens) == served.tokens
        assert result["caption"] == served.text
        answers.add(tuple(tokens))
    assert len(answers) > 1, "all answers are the same, so the test says nothing"


def test_the_context_that_vllm_has_is_told_with_both_numbers(behind) -> None:
    message = {"role": "user", "content": "x " * 3000}
    body = {"model": "tiny", "messages": [message]}
    answer = behind.client.post("/v1/chat/completions", json=body)
    assert answer.status_code == 422, answer.text
    error = answer.json()["error"]
    assert (error["code"], error["limit"]) == ("context", 512)
    assert error["asked"] > 512


def test_vllms_words_stay_behind_the_door(behind) -> None:
    body = {"model": "tiny", "messages": [{"role": "user", "content": "x"}], "stop": [""]}
    answer = behind.client.post("/v1/chat/completions", json=body)
    assert answer.status_code in (200, 422)
    assert "vllm" not in answer.text.lower()


def test_a_stream_is_the_whole_answer_in_pieces(behind) -> None:
    body = {
        "model": "tiny",
        "messages": [{"role": "user", "content": "Hello"}],
        "temperature": 0,
        "max_tokens": 12,
    }
    whole = behind.client.post("/v1/chat/completions", json=body).json()
    stream = behind.client.post("/v1/chat/completions", json=body | {"stream": True})
    events = [json.loads(line[6:]) for line in stream.text.split("\n\n") if "{" in line]
    text = "".join(event["choices"][0]["delta"].get("content") or "" for event in events)
    assert text == whole["choices"][0]["message"]["content"]
    assert stream.text.endswith("data: [DONE]\n\n")
