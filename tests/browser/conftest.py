"""One world for all of a module's tests, and one browser."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, sync_playwright

from tests.browser import chromium
from tests.browser.stage import Stage, running

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if not chromium.EXECUTABLE:
        pytest.skip("there is no chromium; scripts/fetch-chromium gets it where it can be had")
    with sync_playwright() as playwright:
        launched = chromium.launched(playwright)
        yield launched
        launched.close()


@pytest.fixture(scope="module")
def page_built() -> None:
    """The page as its sources are; one process at a time builds it."""
    lock = ROOT / ".cache" / "page.lock"
    lock.parent.mkdir(exist_ok=True)
    done = subprocess.run(
        ["flock", str(lock), str(ROOT / "scripts" / "build-ui")], capture_output=True, text=True, check=False
    )
    if done.returncode == 3:
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def stage(browser: Browser, page_built: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with running(tmp_path_factory.mktemp("nodes")) as made:
        yield made
