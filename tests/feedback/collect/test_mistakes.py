"""What goes wrong in a labelling day: double presses, a page that is left, a server that dies."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time

import httpx
import pytest

pytest.importorskip("playwright", reason="Playwright is not installed (pip install playwright)")

from benchmarks.pages.serving import browser, chromium, served

from tiltyard.feedback.store.database import Database
from tiltyard.feedback.store.export import groups
from tiltyard.feedback.store.items import Item, add_tasks
from tiltyard.feedback.store.people import add_guideline

from ..store.conftest import group
from .browsing import following, person, places, ready

pytestmark = [pytest.mark.slow, pytest.mark.browser, pytest.mark.skipif(not chromium(), reason="Chromium is missing")]


@pytest.fixture(scope="module")
def chrome():
    with browser() as started:
        yield started


@pytest.fixture
def store(tmp_path):
    database = Database(tmp_path / "labels.db")
    add_guideline(database, "Prefer what helps.")
    yield database
    database.close()


def test_a_double_press_and_a_held_key_are_one_verdict(chrome, store):
    add_tasks(store, [Item(group(k)) for k in range(4)])
    with served(store) as url:
        page = person(chrome, store, url)

        def act_twice():
            page.keyboard.press("1")
            page.wait_for_function("document.readyState == 'complete' && !document.body.classList.contains('ready')")
            page.keyboard.press("1")
            page.locator("button[value=second]").dispatch_event("click")

        following(page, act_twice)
        ready(page)
        page.evaluate(
            "document.body.dispatchEvent(new KeyboardEvent('keydown', {key: '1', repeat: true, bubbles: true}))"
        )
        page.wait_for_timeout(200)
        assert "1 done, 3 left" in page.inner_text(".top")
        page.keyboard.press("+")
        page.keyboard.press("Enter")  # in the choice of how much better: decides nothing
        page.wait_for_timeout(200)
        assert "1 done, 3 left" in page.inner_text(".top")
        following(page, lambda: page.keyboard.press("2"))
    assert len(list(groups(store))) == 2


def test_what_was_filled_in_is_there_after_the_guidelines_and_after_undo(chrome, store):
    add_tasks(store, [Item(group(1, 1), kind="write")])
    add_tasks(store, [Item(group(2, 4), kind="ranking"), Item(group(3, 2), kind="rating"), Item(group(4))])
    with served(store) as url:
        page = person(chrome, store, url)
        for _ in range(4):
            kind, at = page.get_attribute("#task", "data-kind"), places(page)
            page.keyboard.press("c")
            page.keyboard.type("my comment")
            if kind == "write":
                page.fill("#text", "a long text of mine")
            elif kind == "ranking":
                for letter in "3210":  # to the order 0, 1, 2, 3
                    while places(page)[letter] != 0:
                        page.locator("#answers .answer").nth(places(page)[letter]).locator("[data-up]").click()
                page.locator("#answers .answer").nth(3).locator("[data-equal]").check(force=True)
            elif kind == "rating":
                for place in at.values():
                    page.locator(f"[name=rating_{place}][value='{3 + place}']").check(force=True)
                page.locator("[name=truthful_1][value=no]").check(force=True)
            else:
                page.locator("[name=strength][value='3']").check(force=True)
            filled, key = _state(page), page.get_attribute("[name=key]", "value")
            page.click(".top-links a[href='/guidelines']")
            page.click("text=Back to the task")
            ready(page)
            assert _state(page) == filled, kind
            if kind == "ranking":
                assert [places(page)[letter] for letter in "01"] == [0, 1]
            send = "button[value=first]" if kind == "pair" else "#submit"
            last = page.locator(".dim.small", has_text="1 left").count()
            page.click(send)
            if last:
                page.wait_for_selector("text=You are done")
            else:
                page.wait_for_function("key => document.querySelector('[name=key]').value != key", arg=key)
                ready(page)
            page.click("#undo-form button, button[form=undo-form]")
            page.wait_for_selector(".notice")
            ready(page)
            assert _state(page) == filled, kind
            page.click(send)
            if not last:
                page.wait_for_selector(".notice", state="detached")
                ready(page)
        page.wait_for_selector("text=You are done")
        page.click("text=Sign out")
        page.wait_for_url("**/in?out=1")
        assert page.evaluate("sessionStorage.length") == 0
    found = {g.preference.meta["kind"]: g.preference for g in groups(store)}
    assert found["ranking"].ranks == (1, 2, 3, 3)
    assert found["pair"].meta["strength"] == 3
    assert {p.meta["comment"] for p in found.values()} == {"my comment"}


def _state(page):
    """What the form of a task holds."""
    state = page.evaluate("Object.fromEntries(new FormData(document.getElementById('task')))")
    return {name: value for name, value in state.items() if name not in ("csrf", "exposure", "seconds", "key")}


def test_an_order_that_no_one_touched_is_sent_by_a_second_press(chrome, store):
    add_tasks(store, [Item(group(k, 3), kind="ranking") for k in range(2)])
    with served(store) as url:
        page = person(chrome, store, url)
        for touch in (False, True):
            if touch:
                page.locator("[data-down]").first.click()
                page.locator("[data-up]").nth(1).click()  # back: it is the page's order, and someone's
            else:
                page.keyboard.press("Control+Enter")
                page.wait_for_selector("#untouched:visible")
                assert "moved no answer" in page.inner_text("#said")
                page.reload()
                ready(page)
                page.evaluate(
                    "() => [1, 2].forEach(() => document.getElementById('submit').click())"
                )  # one doubled press
                page.wait_for_selector("#untouched:visible")
                assert list(groups(store)) == []
                page.wait_for_timeout(400)
            following(page, lambda: page.click("#submit"))
    shown = [dict(zip(g.preference.meta["shown"], (1, 2, 3), strict=True)) for g in groups(store)]
    assert [g.preference.ranks for g in groups(store)] == [tuple(s[k] for k in range(3)) for s in shown]


def test_a_labelling_day_with_a_server_that_is_killed(chrome, store, tmp_path):
    """SIGKILL twice, once while a verdict is on its way: what the page acknowledged is stored, and every task once."""
    add_tasks(store, [Item(group(9), stage="training", expected={"choice": "first"})])
    add_tasks(store, [Item(group(k), source="pairs") for k in range(4)])
    add_tasks(store, [Item(group(k, 4), kind="ranking", source="rankings") for k in range(4, 6)])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    server = _started(tmp_path / "labels.db", port)
    try:
        page = person(chrome, store, url)
        page.keyboard.press("1")
        page.wait_for_url("**/feedback/*")
        page.keyboard.press("Enter")
        ready(page)
        stored, kills = 0, {2: True, 4: False}  # after so many verdicts; True: while another one is on its way
        while page.locator("#task").count():
            if stored in kills:
                server.kill()
                server.wait()
                if kills.pop(stored):
                    page.keyboard.press("1")
                    page.wait_for_timeout(300)
                server = _started(tmp_path / "labels.db", port)
                page.goto(f"{url}/label")
                ready(page)
                assert f"{stored} done, {6 - stored} left" in page.inner_text(".top")
            send = "1"
            if page.get_attribute("#task", "data-kind") == "ranking":
                page.locator("[data-down]").first.click()
                send = "Control+Enter"
            following(page, lambda send=send: page.keyboard.press(send))
            stored += 1
        assert "You judged 6 tasks" in page.inner_text("main")
    finally:
        server.kill()
    assert len({g.prompt.id for g in groups(store)}) == len(list(groups(store))) == 6


def _started(store, port):
    """`tiltyard collect serve` as a process; returns it when it answers."""
    command = [sys.executable, "-m", "tiltyard.cli", "collect", "serve", str(store), "--port", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"})
    with httpx.Client(base_url=f"http://127.0.0.1:{port}") as http:
        for _ in range(600):
            try:
                if http.get("/in").status_code == 200:
                    return server
            except httpx.TransportError:
                time.sleep(0.05)
    raise AssertionError("the server did not start")
