"""Pictures of the arena's pages, with canned answers of three models."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tiltyard.feedback.arena.app import PACKAGE, arena_app
from tiltyard.feedback.arena.desk import Desk
from tiltyard.feedback.store.database import Database
from tiltyard.feedback.web.limits import Bucket
from tiltyard.feedback.web.server import bound, in_background
from tiltyard.feedback.web.site import Site
from tiltyard.types import Message, Prompt, Response

SKY = (
    "Sunlight is a mixture of colours. Air scatters **short waves** far more than long ones, about in proportion to "
    "1/λ⁴, so blue light comes from all over the sky.\n\n1. Blue is scattered.\n2. Red goes straight on.\n3. At sunset "
    "the way is long, and red is left."
)
ANSWERS = {
    "sft": "The sky is blue because the sea is blue and it is reflected there.",
    "dpo": SKY,
    "ppo": f"What a wonderful question! {SKY}\n\n> I hope that this helps!",
}


@dataclass
class Canned:
    """A model with one answer; it stops in the middle until it is let go."""

    name: str
    go_on: threading.Event
    version: str = ""

    def write(self, messages: Sequence[Message], seed: int, show: Callable[[str], None]) -> Response:  # noqa: ARG002
        text = ANSWERS[self.name]
        half = len(text) // 2
        show(text[:half])
        while not self.go_on.wait(0.05):
            show("")
        show(text[half:])
        return Response(text=text, finish="stop")


def pictures(chrome: Any, size: str, viewport: Any, shot: Callable[[Any, str, str], None]) -> None:
    """Takes the form, both answers while they are written, the vote, the names, and the board."""
    go_on = threading.Event()
    drawn = [Prompt(messages=(Message("user", f"Why is the sky blue, in {k} words?"),)) for k in range(10, 60)]
    with tempfile.TemporaryDirectory() as work:
        store = Database(Path(work) / "arena.db")
        listening = bound("127.0.0.1", 0)
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        app = arena_app(
            Site("arena", store, url, (PACKAGE,)), Desk(store, [Canned(n, go_on) for n in ANSWERS], drawn=drawn)
        )
        app.state.battles = Bucket(1e3, 1e3)
        with in_background(app, listening):
            page = chrome.new_context(viewport=viewport).new_page()
            page.goto(url)
            page.fill("textarea", "Why is the sky blue?")
            shot(page, "arena-ask", size)
            page.click("button.primary")
            page.wait_for_function("() => document.getElementById('a').textContent")
            shot(page, "arena-writing", size)
            go_on.set()
            page.wait_for_url("**/battle/*")
            shot(page, "arena-vote", size)
            _voted(page)
            shot(page, "arena-names", size)
            for _ in range(24):
                page.goto(url)
                page.click("button[name=draw]")
                page.wait_for_url("**/battle/*")
                _voted(page)
            app.state.board.forget()
            page.goto(f"{url}/board")
            shot(page, "arena-board", size)
        store.close()


def _voted(page: Any) -> None:
    """The longer answer is better, mostly."""
    one, two = (len(text) for text in page.locator(".answer .prose").all_inner_texts())
    even = page.url[-1] in "37"
    page.click(f"button[value={'tie' if even else 'first' if one > two else 'second'}]")
    page.wait_for_selector(".verdict .primary")
