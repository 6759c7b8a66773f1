"""A script that is forked with its imports done is the script that the interpreter starts."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]

SCRIPT = """
import atexit, json, os, pathlib, signal, sys
atexit.register(lambda: pathlib.Path(sys.argv[1], "ended").write_text("well"))
print("a word of the script", flush=True)
pathlib.Path(sys.argv[1], "seen").write_text(json.dumps({
    "arguments": sys.argv[2:],
    "folder": os.getcwd(),
    "path": sys.path[0],
    "leads": os.getsid(0) == os.getpid(),
    "name": __name__,
    "file": __file__,
    "main": vars(sys.modules["__main__"]) is globals(),
    "word": os.environ.get("WORD"),
    "input": sys.stdin.read(),
    "imported": "colorsys" in sys.modules,
    "parent": os.getppid(),
}))
match sys.argv[2]:
    case "exit":
        sys.exit(7)
    case "raise":
        raise ValueError("as it happens")
    case "die":
        os.kill(os.getpid(), signal.SIGTERM)
    case "orphan" if "colorsys" in sys.modules:
        os.kill(os.getppid(), signal.SIGKILL)
        signal.pause()
    case "sleep":
        signal.pause()
"""

WORKFLOW = """
apiVersion: argoproj.io/v1alpha1
kind: Workflow
metadata: {{generateName: forked-}}
spec:
  entrypoint: script
  templates:
  - name: script
    activeDeadlineSeconds: {seconds}
    container:
      image: none
      command: [python, steps/script.py]
      args: [/tmp/outputs, {does}]
      env: [{{name: {variable}, value: "1"}}]
"""


def run(
    place: Path,
    does: str,
    *preload: str,
    variable: str = "WORD",
    seconds: int = 60,
    script: str = SCRIPT,
) -> tuple[int, dict[str, Any], str]:
    """The exit code of a run, what its script saw, and what was written to the terminal."""
    (place / "steps").mkdir(exist_ok=True)
    (place / "steps" / "script.py").write_text(script)
    text = WORKFLOW.format(does=does, variable=variable, seconds=seconds)
    (place / "workflow.yaml").write_text(text)
    words = [word for module in preload for word in ("--preload", module)]
    ended = subprocess.run(
        [sys.executable, "-m", "runner.run_local", "workflow.yaml", *words],
        cwd=place,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        timeout=60,
    )
    seen = next(place.glob("outputs/forked-*/**/seen"), None)
    facts = json.loads(seen.read_text()) if seen else {}
    return ended.returncode, facts, ended.stdout + ended.stderr


@pytest.mark.parametrize("does", ["end", "exit", "raise", "die"])
def test_a_forked_script_is_and_ends_as_one_that_was_started(does: str, tmp_path: Path) -> None:
    (tmp_path / "alone").mkdir()
    (tmp_path / "forked").mkdir()
    alone, seen_alone, said_alone = run(tmp_path / "alone", does)
    forked, seen, said = run(tmp_path / "forked", does, "colorsys")

    assert forked == alone
    assert seen.pop("imported") and not seen_alone.pop("imported")
    assert seen.pop("parent") != seen_alone.pop("parent")
    for key in ("folder", "path", "file"):
        seen[key] = seen[key].replace(str(tmp_path / "forked"), str(tmp_path / "alone"))
    assert seen == seen_alone
    assert "a word of the script" in said
    assert ("as it happens" in said) == ("as it happens" in said_alone) == (does == "raise")
    ends = {folder: list((tmp_path / folder).rglob("ended")) for folder in ("alone", "forked")}
    assert len(ends["alone"]) == len(ends["forked"]) == (does != "die")


def test_a_forked_script_that_takes_too_long_is_stopped(tmp_path: Path) -> None:
    code, _, said = run(tmp_path, "sleep", "colorsys", seconds=1)

    assert code == 128 + signal.SIGTERM
    assert "longer than the specified deadline" in said


def test_where_the_modules_are_missing_the_scripts_run_all_the_same(tmp_path: Path) -> None:
    code, seen, said = run(tmp_path, "end", "no_such_module")

    assert (code, seen["imported"]) == (0, False)
    assert "No module named 'no_such_module'" in said


def test_a_variable_for_the_interpreter_starts_one(tmp_path: Path) -> None:
    code, seen, _ = run(tmp_path, "end", "colorsys", variable="PYTHONUNBUFFERED")

    assert (code, seen["imported"]) == (0, False)


def test_when_the_server_is_killed_its_scripts_have_failed(tmp_path: Path) -> None:
    code, seen, said = run(tmp_path, "orphan", "colorsys")

    assert seen["imported"], said
    assert code == 128 + signal.SIGKILL


BARS = """
import sys
print("first", flush=True)
sys.stderr.write("\\r\\x1b[2Kbar 1/2\\r\\x1b[2Kbar 2/2\\r\\x1b[2K")
sys.stderr.write("\\x1b[31mred\\x1b[0m\\nlast")
"""


@pytest.mark.parametrize("preload", [(), ("colorsys",)], ids=["started", "forked"])
def test_what_a_script_writes_is_shown_and_kept_beside_its_outputs(
    preload: tuple[str, ...], tmp_path: Path
) -> None:
    def log_of(place: Path) -> str:
        (log,) = place.glob("outputs/*.log")
        assert log.with_suffix("").is_dir()
        return log.read_text()

    _, _, shown = run(tmp_path, "raise", *preload)

    assert log_of(tmp_path).splitlines()[0] == "a word of the script"
    assert log_of(tmp_path).splitlines()[-1] == "ValueError: as it happens"
    assert all(line in shown for line in log_of(tmp_path).splitlines())


def test_of_a_bar_the_log_keeps_its_end(tmp_path: Path) -> None:
    run(tmp_path, "end", script=BARS)
    (log,) = tmp_path.glob("outputs/*.log")
    assert sorted(log.read_text().splitlines()) == ["first", "last", "red"]


DIES_BEFORE_IT_ANSWERS = """
import os, signal
from runner import fork_server

say = fork_server.say

def die(replies, **answer):
    if "began" in answer:
        os.kill(os.getpid(), signal.SIGKILL)
    say(replies, **answer)

fork_server.say = die
fork_server.main()
"""


def test_a_fork_of_which_nobody_was_told_does_not_begin(tmp_path: Path) -> None:
    """The runner starts the script itself then; both would be at work."""
    (tmp_path / "script.py").write_text("print('begun')")
    request = {"arguments": ["script.py"], "folder": str(tmp_path), "environment": {}}
    answers, replies = os.pipe()
    output, written = os.pipe()
    requests, server_end = socket.socketpair()
    server = subprocess.Popen(
        [sys.executable, "-c", DIES_BEFORE_IT_ANSWERS, str(replies)],
        cwd=ROOT,
        stdin=server_end,
        pass_fds=[replies],
    )
    for end in (replies, server_end.detach()):
        os.close(end)
    assert json.loads(os.read(answers, 100)) == {"ready": True}

    socket.send_fds(requests, [json.dumps(request).encode() + b"\n"], [written, written])
    os.close(written)

    assert server.wait() == -signal.SIGKILL
    with os.fdopen(output) as lines:
        assert lines.read() == ""
    os.close(answers)
    requests.close()
