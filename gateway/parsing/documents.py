"""Documents as Qwen-VL models write them: HTML with boxes, Markdown with boxes in comments."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from gateway.parsing.answer import FENCE, MOST_ITEMS, Answer, Item, unfenced
from gateway.parsing.places import box, numbers_of, polygon

DEEPEST = 64
"""Nested elements that are kept. nh3's time grows with the square of the depth: it takes 15 s for
43,000 nested divs, and a page has about ten levels."""

TAG = re.compile(r"<(/?)([A-Za-z][A-Za-z0-9]{0,31})((?:\s[^<>]{0,4096})?)(/?)>")
ATTRIBUTE = re.compile(
    r"""([a-z][a-z-]{0,31})\s{0,8}=\s{0,8}(?:"([^"<>]*)"|'([^'<>]*)'|([^\s"'<>=]+))""",
    re.IGNORECASE,
)
COMMENT = re.compile(r"<!--[^<>]*-->|<!DOCTYPE[^<>]*>", re.IGNORECASE)
NUMBERS = re.compile(r"-?\d{1,9}(?:\.\d{1,9})?")

VOID = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "wbr"}
ACTIVE = {"script", "style", "iframe", "object", "template", "noscript", "svg", "math", "textarea"}
"""Elements that are dropped with all their content."""

UNKEPT = {"html", "head", "body", "!doctype"}
"""The page around the answer; it carries no content."""

TAGS = {
    "a", "abbr", "b", "blockquote", "br", "caption", "code", "col", "colgroup", "dd", "div", "dl",
    "dt", "em", "figcaption", "figure", "h1", "h2", "h3", "h4", "h5", "h6", "hr", "i", "img",
    "li", "ol", "p", "pre", "s", "section", "span", "strong", "sub", "sup", "table", "tbody",
    "td", "tfoot", "th", "thead", "tr", "u", "ul",
}  # fmt: skip
PARTING = TAGS - {"a", "abbr", "b", "code", "em", "i", "s", "span", "strong", "sub", "sup", "u"}
"""Elements that part the words before them from those after them."""

ATTRIBUTES = {
    "*": {"class", "data-bbox", "data-polygon"},
    "img": {"alt"},
    "td": {"colspan", "rowspan"},
    "th": {"colspan", "rowspan"},
}
"""Attributes that are kept: no address of any kind, no style, no script, no ID."""

REGION = re.compile(
    r"<!--[ \t]{0,8}([A-Za-z][\w -]{0,40}?)[ \t]{0,8}\(([-\d., \t]{1,80})\)[ \t]{0,8}-->"
)
RAW_HTML = re.compile(r"<(?=[A-Za-z/!?])")
PICTURE = re.compile(r"!\[([^\[\]\n]{0,500})\]\([^()\n]{0,2000}\)")


@dataclass
class Element:
    """An open element of a page."""

    tag: str
    item: Item | None
    start: int
    """Where its content begins in the texts that were read."""


def parse_html(answer: Answer) -> tuple[Any, list[Item]]:
    """The page without anything active, and its elements that have a box or a polygon."""
    reader = PageReader(answer, FENCE.sub("", answer.text))
    page = sanitised(reader.page())
    if reader.removed:
        answer.note("sanitised")
    return page, reader.items


class PageReader:
    """Reads a page in one pass, and writes it anew with every element closed.

    The standard library's reader takes minutes for some texts (`<a ` over and over); this one only
    ever looks ahead to the next bracket.
    """

    def __init__(self, answer: Answer, text: str) -> None:
        self.answer = answer
        self.text = text
        self.items: list[Item] = []
        self.removed = False
        self.open: list[Element] = []
        self.texts: list[str] = []

    def page(self) -> str:
        return "".join(self.pieces())

    def pieces(self) -> Iterator[str]:
        """The page's tags and texts, well-formed."""
        position = 0
        text = COMMENT.sub("", self.text)
        while position < len(text):
            start = text.find("<", position)
            if start != position:
                content = text[position : start if start >= 0 else None]
                self.texts.append(content)
                yield html.escape(html.unescape(content), quote=False)
            if start < 0:
                break
            match = TAG.match(text, start)
            if match is None:
                # An unfinished tag is what the end cut; any other bracket is text.
                if ">" not in text[start : start + 4096] and len(text) - start < 4096:
                    self.answer.note("cut")
                    break
                yield "&lt;"
                position = start + 1
                continue
            position = match.end()
            tag = match.group(2).lower()
            if tag in ACTIVE and not match.group(1):
                position = self.skip(text, tag, position)
            elif match.group(1):
                yield from self.closed(tag)
            else:
                yield self.opened(tag, match.group(3), bool(match.group(4)))
        if any(element.tag not in UNKEPT for element in self.open):
            self.answer.note("cut")
        while self.open:
            yield self.close()

    def skip(self, text: str, tag: str, position: int) -> int:
        """Leave an active element out, to its end tag or the end of the text."""
        self.removed = True
        end = re.compile(rf"</{tag}\s{{0,8}}>", re.IGNORECASE).search(text, position)
        return end.end() if end else len(text)

    def opened(self, tag: str, written: str, ends: bool) -> str:
        """An opening tag, and its item where it has a place."""
        values = {name.lower(): a or b or c for name, a, b, c in ATTRIBUTE.findall(written)}
        if "class" in values:
            values["class"] = values["class"].lower()
        self.part(tag)
        if "src" in values or "href" in values or re.search(r"\bon\w{1,20}\s{0,8}=", written):
            self.removed = True
        kept = "".join(
            f' {name}="{html.escape(html.unescape(value))}"'
            for name, value in values.items()
            if name in ATTRIBUTES["*"] or name in ATTRIBUTES.get(tag, ())
        )
        item = self.item(tag, values)
        if tag in VOID or ends:
            return f"<{tag}{kept}>" if tag in VOID else f"<{tag}{kept}></{tag}>"
        if len(self.open) >= DEEPEST:
            return ""
        self.open.append(Element(tag, item, len(self.texts)))
        return f"<{tag}{kept}>"

    def closed(self, tag: str) -> Iterator[str]:
        """Close an element and the unclosed ones within it; do nothing if none is open."""
        if any(element.tag == tag for element in self.open):
            while self.open[-1].tag != tag:
                yield self.close()
            yield self.close()

    def part(self, tag: str) -> None:
        """Keep the words of two cells, say, apart."""
        if tag in PARTING:
            self.texts.append(" ")

    def close(self) -> str:
        element = self.open.pop()
        if element.item is not None:
            content = " ".join("".join(self.texts[element.start :]).split())
            element.item["text"] = html.unescape(content)[:10_000]
        self.part(element.tag)
        return f"</{element.tag}>"

    def item(self, tag: str, values: dict[str, str]) -> Item | None:
        """The item of an element with a place; nested elements at the same place are one item."""
        named = {"tag": tag, "label": values.get("class") or tag, "text": ""}
        item: Item | None = None
        if "data-bbox" in values:
            item = region(self.answer, values["data-bbox"])
        elif "data-polygon" in values:
            numbers = [float(digits) for digits in NUMBERS.findall(values["data-polygon"])]
            item = polygon(self.answer, numbers)
        if item is None or len(self.items) >= MOST_ITEMS:
            return None
        around = self.open[-1].item if self.open else None
        if around is not None and around["numbers"] == item["numbers"]:
            return None
        self.items.append({**item, "kind": "element", **named})
        return self.items[-1]


def region(answer: Answer, written: str) -> Item | None:
    """The box of four numbers in a text."""
    numbers = numbers_of([*NUMBERS.findall(written)], 4)
    if numbers is None:
        answer.note("malformed")
        return None
    return box(answer, numbers)


def sanitised(page: str) -> str:
    """The page with nothing in it but text, tables and their like (nh3, which is Ammonia)."""
    import nh3

    return nh3.clean(
        page,
        tags=TAGS,
        attributes=ATTRIBUTES,
        clean_content_tags=ACTIVE,
        link_rel=None,
        url_schemes=set(),
    )


def parse_markdown(answer: Answer) -> tuple[Any, list[Item]]:
    """Markdown without raw HTML and pictures from elsewhere, and the regions that it names."""
    text = unfenced(answer.text, "markdown", "md")
    items: list[Item] = []
    pieces, end = [], 0
    for match in REGION.finditer(text):
        item = region(answer, match.group(2)) if len(items) < MOST_ITEMS else None
        if item is not None:
            items.append({**item, "kind": "element", "label": match.group(1).strip().lower()})
        pieces += [inert(answer, text[end : match.start()]), match.group()]
        end = match.end()
    return "".join([*pieces, inert(answer, text[end:])]), items


def inert(answer: Answer, text: str) -> str:
    """Markdown that shows no picture from elsewhere and holds no element."""
    cleaned = PICTURE.sub(r"[\1]", RAW_HTML.sub("&lt;", text))
    if cleaned != text:
        answer.note("sanitised")
    return cleaned
