"""What the page's tests share: the built page, Debian's Chromium, axe, and the reason to skip where one is missing."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from phase8.watch.server.page import BUILT
from tests.dashboard_server import REPOSITORY

WCAG = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]
AXE = REPOSITORY / "web" / "node_modules" / "axe-core" / "axe.min.js"
PAGE = Path(os.environ.get("PHASE8_PAGE", BUILT))
"""The built page; the environment may name another."""
PATIENCE_MS = 90_000


def chromium() -> str:
    """Where Chromium is; skips the test where it is not."""
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    if found is None:
        pytest.skip("no Chromium here: `apt-get install chromium`")
    return found


def page_directory() -> Path:
    """The built page; skips the test where it is not."""
    if not (PAGE / "index.html").is_file():
        pytest.skip("the dashboard's page is not built: `make page` (needs npm)")
    return PAGE


@contextmanager
def launched() -> Iterator[Any]:
    """A browser, for all tests of a file."""
    playwright = pytest.importorskip("playwright.sync_api", reason="no Playwright here: pip install playwright")
    path = chromium()
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextmanager
def opened(
    browser: Any, url: str, width: int = 1280, prepare: Callable[[Any], None] | None = None, **context: Any
) -> Iterator[Any]:
    """A page of its own, without motion; fails on an error that the page throws.

    `prepare` is called with the page before it asks for anything.
    """
    chosen = {"viewport": {"width": width, "height": 900}, "reduced_motion": "reduce", **context}
    held = browser.new_context(**chosen)
    held.set_default_timeout(PATIENCE_MS)
    page = held.new_page()
    thrown: list[str] = []
    page.on("pageerror", lambda error: thrown.append(str(error)))
    if prepare is not None:
        prepare(page)
    page.goto(url)
    yield page
    held.close()
    assert not thrown, thrown


def violations(page: Any) -> list[str]:
    """What axe finds against WCAG 2.1 A and AA, in the light and in the dark."""
    if not AXE.is_file():
        pytest.skip("no axe here: `npm ci` in web/")
    if not page.evaluate("'axe' in window"):
        page.evaluate(AXE.read_text())  # not a script element: the page's policy allows no foreign ones
    found = []
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
        result = page.evaluate("tags => axe.run(document, {runOnly: tags, resultTypes: ['violations']})", WCAG)
        for rule in result["violations"]:
            nodes = [f"{node['html'][:160]} ({node['failureSummary'][:200]})" for node in rule["nodes"][:3]]
            found.append(f"{scheme}: {rule['id']}: {nodes}")
    return found


WIDTHS = (320, 768, 1280)
SHOTS = os.environ.get("PHASE8_SHOTS")
"""Where `findings` leaves a picture of everything that it looks at; None: nowhere."""


def findings(page: Any) -> list[str]:
    """What is wrong on a phone, a tablet and a laptop, light and dark: `violations`, and content beyond the edge."""
    found = []
    for width in WIDTHS:
        page.set_viewport_size({"width": width, "height": 900})
        found += [f"{width} px, {line}" for line in violations(page)]
        if SHOTS is not None:
            _picture(page, width)
        wide = page.evaluate("document.documentElement.scrollWidth")
        if wide > width:
            found.append(f"{width} px: the page is {wide} px wide")
    return found


def _picture(page: Any, width: int) -> None:
    test = re.sub(r"[^a-z0-9]+", "-", os.environ["PYTEST_CURRENT_TEST"].partition("::")[2].rpartition(" ")[0])
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
        page.screenshot(path=Path(SHOTS or ".") / f"{test.strip('-')}-{width}-{scheme}.png", full_page=True)


def press_until(page: Any, key: str, label: str, most: int = 80) -> None:
    """Presses a key until the element in focus has this name: how somebody without a mouse gets there."""
    for _ in range(most):
        page.keyboard.press(key)
        name = page.evaluate(
            "(e => e.getAttribute('aria-label') ?? (e.labels?.[0]?.innerText ?? e.innerText ?? '').split('\\n')[0])"
            "(document.activeElement)"
        )
        if name.strip() == label:
            return
    raise AssertionError(f"{key} never reaches {label!r}")
