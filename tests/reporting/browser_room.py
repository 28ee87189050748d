"""A real Chromium for tests of pages: what it loads, what it says, what a reader sees."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

DESKTOP, PHONE = (1280, 900), (390, 844)  # pixels
# every piece of text that is shown: its colour, and the nearest background behind it
TEXTS = """
() => [...document.querySelectorAll("body *")].filter((element) => {
  const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
  return own && element.checkVisibility() && !element.closest("script, style, .skip");
}).map((element) => {
  let behind = element;
  while (behind && getComputedStyle(behind).backgroundColor === "rgba(0, 0, 0, 0)") behind = behind.parentElement;
  const back = getComputedStyle(behind ?? document.body).backgroundColor;
  return [element.textContent.trim().slice(0, 60), getComputedStyle(element).color, back];
})
"""


@contextmanager
def chromium() -> Iterator[Browser]:
    """Start Debian's Chromium; without it the tests skip, unless TRIALIGN_REQUIRE_CHROMIUM is set."""
    program = shutil.which("chromium")
    if program is None:
        reason = "Chromium is not installed: apt-get install chromium"
        if os.environ.get("TRIALIGN_REQUIRE_CHROMIUM"):
            pytest.fail(reason)
        pytest.skip(reason)
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []  # its sandbox refuses to run as root
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=arguments)
        yield browser
        browser.close()


@dataclass
class Loaded:
    """A page with all that it has asked for and all that it has complained of since it was opened."""

    page: Page
    requests: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


@contextmanager
def opened(browser: Browser, file: Path, size: tuple[int, int] = DESKTOP, **media: Any) -> Iterator[Loaded]:
    """Open a file in a window of its own, as a double click does. media: as for Playwright's `new_page`."""
    page = browser.new_page(viewport={"width": size[0], "height": size[1]}, **media)
    loaded = Loaded(page)
    page.on("request", lambda request: loaded.requests.append(request.url))
    page.on("pageerror", lambda error: loaded.errors.append(str(error)))
    page.on("console", lambda message: loaded.errors.append(message.text) if message.type == "error" else None)
    page.goto(file.resolve().as_uri())
    yield loaded
    page.close()


def contrast(one: str, other: str) -> float:
    """Return the contrast of two CSS colours, 1 to 21, as WCAG 2.2 defines it (relative luminance)."""
    light, dark = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def _luminance(colour: str) -> float:
    channels = [float(part) / 255 for part in colour.strip("rgba()").split(",")[:3]]
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in channels]
    return sum(weight * value for weight, value in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
