"""What is left out of an answer is said."""

from __future__ import annotations

import pytest

from gateway import tasks
from gateway.parsing import parse

TASKS = tasks.load(None)

BOX = '{"bbox_2d": [10, 10, 20, 20], "label": "cat"}'
EVENT = '{"start": "00:01", "end": "00:05", "description": "opens"}'


@pytest.mark.parametrize(
    ("task", "text", "kept", "said"),
    [
        ("spatial-boxes", f'[{BOX}, {{"label": "dog"}}]', 1, True),
        ("spatial-boxes", f'{{"size": {{"width": 640}}, "objects": [{BOX}]}}', 1, False),
        ("spatial-boxes", f"[{BOX}, {{}}]", 1, False),
        ("spatial-points", '<points x1="10" y1="20" x2="30">pins</points>', 1, True),
        ("spatial-points", '<points x1="10" y1="20">pins</points>', 1, False),
        ("video-events", f'[{EVENT}, {{"start": "00:07", "description": "shuts"}}]', 1, True),
        ("video-events", f"[{EVENT}]", 1, False),
    ],
)
def test_an_item_without_its_place_or_time_is_noted(task, text, kept, said) -> None:
    parsed = parse(
        TASKS[task],
        text,
        family="qwen3-vl",
        finish_reason="stop",
        original=(100, 100),
        resized=(100, 100),
    )
    assert len(parsed.value) == kept
    assert [problem.partition(":")[0] for problem in parsed.problems] == ["malformed"] * said
