"""The most memory that a training needs, before any row is encoded or the base is loaded.

python -m loraline_cli.desk.plan smoke-text --set max_length=2048
"""

from __future__ import annotations

import click

from loraline.step import PipelineCommand, overrides_option


@click.command(cls=PipelineCommand)
@click.argument("profile")
@overrides_option
def show_plans(profile: str, overrides: tuple[str, ...]) -> None:
    """Print the fastest and the smallest plan of PROFILE's memory mode, for rows of max_length.

    The training plans again with the rows that there are; theirs is never more.
    """
    from loraline.base.encoding import Row
    from loraline.base.locate import locate
    from loraline.profiles.loading import load_profile
    from loraline.training import memory

    recipe = load_profile(profile, overrides=overrides)
    base = locate(recipe.base, recipe.base_revision)
    # Of a row, only its length counts, and how much of it is image: all of it, at most.
    token = base.config.get("image_token_id", 0)
    longest = Row([token] * recipe.max_length, [])
    rows = [longest] * recipe.rows_per_step
    plans = memory.candidate_plans(recipe)
    smallest = min(plans, key=lambda plan: memory.estimate(recipe, base, rows, plan).total)
    click.echo(f"for rows of max_length, {recipe.max_length} tokens, on a GPU:")
    for plan in (plans[0], smallest):
        click.echo(memory.estimate(recipe, base, rows, plan).table(plan))


if __name__ == "__main__":
    show_plans()
