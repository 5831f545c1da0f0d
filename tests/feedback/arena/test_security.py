"""What a stranger, another visitor, another site and a hostile text cannot do in an arena."""

from __future__ import annotations

import json
import logging
import re

import pytest
from tests.feedback.arena.scripted import Scripted

pytest.importorskip("fastapi")
from fastapi.routing import APIRoute
from fastapi.testclient import TestClient
from sqlalchemy import select

from tiltyard.feedback.arena.app import PACKAGE, arena_app
from tiltyard.feedback.arena.desk import ArenaSettings, Desk
from tiltyard.feedback.store import tables as t
from tiltyard.feedback.store.database import Database
from tiltyard.feedback.store.export import groups
from tiltyard.feedback.web.guard import POLICY
from tiltyard.feedback.web.limits import Bucket
from tiltyard.feedback.web.site import MOST_BODY, Site

from ..collect.test_sessions import INJECTIONS
from .test_pages import URL, Visitor

NAMES = ("secret-one", "secret-two", "secret-three")


@pytest.fixture
def app(tmp_path):
    database = Database(tmp_path / "arena.db")
    desk = Desk(database, [Scripted(name, "An answer", "secret-version") for name in NAMES], ArenaSettings(at_once=8))
    made = arena_app(Site("arena", database, URL, (PACKAGE,)), desk)
    made.state.battles = made.state.newcomers = Bucket(1e6, 1e6)
    yield made
    database.close()


def test_every_answer_carries_the_headers(app) -> None:
    visitor = Visitor(app)
    exposure = visitor.fight()
    paths = ("/", "/board", "/api/board", f"/battle/{exposure}", "/battle/999", "/nothing", "/openapi.json")
    for path in (*paths, "/static/arena/arena.js", f"/api/answers/{visitor.name}"):
        response = visitor.http.get(path)
        assert response.headers["content-security-policy"] == POLICY, path
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["x-frame-options"] == "DENY"
        assert ("immutable" if "static" in path else "no-store") in response.headers["cache-control"]
    (cookie,) = visitor.http.cookies.jar
    assert cookie.has_nonstandard_attr("HttpOnly")
    assert cookie.get_nonstandard_attr("SameSite").lower() == "lax"


def test_pages_have_no_inline_script_or_style(app) -> None:
    visitor = Visitor(app)
    exposure = visitor.fight()
    visitor.http.get("/board")
    for path in ("/", f"/battle/{exposure}", "/board"):
        html = visitor.http.get(path).text
        assert not re.search(r"<script(?![^>]*\bsrc=)[^>]*>", html)
        assert not re.search(r"<[^>]+\s(style|on\w+)=", re.sub(r"&[^;]+;", "", html))


def test_nothing_before_the_vote_names_a_model(app) -> None:
    """No page, event, header, cookie or address of a battle has a model's name, version, or the side of a model."""
    visitor = Visitor(app)
    for _ in range(6):
        place = visitor.post("/battle", prompt="Why?").headers["location"]
        answers = [visitor.http.get(path) for path in (place, f"/api/answers/{place.rpartition('/')[2]}")]
        exposure = json.loads(answers[1].text.splitlines()[-1])["battle"]
        answers.append(visitor.http.get(f"/battle/{exposure}"))
        for answer in answers:
            assert answer.status_code == 200
            assert "secret" not in answer.text + str(answer.headers) + str(answer.url)
        visitor.post(f"/battle/{exposure}/vote", choice="first", key=visitor.key(exposure))
        assert "secret-version" in visitor.http.get(f"/battle/{exposure}").text


def test_every_change_needs_the_token_of_the_visitor(app) -> None:
    visitor, other = Visitor(app), Visitor(app)
    exposure = visitor.fight()
    key = visitor.key(exposure)
    found, waiting = [], list(app.routes)
    while waiting:
        route = waiting.pop()
        waiting += list(getattr(getattr(route, "original_router", route), "routes", None) or [])
        if isinstance(route, APIRoute):
            found.append(route)
    changing = {one.path for one in found if one.methods - {"GET", "HEAD"}} - {"/in", "/out", "/language"}
    assert changing == {"/battle", "/battle/{exposure}/vote", "/battle/{exposure}/reveal"}
    for path in changing:
        for csrf in ("", "x", other.csrf):
            sent = {"csrf": csrf, "choice": "first", "key": key, "prompt": "?"}
            assert visitor.http.post(path.format(exposure=exposure), data=sent).status_code == 403, (path, csrf)
    for headers in ({"sec-fetch-site": "cross-site"}, {"origin": "http://evil.example"}, {"origin": "null"}):
        sent = {"csrf": visitor.csrf, "choice": "first", "key": key}
        assert visitor.http.post(f"/battle/{exposure}/vote", data=sent, headers=headers).status_code == 403
    assert visitor.http.get("/", headers={"host": "evil.example"}).status_code == 400
    assert not list(groups(app.state.site.database))


def test_bodies_and_paths_have_limits(app) -> None:
    visitor = Visitor(app)
    assert visitor.post("/battle", prompt="x" * (MOST_BODY + 1)).status_code == 413
    chunks = (b"x" * 65536 for _ in range(10))  # no length announced
    kind = {"content-type": "application/x-www-form-urlencoded"}
    assert visitor.http.post("/battle", content=chunks, headers=kind).status_code == 413
    for path in ("/static/arena/../app.py", "/static/arena/..%2fapp.py", "/static/arena//etc/passwd", "/static/x/%00"):
        assert visitor.http.get(path).status_code in (400, 404), path


def test_requests_a_second_have_a_limit(tmp_path) -> None:
    from tiltyard.feedback.web.limits import Limits

    database, clock = Database(tmp_path / "arena.db"), [0.0]
    limits = Limits(session=2, burst=5, address=1000, clock=lambda: clock[0])
    site = Site("arena", database, URL, (PACKAGE,), limits)
    visitor = Visitor(arena_app(site, Desk(database, [Scripted("a"), Scripted("b")])))
    codes = [visitor.http.get("/").status_code for _ in range(8)]
    assert codes == [200] * 5 + [429] * 3
    clock[0] += 1.0
    assert visitor.http.get("/").status_code == 200
    database.close()


@pytest.mark.parametrize("bad", INJECTIONS)
def test_strings_of_a_visitor_stay_strings(app, bad) -> None:
    visitor = Visitor(app)
    exposure = visitor.fight(prompt=bad)
    assert visitor.post(f"/battle/{exposure}/vote", choice=bad[:20], key="12345678").status_code == 409
    assert visitor.post(f"/battle/{exposure}/vote", choice="tie", key=f"{bad}--------"[:64]).status_code == 303
    assert visitor.http.get(f"/battle/{bad.replace('/', '')}").status_code == 422
    (one,) = groups(app.state.site.database)
    assert one.prompt.messages[0].content == bad
    visitor.http.cookies.clear()
    answer = TestClient(app, base_url=URL, cookies={"tiltyard-arena": "x" * 30 + "'--"}).get(f"/battle/{exposure}")
    assert answer.status_code == 404


def test_no_secret_is_stored_or_logged(app, caplog, tmp_path) -> None:
    caplog.set_level(logging.DEBUG)
    visitor = Visitor(app)
    exposure = visitor.fight()
    visitor.post(f"/battle/{exposure}/vote", choice="tie", key=visitor.key(exposure))
    visitor.http.post(f"/battle/{exposure}/vote", data={"csrf": visitor.csrf + "x"})
    cookie = visitor.http.cookies["tiltyard-arena"]
    held = b"".join(path.read_bytes() for path in tmp_path.glob("arena.db*"))
    assert b"An answer" in held
    for secret in (cookie, visitor.csrf):
        assert secret not in caplog.text
        assert secret.encode() not in held
    with app.state.site.database.reading() as connection:
        assert connection.scalars(select(t.annotators.c.token)).all() == [None]  # a visitor has no link


def test_an_error_of_the_server_shows_nothing_of_it(app, monkeypatch) -> None:
    visitor = Visitor(app)
    visitor.http = TestClient(app, base_url=URL, raise_server_exceptions=False, cookies=visitor.http.cookies)

    def broken(*_args):
        raise RuntimeError("secret detail")

    monkeypatch.setattr(Desk, "battle", broken)
    answer = visitor.http.get("/battle/1")
    assert answer.status_code == 500
    assert "secret detail" not in answer.text
    assert answer.headers["content-security-policy"] == POLICY
