"""A person in front of a real browser: signs in, goes from task to task, and is looked after by axe-core."""

from __future__ import annotations

from axe_playwright_python.sync_playwright import Axe
from benchmarks.pages.serving import leading, signed_in

from tiltyard.feedback.store.people import add_annotator

AXE = Axe()
DESKTOP, PHONE = {"width": 1280, "height": 860}, {"width": 390, "height": 844}


def person(chrome, store, url, name="ada", role="annotator", **options):
    """A page of a new person who has signed in and, as an annotator, accepted the guidelines."""
    options.setdefault("viewport", DESKTOP)
    page = signed_in(chrome.new_context(**options), url, add_annotator(store, name, role)[1])
    page.set_default_timeout(30_000)  # a busy machine
    if role == "annotator":
        leading(page, lambda: page.click("form[action='/guidelines'] button"))
        ready(page)
    return page


def ready(page):
    """Waits until a task's page takes verdicts: in its first moments a press is that of the page before it."""
    page.wait_for_selector("#task")
    page.wait_for_selector("body.ready")


def following(page, act):
    """Does something that leads to another task, or to none."""
    ready(page)
    before = page.locator("[name=key]").get_attribute("value")
    act()
    page.wait_for_function(
        "key => document.readyState == 'complete' && document.querySelector('[name=key]')?.value != key", arg=before
    )


def places(page):
    """{the end of an answer's text: its place on the page}."""
    texts = page.locator("#answers .answer .prose").all_inner_texts()
    return {text.strip()[-1]: place for place, text in enumerate(texts)}


def violations(page) -> list[str]:
    """What axe-core finds on a page, in lines."""
    found = AXE.run(page, options={"resultTypes": ["violations"]}).response["violations"]
    return [
        f"{page.url} {one['id']}: {node['html'][:120]} {node['failureSummary'][:200]}"
        for one in found
        for node in one["nodes"]
    ]
