"""What the page is made of, without a browser: requests, answers as HTML, keys and refusals."""

from __future__ import annotations

import ast
import asyncio
import base64
import contextlib
import io
import json
import random
import re
import subprocess
import sys
import time
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pydantic import SecretStr
from starlette.requests import Request

from gateway import exports, sessions
from gateway.keys import entry, new_key

pytest.importorskip("gradio", reason="the page is an extra: pip install '.[ui]'")

from gateway.ui import (
    ask,
    asking,
    batch,
    client,
    compare,
    downloads,
    drawing,
    history,
    loss_curve,
    pictures,
    questions,
    settings,
    texts,
    train,
    visitors,
)
from gateway.ui.connections import Preferences
from gateway.ui.questions import Question

ROOT = Path(__file__).parents[3]
FOLDER = ROOT / "gateway/ui"
PICTURE = pictures.Picture("data:image/png;base64,AA==", 400, 300)


class Tags(HTMLParser):
    """Names of the elements and attributes of a page, and its texts."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attributes}

    def handle_data(self, data: str) -> None:
        self.text += data


OURS = {
    "circle", "del", "div", "g", "h3", "iframe", "img", "input", "ins", "label", "li", "line", "p",
    "polygon", "rect", "section", "span", "svg", "table", "tbody", "td", "text", "th", "thead",
    "title", "tr", "ul", "details", "summary",
}  # fmt: skip


@given(st.text(), st.text(alphabet="<>&\"'/ascriptonload=()"))
def test_no_word_of_a_model_becomes_an_element(some: str, other: str) -> None:
    item = {"kind": some, "label": other, "text": some, "box_unit": [0.1, 0.2, 0.3, 0.4]}
    event = {"kind": "event", "start": 1.0, "end": 2.0, "description": other}
    answers = [
        {"items": [item, event], "notes": [f"cut: {other}", some], "value": {some: other}},
        {"items": [], "value": [{other: some}, {some: [other]}], "notes": ()},
        {"items": [], "value": other, "task": "document-html", "notes": ()},
    ]
    shown = "".join(drawing.result(each, PICTURE) for each in answers)
    shown += drawing.sentence(other, wrong=True) + compare.marked(some, other)
    shown += drawing.conversation([{"role": "user", "text": other}] * 3)
    page = Tags(shown)

    assert page.tags <= OURS
    assert not {name for name in page.attributes if name.startswith("on")}
    assert "href" not in page.attributes


def test_a_document_has_a_frame_that_can_do_nothing() -> None:
    frame = drawing.document("<h1>Page</h1><script>alert(1)</script>")

    assert 'sandbox=""' in frame
    assert "default-src &#x27;none&#x27;" in frame
    assert "<script>" not in frame


def test_markdown_is_shown_with_its_lines() -> None:
    assert "white-space:pre-wrap" in drawing.document("# Page\n\n<!-- Table (1,2,3,4) -->\n&lt;b>")
    assert "white-space" not in drawing.document("<h1>Page</h1>\n<p>one\ntwo</p>")


BOX = {"kind": "box", "box_unit": [0.25, 0.3, 0.75, 0.7]}
POINT = {"kind": "point", "point_unit": [0.5, 0.5]}
POLYGON = {"kind": "polygon", "polygon_unit": [[0, 0], [1, 0], [1, 1]]}
SWIPE = {"kind": "action", "point_unit": [0, 0], "end_unit": [1, 1]}
EVENT = {"kind": "event", "start": 65.5, "end": 70, "description": "x"}


@pytest.mark.parametrize(
    ("item", "shape", "place"),
    [
        (BOX, '<rect x="100" y="90" width="200" height="120"', "100,90 300,210"),
        (POINT, '<circle cx="200" cy="150"', "200,150"),
        (POLYGON, '<polygon points="0,0 400,0 400,300"', "0,0 400,0 400,300"),
        (SWIPE, '<line x1="0" y1="0" x2="400" y2="300"', "0,0"),
        ({"kind": "box_3d", "numbers": [1]}, "", ""),
        (EVENT, "", "1:05.50 to 1:10.00"),
    ],
    ids=["box", "point", "polygon", "swipe", "no place", "event"],
)
def test_an_item_is_drawn_in_pixels_of_the_upright_picture(
    item: dict[str, Any], shape: str, place: str
) -> None:
    drawn = drawing.overlay(PICTURE, [item])

    assert shape in drawn and (shape or "<g " not in drawn)
    assert drawing.place_of(item, PICTURE) == place


@pytest.mark.parametrize(
    ("seconds", "shown"), [(59.999, "1:00.00"), (119.994, "1:59.99"), (0, "0:00.00")]
)
def test_a_minute_has_sixty_seconds(seconds: float, shown: str) -> None:
    assert drawing.clock(seconds) == shown


def test_a_long_answer_is_cut_where_it_says_so() -> None:
    longest = "x" * drawing.LONGEST_CELL
    assert drawing.cell(longest) == longest
    assert drawing.cell(longest + "yz") == longest[:-1] + "…"


@pytest.mark.parametrize("value", [[{"a": "first"}, "other"], ["other", {"a": "first"}]])
def test_a_list_of_different_things_is_shown_whole(value: list[Any]) -> None:
    shown = Tags(drawing.facts(value)).text
    assert "other" in shown and "first" in shown


def test_two_thousand_boxes_are_drawn_with_a_colour_a_label() -> None:
    items = [
        {"kind": "box", "label": f"label {at % 3}", "box_unit": [0, 0, 1, 1]} for at in range(3000)
    ]
    drawn = drawing.result({"items": items}, PICTURE)

    assert drawn.count("<rect ") == drawing.MOST_MARKS
    assert len(set(drawing.colours_of(items))) == 3


def test_a_picture_is_shown_upright_and_small_and_sent_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "photo.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    noise = [Image.effect_noise((1500, 1000), 64) for _ in range(3)]
    Image.merge("RGB", noise).save(path, exif=exif)

    shown = pictures.prepared(path)

    assert (shown.width, shown.height) == (1000, 1500)
    assert shown.uri.startswith("data:image/jpeg;base64,")
    assert pictures.sent(path, 0, tmp_path) == path
    smaller = Image.open(pictures.sent(path, 0.5, tmp_path))
    assert smaller.width * smaller.height <= 5e5 and smaller.width < smaller.height


def test_pictures_that_share_a_name_are_each_sent_smaller(tmp_path: Path) -> None:
    paths = [tmp_path / "first/scan.png", tmp_path / "second/scan.png", tmp_path / "scan.jpg"]
    for path, colour in zip(paths, ("red", "lime", "blue"), strict=True):
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (1000, 1000), colour).save(path)
    folder = tmp_path / "smaller"
    folder.mkdir()

    smaller = asking.smaller(paths, 0.25, folder)

    colours = [Image.open(path).convert("RGB").getpixel((0, 0)) for path in smaller]
    assert colours[:2] == [(255, 0, 0), (0, 255, 0)] and colours[2][2] > 250
    assert {path.name for path in smaller} == {"scan.png"}
    assert all(path.is_relative_to(folder) for path in smaller)


def test_a_grey_picture_of_sixteen_bits_is_not_shown_white_and_is_sent_as_it_is(
    vision: Any, stub: Any, tmp_path: Path
) -> None:
    path = tmp_path / "scan.png"
    Image.new("I;16", (64, 48), 1000).save(path)
    with pytest.raises(pictures.Unreadable, match="more than 8 bits"):
        pictures.prepared(path)
    assert asking.smaller([path], 0.0001, tmp_path) == [path]

    import gradio as gr

    with gr.Blocks():
        screen = ask.AskScreen(cast(Any, Reached(cast(Any, None))), None, str)
    for task in ("predict", "chat"):
        inputs = ({"text": "", "files": [str(path)]}, None, "tiny-lora", task, "")
        catalogue = {"models": {}, "tasks": {}}
        shown = shown_by(vision.url, screen, "on_ask", *inputs, catalogue, {}, "")
        assert "more than 8 bits" in shown[screen.panel.line]
    assert stub.requests == []


@pytest.mark.parametrize("content", [b"", b"no picture", b"<svg onload='x'/>"])
def test_what_is_no_picture_is_not_shown(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(content)

    with pytest.raises(pictures.Unreadable):
        pictures.prepared(path)
    with pytest.raises(pictures.Unreadable):
        pictures.data_uri(path)
    assert not pictures.is_picture(path)


def test_the_script_that_is_shown_asks_the_same(vision: Any, stub: Any, tmp_path: Path) -> None:
    path = tmp_path / "a 'quoted' \"name\".png"
    Image.new("RGB", (64, 48)).save(path)
    question = Question("tiny-lora", "spatial-boxes", 'it\'s; "all"', "", [path])
    script = questions.as_python(vision.url, question)
    command = questions.as_curl(vision.url, question)

    ran = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env={"GATEWAY_KEY": "none"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert ran.returncode == 0, ran.stderr
    first = stub.requests[-1]
    curled = subprocess.run(
        ["sh", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert json.loads(curled.stdout)["task"] == "spatial-boxes"
    assert stub.requests[-1] == first
    assert 'it\'s; \\"all\\"' in json.dumps(first)


def test_a_follow_up_tells_the_model_what_it_was_asked() -> None:
    card = {"prompt": "Read. {question}", "family": "qwen3-vl"}
    task = {
        "prompts": {"default": "Find {text} as {format}"},
        "variables": {"text": None, "format": "json"},
    }
    assert questions.asked_text(Question("m", "predict", "Now?"), card, None) == "Read. Now?"
    assert questions.asked_text(Question("m", "x", "cats"), card, task) == "Find cats as json"
    assert questions.asked_text(Question("m", "chat", "Hi"), card, None) == "Hi"


def test_a_follow_up_holds_the_words_of_a_task_that_was_asked_without_any() -> None:
    task = {"prompts": {"default": "{text} As {form}."}, "variables": {"text": "Why?", "form": "a"}}
    assert questions.asked_text(Question("m", "x"), {}, task) == "Why? As a."
    written = Question("m", "x", "Is {form} a word?", '{"form": "{text}"}')
    assert questions.asked_text(written, {}, task) == "Is {form} a word? As {text}."


@pytest.mark.parametrize("questions_before", [0, 19, 20, 21, 200])
def test_a_long_conversation_begins_with_a_question(questions_before: int) -> None:
    """Templates refuse a conversation that begins with an answer."""
    asked = {"role": "user", "text": "it"}
    history = [asked, {"role": "assistant", "text": "no"}] * questions_before + [asked]
    messages = asking.chat_body("m", history, Preferences())["messages"]
    roles = [message["role"] for message in messages]
    assert roles == (["user", "assistant"] * 21)[: len(roles)] and roles[-1] == "user"
    assert len(roles) == min(len(history), asking.MOST_TURNS)


def test_a_search_passes_over_a_conversation_that_is_gone_by_then() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        ids = ("a", "b", "c")
        listed = [{"id": each, "title": "x", "changed": 1, "turns": 1} for each in ids]
        path = request.url.path
        if path == "/sessions/b":
            return httpx.Response(404, json={"code": "not_found", "detail": "Gone."})
        turns = {"turns": [{"question": "the needle", "answer": {"text": "no"}}]}
        return httpx.Response(200, json={"sessions": listed} if path == "/sessions" else turns)

    async def conversations() -> list[tuple[str, str]]:
        transport = httpx.MockTransport(answer)
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as http:
            return await history.listed(client.Gateway(http, None), "needle")

    assert [name for _, name in asyncio.run(conversations())] == ["a", "c"]


def test_what_a_browser_kept_is_read_or_the_default() -> None:
    assert Preferences.of({"temperature": 9, "seed": "3", "system": "x" * 20_000, "evil": []}) == (
        Preferences(temperature=2.0, seed=3, system="x" * 10_000)
    )
    for wrong in (
        None,
        [],
        "x",
        {"temperature": "warm"},
        {"seed": "x"},
        {"max_tokens": float("inf")},
    ):
        assert Preferences.of(wrong) == Preferences()


def test_an_answers_end_is_told_in_words() -> None:
    usage = {"prompt_tokens": 7, "completion_tokens": 11}
    line = questions.in_words({"usage": usage, "finish_reason": "length"}, 3.0, 1.0)

    assert line == (
        "11 tokens, 7 in the prompt, first after 1.00 s, 5.0 tokens a second, 3.00 s in all. "
        "The answer is cut: it reached the most tokens."
    )


LOSS = {
    "points": {"training": [[1, 4.0], [2, 2.0]], "validation": [[1, 3.0], [2, 3.25]]},
    "drawn": {
        "last": 2,
        "highest": 4.0,
        "lines": {"training": "300.0,0.0 600.0,100.0", "validation": "300.0,50.0 600.0,37.5"},
    },
    "not_finite": 0,
    "tokens_per_second": 1234.5,
}


def test_a_loss_is_drawn_told_in_words_and_written_as_a_table() -> None:
    drawn = loss_curve.figure(LOSS, str)
    assert (
        "Training loss 2 at step 2; validation loss 3.25 at step 2, lowest 3 at step 1; "
        "1,234 tokens a second." in drawn
    )
    assert drawn.count('<polyline points="300.0') == 2 and drawn.count("<circle") == 4
    assert 'role="img" aria-label="Loss over steps"' in drawn
    table = loss_curve.table(LOSS, str)
    assert "<tr><td>2</td><td>2</td><td>3.25</td></tr>" in table


def test_a_loss_of_one_point_is_seen_and_none_is_said() -> None:
    with_one_point = LOSS | {
        "points": {"training": [[1, 4.0]]},
        "drawn": {"last": 1, "highest": 4.0, "lines": {"training": "600.0,0.0"}},
        "not_finite": 3,
    }
    drawn = loss_curve.figure(with_one_point, str)
    assert drawn.count("<circle") == 1 and "validation" not in drawn
    assert "3 values are no numbers" in drawn
    none = LOSS | {"points": {}, "drawn": {}}
    assert "No loss is logged" in loss_curve.figure(none, str)
    assert loss_curve.table(none, str) == ""


def test_the_table_of_a_long_loss_has_its_ends_and_some_between() -> None:
    long = LOSS | {"points": {"training": [[step, 1.0] for step in range(1, 401)]}}
    table = loss_curve.table(long, str)
    assert table.count("<tr><td>") == loss_curve.MOST_ROWS
    assert "<td>1</td>" in table and "<td>400</td>" in table


@pytest.mark.parametrize(
    ("other", "shown"),
    [
        ("a <dog> sits", "a <del>cat</del><ins>&lt;dog&gt;</ins> sits"),
        ("a cat", "a cat<del> sits</del>"),
        ("a cat sits down", "a cat sits<ins> down</ins>"),
        ("a cat sits", "a cat sits"),
    ],
)
def test_an_answer_is_marked_against_the_first_as_a_report_does(other: str, shown: str) -> None:
    assert compare.marked("a cat sits", other) == shown


@pytest.mark.parametrize("line", ["{", "[]", '{"text": "Who?"}', '{"text": "?", "files": 1}'])
def test_examples_of_another_form_are_one_sentence(tmp_path: Path, line: str) -> None:
    (tmp_path / "examples.jsonl").write_text(f"\n{line}\n")
    with pytest.raises(settings.BadSetting, match=r"example 1 of .* is no JSON object"):
        ask.examples_of(tmp_path)
    (tmp_path / "examples.jsonl").write_text('{"text": "Who?", "files": ["0.png"]}\n\n')
    with pytest.raises(settings.BadSetting, match=r"0\.png, which is not there"):
        ask.examples_of(tmp_path)


def test_examples_are_those_of_a_list_or_the_pictures_of_a_folder(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    (tmp_path / "notes.txt").write_text("no picture")
    assert ask.examples_of(tmp_path) == [{"text": "", "files": [str(tmp_path / "a.png")]}]

    listed = [{"text": "Who\u2028?", "files": []}, {"text": "What?", "files": ["a.png"]}]
    lines = [json.dumps(each, ensure_ascii=False) + "\n" for each in listed]
    (tmp_path / "examples.jsonl").write_text("".join(lines))
    assert ask.examples_of(tmp_path) == [
        {"text": "Who\u2028?", "files": []},
        {"text": "What?", "files": [str(tmp_path / "a.png")]},
    ]


def test_a_batch_as_a_table_for_spreadsheets_computes_nothing() -> None:
    rows = [
        {"index": 0, "filename": " =cmd", "status": 200, "answer": {"raw": "@SUM(1)"}},
        {"index": 1, "id": "x", "status": 415, "problem": {"detail": "No image."}},
    ]
    lines = batch.as_csv(rows).splitlines()

    assert lines[1].startswith("0,,' =cmd,200,'@SUM(1)")
    assert lines[2] == "1,x,,415,No image.,"
    assert batch.table(rows, {}).index("No image.") < batch.table(rows, {}).index("@SUM")


BLANKS = st.text(alphabet=" \t\r\n\x0b\x0c\x1c\x85\xa0\u2003\u3000", max_size=3)


@pytest.mark.parametrize("quoted", [exports.cell, batch.safe], ids=["gateway", "page"])
@given(st.one_of(st.text(), st.builds("".join, st.tuples(BLANKS, st.sampled_from("=+-@"), BLANKS))))
def test_a_cell_of_both_tables_is_text_for_a_spreadsheet(
    quoted: Callable[[str], str], value: str
) -> None:
    begins_formula = value.strip()[:1] in set("=+-@") or value[:1] in set("\t\r")
    assert quoted(value) == (f"'{value}" if begins_formula else value)


def test_a_batch_is_shown_with_its_own_pictures(vision: Any, stub: Any, tmp_path: Path) -> None:
    import gradio as gr

    with gr.Blocks():
        screen = batch.BatchScreen(cast(Any, Reached(cast(Any, None))), str)
    jobs, small = [], {}
    for colour in ("red", "blue"):
        path = tmp_path / f"{colour}.png"
        Image.new("RGB", (40, 30), colour).save(path)
        inputs = ([str(path)], None, "it", "tiny-lora", "spatial-boxes", "", small)
        shown = shown_by(vision.url, screen, "on_start", *inputs)
        jobs.append(shown[screen.jobs]["value"])
        small = shown[screen.thumbnails]
        until_done(vision, jobs[-1])

    pictures_shown = []
    for job in (*jobs, jobs[0]):
        shown = shown_by(vision.url, screen, "on_look", job, small)
        small = shown.get(screen.thumbnails, small)
        listed = shown_by(vision.url, screen, "on_list", job, small)
        assert listed[screen.result] == shown[screen.result]
        small = listed.get(screen.thumbnails, small)
        pictures_shown.append(re.findall('src="([^"]+)"', shown[screen.result]))

    first, second, again = pictures_shown
    assert len(first) == 1 and first != second and first == again
    after = shown_by(vision.url, screen, "on_delete", jobs[0], small)
    assert list(after[screen.thumbnails]) == [jobs[1]]


def until_done(vision: Any, job: str) -> None:
    deadline = time.monotonic() + 30
    while vision.client.get(f"/jobs/{job}").json()["state"] != "done":
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_lines_of_a_batch_keep_what_they_name(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"text": "cat"}\n{"task": "other"}\nno json\n')

    lines = batch.with_fields(path, {"task": "boxes", "model": "m"}).splitlines()

    assert [json.loads(line) for line in lines[:2]] == [
        {"task": "boxes", "model": "m", "text": "cat"},
        {"task": "other", "model": "m"},
    ]
    assert lines[2] == b"no json"


@pytest.mark.parametrize(
    ("fields", "line", "whole"),
    [
        ({"question": "Who?"}, {"task": "b", "text": "cat"}, {"task": "b", "text": "cat"}),
        ({"task": "a", "text": "x", "options": "{}"}, {"task": "b"}, {"task": "b"}),
        ({"task": "a", "text": "x"}, {"task": "a"}, {"task": "a", "text": "x"}),
        ({"task": "a", "text": "x"}, {"task": ""}, {"task": ""}),
        ({"question": "Who?"}, {"id": 1}, {"id": 1, "question": "Who?"}),
    ],
    ids=str,
)
def test_a_line_of_another_task_gets_no_words_of_the_screens(
    tmp_path: Path, fields: dict[str, str], line: dict[str, Any], whole: dict[str, Any]
) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps(line))
    (result,) = batch.with_fields(path, {"model": "m", **fields}).splitlines()
    assert json.loads(result) == {"model": "m", **whole}


@pytest.mark.parametrize(
    ("content", "status", "sentence"),
    [
        (b'{"detail": "Send a file."}', 422, "Send a file."),
        (b'{"error": {"message": "Too long."}}', 422, "Too long."),
        (b"<html>", 502, "The desk answered with status 502."),
        (b"[]", 500, "The desk answered with status 500."),
        (b"<html>", 200, "The desk's answer cannot be read."),
        (None, 0, "The desk does not answer; try again in a moment, or tell its operator."),
    ],
)
def test_a_refusal_is_the_service_s_sentence_or_names_the_service(
    content: bytes | None, status: int, sentence: str
) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        if content is None:
            raise httpx.ConnectError("refused")
        return httpx.Response(status, content=content)

    async def refusals() -> list[client.Refusal]:
        async with httpx.AsyncClient(
            transport=httpx.MockTransport(answer), base_url="http://desk"
        ) as http:
            desk = client.Gateway(http, None, service="desk")
            with pytest.raises(client.Refusal) as asked_once:
                await desk.json("GET", "/me")
            if status == 200:
                return [asked_once.value]
            with pytest.raises(client.Refusal) as streamed:
                async for _ in desk.stream("/me", {}):
                    pass
        return [asked_once.value, streamed.value]

    for refusal in asyncio.run(refusals()):
        assert (refusal.sentence, refusal.status) == (sentence, status)


class Reached:
    """Connections to a gateway that asks nobody for a key."""

    desk_http = None
    settings = settings.Settings(gateway="http://127.0.0.1:9")
    shown_gateway = ""

    def __init__(self, http: httpx.AsyncClient, kept: downloads.Downloads | None = None) -> None:
        self.http = http
        self.downloads = kept

    def gateway(self, _: Any) -> client.Gateway:
        return client.Gateway(self.http, None)


def shown_by(url: str, screen: Any, event: str, *inputs: Any) -> dict[Any, Any]:
    """What an event leaves on a screen before the gateway at this address."""

    async def updates() -> dict[Any, Any]:
        async with httpx.AsyncClient(base_url=url) as http:
            screen.connections = Reached(http, kept)
            happening = getattr(screen, event)(*inputs, None)
            if asyncio.iscoroutine(happening):
                return dict(await happening)
            result: dict[Any, Any] = {}
            async for update in happening:
                result |= update
            return result

    with contextlib.closing(downloads.Downloads()) as kept:
        return asyncio.run(updates())


BEGAN_ANEW = "The gateway no longer had the conversation, so a new one began."


def kept_turns(vision: Any, session: str) -> list[str]:
    return [turn["question"] for turn in vision.client.get(f"/sessions/{session}").json()["turns"]]


@pytest.mark.parametrize("task", ["predict", "spatial-boxes", "chat"])
def test_a_conversation_that_is_gone_begins_anew(
    task: str, vision: Any, stub: Any, drawing_file: Path
) -> None:
    import gradio as gr

    with gr.Blocks():
        screen = ask.AskScreen(cast(Any, Reached(cast(Any, None))), None, str)

    def asked(session: str) -> dict[Any, Any]:
        box = {"text": "" if task == "predict" else "it", "files": [str(drawing_file)]}
        inputs = (box, None, "tiny-lora", task, "", {"models": {}, "tasks": {}}, {}, session)
        return shown_by(vision.url, screen, "on_ask", *inputs)

    first = asked("")
    assert BEGAN_ANEW not in first[screen.panel.line]
    assert asked(first[screen.session])[screen.session] == first[screen.session]
    vision.client.delete(f"/sessions/{first[screen.session]}")
    stub.requests.clear()

    again = asked(first[screen.session])
    assert again[screen.session] != first[screen.session]
    assert BEGAN_ANEW in again[screen.panel.line] and "s in all" in again[screen.panel.line]
    assert len(kept_turns(vision, again[screen.session])) == 1
    assert len(stub.requests) == 1, "the model is asked once"


@pytest.mark.parametrize("task", ["predict", "ocr-text", "chat"])
def test_an_answer_with_another_kind_of_line_end_is_read_whole(
    task: str, vision: Any, stub: Any, drawing_file: Path
) -> None:
    """Unicode has line ends that JSON does not escape; in a stream they are none."""
    import gradio as gr

    stub.tokens = ["one\u2028two", "\u2029three\x85", "four\n"]
    with gr.Blocks():
        screen = ask.AskScreen(cast(Any, Reached(cast(Any, None))), None, str)
    box = {"text": "", "files": [str(drawing_file)]}
    inputs = (box, None, "tiny-lora", task, "", {"models": {}, "tasks": {}}, {}, "")
    shown = shown_by(vision.url, screen, "on_ask", *inputs)
    assert "s in all" in shown[screen.panel.line], shown[screen.panel.line]
    assert shown[screen.panel.answer].strip() == "one\u2028two\u2029three\x85four"


def test_a_follow_up_of_a_conversation_that_is_gone_is_kept_in_a_new_one(
    vision: Any, stub: Any
) -> None:
    import gradio as gr

    with gr.Blocks():
        screen = ask.AskScreen(cast(Any, Reached(cast(Any, None))), None, str)
    history = [{"role": "user", "text": "it", "files": []}, {"role": "assistant", "text": "no"}]
    shown = shown_by(vision.url, screen, "on_follow", "and?", "tiny-lora", history, {}, "0" * 32)
    assert BEGAN_ANEW in shown[screen.panel.line]
    assert kept_turns(vision, shown[screen.session]) == ["and?"]


def compare_screen() -> Any:
    import gradio as gr

    with gr.Blocks():
        return compare.CompareScreen(cast(Any, Reached(cast(Any, None))), str)


def test_a_comparison_and_a_vote_begin_a_conversation_that_is_gone_anew(
    vision: Any, stub: Any, drawing_file: Path
) -> None:
    screen = compare_screen()
    box = {"text": "it", "files": [str(drawing_file)]}
    inputs = (box, ["base", "tiny-lora"], "spatial-boxes", "", False, "0" * 32)
    shown = shown_by(vision.url, screen, "on_compare", *inputs)
    assert BEGAN_ANEW in shown[screen.line]
    assert kept_turns(vision, shown[screen.session]) == ["it"]

    answers = shown[screen.answers]
    again = shown_by(vision.url, screen, "on_vote", "A", answers, shown[screen.session])
    assert BEGAN_ANEW not in again[screen.line]
    vision.client.delete(f"/sessions/{shown[screen.session]}")
    again = shown_by(vision.url, screen, "on_vote", "A", answers, shown[screen.session])
    assert BEGAN_ANEW in again[screen.line]
    assert kept_turns(vision, again[screen.session]) == ["Vote between A base, B tiny-lora"]


def test_a_comparison_that_is_refused_leaves_no_conversation_behind(
    vision: Any, stub: Any, drawing_file: Path
) -> None:
    screen = compare_screen()
    box = {"text": "it", "files": [str(drawing_file)]}
    inputs = (box, ["base", "tiny-lora"], "no-task", "", False)
    refused = shown_by(vision.url, screen, "on_compare", *inputs, "")
    assert "There is no such task" in refused[screen.line]
    again = shown_by(vision.url, screen, "on_compare", *inputs, refused[screen.session])
    assert again[screen.session] == refused[screen.session]


@pytest.mark.parametrize("task", ["predict", "chat", "compare"])
def test_a_conversation_that_is_full_goes_on_in_a_new_one(
    task: str, vision: Any, stub: Any, drawing_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import gradio as gr

    connections = cast(Any, Reached(cast(Any, None)))
    with gr.Blocks():
        asked, compared = (
            ask.AskScreen(connections, None, str),
            compare.CompareScreen(connections, str),
        )
    monkeypatch.setattr(sessions, "MAX_TURNS", 1)
    full = vision.client.post("/sessions", json={}).json()["id"]
    vision.client.post(f"/sessions/{full}/turns", json={"question": "x", "answer": "y"})

    box = {"text": "" if task == "predict" else "it", "files": [str(drawing_file)]}
    if task == "compare":
        screen, line, event = compared, compared.line, "on_compare"
        inputs = (box, ["base", "tiny-lora"], "spatial-boxes", "", False, full)
    else:
        screen, line, event = asked, asked.panel.line, "on_ask"
        inputs = (box, None, "tiny-lora", task, "", {"models": {}, "tasks": {}}, {}, full)
    shown = shown_by(vision.url, screen, event, *inputs)

    assert "The conversation was full, so a new one began." in shown[line]
    assert shown[screen.session] != full
    assert len(kept_turns(vision, shown[screen.session])) == 1


def test_a_file_that_the_page_has_removed_is_asked_for_again(
    vision: Any, stub: Any, tmp_path: Path
) -> None:
    """Uploads are removed after half an hour, while a visitor may still see them."""
    import gradio as gr

    connections = cast(Any, Reached(cast(Any, None)))
    with gr.Blocks():
        asked, compared = (
            ask.AskScreen(connections, None, str),
            compare.CompareScreen(connections, str),
        )
        batched = batch.BatchScreen(connections, str)
    gone = str(tmp_path / "scan.png")
    box, nothing = {"text": "it", "files": [gone]}, {"models": {}, "tasks": {}}
    history = [{"role": "user", "text": "it", "files": [gone]}, {"role": "assistant", "text": "no"}]
    task, lines = "spatial-boxes", str(tmp_path / "lines.jsonl")
    for screen, line, event, inputs in (
        (asked, asked.panel.line, "on_ask", (box, None, "tiny-lora", task, "", nothing, {}, "")),
        (asked, asked.panel.line, "on_ask", (box, None, "tiny-lora", "chat", "", nothing, {}, "")),
        (asked, asked.panel.line, "on_follow", ("and?", "tiny-lora", history, {}, "")),
        (compared, compared.line, "on_compare", (box, ["base", "tiny-lora"], task, "", False, "")),
        (batched, batched.line, "on_start", ([gone], None, "it", "tiny-lora", task, "", {})),
        (batched, batched.line, "on_start", ([lines], None, "it", "tiny-lora", task, "", {})),
    ):
        shown = shown_by(vision.url, screen, event, *inputs)
        assert "The page no longer has a file" in shown[line], (event, inputs)


def test_what_is_refused_for_another_reason_begins_no_conversation(vision: Any, stub: Any) -> None:
    import gradio as gr

    with gr.Blocks():
        screen = ask.AskScreen(cast(Any, Reached(cast(Any, None))), None, str)
    session = vision.client.post("/sessions", json={}).json()["id"]
    before = len(vision.client.get("/sessions").json()["sessions"])
    inputs = ({"text": "x"}, None, "tiny-lora", "none", "", {"models": {}, "tasks": {}}, {})
    shown = shown_by(vision.url, screen, "on_ask", *inputs, session)
    assert "There is no such task" in shown[screen.panel.line]
    assert len(vision.client.get("/sessions").json()["sessions"]) == before


class Refusing:
    """A desk that refuses every call."""

    def __init__(self, status: int) -> None:
        self.status = status

    async def json(self, *_: Any) -> Any:
        raise client.Refusal("Not now.", self.status)


@pytest.mark.parametrize(("status", "goes_on"), [(0, True), (503, True), (422, False)])
def test_a_desk_that_is_away_for_a_moment_ends_no_watching(status: int, goes_on: bool) -> None:
    gr = pytest.importorskip("gradio")
    with gr.Blocks():
        screen = train.TrainScreen(cast(Any, None), str)
    updates = asyncio.run(screen.run_updates(cast(Any, Refusing(status)), "runs/one"))
    assert "Not now." in updates[screen.phase]
    assert (updates[screen.timer].active, updates[screen.loss.timer].active) == (goes_on, goes_on)


@pytest.mark.parametrize(("status", "goes_on"), [(0, True), (503, True), (404, False)])
def test_a_gateway_that_is_away_for_a_moment_ends_no_watching_of_a_batch(
    status: int, goes_on: bool
) -> None:
    import gradio as gr

    with gr.Blocks():
        screen = batch.BatchScreen(cast(Any, None), str)
    updates = asyncio.run(screen.job_updates(cast(Any, Refusing(status)), "a", {}))
    assert "Not now." in updates[screen.line]
    assert updates[screen.timer].active == goes_on


def test_a_batch_that_runs_offers_no_files_of_another() -> None:
    import gradio as gr

    def answer(request: httpx.Request) -> httpx.Response:
        state = {"id": "a", "state": "running", "done": 0, "total": 2, "failed": 0, "created": 1}
        bodies = {"/jobs": {"jobs": [state]}, "/jobs/a": state}
        return httpx.Response(200, json=bodies.get(request.url.path, {"index": 0}))

    async def updates() -> dict[Any, Any]:
        transport = httpx.MockTransport(answer)
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as http:
            return await screen.job_updates(client.Gateway(http, None), "a", {})

    def no_table(*_: Any) -> str:
        return ""

    with gr.Blocks():
        screen = batch.BatchScreen(cast(Any, None), str)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(batch, "table", no_table)
        shown = asyncio.run(updates())
    assert shown[screen.timer].active
    assert (shown[screen.jsonl], shown[screen.csv]) == (None, None)


def test_who_does_not_answer_is_named() -> None:
    async def ask_for_runs() -> None:
        async with httpx.AsyncClient(base_url="http://127.0.0.1:9") as http:
            await client.Gateway(http, None, service="desk").json("GET", "/runs")

    with pytest.raises(client.Refusal, match=r"^The desk does not answer"):
        asyncio.run(ask_for_runs())


def test_a_refusal_says_when_to_try_again() -> None:
    response = httpx.Response(429, json={"detail": "Busy."}, headers={"Retry-After": "7"})
    gateway = client.Gateway(cast(Any, None), None)
    assert gateway.refusal(response).sentence == "Busy. Try again in 7 s."


# --- sign-in


@pytest.fixture(scope="module")
def locked(start: Any, open_page: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A page before a gateway with two keys: its address and the keys."""
    file = tmp_path_factory.mktemp("keys") / "keys.json"
    keys = [new_key(name) for name in ("alice", "bob")]
    file.write_text(f"[{', '.join(entry(each) for _, each in keys)}]")
    with start(api_keys_file=file) as gateway, open_page(gateway.url) as url:
        yield url, [key for key, _ in keys]


def signed_in(url: str, key: str) -> httpx.Client:
    visitor = httpx.Client(base_url=url, timeout=30)
    assert visitor.post("/login", data={"key": key}).status_code == 303
    return visitor


PRIVATE = ("/", "/de/", "/config", "/gradio_api/info", "/gradio_api/file=/etc/passwd", "/theme.css")


@pytest.mark.parametrize("path", PRIVATE)
def test_without_a_key_nothing_is_shown(path: str, locked: Any) -> None:
    url, _ = locked
    asked = httpx.get(f"{url}{path}", headers={"Accept": "text/html"})
    assert (asked.status_code, asked.headers["location"]) == (303, "/login")
    assert httpx.get(f"{url}{path}").status_code == 401
    assert httpx.post(f"{url}/gradio_api/upload", files={"files": b"x"}).status_code == 401


@pytest.mark.parametrize("key", ["", "wrong", "x" * 100_000, "ü", "a\nb"])
def test_a_wrong_key_is_refused_with_one_sentence(key: str, locked: Any) -> None:
    answer = httpx.post(f"{locked[0]}/login", data={"key": key})
    assert answer.status_code in (401, 413)
    assert "set-cookie" not in answer.headers


def test_a_key_is_sealed_in_a_cookie_that_no_script_reads(locked: Any) -> None:
    url, (alice, _) = locked
    answer = httpx.post(f"{url}/login", data={"key": alice})
    cookie = answer.headers["set-cookie"]
    assert alice not in cookie and "HttpOnly" in cookie and "SameSite=strict" in cookie
    visitor = signed_in(url, alice)
    page = visitor.get("/", headers={"Accept": "text/html"})
    assert page.status_code == 200 and alice not in page.text
    assert "default-src 'self'" in page.headers["content-security-policy"]
    visitor.post("/logout")
    assert visitor.get("/config").status_code == 401


def test_a_long_token_fits_into_a_cookie_or_is_refused_in_words(locked: Any) -> None:
    """Browsers drop a cookie of more than 4,096 bytes, and the visitor would sign in for ever."""
    url, _ = locked
    kept = visitors.Visitors(settings.Settings(secret=SecretStr("x")))
    token = base64.urlsafe_b64encode(random.Random(1).randbytes(2850)).decode()
    sealed = kept.sealed(token)
    assert len(visitors.COOKIE) + len(sealed) <= visitors.LONGEST_COOKIE < 4097
    headers = [(b"cookie", f"{visitors.COOKIE}={sealed}".encode())]
    assert kept.key(Request({"type": "http", "headers": headers})) == token

    printable = "".join(map(chr, range(33, 127)))
    long = "".join(random.Random(1).choices(printable, k=visitors.LONGEST_KEY))
    answer = httpx.post(f"{url}/login", data={"key": long})
    assert (answer.status_code, "set-cookie" in answer.headers) == (413, False)
    assert "too long for a browser to keep" in answer.text


def test_a_forged_cookie_lets_nobody_in(locked: Any) -> None:
    for value in ("x", "gAAAAA" + "A" * 100, "x" * 50_000):
        assert httpx.get(f"{locked[0]}/config", cookies={"loraline-key": value}).status_code == 401


def test_no_file_of_the_machine_is_served(locked: Any) -> None:
    url, (alice, _) = locked
    visitor = signed_in(url, alice)
    for path in ("/etc/passwd", str(FOLDER / "app.py"), "../../etc/passwd", "http://192.0.2.1/x"):
        assert visitor.get(f"/gradio_api/file={path}").status_code in (403, 404), path


def test_a_visitor_who_tries_addresses_sees_no_file_of_another(locked: Any) -> None:
    url, (alice, bob) = locked
    content = b"what only alice has"
    sent = signed_in(url, alice).post("/gradio_api/upload", files={"files": ("a.txt", content)})
    (path,) = sent.json()
    # The folder's name has 256 bits that depend on the content.
    assert len(Path(path).parent.name) >= 64
    visitor = signed_in(url, bob)
    folder = Path(path).parent
    for guess in (
        folder.parent,
        folder.parent / "a.txt",
        folder.parent / "*" / "a.txt",
        folder.with_name("0" * 64) / "a.txt",
        folder.with_name("..") / folder.parent.name / "a.txt",
    ):
        for name in (f"/gradio_api/file={guess}", f"/file={guess}"):
            answer = visitor.get(name)
            assert content not in answer.content, guess
            assert answer.status_code in (403, 404), guess


def test_a_gateway_that_is_down_is_said(open_page: Any) -> None:
    with open_page("http://127.0.0.1:9") as url:
        answer = httpx.get(url)
        assert answer.status_code == 503
        assert "does not answer" in answer.text
        assert httpx.get(f"{url}/health").status_code == 200


# --- what it is made of


def words_of_the_page() -> set[str]:
    result = set()
    for path in FOLDER.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
                name = getattr(node.func, "id", getattr(node.func, "attr", ""))
                if name in ("_", "text") and isinstance(node.args[0].value, str):
                    result.add(node.args[0].value)
    return result


def test_each_language_has_every_word_and_no_other() -> None:
    german = yaml.safe_load((FOLDER / "de.yaml").read_text())
    names = {"As it was trained", "Free question"}
    assert set(german) == words_of_the_page() | names
    assert set(texts.NAMES) == set(texts.PATHS)


def test_gradio_is_pinned_exactly_where_it_is_installed() -> None:
    import tomllib

    extra = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pin = next(p for p in extra["optional-dependencies"]["ui"] if p.startswith("gradio"))
    assert pin in (ROOT / "constraints.txt").read_text().splitlines()


def test_settings_are_read_or_refused_with_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UI_GATEWAY", "http://gateway:8080")
    assert settings.read().gateway == "http://gateway:8080"
    monkeypatch.setenv("UI_GATEWAY", "gateway")
    with pytest.raises(settings.BadSetting, match="UI_GATEWAY"):
        settings.read()
    monkeypatch.delenv("UI_GATEWAY")
    monkeypatch.setenv("UI_GATEWAI", "x")
    with pytest.raises(settings.BadSetting, match="UI_GATEWAI is not a setting"):
        settings.read()


def test_a_service_of_the_pages_name_is_no_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SERVICE_HOST", "SERVICE_PORT", "SERVICE_PORT_HTTP", "PORT_7860_TCP_ADDR"):
        monkeypatch.setenv(f"UI_{name}", "10.0.0.1")
    monkeypatch.setenv("UI_PORT", "tcp://10.0.0.1:7861")
    assert settings.read().port == 7860


def test_help_answers_without_gradio() -> None:
    code = (
        "import sys; from gateway.ui.__main__ import ui\n"
        "try: ui(['--help'])\nexcept SystemExit: pass\n"
        "assert 'gradio' not in sys.modules and 'pydantic' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, cwd=ROOT)


def test_a_picture_may_be_a_file_in_memory() -> None:
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "PNG")
    assert pictures.as_uri(Image.open(file)).startswith("data:image/png;base64,")


def test_files_that_another_visitor_s_download_removed_stop_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Downloads of several visitors are written in several threads."""
    with contextlib.closing(downloads.Downloads()) as kept:
        first = kept.write("a.csv", b"1")
        monkeypatch.setattr(Path, "glob", lambda *_: iter([first, first]))
        now = time.time()
        monkeypatch.setattr(downloads.time, "time", lambda: now + downloads.KEPT_S + 60)
        assert kept.write("b.csv", b"2").read_bytes() == b"2"
        assert not first.parent.exists()


def test_files_to_take_home_are_removed_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = downloads.Downloads()
    first = kept.write("a.csv", b"1")
    now = time.time()
    monkeypatch.setattr(downloads.time, "time", lambda: now + downloads.KEPT_S + 60)
    second = kept.write("a.csv", b"2")

    assert not first.parent.exists()
    assert second.read_bytes() == b"2"
    kept.close()
    assert not second.exists()
