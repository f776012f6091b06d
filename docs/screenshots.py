"""Take the pictures of the dashboard from the demo's study: ``make demo``, then ``make screenshots``."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright

from service.client import Client

DOCS = Path(__file__).parent
HOME = DOCS.parent / ".cdka" / "demo"
SIZE = {"width": 1280, "height": 1190}


def main() -> None:
    """Serve the demo's database without a pool, and look at its newest study."""
    chromium = shutil.which("chromium")
    if chromium is None or not (HOME / "cdka.db").exists():
        sys.exit("This needs chromium and the demo's study: run make demo first")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = {**os.environ, "CDKA_HOME": str(HOME), "CDKA_DATA_DIRS": str(HOME / "data"), "CDKA_PORT": str(port)}
    command = [str(Path(sys.executable).with_name("cdka")), "serve", "--no-pool"]
    server = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL)
    try:
        address = f"http://127.0.0.1:{port}"
        _wait(address)
        token = (HOME / "admin-token").read_text().strip()
        with Client(address, token) as client:
            study = next(iter(client.studies(state=["completed"], name="bbc-news"))).id
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
            page = browser.new_page(viewport=SIZE, color_scheme="light")
            page.goto(f"{address}/login#token={token}")
            page.wait_for_url(f"{address}/")
            _take(page, f"{address}/studies/{study}", study)
            browser.close()
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(60)


def _take(page: Any, address: str, study: str) -> None:
    page.goto(f"{address}?chart=curves")
    page.wait_for_selector("#explored .main-svg")
    page.wait_for_timeout(1500)
    page.screenshot(path=DOCS / "dashboard-study.png")
    parts = (("explore", ".columns", 970), ("map", "[data-part=map]", 480), ("trials", "#trials-title", 800))
    for name, place, height in parts:
        page.set_viewport_size({"width": 1280, "height": height})
        page.wait_for_timeout(1000)
        top = page.evaluate("place => document.querySelector(place).getBoundingClientRect().top + scrollY", place)
        page.evaluate("y => scrollTo(0, y)", top - 30)
        page.wait_for_timeout(500)
        page.screenshot(path=DOCS / f"dashboard-{name}.png")
    page.set_viewport_size({"width": 1280, "height": 800})
    page.goto(f"{address.rsplit('/studies/', 1)[0]}/new?source={study}")
    page.wait_for_selector("#checked table", timeout=120_000)
    page.screenshot(path=DOCS / "dashboard-new.png")


def _wait(address: str) -> None:
    for _ in range(240):
        try:
            with urllib.request.urlopen(f"{address}/healthz", timeout=2):  # noqa: S310  # our own server
                return
        except OSError:
            time.sleep(0.5)
    sys.exit("the server did not start")


if __name__ == "__main__":
    main()
