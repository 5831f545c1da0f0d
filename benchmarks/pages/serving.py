"""Serves an application in a thread of this process, and drives Debian's Chromium through Playwright."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tiltyard.feedback.collect.app import PACKAGE, collect_app
from tiltyard.feedback.collect.desk import Settings
from tiltyard.feedback.store.database import Database
from tiltyard.feedback.web.server import bound, in_background
from tiltyard.feedback.web.site import Site

CHROMIUM = ("chromium", "chromium-browser", "google-chrome")


def chromium() -> str:
    """The path of an installed Chromium; "" without one."""
    return next((path for name in CHROMIUM if (path := shutil.which(name))), "")


@contextmanager
def served(store: Database, **settings: Any) -> Iterator[str]:
    """Serves the labelling page of a store on a free port of loopback; yields its address."""
    listening = bound("127.0.0.1", 0)
    url = f"http://127.0.0.1:{listening.getsockname()[1]}"
    with in_background(collect_app(Site("collect", store, url, (PACKAGE,)), Settings(**settings)), listening):
        yield url


@contextmanager
def browser() -> Iterator[Any]:
    """A headless Chromium."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox", "--disable-gpu"])
        try:
            yield started
        finally:
            started.close()


def signed_in(context: Any, url: str, token: str) -> Any:
    """A page of a person who opened the personal link and pressed its button."""
    page = context.new_page()
    page.goto(f"{url}/in#{token}")
    leading(page, lambda: page.click("#enter"))
    return page


def leading(page: Any, act: Callable[[], Any]) -> None:
    """Does what leads to another page and waits for that one, so that the next look is not at the page before."""
    with page.expect_navigation():
        act()
