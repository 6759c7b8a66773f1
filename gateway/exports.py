"""A session as JSON, Markdown, CSV, HTML or PDF. Every answer is a stranger's text: it is shown,
never run, followed or computed."""

from __future__ import annotations

import base64
import csv
import io
import json
import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import Any

TYPES = {
    "json": "application/json",
    "md": "text/markdown; charset=utf-8",
    "csv": "text/csv; charset=utf-8",
    "html": "text/html; charset=utf-8",
    "pdf": "application/pdf",
}
CSP = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; sandbox"

FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""Beginnings of a cell that spreadsheets compute."""

FONTS = (
    "/usr/share/fonts/opentype/noto/NotoSansCJK-Regular.ttc",
    "/usr/share/fonts/truetype/dejavu/DejaVuSans.ttf",
)
HEADING = str.maketrans({"`": "", "<": "&lt;", "[": "(", "]": ")"})
"""Characters that would begin code, HTML, a link or a picture in a heading of Markdown."""

WIDEST = 1024
"""Pixels of a picture's longer side in a PDF."""

STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:50rem;margin:2rem auto;padding:0 1rem}"
    "img{max-width:100%}pre{white-space:pre-wrap;background:#f3f3f3;padding:.5rem}"
)


def export(document: dict[str, Any], form: str, media: Path, font: Path | None) -> Iterator[bytes]:
    """A session's file in pieces: with all of its media, it would not fit into memory."""
    if form == "html":
        for part in html(document, media):
            yield part.encode("utf-8", "replace")
    elif form == "pdf":
        yield pdf(document, media, font)
    else:
        writers: dict[str, Callable[[dict[str, Any]], str]] = {
            "json": lambda each: json.dumps(each, ensure_ascii=False, indent=2),
            "md": markdown,
            "csv": table,
        }
        yield writers[form](document).encode("utf-8", "replace")


def texts(turn: dict[str, Any]) -> list[str]:
    """The answers of a turn as plain text: one, or one for each image and model."""
    answer = turn.get("answer") or {}
    if "answers" in answer:
        return [
            f"{each.get('model')}: {text}" for each in answer["answers"] for text in plain(each)
        ]
    return plain(answer)


def plain(answer: dict[str, Any]) -> list[str]:
    """A model's texts, one for each image, or the sentence of its problem."""
    if "predictions" in answer:
        return [str(each.get("caption", "")) for each in answer["predictions"]]
    if "problem" in answer:
        return [str(answer["problem"].get("detail", ""))]
    return [str(answer.get("raw") or answer.get("text") or "")]


def when(seconds: Any) -> str:
    return datetime.fromtimestamp(float(seconds), UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def heading(turn: dict[str, Any]) -> str:
    return " - ".join(
        str(part) for part in (when(turn["time"]), turn.get("task"), turn.get("model")) if part
    )


def fenced(text: str) -> str:
    """A text as a block that nothing in it can close."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}\n{text}\n{fence}\n"


def markdown(document: dict[str, Any]) -> str:
    parts = [f"# Session {document['id']}\n"]
    if document["title"]:
        parts.append(fenced(document["title"]))
    for turn in document["turns"]:
        line = " ".join(heading(turn).split()).translate(HEADING)
        parts.append(f"## {line}\n")
        parts += [f"Image {medium['sha256']}\n" for medium in turn.get("media", ())]
        if turn.get("question"):
            parts += ["Question:\n", fenced(turn["question"])]
        for text in texts(turn):
            parts += ["Answer:\n", fenced(text)]
    return "\n".join(parts)


def table(document: dict[str, Any]) -> str:
    file = io.StringIO()
    writer = csv.writer(file, quoting=csv.QUOTE_ALL, lineterminator="\r\n")
    writer.writerow(["time", "task", "model", "media", "question", "answer"])
    for turn in document["turns"]:
        digests = " ".join(medium["sha256"] for medium in turn.get("media", ()))
        for text in texts(turn):
            row = [
                when(turn["time"]),
                turn.get("task") or "",
                turn.get("model") or "",
                digests,
                turn.get("question") or "",
                text,
            ]
            writer.writerow([cell(str(value)) for value in row])
    return file.getvalue()


def cell(value: str) -> str:
    """A value that a spreadsheet takes for text."""
    return f"'{value}" if value.lstrip().startswith(FORMULA) or value[:1] in FORMULA else value


def html(document: dict[str, Any], media: Path) -> Iterator[str]:
    title = escape(document["title"] or f"Session {document['id']}")
    yield (
        "<!doctype html><html lang=en><meta charset=utf-8>"
        f'<meta http-equiv="Content-Security-Policy" content="{CSP.removesuffix("; sandbox")}">'
        f"<title>{title}</title><style>{STYLE}</style><h1>{title}</h1>"
    )
    for turn in document["turns"]:
        yield f"<h2>{escape(heading(turn))}</h2>"
        for medium in turn.get("media", ()):
            content = base64.b64encode((media / medium["sha256"]).read_bytes()).decode()
            yield f'<img alt="" src="data:{escape(medium["mime"])};base64,{content}">'
        if turn.get("question"):
            yield f"<p>{escape(turn['question'])}</p>"
        for text in texts(turn):
            yield f"<pre>{escape(text)}</pre>"


def pdf(document: dict[str, Any], media: Path, font: Path | None) -> bytes:
    """Plain text and pictures; no text of a stranger is read as a link or as HTML."""
    from fpdf import FPDF
    from fpdf.enums import WrapMode

    page = FPDF()
    page.set_auto_page_break(True, 15)
    page.add_page()
    path = font or next((Path(name) for name in FONTS if Path(name).is_file()), None)
    family = "Helvetica"
    if path is not None:
        page.add_font("text", "", path)
        family = "text"

    def write(text: str, size: int) -> None:
        page.set_font(family, size=size)
        # Tabs and most kinds of spaces are not printable, but part words.
        spaced = "".join(
            " " if each.isspace() and each != "\n" else each for each in text.replace("\r\n", "\n")
        )
        plain = "".join(each for each in spaced if each == "\n" or each.isprintable())
        if path is None:
            plain = plain.encode("latin-1", "replace").decode("latin-1")
        page.multi_cell(0, text=plain, new_x="LMARGIN", new_y="NEXT", wrapmode=WrapMode.CHAR)

    write(document["title"] or f"Session {document['id']}", 16)
    for turn in document["turns"]:
        page.ln(4)
        write(heading(turn), 9)
        for medium in turn.get("media", ()):
            page.image(small(media / medium["sha256"]), w=100)
        if turn.get("question"):
            write(turn["question"], 11)
        for text in texts(turn):
            write(text, 11)
    return bytes(page.output())


def small(path: Path) -> io.BytesIO:
    """A picture upright and no larger than a page shows."""
    from PIL import Image, ImageOps

    file = io.BytesIO()
    with Image.open(path) as image:
        image.draft("RGB", (WIDEST, WIDEST))
        upright = ImageOps.exif_transpose(image)
        upright.thumbnail((WIDEST, WIDEST))
        upright.convert("RGB").save(file, "JPEG", quality=85)
    file.seek(0)
    return file
