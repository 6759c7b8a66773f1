"""Uploads and requests of people who mean harm, or whose programs are broken."""

from __future__ import annotations

import base64
import gzip
import io
import json
import struct
import zipfile
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

from PIL import Image, PngImagePlugin

from tests.gateway.conftest import picture

SECRET = "CANARY-7f3a"
"""Stands in every name, text and value of the corpus; it must come out nowhere."""


class Request(NamedTuple):
    """One request; `accepted` where an honest program could send it and it is right."""

    name: str
    path: str
    sent: dict[str, Any]
    method: str = "POST"


def png_chunk(name: bytes, data: bytes, crc: int | None = None) -> bytes:
    crc = zlib.crc32(name + data) if crc is None else crc
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", crc)


def png(width: int, height: int, data: bytes = b"", depth: int = 8, colour: int = 2) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + png_chunk(b"IHDR", header)
        + png_chunk(b"IDAT", zlib.compress(data))
        + png_chunk(b"IEND", b"")
    )


def zipped() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("x.html", "<script>1</script>")
    return file.getvalue()


def bombs() -> Iterator[tuple[str, bytes]]:
    yield "png 100000 x 100000", png(100_000, 100_000)
    yield "png 2^31 x 1", png(2**31 - 1, 1)
    yield "png 1 x 1e6", png(1, 10**6, b"\0" * 4 * 10**6)
    yield "png 0 x 0", png(0, 0)
    yield "png 0 x 5", png(0, 5)
    yield "png 9000 x 9000 of nothing", png(9000, 9000, b"\0")
    yield "png 5000 x 3000 that ends early", png(5000, 3000, b"\0" * 100)
    big = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(big, "PNG")
    yield "png 400 megapixels of one bit", big.getvalue()
    text = PngImagePlugin.PngInfo()
    text.add_text("a", "x" * 2_000_000, zip=True)
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "PNG", pnginfo=text)
    yield "png with a text that grows", file.getvalue().replace(b"IEND", b"IEMD")
    wide = io.BytesIO()
    Image.new("L", (60_000, 60)).save(wide, "JPEG")
    yield "jpeg 60000 x 60", wide.getvalue()
    gif = b"GIF89a" + struct.pack("<HH", 65535, 65535) + b"\x80\0\0" + b"\0" * 6
    yield "gif 65535 x 65535", gif + b"," + struct.pack("<HHHH", 0, 0, 65535, 65535) + b"\0\2\0;"
    bmp = struct.pack("<2sIHHIIiiHHIIiiII", b"BM", 60, 0, 0, 54, 40, 10**5, 10**5, 1, 24, *[0] * 6)
    yield "bmp 1e5 x 1e5", bmp
    tiff = b"II*\0\x08\0\0\0" + struct.pack("<H", 2)
    tiff += (
        struct.pack("<HHII", 256, 4, 1, 10**6) + struct.pack("<HHII", 257, 4, 1, 10**6) + b"\0" * 4
    )
    yield "tiff 1e6 x 1e6", tiff
    webp = b"VP8X" + struct.pack("<I", 10) + b"\0" * 4 + b"\xff\xff\xff" + b"\xff\xff\xff"
    yield "webp 2^24 x 2^24", b"RIFF" + struct.pack("<I", len(webp) + 4) + b"WEBP" + webp
    yield "gzip of zeros", gzip.compress(b"\0" * 10**7)
    yield "zip", zipped()


def damaged() -> Iterator[tuple[str, bytes]]:
    for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"):
        whole = picture(kind, (200, 150))
        yield f"half a {kind}", whole[: len(whole) // 2]
        yield f"the first bytes of a {kind}", whole[:24]
    good = picture("PNG", (64, 48))
    middle = len(good) // 2
    yield "png with a wrong byte", good[:middle] + bytes([good[middle] ^ 255]) + good[middle + 1 :]
    yield "png with a wrong checksum", good[:29] + b"\0\0\0\0" + good[33:]
    yield "png without data", b"\x89PNG\r\n\x1a\n" + png_chunk(b"IEND", b"")
    yield "png of random bytes", b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 20
    yield "png chunk of 2 GB", b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 2**31 - 1) + b"IHDR"
    jpeg = picture("JPEG", (64, 48))
    yield "jpeg with a wrong table", jpeg.replace(b"\xff\xdb\x00\x43", b"\xff\xdb\x00\x01", 1)
    yield "jpeg of two markers", b"\xff\xd8\xff\xd9"
    yield "tiff that points to itself", b"II*\0\x08\0\0\0\x01\0" + b"\x08\0" * 10
    yield "a byte", b"\x89"
    yield "zeros", b"\0" * 5000


def polyglots() -> Iterator[tuple[str, bytes]]:
    good, jpeg = picture("PNG"), picture("JPEG")
    yield "png and zip", good + zipped()
    yield "jpeg and zip", jpeg + zipped()
    yield "gif and zip", picture("GIF") + zipped()
    yield "webp and zip", picture("WEBP") + zipped()
    yield "png and zip with a comment", good + zipped()[:-2] + b"\x05\x00hello"
    yield "png and page", good + b"<html><script>alert(1)</script>"
    yield "gif and script", b"GIF89a/*<script>alert(1)</script>*/=1;" + picture("GIF")[6:]
    yield "bmp and pdf", b"BM%PDF-1.7" + picture("BMP")[10:]
    file = io.BytesIO()
    info = PngImagePlugin.PngInfo()
    info.add_text("Comment", "<?php system($_GET[0]); ?>")
    Image.new("RGB", (8, 8)).save(file, "PNG", pnginfo=info)
    yield "png and php", file.getvalue()


def no_images() -> Iterator[tuple[str, bytes]]:
    yield "svg", b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'
    yield (
        "svg that includes a file",
        (
            b'<?xml version="1.0"?><!DOCTYPE s [<!ENTITY x SYSTEM "file:///etc/passwd">]><svg>&x;</svg>'
        ),
    )
    yield "html", b"<!doctype html><script>alert(1)</script>"
    yield "pdf", b"%PDF-1.7\n1 0 obj<</Type/Catalog>>endobj"
    yield "postscript", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) run"
    yield "pcx", b"\x0a\x05\x01\x08" + b"\0" * 124
    yield "psd", b"8BPS\0\x01" + b"\0" * 40
    yield "icns", b"icns" + struct.pack(">I", 100) + b"\0" * 92
    yield "fits", b"SIMPLE  =                    T" + b" " * 2850
    yield "ico", b"\0\0\1\0\1\0" + b"\0" * 40
    yield "xbm", b"#define x_width 8\n#define x_height 8\nstatic char x_bits[] = {0};"
    yield "mvg", b"push graphic-context\nviewbox 0 0 9 9\nimage over 0,0 0,0 'https://x/'\npop"
    yield "elf", b"\x7fELF" + b"\0" * 60
    yield "pickle", b"\x80\x04\x95\x1f\0\0\0\0\0\0\0\x8c\x05posix\x94\x8c\x06system\x94\x93."
    yield "text", SECRET.encode()
    yield "numpy", b"\x93NUMPY\x01\0v\0" + b"{'descr': '|O'}"
    yield "heic", b"\0\0\0\x18ftypheic" + b"\0" * 30
    yield "avif", b"\0\0\0\x18ftypavif" + b"\0" * 30


def videos() -> Iterator[tuple[str, bytes]]:
    """For a task that takes a video."""
    playlist = b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n"
    yield "hls", playlist
    yield "hls behind an mp4's first bytes", b"\0\0\0\x18ftypisom" + playlist
    yield "ffconcat", b"ffconcat version 1.0\nfile /etc/passwd\n"
    yield "mp4 that ends at once", b"\0\0\0\x18ftypisom" + b"\0" * 12
    yield "mp4 of random bytes", b"\0\0\0\x18ftypisom" + bytes(range(256)) * 100
    yield (
        "mp4 box of 2^63",
        b"\0\0\0\x18ftypisom" + b"\0" * 12 + b"\0\0\0\x01moov" + b"\x7f" + b"\xff" * 7,
    )
    yield "webm of nothing", b"\x1a\x45\xdf\xa3" + b"\0" * 40
    yield "webm with endless sizes", b"\x1a\x45\xdf\xa3" + b"\x01" + b"\xff" * 60
    yield "avi of nothing", b"RIFF\x40\0\0\0AVI " + b"\0" * 60
    yield "avi with a list of 4 GB", b"RIFF\xff\xff\xff\xffAVI LIST\xff\xff\xff\xffhdrl"
    yield "dash", b'<?xml version="1.0"?><MPD><BaseURL>file:///etc/passwd</BaseURL></MPD>'
    yield "sdp", b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nm=video 5004 RTP/AVP 96\n"
    yield "an image", picture("PNG")
    yield "mp3", b"ID3\x04\0\0\0\0\0\0" + b"\0" * 100
    yield "wav", b"RIFF\x24\0\0\0WAVEfmt "
    yield "text", SECRET.encode()


def multipart(parts: bytes, boundary: str = "x") -> dict[str, Any]:
    kind = f"multipart/form-data; boundary={boundary}"
    return {"content": parts, "headers": {"content-type": kind}}


def part(name: str, content: bytes, more: str = "") -> bytes:
    head = f'--x\r\nContent-Disposition: form-data; name="{name}"{more}\r\n\r\n'
    return head.encode("latin-1") + content + b"\r\n"


def forms() -> Iterator[tuple[str, dict[str, Any]]]:
    good = picture()
    file = f'; filename="{SECRET}"'
    yield "no boundary", {"content": b"x", "headers": {"content-type": "multipart/form-data"}}
    yield "another boundary", multipart(part("files", good, file) + b"--x--", "y")
    yield "no end", multipart(part("files", good, file)[:-20])
    yield "no parts", multipart(b"--x--\r\n")
    yield "10,000 parts", multipart(part("question", b"a") * 10_000 + b"--x--")
    yield "10,000 files", multipart(part("files", b"a", file) * 10_000 + b"--x--")
    yield "100 images", multipart(part("files", good, file) * 100 + b"--x--")
    yield "a field of a megabyte", multipart(part("question", b"a" * 2**20) + b"--x--")
    yield (
        "a header of a megabyte",
        multipart(
            b'--x\r\nContent-Disposition: form-data; name="a"\r\nX: '
            + b"a" * 2**20
            + b"\r\n\r\n--x--"
        ),
    )
    yield "no name", multipart(b"--x\r\nContent-Disposition: form-data\r\n\r\na\r\n--x--")
    yield "no disposition", multipart(b"--x\r\n\r\na\r\n--x--")
    yield "a boundary of 10,000", multipart(b"--" + b"b" * 10_000, "b" * 10_000)
    yield "an unknown field", multipart(part(SECRET, b"a") + b"--x--")
    yield "a file in a field", multipart(part("question", good, file) + b"--x--")
    yield "a field in the files", multipart(part("files", good) + b"--x--")
    yield "an empty file", multipart(part("files", b"", file) + b"--x--")
    yield "json", {"json": {"question": SECRET}}
    yield "text", {"content": SECRET, "headers": {"content-type": "text/plain"}}
    yield "no type", {"content": SECRET}
    yield "nothing", {}
    yield "a wrong charset", multipart(part("question", b"\xff\xfe") + b"--x--")
    yield (
        "gzip",
        {
            "content": gzip.compress(b"--x--"),
            "headers": {
                "content-type": "multipart/form-data; boundary=x",
                "content-encoding": "gzip",
            },
        },
    )
    yield (
        "urlencoded of a thousand fields",
        {
            "content": "&".join(f"a{n}=1" for n in range(1000)),
            "headers": {"content-type": "application/x-www-form-urlencoded"},
        },
    )
    yield (
        "urlencoded that is no text",
        {
            "content": b"question=%ff%fe",
            "headers": {"content-type": "application/x-www-form-urlencoded"},
        },
    )


def data_uri(content: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def chats() -> Iterator[tuple[str, dict[str, Any]]]:
    json_type = {"content-type": "application/json"}

    def body(content: Any = SECRET, **more: Any) -> dict[str, Any]:
        message = {"role": "user", "content": content}
        return {"json": {"model": "tiny-lora", "messages": [message], **more}}

    def raw(content: bytes) -> dict[str, Any]:
        return {"content": content, "headers": json_type}

    yield "no json", raw(SECRET.encode())
    yield "half json", raw(b'{"model": "tiny-lora", "messages": [')
    yield "deep json", raw(b'{"messages":' + b"[" * 100_000)
    yield "deep objects", raw(b'{"a":' * 5000 + b"1" + b"}" * 5000)
    yield "nan", raw(b'{"model":"tiny-lora","messages":[],"temperature":NaN}')
    yield "infinity", raw(b'{"model":"tiny-lora","messages":[],"temperature":1e999}')
    yield "a number of 10,000 digits", raw(b'{"seed":' + b"9" * 10_000 + b"}")
    yield "a list", raw(b"[]")
    yield "a string", raw(b'"x"')
    yield "null", raw(b"null")
    yield "no utf-8", raw(b'{"model":"\xff\xfe"}')
    yield "utf-16", raw('{"model":"x"}'.encode("utf-16"))
    yield "a lone surrogate", raw(b'{"model":"\\ud800","messages":[{"role":"user","content":"x"}]}')
    yield "another type", {"content": b"{}", "headers": {"content-type": "text/xml"}}
    yield (
        "an unknown model",
        body() | {"json": {"model": SECRET, "messages": [{"role": "user", "content": "x"}]}},
    )
    yield (
        "a model like a path",
        body()
        | {"json": {"model": "../../etc/passwd", "messages": [{"role": "user", "content": "x"}]}},
    )
    for address in (
        "http://169.254.169.254/latest/meta-data/",
        "http://127.0.0.1:8000/metrics",
        "http://[::1]/",
        "https://example.com/" + SECRET,
        "file:///etc/passwd",
        "FILE:///etc/passwd",
        "ftp://x/y",
        "gopher://x/y",
        "data:text/html,<script>1</script>",
        "data:text/html;base64,PHNjcmlwdD4=",
        "data:image/png;base64,",
        "data:image/png;base64,%%%%",
        "data:image/svg+xml;base64," + base64.b64encode(b"<svg/>").decode(),
        "data:;base64,AAAA",
        "DATA:image/png;base64,AAAA",
        " data:image/png;base64,AAAA",
        "",
        "//example.com/x.png",
        "/etc/passwd",
        "blob:http://x/y",
        "javascript:alert(1)",
    ):
        part = {"type": "image_url", "image_url": {"url": address}}
        yield f"the image {address[:40]!r}", body([part])
        if address.startswith(("http", "file", "data:text")):
            yield (
                f"the video {address[:40]!r}",
                body([{"type": "video_url", "video_url": {"url": address}}]),
            )
    for name, content in [*bombs(), *polyglots()]:
        part = {"type": "image_url", "image_url": {"url": data_uri(content)}}
        yield f"{name} as a data URI", body([part])
    part = {"type": "image_url", "image_url": {"url": data_uri(picture())}}
    yield "100 images", body([part] * 100)
    yield "a uuid", body([part | {"uuid": SECRET}])
    for field, value in (
        ("chat_template", "{% for a in range(10**9) %}x{% endfor %}"),
        ("chat_template_kwargs", {"tokenize": True}),
        ("mm_processor_kwargs", {"max_pixels": 10**9}),
        ("media_io_kwargs", {"video": {"num_frames": 10**9}}),
        ("prompt_embeds", SECRET),
        ("documents", [{"text": SECRET}]),
        ("tools", [{"type": "function"}]),
        ("logits_processors", [SECRET]),
        ("guided_regex", "(a+)+$"),
        ("structured_outputs", {"regex": "(a+)+$"}),
        ("kv_transfer_params", {"remote_host": "x"}),
        ("vllm_xargs", {"x": 1}),
        ("priority", -1),
        ("n", 1000),
        ("best_of", 1000),
        ("max_tokens", 10**9),
        ("min_tokens", 10**9),
        ("stop", ["x"] * 1000),
        ("seed", 2**70),
        ("temperature", -1),
        ("logprobs", True),
        ("prompt_logprobs", 1000),
        ("echo", True),
        ("add_generation_prompt", False),
        ("cache_salt", SECRET),
        ("request_id", SECRET),
        ("__proto__", {}),
    ):
        yield f"the field {field}", body(**{field: value})


def addresses() -> Iterator[Request]:
    for path in (
        "/../etc/passwd",
        "/%2e%2e/%2e%2e/etc/passwd",
        "/tasks/..%2f..%2fetc%2fpasswd",
        f"/tasks/{SECRET}",
        f"/sessions/{SECRET}",
        "/sessions/..%2f..%2fx",
        f"/sessions/{'0' * 32}/media/..%2f..%2fx",
        f"/jobs/{SECRET}/results.jsonl",
        "/jobs/%00",
        "/static/../../x",
        "/invocations",
        "/tokenize",
        "/v1/load_lora_adapter",
        "/v1/completions",
        "/v1/responses",
        "/v1/audio/transcriptions",
        "/collective_rpc",
        "/pause",
        "/.env",
        "/.git/config",
    ):
        yield Request(f"address {path}", path, {}, "GET")
    yield Request("delete everything", "/sessions", {}, "DELETE")
    yield Request("trace", "/", {}, "TRACE")


def corpus() -> list[Request]:
    """All of it, each with what it is."""
    found = []
    for name, content in [*bombs(), *damaged(), *polyglots(), *no_images()]:
        sent = {"files": [("files", (f"../../{SECRET}\r\nX: y.png", content))]}
        found.append(Request(f"predict {name}", "/predict", sent))
    for name, content in videos():
        sent = {"files": [("files", (f"{SECRET}.mp4", content))]}
        found.append(Request(f"video {name}", "/tasks/video-events", sent))
    for name, sent in forms():
        found.append(Request(f"form {name}", "/predict", sent))
        if name in ("10,000 parts", "no end", "an unknown field", "no boundary", "nothing"):
            for path in ("/tasks/recognition", "/compare", "/jobs"):
                found.append(Request(f"form {name} at {path}", path, sent))
    for name, sent in chats():
        found.append(Request(f"chat {name}", "/v1/chat/completions", sent))
    for line in (
        b"{",
        b"[1]",
        b'{"x": 1}',
        b'{"image": "http://x/"}',
        b'{"question": [1]}',
        b"\xff",
    ):
        sent = {"content": line + b"\n", "headers": {"content-type": "application/jsonl"}}
        found.append(Request(f"job line {line!r}", "/jobs", sent))
    for value in ({"title": "x" * 10_000}, {"titel": SECRET}, [1], {"title": 1}):
        found.append(Request(f"session {str(value)[:30]}", "/sessions", {"json": value}))
    return [*found, *addresses()]


def as_text(request: Request) -> str:
    return json.dumps(request.name)
