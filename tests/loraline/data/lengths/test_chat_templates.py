"""Rows are rendered as the tokenizer renders them, whatever the template does with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loraline.base.encoding import DEFAULT_CHAT_TEMPLATE
from loraline.data.lengths.chat_templates import Template
from loraline.errors import UserError
from loraline.records import Record

BASE = Path(__file__).parents[4] / "test_data/text/base"

CHATML = (
    "{% for message in messages %}"
    "{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\\nBe kind.<|im_end|>\\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '</s>' + '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
TRIMMED = (
    "{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'].strip() %}"
    "{% set turns = messages[1:] %}{% else %}{% set system = '' %}{% set turns = messages %}"
    "{% endif %}{% for turn in turns %}{% set content = turn.content | trim %}"
    "{% if turn.role == 'user' %}{{ '[INST] ' + (system + content if loop.first else content) }}"
    "{{ ' [/INST]' }}{% else %}{{ ' ' ~ (content or '') ~ '</s>' }}{% endif %}{% endfor %}"
)
LOOKING = {
    "in": "{% if 'x' in turn.content %}!{% endif %}",
    "equal": "{% if turn['content'] == 'b' %}!{% endif %}",
    "length": "{{ turn.content | length }}",
    "filter": "{{ turn.content | upper }}",
    "argument": "{{ '%s' | format(turn.content) }}",
    "index": "{{ turn.content[0] }}",
    "method": "{{ turn.content.upper() }}",
    "get": "{{ turn.get('content').upper() }}",
    "whole turn": "{{ turn | tojson }}",
    "key": "{% set key = 'content' %}{{ turn[key] | upper }}",
    "list": "{% for one in [turn.content] %}{{ one | upper }}{% endfor %}",
    "alias": "{% set one = turn.content %}{% set two = one %}{{ two | upper }}",
    "set later": "{{ ahead | upper }}{% set ahead = turn.content %}",
    "neighbour": "{% if loop.previtem %}{{ loop.previtem.content | upper }}{% endif %}",
    "namespace": "{% set ns = namespace(a='') %}{% set ns.a = turn.content %}{{ ns.a | upper }}",
    "macro": "{% macro shout(a) %}{{ a | upper }}{% endmacro %}{{ shout(turn.content) }}",
    "block": "{% set a %}{{ turn.content }}{% endset %}{{ a | upper }}",
    "selected": "{{ (messages | selectattr('role', 'eq', 'user') | list)[0].content | upper }}",
}
"""Templates that do more with a content than print it, by how."""

TURN = "{% for turn in messages %}%s{{ turn.content }}{% if turn.role == 'assistant' %}</s>"
texts = st.text(st.sampled_from(" \nxyéB\0%{}<>s/"), max_size=8)


def template(source: str) -> tuple[Template, Any]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(BASE)
    tokenizer.chat_template = source
    return Template(source, tokenizer), tokenizer


def looking(clause: str) -> str:
    return TURN.replace("%s", clause) + "{% endif %}{% endfor %}"


@pytest.mark.parametrize("source", [DEFAULT_CHAT_TEMPLATE, CHATML, TRIMMED])
def test_a_template_that_prints_contents_is_run_once(source: str) -> None:
    made, _ = template(source)
    assert made.prints
    for text in ("a", "b", "c"):
        made.pair(Record((("user", text), ("assistant", text))))
    assert made.frames.cache_info().misses == 1


@pytest.mark.parametrize("how", LOOKING)
def test_a_template_that_looks_at_contents_is_run_for_each_row(how: str) -> None:
    made, _ = template(looking(LOOKING[how]))
    assert not made.prints


@pytest.mark.parametrize("source", [DEFAULT_CHAT_TEMPLATE, CHATML, TRIMMED, looking("")])
def test_rows_are_rendered_as_the_tokenizer_does(source: str) -> None:
    made, tokenizer = template(source)

    @given(st.lists(st.tuples(texts, texts), min_size=1, max_size=3), st.none() | texts)
    def same(turns: list[tuple[str, str]], system: str | None) -> None:
        said = [turn for q, a in turns for turn in (("user", q), ("assistant", a))]
        if system is not None and source in (CHATML, TRIMMED):
            said.insert(0, ("system", system))
        messages = [{"role": role, "content": text} for role, text in said]
        prompt, tail = made.pair(Record(tuple(said)))
        rendered = tokenizer.apply_chat_template(
            messages[:-1], tokenize=False, add_generation_prompt=True
        )
        assert prompt == rendered
        assert prompt + tail == tokenizer.apply_chat_template(messages, tokenize=False)

    same()


def test_a_template_that_forgets_the_prompt_is_refused() -> None:
    made, _ = template("{{ messages[-1]['content'] }}")
    with pytest.raises(UserError, match="must render the answer right after the prompt"):
        made.pair(Record((("user", "a"), ("assistant", "b"))))
