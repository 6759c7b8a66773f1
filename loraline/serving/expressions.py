"""Regular expressions of an adapter's settings that would never come to an end.

PEFT and vLLM compare each with the paths of all modules, with Python's `re`, which cannot give
up. So another process compares first, and is ended when its time is over.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from loraline.serving.adapter_config import NUMBERED, PATH_END

SECONDS = 10.0
"""Time for all comparisons, a process' start included; PEFT's own expressions take milliseconds."""

REPEATS = ("*", "+", "{")
"""Without one of these an expression ends as soon as the path does."""

COMPARE = """
import json, re, sys
expressions, paths = json.load(sys.stdin)
for expression in expressions:
    for path in paths:
        re.match(expression, path)
        re.fullmatch(expression, path)
"""


def of(config: Mapping[str, Any]) -> list[str]:
    """The regular expressions in sound settings, as PEFT and vLLM compare them with paths."""
    full_matches = [config.get("target_modules"), config.get("exclude_modules")]
    end_matches = [
        key for name in ("rank_pattern", "alpha_pattern") for key in config.get(name) or ()
    ]
    layers = config.get("layers_pattern") or []
    patterns = {
        **{text: text for text in full_matches if isinstance(text, str)},
        **{text: PATH_END.format(text) for text in end_matches},
        **{
            text: NUMBERED.format(text)
            for text in ([layers] if isinstance(layers, str) else layers)
        },
    }
    return [
        compared for text, compared in patterns.items() if any(sign in text for sign in REPEATS)
    ]


def all_terminate(config: Mapping[str, Any], paths: Iterable[str]) -> bool:
    """Whether all expressions of sound settings can be compared with all paths, in SECONDS."""
    expressions = of(config)
    if not expressions:
        return True
    try:
        subprocess.run(
            [sys.executable, "-I", "-S", "-c", COMPARE],
            input=json.dumps([expressions, list(paths)]).encode(),
            timeout=SECONDS,
            check=True,
        )
    except subprocess.TimeoutExpired:
        return False
    return True
