"""What axe-core finds wrong on a page, and whether the page is wider than the window."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import axe_playwright_python

AXE = Path(axe_playwright_python.__file__).with_name("axe.min.js")


def check_access(page: Any, place: str) -> None:
    """Fail with what a reader with a keyboard or a screen reader would meet."""
    page.evaluate(AXE.read_text())
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")["violations"]
    assert [(v["id"], [n["target"] for n in v["nodes"]]) for v in found] == [], place
    width = page.evaluate("document.documentElement.scrollWidth")
    assert width <= page.viewport_size["width"], f"{place} is {width} pixels wide"
