"""What a run does beyond one task after the other: side by side, again, later, with a person."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import conformance as c
import pytest

from runner.language import Refused
from runner.reader import understood

Object = dict[str, Any]

MARK = """
import pathlib, sys, time
now = pathlib.Path("now"); now.mkdir(exist_ok=True)
mine = now / sys.argv[1]; mine.touch()
last = time.monotonic() + 20
while True:
    with open("most", "a") as most:
        most.write(f"{len(list(now.iterdir()))}\\n")
    counts = map(int, pathlib.Path("most").read_text().split())
    if max(counts) >= int(sys.argv[3]) or time.monotonic() > last:
        break
    time.sleep(0.02)
time.sleep(float(sys.argv[2])); mine.unlink()
"""


def mark(seconds: str, at_once: int = 1, **fields: Any) -> Object:
    """A template that notes how many of its pods run at once.

    A pod waits, up to 20 seconds, until `at_once` have run at once: on a busy machine they begin
    slowly.
    """
    container = {"image": "x", "command": ["python", "-c", MARK]}
    container["args"] = ["{{inputs.parameters.n}}", seconds, str(at_once)]
    return {"name": "mark", "inputs": c.inputs("n"), "container": container, **fields}


def marked(name: str, count: int) -> Object:
    return c.task(name, "mark", arguments=c.named(n="{{item}}"), withItems=list(range(count)))


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path


class Ran:
    def __init__(self, place: Path, done: subprocess.CompletedProcess[str]) -> None:
        self.place, self.exit_code, self.stderr = place, done.returncode, done.stderr
        self.stdout = done.stdout

    @property
    def document(self) -> Object:
        return json.loads((self.place / "outputs/latest/status.json").read_text())

    @property
    def facts(self) -> Object:
        return c.facts(self.document["status"], self.document["metadata"]["name"])

    @property
    def phases(self) -> dict[str, str]:
        return {path: node["phase"] for path, node in self.facts["nodes"].items()}


Runner = Callable[..., Ran]


def command(place: Path, document: Object, *arguments: str) -> list[str]:
    (place / "w.yaml").write_text(json.dumps(document))
    return [sys.executable, "-m", "runner.run_local", "w.yaml", *arguments]


@pytest.fixture
def run(place: Path) -> Runner:
    def run(document: Object, *arguments: str) -> Ran:
        done = subprocess.run(
            command(place, document, *arguments),
            cwd=place,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        return Ran(place, done)

    return run


def most(place: Path) -> int:
    return max(int(line) for line in (place / "most").read_text().split())


def test_two_hundred_nodes_keep_to_the_parallelism_and_cost_little(run: Runner, place: Path):
    started = time.monotonic()
    bare = subprocess.run([sys.executable, "-c", MARK, "x", "0", "1"], cwd=place, check=True)
    one = time.monotonic() - started
    (place / "most").unlink()
    assert bare.returncode == 0

    started = time.monotonic()
    ran = run(c.workflow(mark("0.05"), c.dag(marked("a", 200)), parallelism=8))
    taken = time.monotonic() - started

    assert ran.exit_code == 0, ran.stderr
    assert sum(path.startswith(".a(") for path in ran.phases) == 200
    assert most(place) <= 8
    assert taken / 200 < 0.3 + one


def test_a_template_that_succeeds_is_not_tried_again(run: Runner):
    # A backoff without a duration is an Error where a next attempt is asked about.
    line = mark("0", retryStrategy={"limit": 2, "backoff": {"factor": 2}})
    ran = run(c.workflow(line, c.dag(marked("a", 1))))

    assert ran.exit_code == 0, ran.stderr
    assert set(ran.phases.values()) == {"Succeeded"}


@pytest.mark.parametrize("limited", ["workflow", "dag", "mutex", "semaphore"])
def test_what_limits_how_many_run_at_once(run: Runner, place: Path, limited: str):
    fields: dict[str, Object] = {"workflow": {}, "dag": {}, "mark": {}}
    key = {"configMapKeyRef": {"name": "queue", "key": "gpu"}}
    at_once = 2 if limited in fields else 1
    if limited in fields:
        fields[limited] = {"parallelism": 2}
    else:
        locks = {"mutex": {"mutexes": [{"name": "one"}]}, "semaphore": {"semaphores": [key]}}
        fields["mark"] = {"synchronization": locks[limited]}
    ran = run(
        c.workflow(
            mark("0.2", at_once, **fields["mark"]),
            c.dag(marked("a", 5), **fields["dag"]),
            **fields["workflow"],
        )
    )

    assert ran.exit_code == 0, ran.stderr
    assert most(place) == at_once


def test_without_a_limit_tasks_run_side_by_side(run: Runner, place: Path):
    assert run(c.workflow(mark("0", 3), c.dag(marked("a", 3)))).exit_code == 0
    assert most(place) == 3


FLAKY = {
    "name": "flaky",
    "container": {
        "image": "x",
        "command": [
            "python",
            "-c",
            "import pathlib, sys; sys.exit(not pathlib.Path('ok').exists())",
        ],
    },
}
FLAKY_SAY = {
    # Its first member fails until there is a file `ok`.
    "name": "flaky-say",
    "outputs": c.outputs(c.file()),
    "container": {
        "image": "x",
        "command": ["python", "-c", "import pathlib, sys\n"
                    "pathlib.Path(sys.argv[1], 'out').write_text(sys.argv[2])\n"
                    "sys.exit(sys.argv[2] == '0' and not pathlib.Path('ok').exists())"],
        "args": ["/tmp/outputs", "{{inputs.parameters.n}}"],
    },
}  # fmt: skip
COUNT = {
    "name": "count",
    "outputs": c.outputs(c.file()),
    "container": {
        "image": "x",
        "command": ["python", "-c", "import pathlib, sys\n"
                    "with open('counted', 'a') as f: f.write('x')\n"
                    "pathlib.Path(sys.argv[1], 'out').write_text(open('counted').read())"],
        "args": ["/tmp/outputs"],
    },
}  # fmt: skip
BROKEN = c.workflow(
    COUNT,
    c.SAY,
    FLAKY,
    c.dag(
        c.task("first", "count"),
        c.task("second", "flaky", depends="first"),
        c.say("third", c.out("first"), depends="second"),
    ),
)


def test_a_broken_run_is_resumed_where_it_broke(run: Runner, place: Path):
    broken = run(BROKEN)
    assert broken.exit_code == 1
    assert broken.phases[".third"] == "Omitted"
    (place / "ok").touch()

    resumed = run(BROKEN, "--resume")

    assert resumed.exit_code == 0, resumed.stderr
    assert (place / "counted").read_text() == "x"
    assert resumed.facts["nodes"][".third"]["outputs"] == {"out": "x"}
    assert set(resumed.phases.values()) == {"Succeeded"}
    assert len(list((place / "outputs").glob("conforms-*"))) == 1


def test_a_killed_run_can_be_resumed(run: Runner, place: Path):
    slow = c.workflow(COUNT, c.SLOW, c.dag(
        c.task("first", "count"),
        c.task("second", "slow", arguments=c.named(seconds="{{workflow.parameters.s}}"),
               depends="first"),
    ), arguments=c.named(s="60"))  # fmt: skip
    process = subprocess.Popen(command(place, slow), cwd=place, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 20
    status = place / "outputs/latest/status.json"
    while not status.exists() or '"second"' not in status.read_text():
        assert time.monotonic() < until
        time.sleep(0.05)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.kill()
    process.wait()

    (outlived,) = children
    early = run(slow, "--resume", "-p", "s=0")
    assert early.exit_code == 75
    assert f"is still running (processes {outlived}); wait for them, or stop them" in early.stderr
    os.kill(int(outlived), signal.SIGKILL)
    resumed = run(slow, "--resume", "-p", "s=0")

    assert resumed.exit_code == 0, resumed.stderr
    assert "s was '60' for what is kept of" in resumed.stderr
    assert (place / "counted").read_text() == "x"


def test_a_run_is_taken_up_at_a_task_and_goes_on_from_there(run: Runner, place: Path):
    (place / "ok").touch()
    assert run(BROKEN).exit_code == 0

    again = run(BROKEN, "--from", "first")

    assert again.exit_code == 0
    assert again.facts["nodes"][".third"]["outputs"] == {"out": "xx"}


def test_a_task_that_is_skipped_this_time_leaves_nothing_of_the_last_time(run: Runner, place: Path):
    judged = c.workflow(c.SAY, c.dag(
        c.task("gate", arguments=c.named(word="{{workflow.parameters.word}}")),
        c.task("deploy", arguments=c.named(word="{{item}}"), withItems=["x", "y"], depends="gate",
               when="{{tasks.gate.outputs.parameters.out}} == passed"),
        c.task("other", arguments=c.named(word="z")),
    ), arguments=c.named(word="passed"))  # fmt: skip
    assert run(judged).exit_code == 0
    folder = place / "outputs/latest"
    assert (folder / "deploy.1/out").read_text().strip() == "y"

    assert run(judged, "--from", "gate", "-p", "word=failed").exit_code == 0

    assert (folder / "gate/out").read_text().strip() == "failed"
    left = sorted(path.name for path in folder.iterdir() if path.is_dir())
    assert left == ["gate", "other"]


def test_one_task_runs_again_and_leaves_the_others_as_they_were(run: Runner, place: Path):
    (place / "ok").touch()
    assert run(BROKEN).exit_code == 0
    (place / "ok").unlink()

    only = run(BROKEN, "--only", "second")

    assert only.exit_code == 1
    assert (place / "counted").read_text() == "x"
    assert only.document["status"]["phase"] == "Failed"
    assert [only.phases[path] for path in (".first", ".second", ".third")] == [
        "Succeeded",
        "Failed",
        "Succeeded",
    ]


@pytest.mark.parametrize("flag", ["--from", "--only"])
def test_a_task_that_is_none_is_refused_with_those_there_are(run: Runner, flag: str):
    ran = run(BROKEN, flag, "fourth")

    assert ran.exit_code == 2
    assert "fourth" in ran.stderr
    assert "first, second, third" in ran.stderr


def test_nothing_to_resume_is_said_in_a_sentence(run: Runner):
    ran = run(BROKEN, "--resume")

    assert ran.exit_code == 2
    assert len(ran.stderr.splitlines()) == 1
    assert "run the workflow first" in ran.stderr


def test_a_run_of_another_workflow_is_not_taken_further(run: Runner):
    other = c.workflow(c.SAY, c.dag(c.say("first", "x")))
    assert run({**other, "metadata": {"generateName": "other-"}}).exit_code == 0

    ran = run(BROKEN, "--from", "first")

    assert ran.exit_code == 2
    assert "another workflow" in ran.stderr


def test_a_resumed_fan_in_keeps_the_order_of_the_items(run: Runner, place: Path):
    broken = c.workflow(
        {
            **FLAKY_SAY,
            "inputs": c.inputs("n"),
        },
        c.SAY,
        c.dag(
            c.task("a", "flaky-say", arguments=c.named(n="{{item}}"), withItems=[0, 1, 2]),
            c.say("b", c.out("a"), depends="a"),
        ),
    )
    assert run(broken).exit_code == 1
    (place / "ok").touch()
    resumed = run(broken, "--resume")

    assert resumed.facts["nodes"][".b"]["inputs"] == {"word": '["0","1","2"]'}


ASKED = c.workflow(
    {
        "name": "ask",
        "suspend": {},
        "inputs": c.inputs(word={"default": "no", "enum": ["yes", "no"]}),
        "outputs": c.outputs({"name": "word", "valueFrom": {"supplied": {}, "default": "no"}}),
    },
    c.SAY,
    c.dag(
        c.task("asked", "ask"),
        c.say("done", "{{tasks.asked.outputs.parameters.word}}", depends="asked",
              when="{{tasks.asked.outputs.parameters.word}} == yes"),
    ),
)  # fmt: skip


def test_a_suspended_run_waits_and_goes_on_with_an_answer(run: Runner):
    waiting = run(ASKED)
    assert waiting.exit_code == 75
    assert waiting.document["status"]["phase"] == "Running"
    assert "--resume --answer asked.word=" in waiting.stderr

    wrong = run(ASKED, "--resume", "--answer", "asked.word=maybe")
    assert wrong.exit_code == 2
    assert "--answer asked.word=maybe is none of no, yes" in wrong.stderr
    nobody = run(ASKED, "--resume", "--answer", "aksed.word=yes")
    assert nobody.exit_code == 2
    assert "no task asks that; accepted: asked.word" in nobody.stderr

    answered = run(ASKED, "--resume", "--answer", "asked.word=yes")
    assert answered.exit_code == 0, answered.stderr
    assert answered.facts["nodes"][".asked"]["outputs"] == {"word": "yes"}
    assert answered.phases[".done"] == "Succeeded"


@pytest.mark.parametrize(("typed", "phase"), [("maybe\nyes\n", "Succeeded"), ("\n", "Skipped")])
def test_a_terminal_is_asked_until_the_answer_is_one_of_those_there_are(
    place: Path, typed: str, phase: str
):
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        command(place, ASKED), cwd=place, stdin=theirs, stderr=subprocess.PIPE, text=True
    )
    os.write(ours, typed.encode())
    _, message = process.communicate(timeout=30)

    assert process.returncode == 0, message
    assert "asked: word (yes, no) [no]? " in message
    status = json.loads((place / "outputs/latest/status.json").read_text())
    assert c.facts(status["status"], status["metadata"]["name"])["nodes"][".done"]["phase"] == phase


def test_ctrl_c_ends_a_question(place: Path):
    _ours, theirs = pty.openpty()
    process = subprocess.Popen(
        command(place, ASKED), cwd=place, stdin=theirs, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    printed = ""
    while not printed.endswith("]? "):
        letter = process.stderr.read(1)
        assert letter, printed
        printed += letter
    process.send_signal(signal.SIGINT)

    assert process.wait(timeout=10) == 130


def test_progress_that_a_step_writes_stands_in_the_status(run: Runner):
    step = {
        "name": "step",
        "container": {
            "image": "x",
            "command": ["python", "-c", "import os, pathlib\n"
                        "pathlib.Path(os.environ['ARGO_PROGRESS_FILE']).write_text('3/7\\n')"],
        },
    }  # fmt: skip
    ran = run(c.workflow(step, c.dag(c.task("a", "step"))))

    assert [n["progress"] for n in ran.document["status"]["nodes"].values()] == ["", "3/7"]


@pytest.mark.parametrize("written", ["b'\\xff\\xfe'", "b'1/4 soon'"])
def test_progress_that_is_none_harms_no_run(run: Runner, written: str):
    program = f"import os; open(os.environ['ARGO_PROGRESS_FILE'], 'wb').write({written})"
    container = {"image": "x", "command": ["python", "-c", program]}
    ran = run(c.workflow({"name": "step", "container": container}, c.dag(c.task("a", "step"))))

    assert ran.exit_code == 0, ran.stderr
    assert "Traceback" not in ran.stderr
    assert [n["progress"] for n in ran.document["status"]["nodes"].values()] == ["", ""]


def test_members_of_a_fan_out_have_folders_of_their_own(run: Runner, place: Path):
    inner = c.dag(c.say("w", "{{inputs.parameters.x}}"), name="inner", inputs=c.inputs("x"))
    task = c.task("row", "inner", arguments=c.named(x="{{item}}"), withItems=["a/../b", "c(d)"])
    ran = run(c.workflow(c.SAY, inner, c.dag(task)))

    assert ran.exit_code == 0, ran.stderr
    written = {p.relative_to(place): p.read_text() for p in place.glob("outputs/latest/*/*/out")}
    assert set(written.values()) == {"a/../b", "c(d)"}
    assert {str(p) for p in written} == {f"outputs/latest/row.{i}/w/out" for i in (0, 1)}


@pytest.mark.parametrize("kind", ["WorkflowTemplate", "CronWorkflow"])
def test_other_kinds_of_workflow_run_like_one(run: Runner, kind: str):
    document = c.workflow(c.SAY, c.dag(c.say("a", "x")))
    document |= {"kind": kind, "metadata": {"name": "weekly"}}
    if kind == "CronWorkflow":
        document["spec"] = {"schedules": ["0 3 * * 0"], "workflowSpec": document["spec"]}
    ran = run(document)

    assert ran.exit_code == 0, ran.stderr
    assert ran.document["metadata"]["name"].startswith("weekly-")


def test_a_full_disk_ends_the_run_in_a_sentence_and_leaves_no_process(place: Path):
    document = c.workflow(c.SLOW, c.dag(c.task("a", "slow", arguments=c.named(seconds="45"))))
    process = subprocess.Popen(
        command(place, document), cwd=place, stderr=subprocess.PIPE, text=True
    )
    until = time.monotonic() + 20
    while not (place / "outputs/latest/a").is_dir():
        assert time.monotonic() < until
        time.sleep(0.05)
    # A folder in the file's place fails as a full disk does: the next writing raises.
    part = place / "outputs/latest/.status.json.part"
    while not part.is_dir():
        try:
            part.mkdir()
        except FileExistsError:
            time.sleep(0.01)
    _, message = process.communicate(timeout=20)

    assert process.returncode == 75
    assert message.splitlines()[-1].endswith("continue with --resume")
    assert "Traceback" not in message


WAITING = c.workflow(
    {
        **c.SLOW,
        "synchronization": {"mutexes": [{"name": "m-{{inputs.parameters.k}}"}]},
        "inputs": c.inputs("seconds", "k"),
    },
    c.dag(
        c.task("slow", "slow", arguments=c.named(seconds="45", k="x")),
        name="inner",
        inputs=c.inputs("k"),
        synchronization={"mutexes": [{"name": "m-{{inputs.parameters.k}}"}]},
    ),
    c.dag(
        c.task("holds", "slow", arguments=c.named(seconds="45", k="y")),
        c.task("waits", "slow", arguments=c.named(seconds="45", k="y")),
    ),
)


@pytest.mark.parametrize(
    ("signum", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["ctrl-c", "term"]
)
def test_a_signal_ends_a_wait_for_a_mutex(place: Path, signum: int, exit_code: int):
    process = subprocess.Popen(command(place, WAITING), cwd=place, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 20
    while not list(place.glob("outputs/latest/*/")):
        assert time.monotonic() < until
        time.sleep(0.05)
    time.sleep(0.3)
    process.send_signal(signum)

    assert process.wait(timeout=15) == exit_code


SAVE = """
import pathlib, signal, sys, time

def save(*_):
    pathlib.Path("asked").touch()
    time.sleep(float(sys.argv[1]))
    pathlib.Path("saved").touch()
    sys.exit(75)

signal.signal(signal.SIGTERM, save)
pathlib.Path("begun").touch()
time.sleep(60)
"""


@pytest.mark.parametrize(
    ("deadline", "seconds", "interrupted_at", "times", "saved"),
    [
        (3, "2", "asked", 1, True),
        (4, "6", "begun", 1, True),
        (60, "20", "begun", 2, False),
    ],
    ids=["after the deadline", "before the deadline", "twice"],
)
def test_only_a_second_signal_takes_the_time_to_save(
    place: Path, deadline: int, seconds: str, interrupted_at: str, times: int, saved: bool
):
    container = {"image": "x", "command": ["python", "-c", SAVE], "args": [seconds]}
    saving = {"name": "saving", "container": container}
    document = c.workflow(saving, c.dag(c.task("a", "saving")))
    document["spec"]["activeDeadlineSeconds"] = deadline
    process = subprocess.Popen(command(place, document), cwd=place, stderr=subprocess.DEVNULL)
    for file in [interrupted_at, "asked"][:times]:
        until = time.monotonic() + 20
        while not (place / file).exists():
            assert time.monotonic() < until
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)

    assert process.wait(timeout=15) == 130
    assert (place / "saved").exists() == saved


def test_the_workflows_deadline_ends_a_wait_for_a_mutex(run: Runner):
    spec = {**WAITING["spec"], "activeDeadlineSeconds": 2}
    started = time.monotonic()
    ran = run({**WAITING, "spec": spec})

    assert time.monotonic() - started < 20
    assert ran.exit_code == 143
    messages = {n["displayName"]: n["message"] for n in ran.document["status"]["nodes"].values()}
    assert messages["waits"] == "Step exceeded its deadline"
    assert ran.phases[".holds"] == ran.phases[".waits"] == "Failed"


def test_a_mutex_that_only_its_value_shows_to_be_held_ends_the_node(run: Runner):
    document = {**WAITING, "spec": {**WAITING["spec"]}}
    document["spec"]["templates"] = [
        {**WAITING["spec"]["templates"][0]},
        c.dag(
            c.task("slow", "slow", arguments=c.named(seconds="0", k="{{inputs.parameters.k}}")),
            name="inner",
            inputs=c.inputs("k"),
            synchronization={"mutexes": [{"name": "m-{{inputs.parameters.k}}"}]},
        ),
        c.dag(c.task("a", "inner", arguments=c.named(k="z"))),
    ]
    ran = run(document)

    assert ran.exit_code == 1
    assert "mutex m-z is held by a template that waits for this one" in ran.stderr


@pytest.mark.parametrize("seed", ["0", "1", "2", "5"])
def test_the_phase_depends_on_no_hash_seed(place: Path, seed: str):
    lost = {**c.SAY, "name": "lost", "outputs": c.outputs(c.file("never"))}
    document = c.workflow(
        c.SAY,
        c.LEAVE,
        lost,
        c.dag(
            c.task("a", "lost", arguments=c.named(word="x")),
            c.leave("b", 3),
            c.say("c", "x", depends="a && b"),
        ),
    )
    subprocess.run(
        command(place, document),
        cwd=place,
        env={**os.environ, "PYTHONHASHSEED": seed},
        capture_output=True,
        check=False,
        timeout=60,
    )
    status = json.loads((place / "outputs/latest/status.json").read_text())["status"]

    assert status["phase"] == "Error"


def test_an_escape_code_in_a_value_of_the_file_is_refused():
    with pytest.raises(Refused, match=r"argument word: .* Argo cannot hand on"):
        understood(c.workflow(c.SAY, c.dag(c.say("a", "x\x07"))))


def test_an_escape_code_in_an_output_ends_the_task_that_reads_it(run: Runner):
    program = c.program()
    code = program["command"][2].replace("sys.exit(code)", "(out / 'out').write_text('x\\x07')")
    template = c.template("e", {**program, "command": ["python", "-c", code]}, c.file())
    ran = run(
        c.workflow(template, c.SAY, c.dag(c.task("a", "e"), c.say("b", c.out("a"), depends="a")))
    )

    assert ran.phases[".b"] == "Error"
    assert "Argo cannot hand on" in ran.stderr


def test_a_value_that_argo_would_read_again_is_said(run: Runner):
    program = c.program()
    code = program["command"][2].replace(
        "sys.exit(code)", "(out / 'out').write_text('{' * 2 + '=1+1}' + '}')"
    )
    template = c.template("e", {**program, "command": ["python", "-c", code]}, c.file())
    ran = run(
        c.workflow(template, c.SAY, c.dag(c.task("a", "e"), c.say("b", c.out("a"), depends="a")))
    )

    assert ran.phases[".b"] == "Error"
    assert "Argo would take that for a reference" in ran.stderr


def test_variables_in_brackets_are_filled_in_as_kubernetes_does(run: Runner):
    container = {
        **c.program("$(X)", "a$$b $(NONE) $$(X)"),
        "env": [{"name": "W", "value": "w"}, {"name": "X", "value": "$(W)-x"}],
    }
    ran = run(
        c.workflow(c.template("t", container, c.file(), c.file("second")), c.dag(c.task("a", "t")))
    )

    assert ran.facts["nodes"][".a"]["outputs"] == {"out": "w-x", "second": "a$b $(NONE) $(X)"}


def test_a_variable_from_a_secret_is_this_processs_own(
    run: Runner, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("TOKEN_OF_A_TEST", "from here")
    key = {"secretKeyRef": {"name": "s", "key": "k"}}
    container = {
        **c.program("$(TOKEN_OF_A_TEST)"),
        "env": [{"name": "TOKEN_OF_A_TEST", "valueFrom": key}],
    }
    ran = run(c.workflow(c.template("t", container, c.file()), c.dag(c.task("a", "t"))))

    assert ran.facts["nodes"][".a"]["outputs"] == {"out": "from here"}


def test_what_an_exit_handler_knows_is_unknown_to_a_template_that_also_runs_before():
    status = c.template("t", c.program("{{workflow.status}}"))
    understood(c.workflow(status, c.SAY, c.dag(c.say("a", "x")), onExit="t"))
    with pytest.raises(Refused, match=r"workflow\.status"):
        understood(c.workflow(status, c.dag(c.task("a", "t")), onExit="t"))
