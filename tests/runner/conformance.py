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
            say("f", "4", depends="e.Omitted && (a.Failed || a.Errored)"),
            say("g", "5", depends="s && b"),
        ),
    ),
    "when with words, numbers and quotes": workflow(
        SAY,
        dag(
            say("a", "passed"),
            say("b", "1", depends="a", when=out("a") + " == passed"),
            say("c", "1", depends="a", when=f"'{out('a')}' != 'passed'"),
            say("d", "1", depends="a", when=f"{out('a')} in (passed, failed) && 2 < 10"),
            say("e", "1", depends="a", when=f"!({out('a')} == passed) || 3 >= 4"),
            say("f", "1", depends="a", when=f'"{out("a")}" =~ "^pa"'),
            say("g", "1", depends="a", when="2 == 2.0"),
        ),
    ),
    "when on an empty text, quoted and not": workflow(
        SAY,
        dag(
            say("a", ""),
            say("b", "1", depends="a", when=f"'{out('a')}' == ''"),
            say("c", "1", depends="a", when=f"{out('a')} == passed"),
        ),
    ),
    "when on a text with a dash, not quoted": workflow(
        SAY, dag(say("a", "smoke-text"), say("b", "1", depends="a", when=out("a") + " == passed"))
    ),
    "a skipped task counts as done, its output reads as empty": workflow(
        SAY_DEFAULT,
        SAY,
        dag(
            task("a", "say-default", arguments=named(word="x"), when="yes == no"),
            say("b", f"<{out('a')}>", depends="a"),
        ),
    ),
    "an omitted task's output reads as empty": workflow(
        SAY_DEFAULT,
        SAY,
        LEAVE,
        dag(
            leave("a", 1),
            task("b", "say-default", arguments=named(word="x"), depends="a"),
            say("c", f"<{out('b')}>", depends="b.Omitted"),
        ),
    ),
    "items of all kinds": workflow(
        SAY,
        template(
            "pair-of",
            program("{{inputs.parameters.x}}", "{{inputs.parameters.y}}"),
            file(),
            file("second"),
            inputs=inputs("x", "y"),
        ),
        dag(
            say("a", "{{item}}", withItems=["x", 2, True, 1.5, "two words", '"quoted"']),
            task(
                "b",
                "pair-of",
                arguments=named(x="{{item.x}}", y="{{item.y}}"),
                withItems=[{"x": "1", "y": "a"}, {"x": 2, "y": True}],
            ),
            say("c", out("a"), depends="a"),
            say("d", "{{tasks.b.outputs.parameters.second}}", depends="b"),
        ),
    ),
    "fan out over an output, fan in": workflow(
        SAY,
        dag(
            say("a", '["x", "y y", 3, {"k": "v"}, ""]'),
            say("b", "{{item}}", depends="a", withParam=out("a")),
            say("c", out("b"), depends="b"),
        ),
    ),
    "fan out over mappings of a parameter": workflow(
        SAY,
        dag(say("a", "{{item.n}}-{{item.m}}", withParam="{{workflow.parameters.list}}")),
        arguments=named(list='[{"n": 1, "m": "a"}, {"m": "b", "n": 2}]'),
    ),
    "an empty fan-out": workflow(
        SAY,
        dag(
            say("a", "[]"),
            say("b", "{{item}}", depends="a", withParam=out("a")),
            say("c", "x", depends="b"),
            say("d", "y", depends="b.Skipped"),
            say("e", "z", depends="b.AnySucceeded || b.AllFailed"),
        ),
    ),
    "an empty fan-out, its fan-in": workflow(
        SAY,
        dag(
            say("a", "[]"),
            say("b", "{{item}}", depends="a", withParam=out("a")),
            say("c", "<" + out("b") + ">", depends="b"),
        ),
    ),
    "a fan-out over something that is no list": workflow(
        SAY,
        dag(
            say("a", "nothing"),
            say("b", "{{item}}", depends="a", withParam=out("a")),
            say("c", "x", depends="b.Errored"),
        ),
    ),
    "a failed member is left out of the fan-in": workflow(
        SAY,
        LEAVE,
        dag(
            task("a", "leave", arguments=named(code="{{item}}"), withItems=[0, 3, 0]),
            say("b", out("a"), depends="a.AnySucceeded"),
            say("c", "x", depends="a"),
            say("d", "y", depends="a.AllFailed || b"),
        ),
    ),
    "all members failed": workflow(
        SAY,
        LEAVE,
        dag(
            task("a", "leave", arguments=named(code="{{item}}"), withItems=[1, 2]),
            say("b", "x", depends="a.AllFailed"),
            say("c", "y", depends="a.AnySucceeded"),
        ),
    ),
    "when of an item": workflow(
        SAY,
        dag(
            say("a", "{{item}}", withItems=["x", "y"], when="{{item}} == x"),
            say("b", out("a"), depends="a"),
        ),
    ),
    "a nested dag and its output": workflow(
        SAY,
        PAIR,
        dag(
            task("p", "pair", arguments=named(word="x")),
            say("b", "{{tasks.p.outputs.parameters.out}}!", depends="p"),
        ),
    ),
    "a fan-out of nested dags with failed members": workflow(
        SAY,
        LEAVE,
        dag(
            task("l", "leave", arguments=named(code="{{inputs.parameters.code}}")),
            say("m", "m{{inputs.parameters.code}}", depends="l"),
            name="member",
            inputs=inputs("code"),
            made=[from_(OUT.format("m"), default="none")],
        ),
        dag(
            task("p", "member", arguments=named(code="{{item}}"), withItems=["0", "4", "0"]),
            say("b", out("p"), depends="p.AnySucceeded"),
            say("c", "1", depends="p.Failed"),
        ),
    ),
    "a nested dag whose output was skipped": workflow(
        SAY,
        dag(
            say("m", "x", when="1 == 2"),
            name="member",
            made=[from_(OUT.format("m"), default="none")],
        ),
        dag(task("p", "member"), say("b", "<" + out("p") + ">", depends="p")),
    ),
    "steps, in turn and side by side": workflow(
        SAY,
        steps(
            [say("a", "x")],
            [
                say("b", out("a", "steps") + "1"),
                say("c", out("a", "steps") + "2", when="yes == no"),
            ],
            [say("d", out("b", "steps"), when="'{{steps.c.status}}' == 'Skipped'")],
            name="inner",
            made=[from_("steps.d.outputs.parameters.out")],
        ),
        dag(task("s", "inner"), say("z", out("s"), depends="s")),
    ),
    "steps end at a failure": workflow(
        SAY, LEAVE, steps([say("a", "x"), leave("b", 2)], [say("c", "y")])
    ),
    "steps over items": workflow(
        SAY,
        steps(
            [say("a", "{{item}}", withItems=["x", "y"])],
            [say("b", out("a", "steps"))],
            [say("e", "{{item}}", withParam="[]")],
            [say("c", "z")],
        ),
    ),
    "steps with a failed member": workflow(
        SAY,
        LEAVE,
        steps(
            [task("a", "leave", arguments=named(code="{{item}}"), withItems=["0", "1"])],
            [say("b", "x")],
        ),
    ),
    "inputs with defaults and an enum": workflow(
        template(
            "pick",
            program("{{inputs.parameters.x}}{{inputs.parameters.y}}"),
            file(),
            inputs=inputs(x={"default": "d"}, y={"value": "one", "enum": ["one", "two"]}),
        ),
        dag(task("a", "pick"), task("b", "pick", arguments=named(x="z", y="two"))),
    ),
    "global parameters and global outputs": workflow(
        template(
            "publish", program("{{workflow.parameters.word}}"), {**file(), "globalName": "told"}
        ),
        SAY,
        dag(
            task("a", "publish"),
            say(
                "b", "{{workflow.outputs.parameters.told}}{{workflow.parameters.word}}", depends="a"
            ),
        ),
        arguments=named(word="w"),
    ),
    "a retry that succeeds, and knows which it is": workflow(
        UNTIL_SECOND,
        SAY,
        dag(
            task("a", "until-second"),
            say(
                "b",
                "{{tasks.a.outputs.parameters.out}}/{{tasks.a.outputs.parameters.second}}",
                depends="a",
            ),
        ),
    ),
    "a retry that the expression ends": workflow(
        SAY,
        retried("never", "2", tries(AGAIN_ON_75)),
        dag(task("a", "never"), say("b", "x", depends="a.Failed")),
    ),
    "a retry that the limit ends": workflow(
        retried("always", "75", tries(AGAIN_ON_75, 1)), dag(task("a", "always"))
    ),
    "a retry by policy alone": workflow(
        retried("on-failure", "1", {"limit": 1, "retryPolicy": "OnFailure"}),
        retried("on-error", "1", {"limit": 1, "retryPolicy": "OnError"}),
        dag(task("a", "on-failure"), task("b", "on-error")),
    ),
    "a retry by status, as a string in the file": workflow(
        retried(
            "again",
            "1",
            {
                "limit": "1",
                "retryPolicy": "Always",
                "expression": "lastRetry.status in ['Failed'] and not (lastRetry.exitCode == '2')",
            },
        ),
        dag(task("a", "again")),
    ),
    "retries in a fan-out": workflow(
        SAY,
        UNTIL_SECOND,
        dag(task("a", "until-second", withItems=[1, 2]), say("b", out("a"), depends="a")),
    ),
    "a retried dag": workflow(
        LEAVE, dag(leave("l", 1), name="inner", retryStrategy={"limit": 1}), dag(task("a", "inner"))
    ),
    "a container past its deadline": workflow(
        SAY,
        {**SLOW, "activeDeadlineSeconds": 3},
        dag(task("a", "slow", arguments=named(seconds="60")), say("b", "x", depends="a.Failed")),
    ),
    "a template past its timeout": workflow(
        SAY,
        {**SLOW, "timeout": "15s"},
        dag(task("a", "slow", arguments=named(seconds="60")), say("b", "x", depends="a.Failed")),
    ),
    "a workflow past its deadline": workflow(
        SAY,
        SLOW,
        dag(
            say("a", "x"),
            task("b", "slow", arguments=named(seconds="120"), depends="a"),
            say("c", "x", depends="b"),
        ),
        activeDeadlineSeconds=30,
    ),
    "an exit handler after success": workflow(
        SAY,
        steps(
            [say("told", "{{workflow.status}}", when="{{workflow.status}} == Succeeded")],
            [say("never", "x", when="{{workflow.status}} != Succeeded")],
            name="bye",
        ),
        dag(say("a", "x")),
        onExit="bye",
    ),
    "an exit handler after failure": workflow(
        SAY,
        LEAVE,
        dag(say("told", "{{workflow.status}}"), name="bye"),
        dag(leave("a", 1)),
        onExit="bye",
    ),
    "an exit handler that fails": workflow(
        SAY, LEAVE, dag(leave("l", 1), name="bye"), dag(say("a", "x")), onExit="bye"
    ),
    "a wait of a second": workflow(
        SAY,
        {"name": "wait", "suspend": {"duration": "1"}},
        dag(task("a", "wait"), say("b", "x", depends="a")),
    ),
    "parallelism of a workflow and of a dag": workflow(
        SAY,
        dag(say("a", "{{item}}", withItems=list("pqrs")), name="inner", parallelism=1),
        dag(task("i", "inner"), say("b", "{{item}}", withItems=list("pqr"))),
        parallelism=2,
    ),
    "a dag that does not fail fast": workflow(
        SAY,
        LEAVE,
        SLOW,
        dag(
            leave("a", 1),
            task("b", "slow", arguments=named(seconds="4")),
            say("c", "x", depends="b"),
            failFast=False,
        ),
    ),
    "a dag that fails fast": workflow(
        SAY,
        LEAVE,
        SLOW,
        dag(
            leave("a", 1),
            task("b", "slow", arguments=named(seconds="4")),
            say("c", "x", depends="b"),
        ),
    ),
    "an output at odds with json": workflow(
        SAY,
        dag(
            say("a", 'q"b\\n\\ {x} é\t"'),
            say("b", out("a"), depends="a"),
            say("c", "{{item}}", depends="b", withItems=['q"', "b\\n"]),
            say("d", out("c"), depends="c"),
        ),
    ),
    "an input outside its enum, which is a hint": workflow(
        template(
            "pick",
            program("{{inputs.parameters.x}}"),
            file(),
            inputs=inputs(x={"enum": ["one", "two"]}),
        ),
        SAY,
        dag(
            task("a", "pick", arguments=named(x="{{workflow.parameters.x}}")),
            say("b", "x", depends="a.Errored"),
        ),
        arguments=named(x="three"),
    ),
    "a nested dag that failed, and its output's default": workflow(
        SAY,
        LEAVE,
        dag(leave("m", 1), name="member", made=[from_(OUT.format("m"), default="none")]),
        dag(task("p", "member"), say("b", "x", depends="p.Failed")),
    ),
    "awkward items": workflow(
        SAY,
        dag(
            say("a", "{{item}}", withItems=["<x> & y", "é", "a/b", "a.b(c)", " x "]),
            say("b", "{{item.k}}", withItems=[{"k": 'q"'}, {"k": "<y>"}, {"k": ["l", 1]}]),
            say("c", '["q\\"", "n\\n"]'),
            say("d", "{{item}}", depends="c", withParam=out("c")),
            say("e", out("d"), depends="d"),
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
