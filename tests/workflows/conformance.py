"""Small workflows, one or more for each construct, that have to come to the same here and on Argo.

Every template is the same one-line program: it writes its words to files and ends with a code.
"""

from __future__ import annotations

from typing import Any

Object = dict[str, Any]

IMAGE = "docker.io/library/python:3.11-slim-bookworm"

PROGRAM = """
import pathlib, sys, time
out = pathlib.Path("/tmp/outputs" if sys.argv[1] == "/tmp/" + "outputs" else sys.argv[1])
out.mkdir(parents=True, exist_ok=True)
code, seconds, words = int(sys.argv[2]), float(sys.argv[3]), sys.argv[4:]
time.sleep(seconds)
for name, word in zip(("out", "second"), words):
    (out / name).write_text(word)
sys.exit(code)
"""


def program(*words: str, code: str = "0", seconds: str = "0") -> Object:
    return {
        "image": IMAGE,
        "imagePullPolicy": "IfNotPresent",
        "command": ["python", "-c", PROGRAM],
        "args": ["/tmp/outputs", code, seconds, *words],
    }


def named(**values: Any) -> Object:
    """Parameters with values."""
    listed = [{"name": k.replace("_", "-"), "value": v} for k, v in values.items()]
    return {"parameters": listed}


def inputs(*names: str, **presets: Any) -> Object:
    declared = [{"name": name} for name in names]
    declared += [{"name": name.replace("_", "-"), **preset} for name, preset in presets.items()]
    return {"parameters": declared}


def file(name: str = "out", **fields: Any) -> Object:
    return {"name": name, "valueFrom": {"path": f"/tmp/outputs/{name}", **fields}}


def outputs(*parameters: Object) -> Object:
    return {"parameters": list(parameters)}


def template(name: str, body: Object, *made: Object, **fields: Any) -> Object:
    return {"name": name, "container": body, "outputs": outputs(*made), **fields}


def dag(*tasks: Object, name: str = "main", made: Any = (), **fields: Any) -> Object:
    shaped = {"outputs": outputs(*made)} if made else {}
    extra = {k: fields.pop(k) for k in ("failFast",) if k in fields}
    return {"name": name, "dag": {"tasks": list(tasks), **extra}, **shaped, **fields}


def steps(*groups: list[Object], name: str = "main", made: Any = (), **fields: Any) -> Object:
    shaped = {"outputs": outputs(*made)} if made else {}
    return {"name": name, "steps": list(groups), **shaped, **fields}


def task(name: str, template: str = "say", **fields: Any) -> Object:
    return {"name": name, "template": template, **fields}


def say(name: str, word: str, **fields: Any) -> Object:
    return task(name, "say", arguments=named(word=word), **fields)


def leave(name: str, code: int, **fields: Any) -> Object:
    return task(name, "leave", arguments=named(code=str(code)), **fields)


def from_(reference: str, name: str = "out", **fields: Any) -> Object:
    return {"name": name, "valueFrom": {"parameter": f"{{{{{reference}}}}}", **fields}}


def workflow(*templates: Object, **spec: Any) -> Object:
    return {
        "apiVersion": "argoproj.io/v1alpha1",
        "kind": "Workflow",
        "metadata": {"generateName": "conforms-"},
        "spec": {"entrypoint": "main", "templates": list(templates), **spec},
    }


SAY = template("say", program("{{inputs.parameters.word}}"), file(), inputs=inputs("word"))
SAY_DEFAULT = template(
    "say-default",
    program("{{inputs.parameters.word}}"),
    file(default="preset"),
    inputs=inputs("word"),
)
LEAVE = template(
    "leave",
    program("left", code="{{inputs.parameters.code}}"),
    file(default="preset"),
    inputs=inputs("code"),
)
# Without outputs: whether those of a stopped container are still reported is a race in Argo.
SLOW = template("slow", program(seconds="{{inputs.parameters.seconds}}"), inputs=inputs("seconds"))
OUT = "tasks.{}.outputs.parameters.out"


def out(task_name: str, kind: str = "tasks") -> str:
    return f"{{{{{kind}.{task_name}.outputs.parameters.out}}}}"


def tries(expression: str | None = None, limit: int = 2, **fields: Any) -> Object:
    return {"limit": limit, **({"expression": expression} if expression else {}), **fields}


AGAIN_ON_75 = "lastRetry.status == 'Error' || asInt(lastRetry.exitCode) == 75"
UNTIL_SECOND = template(
    # Leaves with 75 at its first attempt and with 0 at its second.
    "until-second",
    {
        **program(),
        "command": [
            "python",
            "-c",
            "import sys\nn = int(sys.argv[1])\n"
            + PROGRAM.replace("sys.argv[1]", "sys.argv[2]")
            .replace("int(sys.argv[2])", "75 * (n < 1)")
            .replace("float(sys.argv[3])", "0")
            .replace("sys.argv[4:]", "sys.argv[1:2] + sys.argv[3:4]"),
        ],
        "args": ["{{retries}}", "/tmp/outputs", "{{lastRetry.exitCode}}"],
    },
    file(),
    file("second"),
    retryStrategy=tries(AGAIN_ON_75),
)


def retried(name: str, code: str, strategy: Object, **fields: Any) -> Object:
    return template(
        name, program("left", code=code), file(default="preset"), retryStrategy=strategy, **fields
    )


PAIR = dag(
    say("one", "{{inputs.parameters.word}}1"),
    say("two", out("one") + "2", depends="one"),
    name="pair",
    inputs=inputs("word"),
    made=[from_("tasks.two.outputs.parameters.out")],
)

CASES: dict[str, Object] = {
    "outputs pass along a line": workflow(
        SAY,
        dag(
            say("a", "x"),
            say("b", out("a") + "y", depends="a"),
            say("c", out("b") + out("a"), depends="b"),
        ),
    ),
    "dependencies, the older word": workflow(
        SAY,
        dag(say("a", "x"), say("b", "y"), say("c", out("a") + out("b"), dependencies=["a", "b"])),
    ),
    "a trailing newline is cut once": workflow(
        SAY, dag(say("a", "x\n\n"), say("b", out("a") + "|", depends="a"))
    ),
    "an output that was not written takes its default": workflow(
        template("mute", program(), file(default="preset")),
        SAY,
        dag(task("a", "mute"), say("b", out("a"), depends="a")),
    ),
    "an output that was not written and has no default": workflow(
        template("mute", program(), file()), SAY, dag(task("a", "mute"), say("b", "x", depends="a"))
    ),
    "a failure omits what comes after": workflow(
        SAY,
        LEAVE,
        dag(leave("a", 3), say("b", "x", depends="a"), say("c", "y", depends="b"), say("d", "z")),
    ),
    "a failure that is waited for": workflow(
        SAY, LEAVE, dag(leave("a", 3), say("b", "x", depends="a.Failed"))
    ),
    "a failure beside its rescue": workflow(
        SAY,
        LEAVE,
        dag(leave("a", 3), say("b", "x", depends="a.Failed"), say("c", "y", depends="a")),
    ),
    "outputs of a failed task": workflow(
        SAY, LEAVE, dag(leave("a", 3), say("b", out("a"), depends="a.Failed || a.Succeeded"))
    ),
    "depends with its logic": workflow(
        SAY,
        LEAVE,
        dag(
            leave("a", 1),
            say("b", "x"),
            say("s", "y", when="1 == 2"),
            say("c", "1", depends="(a.Failed && b.Succeeded) && !b.Failed"),
            say("d", "2", depends="a || s.Skipped"),
            say("e", "3", depends="a.Succeeded || b.Failed"),
        ),
    ),
    "fan-ins of what looks like lists": workflow(
        template(
            "both",
            program('["{{inputs.parameters.w}}","<"]', "{{inputs.parameters.w}}"),
            file(),
            file("second"),
            inputs=inputs("w"),
        ),
        template(
            "list",
            program("[{{inputs.parameters.w}}, 1]", '["{{inputs.parameters.w}}" ]'),
            file(),
            file("second"),
            inputs=inputs("w"),
        ),
        SAY,
        dag(
            task("a", "both", arguments=named(w="{{item}}"), withItems=["x", "[]"]),
            task("b", "list", arguments=named(w="{{item}}"), withItems=["1", "2"]),
            task("c", "list", arguments=named(w="{{item}}"), withItems=["1", "x"]),
            say("d", out("a"), depends="a"),
            say("e", "{{tasks.a.outputs.parameters.second}}", depends="a"),
            say("f", out("b"), depends="b"),
            say("g", out("c"), depends="c"),
            say("h", "{{tasks.b.outputs.parameters.second}}", depends="b"),
            say("i", "{{item}}", withItems=["<&>", "x"]),
            say("j", out("i"), depends="i"),
        ),
    ),
    "a failed task that wrote nothing": workflow(
        template("quit", program(code="4"), file(default="preset"), file("second", default="")),
        SAY,
        dag(task("a", "quit"), say("b", out("a"), depends="a.Failed")),
    ),
    "a deadline and retries": workflow(
        {
            **SLOW,
            "activeDeadlineSeconds": 3,
            "retryStrategy": {"limit": 1, "retryPolicy": "Always"},
        },
        dag(task("a", "slow", arguments=named(seconds="60"))),
    ),
    "steps that read a skipped step's output": workflow(
        SAY,
        steps([say("a", "x", when="1 == 2")], [say("b", "<" + out("a", "steps") + ">")]),
    ),
    "a fan-out in a fan-out": workflow(
        SAY,
        dag(
            say("w", "{{inputs.parameters.row}}{{item}}", withParam="{{inputs.parameters.row}}"),
            name="row",
            inputs=inputs("row"),
            made=[from_(OUT.format("w"))],
        ),
        dag(
            task("r", "row", arguments=named(row="{{item}}"), withItems=["[1,2]", "[3]"]),
            say("z", out("r"), depends="r"),
        ),
    ),
    "statuses of tasks": workflow(
        SAY,
        LEAVE,
        dag(
            leave("a", 1),
            say("b", "x", when="1 == 2"),
            say(
                "c",
                "{{tasks.a.status}} {{tasks.b.status}}",
                depends="(a.Failed || a.Succeeded) && b",
            ),
        ),
    ),
    "numbers and truths as parameters": workflow(
        SAY,
        dag(
            say(
                "a",
                "{{workflow.parameters.n}} {{workflow.parameters.t}}",
                when="{{workflow.parameters.n}} > 1.5 && {{workflow.parameters.t}} == true",
            )
        ),
        arguments=named(n="2", t="true"),
    ),
    "mutexes": workflow(
        SAY,
        {**SLOW, "name": "one-by-one", "synchronization": {"mutexes": [{"name": "conformance"}]}},
        dag(task("a", "one-by-one", arguments=named(seconds="{{item}}"), withItems=["0.1", "0.2"])),
    ),
}


def facts(status: Object, name: str) -> Object:
    """What two runs of a workflow have to agree on, by node without the workflow's name."""

    def values(of: Object | None) -> dict[str, str]:
        parameters = (of or {}).get("parameters") or []
        return {p["name"]: str(p["value"]) for p in parameters if "value" in p}

    nodes = {}
    for node in status["nodes"].values():
        path = node["name"].removeprefix(name)
        nodes[path] = {
            "type": node["type"],
            "phase": node["phase"],
            "inputs": values(node.get("inputs")),
            "outputs": values(node.get("outputs")),
        }
    return {"phase": status["phase"], "outputs": values(status.get("outputs")), "nodes": nodes}
