"""The local runner does what Argo would do with a workflow, or refuses by name to start it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from runner.language import Refused
from runner.reader import read

ROOT = Path(__file__).parents[2]
Object = dict[str, Any]


def python(code: str, **fields: Any) -> Object:
    """A container template that runs Python code; its output is the file `out`."""
    file = {"path": "/tmp/outputs/out", "default": "nothing"}
    return {
        "outputs": {"parameters": [{"name": "out", "valueFrom": file}]},
        "container": {
            "image": "unused",
            "command": ["python", "-c", textwrap.dedent(code)],
            "args": ["/tmp/outputs"],
        },
        **fields,
    }


WRITE = """
import pathlib, sys
pathlib.Path(sys.argv[1], "out").write_text({text!r})
"""


def workflow(templates: Object, tasks: list[Object], **spec: Any) -> Object:
    named = [{"name": name, **template} for name, template in templates.items()]
    return {
        "apiVersion": "argoproj.io/v1alpha1",
        "kind": "Workflow",
        "metadata": {"generateName": "small-"},
        "spec": {
            "entrypoint": "line",
            "templates": [*named, {"name": "line", "dag": {"tasks": tasks}}],
            **spec,
        },
    }


class Ran:
    """What a finished run left behind."""

    def __init__(self, root: Path, done: subprocess.CompletedProcess[str]) -> None:
        self.root, self.exit_code = root, done.returncode
        self.stdout, self.stderr = done.stdout, done.stderr

    @property
    def status(self) -> Object:
        return json.loads((self.root / "outputs/latest/status.json").read_text())["status"]

    @property
    def nodes(self) -> dict[str, Object]:
        """The tasks' nodes: neither the workflow's own nor single attempts."""
        result = self.status["nodes"].values()
        retried = {node["id"] for node in result if node["type"] == "Retry"}
        return {
            node["displayName"]: node
            for node in result
            if node["boundaryID"] and node["boundaryID"] not in retried
        }

    @property
    def phases(self) -> dict[str, str]:
        return {name: node["phase"] for name, node in self.nodes.items()}

    def output(self, name: str) -> str:
        return self.nodes[name]["outputs"]["parameters"][0]["value"]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A repository of its own."""
    (tmp_path / "workflows").mkdir()
    return tmp_path


def command(root: Path, document: Object, *arguments: str) -> list[str]:
    file = root / "workflows/small.yaml"
    file.write_text(yaml.safe_dump(document))
    return [sys.executable, "-m", "runner.run_local", "workflows/small.yaml", *arguments]


Runner = Callable[..., Ran]


@pytest.fixture
def run(root: Path) -> Runner:
    def run(document: Object, *arguments: str, **environment: str) -> Ran:
        done = subprocess.run(
            command(root, document, *arguments),
            cwd=root,
            env=os.environ | environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=20,
        )
        return Ran(root, done)

    return run


def test_tasks_run_after_those_they_depend_on_and_outputs_are_handed_over(run: Runner, root: Path):
    echo = python(
        """
        import pathlib, sys
        pathlib.Path("order").open("a").write(sys.argv[2])
        pathlib.Path(sys.argv[1], "out").write_text(sys.argv[2] + "\\n")
        """,
        inputs={"parameters": [{"name": "word"}]},
    )
    echo["container"]["args"].append("{{inputs.parameters.word}}")

    def task(name: str, word: str, **fields: Any) -> Object:
        arguments = {"parameters": [{"name": "word", "value": word}]}
        return {"name": name, "template": "echo", "arguments": arguments, **fields}

    tasks = [
        task("c", "{{tasks.b.outputs.parameters.out}}c", depends="a && b"),
        task("b", "{{ tasks.a.outputs.parameters.out }}b", depends="a.Succeeded || a.Failed"),
        task("a", "{{workflow.parameters.word}}"),
    ]
    ran = run(
        workflow({"echo": echo}, tasks, arguments={"parameters": [{"name": "word", "value": "x"}]}),
        *("-p", "word=y z"),
    )

    assert ran.exit_code == 0, ran.stderr
    assert [ran.output(name) for name in "abc"] == ["y z", "y zb", "y zbc"]
    assert (root / "order").read_text() == "y zy zby zbc"


def test_status_is_shaped_like_argos(run: Runner):
    one = python(WRITE.format(text="1"), inputs={"parameters": [{"name": "x", "default": "d"}]})
    ran = run(workflow({"one": one}, [{"name": "a", "template": "one"}]))
    node = ran.nodes["a"]

    assert ran.status["phase"] == "Succeeded"
    root = ran.status["nodes"][node["boundaryID"]]
    assert (root["type"], root["phase"], root["name"]) == ("DAG", "Succeeded", root["id"])
    assert node["name"] == f"{root['name']}.a"
    assert node["id"] in ran.status["nodes"]
    assert node["type"] == "Pod"
    assert node["templateName"] == "one"
    assert node["inputs"] == {"parameters": [{"name": "x", "value": "d"}]}
    assert node["outputs"] == {"parameters": [{"name": "out", "value": "1"}], "exitCode": "0"}
    assert node["startedAt"] <= node["finishedAt"] <= ran.status["finishedAt"]
    assert node["startedAt"].endswith("Z")


def test_each_node_is_said_once_and_the_place_of_the_status_at_the_end(run: Runner):
    ran = run(workflow({"one": python("")}, [{"name": "a", "template": "one"}]))
    (status,) = ran.stdout.splitlines()

    assert status.split()[0] == "status"
    assert (ran.root / status.split()[1]).is_file()
    assert [line.split()[:2] for line in ran.stderr.splitlines()] == [
        ["a", "Running"],
        ["a", "Succeeded"],
    ]
    assert "\x1b" not in ran.stderr + ran.stdout


def test_a_dry_run_refuses_items_that_are_no_list(run: Runner):
    fan_out = {"name": "a", "template": "one", "withParam": "{{workflow.parameters.names}}"}
    document = workflow({"one": python("")}, [fan_out])
    document["spec"]["arguments"] = {"parameters": [{"name": "names", "value": "x"}]}
    refused = run(document, "--dry-run")
    assert refused.exit_code == 2
    assert refused.stderr == "run-local: a runs once for each of 'x', which is no JSON list\n"


def test_each_run_has_a_name_and_a_folder_of_its_own(run: Runner, root: Path):
    document = workflow({"one": python("")}, [{"name": "a", "template": "one"}])
    first = run(document).stdout
    second = run(document).stdout

    assert first.splitlines()[-1] != second.splitlines()[-1]
    assert (root / "outputs/latest/status.json").samefile(root / second.split()[-1])


def test_each_workflow_has_a_link_to_its_own_last_run(run: Runner, root: Path):
    document = workflow({"one": python("")}, [{"name": "a", "template": "one"}])
    mine = root / run(document).stdout.split()[-1]
    other = root / "workflows/other.yaml"
    other.write_text((root / "workflows/small.yaml").read_text().replace("small-", "other-"))
    again = [sys.executable, "-m", "runner.run_local"]
    done = subprocess.run([*again, other], cwd=root, capture_output=True, text=True, check=True)
    theirs = root / done.stdout.split()[-1]

    assert (root / "outputs/latest-small/status.json").samefile(mine)
    assert (root / "outputs/latest-other/status.json").samefile(theirs)
    assert (root / "outputs/latest/status.json").samefile(theirs)
    resumed = run(document, "--resume")
    assert (resumed.exit_code, root / resumed.stdout.split()[-1]) == (0, mine)


def test_a_new_run_is_named_and_no_name_is_used_twice(run: Runner, root: Path):
    document = workflow({"one": python("")}, [{"name": "a", "template": "one"}])
    run(document, "--name", "small-mine")
    assert (root / "outputs/small-mine/status.json").is_file()
    assert (root / "outputs/latest").readlink() == Path("small-mine")

    for name, message in [
        ("small-mine", "there is such a run"),
        ("other", "write small-…"),
        ("small-../../x", "write small-…"),
    ]:
        refused = run(document, "--name", name)
        assert refused.exit_code == 2
        assert message in refused.stderr


@pytest.mark.parametrize(("verdict", "phase"), [("passed", "Succeeded"), ("failed", "Skipped")])
def test_when_decides_whether_a_task_runs_and_skipping_is_no_failure(
    run: Runner, verdict: str, phase: str
):
    gate, deploy = python(WRITE.format(text=verdict)), python(WRITE.format(text="deployed"))
    when = "{{tasks.gate.outputs.parameters.out}} == passed"
    ran = run(
        workflow(
            {"gate": gate, "deploy": deploy},
            [
                {"name": "gate", "template": "gate"},
                {"name": "deploy", "template": "deploy", "depends": "gate", "when": when},
            ],
        )
    )

    assert ran.exit_code == 0
    assert ran.phases == {"gate": "Succeeded", "deploy": phase}


def test_an_output_of_a_skipped_task_reads_as_empty(run: Runner):
    echo = python(
        "import pathlib, sys; pathlib.Path(sys.argv[1], 'out').write_text(sys.argv[2])",
        inputs={"parameters": [{"name": "word"}]},
    )
    echo["container"]["args"].append("{{inputs.parameters.word}}")
    word = {"name": "word", "value": "<{{tasks.a.outputs.parameters.out}}>"}
    ran = run(
        workflow(
            {"one": python(WRITE.format(text="1")), "echo": echo},
            [
                {"name": "a", "template": "one", "when": "yes != yes"},
                {
                    "name": "b",
                    "template": "echo",
                    "depends": "a",
                    "arguments": {"parameters": [word]},
                },
            ],
        )
    )

    assert ran.phases == {"a": "Skipped", "b": "Succeeded"}
    assert ran.output("b") == "<>"


FAIL_ONCE = """
import pathlib, sys
if pathlib.Path("before").exists():
    sys.exit(0)
pathlib.Path("before").touch()
pathlib.Path(sys.argv[1], "out").write_text("stale")
sys.exit({code})
"""
RETRY = {"limit": 2, "expression": "lastRetry.status == 'Error' || asInt(lastRetry.exitCode) == 75"}


def test_a_step_that_says_try_again_is_tried_again_and_leaves_no_stale_output(run: Runner):
    step = python(FAIL_ONCE.format(code=75), retryStrategy=RETRY)
    ran = run(workflow({"step": step}, [{"name": "a", "template": "step"}]))

    assert ran.exit_code == 0
    assert ran.phases == {"a": "Succeeded"}
    assert ran.output("a") == "nothing"
    assert "attempt 2 of 3" in ran.stderr


def test_a_users_mistake_is_not_tried_again_and_keeps_its_exit_code(run: Runner):
    step = python(FAIL_ONCE.format(code=2), retryStrategy=RETRY)
    tasks = [
        {"name": "a", "template": "step"},
        {"name": "b", "template": "step", "depends": "a"},
        {"name": "c", "template": "step", "depends": "b"},
    ]
    ran = run(workflow({"step": step}, tasks))

    assert ran.exit_code == 2
    assert ran.status["phase"] == "Failed"
    assert ran.phases == {"a": "Failed", "b": "Omitted", "c": "Omitted"}
    assert ran.nodes["a"]["message"] == "retryStrategy.expression evaluated to false"
    assert ran.nodes["a"]["outputs"]["exitCode"] == "2"
    assert "retryStrategy.expression evaluated to false (main: Error (exit code 2))" in ran.stderr


def test_retries_end_at_the_limit_with_the_steps_exit_code(run: Runner, root: Path):
    step = python(
        "import pathlib, sys; pathlib.Path('tries').open('a').write('.'); sys.exit(75)",
        retryStrategy={**RETRY, "limit": "1"},
    )
    ran = run(workflow({"step": step}, [{"name": "a", "template": "step"}]))

    assert ran.exit_code == 75
    assert (root / "tries").read_text() == ".."


def test_the_exit_code_is_that_of_the_failure_which_no_attempt_made_up_for(run: Runner):
    steps = {
        "flaky": python(FAIL_ONCE.format(code=75), retryStrategy=RETRY),
        "mistaken": python("raise SystemExit(2)"),
        "say": python("raise SystemExit(75)"),
    }
    tasks = [
        {"name": "a", "template": "flaky"},
        {"name": "b", "template": "mistaken", "depends": "a"},
    ]
    ran = run(workflow(steps, tasks, onExit="say"))

    assert ran.phases == {"a": "Succeeded", "b": "Failed"}
    assert ran.exit_code == 2


def test_the_exit_code_is_that_of_the_last_step_that_failed(run: Runner):
    steps = {
        "member": python("raise SystemExit(2)"),
        "gate": python("raise SystemExit(75)"),
    }
    tasks = [
        {"name": "a", "template": "member"},
        {"name": "b", "template": "gate", "depends": "a.Failed"},
    ]
    assert run(workflow(steps, tasks)).exit_code == 75


def test_a_failure_that_a_task_waited_for_does_not_fail_the_workflow(run: Runner):
    tasks = [
        {"name": "a", "template": "fail"},
        {"name": "rescue", "template": "pass", "depends": "a.Failed && !a.Succeeded"},
    ]
    ran = run(workflow({"fail": python("raise SystemExit(3)"), "pass": python("")}, tasks))

    assert ran.exit_code == 0
    assert ran.phases == {"a": "Failed", "rescue": "Succeeded"}


def test_an_output_without_default_that_is_not_written_is_an_error(run: Runner):
    step = python("")
    del step["outputs"]["parameters"][0]["valueFrom"]["default"]
    ran = run(workflow({"step": step}, [{"name": "a", "template": "step"}]))

    assert ran.exit_code == 1
    assert ran.phases == {"a": "Error"}
    assert "out" in ran.nodes["a"]["message"]


def test_a_step_that_runs_too_long_is_stopped(run: Runner):
    step = python("import time; time.sleep(60)", activeDeadlineSeconds=1)
    ran = run(workflow({"step": step}, [{"name": "a", "template": "step"}]))

    assert ran.exit_code == 128 + signal.SIGTERM
    assert ran.nodes["a"]["message"].endswith("longer than the specified deadline")
    assert "(activeDeadlineSeconds is 1 s)" in ran.stderr


def test_literal_variables_win_and_the_namespaces_come_from_the_own_environment(run: Runner):
    step = python(
        """
        import os, pathlib, sys
        words = [os.environ["LITERAL"], os.environ["FROM_MAP"]]
        pathlib.Path(sys.argv[1], "out").write_text(" ".join(words))
        """
    )
    step["container"]["env"] = [
        {"name": "LITERAL", "value": "{{workflow.name}}"},
        {"name": "FROM_MAP", "valueFrom": {"configMapKeyRef": {"name": "m", "key": "k"}}},
    ]
    document = workflow({"step": step}, [{"name": "a", "template": "step"}])
    ran = run(document, LITERAL="outer", FROM_MAP="mine")

    name = (ran.root / "outputs/latest").readlink().name
    assert ran.output("a") == f"{name} mine"


def test_dry_run_prints_the_commands_and_runs_nothing(run: Runner, root: Path):
    ran = run(workflow({"one": python("")}, [{"name": "a", "template": "one"}]), "--dry-run")

    assert ran.exit_code == 0
    assert ran.stdout.startswith(f"a: {sys.executable} -c")
    assert not (root / "outputs").exists()


@pytest.mark.parametrize(
    ("arguments", "printed"),
    [(["--only", "b"], "b"), (["--from", "b"], "bc"), (["--resume"], ""), (["--run", "x"], "")],
)
def test_dry_run_prints_what_would_run(run: Runner, arguments: list[str], printed: str):
    tasks = [{"name": "a", "template": "one"}]
    tasks += [{"name": n, "template": "one", "depends": up} for n, up in ("ba", "cb")]
    ran = run(workflow({"one": python("")}, tasks), "--dry-run", *arguments)

    assert ran.exit_code == (0 if printed else 2)
    assert [line[0] for line in ran.stdout.splitlines() if line[1:3] == ": "] == list(printed)


def test_a_run_is_named_only_to_be_continued(run: Runner, root: Path):
    document = workflow({"one": python("")}, [{"name": "a", "template": "one"}])
    ran = run(document, "--run", "small-1")

    assert (ran.exit_code, ran.stderr) == (
        2,
        "run-local: --run small-1 names a run to continue: give --resume, --from or --only, too\n",
    )
    assert not (root / "outputs").exists()


def test_files_lie_in_the_run_s_folder_though_its_name_has_a_dot(run: Runner):
    document = workflow({"one": python("")}, [{"name": "a", "template": "one"}])
    document["spec"]["onExit"] = "one"
    ran = run(document, "--name", f"{document['metadata']['generateName']}v1.2")

    assert ran.exit_code == 0
    folders = {path.name for path in (ran.root / "outputs/latest").resolve().iterdir()}
    assert folders >= {"a", "onExit"}
    assert "2" not in folders


PARAMETERS = {
    "parameters": [{"name": "profile", "value": "one", "enum": ["one", "two"]}, {"name": "data"}]
}


@pytest.mark.parametrize(
    ("given", "named"),
    [
        (["-p", "data=", "-p", "profle=one"], ["profle", "data, profile"]),
        (["-p", "data=", "-p", "profile=three"], ["profile=three", "one, two"]),
        (["-p", "data=", "-p", "profile"], ["profile", "data, profile"]),
        ([], ["data", "-p data=VALUE"]),
    ],
)
def test_a_wrong_parameter_is_answered_with_the_accepted_ones(
    run: Runner, root: Path, given: list[str], named: list[str]
):
    document = workflow(
        {"one": python("")}, [{"name": "a", "template": "one"}], arguments=PARAMETERS
    )
    ran = run(document, *given)

    assert ran.exit_code == 2
    assert len(ran.stderr.splitlines()) == 1
    for words in named:
        assert words in ran.stderr
    assert not (root / "outputs").exists()


def refusal(template: Object | None = None, task: Object | None = None, **spec: Any) -> Object:
    """A workflow that runs, but for the fields that are given."""
    step = python("", **(template or {}))
    return workflow({"step": step}, [{"name": "a", "template": "step", **(task or {})}], **spec)


def with_container(**fields: Any) -> Object:
    document = refusal()
    document["spec"]["templates"][0]["container"] |= fields
    return document


STEP = {"name": "a", "template": "step"}


def nested(parameter: str) -> Object:
    """A workflow with a nested DAG that hands over `parameter`."""
    output = {"name": "out", "valueFrom": {"parameter": parameter}}
    inner = {"dag": {"tasks": [STEP]}, "outputs": {"parameters": [output]}}
    return workflow({"step": python(""), "in": inner}, [{"name": "a", "template": "in"}])


REFUSED = {
    "withSequence": (refusal(task={"withSequence": {}}), "template line: task a: withSequence"),
    "items and a list": (
        refusal(task={"withItems": [1], "withParam": "[]"}),
        "template line: task a has both withItems and withParam",
    ),
    "no items": (refusal(task={"withItems": []}), "template line: task a: withItems"),
    "an item without items": (
        refusal(task={"when": "{{item}} == 1"}),
        "template line: task a: {{item}}",
    ),
    "an exit handler that is no template": (refusal(onExit="stop"), "spec: onExit stop"),
    "hooks": (refusal(hooks={}), "spec: hooks"),
    "hooks of a task": (refusal(task={"hooks": {}}), "template line: task a: hooks"),
    "what only an exit handler knows": (
        refusal(task={"when": "{{workflow.status}} == Failed"}),
        "template line: task a: {{workflow.status}}",
    ),
    "an output of a step that may be skipped": (
        workflow(
            {
                "step": python(""),
                "inner": {
                    "steps": [
                        [{"name": "a", "template": "step", "when": "1 == 2"}],
                        [
                            {
                                "name": "b",
                                "template": "step",
                                "when": "'{{steps.a.outputs.parameters.out}}' == ''",
                            }
                        ],
                    ]
                },
            },
            [{"name": "s", "template": "inner"}],
        ),
        "template inner: step b: {{steps.a.outputs.parameters.out}}",
    ),
    "memoize": (refusal(template={"memoize": {}}), "template step: memoize"),
    "a template that calls itself": (
        refusal(task={"template": "line"}),
        "template line calls itself",
    ),
    "sidecars": (refusal(template={"sidecars": []}), "template step: sidecars"),
    "retryPolicy": (
        refusal(template={"retryStrategy": {"limit": 1, "retryPolicy": "OnTransientError"}}),
        "template step: retryStrategy: retryPolicy OnTransientError",
    ),
    "retries without end": (
        refusal(template={"retryStrategy": {}}),
        "template step: retryStrategy.limit",
    ),
    "another variable": (
        refusal(template={"retryStrategy": {"limit": 1, "expression": "lastRetry.code == '1'"}}),
        "template step: retryStrategy: expression has lastRetry.code",
    ),
    "a function": (
        refusal(template={"retryStrategy": {"limit": 1, "expression": "len('a') == 1"}}),
        "template step: retryStrategy: expression: \"len('a') == 1\"",
    ),
    "artifacts": (
        refusal(template={"inputs": {"artifacts": []}}),
        "template step: artifacts",
    ),
    "a script": (
        workflow({"step": {"script": {"source": "1"}}}, [{"name": "a", "template": "step"}]),
        "template step: script",
    ),
    "a working directory": (with_container(workingDir="/"), "template step: workingDir"),
    "an image's command": (with_container(command=[]), "template step: the container"),
    "an expression": (
        with_container(args=["{{=1 + 1}}"]),
        "template step: {{=1 + 1}}",
    ),
    "an output elsewhere": (
        refusal(
            template={
                "outputs": {"parameters": [{"name": "x", "valueFrom": {"path": "/etc/motd"}}]}
            }
        ),
        "template step: output x: path '/etc/motd'",
    ),
    "an output that is not waited for": (
        workflow(
            {"step": python("")},
            [
                {"name": "a", "template": "step"},
                {
                    "name": "b",
                    "template": "step",
                    "when": "{{tasks.a.outputs.parameters.out}} == x",
                },
            ],
        ),
        "template line: task b: {{tasks.a.outputs.parameters.out}}",
    ),
    "an unknown template": (refusal(task={"template": "stop"}), "template line: task a"),
    "an unknown task": (refusal(task={"depends": "z"}), "template line: task a: depends on z"),
    "an argument outside its input's enum": (
        refusal(
            template={"inputs": {"parameters": [{"name": "x", "enum": ["a", "b"]}]}},
            task={"arguments": {"parameters": [{"name": "x", "value": "c"}]}},
        ),
        "template line: task a: input x of step is c, none of a, b",
    ),
    "a default outside its enum": (
        refusal(
            template={"inputs": {"parameters": [{"name": "x", "value": "c", "enum": ["a", "b"]}]}}
        ),
        "template step: parameter x: 'c' is none of a, b",
    ),
    "a ring of one": (refusal(task={"depends": "a"}), "template line: task a depends on itself"),
    "an unknown outcome": (
        refusal(task={"depends": "a.Done"}),
        "template line: task a: depends on a.Done",
    ),
    "an outcome of a group that is none": (
        refusal(task={"depends": "a.AnySucceeded"}),
        "template line: task a: depends on a.AnySucceeded, but a has neither items nor a list",
    ),
    "an argument without input": (
        refusal(task={"arguments": {"parameters": [{"name": "x", "value": "1"}]}}),
        "template line: task a: step has no input x",
    ),
    "an input without value": (
        refusal(template={"inputs": {"parameters": [{"name": "x"}]}}),
        "template line: task a: input x",
    ),
    "two words side by side": (
        refusal(task={"when": "a b"}),
        "template line: task a: when: Invalid 'when' expression 'a b'",
    ),
    "a dash outside of quotes": (
        refusal(task={"when": "a-b == c"}),
        "template line: task a: when: Failed to evaluate 'when' expresion 'a-b == c'",
    ),
    "a name that is a path": (refusal(task={"name": "../a"}), "not '../a'"),
    "two of a name": (
        workflow({"step": python("")}, [{"name": "a", "template": "step"}] * 2),
        "template line: each task",
    ),
    "another entrypoint": (refusal(entrypoint="stop"), "spec: entrypoint stop"),
    "a template's name with an underscore": (
        workflow({"my_ok": python("")}, [{"name": "a", "template": "my_ok"}]),
        "spec: each template needs a plain name of its own, not 'my_ok'",
    ),
    "a task's name with a digit first, and depends": (
        workflow(
            {"step": python("")},
            [
                {"name": "1a", "template": "step"},
                {"name": "b", "template": "step", "depends": "1a"},
            ],
        ),
        "template line: task 1a: a name cannot begin with a digit",
    ),
    "the older word beside the newer one": (
        workflow(
            {"step": python("")},
            [
                {"name": "a", "template": "step"},
                {"name": "b", "template": "step", "depends": "a"},
                {"name": "c", "template": "step", "dependencies": ["a"]},
            ],
        ),
        "template line: Argo refuses depends and dependencies in one dag; c has the older word",
    ),
    "a task named with a word of expressions": (
        workflow(
            {"step": python("")},
            [
                {"name": "in", "template": "step"},
                {"name": "b", "template": "step", "depends": "in"},
            ],
        ),
        "template line: task b: depends on in, which is a word of Argo's expressions",
    ),
    "an output from two places": (
        refusal(
            template={
                "outputs": {
                    "parameters": [
                        {
                            "name": "out",
                            "valueFrom": {"path": "/tmp/outputs/a", "parameter": "{{inputs.x}}"},
                        }
                    ]
                }
            }
        ),
        "template step: output out of a container needs valueFrom.path, not parameter, path",
    ),
    "an output from a folder above": (
        refusal(
            template={
                "outputs": {
                    "parameters": [{"name": "out", "valueFrom": {"path": "/tmp/outputs/../a"}}]
                }
            }
        ),
        "template step: output out: path '/tmp/outputs/../a' has to be a file in /tmp/outputs",
    ),
    "a truth in place of a number": (
        refusal(securityContext={"runAsUser": True}),
        "securityContext.runAsUser has to be a whole number, not True",
    ),
    "a timeout without a unit": (
        refusal(template={"timeout": "30"}),
        "template step: timeout '30' is not like 10s or 5m, which needs a unit",
    ),
    "a timeout of days": (refusal(template={"timeout": "1d"}), "template step: timeout '1d'"),
    "a timeout of a dag": (
        workflow(
            {"step": python(""), "in": {"timeout": "5s", "dag": {"tasks": [STEP]}}},
            [{"name": "a", "template": "in"}],
        ),
        "template in: timeout is for containers",
    ),
    "a deadline of a dag": (
        workflow(
            {"step": python(""), "in": {"activeDeadlineSeconds": 5, "dag": {"tasks": [STEP]}}},
            [{"name": "a", "template": "in"}],
        ),
        "template in: activeDeadlineSeconds is for containers",
    ),
    "parallelism of a container": (
        refusal(template={"parallelism": 2}),
        "template step: parallelism is for dags and steps",
    ),
    "a deadline as a text": (
        refusal(activeDeadlineSeconds="60"),
        "spec: activeDeadlineSeconds has to be a whole number, not '60'",
    ),
    "a wait as a number": (
        workflow({"wait": {"suspend": {"duration": 2}}}, [{"name": "a", "template": "wait"}]),
        "template wait: duration has to be a text, not 2",
    ),
    "an argument with a default alone": (
        refusal(
            template={"inputs": {"parameters": [{"name": "x"}]}},
            task={"arguments": {"parameters": [{"name": "x", "default": "c"}]}},
        ),
        "template line: task a: argument x has no value, which Argo refuses",
    ),
    "a key that no item has": (
        refusal(
            template={"inputs": {"parameters": [{"name": "x"}]}},
            task={
                "withItems": [{"k": "v"}],
                "arguments": {"parameters": [{"name": "x", "value": "{{item.nope}}"}]},
            },
        ),
        "template line: task a: {{item.nope}} is not known here",
    ),
    "an output of a dag beside other words": (
        nested("{{tasks.a.outputs.parameters.out}}-more"),
        "template in: output out: parameter '{{tasks.a.outputs.parameters.out}}-more'",
    ),
    "a constant as an output of a dag": (nested("x"), "template in: output out: parameter 'x'"),
    "a status as an output of a dag": (
        nested("{{tasks.a.status}}"),
        "template in: output out: {{tasks.a.status}} is no output parameter of a task",
    ),
    "a mutex that is held already": (
        workflow(
            {
                "step": python("", synchronization={"mutexes": [{"name": "m"}]}),
                "in": {
                    "synchronization": {"mutexes": [{"name": "m"}]},
                    "dag": {"tasks": [STEP]},
                },
            },
            [{"name": "a", "template": "in"}],
        ),
        "template step: mutex m is held by template in",
    ),
    "a list that is an empty text": (
        refusal(task={"withParam": ""}),
        "template line: task a: withParam is empty; Argo would run the task once",
    ),
    "a container without an image": (with_container(image=""), "the container needs an image"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_run_here_is_refused_by_name_before_anything_runs(tmp_path: Path, case: str):
    document, named = REFUSED[case]
    file = tmp_path / "small.yaml"
    file.write_text(yaml.safe_dump(document))
    with pytest.raises(Refused) as refused:
        read(file)

    assert named in str(refused.value)
    assert refused.value.exit_code == 2


@pytest.mark.parametrize(
    ("signum", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["ctrl-c", "term"]
)
def test_an_interrupted_run_leaves_no_process_behind(root: Path, signum: int, exit_code: int):
    step = python(
        """
        import os, pathlib, subprocess, sys, time
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        pathlib.Path("part").write_text(f"{os.getpid()} {child.pid}")
        pathlib.Path("part").rename("pids")
        time.sleep(60)
        """,
        retryStrategy=RETRY,
    )
    tasks = [
        {"name": "a", "template": "step"},
        {"name": "b", "template": "step", "depends": "a.Failed"},
    ]
    process = subprocess.Popen(
        command(root, workflow({"step": step}, tasks)), cwd=root, stderr=subprocess.PIPE, text=True
    )
    wait_for((root / "pids").exists)
    process.send_signal(signum)

    _, stderr = process.communicate(timeout=10)
    assert process.returncode == exit_code
    said = "interrupted: stopping what runs; Ctrl-C again kills it at once" in stderr
    assert said == (signum == signal.SIGINT)
    pids = [int(pid) for pid in (root / "pids").read_text().split()]
    wait_for(lambda: not any(alive(pid) for pid in pids))
    status = json.loads((root / "outputs/latest/status.json").read_text())["status"]
    nodes = status["nodes"].values()
    assert status["phase"] == "Failed"
    assert {(node["phase"], node["message"]) for node in nodes} == {("Failed", "interrupted")}
    assert not [node for node in nodes if node["displayName"] == "b"]


def wait_for(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


def alive(pid: int) -> bool:
    """Whether a process runs; one that ended and that nobody has asked about does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


@pytest.mark.parametrize("file", sorted((ROOT / "workflows").glob("*.yaml")), ids=lambda f: f.stem)
def test_the_committed_workflows_run_here(file: Path):
    assert read(file).entrypoint
