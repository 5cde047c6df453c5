"""A real browser without anything remembered: Debian's Chromium."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from playwright.sync_api import Page, sync_playwright

CHROMIUM = shutil.which("chromium")
ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update",
]  # fmt: skip
PATIENCE_MS = 60_000

needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="Debian's chromium is absent")


@contextmanager
def new_page() -> Iterator[Page]:
    """Open an empty page, tall enough for MLflow to draw everything."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        opened = browser.new_page(viewport={"width": 1600, "height": 2600})
        opened.set_default_timeout(PATIENCE_MS)
        yield opened
        browser.close()
