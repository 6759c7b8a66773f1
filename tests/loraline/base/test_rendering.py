"""Rows rendered by one run of a chat template are those that it renders one at a time."""

from __future__ import annotations

import json
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import pytest

from loraline.base.encoding import DEFAULT_CHAT_TEMPLATE, Encoder
from loraline.base.rendering import BATCH, MARK, Renderer, looped_template
from loraline.errors import UserError
from loraline.records import IMAGE, Detail, Record

BASE = Path(__file__).parents[3] / "test_data/text/base"
TRL = Path(str(distribution("trl").locate_file("trl/chat_templates")))

TURN = "{{ m.role }}: {{ m.content }}{{ eos_token }}"
TURNS = "{% for m in messages %}" + TURN + "{% endfor %}"

WRITTEN = {
    "default": DEFAULT_CHAT_TEMPLATE,
    "a newline first": "\n" + TURNS,
    "two newlines last": TURNS + "\n\n",
    "a tag that cuts what is before it": "{%- for m in messages -%} \n" + TURN + "{%- endfor -%}",
    "spaces before a tag": "  {% for m in messages %}\n    {% if true %}\n" + TURN + "{% endif %}\n"
    "  {% endfor %}\n",
    "a name set from the row": "{% if messages[0].role == 'system' %}{% set first = 1 %}"
    "{% set messages = messages[1:] %}{% endif %}{{ first is defined }}" + TURNS,
    "a name that is set after it is asked for": "{{ before is defined }}{% set before = 1 %}"
    + TURNS,
    "a namespace and a macro": "{% set ns = namespace(n=0) %}{% macro say(m) %}{{ ns.n }}"
    "{{ tools is none }}" + TURN + "{% endmacro %}{% for m in messages %}{% set ns.n = ns.n + 1 %}"
    "{{ say(m) }}{% endfor %}",
    "a loop in a loop": "{% for m in messages %}{{ loop.index }}{% for c in m.content %}"
    "{% if loop.index > 3 %}{% break %}{% endif %}{{ c }}{% endfor %}{{ eos_token }}{% endfor %}",
    "a loop of its own alone": "{{ loop is defined }}" + TURNS,
    "contents looked at": "{% for m in messages %}{% if 'a' in m.content %}A{% endif %}"
    + TURN
    + "{% endfor %}",
    "windows' line ends": "{% for m in messages %}\r\n" + TURN + "{% endfor %}\r\n",
}

TOOL = {"type": "function", "function": {"name": "open_gate", "parameters": {"type": "object"}}}
CALL = {"id": "abc123def", "type": "function", "function": {"name": "open_gate", "arguments": {}}}

ROWS = [
    Record((("user", "a"), ("assistant", "b"))),
    Record((("system", "s"), ("user", " \n a  "), ("assistant", "\n  b \n"))),
    Record((("user", "{{ eos_token }}{% endfor %}"), ("assistant", "{# b #}"))),
    Record((("user", "a"), ("assistant", ""), ("user", "ä\r\n"), ("assistant", "<b>&amp;</b>"))),
    Record((("user", f"a{IMAGE}"), ("assistant", "b")), (b"",)),
    Record(
        (("user", "a"), ("assistant", ""), ("tool", "open"), ("assistant", "b")),
        tools=json.dumps([TOOL]),
        details={1: Detail(calls=json.dumps([CALL])), 2: Detail(call="abc123def")},
    ),
    Record((("user", "a"), ("assistant", "b")), details={1: Detail(reasoning="because")}),
]


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return Encoder(BASE, "text")


def apart(encoder: Encoder, rows: list[Record]) -> list[tuple[str, str] | str]:
    """What each row is rendered to by itself, or the sentence that refuses it."""
    made: list[tuple[str, str] | str] = []
    for row in rows:
        try:
            made.append(encoder.render(row))
        except UserError as error:
            made.append(str(error))
    return made


PUBLISHED = sorted(path.name for path in TRL.glob("*.jinja"))


@pytest.mark.parametrize("name", [*WRITTEN, *PUBLISHED])
def test_rows_at_once_are_those_one_at_a_time(
    name: str, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    template = WRITTEN.get(name) or (TRL / name).read_text(encoding="utf-8")
    monkeypatch.setattr(encoder, "chat_template", template)
    expected = apart(encoder, ROWS)
    taken = [row for row, made in zip(ROWS, expected, strict=True) if isinstance(made, tuple)]
    renderer = Renderer(encoder)
    pairs = renderer.render(taken * 2)
    assert pairs == [made for made in expected if isinstance(made, tuple)] * 2
    for row, made in zip(ROWS, expected, strict=True):
        if isinstance(made, str):
            with pytest.raises(UserError) as refused:
                renderer.render([*taken, row])
            assert str(refused.value) == made


def test_many_rows_are_rendered_by_few_runs(
    encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of a usual template; a row by itself is rendered for its order of roles alone."""
    runs: list[Any] = []
    apply = encoder.tokenizer.apply_chat_template

    def counted(*given: Any, **options: Any) -> Any:
        runs.append(options)
        return apply(*given, **options)

    monkeypatch.setattr(encoder.tokenizer, "apply_chat_template", counted)
    rows = [Record((("user", str(n)), ("assistant", "b"))) for n in range(2 * BATCH + 1)]
    renderer = Renderer(encoder)
    assert renderer.render(rows)[-1] == encoder.render(rows[-1])
    assert len(runs) == 2 * 3 + 2 + 2


def test_a_template_that_prints_another_thing_in_the_loop_renders_rows_by_themselves(
    encoder: Encoder,
) -> None:
    renderer = Renderer(encoder)
    renderer.looped = str(renderer.looped).replace("[INST]", "[ASK]")
    assert renderer.render(ROWS[:3]) == apart(encoder, ROWS[:3])
    assert renderer.looped is None


def test_a_text_that_holds_the_mark_is_rendered_by_itself(encoder: Encoder) -> None:
    rows = [Record((("user", f"a{MARK}b"), ("assistant", "b"))), ROWS[0]]
    assert Renderer(encoder).render(rows) == apart(encoder, rows)


@pytest.mark.parametrize(
    "template",
    ["{{ loop.index }}", "{% for m in messages", "{% generation %}a{% endgeneration %}", MARK],
)
def test_a_template_that_means_another_thing_in_a_loop_is_not_put_into_one(template: str) -> None:
    assert looped_template(template) is None
