from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable

import pytest

from loraline.errors import TryAgain, UserError
from loraline.records import Record, Video, from_prompt
from loraline.serving import client
from loraline.serving.client import Refused, Server

Answering = Callable[[int, str], str]
ROW = from_prompt("{question}", "Who?", "")


def test_the_interfaces_address_is_as_good_as_the_servers(answering: Answering) -> None:
    listing = {"data": [{"id": "base"}, {"id": "tiny-lora", "parent": "base"}]}
    url = answering(200, json.dumps(listing))
    for address in (url, f"{url}/", f"{url}/v1", f"{url}/v1/"):
        assert Server(address).models() == {"base": None, "tiny-lora": "base"}


def test_a_request_that_is_refused_is_told_with_the_servers_words(answering: Answering) -> None:
    url = answering(400, '{"error":\n "too long"}')
    with pytest.raises(Refused, match=r'answers 400: \{"error": "too long"\}'):
        Server(url).ask("tiny-lora", ROW, 5)


@pytest.mark.parametrize("code", [429, 500, 503])
def test_a_server_that_fails_is_no_mistake_of_the_user(answering: Answering, code: int) -> None:
    url = answering(code, "")
    for asked in (Server(url).check_health, Server(url).models):
        with pytest.raises(TryAgain, match=f"answers {code}"):
            asked()
    with pytest.raises(TryAgain, match=f"answers {code}"):
        Server(url).ask("tiny-lora", ROW, 5)


@pytest.mark.parametrize(
    "body", ["", "<html>", "[]", "{}", '{"data": [1]}', '{"choices": [{"message": {}}]}']
)
def test_another_kind_of_server_is_said_in_one_sentence(answering: Answering, body: str) -> None:
    url = answering(200, body)
    for asked in (Server(url).models, lambda: Server(url).ask("tiny-lora", ROW, 5)):
        with pytest.raises(UserError, match=f"{url} is no vLLM server") as error:
            asked()
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("url", ["http://127.0.0.1:port", "http://127.0.0.1:1/a b"])
def test_a_malformed_address_is_a_mistake_of_the_user(url: str) -> None:
    with pytest.raises(UserError):
        Server(url).models()


def picture(kind: str) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, kind)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF"])
def test_images_are_sent_in_the_request_with_their_type(kind: str) -> None:
    image = picture(kind)
    record = Record((("user", "a <image> b <image>"), ("assistant", "")), (image, image))
    content = client.request("tiny-lora", record, 5)["messages"][0]["content"]
    assert [part["type"] for part in content] == ["text", "image_url", "text", "image_url"]
    head, _, data = content[1]["image_url"]["url"].partition(",")
    assert head == f"data:image/{kind.lower()};base64"
    assert base64.b64decode(data) == image


def test_a_video_is_sent_as_the_frames_that_were_sampled_with_their_rate() -> None:
    frames = tuple(picture("JPEG") for _ in range(4))
    row = Record((("user", "a <video> b"), ("assistant", "")), (), (Video(frames, 2.0),))
    body = client.request("tiny-lora", row, 5)
    content = body["messages"][0]["content"]
    assert [part["type"] for part in content] == ["text", "video_url", "text"]
    head, _, data = content[1]["video_url"]["url"].partition(",")
    assert head == "data:video/jpeg;base64"
    assert tuple(map(base64.b64decode, data.split(","))) == frames
    # All frames, not vLLM's thirty-two, and their times.
    assert body["media_io_kwargs"] == {"video": {"num_frames": -1, "fps": 2.0}}


def test_images_and_videos_stand_where_their_tags_do() -> None:
    image, film = picture("PNG"), Video((picture("JPEG"),), 1.0)
    row = Record((("user", "<video><image>?"), ("assistant", "")), (image,), (film,))
    content = client.request("tiny-lora", row, 5)["messages"][0]["content"]
    assert [part["type"] for part in content] == ["video_url", "image_url", "text"]


def test_videos_of_two_rates_cannot_be_asked_at_once() -> None:
    films = tuple(Video((picture("JPEG"),), fps) for fps in (1.0, 2.0))
    row = Record((("user", "<video><video>?"), ("assistant", "")), (), films)
    with pytest.raises(UserError, match=r"videos of 1\.0 and 2\.0 frames a second"):
        client.request("tiny-lora", row, 5)


def test_a_server_that_is_no_address_or_not_there_is_said() -> None:
    with pytest.raises(UserError, match="does not start with http"):
        Server("localhost:8000")
    with pytest.raises(TryAgain, match=r"127\.0\.0\.1:9 does not answer"):
        Server("http://127.0.0.1:9").models()
