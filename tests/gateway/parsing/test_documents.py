"""Pages come back with their boxes and without anything that acts."""

from __future__ import annotations

import re

import pytest

from gateway import tasks
from gateway.parsing import Parsed, parse

TASKS = tasks.load(None)


def read(text: str, task: str = "document-html", reason: str = "stop") -> Parsed:
    return parse(
        TASKS[task],
        text,
        family="qwen3-vl",
        finish_reason=reason,
        original=(1000, 1000),
        resized=(1000, 1000),
    )


HOSTILE = [
    "<script>alert(1)</script>",
    "<SCRIPT SRC=//x>",
    "<img src=x onerror=alert(1)>",
    "<img src='x' onerror='alert(1)' data-bbox='1 2 3 4'>",
    "<svg/onload=alert(1)>",
    "<svg><script>alert(1)</script></svg>",
    "<iframe src=javascript:alert(1)></iframe>",
    "<iframe srcdoc='<script>alert(1)</script>'>",
    "<a href='javascript:alert(1)'>x</a>",
    "<a href='https://x/?leak'>x</a>",
    "<form action=//x><button>go</button></form>",
    "<input onfocus=alert(1) autofocus>",
    "<style>@import '//x'</style>",
    "<p style='background:url(//x)'>y</p>",
    "<math><mi//xlink:href='data:x,<script>alert(1)</script>'>",
    "<object data=x></object><embed src=x>",
    "<base href=//x>",
    "<meta http-equiv=refresh content='0;url=//x'>",
    "<link rel=stylesheet href=//x>",
    "<noscript><p title='</noscript><img src=x onerror=alert(1)>'>",
    "<table background=//x><td>z</td></table>",
    "<scr<script>ipt>alert(1)</script>",
    "<<script>alert(1)//<</script>",
    "<img src=x:alert(1) onerror=eval(src)",
    "<p class='\"><img src=x onerror=alert(1)>'>",
    '<p data-bbox="1 2 3 4"onclick="alert(1)">x</p>',
    "&lt;script&gt;alert(1)&lt;/script&gt;",
    "&#60;script&#62;alert(1)&#60;/script&#62;",
    "<textarea></textarea><img src=x onerror=alert(1)></textarea>",
    "<template><img src=x onerror=alert(1)></template>",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_nothing_active_is_left_of_a_page(text: str) -> None:
    page = read(f"<html><body>{text}<p>told</p></body></html>").value
    tags = re.findall(r"<[^>]*>", page)
    for tag in tags:
        assert re.fullmatch(
            r"</?(?:a|p|img|table|tbody|td|tr)"
            r'(?: (?:class|data-bbox|alt)="[^"<>]*")*>',
            tag,
        ), page
    assert "<" not in re.sub(r"<[^>]*>", "", page)


@pytest.mark.parametrize("text", HOSTILE)
def test_nothing_active_is_left_of_markdown(text: str) -> None:
    for tried in (text, f"# t\n\n{text}", f"![x](https://x/?leak) {text}"):
        shown = read(tried, "document-markdown").value
        assert not re.search(r"<[a-zA-Z/!?]", shown)
        assert "](" not in shown


def test_a_deep_page_is_read_as_far_as_a_page_goes() -> None:
    parsed = read("<div>" * 5000 + '<p data-bbox="1 2 30 40">x</p>' + "</div>" * 5000)
    assert parsed.value.count("<div>") == 64
    assert [item["tag"] for item in parsed.items] == ["p"]


def test_texts_of_elements_are_whole_and_plain() -> None:
    page = (
        '<body><div data-bbox="0 0 900 900"><p data-bbox="10 10 500 50">a &amp; <b>b</b> &lt; c</p>'
        '<table data-bbox="10 60 500 500"><tr><td>1</td><td>2</td></tr></table></div></body>'
    )
    items = read(page).items
    assert [(item["tag"], item["text"]) for item in items] == [
        ("div", "a & b < c 1 2"),
        ("p", "a & b < c"),
        ("table", "1 2"),
    ]


def test_polygons_of_elements_are_read() -> None:
    (item,) = read('<p data-polygon="10 10 90 12 90 40 10 38">x</p>').items
    assert item["polygon_pixels"] == [[10, 10], [90, 12], [90, 40], [10, 38]]


def test_a_page_that_is_whole_is_not_called_cut() -> None:
    assert read("<html><body><p>x</p></body></html>").problems == []
    assert read("```html\n<html><body><p>x").problems[0].startswith("cut:")


def test_the_text_of_a_table_keeps_its_cells_apart() -> None:
    table = (
        "<table data-bbox='1 2 30 40'><tr><td>Name</td><td>H<sub>2</sub>O</td></tr>"
        "<tr><td>in<br>all</td></tr></table>"
    )
    (item,) = read(table).items
    assert item["text"] == "Name H2O in all"


def test_attributes_are_kept_as_they_are_written() -> None:
    page = read("<table><tr><td colspan=2>x</td></tr></table><IMG ALT='Logo of ABB' CLASS='Image'>")
    assert '<td colspan="2">' in page.value
    assert '<img alt="Logo of ABB" class="image">' in page.value


def test_a_box_without_quotes_is_read_or_noted() -> None:
    assert read("<p data-bbox=1,2,30,40>x</p>").items[0]["numbers"] == [1, 2, 30, 40]
    assert read("<p data-bbox=1 2 30 40>x</p>").problems[0].startswith("malformed:")


CODE = "```sh\nls\n```"


@pytest.mark.parametrize(
    ("written", "document"),
    [
        (f"# T\n{CODE}\nz", f"# T\n{CODE}\nz"),
        (f"{CODE}\nthen\n{CODE}", f"{CODE}\nthen\n{CODE}"),
        (f"```markdown\n# T\n{CODE}\nz\n```", f"# T\n{CODE}\nz"),
        (f"It is:\n```md\n# T\n{CODE}\n```", f"It is:\n# T\n{CODE}"),
        (f"```markdown\n{CODE}\n```\n```markdown\nb\n```", f"{CODE}\nb"),
        ("```\n# T\n```", "# T"),
        ("```markdown\n# T", "# T"),
    ],
)
def test_code_of_a_page_stays_between_its_fences(written: str, document: str) -> None:
    assert read(written, "document-markdown").value == document
    if not written.startswith("```m") and "md" not in written:
        assert read(written, "ocr-text").value == document
