"""What GitHub runs names what is there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / ".github/workflows").glob("*.yml"))
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def load(name: str) -> Any:
    return yaml.safe_load((ROOT / f".github/workflows/{name}.yml").read_text())


def scripts(name: str) -> list[str]:
    jobs = load(name)["jobs"].values()
    return [step["run"] for job in jobs for step in job["steps"] if "run" in step]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_scripts_call_make_targets_that_exist_and_hold_no_inputs(file: Path) -> None:
    for script in scripts(file.stem):
        assert set(re.findall(r"^make ([a-z-]+)", script, re.MULTILINE)) <= TARGETS
        assert "${{" not in script


def test_quality_runs_what_ci_runs() -> None:
    wanted = re.findall(r"^make \S+", (ROOT / ".ci/run").read_text(), re.MULTILINE)

    assert wanted
    assert set(wanted) <= set(scripts("quality"))


def test_images_are_those_of_the_repository() -> None:
    kinds = load("images")["jobs"]["image"]["strategy"]["matrix"]["kind"]

    assert {f"{kind}.Dockerfile" for kind in kinds} == {
        file.name for file in (ROOT / "images").glob("*.Dockerfile")
    }


def test_training_offers_what_the_workflows_accept() -> None:
    # YAML 1.1 reads the key `on` as a truth.
    offered = load("train")[True]["workflow_dispatch"]["inputs"]
    for workflow in offered["workflow"]["options"]:
        spec = yaml.safe_load((ROOT / f"workflows/{workflow}.yaml").read_text())["spec"]
        declared = {p["name"]: p for p in spec["arguments"]["parameters"]}
        for name in ("profile", "resources"):
            assert offered[name]["options"] == declared[name]["enum"]
            assert offered[name]["default"] in declared[name]["enum"]
        (submit,) = [script for script in scripts("train") if "argo submit" in script]
        assert set(re.findall(r'-p "([a-z-]+)=', submit)) <= declared.keys()
