"""Chromium, and what it must not do: ask anyone but the node, break the page's own rules, throw."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from attrs import Factory, define, field
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Locator, Page, Playwright, Request

EXECUTABLE = shutil.which("chromium") or ""
ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
SCREENSHOTS = Path(__file__).parents[2] / ".cache" / "screenshots"
"""Artefacts: of each run the last."""
DESKTOP, PHONE = (1280, 860), (360, 740)


def launched(playwright: Playwright) -> Browser:
    return playwright.chromium.launch(executable_path=EXECUTABLE, args=list(ARGUMENTS))


@define(eq=False, slots=False)  # Playwright notes on an object which of its methods it calls
class Seen:
    """What a context's pages did that they should not have."""

    host: str
    strangers: list[str] = Factory(list)
    """Addresses asked for that are not the node's."""
    complaints: list[str] = field(factory=list)
    """Of the browser: violated policies, errors that nobody caught."""

    def request(self, request: Request) -> None:
        parts = urlsplit(request.url)
        if parts.scheme not in ("data", "blob") and parts.netloc != self.host:
            self.strangers.append(request.url)

    def console(self, message: ConsoleMessage) -> None:
        # a request that is refused or not answered is the page's to show, and the browser notes it, too
        if (
            message.type == "error"
            and "Failed to load resource" not in message.text
            and "WebSocket" not in message.text
        ):
            self.complaints.append(message.text)

    def error(self, error: Exception) -> None:
        self.complaints.append(str(error))


@contextmanager
def context(browser: Browser, url: str, size: tuple[int, int] = DESKTOP, **more: Any) -> Iterator[BrowserContext]:
    """A browser profile of its own; at its end it is clean of strangers and complaints."""
    seen = Seen(urlsplit(url).netloc)
    width, height = size
    more = {"color_scheme": "dark", "reduced_motion": "reduce", "locale": "en-GB", **more}
    made = browser.new_context(base_url=url, viewport={"width": width, "height": height}, **more)
    made.set_default_timeout(15_000)
    made.on("request", seen.request)
    made.on("console", seen.console)
    made.on("weberror", lambda said: seen.error(said.error))
    with made:
        yield made
    assert not seen.strangers
    assert not seen.complaints


def shot(page: Page, name: str, *, whole: bool = False, above: Locator | None = None) -> None:
    """What is seen; or all of the page; or what stands above a part of it."""
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    path = SCREENSHOTS / f"{name}.png"
    if whole or above is not None:
        page.evaluate("scrollTo(0, 0)")  # what sticks to the top is there
    box = above.bounding_box() if above is not None else None
    if box is None:
        page.screenshot(path=path, full_page=whole)
    else:
        page.screenshot(path=path, clip={"x": 0, "y": 0, "width": DESKTOP[0], "height": box["y"]})
