"""Ask a running page in headless Chromium, and save it as the pictures of the documentation.

python docs/page_screenshots.py http://127.0.0.1:7860 test_data/shapes/images/0001.png docs/images
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import click

from loraline.errors import UserError
from loraline.step import PipelineCommand

QUIET = ("--no-sandbox", "--disable-background-networking", "--disable-component-update")
WAIT_MS = 60_000


@click.command(cls=PipelineCommand)
@click.argument("address")
@click.argument("picture", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--question", default="red square", show_default=True, help="What is to be found.")
def page_screenshots(address: str, picture: Path, folder: Path, question: str) -> None:
    """Save ask.png of the page at ADDRESS, asked about PICTURE, in FOLDER; with two models or more,
    compare.png as well."""
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        raise UserError("no Chromium is installed here (on Debian: apt-get install chromium)")
    with sync_playwright() as browsers:
        browser = browsers.chromium.launch(executable_path=chromium, args=list(QUIET))
        page = browser.new_page(viewport={"width": 1200, "height": 1000}, locale="en-GB")
        page.set_default_timeout(WAIT_MS)
        page.goto(address)
        page.wait_for_function("document.querySelector('#ask-task input')?.value")
        fill(page, "ask", picture, question)
        page.wait_for_selector("#ask-result .ll-stage g")
        page.screenshot(path=folder / "ask.png", full_page=True)
        page.get_by_role("tab", name="Compare").click()
        if page.locator("#compare-model .token").count() > 1:
            fill(page, "compare", picture, question)
            page.wait_for_selector("#compare-result section")
            page.screenshot(path=folder / "compare.png", full_page=True)
        browser.close()


def fill(page: Any, screen: str, picture: Path, question: str) -> None:
    """Ask for boxes on a screen."""
    page.click(f"#{screen}-task input")
    page.get_by_role("option", name="Boxes", exact=True).first.click()
    page.set_input_files(f"#{screen}-box input[type=file]", str(picture))
    page.wait_for_selector(f"#{screen}-box img")
    page.fill(f"#{screen}-box textarea", question)
    page.press(f"#{screen}-box textarea", "Enter")


if __name__ == "__main__":
    page_screenshots()
