"""A labelling day in a real browser: by keyboard, by mouse, by touch, with hostile texts, and as axe-core sees it."""

from __future__ import annotations

from collections import Counter

import pytest

pytest.importorskip("playwright", reason="Playwright is not installed (pip install playwright)")

from benchmarks.pages.examples import example_store
from benchmarks.pages.serving import browser, chromium, served, signed_in

from tiltyard.feedback.store.database import Database
from tiltyard.feedback.store.export import groups
from tiltyard.feedback.store.items import Item, add_tasks
from tiltyard.feedback.store.people import add_annotator, add_guideline

from ..store.conftest import group
from .browsing import DESKTOP, PHONE, following, leading, person, places, ready, violations
from .test_security import PAYLOADS, hostile_items

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


def test_a_day_by_keyboard(chrome, store):
    known = {"expected": {"choice": "second"}, "explanation": "Known."}
    add_tasks(store, [Item(group(90), stage="training", **known)])
    for kind, count in (("pair", 2), ("ranking", 4), ("best_worst", 4), ("rating", 3), ("write", 0)):
        add_tasks(store, [Item(group(k, count), kind=kind) for k in range(3 if kind == "pair" else 1)])
    with served(store) as url:
        page = person(chrome, store, url)
        page.keyboard.press("1" if places(page)["1"] == 0 else "2")
        page.wait_for_url("**/feedback/*")
        assert "That is what we expected" in page.inner_text("h1")
        leading(page, lambda: page.keyboard.press("Enter"))
        undone = 0
        while page.locator("#task").count():
            kind = page.get_attribute("#task", "data-kind")
            at = places(page)
            if kind == "pair":
                page.keyboard.press("?")
                assert page.locator("#keys-dialog").is_visible()
                page.keyboard.press("1")  # keys do nothing behind a dialog
                page.keyboard.press("Escape")
                page.keyboard.press("+")
                page.keyboard.press("+")
                following(page, lambda at=at: page.keyboard.press("1" if at["1"] == 0 else "2"))
                if not undone:
                    undone = 1
                    if page.locator("#task").count():
                        following(page, lambda: page.keyboard.press("u"))
                        assert "taken back" in page.inner_text(".notice")
                        following(page, lambda at=at: page.keyboard.press("1" if at["1"] == 0 else "2"))
                continue
            if kind == "ranking":
                for place, letter in enumerate("0123"):  # to the order 0, 1, 2, 3
                    for _ in range(4):
                        if places(page)[letter] == place:
                            break
                        page.locator("#answers .answer").nth(places(page)[letter]).focus()
                        page.keyboard.press("K")
                page.locator("#answers .answer").nth(3).focus()
                page.keyboard.press("=")
            elif kind == "best_worst":
                for letter, key in (("2", "b"), ("0", "w")):
                    for _ in range(4):
                        page.keyboard.press("k")
                    for _ in range(at[letter]):
                        page.keyboard.press("j")
                    page.keyboard.press(key)
            elif kind == "rating":
                for _ in range(3):
                    page.keyboard.press("k")
                for letter in sorted(at, key=at.get):
                    page.keyboard.press(str(3 + int(letter)))
                    page.keyboard.press("j")
            else:
                page.keyboard.press("c")
                page.keyboard.type("a comment with 1, u and s in it")
                page.locator("#text").focus()
                page.keyboard.type("My answer: 1, 2, ?")
            following(page, lambda: page.keyboard.press("Control+Enter"))
        assert "You are done" in page.inner_text("h1")
    found = list(groups(store))
    assert Counter(g.preference.meta["kind"] for g in found) == {
        "pair": 3,
        "ranking": 1,
        "best_worst": 1,
        "rating": 1,
        "write": 1,
    }
    by_kind = {g.preference.meta["kind"]: g.preference for g in found}
    pairs = [g.preference for g in found if g.preference.meta["kind"] == "pair"]
    assert {p.ranks for p in pairs} == {(2, 1)}
    assert sorted(p.meta.get("strength", 0) for p in pairs) in ([0, 2, 2], [2, 2, 2])
    assert by_kind["ranking"].ranks == (1, 2, 3, 3)
    assert by_kind["best_worst"].ranks == (3, 2, 1, 2)
    assert by_kind["rating"].ratings == (3, 4, 5)
    assert next(g for g in found if g.preference.meta["kind"] == "write").responses[0].text == "My answer: 1, 2, ?"
    assert by_kind["write"].meta["comment"] == "a comment with 1, u and s in it"
    assert all(0 < g.preference.meta["seconds"] < 60 for g in found)


def test_a_day_by_mouse(chrome, store):
    for kind, count in (("pair", 2), ("ranking", 5), ("best_worst", 3), ("rating", 2), ("write", 2)):
        add_tasks(store, [Item(group(1, count), kind=kind)])
    with served(store) as url:
        page = person(chrome, store, url)
        while page.locator("#task").count():
            kind, at = page.get_attribute("#task", "data-kind"), places(page)
            if kind == "pair":
                page.click("text=Much")
                following(page, lambda at=at: page.click(f"button[value={'first' if at['0'] == 0 else 'second'}]"))
                following(page, lambda: page.click("text=Undo the last"))
                following(page, lambda at=at: page.click(f"button[value={'first' if at['0'] == 0 else 'second'}]"))
                continue
            if kind == "ranking":
                for place, letter in enumerate("01234"):
                    _drag(page, places(page)[letter], place)
                    assert places(page)[letter] == place
                assert page.locator("select[name^=rank]").evaluate_all("all => all.map(one => one.value)") == list(
                    "12345"
                )
            elif kind == "best_worst":
                cards = page.locator("#answers .answer")
                cards.nth(at["1"]).locator("[name=best]").click()
                cards.nth(at["1"]).locator("[name=worst]").click()  # not both: the later choice counts
                cards.nth(at["2"]).locator("[name=best]").click()
            elif kind == "rating":
                for letter, place in at.items():
                    card = page.locator("#answers .answer").nth(place)
                    card.locator(".scale label", has_text=str(6 - int(letter))).click()
                    card.locator("[name^=truthful][value=no]").click()
            else:
                page.locator("#answers .answer").nth(at["1"]).get_by_text("Start from").click()
                assert page.input_value("#text") == "answer 1-1"
                page.fill("#text", "answer 1-1, improved")
            following(page, lambda: page.click("#submit"))
        assert page.locator("h1", has_text="You are done").count() == 1
    by_kind = {g.preference.meta["kind"]: g.preference for g in groups(store)}
    assert by_kind["pair"].ranks == (1, 2)
    assert by_kind["ranking"].ranks == (1, 2, 3, 4, 5)
    assert by_kind["best_worst"].ranks == (2, 3, 1)
    assert by_kind["rating"].ratings == (6, 5)
    assert by_kind["rating"].meta["flags"] == [{"truthful": False}] * 2


def _drag(page, start: int, end: int) -> None:
    """Drags the answer at a place by its handle to above the one at another place."""
    if start == end:
        return
    page.locator("#answers .answer .handle").nth(start).evaluate("one => one.scrollIntoView({block: 'center'})")
    handle = page.locator("#answers .answer .handle").nth(start).bounding_box()
    page.mouse.move(handle["x"] + 8, handle["y"] + 8)
    page.mouse.down()
    for _ in range(40):
        target = page.locator("#answers .answer").nth(end).bounding_box()
        page.mouse.move(handle["x"] + 8, max(target["y"] + 4, 60), steps=4)
        if page.locator("#answers .answer").nth(end).evaluate("one => one.classList.contains('dragged')"):
            break
    page.mouse.up()


def test_on_a_phone_nothing_is_wider_than_the_screen(chrome, tmp_path):
    """By touch, through every kind of task; one of them is skipped."""
    store, tokens = example_store(f"{tmp_path}/labels.db", busy=16)
    with served(store, gold_every=0) as url:
        context = chrome.new_context(viewport=PHONE, has_touch=True, is_mobile=True)
        page = signed_in(context, url, tokens["ada"])
        leading(page, lambda: page.tap("form[action='/guidelines'] button"))
        ready(page)
        page.tap("button[value=tie]")
        page.wait_for_url("**/feedback/*")
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
        leading(page, lambda: page.tap("#go-on"))
        seen = set()
        while page.locator("#task").count():
            assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"], page.url
            kind = page.get_attribute("#task", "data-kind")
            seen.add(kind)
            if kind == "pair":
                following(page, lambda: page.tap("button[value=tie]"))
            elif kind == "ranking":
                page.locator("[data-down]").first.tap()
                following(page, lambda: page.tap("#submit"))
            else:
                page.tap("a[data-dialog=skip]")
                page.locator("#skip-dialog label").first.tap()
                following(page, lambda: page.tap("#skip-dialog button.primary"))
        assert len(seen) == 5
        boss = signed_in(chrome.new_context(viewport=PHONE), url, tokens["root"])
        boss.wait_for_selector(".tiles")
        assert boss.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    store.close()


def test_hostile_texts_run_nothing_and_load_nothing(chrome, store):
    texts = ["\n\n".join(PAYLOADS[k : k + 3]) for k in range(0, len(PAYLOADS), 3)]
    kinds = {"pair": 2, "write": 2}
    add_tasks(store, [item for kind, count in kinds.items() for item in hostile_items(kind, count, texts)])
    add_guideline(store, "\n\n".join(PAYLOADS))
    asked, dialogs, broken = [], [], []

    def watch(page):
        page.on("request", lambda request: asked.append(request.url))
        page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
        page.on("console", lambda message: broken.append(message.text) if message.type == "error" else None)

    with served(store, gold_every=0) as url:
        context = chrome.new_context(viewport=DESKTOP)
        context.on("page", watch)
        page = signed_in(context, url, add_annotator(store, PAYLOADS[0])[1])
        leading(page, lambda: page.click("form[action='/guidelines'] button"))
        count = 0
        while page.locator("#task").count():
            assert page.evaluate("window.hacked === undefined && document.querySelector('main script') === null")
            comment = PAYLOADS[count % len(PAYLOADS)]
            page.locator(".comment summary").click()
            page.fill("[name=comment]", comment)
            kind = page.get_attribute("#task", "data-kind")
            if kind == "pair":
                following(page, lambda: page.click("button[value=tie]"))
            else:
                if kind == "write":
                    page.locator("[data-copy]").first.check(force=True)
                following(page, lambda: page.click("#submit"))
            count += 1
        assert count == 2 * len(texts)
        admin_context = chrome.new_context(viewport=DESKTOP)
        admin_context.on("page", watch)
        admin = signed_in(admin_context, url, add_annotator(store, PAYLOADS[1], "admin")[1])
        admin.wait_for_selector(".tiles")
        assert admin.evaluate("window.hacked === undefined")
        for task in range(1, 2 * len(texts) + 1):
            admin.goto(f"{url}/admin/task/{task}")
            assert admin.evaluate("window.hacked === undefined && document.querySelector('main script') === null")
    assert not dialogs
    assert not broken, broken[:3]
    assert {one.split("/")[2] for one in asked} == {url.split("/")[2]}


def test_an_inline_script_would_not_run(chrome, store):
    """The policy holds even where cleaning would have let something through."""
    add_tasks(store, [Item(group(1))])
    with served(store) as url:
        page = person(chrome, store, url)
        page.wait_for_selector("#task")
        page.wait_for_load_state()
        page.evaluate(
            """() => {
                const script = document.createElement('script');
                try { script.textContent = 'window.hacked = 1'; document.body.append(script); } catch (error) {}
                try { document.body.insertAdjacentHTML('beforeend', '<img src=x onerror="window.hacked=1">'); }
                catch (error) {}
                const frame = document.createElement('a');
                frame.href = 'javascript:window.hacked=1'; document.body.append(frame); frame.click();
            }"""
        )
        page.wait_for_timeout(300)
        assert page.evaluate("window.hacked === undefined")


@pytest.mark.parametrize(("size", "scheme"), [(DESKTOP, "light"), (PHONE, "dark")], ids=["desktop", "phone"])
def test_axe_reports_no_violation(chrome, tmp_path, size, scheme):
    """Every page, with the dialogs open too. The policy is off, so that axe-core can be put into the page."""
    found: list[str] = []
    store, tokens = example_store(f"{tmp_path}/labels.db")
    look = {"viewport": size, "color_scheme": scheme, "bypass_csp": True, "reduced_motion": "reduce"}
    with served(store, gold_every=0) as url:
        context = chrome.new_context(**look)
        page = context.new_page()
        for path in ("/in", "/nothing"):
            page.goto(url + path)
            found += violations(page)
        page = signed_in(context, url, tokens["ada"])
        page.wait_for_url("**/guidelines")
        found += violations(page)
        leading(page, lambda: page.click("form[action='/guidelines'] button"))
        ready(page)
        page.click("button[value=tie]")
        page.wait_for_url("**/feedback/*")
        found += violations(page)
        leading(page, lambda: page.click("#go-on"))
        found += _tasks(page, url)
    store.close()
    store, tokens = example_store(f"{tmp_path}/busy.db", busy=40)
    with served(store) as url:
        boss = signed_in(chrome.new_context(**look), url, tokens["root"])
        boss.wait_for_selector(".tiles")
        found += violations(boss)
        leading(boss, lambda: boss.click(".disputes a >> nth=0"))
        found += violations(boss)
    store.close()
    assert not found, "\n".join(found)


def _tasks(page, url) -> list[str]:
    """The violations on a page of each kind, on dialogs and small pages, and at the end."""
    found, seen = [], set()
    for _ in range(60):
        if not page.locator("#task").count():
            break
        kind = page.get_attribute("#task", "data-kind")
        if kind not in seen:
            seen.add(kind)
            found += violations(page)
            if kind == "pair":
                for name in ("keys", "skip", "flag"):
                    page.click(f"[data-dialog={name}]")
                    found += violations(page)
                    page.keyboard.press("Escape")
        if kind == "pair":
            following(page, lambda: page.click("button[value=tie]"))
        else:
            page.click("a[data-dialog=skip]")
            page.locator("#skip-dialog [name=reason]").first.check()
            following(page, lambda: page.click("#skip-dialog button.primary"))
    found += violations(page)
    assert seen >= {"pair", "best_worst", "rating", "write"}
    for path in ("/keys", "/skip", "/flag", "/guidelines"):
        page.goto(url + path)
        found += violations(page)
    return found


def test_the_pages_work_without_scripts(chrome, store):
    add_tasks(store, [Item(group(1)), Item(group(2, 4), kind="ranking")])
    with served(store) as url:
        context = chrome.new_context(viewport=DESKTOP, java_script_enabled=False)
        page = context.new_page()
        page.goto(f"{url}/in")
        page.fill("[name=token]", add_annotator(store, "ada")[1])
        leading(page, lambda: page.click("#enter"))
        leading(page, lambda: page.click("form[action='/guidelines'] button"))
        for _ in range(2):
            if page.locator("button[value=first]").count():
                leading(page, lambda: page.click("button[value=first]"))
            else:
                for place, rank in enumerate("4321"):
                    page.locator(f"[name=rank_{place}]").select_option(rank)
                leading(page, lambda: page.click("#submit"))
        assert "You are done" in page.inner_text("h1")
    assert len(list(groups(store))) == 2
