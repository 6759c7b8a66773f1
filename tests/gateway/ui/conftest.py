"""The page on loopback, before a gateway on loopback, before a stub of vLLM; and a Chromium."""

from __future__ import annotations

import atexit
import contextlib
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn

# Gradio takes its folder when it is imported; the tests leave none behind.
if "GRADIO_TEMP_DIR" not in os.environ:
    os.environ["GRADIO_TEMP_DIR"] = tempfile.mkdtemp(prefix="page-test-")
    atexit.register(shutil.rmtree, os.environ["GRADIO_TEMP_DIR"], ignore_errors=True)

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
ARGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    # A camera that films a test pattern.
    "--use-fake-device-for-media-stream",
]


@contextlib.contextmanager
def page_before(gateway: str, **set_to: Any) -> Iterator[str]:
    """A running page; its address."""
    from gateway.ui import server
    from gateway.ui.app import create_app
    from gateway.ui.settings import Settings

    app = create_app(Settings(gateway=gateway, secret="a test's", **set_to))
    listening = server.bind("127.0.0.1", 0)
    running = uvicorn.Server(server.config(app))
    thread = threading.Thread(target=running.run, args=([listening],), daemon=True)
    thread.start()
    deadline = time.monotonic() + 30
    while not running.started:
        assert time.monotonic() < deadline and thread.is_alive(), "the page did not start"
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        running.should_exit = True
        thread.join(15)


@pytest.fixture(scope="session")
def open_page() -> Callable[..., Any]:
    """Start a page before this gateway, for a with-block."""
    pytest.importorskip("gradio", reason="the page is an extra: pip install '.[ui]'")
    return page_before


@pytest.fixture(scope="session")
def page_url(open_page: Callable[..., Any], _vision: Any) -> Iterator[str]:
    """A page before the shared gateway of a vision adapter, which asks nobody for a key."""
    with open_page(_vision.url) as url:
        yield url


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine")
    with sync_api.sync_playwright() as browsers:
        browser = browsers.chromium.launch(executable_path=CHROMIUM, args=ARGS)
        yield browser
        browser.close()


class Seen:
    """What a browser's page did beside what it shows."""

    def __init__(self, page: Any, url: str) -> None:
        self.problems: list[str] = []
        self.foreign: list[str] = []
        page.on("console", self.on_console)
        page.on("pageerror", lambda error: self.problems.append(str(error)))
        page.on("dialog", lambda dialog: (self.problems.append("dialog"), dialog.dismiss()))
        page.on("response", self.on_response)
        page.on(
            "request",
            lambda request: (
                None
                if request.url.startswith((url, "data:", "blob:", "about:"))
                else self.foreign.append(request.url)
            ),
        )

    def on_response(self, response: Any) -> None:
        if response.status >= 400:
            self.problems.append(f"{response.status} {response.url}")

    def on_console(self, message: Any) -> None:
        if message.type == "error":
            self.problems.append(message.text)


@pytest.fixture
def opened(browser: Any) -> Iterator[Callable[..., Any]]:
    """Open an address in a visitor's own browser; the test fails for any error in its console and
    any request to another host."""
    contexts, seen = [], []

    def open_(url: str, **options: Any) -> Any:
        context = browser.new_context(**({"locale": "en-GB"} | options))
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(10_000)
        seen.append(Seen(page, url.rstrip("/")))
        page.goto(url)
        return page

    yield open_
    for context in contexts:
        context.close()
    assert [each.problems for each in seen if each.problems] == []
    assert [each.foreign for each in seen if each.foreign] == []


@pytest.fixture
def drawing_file(tmp_path: Path) -> Path:
    """A white picture, 400 x 300, with a black rectangle from (100, 90) to (300, 210)."""
    from PIL import Image, ImageDraw

    picture = Image.new("RGB", (400, 300), "white")
    ImageDraw.Draw(picture).rectangle((100, 90, 300, 210), fill="black")
    path = tmp_path / "drawing.png"
    picture.save(path)
    return path
