"""What a release writes: its version, its part of the changelog, its rendered workflows.

python .ci/release.py version 0.2.0
python .ci/release.py assets 0.2.0 --images ghcr.io/somebody/loraline --out dist
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path

import click

UNRELEASED = "## Unreleased"
VERSION = re.compile(r'^version = "(\d+)\.(\d+)\.(\d+)"$', re.MULTILINE)
DEVELOPED = "localhost/loraline:dev"
"""Image that the rendered workflows name until a release names its own."""


class Refused(click.ClickException):
    exit_code = 2


@click.group(help="Prepare a release.")
def release() -> None:
    pass


def checked(_ctx: click.Context, _parameter: click.Parameter, version: str) -> str:
    if not re.fullmatch(r"\d+\.\d+\.\d+", version):
        raise click.BadParameter(f"{version!r} is not three numbers such as 0.2.0")
    return version


@release.command("version")
@click.argument("version", callback=checked)
def set_version(version: str) -> None:
    """Set the version in pyproject.toml and give it what CHANGELOG.md says is unreleased."""
    project, changelog = Path("pyproject.toml"), Path("CHANGELOG.md")
    before = VERSION.search(project.read_text())
    if before is None:
        raise Refused("pyproject.toml states no version of three numbers")
    if numbers(version) < numbers(".".join(before.groups())):
        raise Refused(f"{version} is older than {'.'.join(before.groups())}")
    text = changelog.read_text()
    if f"\n## {version} " in text:
        raise Refused(f"CHANGELOG.md has a section {version} already")
    today = datetime.now(UTC).date().isoformat()
    notes = section(text, UNRELEASED)
    if not notes:
        raise Refused(f"CHANGELOG.md says nothing under '{UNRELEASED}'")
    changelog.write_text(text.replace(UNRELEASED, f"{UNRELEASED}\n\n## {version} ({today})", 1))
    project.write_text(VERSION.sub(f'version = "{version}"', project.read_text(), count=1))


@release.command()
@click.argument("version", callback=checked)
@click.option("--images", required=True, help="Repository of the images, without a tag.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder to write to.")
def assets(version: str, images: str, out: Path) -> None:
    """Write the release's notes, and the workflows with the release's images."""
    headings = re.findall(
        rf"^## {re.escape(version)} .*$", Path("CHANGELOG.md").read_text(), re.MULTILINE
    )
    if not headings:
        raise Refused(f"CHANGELOG.md has no section {version}; run the command version first")
    out.mkdir(parents=True, exist_ok=True)
    (out / "notes.md").write_text(section(Path("CHANGELOG.md").read_text(), headings[0]) + "\n")
    for workflow in sorted(Path("workflows").glob("*.yaml")):
        (out / workflow.name).write_text(with_images(workflow.read_text(), images, version))


def numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in version.split("."))


def section(changelog: str, heading: str) -> str:
    """What stands under a heading of the second level."""
    _, _, rest = changelog.partition(f"{heading}\n")
    return rest.partition("\n## ")[0].strip()


def with_images(workflow: str, images: str, version: str) -> str:
    """The workflow with each image parameter's default set to the release's image."""
    for parameter, suffix in (("image", "cpu"), ("gpu-image", "gpu")):
        declared = rf"(- name: {parameter}\n(?: +\w.*\n)*? +value: ){re.escape(DEVELOPED)}$"
        workflow = re.sub(
            declared, rf"\g<1>{images}:{suffix}-v{version}", workflow, flags=re.MULTILINE
        )
    if DEVELOPED in workflow:
        raise Refused(f"a workflow names {DEVELOPED} elsewhere than in its image parameters")
    return workflow


if __name__ == "__main__":
    release()
