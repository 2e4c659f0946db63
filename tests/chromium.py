"""A real Chromium for the tests of what people see: the one of the system, nothing is downloaded."""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

__all__ = ["ANDROID", "LINUX", "find_chromium", "read_qr", "running_browser"]

ANDROID: Final = "Mozilla/5.0 (Linux; Android 14; Pixel 8) AppleWebKit/537.36 Chrome/140.0 Mobile Safari/537.36"
LINUX: Final = "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/140.0 Safari/537.36"

_OPTIONS: Final = (
    # It may run as root, in a container that gives it no sandbox, and with little shared memory.
    "--no-sandbox",
    "--disable-dev-shm-usage",
    "--disable-gpu",
    # It asks nobody but the page's own server.
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)


def find_chromium() -> str:
    """Return the path of Chromium, told by INVITES_TEST_CHROMIUM or on PATH; without one the test skips or fails."""
    told = os.environ.get("INVITES_TEST_CHROMIUM")
    found = shutil.which(told or "chromium")
    if found is None and told:
        pytest.fail(f"INVITES_TEST_CHROMIUM is {told!r}, and there is no such program")
    if found is None:
        pytest.skip("there is no Chromium: apt install chromium")
    return found


@contextmanager
def running_browser() -> Iterator[Browser]:
    """Run Chromium without a window."""
    path = find_chromium()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(_OPTIONS))
        try:
            yield browser
        finally:
            browser.close()


def read_qr(page: Page) -> list[str]:
    """Return what the QR codes say that can be seen on a page, read from a picture of it as a camera would."""
    import zxingcpp
    from PIL import Image

    with Image.open(io.BytesIO(page.screenshot(full_page=True))) as picture:
        return [code.text for code in zxingcpp.read_barcodes(picture.convert("L"))]
