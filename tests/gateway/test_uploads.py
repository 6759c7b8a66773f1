from __future__ import annotations

import asyncio
import base64
import io
import json
import os
import resource
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, repeat
from types import SimpleNamespace

import av
import numpy as np
import pytest
from made_data import cut_film, sixteen_bits, turned_film
from PIL import Image, ImageOps

from gateway import frames, images, video
from gateway.errors import Problem
from gateway.settings import Settings
from tests.gateway.conftest import ask_chat, picture
from tests.gateway.test_predict import ask


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
@pytest.mark.parametrize("size", [(64, 48), (2000, 1500)])
def test_every_type_is_taken_and_goes_on_as_it_came(vision, stub, kind, size) -> None:
    content = picture(kind, size)
    answer = ask(vision, content)
    assert answer.status_code == 200, answer.text
    sent = stub.requests[0]["messages"][0]["content"][0]["image_url"]["url"]
    assert base64.b64decode(sent.partition(",")[2]) == content


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA"])
def test_every_kind_of_pixels_is_taken(vision, mode) -> None:
    file = io.BytesIO()
    Image.new(mode, (64, 48)).save(file, "PNG")
    assert ask(vision, file.getvalue()).status_code == 200


@pytest.mark.parametrize(("mode", "form"), [("I;16", "PNG"), ("I;16", "TIFF"), ("F", "TIFF")])
def test_grey_of_more_than_eight_bits_is_refused_by_name(vision, stub, mode, form) -> None:
    """vLLM would cut its values off at 255, so that nearly everything is white."""
    file = io.BytesIO()
    Image.new(mode, (64, 48), 1000).save(file, form)
    seen = Image.open(io.BytesIO(file.getvalue())).convert("RGB")
    assert seen.getpixel((0, 0)) == (255, 255, 255)
    answer = ask(vision, file.getvalue())
    assert (answer.status_code, answer.json()["code"]) == (422, "media_depth")
    assert "more than 8 bits" in answer.json()["detail"]
    assert stub.requests == []


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_colour_of_sixteen_bits_is_seen_by_its_higher_eight(vision, channels) -> None:
    """Also grey with transparency, which Pillow takes for colour."""
    values = np.full((48, 64, channels), 0x8042, np.uint16)
    values[..., -1] = 0xFFFF if channels in (2, 4) else 0x8042
    content = sixteen_bits(values)
    assert ask(vision, content).status_code == 200
    assert Image.open(io.BytesIO(content)).convert("RGB").getpixel((0, 0)) == (128, 128, 128)


def test_an_animation_is_its_first_frame(vision) -> None:
    file = io.BytesIO()
    frames = [Image.new("L", (64, 48), shade) for shade in (0, 99)]
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:])
    assert ask(vision, file.getvalue()).status_code == 200


def test_a_photo_with_a_film_behind_it_is_an_image(vision) -> None:
    """Telephones write one into the same file."""
    content = picture("JPEG") + b"\0\0\0\x18ftypmp42" + b"\1" * 1000
    assert ask(vision, content).status_code == 200


def test_limits_are_told_with_their_number(start, stub) -> None:
    with start(max_image_mb=0.01, max_body_mb=0.1, max_pixels=10_000) as gateway:
        large = ask(gateway, picture("PNG", (200, 200)))
        assert (large.status_code, large.json()["code"]) == (413, "image_too_large")
        larger = ask(gateway, b"\x89PNG\r\n\x1a\n" + b"x" * 200_000)
        assert (larger.status_code, larger.json()["limit_bytes"]) == (413, 104857)
        head = b'--x\r\nContent-Disposition: form-data; name="files"; filename="row"\r\n\r\n'
        unsaid = gateway.client.post(
            "/predict",
            content=chain([head], repeat(b"x" * 10_000, 20)),
            headers={"content-type": "multipart/form-data; boundary=x"},
        )
        assert (unsaid.status_code, unsaid.json()["code"]) == (413, "body_too_large")
        uri = "data:image/png;base64," + base64.b64encode(picture("PNG", (200, 200))).decode()
        part = {"type": "image_url", "image_url": {"url": uri}}
        body = {"model": "base", "messages": [{"role": "user", "content": [part]}]}
        inside = gateway.client.post("/v1/chat/completions", json=body)
        assert (inside.status_code, inside.json()["error"]["code"]) == (413, "image_too_large")
        pixels = ask(gateway, picture("JPEG", (200, 100), quality=5))
        assert (pixels.status_code, pixels.json()["limit"]) == (422, 10_000)


def test_a_body_that_says_it_is_too_large_is_refused_before_it_comes(vision, stub) -> None:
    head = (
        "POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=x\r\n"
        f"Content-Length: {10**12}\r\n\r\n"
    )
    host, port = vision.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), 10) as client:
        client.sendall(head.encode())
        answer = client.recv(2**16)
    assert b" 413 " in answer.partition(b"\r\n")[0], answer


@pytest.mark.parametrize("path", ["/sessions", "/v1/chat/completions"])
def test_json_has_the_limit_of_json(start, path) -> None:
    with start(max_json_mb=0.01, max_body_mb=1) as gateway:
        answer = gateway.client.post(path, json={"title": "x" * 20_000})
    assert answer.status_code == 413, answer.text


def film(seconds: float = 3, rate: int = 10, size: tuple[int, int] = (96, 64), form: str = "mp4"):
    """A video whose frames grow brighter."""
    file = io.BytesIO()
    codec = "mpeg2video" if form == "mpegts" else "mpeg4"
    with av.open(file, "w", format=form) as container:
        stream = container.add_stream(codec, rate=rate)
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        total = int(seconds * rate)
        for index in range(total):
            shade = np.full((size[1], size[0], 3), 255 * index // total, dtype=np.uint8)
            for packet in stream.encode(av.VideoFrame.from_ndarray(shade, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return file.getvalue()


def show(gateway, content: bytes, **fields: str):
    return gateway.client.post(
        "/tasks/video-events", files={"files": ("film", content)}, data={"model": "base"} | fields
    )


@pytest.mark.parametrize("form", ["mp4", "matroska", "avi"])
def test_a_video_is_sent_as_frames_with_their_places(vision, stub, form) -> None:
    answer = show(vision, film(form=form))
    assert answer.status_code == 200, answer.text
    (request,) = stub.requests
    facts = request["media_io_kwargs"]["video"]
    assert facts["num_frames"] == -1
    assert facts["total_num_frames"] == 30
    assert facts["duration"] == pytest.approx(3)
    assert facts["frames_indices"][0] == 0 and facts["frames_indices"][-1] == 29
    parts = request["messages"][-1]["content"]
    (url,) = [part["video_url"]["url"] for part in parts if part["type"] == "video_url"]
    head, *frames = url.split(",")
    assert head == "data:video/jpeg;base64"
    assert len(frames) == len(facts["frames_indices"]) == 6
    shades = [
        np.asarray(Image.open(io.BytesIO(base64.b64decode(frame)))).mean() for frame in frames
    ]
    assert shades == sorted(shades)


def test_a_video_on_its_side_is_sent_upright(vision, stub) -> None:
    assert show(vision, turned_film()).status_code == 200
    parts = stub.requests[0]["messages"][-1]["content"]
    (url,) = [part["video_url"]["url"] for part in parts if part["type"] == "video_url"]
    shown = Image.open(io.BytesIO(base64.b64decode(url.split(",")[1])))
    assert shown.size == (48, 64)
    assert shown.convert("L").getpixel((24, 5)) > 200


def test_a_video_that_was_cut_is_sent_from_its_new_beginning(vision, stub) -> None:
    answer = show(vision, cut_film())
    assert answer.status_code == 200, answer.text
    assert stub.requests[0]["media_io_kwargs"]["video"]["duration"] == pytest.approx(2)


def test_a_video_beyond_the_limits_is_refused_with_them(start, stub) -> None:
    with start(max_seconds=2, max_video_mb=0.5) as gateway:
        long = show(gateway, film(3))
        assert (long.status_code, long.json()["code"]) == (422, "media_seconds")
        assert "2 seconds" in long.json()["detail"]
        large = show(gateway, film(1) + b"\0" * 2**20)
        assert (large.status_code, large.json()["code"]) == (413, "video_too_large")
    assert not stub.requests


def test_a_video_that_takes_too_long_is_given_up(start, stub) -> None:
    with start(video_timeout_s=0.01) as gateway:
        answer = show(gateway, film())
    assert (answer.status_code, answer.json()["code"]) == (422, "media_broken")


@pytest.fixture
def decoding(monkeypatch):
    """How many videos were decoded at a time, at most; each takes half a second."""
    counts = {"now": 0, "most": 0}
    real = video.read

    async def slowly(process):
        counts["now"] += 1
        counts["most"] = max(counts.values())
        await asyncio.sleep(0.5)
        counts["now"] -= 1
        return await real(process)

    monkeypatch.setattr(video, "read", slowly)
    return counts


def watch(gateway, content: bytes):
    uri = "data:video/mp4;base64," + base64.b64encode(content).decode()
    part = {"type": "video_url", "video_url": {"url": uri}}
    return ask_chat(gateway, messages=[{"role": "user", "content": [part]}])


@pytest.mark.parametrize("ask_about", [show, watch])
def test_two_videos_are_decoded_at_a_time(vision, stub, decoding, ask_about) -> None:
    """A decoder may take 2 GiB, and the gateway's pod has four."""
    content = film(1)
    with ThreadPoolExecutor(5) as threads:
        answers = list(threads.map(lambda _: ask_about(vision, content), range(5)))
    assert [answer.status_code for answer in answers] == [200] * 5
    assert decoding["most"] == 2


def test_a_video_that_waits_for_long_is_refused(start, stub, decoding) -> None:
    content = film(1)
    with start(max_wait_s=0.1) as gateway:
        with ThreadPoolExecutor(3) as threads:
            answers = list(threads.map(lambda _: show(gateway, content), range(3)))
        assert sorted(answer.status_code for answer in answers) == [200, 200, 429]
        (refused,) = [answer for answer in answers if answer.status_code == 429]
        assert refused.json()["code"] == "overload" and "retry-after" in refused.headers
        assert show(gateway, content).status_code == 200


def test_the_decoder_sees_no_secret_and_no_file(monkeypatch, tmp_path) -> None:
    """Its environment has two variables, and it is given a descriptor, never a path."""
    seen: dict = {}
    real = asyncio.create_subprocess_exec

    async def spy(*args, **options):
        seen.update(args=args, **options)
        return await real(*args, **options)

    monkeypatch.setattr(asyncio, "create_subprocess_exec", spy)
    monkeypatch.setenv("GATEWAY_VLLM_API_KEY", "secret")
    path = tmp_path / "film"
    path.write_bytes(film(1))
    with path.open("rb") as file:
        clip = asyncio.run(
            video.decode(file, "mp4", Settings(), max_frames=4, max_seconds=60, cell=28)
        )
    assert len(clip.frames) == 4 - len(clip.frames) % 2
    assert set(seen["env"]) == {"PYTHONPATH", "OMP_NUM_THREADS"}
    assert not any(str(path) in str(arg) for arg in seen["args"])
    assert isinstance(seen["stdin"], int)
    assert json.loads(seen["args"][3])["format"] == "mp4"


def asked_of_the_decoder(**limits: float) -> dict:
    return {
        "format": "mp4",
        "max_pixels": 64_000_000,
        "max_seconds": 60,
        "max_frames": 4,
        "cell": 28,
        "seconds_cpu": 30,
    } | limits


@pytest.mark.parametrize(
    ("size", "limits", "most", "code"),
    [
        ((4112, 16), {}, 20_000, "media_pixels"),
        ((96, 64), {"max_pixels": 96 * 64 - 1}, 20_000, "media_pixels"),
        ((96, 64), {}, 29, "media_frames"),
        ((96, 64), {"max_seconds": 2}, 20_000, "media_seconds"),
    ],
)
def test_the_decoder_has_limits(monkeypatch, size, limits, most, code) -> None:
    monkeypatch.setattr(frames, "MAX_FRAMES", most)
    content = io.BytesIO(film(3, size=size))
    with pytest.raises(frames.Refused, match=code):
        frames.sampled(frames.Nameless(content), asked_of_the_decoder(**limits))


def test_the_decoder_follows_no_playlist(tmp_path, monkeypatch) -> None:
    """Its format is given. FFmpeg opens what a playlist names, though that has no name."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "film.ts").write_bytes(film(3, form="mpegts"))
    playlist = b"ffconcat version 1.0\nfile film.ts\n"
    with av.open(frames.Nameless(io.BytesIO(playlist))) as container:
        assert container.streams.video, "the playlist is no trap"
    with pytest.raises(av.error.FFmpegError):
        frames.sampled(frames.Nameless(io.BytesIO(playlist)), asked_of_the_decoder())


def test_the_decoder_gives_up_memory_time_and_dumps(monkeypatch) -> None:
    set_to: dict[int, tuple[int, int]] = {}
    monkeypatch.setattr(resource, "setrlimit", set_to.__setitem__)
    out = io.BytesIO()
    out.close = lambda: None  # type: ignore[method-assign]
    files = {0: io.BytesIO(film(1)), 1: out}
    monkeypatch.setattr(os, "fdopen", lambda number, *_, **__: files[number])
    monkeypatch.setattr(sys, "argv", ["frames", json.dumps(asked_of_the_decoder())])
    frames.main()
    assert b'"width": 96' in out.getvalue()
    assert set_to == {
        resource.RLIMIT_AS: (2 * 2**30, 2 * 2**30),
        resource.RLIMIT_CPU: (30, 31),
        resource.RLIMIT_CORE: (0, 0),
    }


def test_a_decoder_that_hangs_is_killed(monkeypatch, tmp_path) -> None:
    real, processes = asyncio.create_subprocess_exec, []

    async def hangs(*_, **options):
        command = (sys.executable, "-c", "import time; time.sleep(60)")
        processes.append(await real(*command, **options))
        return processes[0]

    monkeypatch.setattr(asyncio, "create_subprocess_exec", hangs)
    path = tmp_path / "film"
    path.write_bytes(b"x")
    limits = {"max_frames": 4, "max_seconds": 60, "cell": 28}
    with path.open("rb") as file:
        decoding = video.decode(file, "mp4", Settings(video_timeout_s=0.05), **limits)
        with pytest.raises(Problem, match="media_broken"):
            asyncio.run(decoding)
    assert processes[0].returncode == -signal.SIGKILL


def test_frames_beyond_their_room_are_not_kept(monkeypatch) -> None:
    monkeypatch.setattr(video, "MAX_FRAMES_BYTES", 10)

    async def read() -> None:
        reader = asyncio.StreamReader()
        reader.feed_data(b'{"indices": [0, 1]}\n' + 2 * (b"\0\0\0\6" + b"frames"))
        await video.read(SimpleNamespace(stdout=reader))  # type: ignore[arg-type]

    with pytest.raises(ValueError, match="too large"):
        asyncio.run(read())


@pytest.mark.parametrize("size", [(64, 48), (6000, 3000)])
@pytest.mark.parametrize("behind", [False, True])
def test_a_png_is_turned_by_its_exif_wherever_that_stands(size, behind) -> None:
    exif = Image.Exif()
    exif[images.ORIENTATION] = 6
    file = io.BytesIO()
    Image.new("L", size).save(file, "PNG", exif=exif)
    content = file.getvalue()
    if behind:
        chunks = {name: (start, stop) for name, start, stop in images.png_chunks(content)}
        start, stop = chunks[b"eXIf"]
        chunk = content[start - 8 : stop + 4]
        content = content.replace(chunk, b"")
        content = content[:-12] + chunk + content[-12:]
    seen = images.picture(content, Settings())
    assert (seen.width, seen.height) == size[::-1]


def test_a_photo_with_a_picture_and_a_film_in_it_has_few_scans() -> None:
    """A thumbnail in its EXIF, and what telephones write behind it, are not its own."""
    photo = picture("JPEG", (200, 100), progressive=True)
    within = b"\xff\xe1" + (2 + 200 * 3).to_bytes(2) + b"\xff\xda\0" * 200
    images.picture(photo[:2] + within + photo[2:] + b"\xff\xda\0\2" * 200, Settings())


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("turn", [1, 3, 6, 8])
def test_the_size_is_that_which_pillow_shows(kind, turn) -> None:
    """Pillow turns a TIFF itself, and says so by its size."""
    exif = Image.Exif()
    exif[images.ORIENTATION] = turn
    file = io.BytesIO()
    Image.new("RGB", (64, 48)).save(file, kind, exif=exif)
    read = images.picture(file.getvalue(), Settings())
    assert (read.width, read.height) == ImageOps.exif_transpose(Image.open(file)).size


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_looking_at_a_large_image_takes_little_memory(kind, tmp_path) -> None:
    """64 megapixels of grey are 64 MB; of an image beyond 16 megapixels they are never made."""
    Image.new("L", (8000, 7900)).save(tmp_path / "large", kind)
    looked = subprocess.run(
        [sys.executable, "-c", LOOK, str(tmp_path / "large")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert float(looked.stdout) < 30


LOOK = """
import sys
from pathlib import Path
from PIL import Image, ImageOps
from gateway import images
from gateway.settings import Settings
Image.init()
def peak():
    # Not getrusage: its peak is that of the process which started this one.
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) / 1024
content, before = Path(sys.argv[1]).read_bytes(), peak()
images.picture(content, Settings())
print(peak() - before)
"""


def test_a_video_may_come_in_a_chat(vision, stub) -> None:
    url = "data:video/mp4;base64," + base64.b64encode(film(1)).decode()
    body = {
        "model": "base",
        "messages": [
            {"role": "user", "content": [{"type": "video_url", "video_url": {"url": url}}]}
        ],
    }
    answer = vision.client.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    assert stub.requests[0]["media_io_kwargs"]["video"]["num_frames"] == -1


@pytest.mark.parametrize("path", ["/tasks/spatial-boxes", "/jobs"])
@pytest.mark.parametrize(
    ("charset", "half"), [("utf-7", b"+2AA-"), ("unicode_escape", b"\\ud800")], ids=str
)
def test_half_a_character_is_no_text_of_a_form(vision, stub, png, path, charset, half) -> None:
    """A client's charset can decode to what no UTF-8 holds."""
    parts = b"".join(
        b'--x\r\nContent-Disposition: form-data; name="%b"\r\n\r\n%b\r\n' % each
        for each in ((b"task", b"spatial-boxes"), (b"text", half), (b'files"; filename="x', png))
        if path == "/jobs" or each[0] != b"task"
    )
    headers = {"content-type": f"multipart/form-data; boundary=x; charset={charset}"}
    answer = vision.client.post(path, content=parts + b"--x--\r\n", headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (400, "form"), answer.text
    assert not stub.requests
