"""A release has a number, what the changelog says of it, and workflows that name its images."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result

ROOT = Path(__file__).parents[2]
CHANGELOG = """# Changelog

## Unreleased

- The gate keeps its promise.
- Two lines
  are one entry.

## 0.1.0 (2026-01-02)

- It runs.
"""

Release = Callable[..., Result]


@pytest.fixture
def release(script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Release:
    """The script in a folder with a changelog, a version 0.1.0 and the rendered workflows."""
    monkeypatch.chdir(tmp_path)
    Path("CHANGELOG.md").write_text(CHANGELOG)
    Path("pyproject.toml").write_text('[project]\nname = "loraline"\nversion = "0.1.0"\n')
    shutil.copytree(ROOT / "workflows", "workflows")
    command = script(".ci/release.py").release
    return lambda *words: CliRunner().invoke(command, words)


def test_what_was_unreleased_becomes_the_versions(release: Release) -> None:
    assert release("version", "0.2.0").exit_code == 0

    assert 'version = "0.2.0"' in Path("pyproject.toml").read_text()
    before, _, after = Path("CHANGELOG.md").read_text().partition("- The gate")
    assert before.startswith("# Changelog\n\n## Unreleased\n\n## 0.2.0 (20")
    assert after == CHANGELOG.partition("- The gate")[2]


@pytest.mark.parametrize(
    ("version", "reason"),
    [
        ("v0.2.0", "is not three numbers"),
        ("0.2", "is not three numbers"),
        ("0.0.9", "0.0.9 is older than 0.1.0"),
        ("0.1.0", "has a section 0.1.0 already"),
    ],
)
def test_a_version_that_cannot_be_is_refused_and_nothing_is_written(
    release: Release, version: str, reason: str
) -> None:
    refused = release("version", version)

    assert refused.exit_code == 2
    assert reason in refused.output
    assert Path("CHANGELOG.md").read_text() == CHANGELOG
    assert 'version = "0.1.0"' in Path("pyproject.toml").read_text()


def test_numbers_are_compared_as_numbers(release: Release) -> None:
    assert release("version", "0.10.0").exit_code == 0
    assert "older than" in release("version", "0.9.0").output


def test_a_release_without_changes_is_refused(release: Release) -> None:
    assert release("version", "0.2.0").exit_code == 0

    refused = release("version", "0.3.0")

    assert refused.exit_code == 2
    assert "nothing under '## Unreleased'" in refused.output


def test_the_notes_are_the_versions_part_of_the_changelog(release: Release) -> None:
    release("version", "0.2.0")

    assert release("assets", "0.2.0", "--images", "ghcr.io/a/b", "--out", "dist").exit_code == 0

    notes = Path("dist/notes.md").read_text()
    assert notes == "- The gate keeps its promise.\n- Two lines\n  are one entry.\n"


def test_every_workflow_names_the_releases_images(release: Release) -> None:
    release("version", "0.2.0")

    assert release("assets", "0.2.0", "--images", "ghcr.io/a/b", "--out", "dist").exit_code == 0

    rendered = {path.name: path.read_text() for path in Path("dist").glob("*.yaml")}
    assert rendered.keys() == {path.name for path in (ROOT / "workflows").glob("*.yaml")}
    for name, text in rendered.items():
        spec = yaml.safe_load(text)["spec"]
        spec = spec.get("workflowSpec", spec)
        images = {
            p["name"]: p["value"] for p in spec["arguments"]["parameters"] if "image" in p["name"]
        }
        assert images == {"image": "ghcr.io/a/b:cpu-v0.2.0", "gpu-image": "ghcr.io/a/b:gpu-v0.2.0"}
        # Nothing else differs from the file that the tests and the linters have seen.
        ours = (ROOT / "workflows" / name).read_text()
        changed = [
            line
            for line, mine in zip(text.splitlines(), ours.splitlines(), strict=True)
            if line != mine
        ]
        assert len(changed) == 2


def test_assets_of_a_version_that_the_changelog_does_not_have_are_refused(release: Release) -> None:
    refused = release("assets", "0.2.0", "--images", "ghcr.io/a/b", "--out", "dist")

    assert refused.exit_code == 2
    assert "run the command version first" in refused.output
