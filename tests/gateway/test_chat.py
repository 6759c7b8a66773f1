from __future__ import annotations

import base64
import json

import httpx
import pytest

from gateway import sse
from tests.gateway.conftest import picture


def chat_body(content="Hello", **more):
    return {"model": "tiny-lora", "messages": [{"role": "user", "content": content}], **more}


def post(gateway, **more) -> httpx.Response:
    return gateway.client.post("/v1/chat/completions", json=chat_body(**more))


def image(content: bytes, kind: str = "image/png") -> dict:
    url = f"data:{kind};base64,{base64.b64encode(content).decode()}"
    return {"type": "image_url", "image_url": {"url": url}}


def direct(stub_url: str, **more) -> httpx.Response:
    return httpx.post(f"{stub_url}/v1/chat/completions", json=chat_body(**more))


def test_an_answer_is_passed_on_as_it_came(vision, stub_url) -> None:
    asked = {"temperature": 0, "max_tokens": 8}
    assert post(vision, **asked).content == direct(stub_url, **asked).content


@pytest.mark.parametrize("fault", ["", "split"])
def test_a_stream_is_passed_on_as_it_came(vision, stub, stub_url, fault) -> None:
    stub.fault = fault
    asked = {"stream": True, "stream_options": {"include_usage": True}}
    assert post(vision, **asked).content == direct(stub_url, **asked).content


@pytest.mark.parametrize("fault", ["", "split"])
def test_usage_is_not_passed_on_to_who_did_not_ask(vision, stub, stub_url, fault) -> None:
    stub.fault = fault
    assert post(vision, stream=True).content == direct(stub_url, stream=True).content
    assert stub.requests[0]["stream_options"] == {"include_usage": True}


def test_the_listed_fields_reach_the_server(vision, stub) -> None:
    asked = {
        "temperature": 0.5,
        "top_p": 0.9,
        "max_completion_tokens": 5,
        "stop": ["x"],
        "seed": 3,
        "n": 1,
        "user": "alice",
        "presence_penalty": 0.5,
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "a", "schema": {"type": "object"}},
        },
        "logit_bias": None,
    }
    answer = post(vision, **asked)
    assert answer.status_code == 200, answer.text
    assert stub.requests[0] == chat_body() | {
        "temperature": 0.5,
        "top_p": 0.9,
        "max_tokens": 5,
        "stop": ["x"],
        "seed": 3,
        "presence_penalty": 0.5,
        "response_format": asked["response_format"],
    }


@pytest.mark.parametrize(
    "field",
    [
        {"chat_template": "{{ x }}"},
        {"chat_template_kwargs": {"tokenize": True}},
        {"mm_processor_kwargs": {}},
        {"media_io_kwargs": {}},
        {"documents": []},
        {"prompt_embeds": "x"},
        {"priority": 1},
        {"tools": []},
        {"logit_bias": {"1": 1}},
        {"n": 2},
        {"max_tokens": 10**6},
        {"max_tokens": 0},
        {"temperature": 3},
        {"temperature": "hot"},
        {"stop": ["x"] * 9},
        {"response_format": {"type": "grammar"}},
        {"messages": []},
        {"messages": [{"role": "tool", "content": "x"}]},
        {"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]},
        {"messages": [{"role": "user", "content": []}]},
    ],
    ids=str,
)
def test_other_fields_are_refused_by_name(vision, stub, field) -> None:
    answer = vision.client.post("/v1/chat/completions", json=chat_body() | field)
    assert answer.status_code == 422
    error = answer.json()["error"]
    assert next(iter(field)) in error["message"], error
    assert not stub.requests


def test_a_media_uuid_is_refused(vision, png) -> None:
    part = image(png) | {"uuid": "another's"}
    assert post(vision, content=[part]).status_code == 422


@pytest.mark.parametrize(
    ("schema", "why"),
    [
        ({"type": "string", "pattern": "(a+)+$"}, "pattern"),
        ({"type": "array", "maxItems": 10**9}, "maxItems"),
        ({"$ref": "http://x/y"}, r"\$ref"),
        ({"enum": ["x" * 20_000]}, "larger"),
        ({"patternProperties": {"(a+)+$": {"type": "string"}}}, "patternProperties"),
        ({"properties": {"a": {"patternProperties": {"(a+)+$": {}}}}}, "patternProperties"),
        ({"properties": {"properties": {"pattern": "(a+)+$"}}}, "pattern"),
        ({"$ref": "#/properties", "properties": {"pattern": "(a+)+$"}}, "pattern"),
        ({"$ref": "#/a", "a": {"patternProperties": {"(a+)+$": {}}}}, "patternProperties"),
        ({"anyOf": [{"$defs": {"format": {"format": "email"}}}]}, "format"),
    ],
)
def test_a_schema_that_takes_long_to_compile_is_refused(vision, schema, why) -> None:
    import re

    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
    error = post(vision, response_format=form).json()["error"]
    assert error["code"] == "schema"
    assert re.search(why, error["message"])


def test_a_schema_may_name_its_properties_as_it_likes(vision, stub) -> None:
    names = ("pattern", "format", "maxItems", "properties")
    properties = {name: {"type": "string", "maxLength": 9} for name in names}
    schema = {"type": "object", "properties": properties, "required": list(names)}
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
    assert post(vision, response_format=form).status_code == 200
    assert stub.requests[0]["response_format"]["json_schema"]["schema"] == schema


def test_an_image_goes_on_with_its_own_bytes(vision, stub) -> None:
    content = picture("JPEG")
    answer = post(vision, content=[image(content, "image/png"), {"type": "text", "text": "What?"}])
    assert answer.status_code == 200, answer.text
    sent = stub.requests[0]["messages"][0]["content"]
    # By its content, whatever the client calls it.
    assert sent == [image(content, "image/jpeg"), {"type": "text", "text": "What?"}]


@pytest.mark.parametrize(
    "url",
    [
        "http://169.254.169.254/latest/meta-data",
        "https://example.com/x.png",
        "file:///etc/passwd",
        "//example.com/x.png",
        "data:image/png,abc",
        "ftp://x/y",
    ],
)
def test_no_address_is_fetched(vision, stub, url) -> None:
    part = {"type": "image_url", "image_url": {"url": url}}
    answer = post(vision, content=[part])
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "address")
    assert url not in answer.text
    assert not stub.requests


@pytest.mark.parametrize("foreign", ["\n", "!", " ", "<script>"])
def test_base64_with_foreign_characters_is_refused(vision, png, foreign) -> None:
    """Also where a lenient reader would see the image: vLLM is another reader."""
    part = image(png)
    url = part["image_url"]["url"]
    part["image_url"]["url"] = url[:60] + foreign + url[60:]
    assert post(vision, content=[part]).json()["error"]["code"] == "base64"


def test_models_are_listed_as_clients_expect(vision) -> None:
    listed = vision.client.get("/v1/models").json()
    assert listed["object"] == "list"
    assert [each["id"] for each in listed["data"]] == ["base", "tiny-lora"]
    assert listed["data"][1]["parent"] == "base"


def test_errors_are_openais(vision) -> None:
    answer = vision.client.post(
        "/v1/chat/completions", content=b"{", headers={"content-type": "application/json"}
    )
    assert answer.status_code == 400
    assert answer.json()["error"] == {
        "message": "The body is not JSON.",
        "type": "invalid_request_error",
        "param": None,
        "code": "json",
    }
    assert answer.headers["x-request-id"] == answer.json()["request_id"]


def test_verify_serving_asks_through_the_gateway_as_it_asks_vllm(vision, stub, png) -> None:
    from loraline.records import from_prompt
    from loraline.serving.client import Server

    server = Server(vision.url)
    server.check_health()
    assert server.models() == {"base": None, "tiny-lora": "base"}
    served = server.ask("tiny-lora", from_prompt("Read.", "", "", png), 5)
    assert served.tokens == [0, 1, 2]
    assert served.prompt == [1, 2, 3]


def test_events_are_cut_at_their_ends_however_they_come() -> None:
    events = b'data: {"a":1}\n\n: note\n\ndata: [DONE]\n\n'
    for size in range(1, len(events) + 1):
        buffer = sse.EventBuffer()
        result = [buffer.feed(events[at : at + size]) for at in range(0, len(events), size)]
        assert b"".join(result) == events
        assert all(piece.endswith(b"\n\n") for piece in result if piece)


def test_the_usage_event_is_taken_out_wherever_it_stands() -> None:
    usage = {"prompt_tokens": 1, "completion_tokens": 2}
    last = b"data: " + json.dumps({"choices": [], "usage": usage}, separators=(",", ":")).encode()
    events = b'data: {"choices":[{}]}\n\n' + last + b"\n\ndata: [DONE]\n\n"
    kept, result = sse.without_usage(events)
    assert kept == b'data: {"choices":[{}]}\n\ndata: [DONE]\n\n'
    assert result == usage
