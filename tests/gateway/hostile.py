"""Uploads and requests of people who mean harm, or whose programs are broken."""

from __future__ import annotations

import base64
import gzip
import io
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
    """One request, and the code of the guard that has to refuse it.

    Behind most guards stands another; without the code nobody would see that one had gone.
    """

    name: str
    code: str
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


def bombs() -> Iterator[tuple[str, str, bytes]]:
    yield "png 100000 x 100000", "media_pixels", png(100_000, 100_000)
    yield "png 2^31 x 1", "media_pixels", png(2**31 - 1, 1)
    yield "png 1 x 1e6", "image_ratio", png(1, 10**6, b"\0" * 4 * 10**6)
    yield "png 0 x 0", "media_broken", png(0, 0)
    yield "png 0 x 5", "media_broken", png(0, 5)
    yield "png 9000 x 9000 of nothing", "media_pixels", png(9000, 9000, b"\0")
    yield "png 5000 x 3000 that ends early", "media_broken", png(5000, 3000, b"\0" * 100)
    big = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(big, "PNG")
    yield "png 400 megapixels of one bit", "media_pixels", big.getvalue()
    text = PngImagePlugin.PngInfo()
    text.add_text("a", "x" * 2_000_000, zip=True)
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "PNG", pnginfo=text)
    yield "png with a text that grows", "media_broken", file.getvalue().replace(b"IEND", b"IEMD")
    wide = io.BytesIO()
    Image.new("L", (60_000, 60)).save(wide, "JPEG")
    yield "jpeg 60000 x 60", "image_ratio", wide.getvalue()
    often = io.BytesIO()
    Image.new("L", (640, 480)).save(often, "JPEG", progressive=True)
    scans = often.getvalue()
    last = scans[scans.rindex(b"\xff\xc4") : -2]
    yield "jpeg of 1000 scans", "media_parts", scans[:-2] + last * 1000 + scans[-2:]
    yield "jpeg of segments", "media_parts", b"\xff\xd8" + b"\xff\xe0\0\2" * 100_000 + scans[2:]
    gif = picture("GIF", (8, 8))
    at = gif.index(b",", 13 + (6 << (gif[10] & 7) if gif[10] & 128 else 0))
    loop = b"!\xff\x0bNETSCAPE2.0\0\x01,\0"
    for name, extension in (
        ("texts", b"!\xfe\1x\0" * 10_002),
        ("a text", b"!\xfe" + b"\1x" * 10_002 + b"\0"),
        ("blocks", b"!\x01" + b"\1x" * 100_002 + b"\0"),
        ("nothing", b"\0" * 100_002),
        ("texts behind a hidden picture", loop + b"!\xfe\1x\0" * 10_002),
    ):
        yield f"gif of {name}", "media_parts", gif[:at] + extension + gif[at:]
    small = picture("PNG", (8, 8))
    yield (
        "png of chunks",
        "media_parts",
        small[:33] + png_chunk(b"teSt", b"") * 100_000 + small[33:],
    )
    for order, start in (("<", b"II*\0"), (">", b"MM\0*")):
        tags = [(256, 64), (257, 64), (258, 8), (259, 1), (262, 1), (273, 200), (278, 1)]
        entries = b"".join(
            struct.pack(f"{order}HHII", tag, 4, 200_000 if tag == 273 else 1, value)
            for tag, value in tags
        )
        ifd = struct.pack(f"{order}IH", 8, len(tags)) + entries
        yield f"tiff of strips, {order}", "media_parts", start + ifd + b"\0" * 800_200
    gif = b"GIF89a" + struct.pack("<HH", 65535, 65535) + b"\x80\0\0" + b"\0" * 6
    yield (
        "gif 65535 x 65535",
        "media_pixels",
        gif + b"," + struct.pack("<HHHH", 0, 0, 65535, 65535) + b"\0\2\0;",
    )
    bmp = struct.pack("<2sIHHIIiiHHIIiiII", b"BM", 60, 0, 0, 54, 40, 10**5, 10**5, 1, 24, *[0] * 6)
    yield "bmp 1e5 x 1e5", "media_pixels", bmp
    tiff = b"II*\0\x08\0\0\0" + struct.pack("<H", 2)
    tiff += (
        struct.pack("<HHII", 256, 4, 1, 10**6) + struct.pack("<HHII", 257, 4, 1, 10**6) + b"\0" * 4
    )
    yield "tiff 1e6 x 1e6", "media_broken", tiff
    webp = b"VP8X" + struct.pack("<I", 10) + b"\0" * 4 + b"\xff\xff\xff" + b"\xff\xff\xff"
    yield (
        "webp 2^24 x 2^24",
        "media_broken",
        b"RIFF" + struct.pack("<I", len(webp) + 4) + b"WEBP" + webp,
    )
    yield "gzip of zeros", "media_type", gzip.compress(b"\0" * 10**7)
    yield "zip", "media_type", zipped()


def damaged() -> Iterator[tuple[str, str, bytes]]:
    for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"):
        whole = picture(kind, (200, 150))
        yield f"half a {kind}", "media_broken", whole[: len(whole) // 2]
        yield f"the first bytes of a {kind}", "media_broken", whole[:24]
    good = picture("PNG", (64, 48))
    middle = len(good) // 2
    yield (
        "png with a wrong byte",
        "media_broken",
        good[:middle] + bytes([good[middle] ^ 255]) + good[middle + 1 :],
    )
    yield "png with a wrong checksum", "media_broken", good[:29] + b"\0\0\0\0" + good[33:]
    yield "png without data", "media_broken", b"\x89PNG\r\n\x1a\n" + png_chunk(b"IEND", b"")
    yield "png of random bytes", "media_broken", b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 20
    yield (
        "png chunk of 2 GB",
        "media_broken",
        b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 2**31 - 1) + b"IHDR",
    )
    jpeg = picture("JPEG", (64, 48))
    yield (
        "jpeg with a wrong table",
        "media_broken",
        jpeg.replace(b"\xff\xdb\x00\x43", b"\xff\xdb\x00\x01", 1),
    )
    yield "jpeg of two markers", "media_broken", b"\xff\xd8\xff\xd9"
    yield "tiff that points to itself", "media_broken", b"II*\0\x08\0\0\0\x01\0" + b"\x08\0" * 10
    yield "a byte", "media_type", b"\x89"
    yield "zeros", "media_type", b"\0" * 5000


def polyglots() -> Iterator[tuple[str, str, bytes]]:
    good, jpeg = picture("PNG"), picture("JPEG")
    yield "png and zip", "media_mixed", good + zipped()
    yield "jpeg and zip", "media_mixed", jpeg + zipped()
    yield "gif and zip", "media_mixed", picture("GIF") + zipped()
    yield "webp and zip", "media_mixed", picture("WEBP") + zipped()
    yield "webp and page", "media_mixed", picture("WEBP") + b"<html><script>alert(1)</script>"
    yield "png and zip with a comment", "media_mixed", good + zipped()[:-2] + b"\x05\x00hello"
    yield "png and page", "media_mixed", good + b"<html><script>alert(1)</script>"
    yield (
        "gif and script",
        "media_mixed",
        b"GIF89a/*<script>alert(1)</script>*/=1;" + picture("GIF")[6:],
    )
    yield "bmp and pdf", "media_mixed", b"BM%PDF-1.7" + picture("BMP")[10:]
    file = io.BytesIO()
    info = PngImagePlugin.PngInfo()
    info.add_text("Comment", "<?php system($_GET[0]); ?>")
    Image.new("RGB", (8, 8)).save(file, "PNG", pnginfo=info)
    yield "png and php", "media_mixed", file.getvalue()


def no_images() -> Iterator[tuple[str, str, bytes]]:
    yield (
        "svg",
        "media_type",
        b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>',
    )
    yield (
        "svg that includes a file",
        "media_type",
        (
            b'<?xml version="1.0"?><!DOCTYPE s [<!ENTITY x SYSTEM "file:///etc/passwd">]><svg>&x;</svg>'
        ),
    )
    yield "html", "media_type", b"<!doctype html><script>alert(1)</script>"
    yield "pdf", "media_type", b"%PDF-1.7\n1 0 obj<</Type/Catalog>>endobj"
    yield (
        "postscript",
        "media_type",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) run",
    )
    yield "pcx", "media_type", b"\x0a\x05\x01\x08" + b"\0" * 124
    yield "psd", "media_type", b"8BPS\0\x01" + b"\0" * 40
    yield "icns", "media_type", b"icns" + struct.pack(">I", 100) + b"\0" * 92
    yield "fits", "media_type", b"SIMPLE  =                    T" + b" " * 2850
    yield "ico", "media_type", b"\0\0\1\0\1\0" + b"\0" * 40
    yield "xbm", "media_type", b"#define x_width 8\n#define x_height 8\nstatic char x_bits[] = {0};"
    yield (
        "mvg",
        "media_type",
        b"push graphic-context\nviewbox 0 0 9 9\nimage over 0,0 0,0 'https://x/'\npop",
    )
    yield "elf", "media_type", b"\x7fELF" + b"\0" * 60
    yield (
        "pickle",
        "media_type",
        b"\x80\x04\x95\x1f\0\0\0\0\0\0\0\x8c\x05posix\x94\x8c\x06system\x94\x93.",
    )
    yield "text", "media_type", SECRET.encode()
    yield "numpy", "media_type", b"\x93NUMPY\x01\0v\0" + b"{'descr': '|O'}"
    yield "heic", "media_type", b"\0\0\0\x18ftypheic" + b"\0" * 30
    yield "avif", "media_type", b"\0\0\0\x18ftypavif" + b"\0" * 30


def videos() -> Iterator[tuple[str, str, bytes]]:
    """For a task that takes a video."""
    playlist = b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n"
    yield "hls", "files", playlist
    yield "hls behind an mp4's first bytes", "media_broken", b"\0\0\0\x18ftypisom" + playlist
    yield "ffconcat", "files", b"ffconcat version 1.0\nfile /etc/passwd\n"
    yield "mp4 that ends at once", "media_broken", b"\0\0\0\x18ftypisom" + b"\0" * 12
    yield "mp4 of random bytes", "media_broken", b"\0\0\0\x18ftypisom" + bytes(range(256)) * 100
    yield (
        "mp4 box of 2^63",
        "media_broken",
        b"\0\0\0\x18ftypisom" + b"\0" * 12 + b"\0\0\0\x01moov" + b"\x7f" + b"\xff" * 7,
    )
    yield "webm of nothing", "media_broken", b"\x1a\x45\xdf\xa3" + b"\0" * 40
    yield "webm with endless sizes", "media_broken", b"\x1a\x45\xdf\xa3" + b"\x01" + b"\xff" * 60
    yield "avi of nothing", "media_broken", b"RIFF\x40\0\0\0AVI " + b"\0" * 60
    yield (
        "avi with a list of 4 GB",
        "media_broken",
        b"RIFF\xff\xff\xff\xffAVI LIST\xff\xff\xff\xffhdrl",
    )
    yield "dash", "files", b'<?xml version="1.0"?><MPD><BaseURL>file:///etc/passwd</BaseURL></MPD>'
    yield "sdp", "files", b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nm=video 5004 RTP/AVP 96\n"
    yield "an image", "files", picture("PNG")
    yield "mp3", "files", b"ID3\x04\0\0\0\0\0\0" + b"\0" * 100
    yield "wav", "files", b"RIFF\x24\0\0\0WAVEfmt "
    yield "text", "files", SECRET.encode()


def multipart(parts: bytes, boundary: str = "x") -> dict[str, Any]:
    kind = f"multipart/form-data; boundary={boundary}"
    return {"content": parts, "headers": {"content-type": kind}}


def part(name: str, content: bytes, more: str = "") -> bytes:
    head = f'--x\r\nContent-Disposition: form-data; name="{name}"{more}\r\n\r\n'
    return head.encode("latin-1") + content + b"\r\n"


def forms() -> Iterator[tuple[str, str, dict[str, Any]]]:
    good = picture()
    file = f'; filename="{SECRET}"'
    yield (
        "no boundary",
        "form",
        {"content": b"x", "headers": {"content-type": "multipart/form-data"}},
    )
    yield "another boundary", "form", multipart(part("files", good, file) + b"--x--", "y")
    yield "no end", "files", multipart(part("files", good, file)[:-20])
    yield "no parts", "files", multipart(b"--x--\r\n")
    yield "10,000 parts", "fields", multipart(part("question", b"a") * 10_000 + b"--x--")
    yield "10,000 files", "files", multipart(part("files", b"a", file) * 10_000 + b"--x--")
    yield "100 images", "files", multipart(part("files", good, file) * 100 + b"--x--")
    yield "a field of a megabyte", "fields", multipart(part("question", b"a" * 2**20) + b"--x--")
    yield (
        "a header of a megabyte",
        "form",
        multipart(
            b'--x\r\nContent-Disposition: form-data; name="a"\r\nX: '
            + b"a" * 2**20
            + b"\r\n\r\n--x--"
        ),
    )
    yield "no name", "form", multipart(b"--x\r\nContent-Disposition: form-data\r\n\r\na\r\n--x--")
    yield "no disposition", "form", multipart(b"--x\r\n\r\na\r\n--x--")
    yield "a boundary of 10,000", "form", multipart(b"--" + b"b" * 10_000, "b" * 10_000)
    yield "an unknown field", "field", multipart(part(SECRET, b"a") + b"--x--")
    yield "a file in a field", "field", multipart(part("question", good, file) + b"--x--")
    yield "a field in the files", "field", multipart(part("files", good) + b"--x--")
    yield "an empty file", "file_empty", multipart(part("files", b"", file) + b"--x--")
    yield "json", "form", {"json": {"question": SECRET}}
    yield "text", "form", {"content": SECRET, "headers": {"content-type": "text/plain"}}
    yield "no type", "form", {"content": SECRET}
    yield "nothing", "form", {}
    yield "a wrong charset", "question", multipart(part("question", b"\xff\xfe") + b"--x--")
    yield (
        "gzip",
        "form",
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
        "form",
        {
            "content": "&".join(f"a{n}=1" for n in range(1000)),
            "headers": {"content-type": "application/x-www-form-urlencoded"},
        },
    )
    yield (
        "urlencoded of two megabytes",
        "fields",
        {
            "content": "question=" + "a" * 2**21,
            "headers": {"content-type": "application/x-www-form-urlencoded"},
        },
    )
    yield (
        "urlencoded that is no text",
        "form",
        {
            "content": b"question=%ff%fe",
            "headers": {"content-type": "application/x-www-form-urlencoded"},
        },
    )


def data_uri(content: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def chats() -> Iterator[tuple[str, str, dict[str, Any]]]:
    json_type = {"content-type": "application/json"}

    def chat(content: Any = SECRET, **more: Any) -> dict[str, Any]:
        message = {"role": "user", "content": content}
        return {"json": {"model": "tiny-lora", "messages": [message], **more}}

    def raw(content: bytes) -> dict[str, Any]:
        return {"content": content, "headers": json_type}

    yield "no json", "json", raw(SECRET.encode())
    yield "half json", "json", raw(b'{"model": "tiny-lora", "messages": [')
    yield "deep json", "json", raw(b'{"messages":' + b"[" * 100_000)
    yield "deep objects", "json", raw(b'{"a":' * 5000 + b"1" + b"}" * 5000)
    yield "nan", "json", raw(b'{"model":"tiny-lora","messages":[],"temperature":NaN}')
    yield "infinity", "json", raw(b'{"model":"tiny-lora","messages":[],"temperature":1e999}')
    yield "a number of 10,000 digits", "json", raw(b'{"seed":' + b"9" * 10_000 + b"}")
    yield "a list", "field", raw(b"[]")
    yield "a string", "field", raw(b'"x"')
    yield "null", "field", raw(b"null")
    yield "no utf-8", "json", raw(b'{"model":"\xff\xfe"}')
    yield "utf-16", "json", raw('{"model":"x"}'.encode("utf-16"))
    yield (
        "a lone surrogate",
        "json",
        raw(b'{"model":"\\ud800","messages":[{"role":"user","content":"x"}]}'),
    )
    yield "another type", "json", {"content": b"{}", "headers": {"content-type": "text/xml"}}
    yield (
        "an unknown model",
        "model_unknown",
        chat() | {"json": {"model": SECRET, "messages": [{"role": "user", "content": "x"}]}},
    )
    yield (
        "a model like a path",
        "model_unknown",
        chat()
        | {"json": {"model": "../../etc/passwd", "messages": [{"role": "user", "content": "x"}]}},
    )
    for code, address in (
        ("address", "http://169.254.169.254/latest/meta-data/"),
        ("address", "http://127.0.0.1:8000/metrics"),
        ("address", "http://[::1]/"),
        ("address", "https://example.com/" + SECRET),
        ("address", "file:///etc/passwd"),
        ("address", "FILE:///etc/passwd"),
        ("address", "ftp://x/y"),
        ("address", "gopher://x/y"),
        ("address", "data:text/html,<script>1</script>"),
        ("media_type", "data:text/html;base64,PHNjcmlwdD4="),
        ("media_type", "data:image/png;base64,"),
        ("base64", "data:image/png;base64,%%%%"),
        ("media_type", "data:image/svg+xml;base64," + base64.b64encode(b"<svg/>").decode()),
        ("media_type", "data:;base64,AAAA"),
        ("address", "DATA:image/png;base64,AAAA"),
        ("address", " data:image/png;base64,AAAA"),
        ("address", ""),
        ("address", "//example.com/x.png"),
        ("address", "/etc/passwd"),
        ("address", "blob:http://x/y"),
        ("address", "javascript:alert(1)"),
    ):
        part = {"type": "image_url", "image_url": {"url": address}}
        yield f"the image {address[:40]!r}", code, chat([part])
        if address.startswith(("http", "file", "data:text")):
            part = {"type": "video_url", "video_url": {"url": address}}
            yield f"the video {address[:40]!r}", code, chat([part])
    for name, code, content in [*bombs(), *polyglots()]:
        part = {"type": "image_url", "image_url": {"url": data_uri(content)}}
        yield f"{name} as a data URI", code, chat([part])
    part = {"type": "image_url", "image_url": {"url": data_uri(picture())}}
    yield "100 images", "files", chat([part] * 100)
    yield "a uuid", "field", chat([part | {"uuid": SECRET}])
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
        code = "max_tokens" if field == "max_tokens" else "field"
        yield f"the field {field}", code, chat(**{field: value})


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
        # A task is asked with POST alone.
        code = "method" if path == f"/tasks/{SECRET}" else "not_found"
        yield Request(f"address {path}", code, path, {}, "GET")
    yield Request("delete everything", "method", "/sessions", {}, "DELETE")
    yield Request("trace", "method", "/", {}, "TRACE")


def corpus() -> list[Request]:
    """All of it, each with what it is."""
    result = []
    for name, code, content in [*bombs(), *damaged(), *polyglots(), *no_images()]:
        sent = {"files": [("files", (f"../../{SECRET}\r\nX: y.png", content))]}
        result.append(Request(f"predict {name}", code, "/predict", sent))
    for name, code, content in videos():
        sent = {"files": [("files", (f"{SECRET}.mp4", content))]}
        result.append(Request(f"video {name}", code, "/tasks/video-events", sent))
    for name, code, sent in forms():
        result.append(Request(f"form {name}", code, "/predict", sent))
        if name in ("10,000 parts", "no end", "an unknown field", "no boundary", "nothing"):
            for path in ("/tasks/recognition", "/compare", "/jobs"):
                result.append(Request(f"form {name} at {path}", code, path, sent))
    for name, code, sent in chats():
        result.append(Request(f"chat {name}", code, "/v1/chat/completions", sent))
    for code, line in (
        ("line", b"{"),
        ("line", b"[1]"),
        ("line", b'{"x": 1}'),
        ("address", b'{"image": "http://x/"}'),
        ("line", b'{"question": [1]}'),
        ("line", b"\xff"),
    ):
        sent = {"content": line + b"\n", "headers": {"content-type": "application/jsonl"}}
        result.append(Request(f"job line {line!r}", code, "/jobs", sent))
    for value in ({"title": "x" * 10_000}, {"titel": SECRET}, [1], {"title": 1}):
        result.append(Request(f"session {str(value)[:30]}", "field", "/sessions", {"json": value}))
    return [*result, *addresses()]
