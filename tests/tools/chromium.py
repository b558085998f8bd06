"""A headless Chromium for tests, driven by playwright: the system's browser, one a worker."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, sync_playwright

FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--force-color-profile=srgb",
)
DRAWN = "() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"


def find_chromium() -> str | None:
    """Return the path of a browser of this family; None if there is none."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    return next((path for name in names if (path := shutil.which(name))), None)


@contextmanager
def chromium() -> Iterator[Chromium]:
    """Start a browser, and close it at the end; skip the test where there is none."""
    program = find_chromium()
    if program is None:
        pytest.skip("there is no Chromium on this machine")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=program, args=FLAGS)
        yield Chromium(started)
        started.close()


class Chromium:
    """A browser with one window for desks and one for phones, since opening a window takes as long as a page.

    Attributes:
        complaints: Warnings and errors in the page's console, exceptions it did not catch, and what it was refused.
        requests: Addresses that the page asked for.
        page: The open page.
    """

    def __init__(self, browser: Browser) -> None:
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.page: Page
        self._browser = browser
        self._windows: dict[bool, Page] = {}

    def open(self, path: Path, *, width: int = 1400, height: int = 900, dark: bool = False) -> None:
        """Open a file in a window of this size; what the page before it said or asked for is forgotten."""
        phone = width < 600
        if phone not in self._windows:
            self._windows[phone] = self._window(phone)
        self.page = self._windows[phone]
        self.page.set_viewport_size({"width": width, "height": height})
        self.page.emulate_media(media="screen", color_scheme="dark" if dark else "light")
        self.complaints.clear()
        self.requests.clear()
        self.page.goto(path.as_uri())
        self.settle()

    def _window(self, phone: bool) -> Page:
        context = self._browser.new_context(is_mobile=phone)
        page = context.new_page()
        page.on("console", self._listen)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        # From the protocol itself, because playwright leaves out `data:` addresses and icons.
        protocol = context.new_cdp_session(page)
        protocol.on("Network.requestWillBeSent", lambda event: self.requests.append(event["request"]["url"]))
        protocol.send("Network.enable")
        return page

    def evaluate(self, expression: str) -> Any:
        """Return the value of an expression, or what its promise gives; it must be fit for JSON."""
        return self.page.evaluate(expression)

    def pointer(self, x: float, y: float, *, click: bool = False) -> None:
        """Move the mouse, and press its button if `click`."""
        self.page.mouse.move(x, y)
        if click:
            self.page.mouse.click(x, y)
        self.settle()

    def drag(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        """Drag the mouse in five steps."""
        self.page.mouse.move(*start)
        self.page.mouse.down()
        self.page.mouse.move(*end, steps=5)
        self.page.mouse.up()
        self.settle()

    def wheel(self, x: float, y: float, *, down: float) -> None:
        """Turn the wheel while Ctrl is held."""
        self.page.mouse.move(x, y)
        self.page.keyboard.down("Control")
        self.page.mouse.wheel(0, down)
        self.page.keyboard.up("Control")
        self.settle()

    def key(self, name: str) -> None:
        """Press a key."""
        self.page.keyboard.press(name)
        self.settle()

    def type(self, text: str) -> None:
        """Type into the element that has the focus."""
        self.page.keyboard.insert_text(text)
        self.settle()

    def settle(self) -> None:
        """Wait until two frames are drawn."""
        self.page.evaluate(DRAWN)

    def _listen(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning", "assert"):
            self.complaints.append(message.text)


OVERLAPS = """
(() => {
  const shown = [...document.querySelectorAll("#world text")].filter((element) => element.getClientRects().length);
  const boxes = shown.map((element) => ({ text: element.textContent, box: element.getBoundingClientRect() }));
  const found = [];
  boxes.forEach((a, i) => boxes.slice(i + 1).forEach((b) => {
    const wide = Math.min(a.box.right, b.box.right) - Math.max(a.box.left, b.box.left);
    const high = Math.min(a.box.bottom, b.box.bottom) - Math.max(a.box.top, b.box.top);
    if (wide > 1 && high > 3) found.push([a.text, b.text]);
  }));
  return found;
})()
"""
