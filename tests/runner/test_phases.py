"""The phase of a DAG comes from its leaves, as Argo's does, and never from the order of a set."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from runner.dags import outcomes
from runner.nodes import Node
from runner.phases import NEVER, children, dag_phase, outbound


def nodes(**result: tuple[str, str, list[str]]) -> dict[str, Node]:
    """Nodes of the DAG `d`, each with its type, its phase and its children."""
    made = {"d": Node("d", "d", "DAG")}
    for name, (node_type, phase, _) in result.items():
        made[f"d.{name}"] = Node(f"d.{name}", name, node_type, boundary="d", phase=phase)
    for name, (_, _, below_it) in result.items():
        made[f"d.{name}"].children = [f"d.{child}" for child in below_it]
    below = {child for _, _, below_it in result.values() for child in below_it}
    made["d"].children = [f"d.{name}" for name in result if name not in below]
    return made


@pytest.mark.parametrize(
    ("a", "b", "fail_fast", "phase"),
    [
        ("Error", "Failed", True, "Error"),
        ("Failed", "Error", True, "Failed"),
        ("Error", "Failed", False, "Failed"),
        ("Failed", "Error", False, "Error"),
        ("Skipped", "Succeeded", True, "Succeeded"),
    ],
)
def test_of_two_leaves_the_first_counts_or_without_fail_fast_the_last(
    a: str, b: str, fail_fast: bool, phase: str
) -> None:
    result = nodes(a=("Pod", a, []), b=("Pod", b, []))

    assert dag_phase(result, "d", ["b", "a"], fail_fast=fail_fast) == phase


def test_a_leaf_that_did_not_run_ends_as_the_first_failed_branch_before_it() -> None:
    result = nodes(
        a=("Pod", "Error", ["c"]), b=("Pod", "Failed", ["c"]), c=("Skipped", "Omitted", [])
    )

    assert dag_phase(result, "d", ["c"], fail_fast=True) == "Error"


def test_a_rescue_that_succeeded_ends_its_branch() -> None:
    result = nodes(a=("Pod", "Failed", ["b"]), b=("Pod", "Succeeded", []))

    assert dag_phase(result, "d", ["b"], fail_fast=True) == "Succeeded"


def test_what_comes_after_a_dag_that_was_given_up_is_never_reached() -> None:
    result = nodes(a=("DAG", "Error", []), b=("Skipped", "Omitted", []))
    result["d"].children = ["d.a"]

    assert outbound(result, "d.a") == []
    assert dag_phase(result, "d", ["b"], fail_fast=True) == NEVER


def test_what_comes_after_a_retried_task_comes_after_its_last_attempt() -> None:
    result = nodes(r=("Retry", "Failed", ["x", "y"]), x=("Pod", "Failed", []),
                  y=("Pod", "Failed", ["b"]), b=("Skipped", "Omitted", []))  # fmt: skip
    result["d"].children = ["d.r"]

    assert outbound(result, "d.r") == ["d.y"]
    assert dag_phase(result, "d", ["b"], fail_fast=True) == "Failed"


def test_a_group_stands_for_its_members() -> None:
    result = nodes(g=("TaskGroup", "Failed", ["x", "y"]), x=("Pod", "Error", ["b"]),
                  y=("Pod", "Failed", ["b"]), b=("Skipped", "Omitted", []))  # fmt: skip
    result["d"].children = ["d.g"]

    assert outbound(result, "d.g") == ["d.x", "d.y"]
    # The group itself is no parent of what comes after it: the first member is.
    assert dag_phase(result, "d", ["b"], fail_fast=True) == "Error"


def test_of_the_attempts_of_a_retried_task_the_last_leads_on_first() -> None:
    result = nodes(r=("Retry", "Failed", ["x", "y"]), x=("Pod", "Failed", ["b"]),
                  y=("Pod", "Error", ["b"]), b=("Skipped", "Omitted", []))  # fmt: skip
    result["d"].children = ["d.r"]

    assert children(result, result["d.r"]) == ["d.b", "d.b"]
    result["d.x"].children = ["d.c"]
    assert children(result, result["d.r"]) == ["d.b", "d.c"]


@pytest.mark.parametrize(
    ("members", "any_succeeded", "all_failed"),
    [
        (["Succeeded", "Failed"], True, False),
        (["Skipped", "Error"], False, False),
        (["Failed", "Error"], False, False),
        (["Failed", "Failed"], False, True),
        ([], False, False),
    ],
)
def test_depends_counts_the_members_of_a_group(
    members: list[str], any_succeeded: bool, all_failed: bool
) -> None:
    group = Node("d.g", "g", "TaskGroup", phase="Failed")
    ended = [Node(f"d.g({n})", f"g({n})", "Pod", phase=phase) for n, phase in enumerate(members)]
    run: Any = SimpleNamespace(members=lambda _: ended)

    facts = outcomes(run, "g", group)

    assert (facts["g.AnySucceeded"], facts["g.AllFailed"]) == (any_succeeded, all_failed)
