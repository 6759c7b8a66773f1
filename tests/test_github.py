"""What GitHub runs names what is there."""

from __future__ import annotations

import json
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


def test_a_release_is_quality_and_tests_first() -> None:
    ran = scripts("release")

    assert ran.index("make quality") < ran.index("make test")
    assert next(i for i, script in enumerate(ran) if "git push" in script) > ran.index("make test")


def test_github_runs_the_make_targets_of_the_script_for_ci() -> None:
    wanted = re.findall(r"^make \S+", (ROOT / ".ci/run").read_text(), re.MULTILINE)

    assert wanted
    assert set(wanted) <= set(scripts("quality"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_actions_are_named_by_commit_with_their_version_beside_it(file: Path) -> None:
    for used in re.findall(r"uses: (.*)", file.read_text()):
        assert re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", used)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_nothing_is_downloaded_but_by_scripts_that_check_it(file: Path) -> None:
    assert not re.search(r"\b(curl|wget)\b", file.read_text())
    for script in re.findall(r"\.ci/[\w.-]+", file.read_text()):
        assert (ROOT / script).exists()


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_workflow_may_read_and_a_job_says_what_it_may_do_besides(file: Path) -> None:
    assert load(file.stem)["permissions"] == {"contents": "read"}


def test_images_are_those_of_the_repository() -> None:
    files = {
        file.name.removesuffix(".Dockerfile") for file in (ROOT / "images").glob("*.Dockerfile")
    }
    targets = json.loads((ROOT / "images/bake.json").read_text())["target"]

    assert set(load("images")["jobs"]["image"]["strategy"]["matrix"]["kind"]) == files
    assert targets.keys() == files
    for kind, target in targets.items():
        assert target["dockerfile"] == f"images/{kind}.Dockerfile"
        text = (ROOT / target["dockerfile"]).read_text()
        assert all(f"ARG {name}=" in text for name in target.get("args", {}))
        assert all(f"ARG BASE={name}\n" in text for name in target.get("contexts", {}))


def test_every_folder_with_pins_is_looked_after() -> None:
    updates = yaml.safe_load((ROOT / ".github/dependabot.yml").read_text())["updates"]

    assert {(each["package-ecosystem"], each["directory"]) for each in updates} == {
        ("pip", "/"),
        ("github-actions", "/"),
        ("docker", "/images"),
    }


def test_hooks_before_a_commit_are_pinned_and_run_what_is_installed() -> None:
    repositories = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    quality = (
        (ROOT / "Makefile").read_text().partition("quality: install")[2].partition(".PHONY")[0]
    )
    for repository in repositories:
        if repository["repo"] != "local":
            assert re.fullmatch(r"[0-9a-f]{40}", repository["rev"])
            continue
        for hook in repository["hooks"]:
            program = hook["entry"].split()[0].removeprefix(".venv/bin/")
            assert f"$(BIN)/{program}" in quality


def test_whoever_is_asked_for_a_review_is_asked_about_what_is_there() -> None:
    for line in (ROOT / ".github/CODEOWNERS").read_text().splitlines():
        path = line.partition(" ")[0]
        if path.startswith("/"):
            assert (ROOT / path.strip("/")).is_dir(), path


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
