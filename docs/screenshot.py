"""Draw a page in headless Chromium, as the pictures of the documentation are made.

python docs/screenshot.py report.html docs/report.png
"""

from __future__ import annotations

import shutil
from pathlib import Path

import click

from loraline.errors import UserError
from loraline.step import PipelineCommand

# The page asks for nothing, and neither should the browser itself.
QUIET = ("--no-sandbox", "--disable-background-networking", "--disable-component-update")


@click.command(cls=PipelineCommand)
@click.argument("page", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("picture", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--height", default=1500, show_default=True, help="Pixels from the top.")
def screenshot(page: Path, picture: Path, height: int) -> None:
    """Save the top of PAGE, an HTML file, as the PNG file PICTURE."""
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        raise UserError("no Chromium is installed here (on Debian: apt-get install chromium)")
    with sync_playwright() as browsers:
        browser = browsers.chromium.launch(executable_path=chromium, args=list(QUIET))
        opened = browser.new_page(viewport={"width": 1200, "height": height})
        opened.goto(page.resolve().as_uri())
        opened.screenshot(path=picture)
        browser.close()


if __name__ == "__main__":
    screenshot()
