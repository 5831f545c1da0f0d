"""The arena's pages over HTTP, with scripted models: a whole battle, what is hidden, and what is refused."""

from __future__ import annotations

import json
import re

import pytest
from tests.feedback.arena.scripted import Scripted

pytest.importorskip("fastapi")
from fastapi.testclient import TestClient

from tiltyard.feedback.arena.app import PACKAGE, arena_app
from tiltyard.feedback.arena.desk import Desk
from tiltyard.feedback.store.database import Database
from tiltyard.feedback.store.export import groups
from tiltyard.feedback.web.site import Site
from tiltyard.types import Message, Prompt

URL = "http://127.0.0.1:8078"
HOSTILE = "<script>alert(1)</script> <img src=x onerror=alert(1)> [x](javascript:alert(1)) **bold**"


@pytest.fixture
def app(tmp_path):
    database = Database(tmp_path / "arena.db")
    drawn = [Prompt(messages=(Message("user", "Drawn?"),))]
    desk = Desk(database, [Scripted("secret-one", "A first answer"), Scripted("secret-two", HOSTILE)], drawn=drawn)
    yield arena_app(Site("arena", database, URL, (PACKAGE,)), desk)
    database.close()


class Visitor:
    """A browser with its cookie."""

    def __init__(self, app):
        self.http = TestClient(app, base_url=URL)
        self.csrf = re.search(r'name="csrf" value="([^"]+)"', self.http.get("/").text)[1]

    def post(self, path, **fields):
        return self.http.post(path, data={"csrf": self.csrf, **fields}, follow_redirects=False)

    def fight(self, **fields) -> int:
        place = self.post("/battle", **(fields or {"prompt": "Why?"})).headers["location"]
        self.name = place.rpartition("/")[2]
        assert self.http.get(place).status_code == 200
        self.events = [json.loads(line) for line in self.http.get(f"/api/answers/{self.name}").text.splitlines()]
        return self.events[-1]["battle"]

    def key(self, exposure) -> str:
        return re.search(r'name="key" value="([^"]+)"', self.http.get(f"/battle/{exposure}").text)[1]


def test_a_battle_from_the_question_to_the_board(app) -> None:
    visitor = Visitor(app)
    exposure = visitor.fight()
    before = visitor.http.get(f"/battle/{exposure}").text
    assert "secret-" not in before + str(visitor.events)
    assert "does not count" not in before
    assert "<strong>bold</strong>" in before
    done = visitor.post(f"/battle/{exposure}/vote", choice="first", key=visitor.key(exposure))
    assert done.headers["location"] == f"/battle/{exposure}"
    after = visitor.http.get(f"/battle/{exposure}").text
    assert "secret-one" in after
    assert "secret-two" in after
    assert "You voted: A is better." in after
    assert visitor.http.get("/api/board").json()["votes"] == 1
    page = visitor.http.get("/board").text
    assert "secret-one" in page
    assert "secret-two" in page


def test_a_visitor_is_told_that_a_vote_on_named_models_does_not_count(tmp_path) -> None:
    database = Database(tmp_path / "named.db")
    models = [Scripted("secret-one", "I am secret-one."), Scripted("secret-two", "I like Google Maps.")]
    visitor = Visitor(arena_app(Site("arena", database, URL, (PACKAGE,)), Desk(database, models)))
    exposure = visitor.fight()
    before = visitor.http.get(f"/battle/{exposure}").text
    assert "a vote here is kept but does not count" in before
    visitor.post(f"/battle/{exposure}/vote", choice="first", key=visitor.key(exposure))
    assert "Your vote is kept but does not count" in visitor.http.get(f"/battle/{exposure}").text
    assert visitor.http.get("/api/board").json()["named"] == 1
    second = visitor.fight()
    visitor.post(f"/battle/{second}/reveal")
    assert "Your vote" not in visitor.http.get(f"/battle/{second}").text
    database.close()


def test_a_question_may_be_drawn(app) -> None:
    visitor = Visitor(app)
    assert "Drawn?" in visitor.http.get(f"/battle/{visitor.fight(draw='1')}").text


def test_a_vote_after_the_names_is_refused(app) -> None:
    visitor = Visitor(app)
    exposure = visitor.fight()
    key = visitor.key(exposure)
    visitor.post(f"/battle/{exposure}/reveal")
    assert "secret-one" in visitor.http.get(f"/battle/{exposure}").text
    assert visitor.post(f"/battle/{exposure}/vote", choice="first", key=key).status_code == 409
    assert not list(groups(app.state.site.database))


def test_hostile_texts_are_shown_and_never_markup(app) -> None:
    visitor = Visitor(app)
    exposure = visitor.fight(prompt=HOSTILE)
    page = visitor.http.get(f"/battle/{exposure}")
    assert "<script>alert" not in page.text
    assert "<img" not in page.text
    assert 'href="javascript' not in page.text
    assert "script-src 'self'" in page.headers["content-security-policy"]


def test_a_stranger_sees_nothing(app) -> None:
    visitor, stranger = Visitor(app), Visitor(app)
    exposure = visitor.fight()
    assert stranger.http.get(f"/battle/{exposure}").status_code == 404
    assert stranger.http.get(f"/api/answers/{visitor.name}").status_code == 404
    assert stranger.post(f"/battle/{exposure}/vote", choice="first", key="12345678").status_code == 409
    assert TestClient(app, base_url=URL).get(f"/battle/{exposure}").status_code == 403


def test_forms_of_other_pages_are_refused(app) -> None:
    visitor = Visitor(app)
    exposure = visitor.fight()
    key = visitor.key(exposure)
    bad = visitor.http.post(f"/battle/{exposure}/vote", data={"choice": "first", "key": key, "csrf": "x"})
    assert bad.status_code == 403
    other = visitor.http.post(
        "/battle", data={"csrf": visitor.csrf, "prompt": "?"}, headers={"origin": "http://evil.example"}
    )
    assert other.status_code == 403
    assert not list(groups(app.state.site.database))


def test_malformed_requests_are_errors_of_the_visitor(app) -> None:
    visitor = Visitor(app)
    exposure = visitor.fight()
    assert visitor.post("/battle", prompt=" ").status_code == 422
    assert visitor.post("/battle", prompt="x" * 5000).status_code == 409
    assert visitor.post(f"/battle/{exposure}/vote", choice="third", key="12345678").status_code == 409
    assert visitor.post(f"/battle/{exposure}/vote", choice="first", key="1").status_code == 422
    assert visitor.http.get("/battle/0").status_code == 422
    assert visitor.http.get("/battle/999").status_code == 404
    assert visitor.http.get("/writing/nothing-here").status_code == 404


def test_battles_are_limited(app) -> None:
    visitor = Visitor(app)
    found = [visitor.post("/battle", prompt="Why?") for _ in range(8)]
    assert [one.status_code for one in found].count(429) == 2
    assert int(found[-1].headers["retry-after"]) >= 1
