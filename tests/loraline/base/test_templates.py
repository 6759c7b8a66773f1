"""What a base's own chat template may be, and what is said where it cannot be used."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from made_data import prefixing_base

from loraline.base import templates
from loraline.base.encoding import Encoder
from loraline.errors import UserError
from loraline.records import Record, from_prompt

PLAIN = "{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}"
TODAY = '{% if strftime_now is defined %}{{ strftime_now("%d %b %Y") }}{% endif %}'


def named(folder: Path, templates_of_the_base: list[dict[str, str]]) -> Path:
    prefixing_base(folder, PLAIN)
    (folder / "chat_template.jinja").unlink()
    config = folder / "tokenizer_config.json"
    settings = json.loads(config.read_text()) | {"chat_template": templates_of_the_base}
    config.write_text(json.dumps(settings))
    return folder


def test_of_several_templates_the_default_one_counts(tmp_path: Path) -> None:
    two = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": PLAIN}]
    encoder = Encoder(named(tmp_path, two), "text")
    assert encoder.chat_template == PLAIN
    assert encoder.encode(from_prompt("{question}", "One?", "a")).answer


def test_several_templates_without_a_default_one_are_refused_by_name(tmp_path: Path) -> None:
    two = [{"name": "tool_use", "template": "tools"}, {"name": "rag", "template": PLAIN}]
    with pytest.raises(UserError, match="named 'tool_use', 'rag' and none named 'default'"):
        Encoder(named(tmp_path, two), "text")


def test_todays_date_is_pinned(tmp_path: Path) -> None:
    encoder = Encoder(prefixing_base(tmp_path, TODAY + PLAIN), "text")
    assert "26 Jul 2024" in encoder.chat_template and "strftime_now(" not in encoder.chat_template
    row = encoder.encode(from_prompt("{question}", "One?", "a"))
    assert "26 Jul 2024" in encoder.tokenizer.decode(row.prompt)
    assert templates.pinned(encoder.chat_template) == encoder.chat_template


@pytest.mark.parametrize(
    "template",
    ["{% set now = strftime_now %}{{ now('%d') }}", "{{ strftime_now(format) }}"],
)
def test_a_date_that_cannot_be_pinned_is_refused(template: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"prints today's date .* write a fixed date into it"):
        Encoder(prefixing_base(tmp_path, template + PLAIN), "text")


NO_SYSTEM = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('no system turn') }}{% endif %}"
)


def encoded(encoder: Encoder, record: Record) -> Any:
    return encoder.encode(record)


def counted(encoder: Encoder, record: Record) -> Any:
    return encoder.render(record)


@pytest.mark.parametrize("render", [encoded, counted])
def test_a_template_that_refuses_a_turn_ends_in_a_sentence(
    render: Callable[[Encoder, Record], Any], tmp_path: Path
) -> None:
    encoder = Encoder(prefixing_base(tmp_path, NO_SYSTEM + PLAIN), "text")
    record = Record((("system", "s"), ("user", "q"), ("assistant", "a")))
    message = r"chat template refuses a conversation of the turns system, user: no system turn"
    with pytest.raises(UserError, match=message):
        render(encoder, record)
