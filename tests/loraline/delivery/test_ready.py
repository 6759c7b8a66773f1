"""The readiness probe: a server that lost an adapter gets no requests."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from loraline.delivery import ready
from loraline.serving.arguments import PORT

LISTED = json.dumps({"data": [{"id": "base"}, {"id": "tiny-text"}]})


@pytest.mark.parametrize(
    ("models", "exit_code", "sentence"),
    [
        (["tiny-text"], 0, ""),
        (["tiny-text", "base"], 0, ""),
        (["tiny-text", "second", "another"], 1, "not served yet: another, second\n"),
    ],
)
def test_every_adapter_must_be_listed(
    answering: Callable[[int, str], str],
    tmp_path: Path,
    models: list[str],
    exit_code: int,
    sentence: str,
) -> None:
    program = tmp_path / "ready.py"
    source = Path(ready.__file__).read_text()
    program.write_text(source.replace(ready.MODELS, f"{answering(200, LISTED)}/v1/models"))
    ended = subprocess.run(
        [sys.executable, program, *models], capture_output=True, text=True, check=False
    )
    assert (ended.returncode, ended.stderr) == (exit_code, sentence)


def test_a_server_that_refuses_is_not_ready(answering: Callable[[int, str], str]) -> None:
    with pytest.raises(OSError, match="401"):
        ready.served(answering(401, "{}"))


def test_the_probe_asks_the_port_that_the_server_listens_on() -> None:
    assert f"http://127.0.0.1:{PORT}/v1/models" == ready.MODELS
