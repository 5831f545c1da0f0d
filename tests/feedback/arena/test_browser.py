"""The arena in a real browser: from the question to the board, streaming, hostile answers, axe-core, a phone."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

pytest.importorskip("playwright", reason="Playwright is not installed (pip install playwright)")

from axe_playwright_python.sync_playwright import Axe
from benchmarks.pages.serving import browser, chromium, leading
from tests.feedback.arena.scripted import Scripted
from tests.feedback.collect.test_security import PAYLOADS

from tiltyard.feedback.arena.app import PACKAGE, arena_app
from tiltyard.feedback.arena.desk import Desk
from tiltyard.feedback.store.database import Database
from tiltyard.feedback.store.export import groups
from tiltyard.feedback.web.server import bound, in_background
from tiltyard.feedback.web.site import Site
from tiltyard.types import Message, Prompt

pytestmark = [pytest.mark.slow, pytest.mark.browser, pytest.mark.skipif(not chromium(), reason="Chromium is missing")]

DESKTOP, PHONE = {"width": 1280, "height": 860}, {"width": 390, "height": 844}


@pytest.fixture(scope="module")
def chrome() -> Iterator[Any]:
    with browser() as started:
        yield started


@pytest.fixture
def store(tmp_path) -> Iterator[Database]:
    database = Database(tmp_path / "arena.db")
    yield database
    database.close()


@contextmanager
def arena(store: Database, *models: Scripted) -> Iterator[str]:
    drawn = [Prompt(messages=(Message("user", "Draw a **bold** line."),))]
    listening = bound("127.0.0.1", 0)
    url = f"http://127.0.0.1:{listening.getsockname()[1]}"
    app = arena_app(Site("arena", store, url, (PACKAGE,)), Desk(store, models, drawn=drawn))
    with in_background(app, listening):
        yield url


def visitor(chrome: Any, url: str, **options: Any) -> Any:
    page = chrome.new_context(**{"viewport": DESKTOP, **options}).new_page()
    page.set_default_timeout(15_000)
    page.goto(url)
    return page


def asked(page: Any, text: str = "Why is the sky blue?") -> None:
    page.fill("textarea", text)
    page.click("button.primary")
    page.wait_for_url("**/battle/*")


def violations(page: Any) -> list[str]:
    found = Axe().run(page).response["violations"]
    return [f"{page.url}: {one['id']}: {one['nodes'][0]['html'][:120]}" for one in found]


def fits(page: Any) -> bool:
    """Nothing is wider than the screen."""
    return page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")


def test_a_battle_from_the_question_to_the_board(chrome, store) -> None:
    with arena(store, Scripted("secret-one", "One good answer"), Scripted("secret-two", "Another answer")) as url:
        page = visitor(chrome, url)
        asked(page)
        before = page.content()
        assert "secret-" not in before
        left = page.locator(".answer .prose").first.inner_text()
        page.keyboard.press("1")
        page.wait_for_selector(".answer.won")
        names = page.locator(".answer h2 .model").all_inner_texts()
        assert sorted(names) == ["secret-one", "secret-two"]
        assert names[0] == ("secret-one" if left == "One good answer" else "secret-two")
        assert "You voted: A is better." in page.inner_text(".verdict")
        page.click(".verdict .primary")
        page.click("button[name=draw]")
        page.wait_for_url("**/battle/*")
        assert page.locator(".prose strong").first.inner_text() == "bold"
        page.click("button[value=tie]")
        page.wait_for_selector("text=You voted: equally good.")
        leading(page, lambda: page.click(".top-links a"))
        assert page.locator("table.board tbody tr").count() == 2
    assert len(list(groups(store))) == 2


def test_answers_appear_while_they_are_written(chrome, store) -> None:
    held = threading.Event()
    with arena(store, Scripted("one", "first words", held=held), Scripted("two", "second words", held=held)) as url:
        page = visitor(chrome, url)
        page.fill("textarea", "Why?")
        page.click("button.primary")
        page.wait_for_function("() => ['a', 'b'].every((id) => document.getElementById(id).textContent)")
        assert sorted(page.locator(".plain").all_inner_texts()) == ["first", "second"]
        assert page.locator("#a").get_attribute("aria-busy") == "true"
        assert "writing" in page.inner_text("[role=status]")
        assert not list(groups(store))
        held.set()
        page.wait_for_url("**/battle/*")
        assert sorted(page.locator(".answer .prose").all_inner_texts()) == ["first words", "second words"]


def test_a_vote_after_the_names_does_not_count(chrome, store) -> None:
    with arena(store, Scripted("one"), Scripted("two")) as url:
        page = visitor(chrome, url)
        asked(page)
        late = page.context.new_page()
        late.goto(page.url)  # the same battle in a second window, its buttons still there
        page.click("form[action$=reveal] button")
        page.wait_for_selector("text=does not count")
        leading(late, lambda: late.click("button[value=first]"))
        assert "409" in late.inner_text("main")
        page.goto(f"{url}/board")
        assert page.locator("table.board").count() == 0
    assert not list(groups(store))


def test_keys_that_are_held_or_switched_off_vote_nothing(chrome, store) -> None:
    with arena(store, Scripted("one"), Scripted("two")) as url:
        page = visitor(chrome, url)
        asked(page)
        assert page.locator("#named").count() == 0
        page.uncheck("#single-keys")
        page.keyboard.press("1")
        page.reload()
        assert not page.is_checked("#single-keys")
        page.check("#single-keys")
        page.evaluate("dispatchEvent(new KeyboardEvent('keydown', {key: '2', repeat: true}))")
        assert page.locator("#vote").count() == 1
        page.keyboard.press("2")
        page.wait_for_selector("text=You voted: B is better.")
    assert len(list(groups(store))) == 1


def test_an_answer_that_names_its_model_does_not_count(chrome, store) -> None:
    with arena(store, Scripted("one", "I am ChatGPT."), Scripted("two", "A fine answer")) as url:
        page = visitor(chrome, url)
        asked(page)
        assert "does not count" in page.inner_text("#named")
        assert not violations(page)
        page.click("button[value=first]")
        page.wait_for_selector(".answer.won")
        assert "Your vote is kept but does not count" in page.inner_text("#named")
        page.goto(f"{url}/board")
        assert "Not counted: 1" in page.inner_text("main")
        assert "Votes: 0" in page.inner_text("main")
    assert len(list(groups(store))) == 1  # kept, and marked


def test_hostile_answers_do_nothing(chrome, store) -> None:
    hostile = "\n\n".join(PAYLOADS)
    loaded: list[str] = []
    with arena(store, Scripted("<b>one</b>", hostile), Scripted('two"><img src=x>', hostile)) as url:
        page = visitor(chrome, url)
        page.on("request", lambda request: loaded.append(request.url))
        asked(page, hostile[:3500])
        page.click("button[value=both_bad]")
        page.wait_for_selector("text=both are bad")
        assert page.evaluate("window.hacked") is None
        assert page.locator("main img, main iframe, main form[action^=http], main script").count() == 0
        page.goto(f"{url}/board")
        assert "<b>one</b>" in page.inner_text("main")
        assert page.evaluate("window.hacked") is None
    assert all(address.startswith(url) for address in loaded)


@pytest.mark.parametrize(("size", "scheme"), [(DESKTOP, "light"), (PHONE, "dark")])
def test_accessible_on_every_page_and_no_wider_than_the_screen(chrome, store, size, scheme) -> None:
    long = Scripted(
        "one", "- a list\n- of `code`\n\n" + "word " * 60 + "\n\n| a | b |\n|---|---|\n| 1 | 2 |\n" + "x" * 300
    )
    with arena(store, long, Scripted("two", "مرحبا بالعالم"), Scripted("three", "안녕하세요 你好")) as url:
        page = visitor(chrome, url, viewport=size, color_scheme=scheme)
        found, wide = violations(page), [] if fits(page) else [page.url]
        for _ in range(3):
            asked(page)
            found += violations(page)
            wide += [] if fits(page) else [page.url]
            page.click("button[value=first]")
            page.wait_for_selector(".answer.won")
            found += violations(page)
            leading(page, lambda: page.click(".verdict .primary"))
        page.goto(f"{url}/board")
        found += violations(page)
        wide += [] if fits(page) else [page.url]
    assert not found
    assert not wide
