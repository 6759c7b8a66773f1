"""Fingerprints: what makes a step's finished work valid, and what does not."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from loraline.tracking import fingerprints

ROOT = Path(__file__).parents[3]

STANDING = {"base", "process", "tracking"}
"""Packages that every step stands on."""

REACHED = {
    "prepare_data": STANDING | {"data"},
    "train_qlora": STANDING | {"training", "serving", "answering"},
    "evaluate": STANDING | {"evaluation", "serving", "answering"},
    "quality_gate": STANDING | {"evaluation", "serving", "answering"},
    "deploy_vllm": STANDING | {"delivery", "serving"},
}
"""The packages that a step's code comes from."""


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the library and the steps that a test may edit."""
    shutil.copytree(ROOT / "loraline", tmp_path / "loraline")
    shutil.copytree(ROOT / "steps", tmp_path / "steps")
    monkeypatch.setattr(fingerprints, "LIBRARY", tmp_path / "loraline")
    return tmp_path / "loraline"


def digest(library: Path, step: str) -> str:
    return fingerprints.code_digest(str(library.parent / "steps" / f"{step}.py"))


@pytest.mark.parametrize("package", sorted(set().union(*REACHED.values())))
def test_an_edit_in_a_package_repeats_the_steps_that_import_it(package: str, library: Path) -> None:
    before = {step: digest(library, step) for step in REACHED}
    module = sorted((library / package).glob("*.py"))[-1]
    module.write_text(module.read_text() + "# edited\n")
    moved = {step for step in REACHED if digest(library, step) != before[step]}
    assert moved == {step for step, packages in REACHED.items() if package in packages}


def test_an_edited_template_of_a_report_repeats_the_step_that_fills_it(library: Path) -> None:
    before = {step: digest(library, step) for step in REACHED}
    template = library / "evaluation" / "report.html.j2"
    template.write_text(template.read_text() + "<!-- edited -->")
    assert digest(library, "evaluate") != before["evaluate"]
    assert digest(library, "prepare_data") == before["prepare_data"]


def test_an_edit_in_a_module_at_the_root_repeats_every_step_that_imports_it(
    library: Path,
) -> None:
    before = {step: digest(library, step) for step in REACHED}
    (library / "errors.py").write_text((library / "errors.py").read_text() + "# edited\n")
    assert all(digest(library, step) != before[step] for step in REACHED)


def test_a_fingerprint_follows_inputs_and_source(tmp_path: Path) -> None:
    source = tmp_path / "step.py"
    source.write_text("one = 1")
    first = fingerprints.fingerprint(str(source), {"a": 1, "b": 2})
    assert first == fingerprints.fingerprint(str(source), {"b": 2, "a": 1})
    assert first != fingerprints.fingerprint(str(source), {"a": 1, "b": 3})
    source.write_text("two = 2")
    assert first != fingerprints.fingerprint(str(source), {"a": 1, "b": 2})
