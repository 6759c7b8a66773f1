"""The page that a reviewer reads, also when data and model write what breaks pages."""

from __future__ import annotations

import io
import math
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from loraline.answering.hf import Answer
from loraline.evaluation import conclusion, measurement, report
from loraline.evaluation.contact_sheet import contact_sheet
from loraline.evaluation.measurement import Comparison, Interval, Measurement
from loraline.evaluation.report import Evaluation
from loraline.records import Record, from_prompt

HOSTILE = (
    "</dd></article><script>fetch('http://127.0.0.1:9/x')</script>",
    "<img src=http://127.0.0.1:9/y onerror=alert(1)>",
    "{{ 7 * 7 }} {% include '/etc/passwd' %}",
    "\"'><svg onload=alert(1)>",
    "]]> <!-- --> &lt;b&gt; \x00 \u202e $\\frac{$",
)


def picture(shade: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (60, 20), (shade, shade, 255)).save(file, "PNG")
    return file.getvalue()


def evaluation_of(
    texts: dict[str, list[str]], *, images: bool = False, champion: bool = False
) -> Evaluation:
    """An evaluation of these references and answers."""
    held_out = [
        from_prompt("{question}", f"about {i}", text, picture(10 * i) if images else None)
        for i, text in enumerate(texts["reference"])
    ]

    def answered(comparison: list[str], nll: float) -> Measurement:
        answers = [Answer(text, [1], truncated=False) for text in comparison]
        return Measurement(
            answers, [nll * (i + 1) for i in range(len(comparison))], [4] * len(comparison)
        )

    measured = {"base": answered(texts["base"], 4.0), "tuned": answered(texts["tuned"], 1.0)}
    if champion:
        measured["champion"] = answered(texts["base"], 2.0)
    comparison = measurement.compare(
        {name: measurement.scores(m, held_out, "prose") for name, m in measured.items()}
    )
    return Evaluation(
        title="lora <of> today",
        facts={"base": "tiny & small"},
        held_out=held_out,
        measured=measured,
        comparison=comparison,
        answer_format="prose",
        curves={"training": [(5, 2.0), (10, 1.0)], "validation": [(10, 1.2)]},
        profile="r: 8\n",
        prompt="Answer. {question}",
        costs={"training": "3 s"},
    )


def ordinary(rows: int = 12, **options: bool) -> Evaluation:
    wanted = [f"the answer to number {i}" for i in range(rows)]
    tuned = [text if i % 3 else text.replace("number", "numer") for i, text in enumerate(wanted)]
    return evaluation_of({"reference": wanted, "base": ["no"] * rows, "tuned": tuned}, **options)


def hostile(**options: bool) -> Evaluation:
    texts = list(HOSTILE)
    return evaluation_of(
        {"reference": texts, "base": texts[::-1], "tuned": ["", *texts[1:]]}, **options
    )


def test_the_page_shows_each_model_its_intervals_and_gains() -> None:
    page = report.render(ordinary(champion=True))
    for message in (
        "gain over base",
        "gain over champion",
        "levenshtein",
        "perplexity",
        "r: 8",
        "3 s",
    ):
        assert message in page
    assert "lora &lt;of&gt; today" in page and "tiny &amp; small" in page
    assert len(re.findall(r"<article", page)) == 16


def test_the_page_begins_with_what_came_out() -> None:
    evaluation = ordinary(champion=True)
    said = conclusion.sentences(evaluation.comparison, evaluation.headline)
    assert [sentence.split(",")[0] for sentence in said] == [
        "Against the base",
        "Against the champion",
    ]
    page = report.render(evaluation)
    assert page.index(said[0]) < page.index(said[1]) < page.index("held-out rows")


def test_a_gain_is_sure_where_its_interval_does_not_hold_zero() -> None:
    gains = {
        "bleu": Interval(1.0, 0.5, 1.5),
        "levenshtein": Interval(0.1, 0.05, 0.2),
        "exact_match": Interval(0.0, -0.1, 0.1),
        "perplexity": Interval(-1.0, -1.5, -0.5),
    }
    (said,) = conclusion.sentences(Comparison({}, {"base": gains}), tuple(gains))
    assert said == (
        "Against the base, tuned is surely better in bleu and levenshtein, surely worse in "
        "perplexity, neither for sure in exact match."
    )


def test_the_worst_row_comes_first() -> None:
    page = report.render(ordinary())
    worst = page[page.index("Worst rows") : page.index("Best rows")]
    assert "row 9, distance" in worst.split("</article>")[0]


def test_images_are_inside_the_page() -> None:
    page = report.render(ordinary(images=True))
    assert len(re.findall(r'<img src="data:image/png;base64,', page)) == 16
    assert not re.findall(r'(?:src|href)="(?!data:)', page)


def test_a_row_shows_what_was_asked_and_all_its_images() -> None:
    evaluation = ordinary(images=True)
    turns = ("user", "<image>which?"), ("assistant", "this"), ("user", "<image>and now?")
    last = ("assistant", evaluation.held_out[9].answer)
    several = Record((*turns, last), (picture(1), picture(2)))
    rows = [several if i == 9 else row for i, row in enumerate(evaluation.held_out)]
    page = report.render(replace(evaluation, held_out=rows))
    worst = page[page.index("Worst rows") :].split("</article>")[0]
    assert "[user] &lt;image&gt;which?\n[assistant] this\n[user] &lt;image&gt;and now?" in worst
    assert worst.count("<img src=") == 2


@pytest.mark.parametrize("alike", [True, False])
def test_a_question_that_all_images_share_is_not_repeated(alike: bool) -> None:
    evaluation = ordinary(images=True)
    rows = [
        from_prompt("read {question}", "it" if alike else str(i), row.answer, row.images[0])
        for i, row in enumerate(evaluation.held_out)
    ]
    page = report.render(replace(evaluation, held_out=rows))
    assert ("<dt>question</dt>" in page) is not alike


def test_hostile_text_stays_text() -> None:
    page = report.render(hostile())
    assert "<script" not in page and "<img" not in page and "<svg onload" not in page
    assert "49" not in re.findall(r"<dd>([^<]*)</dd>", page)
    assert "&lt;script&gt;" in page


@given(st.text(max_size=40), st.text(max_size=40))
def test_the_difference_contains_both_texts_and_no_other_markup(one: str, other: str) -> None:
    import html

    marked = report.difference(one, other)
    assert set(re.findall(r"<[^>]*>", marked)) <= {"<del>", "</del>", "<ins>", "</ins>"}
    without = re.sub(r"<ins>.*?</ins>|</?del>", "", marked, flags=re.DOTALL)
    assert html.unescape(without) == html.unescape(html.escape(one))
    without = re.sub(r"<del>.*?</del>|</?ins>", "", marked, flags=re.DOTALL)
    assert html.unescape(without) == html.unescape(html.escape(other))


def test_each_answer_is_of_one_kind() -> None:
    evaluation = evaluation_of(
        {
            "reference": ["yes it is so today", "yes it is so today", "no", "a", "b"],
            "base": ["", "", "", "", ""],
            "tuned": ["yes it is so today", "yes it is so todaz", "x", "", "b"],
        }
    )
    comparison = report.answer_outcomes(evaluation)
    assert list(comparison.values()) == [2, 1, 1, 0, 1, 0]


def test_frequent_errors_are_counted_by_what_was_written_for_what() -> None:
    evaluation = evaluation_of(
        {"reference": ["a 2", "b 2"], "base": ["", ""], "tuned": ["a 3", "b 3"]}
    )
    assert report.confusions(evaluation) == [("2", "3", 2)]


def test_half_a_sign_in_a_json_answer_is_shown_as_a_replacement() -> None:
    half = r'{"name": "Ann \ud83d"}'
    texts = {"reference": ['{"name": "Ann"}'] * 2, "base": [half] * 2, "tuned": [half] * 2}
    evaluation = replace(evaluation_of(texts, images=True), answer_format="json")
    assert "\ufffd" in report.render(evaluation).encode().decode()
    assert contact_sheet(evaluation) is not None


def test_a_failed_answer_and_infinite_loss_are_shown_as_such() -> None:
    evaluation = ordinary(4)
    answers = [measurement.FAILED, *evaluation.measured["tuned"].answers[1:]]
    failed = Measurement(answers, [math.inf, 1.0, 1.0, 1.0], [1, 4, 4, 4])
    measured = {"base": failed, "tuned": failed}
    comparison = measurement.compare(
        {m: measurement.scores(f, evaluation.held_out, "prose") for m, f in measured.items()}
    )
    from dataclasses import replace

    page = report.render(replace(evaluation, measured=measured, comparison=comparison))
    assert "failed: the server would refuse this row" in page
    assert "∞" in page and "nan" not in page


def test_what_is_no_picture_is_left_out() -> None:
    assert report.data_url(b"<svg onload=alert(1)>") == ""


def test_the_contact_sheet_has_the_images_and_text_has_none(tmp_path: Path) -> None:
    sheet = contact_sheet(hostile(images=True))
    sheet.savefig(tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as drawn:
        assert drawn.width > 1000
    assert contact_sheet(ordinary()) is None


def test_the_model_card_names_numbers_prompt_and_cost() -> None:
    card = report.model_card(ordinary(), "#/the/page")
    assert "[The report, with every row](#/the/page)" in card.splitlines()[2]
    assert "| metric | base | tuned | gain over base |" in card
    assert "| perplexity | " in card
    assert "    Answer. {question}" in card
    assert "- training: 3 s" in card


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ordinary", "hostile"])
def test_a_browser_opens_it_without_an_error_or_a_request(kind: str, tmp_path: Path) -> None:
    sync_api = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium on this machine")
    evaluation = {"ordinary": ordinary, "hostile": hostile}[kind](images=True, champion=True)
    page_file = tmp_path / "report.html"
    page_file.write_text(report.render(evaluation), encoding="utf-8")
    sentence: list[str] = []
    asked: list[str] = []
    with sync_api.sync_playwright() as browsers:
        browser = browsers.chromium.launch(
            executable_path=chromium, args=["--no-sandbox", "--disable-background-networking"]
        )
        page = browser.new_page()
        page.on("console", lambda message: sentence.append(message.text))
        page.on("pageerror", lambda error: sentence.append(str(error)))
        page.on("dialog", lambda dialog: sentence.append(dialog.message))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(page_file.as_uri())
        page.wait_for_timeout(300)
        shown = page.inner_text("body")
        broken = page.evaluate("[...document.images].filter(i => !i.naturalWidth).length")
        wide = page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
        browser.close()
    assert sentence == []
    assert [url for url in asked if not url.startswith("data:")] == [page_file.as_uri()]
    assert (broken, wide <= 0) == (0, True)
    if kind == "hostile":
        for text in HOSTILE[:4]:
            assert " ".join(text.split()) in " ".join(shown.split())


@pytest.mark.slow
def test_the_documentations_picture_is_drawn_by_its_script(script, tmp_path: Path) -> None:
    pytest.importorskip("playwright")
    if not (shutil.which("chromium") or shutil.which("google-chrome")):
        pytest.skip("no Chromium on this machine")
    (tmp_path / "report.html").write_text(report.render(ordinary()), encoding="utf-8")
    command = script("docs/screenshot.py").screenshot
    arguments = [str(tmp_path / "report.html"), str(tmp_path / "report.png"), "--height", "300"]
    assert CliRunner().invoke(command, arguments).exit_code == 0
    with Image.open(tmp_path / "report.png") as drawn:
        assert drawn.size == (1200, 300)
        assert len(drawn.convert("L").getcolors(256) or []) > 10
