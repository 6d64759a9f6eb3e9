"""Headless Chromium, for what a page does; where there is none, a test says so and is skipped."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@contextmanager
def open_page(url: str, **options: Any) -> Iterator[Any]:
    """The page at ``url`` in a new browser; it must neither fail, nor say anything, nor ask for anything elsewhere.

    Args:
        url: Of a file or of a server on this machine.
        options: Of playwright's ``new_context``: colours, size, whether there are scripts.
    """
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = next(filter(None, map(shutil.which, _NAMES)), None)
    if path is None:
        pytest.skip(f"no Chromium is installed: none of {', '.join(_NAMES)} is there")
    with playwright.sync_playwright() as started, started.chromium.launch(executable_path=path) as browser:
        page = browser.new_page(**{"viewport": {"width": 1200, "height": 2000}, **options})
        troubles: list[str] = []
        page.on("console", lambda message: troubles.append(message.text))
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on("dialog", lambda dialog: (troubles.append(dialog.message), dialog.dismiss()))
        page.on("request", lambda request: request.url.startswith(url) or troubles.append(request.url))
        page.goto(url)
        if options.get("java_script_enabled", True):
            page.wait_for_selector("html.scripted")
        yield page
        assert troubles == []


def wait_until(page: Any, expression: str) -> None:
    """Ask the page until it is so; it forbids what playwright's own waiting would run in it."""
    for _ in range(300):
        if page.evaluate(expression):
            return
        page.wait_for_timeout(100)
    pytest.fail(f"never: {expression}")
