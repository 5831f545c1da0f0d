"""Takes each page at desktop and phone width into a folder: `make screenshots`.

`python -m benchmarks.pages.screenshots out/screenshots`
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.pages import arena
from benchmarks.pages.examples import example_store
from benchmarks.pages.serving import browser, served, signed_in

SIZES = {"desktop": {"width": 1280, "height": 860}, "phone": {"width": 390, "height": 844}}


def main(folder: Path) -> None:
    """Writes NAME-SIZE.png for each page."""
    folder.mkdir(parents=True, exist_ok=True)
    with browser() as chrome:
        for size, viewport in SIZES.items():
            with tempfile.TemporaryDirectory() as work:
                store, tokens = example_store(f"{work}/labels.db")
                with served(store, gold_every=0) as url:
                    context = chrome.new_context(
                        viewport=viewport, has_touch=size == "phone", is_mobile=size == "phone"
                    )
                    _day(context, url, tokens["ada"], lambda page, name, size=size: _shot(page, folder, name, size))
                store.close()
                store, tokens = example_store(f"{work}/busy.db", busy=420)
                with served(store) as url:
                    page = signed_in(chrome.new_context(viewport=viewport), url, tokens["root"])
                    page.wait_for_selector(".tiles")
                    _shot(page, folder, "admin", size)
                    page.click(".disputes a >> nth=0")
                    _shot(page, folder, "admin-task", size)
                store.close()
            arena.pictures(chrome, size, viewport, lambda page, name, size: _shot(page, folder, name, size))
            dark = chrome.new_context(viewport=viewport, color_scheme="dark", locale="ko-KR")
            with tempfile.TemporaryDirectory() as work:
                store, tokens = example_store(f"{work}/labels.db")
                with served(store, gold_every=0) as url:
                    page = signed_in(dark, url, tokens["ada"])
                    page.click("form[action='/guidelines'] button")
                    page.wait_for_selector("body.ready")
                    page.click("[name=choice][value=first]")
                    page.click("#go-on")
                    page.wait_for_selector("#task")
                    _shot(page, folder, "pair-dark-ko", size)
                store.close()
    print(f"{len(list(folder.glob('*.png')))} pictures in {folder}")


def _shot(page: Any, folder: Path, name: str, size: str) -> None:
    page.wait_for_load_state("load")  # the network is never idle while an arena's models write
    page.evaluate("document.fonts.ready.then(() => true)")
    page.screenshot(path=folder / f"{name}-{size}.png", full_page=name.startswith("admin"))


def _day(context: Any, url: str, token: str, shot: Any) -> None:
    """A labelling day: one picture of each page."""
    page = context.new_page()
    page.goto(f"{url}/in")
    shot(page, "sign-in")
    page.goto(f"{url}/in#{token}")
    page.reload()
    page.goto(f"{url}/in#{token}")
    shot(page, "sign-in-link")
    page.click("#enter")
    shot(page, "guidelines")
    page.click("form[action='/guidelines'] button")
    shot(page, "training")
    page.keyboard.press("1")
    page.wait_for_url("**/feedback/*")
    shot(page, "feedback")
    page.click("#go-on")
    seen: set[str] = set()
    for _ in range(20):
        if page.locator("#task").count() == 0:
            break
        kind = page.locator("#task").get_attribute("data-kind") or ""
        if kind not in seen:
            shot(page, kind)
            _dialogs(page, kind, shot)
            seen.add(kind)
        _answer(page, kind)
    shot(page, "done")
    page.goto(f"{url}/nothing")
    shot(page, "not-found")


def _dialogs(page: Any, kind: str, shot: Any) -> None:
    if kind != "pair":
        return
    shot(page, "pair-first")
    for key, name in (("?", "keys"), ("s", "skip"), ("f", "flag")):
        page.keyboard.press(key)
        page.wait_for_selector(f"#{name}-dialog[open]")
        shot(page, name)
        page.keyboard.press("Escape")


def _answer(page: Any, kind: str) -> None:
    page.wait_for_selector("body.ready")  # in its first moments a task takes no verdict
    before = page.locator("[name=key]").get_attribute("value")
    if kind == "pair":
        page.keyboard.press("1")
    elif kind == "ranking":
        page.locator("[data-down]").first.click()
        page.keyboard.press("Control+Enter")
    elif kind == "best_worst":
        for key in ("j", "b", "j", "w", "Control+Enter"):
            page.keyboard.press(key)
    elif kind == "rating":
        for key in ("j", "6", "j", "3", "Control+Enter"):
            page.keyboard.press(key)
    else:
        page.fill("#text", "Snow on the roof,\ntea in the cup.")
        page.keyboard.press("Control+Enter")
    page.wait_for_function("key => document.querySelector('[name=key]')?.value !== key", arg=before)


if __name__ == "__main__":
    from benchmarks.pages import report

    main(Path(sys.argv[1] if len(sys.argv) > 1 else "out/screenshots"))
    report.main(Path(sys.argv[1] if len(sys.argv) > 1 else "out/screenshots"))
