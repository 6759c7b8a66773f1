"""Nothing of a row is left unused in silence."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loraline.data.checks import BadRow
from loraline.data.reading import formats
from loraline.data.reading.conversations import LEARNT, REASONING
from loraline.data.reading.formats import Reading
from loraline.data.reading.keys import HARMLESS, REPEATS, filled
from loraline.data.reading.preferences import LeftOut
from loraline.records import Detail, Record

MEANING = [
    "context",
    "contexts",
    "passage",
    "document",
    "documents",
    "paragraph",
    "article",
    "background",
    "story",
    "knowledge",
    "evidence",
    "hint",
    "lecture",
    "history",
    "sql_context",
    "retrieved_documents",
    "facts",
    "table",
    "schema",
    "support",
    "choices",
    "options",
    "A",
    "B",
    "C",
    "D",
    "E",
    "a",
    "d",
    "option_a",
    "choice_2",
    "choiceB",
    "opa",
    "answer_choices",
    "endings",
    "distractor1",
    "chosen",
    "rejected",
    "label",
    "labels",
    "kto_tag",
    "accept",
    "accepted",
    "reject",
    "preference",
    "rejected_response",
    "rejected_messages",
    "rejected_images",
    "rejected_output",
    "chosen_response",
    "non_preferred_output",
    "negative",
    "winner",
    "is_good",
    "weight",
    "loss",
    "loss_weight",
    "loss_scale",
    "train",
    "training",
    "masked",
    "mask_history",
    "loss_mask",
    "output_with_loss",
    "reasoning_content",
    "reasoning",
    "thinking",
    "cot",
    "Complex_CoT",
    "thought",
    "tool_calls",
    "function_call",
    "refusal",
    "available_tools",
    "function",
    "system_message",
    "developer",
    "objects",
    "bbox",
    "bboxes",
    "boxes",
    "mask",
    "masks",
    "segmentation",
    "points",
    "keypoints",
    "image1",
    "image_2",
    "img",
    "picture",
    "pdf",
    "image_path",
    "image_name",
    "image_url",
    "video_path",
    "figure",
    "Context",
    "F",
    "A.",
    "(B)",
    "ans_a",
    "candidates",
    "alternatives",
    "possible_answers",
    "multiple_choices",
    "mc1_targets",
    "answer2",
    "response_1",
    "bad_response",
    "wrong_answer",
    "is_correct",
    "correct",
    "thumbs_up",
    "sample_weight",
    "train_mask",
    "assistant_masks",
    "do_train",
    "is_masked",
    "rationale",
    "thinking_content",
    "reasoning_steps",
    "model_reasoning",
    "polygon",
    "depth",
    "ctx",
    "query_context",
    "sql_schema",
    "ddl",
    "background_info",
    "source_text",
    "clinical_note",
    "premise_text",
    "evidences",
    "few_shot",
    "accessibility_tree",
    "tool_definitions",
    "toolConfig",
    "functions_json",
    "api_list",
    "mcp_servers",
    "plugins",
    "toolCalls",
    "functionCall",
    "tool_use",
    "api_call",
    "actions",
    "reasoningContent",
    "deepseek_reasoning",
    "chain-of-thought",
    "inner_thoughts",
    "scratchpad",
    "lossWeight",
    "trainOn",
    "loss_multiplier",
    "exclude_from_loss",
    "only_last_turn_loss",
    "roles_to_train",
    "is_bad",
    "thumbs_down",
    "downvoted",
    "deleted",
    "human_label",
    "completion_label",
    "vote",
    "feedback",
    "second_image",
    "image_before",
    "mask_image",
    "screenshot",
    "frames",
    "pixel_values",
    "generations",
    "rejected_answer_text",
]
"""Names of columns that carry meaning elsewhere."""

SOUNDS = [
    "audio",
    "audios",
    "speech",
    "sound",
    "sounds",
    "input_audio",
    "wav",
    "audio_path",
    "audio_filepath",
    "source_audio",
    "audio1",
    "audioTokens",
    "mp3",
    "waveform",
]

KNOWN = sorted(
    {*HARMLESS, *MEANING, *REPEATS, *SOUNDS, "system", "tools", "tags", "images", "video"}
)
turn = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "tool"]), "content": st.text(max_size=4)},
    optional={
        key: st.sampled_from([None, 0, 1, False, True, "x"])
        for key in (
            "weight",
            "loss",
            "train",
            "name",
            "reasoning_content",
            "refusal",
            "odd",
            "audio",
        )
    },
)
values = (
    st.none()
    | st.booleans()
    | st.integers(0, 3)
    | st.text("ab {[", max_size=4)
    | st.lists(st.text("ab", max_size=2), max_size=2)
    | st.lists(turn, max_size=4)
    | st.dictionaries(st.sampled_from(["a", "text"]), st.text("ab", max_size=2), max_size=2)
)
rows = st.dictionaries(
    st.sampled_from(KNOWN) | st.text("abcxyz_", min_size=1, max_size=6), values, max_size=6
)


@given(st.lists(rows, max_size=3))
@settings(max_examples=300)
def test_every_filled_key_of_a_row_is_used_or_listed_or_the_row_is_refused(
    listed: list[dict[str, Any]],
) -> None:
    for row in listed:
        try:
            made = formats.draft(row, Reading("Look: {question}"))
        except BadRow:
            continue
        left = {key for key, value in row.items() if filled(value)} - made.used
        assert left == {key for key in made.listed if "[]." not in key} - made.used
        held = repr((made.turns, made.images, made.videos, made.tools, made.details, made.objects))
        texts = [value for key in made.used if isinstance(value := row.get(key), str)]
        assert all(repr(text.strip())[1:-1] in held for text in texts)


turn_keys = st.dictionaries(
    st.sampled_from([*KNOWN, *LEARNT, "name", "reasoning_content"])
    | st.text("abcxyz_", min_size=1, max_size=6),
    st.sampled_from([None, 0, 1, False, True, 0.5, "", "x", [], ["x"]]),
    max_size=3,
)


@given(
    st.lists(st.tuples(st.sampled_from(["user", "assistant", "tool"]), turn_keys), max_size=5),
    st.sampled_from(["messages", "conversations", "conversation"]),
)
@settings(max_examples=300)
def test_every_filled_key_of_a_turn_is_used_or_listed_or_the_row_is_refused(
    given_turns: list[tuple[str, dict[str, Any]]], name: str
) -> None:
    turns = [
        {**keys, "role": role, "content": f"t{n}"} for n, (role, keys) in enumerate(given_turns)
    ]
    try:
        made = formats.draft({name: turns}, Reading(None))
    except BadRow:
        return
    listed = {key.rpartition("[].")[2] for key in made.listed}
    assert [text for _, text in made.turns] == [f"t{n}" for n in range(len(made.turns))]
    left_out = range(len(made.turns), len(turns))
    for number, turn in enumerate(turns):
        detail = made.details.get(number, Detail())
        for key in turn.keys() - {"role", "content"} - listed:
            value = turn[key]
            if not filled(value) or number in left_out:
                continue
            if key in LEARNT:
                assert detail.learnt == bool(value) or turn["role"] != "assistant"
            elif key == "name":
                assert (turn["role"], detail.name) == ("tool", value)
            else:
                assert key in REASONING
                assert detail.reasoning == value
    answers = [number for number, (role, _) in enumerate(given_turns) if role == "assistant"]
    assert Record(tuple(made.turns), details=made.details).learnt_turns() == [
        number for number in answers if not any(turns[number].get(key) == 0 for key in LEARNT)
    ]


ROW = {"question": "Where?", "answer": "Here."}


@pytest.mark.parametrize("key", MEANING)
def test_a_key_that_carries_meaning_is_refused_with_a_remedy(key: str) -> None:
    value: Any = "A low town."
    if key == "objects":
        value = [[1, 2]]
    if key == "history":
        return
    with pytest.raises(
        BadRow, match=f"'{re.escape(key)}' would not be used; under prepare .*ignore"
    ) as bad:
        formats.draft({**ROW, key: value}, Reading(None))
    assert bad.value.check == "unused"
    made = formats.draft({**ROW, key: value}, Reading(None, ignore=(key,)))
    assert made.listed == [key]


@pytest.mark.parametrize("key", SOUNDS)
def test_a_sound_is_refused(key: str) -> None:
    with pytest.raises(BadRow, match=f"holds {key}, and no base here hears"):
        formats.draft({**ROW, key: "a.wav"}, Reading(None))


@pytest.mark.parametrize(
    "key", ["weight", "label", "masked", "context", "tools", "rejected", "text"]
)
def test_a_key_of_a_turn_that_is_not_read_is_refused(key: str) -> None:
    asked = {"role": "user", "content": "Where?", key: ["x"]}
    row = {"messages": [asked, {"role": "assistant", "content": "Here."}]}
    with pytest.raises(BadRow, match=f"'{key}' would not be used"):
        formats.draft(row, Reading(None))
    made = formats.draft(row, Reading(None, ignore=(key,)))
    assert made.listed == [f"messages[].{key}"]


@pytest.mark.parametrize(
    "key",
    [
        "trainable",
        "learn",
        "is_masked",
        "do_train",
        "compute_loss",
        "no_train",
        "skip",
        "ignore",
        "is_supervised",
        "train_turn",
        "exclude",
        "learnable",
        "loss_masked",
    ],
)
def test_a_turn_that_may_not_be_learnt_is_refused_by_whatever_name(key: str) -> None:
    means_no = key in ("is_masked", "no_train", "skip", "ignore", "exclude", "loss_masked")
    answer = {"role": "assistant", "content": "Wrong.", key: means_no}
    with pytest.raises(BadRow, match=f"'{key}' would not be used"):
        formats.draft({"messages": [{"role": "user", "content": "?"}, answer]}, Reading(None))


@pytest.mark.parametrize(
    "key",
    [
        "id",
        "train_id",
        "weight_kg",
        "masked_name",
        "question_count",
        "h",
        "image_count",
        "document_id",
        "audio_duration",
        "context_length",
        "schema_version",
        "num_images",
        "video_fps",
    ],
)
def test_a_key_that_looks_like_a_switch_and_is_none_is_listed(key: str) -> None:
    assert formats.draft({**ROW, key: 7}, Reading(None)).listed == [key]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("weight", 1),
        ("train", True),
        ("masked", False),
        ("is_masked", 0),
        ("trainable", True),
        ("is_correct", True),
        ("loss", 1.0),
        ("deleted", False),
        ("is_bad", 0),
        ("lossWeight", 1),
        ("verified", True),
    ],
)
def test_a_switch_that_changes_nothing_is_listed(key: str, value: object) -> None:
    assert formats.draft({**ROW, key: value}, Reading(None)).listed == [key]


def test_the_name_of_a_medium_beside_it_is_listed() -> None:
    row = {**ROW, "image": "a.png", "image_url": "https://x/a.png", "image_name": "a"}
    assert formats.draft(row, Reading(None)).listed == ["image_name", "image_url"]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("verified", False),
        ("passed", 0),
        ("is_accepted", False),
        ("liked", False),
        ("toxic", True),
        ("is_hallucination", 1),
        ("flagged", True),
    ],
)
def test_an_answer_that_a_key_calls_bad_is_refused(key: str, value: object) -> None:
    with pytest.raises(BadRow, match=f"'{key}' would not be used; .*preference: good"):
        formats.draft({**ROW, key: value}, Reading(None))
    with pytest.raises(LeftOut):
        formats.draft({**ROW, key: value}, Reading(None, preference="good"))
    good = formats.draft({**ROW, key: not value}, Reading(None, preference="good"))
    assert good.turns == [("user", "Where?"), ("assistant", "Here.")]


@pytest.mark.parametrize("key", ["odd", "path", "image_id", "filename"])
@pytest.mark.parametrize(
    "value", ["i/a.png", ["a.JPG", "b.jpg"], {"bytes": b"x", "path": None}, "clip.mp4"]
)
def test_a_column_that_names_media_is_refused_where_a_row_shows_none(
    key: str, value: object
) -> None:
    with pytest.raises(BadRow, match=f"'{key}' would not be used; .*names the media"):
        formats.draft({**ROW, key: value}, Reading(None))
    shown = formats.draft({**ROW, "image": "b.png", key: value}, Reading(None))
    assert shown.listed == [key]


@pytest.mark.parametrize("value", ["a.wav", ["x/a.flac"], {"array": [0.1], "sampling_rate": 8000}])
def test_a_column_that_names_sounds_is_refused(value: object) -> None:
    with pytest.raises(BadRow, match="holds odd, and no base here hears"):
        formats.draft({**ROW, "odd": value}, Reading(None))


@pytest.mark.parametrize("key", ["bounding_box", "boundingBox", "gt_bbox", "roi", "x1", "regions"])
def test_a_box_beside_an_image_is_refused(key: str) -> None:
    row = {**ROW, "image": "a.png", key: [1, 2, 3, 4]}
    with pytest.raises(BadRow, match=f"'{key}' would not be used"):
        formats.draft(row, Reading(None))


@pytest.mark.parametrize("key", ["gold_answer", "expected_output", "deepseek_solution"])
def test_another_answer_is_refused_unless_it_ends_the_answer(key: str) -> None:
    with pytest.raises(BadRow, match=f"'{key}' would not be used"):
        formats.draft({**ROW, key: "There."}, Reading(None))
    assert formats.draft({**ROW, key: "Here"}, Reading(None)).listed == [key]


@pytest.mark.parametrize(
    "key", ["analysis", "channel", "plan", "attachments", "is_context", "action", "lm_loss"]
)
def test_a_key_that_changes_what_a_turn_means_is_refused(key: str) -> None:
    answer = {"role": "assistant", "content": "Here.", key: True if key == "is_context" else "x"}
    with pytest.raises(BadRow, match=f"'{key}' would not be used"):
        formats.draft({"messages": [{"role": "user", "content": "?"}, answer]}, Reading(None))


@pytest.mark.parametrize("weight", ["0", "false", "False"])
def test_a_weight_that_is_a_text_is_read(weight: str) -> None:
    turns = [
        {"role": "user", "content": "Where?"},
        {"role": "assistant", "content": "Lost.", "weight": weight},
        {"role": "user", "content": "Where?"},
        {"role": "assistant", "content": "Here.", "weight": "1"},
    ]
    made = formats.draft({"messages": turns}, Reading(None))
    assert made.details == {1: Detail(learnt=False)}


@pytest.mark.parametrize("key", ["id", "source", "odd_name"])
def test_a_key_that_carries_none_is_listed(key: str) -> None:
    assert formats.draft({**ROW, key: "a"}, Reading(None)).listed == [key]


@pytest.mark.parametrize("value", [None, "", [], {}])
def test_an_empty_column_is_no_column(value: object) -> None:
    assert formats.draft({**ROW, "context": value}, Reading(None)).listed == []


def test_a_column_that_repeats_the_row_is_listed() -> None:
    turns = [{"role": "user", "content": "Where?"}, {"role": "assistant", "content": "Here."}]
    row = {"messages": turns, "prompt": "Where?"}
    assert formats.draft(row, Reading(None)).listed == ["prompt"]
    with pytest.raises(BadRow, match="'prompt' would not be used"):
        formats.draft(row | {"prompt": "Who?"}, Reading(None))
