"""Forms in which data are published, each as one small row of our own words, and what it becomes.

docs/data.md's table is made of them: `python tests/data_forms.py` writes it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parents[1] / "docs" / "data.md"
BEGIN, END = "<!-- forms -->", "<!-- end of forms -->"

Turns = list[tuple[str, str]]

Q, A = "Where is Arlon?", "Near the river."
ASKED: Turns = [("user", Q), ("assistant", A)]
SHOWN: Turns = [("user", f"<image>{Q}"), ("assistant", A)]
BRIEF: Turns = [("system", "Be brief."), *ASKED]

TOOL = {
    "type": "function",
    "function": {
        "name": "open_gate",
        "description": "Opens a gate.",
        "parameters": {"type": "object", "properties": {"town": {"type": "string"}}},
    },
}
CALL = {"name": "open_gate", "arguments": {"town": "Arlon"}}
CALLED = [{"id": "call00001", "type": "function", "function": CALL}]
OPENED: Turns = [("user", "Open it."), ("assistant", ""), ("tool", "open"), ("assistant", "Done.")]


@dataclass(frozen=True)
class Form:
    """One form: who publishes so, a row of it, and the turns that it becomes or its refusal."""

    peer: str
    name: str
    row: Any
    turns: Turns | None = None
    refusal: str = ""
    """Pattern of the refusal, where there are no turns."""

    registry: dict[str, Any] = field(default_factory=dict)
    """What datasets.yaml says of the source."""

    ending: str = ".jsonl"
    vision: bool = False
    calls: list[dict[str, Any]] | None = None
    """Calls of the first answer."""

    learnt: int | None = None
    """Number of answers that are learnt, where it is not all."""


def dialogue(*texts: str, user: str = "user", answer: str = "assistant") -> list[dict[str, str]]:
    return [
        {"role": answer if number % 2 else user, "content": text}
        for number, text in enumerate(texts)
    ]


def shared(*texts: str) -> list[dict[str, str]]:
    return [
        {"from": "gpt" if number % 2 else "human", "value": text}
        for number, text in enumerate(texts)
    ]


def text_form(peer: str, name: str, row: Any, **more: Any) -> Form:
    return Form(peer, name, row, ASKED, **more)


NOT_USED = "would not be used"
PART = {"type": "text", "text": Q}
LARGE = 123456789012345678901234567890

FORMS = [
    # Conversations.
    text_form("OpenAI", "messages", {"messages": dialogue(Q, A)}),
    Form(
        "OpenAI",
        "messages with a developer's turn",
        {"messages": [{"role": "developer", "content": "Be brief."}, *dialogue(Q, A)]},
        BRIEF,
    ),
    text_form(
        "OpenAI",
        "content as parts",
        {"messages": [{"role": "user", "content": [PART]}, dialogue(Q, A)[1]]},
    ),
    text_form(
        "OpenAI",
        "content as parts of Responses",
        {
            "messages": [
                {"role": "user", "content": [{"type": "input_text", "text": Q}]},
                {"role": "assistant", "content": [{"type": "output_text", "text": A}]},
            ]
        },
    ),
    Form(
        "OpenAI",
        "weight 0 of an answer",
        {
            "messages": [
                *dialogue(Q),
                {**dialogue("", "Who knows.")[1], "weight": 0},
                *dialogue("Again?", A),
            ]
        },
        [("user", Q), ("assistant", "Who knows."), ("user", "Again?"), ("assistant", A)],
        learnt=1,
    ),
    Form(
        "OpenAI",
        "tools, tool_calls and tool",
        {
            "tools": [TOOL],
            "messages": [
                *dialogue("Open it."),
                {
                    "role": "assistant",
                    "content": None,
                    "tool_calls": [
                        {
                            "id": "c1",
                            "type": "function",
                            "function": CALL | {"arguments": json.dumps(CALL["arguments"])},
                        }
                    ],
                },
                {"role": "tool", "tool_call_id": "c1", "content": "open"},
                dialogue("", "Done.")[1],
            ],
        },
        OPENED,
        calls=CALLED,
    ),
    Form(
        "OpenAI",
        "functions and function_call",
        {
            "functions": [TOOL["function"]],
            "messages": [
                *dialogue("Open it."),
                {"role": "assistant", "content": None, "function_call": CALL},
                {"role": "function", "name": "open_gate", "content": "open"},
                dialogue("", "Done.")[1],
            ],
        },
        OPENED,
        calls=CALLED,
    ),
    Form(
        "OpenAI",
        "refusal beside no content",
        {
            "messages": [
                *dialogue(Q),
                {"role": "assistant", "content": None, "refusal": "I will not."},
            ]
        },
        refusal=NOT_USED,
    ),
    Form(
        "OpenAI",
        "a part that is a sound",
        {
            "messages": [
                {"role": "user", "content": [PART, {"type": "input_audio"}]},
                dialogue(Q, A)[1],
            ]
        },
        refusal="no base here hears",
    ),
    Form(
        "OpenAI",
        "reasoning_content",
        {
            "messages": [
                *dialogue(Q),
                {**dialogue(Q, A)[1], "reasoning_content": "The map shows it."},
            ]
        },
        ASKED,
    ),
    text_form("ShareGPT", "conversations", {"id": "1", "conversations": shared(Q, A)}),
    Form(
        "ShareGPT",
        "a system turn",
        {"conversations": [{"from": "system", "value": "Be brief."}, *shared(Q, A)]},
        BRIEF,
    ),
    Form(
        "ShareGPT",
        "function_call and observation",
        {
            "tools": json.dumps([TOOL["function"]]),
            "conversations": [
                {"from": "human", "value": "Open it."},
                {"from": "function_call", "value": json.dumps(CALL)},
                {"from": "observation", "value": "open"},
                {"from": "gpt", "value": "Done."},
            ],
        },
        OPENED,
        calls=CALLED,
    ),
    Form(
        "LLaMA-Factory",
        "conversations with a system column",
        {"conversations": shared(Q, A), "system": "Be brief."},
        BRIEF,
    ),
    text_form(
        "LLaMA-Factory", "an empty system column", {"conversations": shared(Q, A), "system": ""}
    ),
    text_form(
        "LLaMA-Factory",
        "v1 parts with value and loss_weight",
        {
            "messages": [
                {"role": "user", "content": [{"type": "text", "value": Q}], "loss_weight": 0.0},
                {
                    "role": "assistant",
                    "content": [{"type": "text", "value": A}],
                    "loss_weight": 1.0,
                },
            ]
        },
    ),
    text_form(
        "LLaMA-Factory",
        "tags of its own",
        {"talk": [{"who": "ask", "says": Q}, {"who": "reply", "says": A}]},
        registry={
            "columns": {"conversations": "talk"},
            "turns": {"role": "who", "content": "says", "user": "ask", "assistant": "reply"},
        },
    ),
    Form(
        "LLaMA-Factory",
        "mask_history",
        {"conversations": shared("Who?", "Ada.", Q, A)},
        [("user", "Who?"), ("assistant", "Ada."), *ASKED],
        registry={"learn": "last"},
        learnt=1,
    ),
    Form(
        "LLaMA-Factory",
        "preference pairs",
        {"instruction": Q, "input": "", "chosen": A, "rejected": "On the moon."},
        refusal="'chosen' would not be used",
    ),
    text_form(
        "LLaMA-Factory",
        "preference pairs, the good half",
        {"instruction": Q, "input": "", "chosen": A, "rejected": "On the moon."},
        registry={"preference": "good"},
    ),
    text_form(
        "LLaMA-Factory",
        "preference turns, the good half",
        {
            "conversations": shared(Q),
            "chosen": {"from": "gpt", "value": A},
            "rejected": {"from": "gpt", "value": "On the moon."},
        },
        registry={"preference": "good"},
    ),
    Form(
        "LLaMA-Factory", "kto_tag", {"messages": dialogue(Q, A), "kto_tag": False}, refusal=NOT_USED
    ),
    text_form("ms-swift", "query and response", {"query": Q, "response": A}),
    Form(
        "ms-swift",
        "query, response and history",
        {"query": Q, "response": A, "history": [["Who?", "Ada."]]},
        [("user", "Who?"), ("assistant", "Ada."), *ASKED],
    ),
    text_form("ms-swift", "pairs", {"conversation": [{"human": Q, "assistant": A}]}),
    Form(
        "ms-swift",
        "loss of a turn",
        {
            "messages": [
                *dialogue(Q),
                {**dialogue("", "No.")[1], "loss": False},
                *dialogue("Again?", A),
            ]
        },
        [("user", Q), ("assistant", "No."), ("user", "Again?"), ("assistant", A)],
        learnt=1,
    ),
    Form(
        "ms-swift",
        "tool_call and tool_response",
        {
            "tools": json.dumps([TOOL]),
            "messages": [
                *dialogue("Open it."),
                {"role": "tool_call", "content": json.dumps(CALL)},
                {"role": "tool_response", "content": "open"},
                dialogue("", "Done.")[1],
            ],
        },
        OPENED,
        calls=CALLED,
    ),
    Form(
        "ms-swift",
        "rejected_response",
        {"messages": dialogue(Q, A), "rejected_response": "On the moon."},
        refusal=NOT_USED,
    ),
    Form("ms-swift", "label", {"messages": dialogue(Q, A), "label": True}, refusal=NOT_USED),
    text_form(
        "ms-swift",
        "label, the good half",
        {"messages": dialogue(Q, A), "label": True},
        registry={"preference": "good"},
    ),
    Form(
        "ms-swift",
        "audios",
        {"messages": dialogue(f"<audio>{Q}", A), "audios": ["a.wav"]},
        refusal="holds audios, and no base here hears",
    ),
    Form(
        "axolotl",
        "train of a turn",
        {
            "messages": [
                *dialogue(Q),
                {**dialogue("", "No.")[1], "train": False},
                *dialogue("Again?", A),
            ]
        },
        [("user", Q), ("assistant", "No."), ("user", "Again?"), ("assistant", A)],
        learnt=1,
    ),
    Form(
        "axolotl",
        "train_detail of a turn",
        {"messages": [*dialogue(Q), {**dialogue("", A)[1], "train_detail": [{"begin_offset": 0}]}]},
        refusal=NOT_USED,
    ),
    text_form(
        "axolotl", "input_output pairs of Capybara", {"conversation": [{"input": Q, "output": A}]}
    ),
    text_form("TRL", "prompt and completion", {"prompt": Q, "completion": A}),
    text_form(
        "TRL",
        "prompt and completion as messages",
        {"prompt": dialogue(Q), "completion": dialogue(Q, A)[1:]},
    ),
    text_form(
        "TRL",
        "chosen as messages, the good half",
        {"prompt": dialogue(Q), "chosen": dialogue(Q, A)[1:], "rejected": dialogue("", "No.")[1:]},
        registry={"preference": "good"},
    ),
    Form(
        "TRL",
        "label of a completion",
        {"prompt": Q, "completion": A, "label": False},
        refusal=NOT_USED,
    ),
    text_form(
        "OpenAI", "a CSV cell of JSON", {"messages": json.dumps(dialogue(Q, A))}, ending=".csv"
    ),
    # Questions with answers.
    text_form("Alpaca", "instruction, input, output", {"instruction": Q, "input": "", "output": A}),
    Form(
        "Alpaca",
        "input that is filled",
        {"instruction": "Translate.", "input": "Haus", "output": "house"},
        [("user", "Translate.\nHaus"), ("assistant", "house")],
    ),
    text_form(
        "Alpaca",
        "text that repeats the row",
        {"instruction": Q, "input": "", "output": A, "text": f"### Instruction: {Q} ### {A}"},
    ),
    Form(
        "Dolly",
        "context",
        {"instruction": Q, "context": "Arlon lies low.", "response": A, "category": "qa"},
        refusal=r"context.*columns: \{question:",
    ),
    Form(
        "Dolly",
        "context in the question",
        {"instruction": Q, "context": "Arlon lies low.", "response": A, "category": "qa"},
        [("user", f"{Q}\nArlon lies low."), ("assistant", A)],
        registry={"columns": {"input": "context"}},
    ),
    Form(
        "OpenOrca",
        "system_prompt, question, response",
        {"id": "f.1", "system_prompt": "Be brief.", "question": Q, "response": A},
        BRIEF,
    ),
    text_form("MetaMath", "query and response", {"query": Q, "response": A, "type": "GSM"}),
    text_form("GSM8K", "question and answer", {"question": Q, "answer": A}),
    Form(
        "GSM8K",
        "a number as the answer",
        {"question": "2 + 3?", "answer": 5},
        [("user", "2 + 3?"), ("assistant", "5")],
    ),
    Form(
        "BoolQ",
        "a truth value as the answer",
        {"question": "Wet?", "answer": True},
        [("user", "Wet?"), ("assistant", "true")],
    ),
    Form(
        "SQuAD",
        "question, context and answers",
        {"question": Q, "context": "Low.", "answers": {"text": [A], "answer_start": [0]}},
        refusal=r"context.*columns: \{question:",
    ),
    Form(
        "MMLU",
        "choices and a number",
        {"question": Q, "choices": ["Low", "High"], "answer": 1},
        refusal=NOT_USED,
    ),
    Form(
        "MMLU",
        "choices and a number, by letter",
        {"question": Q, "choices": ["Low", "High"], "answer": 1},
        [("user", f"{Q}\nA. Low\nB. High"), ("assistant", "B")],
        registry={"columns": {"question": "{question}\n{choices}", "answer": "{answer:letter}"}},
    ),
    Form(
        "CMMLU",
        "A to D and a letter, by text",
        {"Question": Q, "A": "Low", "B": "High", "C": "East", "D": "West", "Answer": "C"},
        [("user", f"{Q}\nA. Low\nB. High\nC. East\nD. West"), ("assistant", "East")],
        registry={"columns": {"question": "{Question}\n{A,B,C,D}", "answer": "{A,B,C,D[Answer]}"}},
    ),
    Form(
        "ARC",
        "choices as text and label",
        {
            "question": Q,
            "choices": {"text": ["Low", "High"], "label": ["A", "B"]},
            "answerKey": "A",
        },
        [("user", f"{Q}\nA. Low\nB. High"), ("assistant", "Low")],
        registry={
            "columns": {"question": "{question}\n{choices}", "answer": "{choices[answerKey]}"}
        },
    ),
    text_form(
        "any",
        "other names of columns",
        {"ask": Q, "reply": A},
        registry={"columns": {"question": "ask", "answer": "reply"}},
    ),
    text_form(
        "any",
        "columns that are left out on purpose",
        {"question": Q, "answer": A, "hint": "Low."},
        registry={"ignore": ["hint"]},
    ),
    Form(
        "xLAM",
        "query, tools and answers",
        {"query": "Open it.", "tools": json.dumps([TOOL]), "answers": json.dumps([CALL])},
        [("user", "Open it."), ("assistant", "")],
        calls=CALLED,
    ),
    # Files.
    text_form("any", "JSON array", [{"question": Q, "answer": A}], ending=".json"),
    text_form(
        "any",
        "JSON array with a byte order mark",
        [{"question": Q, "answer": A}],
        ending=".bom.json",
    ),
    text_form(
        "any", "one JSON object over many lines", {"question": Q, "answer": A}, ending=".json"
    ),
    text_form(
        "SQuAD",
        "rows under one key",
        {"version": "1", "data": [{"question": Q, "answer": A}]},
        ending=".json",
    ),
    Form(
        "any",
        "an object keyed by ID",
        {"a": {"question": Q, "answer": A}, "b": {"question": "Who?", "answer": "Ada."}},
        refusal="keyed by name",
        ending=".json",
    ),
    text_form("any", "packed JSONL", {"question": Q, "answer": A}, ending=".jsonl.gz"),
    text_form(
        "any", "JSONL packed with Zstandard", {"question": Q, "answer": A}, ending=".jsonl.zst"
    ),
    text_form("any", "NDJSON", {"question": Q, "answer": A}, ending=".ndjson"),
    text_form("any", "CSV", {"question": Q, "answer": A}, ending=".csv"),
    text_form(
        "Excel", "CSV with semicolons", {"question": Q, "answer": A}, ending=".semicolon.csv"
    ),
    text_form("any", "TSV", {"question": Q, "answer": A}, ending=".tsv"),
    text_form("any", "Parquet", {"question": Q, "answer": A}, ending=".parquet"),
    text_form("datasets", "Arrow stream", {"question": Q, "answer": A}, ending=".arrow"),
    text_form("pyarrow", "Arrow file", {"question": Q, "answer": A}, ending=".file.arrow"),
    text_form("WebDataset", "packed members of a tar", {"question": Q, "answer": A}, ending=".tar"),
    Form(
        "Excel",
        "a workbook",
        {"question": Q, "answer": A},
        refusal="would not be read",
        ending=".xlsx",
    ),
    # Pictures.
    Form(
        "LLaVA",
        "image and conversations",
        {"image": "a.png", "conversations": shared(f"<image>{Q}", A)},
        SHOWN,
        vision=True,
    ),
    Form(
        "LLaVA",
        "pictures in a folder of their own",
        {"image": "b.png", "conversations": shared(f"<image>{Q}", A)},
        SHOWN,
        vision=True,
        registry={"media": "pictures"},
    ),
    Form(
        "LLaMA-Factory",
        "images and tags",
        {"messages": dialogue(f"<image>{Q}", A), "images": ["a.png"]},
        SHOWN,
        vision=True,
    ),
    Form(
        "Qwen-VL",
        "<img> in the text",
        {"conversations": shared(f"<img>a.png</img>{Q}", A)},
        SHOWN,
        vision=True,
    ),
    Form(
        "Qwen2-VL",
        "image parts",
        {
            "messages": [
                {"role": "user", "content": [{"type": "image", "image": "a.png"}, PART]},
                dialogue(Q, A)[1],
            ]
        },
        SHOWN,
        vision=True,
    ),
    Form(
        "TRL",
        "image parts without a name, and images",
        {
            "images": ["a.png"],
            "messages": [{"role": "user", "content": [{"type": "image"}, PART]}, dialogue(Q, A)[1]],
        },
        SHOWN,
        vision=True,
    ),
    Form(
        "VQA",
        "image, question, answer",
        {"image": "a.png", "question": Q, "answer": A},
        SHOWN,
        vision=True,
    ),
    Form(
        "image folders",
        "file_name and text",
        {"file_name": "a.png", "text": A},
        [("user", "<image>Read it."), ("assistant", A)],
        vision=True,
    ),
    Form(
        "OCR-VQA",
        "image, text and answer",
        {"image": "a.png", "text": Q, "answer": A},
        refusal="say which asks",
        vision=True,
    ),
    Form(
        "OCR-VQA",
        "image, text and answer, by columns",
        {"image": "a.png", "text": Q, "answer": A},
        SHOWN,
        vision=True,
        registry={"columns": {"question": "text"}},
    ),
    Form(
        "ms-swift",
        "<bbox> without boxes",
        {
            "messages": dialogue(f"<image>{Q}", "<bbox>"),
            "images": ["a.png"],
            "objects": {"ref": [], "bbox": [[1, 1, 9, 9]]},
        },
        refusal="has no `boxes`",
        vision=True,
    ),
    Form(
        "any",
        "bboxes beside an image",
        {"image": "a.png", "question": Q, "answer": A, "bboxes": [[1, 1, 9, 9]]},
        refusal=NOT_USED,
        vision=True,
    ),
    # Calls that are written in a text.
    Form(
        "glaive",
        "system and chat",
        {
            "system": "SYSTEM: You are helpful with access to the following functions. Use them if "
            f"required -\n{json.dumps(TOOL['function'], indent=2)}\n",
            "chat": "USER: Open it.\n\n\nASSISTANT: <functioncall> "
            """{"name": "open_gate", "arguments": '{"town": "Arlon"}'} <|endoftext|>\n\n\n"""
            "FUNCTION RESPONSE: open\n\n\nASSISTANT: Done. <|endoftext|>\n\n",
        },
        OPENED,
        calls=CALLED,
    ),
    Form(
        "glaive",
        "a chat without functions",
        {"system": "SYSTEM: Be brief.", "chat": f"USER: {Q}\n\n\nASSISTANT: {A} <|endoftext|>"},
        BRIEF,
    ),
    Form(
        "Hermes",
        "calls and results in the text, and tools",
        {
            "tools": json.dumps([TOOL]),
            "conversations": [
                {"from": "human", "value": "Open it."},
                {"from": "gpt", "value": f"<tool_call>\n{json.dumps(CALL)}\n</tool_call>"},
                {"from": "tool", "value": "<tool_response>\nopen\n</tool_response>"},
                {"from": "gpt", "value": "Done."},
            ],
        },
        OPENED,
        calls=CALLED,
    ),
    Form(
        "Hermes",
        "calls as Python writes them",
        {
            "tools": [TOOL],
            "conversations": shared(
                "Open it.", f"<tool_call>\n{CALL}\n</tool_call>", "Why?", "Just so."
            ),
        },
        [*OPENED[:2], ("user", "Why?"), ("assistant", "Just so.")],
        calls=CALLED,
    ),
    Form(
        "ToolBench",
        "calls and results in the text, and no tools",
        {
            "conversations": [
                {"from": "user", "value": "Open it."},
                {"from": "assistant", "value": "Action: open_gate\nAction Input: {}"},
                {"from": "function", "value": "open"},
                {"from": "assistant", "value": "Done."},
            ]
        },
        [OPENED[0], ("assistant", "Action: open_gate\nAction Input: {}"), *OPENED[2:]],
    ),
    Form(
        "APIGen-MT",
        "function_call, observation, tools and system",
        {
            "system": "Be brief.",
            "tools": json.dumps([TOOL["function"]]),
            "conversations": [
                {"from": "human", "value": "Open it."},
                {"from": "function_call", "value": json.dumps(CALL)},
                {"from": "observation", "value": "open"},
                {"from": "gpt", "value": "Done."},
            ],
        },
        [BRIEF[0], *OPENED],
        calls=CALLED,
    ),
    Form(
        "xLAM",
        "no calls",
        {"query": Q, "tools": [TOOL], "answers": "[]"},
        refusal="answer is empty",
    ),
    Form(
        "ChatGLM",
        "tools of a turn",
        {
            "messages": [
                {"role": "system", "content": "Be brief.", "tools": [TOOL]},
                *dialogue(Q, A),
            ]
        },
        refusal=NOT_USED,
    ),
    Form("BFCL", "function", {"question": Q, "function": [TOOL], "answer": A}, refusal=NOT_USED),
    # Which turns are learnt.
    Form(
        "axolotl",
        "label of a turn",
        {"conversations": [*shared(Q), shared("", A)[1] | {"label": False}]},
        refusal=NOT_USED,
    ),
    Form(
        "LLaMA-Factory",
        "mask_history as a column",
        {"messages": dialogue(Q, A), "mask_history": 1},
        refusal="learn: last",
    ),
    Form(
        "any", "masks of a row", {"messages": dialogue(Q, A), "loss_mask": [0, 1]}, refusal=NOT_USED
    ),
    Form(
        "XTuner",
        "pairs with output_with_loss and system",
        {
            "conversation": [
                {
                    "system": "Be brief.",
                    "input": Q,
                    "output": "Who knows.",
                    "output_with_loss": False,
                },
                {"input": "Again?", "output": A},
            ]
        },
        [BRIEF[0], ("user", Q), ("assistant", "Who knows."), ("user", "Again?"), ("assistant", A)],
        learnt=1,
    ),
    # Preference data.
    Form(
        "HH",
        "pairs of dialogues",
        {
            "chosen": f"\n\nHuman: {Q}\n\nAssistant: {A}",
            "rejected": f"\n\nHuman: {Q}\n\nAssistant: No.",
        },
        refusal="preference: good",
    ),
    text_form(
        "HH",
        "pairs of dialogues, the good half",
        {
            "chosen": f"\n\nHuman: {Q}\n\nAssistant: {A}",
            "rejected": f"\n\nHuman: {Q}\n\nAssistant: No.",
        },
        registry={"preference": "good"},
    ),
    Form(
        "UltraFeedback",
        "completions with scores",
        {"instruction": Q, "completions": [{"response": A, "overall_score": 9}]},
        refusal="preference: good",
    ),
    text_form(
        "UltraFeedback",
        "completions with scores, the best",
        {
            "instruction": Q,
            "completions": [
                {"response": "No.", "overall_score": 2.5},
                {"response": A, "overall_score": 9},
            ],
        },
        registry={"preference": "good"},
    ),
    text_form(
        "any",
        "answers with ranks, the best",
        {"prompt": Q, "answers": [{"text": "No.", "rank": 1}, {"text": A, "rank": 0}]},
        registry={"preference": "good"},
    ),
    Form(
        "LLaMA-Factory",
        "a ranked list",
        {"instruction": Q, "output": [A, "No."]},
        refusal="is a list",
    ),
    text_form(
        "LLaMA-Factory",
        "a ranked list, the best",
        {"instruction": Q, "output": [A, "No."]},
        registry={"preference": "good"},
    ),
    text_form(
        "OpenAI",
        "preferred_output, the good half",
        {
            "input": {"messages": dialogue(Q)},
            "preferred_output": [dialogue("", A)[1]],
            "non_preferred_output": [dialogue("", "No.")[1]],
        },
        registry={"preference": "good"},
    ),
    Form(
        "OpenAI",
        "preferred_output",
        {"input": {"messages": dialogue(Q)}, "preferred_output": [dialogue("", A)[1]]},
        refusal="preference: good",
    ),
    text_form(
        "any",
        "chosen_response, the good half",
        {"prompt": Q, "chosen_response": A, "rejected_response": "No."},
        registry={"preference": "good"},
    ),
    Form(
        "any",
        "accept and reject",
        {"prompt": Q, "accept": A, "reject": "No."},
        refusal="preference",
    ),
    Form("any", "is_good", {"prompt": Q, "completion": A, "is_good": False}, refusal=NOT_USED),
    # Columns.
    Form(
        "Anthropic",
        "arguments under input",
        {
            "tools": [TOOL],
            "messages": [
                *dialogue("Open it."),
                {
                    "role": "assistant",
                    "content": "",
                    "tool_calls": [{"name": "open_gate", "input": {"town": "Arlon"}}],
                },
                {"role": "tool", "content": "open"},
                dialogue("", "Done.")[1],
            ],
        },
        OPENED,
        calls=CALLED,
    ),
    Form(
        "any",
        "a key of a call that nothing reads",
        {
            "tools": [TOOL],
            "messages": [
                *dialogue("Open it."),
                {
                    "role": "assistant",
                    "content": "",
                    "tool_calls": [{"name": "open_gate", "payload": {"town": "Arlon"}}],
                },
            ],
        },
        refusal="'payload' would not be used",
    ),
    text_form(
        "pandas",
        "nan in place of an input",
        {"instruction": Q, "input": "nan", "output": A, "tools": "None"},
    ),
    text_form(
        "pandas",
        "calls that are an object of nulls",
        {
            "messages": [
                *dialogue(Q),
                {**dialogue("", A)[1], "function_call": {"name": None, "arguments": None}},
            ]
        },
    ),
    Form(
        "any",
        "a key twice",
        f'{{"question": "{Q}", "answer": "No.", "answer": "{A}"}}',
        refusal="has the key 'answer' twice",
    ),
    Form(
        "any",
        "a key of a turn twice",
        '{"messages": [{"role": "user", "content": "x", "content": "y"}, '
        '{"role": "assistant", "content": "z"}]}',
        refusal="has the key 'content' twice",
    ),
    Form(
        "OpenAI",
        "tool_calls beside another function_call",
        {
            "tools": [TOOL],
            "messages": [
                *dialogue("Open it."),
                {"role": "assistant", "tool_calls": [CALL], "function_call": CALL},
            ],
        },
        refusal="the turn has other calls, too",
    ),
    Form(
        "Hermes",
        "tool_calls beside calls in the text",
        {
            "tools": [TOOL],
            "messages": [
                *dialogue("Open it."),
                {
                    "role": "assistant",
                    "content": f"<tool_call>\n{json.dumps(CALL)}\n</tool_call>",
                    "tool_calls": [CALL],
                },
            ],
        },
        refusal="the text of the turn has calls, too",
    ),
    Form(
        "TRL",
        "chat_template_kwargs",
        {"messages": dialogue(Q, A), "chat_template_kwargs": {"enable_thinking": False}},
        refusal=NOT_USED,
    ),
    Form(
        "Anthropic",
        "tools with an input_schema",
        {
            "tools": [
                {"name": "open_gate", "description": "Opens a gate."}
                | {"input_schema": TOOL["function"]["parameters"]}
            ],
            "messages": [
                *dialogue("Open it."),
                {"role": "tool_call", "content": json.dumps(CALL)},
                {"role": "tool", "content": "open"},
                dialogue("", "Done.")[1],
            ],
        },
        OPENED,
        calls=CALLED,
    ),
    Form(
        "OpenAI",
        "a result of a call that is none",
        {
            "tools": [TOOL],
            "messages": [
                *dialogue("Open it."),
                {"role": "assistant", "tool_calls": [{"id": "c1", "function": CALL}]},
                {"role": "tool", "tool_call_id": "c2", "content": "open"},
                dialogue("", "Done.")[1],
            ],
        },
        refusal="a result is of the call 'c2', which is none",
    ),
    text_form("Self-Instruct", "no input", {"instruction": Q, "input": "<noinput>", "output": A}),
    text_form(
        "pandas",
        "NaN in place of an input",
        f'{{"instruction": "{Q}", "input": NaN, "output": "{A}"}}',
    ),
    text_form(
        "HH",
        "a prompt that is a dialogue",
        {"prompt": f"\n\nHuman: {Q}\n\nAssistant:", "response": A},
    ),
    Form(
        "HH",
        "a prompt of several turns, the good half",
        {
            "prompt": f"\n\nHuman: Who?\n\nAssistant: Ada.\n\nHuman: {Q}\n\nAssistant: ",
            "chosen": A,
            "rejected": "No.",
        },
        [("user", "Who?"), ("assistant", "Ada."), *ASKED],
        registry={"preference": "good"},
    ),
    Form(
        "PersonaChat",
        "persona",
        {"question": Q, "persona": ["I sing."], "answer": A},
        refusal=NOT_USED,
    ),
    Form("NLI", "premise", {"premise": "Low.", "question": Q, "answer": A}, refusal=NOT_USED),
    Form(
        "any",
        "a CSV that was joined to another",
        f"question,answer\n{Q},{A}\nquestion,answer\n",
        refusal="is the header again",
        ending=".csv",
    ),
    Form(
        "Excel",
        "a CSV that was joined to another with a byte order mark",
        f"\ufeffquestion,answer\n{Q},{A}\n\ufeffquestion,answer\n",
        refusal="is the header again",
        ending=".csv",
    ),
    text_form(
        "any",
        "a CSV with a space after each comma",
        f'question, answer\n{Q}, "{A}"\n',
        ending=".csv",
    ),
    Form(
        "any",
        "a CSV whose cells begin with spaces",
        f'question,answer,"a, b"\n{Q},    return n,\n',
        [("user", Q), ("assistant", "    return n")],
        ending=".csv",
    ),
    Form(
        "any",
        "a CSV with a space before quotes alone",
        f'question,answer\n{Q}, "{A}"\n',
        refusal="has a space before a quoted field",
        ending=".csv",
    ),
    text_form(
        "Excel", "lines of commas at the end", f"question,answer\n{Q},{A}\n,\n,\n", ending=".csv"
    ),
    Form(
        "any",
        "a key twice in an array",
        f'[{{"question": "{Q}", "answer": "No.", "answer": "{A}"}}]',
        refusal="has the key 'answer' twice",
        ending=".json",
    ),
    Form(
        "any",
        "both keys of a turn twice",
        '{"messages": [{"role": "user", "role": "assistant", "content": "x", "content": "y"}, '
        '{"role": "assistant", "content": "z"}]}',
        refusal="has the key 'role' twice",
    ),
    Form(
        "any",
        "a key twice in a cell",
        {"messages": '[{"role": "user", "content": "x", "content": "y"}]'},
        refusal="has the key 'content' twice",
        ending=".csv",
    ),
    Form(
        "pandas", "nan in place of an answer", {"question": Q, "answer": "nan"}, refusal="missing"
    ),
    Form(
        "SQL", "NULL in place of a question", {"question": "NULL", "answer": A}, refusal="missing"
    ),
    text_form(
        "pandas",
        "nan in a template",
        {"ask": Q, "more": "nan", "reply": A},
        registry={"columns": {"question": "{ask}\n{more}", "answer": "reply"}},
    ),
    text_form(
        "any",
        "content as parts in JSON",
        {"messages": [{"role": "user", "content": json.dumps([PART])}, dialogue(Q, A)[1]]},
    ),
    text_form(
        "any",
        "a CSV cell of one answer in a list",
        {"question": Q, "answers": str([A])},
        ending=".csv",
    ),
    Form(
        "any",
        "a CSV cell of several answers",
        {"question": Q, "answers": json.dumps([A, "No."])},
        refusal=r"answers\[0\]",
        ending=".csv",
    ),
    text_form(
        "any", "spaces around the names of a CSV", {"question ": Q, " answer": A}, ending=".csv"
    ),
    Form(
        "any",
        "a whole number of thirty digits",
        f'{{"question": "{Q}", "answer": {LARGE}}}',
        [("user", Q), ("assistant", str(LARGE))],
    ),
    Form(
        "any",
        "a whole number of thirty digits in an array",
        f'[{{"question": "{Q}", "answer": {LARGE}}}]',
        [("user", Q), ("assistant", str(LARGE))],
        ending=".json",
    ),
    Form(
        "any",
        "a price with its last zero",
        '{"question": "How much?", "answer": 12.50}',
        [("user", "How much?"), ("assistant", "12.50")],
    ),
    Form(
        "any",
        "a price with its last zero in an array",
        '[{"question": "How much?", "answer": 12.50}]',
        [("user", "How much?"), ("assistant", "12.50")],
        ending=".json",
    ),
    Form(
        "any",
        "an output that is in the question",
        {"question": "Is it 5 or 6?", "answer": "It is 6.", "output": "5"},
        refusal=NOT_USED,
    ),
    Form(
        "MetaMath",
        "an answer that ends the response",
        {"query": "2 + 3?", "response": "2 + 3 = 5. The answer is 5.", "answer": "5"},
        [("user", "2 + 3?"), ("assistant", "2 + 3 = 5. The answer is 5.")],
    ),
    Form(
        "the Cauldron",
        "parts with an index",
        {
            "images": ["a.png"],
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "image", "index": 0, "text": None},
                        {"type": "text", "index": None, "text": Q},
                    ],
                },
                dialogue(Q, A)[1],
            ],
        },
        SHOWN,
        vision=True,
    ),
    Form(
        "the Cauldron",
        "parts out of order",
        {
            "images": ["a.png", "pictures/b.png"],
            "messages": [
                {
                    "role": "user",
                    "content": [{"type": "image", "index": 1}, {"type": "image", "index": 0}, PART],
                },
                dialogue(Q, A)[1],
            ],
        },
        refusal="'index' would not be used",
        vision=True,
    ),
    Form(
        "any",
        "two reasonings",
        {
            "messages": [
                *dialogue(Q),
                {**dialogue(Q, A)[1], "reasoning": "The sun.", "reasoning_content": "The map."},
            ]
        },
        refusal="the turn has another reasoning",
    ),
    text_form(
        "datasets",
        "an object of lists in place of turns",
        {"messages": {"role": ["user", "assistant"], "content": [Q, A]}},
    ),
    text_form(
        "any", "turns that are JSON", {"messages": [json.dumps(turn) for turn in dialogue(Q, A)]}
    ),
    text_form("any", "messages that are empty", {"messages": [], "conversations": shared(Q, A)}),
    Form(
        "AQuA",
        "options with letters of their own",
        {"question": Q, "options": ["A)Low", "B)High"], "correct": "B"},
        [("user", f"{Q}\nA. Low\nB. High"), ("assistant", "High")],
        registry={"columns": {"question": "{question}\n{options}", "answer": "{options[correct]}"}},
    ),
    text_form(
        "TRL",
        "a prompt before chosen turns",
        {"prompt": Q, "chosen": [dialogue("", A)[1]], "rejected": [dialogue("", "No.")[1]]},
        registry={"preference": "good"},
    ),
    text_form("LIMA", "texts in turn", {"conversations": [Q, A], "source": "x"}),
    text_form("ms-swift", "input and output", {"input": Q, "output": A}),
    text_form(
        "Alpaca", "an instruction that is null", {"instruction": None, "input": Q, "output": A}
    ),
    text_form("NuminaMath", "problem and solution", {"problem": Q, "solution": A}),
    Form(
        "OpenR1",
        "solution and answer",
        {"problem": Q, "solution": "So.", "answer": A},
        refusal=NOT_USED,
    ),
    text_form("Firefly", "input and target", {"kind": "QA", "input": Q, "target": A}),
    text_form(
        "NeMo",
        "roles with capitals",
        {"conversations": [{"from": "User", "value": Q}, {"from": "Assistant", "value": A}]},
    ),
    text_form(
        "pandas", "a CSV cell of a Python list", {"messages": str(dialogue(Q, A))}, ending=".csv"
    ),
    text_form(
        "any",
        "both forms of turns in one table",
        {
            "messages": [
                {"role": None, "content": None, "from": "human", "value": Q},
                {"role": "assistant", "content": A, "from": None, "value": None},
            ]
        },
    ),
    text_form(
        "SQuAD",
        "answers in the answer",
        {
            "context": Q,
            "question": "",
            "answers": {"text": [A], "answer_start": [1]},
        },
        registry={"columns": {"question": "{context}", "answer": "answers"}},
    ),
    Form(
        "SQuAD",
        "a question without an answer",
        {"question": Q, "answers": {"text": [], "answer_start": []}},
        refusal="holds no answer",
    ),
    text_form(
        "ARC",
        "choices with numbers as labels",
        {"question": Q, "choices": {"text": ["No.", A], "label": ["1", "2"]}, "answerKey": "2"},
        registry={"columns": {"question": "{question}", "answer": "{choices[answerKey]}"}},
    ),
    Form(
        "MMLU",
        "choices that are numbers",
        {"question": "2 + 2?", "choices": ["2", "3", "4", "5"], "answer": 2},
        [("user", "2 + 2?\nA. 2\nB. 3\nC. 4\nD. 5"), ("assistant", "4")],
        registry={"columns": {"question": "{question}\n{choices}", "answer": "{choices[answer]}"}},
    ),
    Form(
        "MMLU",
        "a text that names two choices",
        {"question": "2 + 2?", "choices": ["2", "3", "4", "5"], "answer": "2"},
        refusal="may mean",
        registry={"columns": {"question": "{question}\n{choices}", "answer": "{choices[answer]}"}},
    ),
    Form(
        "PMC-VQA",
        "choices in columns",
        {"question": Q, "Choice A": "x", "answer": A},
        refusal=NOT_USED,
    ),
    Form("WikiSQL", "table", {"question": Q, "table": {"h": [1]}, "answer": A}, refusal=NOT_USED),
    Form(
        "any",
        "system_message",
        {"system_message": "No.", "prompt": Q, "response": A},
        refusal=NOT_USED,
    ),
    Form(
        "medical-o1",
        "Complex_CoT",
        {"question": Q, "Complex_CoT": "So.", "answer": A},
        refusal=NOT_USED,
    ),
    Form(
        "any",
        "two keys for a text",
        {"messages": [*dialogue(Q), dialogue("", A)[1] | {"value": "No."}]},
        refusal=NOT_USED,
    ),
    Form(
        "any",
        "text in place of content",
        {"messages": [{"role": "user", "text": Q}]},
        refusal="turns: {content",
    ),
    # Pictures.
    Form(
        "DocVQA",
        "a list of answers",
        {"image": "a.png", "question": Q, "answers": [A, "No."]},
        refusal=r"answers\[0\]",
        vision=True,
    ),
    Form(
        "DocVQA",
        "a list of answers, the first",
        {"image": "a.png", "question": Q, "answers": [A, "No."]},
        SHOWN,
        registry={"columns": {"answer": "{answers[0]}"}},
        vision=True,
    ),
    Form(
        "DocVQA",
        "a list of one answer",
        {"image": "a.png", "question": Q, "answers": [A]},
        SHOWN,
        vision=True,
    ),
    Form(
        "COCO",
        "several captions",
        {"file_name": "a.png", "caption": [A, "No."]},
        refusal=r"caption\[0\]",
        vision=True,
    ),
    Form(
        "OCR",
        "a list of lines",
        {"file_name": "a.png", "lines": [A, "No."]},
        [("user", "<image>Read it."), ("assistant", f"{A}\nNo.")],
        registry={"columns": {"text": "{lines:lines}"}},
        vision=True,
    ),
    Form(
        "OCR",
        "a list in the answer's template",
        {"file_name": "a.png", "lines": [A, "No."]},
        refusal="prints with letters",
        registry={"columns": {"text": "{lines}"}},
        vision=True,
    ),
    Form(
        "CORD",
        "an object as JSON",
        {"file_name": "a.png", "ground_truth": {"total": 3}},
        [("user", "<image>Read it."), ("assistant", '{"total": 3}')],
        registry={"columns": {"text": "{ground_truth:json}"}},
        vision=True,
    ),
    Form(
        "MMMU",
        "<image 1> in the question",
        {"image": "a.png", "question": f"<image 1>{Q}", "answer": A},
        refusal="'<image 1>' stands for a medium",
        vision=True,
    ),
    Form(
        "Qwen-VL",
        "<img> in the answer",
        {"conversations": shared(Q, "<img>a.png</img>")},
        refusal="stands in the assistant turn",
        vision=True,
    ),
    Form(
        "Qwen2.5-VL",
        "file:// before a path",
        {"image": "file://a.png", "question": Q, "answer": A},
        SHOWN,
        vision=True,
    ),
    Form(
        "pandas",
        "a CSV cell of a list of pictures",
        {"images": "['a.png']", "question": Q, "answer": A},
        SHOWN,
        ending=".csv",
        vision=True,
    ),
    Form(
        "MMMU",
        "image_2",
        {"image": "a.png", "image_2": "b.png", "question": Q, "answer": A},
        refusal=NOT_USED,
        vision=True,
    ),
    Form(
        "VQA-RAD",
        "image_name",
        {"image_name": "a.png", "question": Q, "answer": A},
        refusal="names the media",
        vision=True,
    ),
    Form(
        "web pages",
        "addresses of pictures",
        {"image": "https://x/a.png", "question": Q, "answer": A},
        refusal="is an address",
        vision=True,
    ),
]


def table() -> str:
    """The forms as a table for the data page."""
    lines = ["| from | form | what becomes of it |", "|---|---|---|"]
    for form in FORMS:
        become = "refused" if form.turns is None else "read"
        said_in = ", ".join(sorted(form.registry))
        become += f", with `{said_in}` in the registry" if said_in else ""
        name = form.name.replace("<", "`<").replace(">", ">`")
        lines.append(f"| {form.peer} | {name} | {become} |")
    return "\n".join(lines)


def written(page: str) -> str:
    """The data page with the table of today's forms."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{table()}\n\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
