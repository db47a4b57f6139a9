"""A real browser, on a machine that has one."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from playwright.sync_api import expect, sync_playwright

if TYPE_CHECKING:
    from playwright.sync_api import Browser

CHROMIUM = Path("/usr/bin/chromium")
SWITCHES = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking")
PHONE = {"width": 390, "height": 780}


@contextmanager
def chromium() -> "Iterator[Browser]":
    """Start it, or skip the test."""
    if not CHROMIUM.exists():
        pytest.skip("no chromium here")
    expect.set_options(timeout=60_000)
    with sync_playwright() as player:
        started = player.chromium.launch(executable_path=CHROMIUM, args=list(SWITCHES))
        yield started
        started.close()
