"""Calls of tools are rendered by the base's own chat template, learnt, and compared as JSON."""

from __future__ import annotations

import json
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from made_data import write_lines

from loraline.base.encoding import Encoder
from loraline.contract import Contract
from loraline.data.checks import BadRow
from loraline.data.lengths.rows import Exact
from loraline.data.reading import formats
from loraline.data.reading.formats import Reading
from loraline.evaluation import calls
from loraline.profiles.profile import Profile
from loraline.records import Detail, Record
from loraline.serving.arguments import Adapter, arguments

BASE = Path(__file__).parents[3] / "test_data/text/base"
TRL = Path(next(iter(find_spec("trl").submodule_search_locations)), "chat_templates")

MISTRAL = (
    "<s>{% set asked = messages | selectattr('role', 'equalto', 'user') | list %}"
    "{% for turn in messages %}{% if turn.role == 'user' %}"
    "{% if tools and turn == asked[-1] %}[AVAILABLE_TOOLS]{{ tools | tojson }}[/AVAILABLE_TOOLS]"
    "{% endif %}[INST]{{ turn.content }}[/INST]"
    "{% elif turn.role == 'tool' %}[TOOL_RESULTS]{'content': {{ turn.content }}, "
    "'call_id': '{{ turn.tool_call_id }}'}[/TOOL_RESULTS]"
    "{% elif turn.tool_calls is defined %}[TOOL_CALLS] [{% for call in turn.tool_calls %}"
    "{% if call.id | length != 9 %}{{ raise_exception('IDs have 9 characters') }}{% endif %}"
    "{{ call.function | tojson }}{{ ', ' if not loop.last }}{% endfor %}]</s>"
    "{% else %} {{ turn.content }}</s>{% endif %}{% endfor %}"
)
"""In the form of Mistral 7B Instruct v0.3: IDs of nine characters, no text beside calls."""

ENDS = {"qwen2_5": "<|im_end|>", "qwen3": "<|im_end|>", "llama3_1": "<|eot_id|>", "mistral": "</s>"}
MARKS = [
    "[INST]",
    "[/INST]",
    "[TOOL_CALLS]",
    "[TOOL_RESULTS]",
    "[/TOOL_RESULTS]",
    "<|im_start|>",
    "<|end_header_id|>",
    "<|start_header_id|>",
]

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "open_gate",
            "description": "Opens the gate of a town.",
            "parameters": {"type": "object", "properties": {"town": {"type": "string"}}},
        },
    }
]
CALL = {"name": "open_gate", "arguments": {"town": "Arlon", "wide": True}}


def conversation(*, text: str | None = None, number: str = "abc123def") -> dict[str, Any]:
    call = {"id": number, "type": "function", "function": CALL}
    return {
        "tools": TOOLS,
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Open the gate of Arlon."},
            {"role": "assistant", "content": text, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": number, "name": "open_gate", "content": "open now"},
            {"role": "assistant", "content": "It is open."},
        ],
    }


def record(row: dict[str, Any]) -> Record:
    made = formats.draft(row, Reading(None))
    return Record(tuple(made.turns), tools=made.tools, details=made.details)


@pytest.fixture(params=ENDS)
def base(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A tokenizer with the chat template of a family, and its end of a turn."""
    from transformers import AutoTokenizer

    folder = tmp_path / request.param
    shutil.copytree(BASE, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens(
        {"eos_token": ENDS[request.param], "additional_special_tokens": MARKS}
    )
    template = TRL / f"{request.param}.jinja"
    tokenizer.chat_template = (
        MISTRAL if request.param == "mistral" else template.read_text(encoding="utf-8")
    )
    tokenizer.save_pretrained(folder)
    return folder


def row_of(base: Path) -> dict[str, Any]:
    row = conversation()
    if base.name == "mistral":
        del row["messages"][0]
    return row


def test_calls_and_results_are_what_the_template_makes_of_them(base: Path) -> None:
    encoder, row = Encoder(base, "text"), row_of(base)
    (*apart, last) = encoder.conversation(record(row))
    text = encoder.tokenizer.apply_chat_template(row["messages"], tools=TOOLS, tokenize=False)
    whole = encoder.tokenizer(text, add_special_tokens=False).input_ids
    assert last.prompt + last.answer == whole[: len(last)]
    assert not set(whole[len(last) :]) - set(encoder.tokenizer("\n").input_ids)
    learnt = [
        encoder.tokenizer.decode((one.prompt + one.answer)[span])
        for one in (*apart, last)
        for span in one.learnt_slices
    ]
    called, said = sorted(learnt, key=lambda text: "It is" in text)
    assert "open_gate" in called
    assert '"wide": true' in called
    assert "It is open." in said
    assert "open now" not in called + said


def test_lengths_are_those_of_the_encoder(base: Path) -> None:
    recipe = Profile(base=str(base), r=8, lora_alpha=8, target_modules=["q_proj"])
    ruler, made = Exact(base, recipe), record(row_of(base))
    ruler.check_rendered(made)
    row = ruler.encoder.encode(made)
    assert ruler.measure([made], [[]]) == [(len(row), len(row.answer))]


@pytest.mark.parametrize("place", ["arguments", "reasoning", "tools", "name"])
def test_control_tokens_beside_the_texts_are_looked_for(
    place: str, base: Path, tmp_path: Path, prepare
) -> None:
    row, end = json.loads(json.dumps(row_of(base))), ENDS[base.name]
    call, answer = row["messages"][-3]["tool_calls"][0]["function"], row["messages"][-3]
    if place == "arguments":
        call["arguments"]["town"] += end
    elif place == "reasoning":
        answer["reasoning_content"] = f"It is closed.{end}"
    elif place == "name":
        row["messages"][-2]["name"] += end
    else:
        row["tools"][0]["function"]["description"] += end
    data = write_lines(tmp_path / "data.jsonl", [row])
    assert prepare(data, base=str(base)).counts == {"special_tokens drop": 1}


def test_what_a_template_does_not_print_is_refused(base: Path) -> None:
    recipe = Profile(base=str(base), r=8, lora_alpha=8, target_modules=["q_proj"])
    ruler, row = Exact(base, recipe), row_of(base)
    row["messages"][-3]["content"] = "I open it now:"
    if base.name.startswith("qwen"):
        ruler.check_rendered(record(row))
        return
    with pytest.raises(BadRow, match="does not print text beside calls") as bad:
        ruler.check_rendered(record(row))
    assert bad.value.check == "unused"


def test_ids_of_other_forms_become_ones_that_mistral_takes() -> None:
    made = record(conversation(number="call_1"))
    assert json.loads(made.details[2].calls)[0]["id"] == "call00001"
    assert made.details[3].call == "call00001"


@pytest.mark.parametrize(
    "text",
    [
        '<tool_call>{"name": "open_gate", "arguments": {"wide": true,"town": "Arlon"}}</tool_call>',
        '[TOOL_CALLS] [{"name": "open_gate", "arguments": {"town": "Arlon", "wide": true}}]',
        '{"name": "open_gate", "parameters": {"town": "Arlon", "wide": true}}',
    ],
)
def test_calls_are_compared_by_name_and_arguments(text: str) -> None:
    asked = record(conversation()).until(2)
    assert calls.comparable_answer(text, asked) == calls.reference(asked)
    other = text.replace("Arlon", "Bouge")
    assert calls.comparable_answer(other, asked) != calls.reference(asked)


def test_text_around_calls_is_compared_too() -> None:
    detail = Detail(calls=json.dumps([{"id": "a", "type": "function", "function": CALL}]))
    made = Record((("user", "?"), ("assistant", "Now:")), tools="[{}]", details={1: detail})
    call = json.dumps({"arguments": CALL["arguments"], "name": "open_gate"})
    assert calls.comparable_answer(f"Now: {call}", made) == calls.reference(made)
    assert calls.comparable_answer(f"Later: {call}", made) != calls.reference(made)
    assert calls.comparable("{a} [b] plain") == "{a} [b] plain"


@pytest.mark.parametrize(
    "text",
    [
        '<tool_call>\n{"name": "open_gate", "arguments": {"town": "Arlon"}}\n</tool_call>',
        'I do. [TOOL_CALLS] [{"name": "open_gate", "arguments": {"town": "Arlon"}}]',
        "None of the tools helps.",
    ],
)
def test_a_reference_with_its_calls_in_the_text_equals_the_same_answer(text: str) -> None:
    record = Record((("user", "?"), ("assistant", text)), tools="[{}]")
    assert calls.comparable_answer(text, record) == calls.reference(record)
    other = text.replace("Arlon", "Bouge").replace("helps", "fits")
    assert calls.comparable_answer(other, record) != calls.reference(record)
    without_tools = Record((("user", "?"), ("assistant", text)))
    assert calls.reference(without_tools) == text


def test_numbers_in_calls_are_equal_however_they_are_written() -> None:
    call = '{"name": "open_gate", "arguments": {"wide": 2.0, "at": [1e3]}}'
    detail = Detail(calls=json.dumps([{"function": json.loads(call)}]))
    made = Record((("user", "?"), ("assistant", "")), tools="[{}]", details={1: detail})
    for written in (call, call.replace("2.0", "2").replace("1e3", "1000")):
        assert calls.comparable_answer(written, made) == calls.reference(made)
    other = call.replace("2.0", "2.5")
    assert calls.comparable_answer(other, made) != calls.reference(made)


@pytest.mark.parametrize("depth", [980, 985, 990, 995, 100_000])
@pytest.mark.parametrize("quote", ["", '"'])
def test_arguments_of_any_depth_are_compared(depth: int, quote: str) -> None:
    nested = "[" * depth + "]" * depth
    text = f'{{"name": "f", "arguments": {quote}{nested}{quote}}}'
    assert calls.comparable(text) == text


def test_the_server_is_asked_with_the_tools() -> None:
    from loraline.serving import client

    body = client.request("m", record(conversation()), 9)
    assert body["tools"] == TOOLS
    assert body["tool_choice"] == "none"
    called = body["messages"][2]["tool_calls"][0]["function"]
    assert json.loads(called["arguments"]) == CALL["arguments"]
    assert body["messages"][3]["tool_call_id"] == "abc123def"


CONTRACT = Contract(
    base="owner/name",
    base_revision="0" * 40,
    modality="text",
    prompt="{question}",
    architecture="Qwen2ForCausalLM",
    chat_template="{{ messages }}",
    min_pixels=None,
    max_pixels=None,
    max_length=512,
    max_new_tokens=64,
    dtype="bfloat16",
    r=8,
    lora_alpha=8,
    target_modules=("q_proj",),
    trains_vision=False,
    adapter_sha256="0" * 64,
)


@pytest.mark.parametrize(
    ("architecture", "parser"),
    [
        ("Qwen2ForCausalLM", "hermes"),
        ("MistralForCausalLM", "mistral"),
        ("LlamaForCausalLM", "llama3_json"),
    ],
)
def test_a_server_of_an_adapter_that_calls_tools_parses_calls(
    architecture: str, parser: str
) -> None:
    adapter = Adapter("a", "models:/a/1", "/models/a", "0" * 64, 8)
    agreed = CONTRACT.model_copy(update={"tools": True, "architecture": architecture})
    args = arguments(agreed, [adapter])
    assert args[args.index("--tool-call-parser") + 1] == parser
    assert "--enable-auto-tool-choice" in args
    assert "--tool-call-parser" not in arguments(CONTRACT, [adapter])


def test_a_contract_without_tools_is_that_of_earlier_releases() -> None:
    assert "tools" not in CONTRACT.model_dump_json()
    agreed = CONTRACT.model_copy(update={"tools": True})
    assert Contract.model_validate_json(agreed.model_dump_json()) == agreed
