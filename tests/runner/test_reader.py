"""Whatever a file holds, reading it ends in a workflow or in one sentence that names the fault."""

from __future__ import annotations

import copy
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from runner.documents import load
from runner.language import Refused
from runner.reader import parameter_values, understood

ROOT = Path(__file__).parents[2]
Object = dict[str, Any]

VALID: Object = yaml.safe_load("""
apiVersion: argoproj.io/v1alpha1
kind: CronWorkflow
metadata: {name: small, annotations: {workflows.argoproj.io/title: Small}}
spec:
  schedules: ["0 3 * * 0"]
  concurrencyPolicy: Forbid
  workflowSpec:
    activeDeadlineSeconds: 60
    parallelism: 2
    entrypoint: main
    onExit: say
    securityContext: {runAsNonRoot: true, seccompProfile: {type: RuntimeDefault}}
    volumes: [{name: models, persistentVolumeClaim: {claimName: models}}]
    arguments: {parameters: [{name: word, description: A word., value: a, enum: [a, b]}]}
    templates:
    - name: say
      activeDeadlineSeconds: 30
      timeout: 50s
      inputs: {parameters: [{name: word, default: a, enum: [a, b]}]}
      outputs: {parameters: [{name: out, valueFrom: {path: /tmp/outputs/out, default: ""}}]}
      podSpecPatch: '{"containers": [{"name": "main", "resources": {"limits": {"memory": "1Gi"}}}]}'
      volumes: [{name: tmp, emptyDir: {}}]
      retryStrategy:
        limit: 2
        retryPolicy: Always
        expression: asInt(lastRetry.exitCode) == 75
        backoff: {duration: 1s, factor: 2, maxDuration: 1m}
      synchronization:
        mutexes: [{name: one}]
        semaphores: [{configMapKeyRef: {name: queues, key: gpu}}]
      container:
        image: localhost/small:1
        command: [python, steps/evaluate.py]
        args: [--run-id, "{{inputs.parameters.word}}"]
        env: [{name: A, value: b}, {name: C, valueFrom: {secretKeyRef: {name: s, key: k}}}]
        resources: {limits: {memory: 1Gi}}
        volumeMounts: [{name: tmp, mountPath: /tmp}]
        securityContext: {readOnlyRootFilesystem: true, capabilities: {drop: [ALL]}}
    - name: ask
      suspend: {duration: 1s}
    - name: group
      steps: [[{name: first, template: say}], [{name: second, template: ask, when: 1 == 1}]]
    - name: main
      parallelism: 1
      outputs:
        parameters:
        - {name: out, valueFrom: {parameter: "{{tasks.a.outputs.parameters.out}}"}}
      dag:
        failFast: false
        tasks:
        - name: a
          template: say
          arguments: {parameters: [{name: word, value: b}]}
        - {name: b, template: older, depends: a}
        - {name: c, template: say, depends: a && b.Succeeded, when: x == x, withItems: [1, {k: v}]}
        - name: d
          template: say
          depends: c.AnySucceeded
          withParam: "{{tasks.c.outputs.parameters.out}}"
    - name: older
      dag:
        tasks:
        - {name: a, template: group}
        - {name: b, template: ask, dependencies: [a]}
""")


def paths(found: Any, before: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if before:
        yield before
    keys = (
        found if isinstance(found, dict) else range(len(found)) if isinstance(found, list) else ()
    )
    for key in keys:
        yield from paths(found[key], (*before, key))


def replaced(path: tuple[Any, ...], value: Any) -> Object:
    document = copy.deepcopy(VALID)
    parent: Any = document
    for key in path[:-1]:
        parent = parent[key]
    parent[path[-1]] = value
    return document


ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.dates()
    | st.binary(max_size=3)
    | st.sampled_from(["", "a", "{{x}}", "(((", "/tmp/outputs/..", "9" * 5000, "{{=1}}", "'"]),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(st.sampled_from(["name", "x", 5, None, True]), inner, max_size=2)
    ),
    max_leaves=3,
)


@pytest.fixture(scope="module")
def lint(script: Any) -> Any:
    sys.path.insert(0, str(ROOT / "workflows"))
    return script("workflows/lint.py")


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("subset") / "small.yaml"


@given(path=st.sampled_from(list(paths(VALID))), value=ANYTHING)
@settings(max_examples=150)
def test_any_value_in_place_of_any_field_is_read_or_refused(
    lint: Any, file: Path, path: tuple[Any, ...], value: Any
) -> None:
    file.write_text(yaml.safe_dump(replaced(path, value)))

    assert all(isinstance(finding, str) for finding in lint.findings(file))


def test_the_valid_workflow_is_read(lint: Any, file: Path) -> None:
    file.write_text(yaml.safe_dump(VALID))

    assert set(understood(load(file)).templates) == {
        "say",
        "ask",
        "group",
        "main",
        "older",
    }
    assert lint.argo_findings([file]) == []


SPEC = ("spec", "workflowSpec")
SAY, MAIN = (*SPEC, "templates", 0), (*SPEC, "templates", 3)
TASK = (*MAIN, "dag", "tasks")
# What is put where, and the message.
WRONG: dict[str, tuple[tuple[Any, ...], Any, str]] = {
    "a condition": ((*TASK, 2, "when"), True, "template main: task c: when has to be a text"),
    "steps": (
        (*SPEC, "templates", 2, "steps"),
        5,
        "template group: steps has to be a list, not 5",
    ),
    "a list of steps": (
        (*SPEC, "templates", 2, "steps"),
        [{"name": "a", "template": "say"}],
        "template group: steps has to be a list of lists",
    ),
    "a path": (
        (*SAY, "outputs", "parameters", 0, "valueFrom", "path"),
        5,
        "template say: output out: path has to be a text, not 5",
    ),
    "arguments": (
        (*SAY, "container", "args"),
        "-V",
        "template say: args has to be a list of texts, not '-V'",
    ),
    "a number as a word": (
        (*SAY, "container", "args", 0),
        5,
        "template say: args has to be a list of texts, not [5, ",
    ),
    "a command": (
        (*SAY, "container", "command"),
        "python",
        "template say: command has to be a list of texts, not 'python'",
    ),
    "dependencies": (
        (*SPEC, "templates", 4, "dag", "tasks", 1, "dependencies"),
        "a",
        "template older: task b: dependencies has to be a list of texts, not 'a'",
    ),
    "a variable": (
        (*SAY, "container", "env", 0, "value"),
        5,
        "template say: env A: value has to be a text, not 5",
    ),
    "itself": (
        (*TASK, 0, "depends"),
        "a",
        "template main: task a depends on itself",
    ),
}


CRON: dict[str, tuple[tuple[Any, ...], Any, str]] = {
    "no schedule": (("spec", "schedules", 0), "hello", "has 1 fields; Argo reads five"),
    "seconds": (("spec", "schedules", 0), "0 0 3 * * 0", "has 6 fields"),
    "a minute": (("spec", "schedules", 0), "99 3 * * 0", "'99' is no minute of 0 to 59"),
    "a month's word": (("spec", "schedules", 0), "0 3 * foo 0", "'foo' is no month of 1 to 12"),
    "a range": (("spec", "schedules", 0), "0 5-3 * * 0", "'5-3' is no hour of 0 to 23"),
    "a step": (("spec", "schedules", 0), "*/0 3 * * 0", "'*/0' is no minute"),
    "a word": (("spec", "schedules", 0), "@often", "has 1 fields"),
    "an interval": (("spec", "schedules", 0), "@every 5", "needs a unit"),
    "a policy": (("spec", "concurrencyPolicy"), "Sometimes", "is none of Allow, Forbid, Replace"),
    "a zone": (("spec", "timezone"), "Mars/Base", "timezone Mars/Base is none that is known"),
    "a switch": (("spec", "suspend"), "yes", "suspend has to be true or false, not 'yes'"),
    "a number": (("spec", "failedJobsHistoryLimit"), "3", "has to be a whole number, not '3'"),
    "a deadline": (("spec", "startingDeadlineSeconds"), -3, "has to be a whole number, not -3"),
    "a label": (("spec", "workflowMetadata"), {"labels": {"a": 1}}, "a mapping of texts"),
    "a name": (("metadata", "name"), "a" * 53, "has 53 characters; Argo takes 52"),
    "no value": (
        (*SPEC, "arguments", "parameters", 0),
        {"name": "word"},
        "parameter word has no value, which Argo refuses of a CronWorkflow",
    ),
}


@pytest.mark.parametrize("case", CRON)
def test_what_argo_would_not_start_by_the_clock_is_refused(tmp_path: Path, case: str) -> None:
    path, value, message = CRON[case]
    file = tmp_path / "small.yaml"
    file.write_text(yaml.safe_dump(replaced(path, value)))

    with pytest.raises(Refused, match=re.escape(message)):
        understood(load(file))


@pytest.mark.parametrize(
    "schedule",
    [
        *("*/5 0-23/2 1,15 * MON-fri", "0 3 ? jan,feb 0", "@daily", "@every 1h30m"),
        "59 23 31 12 6",
    ],
)
def test_a_schedule_that_argo_reads_is_read(lint: Any, tmp_path: Path, schedule: str) -> None:
    file = tmp_path / "small.yaml"
    file.write_text(yaml.safe_dump(replaced(("spec", "schedules", 0), schedule)))

    assert understood(load(file))
    assert lint.argo_findings([file]) == []


@pytest.mark.parametrize("case", WRONG)
def test_what_has_the_wrong_shape_is_refused_with_its_file_template_and_field(
    script: Any, tmp_path: Path, case: str
) -> None:
    path, value, message = WRONG[case]
    file = tmp_path / "small.yaml"
    file.write_text(yaml.safe_dump(replaced(path, value)))
    done = subprocess.run(
        [sys.executable, "-m", "runner.run_local", file, "--dry-run"],
        capture_output=True,
        text=True,
    )

    assert done.returncode == 2
    assert done.stderr.startswith(f"run-local: {file}: {message}"), done.stderr


@pytest.mark.skipif(not shutil.which("argo"), reason="argo is not installed")
@pytest.mark.parametrize("case", [*WRONG, *CRON])
def test_argo_refuses_the_same_shapes(lint: Any, tmp_path: Path, case: str) -> None:
    path, value, _ = (WRONG | CRON)[case]
    file = tmp_path / "small.yaml"
    file.write_text(yaml.safe_dump(replaced(path, value)))

    assert lint.argo_findings([file])


def test_a_null_is_a_field_that_is_not_there(lint: Any, file: Path) -> None:
    path = (*SAY, "inputs", "parameters", 0, "enum")
    file.write_text(yaml.safe_dump(replaced(path, None)))

    assert understood(load(file)).templates["say"].inputs["word"].enum == []
    assert lint.argo_findings([file]) == []


def test_a_date_is_a_text(lint: Any, file: Path) -> None:
    file.write_text(yaml.safe_dump(VALID).replace("k: v", "k: 2026-02-30"))

    main = understood(load(file)).templates["main"]
    assert ["1", '{"k":"2026-02-30"}'] in [task.items for task in main.definition.tasks]


@pytest.mark.parametrize(
    ("written", "read"),
    [
        (r"\ud83d\ude42", "\U0001f642"),
        (r"a\ud83d", "a\ufffd"),
        (r"\ude42b", "\ufffdb"),
        (r"\u00e9\u2028", "\u00e9\u2028"),
    ],
)
def test_halves_of_signs_in_a_json_file_are_read_as_go_reads_them(
    tmp_path: Path, written: str, read: str
) -> None:
    """Python's json.dumps writes an emoji as two escapes."""
    file = tmp_path / "w.json"
    file.write_text(f'{{"kind": "{written}"}}')

    assert load(file)["kind"] == read


def test_half_a_sign_in_a_yaml_file_is_refused_as_go_refuses_it(tmp_path: Path) -> None:
    file = tmp_path / "w.yaml"
    file.write_text('kind: "\\ud83d\\ude42"')

    with pytest.raises(Refused, match="half a surrogate pair"):
        load(file)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "a workflow has to be a mapping, not nothing"),
        ("- 1", "a workflow has to be a mapping, not [1]"),
        ("a: &b {c: *b}", "nests too deep to be read"),
        ("a: !!set {b}", "which JSON has not"),
        ("a: [", "is not YAML"),
        ("a: \x00", "is not YAML"),
        ("kind: Pod", "kind Pod is no workflow"),
        ("a: [x, y]", "line 1: y without quotes is a boolean to Argo"),
    ],
)
def test_a_file_that_is_no_workflow_is_refused(
    lint: Any, file: Path, content: str, message: str
) -> None:
    file.write_text(content)

    assert [message in finding for finding in lint.findings(file)] == [True], lint.findings(file)


def test_a_file_that_cannot_be_read_is_a_finding_and_the_others_are_looked_at(
    tmp_path: Path,
) -> None:
    (tmp_path / "a.yaml").write_text("")
    document = replaced((*SPEC, "onExit"), "stop")
    del document["metadata"]
    (tmp_path / "b.yaml").write_text(yaml.safe_dump(document))
    done = subprocess.run(
        [sys.executable, ROOT / "workflows/lint.py", tmp_path / "a.yaml", tmp_path / "b.yaml"],
        capture_output=True,
        text=True,
        env={"PATH": "", "PYTHONPATH": str(ROOT)},
    )

    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "argo is not installed, so `argo lint` was not run",
        "a.yaml: a workflow has to be a mapping, not nothing",
        "b.yaml: spec: onExit stop is no template; there are ask, group, main, older, say",
    ]


def test_parameters_are_set_by_p_else_as_before_else_as_declared() -> None:
    workflow = understood(VALID)
    assert parameter_values(workflow, (), {}) == {"word": "a"}
    # What an earlier run had and the file no longer declares is nobody's.
    assert parameter_values(workflow, (), {"word": "b", "gone": "x"}) == {"word": "b"}
    assert parameter_values(workflow, ["word=a"], {"word": "b"}) == {"word": "a"}
