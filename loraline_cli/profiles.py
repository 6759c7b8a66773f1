"""List the training recipes that are found here, or show one with all that it inherits."""

from __future__ import annotations

import click

from loraline.step import PipelineCommand


@click.command(cls=PipelineCommand)
@click.argument("name", required=False)
def profiles(name: str | None) -> None:
    """List the profiles, or show profile NAME with what it extends filled in."""
    import yaml

    from loraline.profiles import catalog
    from loraline.profiles.loading import load_profile

    if name is not None:
        recipe = load_profile(name)
        click.echo(f"# {catalog.files()[name]}")
        click.echo(yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False), nl=False)
        return
    files = catalog.files()
    width = max(map(len, files), default=0)
    for profile, file in files.items():
        first = file.read_text("utf-8", "replace").partition("\n")[0]
        about = first.removeprefix("#").strip() if first.startswith("#") else ""
        click.echo(f"{profile.ljust(width)}  {about}".rstrip())
