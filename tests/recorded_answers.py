"""Sixty answers in the forms that Qwen-VL models write, each with its one right reading.

The picture is 1280 x 960 pixels; Qwen2.5-VL sees it resized to 1288 x 952.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

ORIGINAL, SHOWN = (1280, 960), (1288, 952)


@dataclass(frozen=True)
class Recorded:
    """An answer and how it has to be read."""

    text: str
    task: str = "spatial-boxes"
    cut: bool = False
    """Whether the limit of tokens ended it."""

    kinds: dict[str, int] = field(default_factory=dict)
    """How many items of each kind; text beside them is not counted here."""

    said: str | None = None
    """The text item."""

    codes: tuple[str, ...] = ()
    """Problems, in their order."""

    names: tuple[str, ...] | None = None
    """Labels, or texts of text lines, in their order."""

    pixels: tuple[Any, ...] | None = None
    """Places in pixels of the original, in their order."""

    value: Any = ...


CAT = (131, 235, 678, 845)
"""(102,245),(530,880) of a thousand, in pixels of the original."""

QWEN2 = [
    Recorded(
        "<|object_ref_start|>cat<|object_ref_end|><|box_start|>(102,245),(530,880)<|box_end|>",
        kinds={"box": 1},
        names=("cat",),
        pixels=(CAT,),
    ),
    Recorded("cat(102,245),(530,880)", kinds={"box": 1}, names=("cat",), pixels=(CAT,)),
    Recorded("<|box_start|>(102,245),(530,880)<|box_end|>", kinds={"box": 1}, names=(None,)),
    Recorded(
        "<|object_ref_start|>dogs<|object_ref_end|><|box_start|>(1,2),(300,400)<|box_end|>"
        "<|box_start|>(500,2),(800,400)<|box_end|>",
        kinds={"box": 2},
        names=("dogs", "dogs"),
    ),
    Recorded("<|box_start|>(102,245),(530", cut=True, codes=("cut",)),
    Recorded(
        "<|box_start|>(530,880),(102,245)<|box_end|>",
        kinds={"box": 1},
        codes=("reordered",),
        pixels=(CAT,),
    ),
    Recorded(
        "<|box_start|>(102,245),(1012,1003)<|box_end|>",
        kinds={"box": 1},
        codes=("clipped",),
        pixels=((131, 235, 1280, 960),),
    ),
    Recorded("<|box_start|>(102, 245), (530, 880)<|box_end|>", kinds={"box": 1}, pixels=(CAT,)),
    Recorded(
        "<|box_start|>(102.5,245),(530,880.0)<|box_end|>",
        kinds={"box": 1},
        pixels=((131, 235, 678, 845),),
    ),
    Recorded(
        "<|quad_start|>(10,10),(90,12),(90,40),(10,38)<|quad_end|>",
        kinds={"polygon": 1},
        pixels=([[13, 10], [115, 12], [115, 38], [13, 36]],),
    ),
    Recorded("<ref>cat</ref><box>(102,245),(530,880)</box>", kinds={"box": 1}, names=("cat",)),
    Recorded(
        "The cat is at <|box_start|>(102,245),(530,880)<|box_end|> on the sofa.",
        kinds={"box": 1},
        said="The cat is at\non the sofa.",
        names=(None,),
    ),
    Recorded("There is no dog in the picture.", said="There is no dog in the picture.", value=[]),
    Recorded(
        '{"bbox_2d": [102, 245, 530, 880], "label": "cat"}',
        kinds={"box": 1},
        names=("cat",),
        pixels=(CAT,),
        value=[{"label": "cat", "box": list(CAT)}],
    ),
    Recorded("[102, 245, 530, 880]", kinds={"box": 1}, pixels=(CAT,)),
    Recorded(
        "TOTAL<|box_start|>(83,912),(301,948)<|box_end|>\n"
        "17,000<|box_start|>(600,912),(760,948)<|box_end|>",
        "ocr-lines",
        kinds={"box": 2},
        names=("TOTAL", "17,000"),
    ),
    Recorded("<|box_start|>(102,245),(102,245)<|box_end|>", codes=("flat",)),
    Recorded("<|box_start|>(a,b),(c,d)<|box_end|>", said="(a,b),(c,d)", codes=("malformed",)),
    Recorded(
        "cat cat cat cat cat cat cat cat cat cat cat cat",
        said="cat cat cat cat cat cat cat cat cat cat cat cat",
        codes=("looped",),
    ),
    Recorded("", codes=("empty",), value=None),
]

QWEN2_5 = [
    Recorded(
        '```json\n[\n    {"bbox_2d": [131, 233, 683, 838], "label": "cat"}\n]\n```',
        kinds={"box": 1},
        names=("cat",),
        pixels=((130, 235, 679, 845),),
    ),
    Recorded(
        '```json\n[\n    {\n        "bbox_2d": [125, 169, 754, 208], '
        '"text_content": "UNI SDN BHD",\n    },\n]\n```',
        "ocr-lines",
        kinds={"box": 1},
        names=("UNI SDN BHD",),
        codes=("repaired",),
    ),
    Recorded(
        '{"bbox_2d": [131, 233, 683, 838], "label": "cat"}',
        kinds={"box": 1},
        pixels=((130, 235, 679, 845),),
    ),
    Recorded(
        "[{'bbox_2d': [1, 2, 30, 40], 'label': 'it\\'s'}]",
        kinds={"box": 1},
        names=("it's",),
        codes=("repaired",),
    ),
    Recorded(
        '```json\n[\n {"bbox_2d": [74, 361, 324, 808], "label": "a"},\n {"bbox_2d": [320, 660, 56',
        cut=True,
        kinds={"box": 1},
        names=("a",),
        codes=("cut",),
    ),
    Recorded(
        '[{"bbox_2d": [1, 2, 30, 40], "label": "a"}, {"bbox_2d": [581, 587, 655, 65',
        cut=True,
        kinds={"box": 1},
        names=("a",),
        codes=("cut",),
    ),
    Recorded(
        '[{"bbox_2d": [19, 300, 154, 976], "label": "trowel"}]',
        kinds={"box": 1},
        codes=("clipped",),
        pixels=((19, 303, 153, 960),),
    ),
    Recorded(
        'Here is the result:\n```json\n{"company": "A", "total": "RM8.75"}\n```',
        "key-facts",
        kinds={"object": 1},
        said="Here is the result:",
        value={"company": "A", "total": "RM8.75"},
    ),
    Recorded("```json\n[]\n```", value=[]),
    Recorded("There are no cats in the image.", said="There are no cats in the image.", value=[]),
    Recorded(
        '<points x1="640" y1="476" alt="pin">pin</points>',
        "spatial-points",
        kinds={"point": 1},
        names=("pin",),
        pixels=((636, 480),),
    ),
    Recorded(
        '<points x1="1" y1="2" x2="30" y2="40" alt="pins">pins</points>',
        "spatial-points",
        kinds={"point": 2},
        names=("pins", "pins"),
    ),
    Recorded(
        "131,233,683,838 cat\n700,233,900,838 dog",
        kinds={"box": 2},
        names=("cat", "dog"),
        pixels=((130, 235, 679, 845), (696, 235, 894, 845)),
    ),
    Recorded(
        '```html\n<html><body>\n<h2 data-bbox="310 94 658 132">T</h2>\n'
        ' <p data-bbox="99 339 869 565">unclosed',
        "document-html",
        cut=True,
        kinds={"element": 2},
        codes=("cut",),
        names=("T", "unclosed"),
    ),
    Recorded(
        '<div class="image" data-bbox="262 195 708 272"><img data-bbox="262 195 708 272" '
        'src="http://x/y" onerror="a()"/></div>',
        "document-html",
        kinds={"element": 1},
        codes=("sanitised",),
        value='<div class="image" data-bbox="262 195 708 272">'
        '<img data-bbox="262 195 708 272"></div>',
    ),
    Recorded(
        '<tool_call>\n{"name": "computer_use", "arguments": {"action": "left_click", '
        '"coordinate": [447, 81]}}\n</tool_call>',
        "computer",
        kinds={"action": 1},
        value={"action": "left_click", "coordinate": [444, 82]},
    ),
    Recorded(
        '<tool_call>\n{"name": "mobile_use", "arguments": {"action": "swipe", '
        '"coordinate": [500, 900]}}\n</tool_call>',
        "mobile",
        codes=("refused",),
        said=...,  # type: ignore[arg-type]
        value=None,
    ),
    Recorded(
        '```json\n[{"start_time": "00:23.90", "end_time": "01:35.60", "description": "cut"}]\n```',
        "video-events",
        kinds={"event": 1},
        value=[{"start": 23.9, "end": 95.6, "description": "cut"}],
    ),
    Recorded(
        "The given query happens in 64.0 - 72.0 seconds.",
        "video-moments",
        kinds={"event": 1},
        said="The given query happens in 64.0 - 72.0 seconds.",
        value=[{"start": 64.0, "end": 72.0, "description": ""}],
    ),
    Recorded(
        "<tr><td></td></tr>" * 400,
        "document-html",
        cut=True,
        codes=("cut", "looped"),
    ),
]

QWEN3 = [
    Recorded(
        '```json\n[\n\t{"bbox_2d": [74, 361, 324, 808], "label": "plate"},\n'
        '\t{"bbox_2d": [981, 444, 999, 557], "label": "bowl"}\n]\n```',
        kinds={"box": 2},
        names=("plate", "bowl"),
        pixels=((95, 347, 415, 776), (1256, 426, 1279, 535)),
    ),
    Recorded(
        '[\n\t{"bbox_2d": [541, 0, 667, 333], "names": {"zh": "x", "en": "G"}},\n\t{\n'
        '\t{"bbox_2d": [649, 116, 794, 643], "names": {"en": "O"}}\n]',
        "recognition-boxes",
        kinds={"box": 2},
        names=("G", "O"),
        codes=("repaired",),
    ),
    Recorded(
        '[{"bbox_2d": [0, 614, 224, 825], "name_zh": "x", "name_en": "Rice"}]',
        "recognition-boxes",
        kinds={"box": 1},
        names=("Rice",),
    ),
    Recorded(
        '```json\n[\n\t{"point_2d": [925, 618], "label": "point_1"}\n]\n```',
        "spatial-points",
        kinds={"point": 1},
        names=("point_1",),
        pixels=((1184, 593),),
    ),
    Recorded(
        '<points x1="154" y1="104" x2="885" y2="104" alt="bg">bg</points>',
        "spatial-points",
        kinds={"point": 2},
        names=("bg", "bg"),
    ),
    Recorded(
        '[{"bbox_2d": [1, 2, 3, 4], "label": "a"}]\n\nand\n```json\n'
        '[{"bbox_2d": [5, 6, 7, 8], "label": "b"}]\n```',
        kinds={"box": 2},
        names=("a", "b"),
        said="and",
    ),
    Recorded(
        '{"object_name": "monitor", "bbox": [195, 138, 617, 480], '
        '"object_name": "laptop", "bbox": [663, 399, 917, 657]}',
        kinds={"box": 2},
        names=("monitor", "laptop"),
    ),
    Recorded(
        '[{"bbox_2d": [1, 2, 3, 4] "label": "a"} {"bbox_2d": [5, 6, 7, 8], "label": "b"}]',
        kinds={"box": 2},
        names=("a", "b"),
        codes=("repaired",),
    ),
    Recorded(
        '[{"bbox_2d": [1, 2, 3, 4, 5], "label": "a"}, {"bbox_2d": [1, 2, "30", 40], "label": "b"}]',
        kinds={"box": 1},
        names=("b",),
        codes=("malformed",),
    ),
    Recorded(
        '[{"bbox_2d": [1, 2, 3, 4], "text_content": "12" monitor"}]',
        "ocr-lines",
        kinds={"box": 1},
        names=('12" monitor',),
        codes=("unsure", "repaired"),
    ),
    Recorded(
        '[{"bbox_2d": [1, 2, 3, 4], "text_content": "one\ntwo"}]',
        "ocr-lines",
        kinds={"box": 1},
        names=("one\ntwo",),
    ),
    Recorded(
        '```html\n<h1 data-bbox="88 41 500 77">T</h1><script>alert(1)</script>\n```',
        "document-html",
        kinds={"element": 1},
        names=("T",),
        codes=("sanitised",),
        value='<h1 data-bbox="88 41 500 77">T</h1>\n',
    ),
    Recorded(
        "# T\n<!-- Image (120, 340, 880, 610) -->\n<!-- Table (80, 640, 920, 900) -->\n"
        "\\begin{tabular}{ll}",
        "document-markdown",
        kinds={"element": 2},
        pixels=((154, 326, 1126, 586), (102, 614, 1178, 864)),
    ),
    Recorded(
        'Thought: I tap the search bar.\nAction: "Tap search."\n<tool_call>\n'
        '{"name": "mobile_use", "arguments": {"action": "click", "coordinate": [447, 81]}}\n'
        "</tool_call>",
        "mobile",
        kinds={"action": 1},
        value={"action": "click", "coordinate": [573, 78]},
    ),
    Recorded(
        '{"name": "computer_use", "arguments": {"action": "terminate", "status": "success"}}',
        "computer",
        kinds={"action": 1},
        value={"action": "terminate", "status": "success"},
    ),
    Recorded(
        '<tool_call>\n{"name": "computer_use", "arguments": {"action": "format_disk"}}\n'
        "</tool_call>",
        "computer",
        codes=("refused",),
        said=...,  # type: ignore[arg-type]
        value=None,
    ),
    Recorded(
        '{\n    "00:23.00 - 00:48.00": "trim the fat",\n    "00:56.00 - 01:28.00": "season"\n}',
        "video-events",
        kinds={"event": 2},
        value=[
            {"start": 23.0, "end": 48.0, "description": "trim the fat"},
            {"start": 56.0, "end": 88.0, "description": "season"},
        ],
    ),
    Recorded(
        '{"events": [{"start_time": "00:00:05", "end_time": "00:00:15", "event": "scan"}]}',
        "video-events",
        kinds={"event": 1},
        value=[{"start": 5.0, "end": 15.0, "description": "scan"}],
    ),
    Recorded(
        '[{"bbox_3d": [2.88, 0.56, 6.28, 4.45, 1.7, 1.84, 0.75, 0.49, 0.75], "label": "car"}]',
        "spatial-3d",
        kinds={"box_3d": 1},
        names=("car",),
        value=[{"label": "car", "box_3d": [2.88, 0.56, 6.28, 4.45, 1.7, 1.84, 0.75, 0.49, 0.75]}],
    ),
    Recorded(
        '```json\n[\n\t{"bbox_2d": [12, 14, 230, 40], "text_content": "' + "| " * 9000,
        "ocr-lines",
        cut=True,
        codes=("cut", "looped"),
        value=[],
    ),
]

TEXTS = [case.text for case in (*QWEN2, *QWEN2_5, *QWEN3)]
