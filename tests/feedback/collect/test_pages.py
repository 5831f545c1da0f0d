"""An annotator's day over HTTP, without scripts: every kind of task, training, undo, skip, flag, and the end."""

from __future__ import annotations

import re

import pytest
import sqlalchemy as sa

from tiltyard.feedback.store import tables as t
from tiltyard.feedback.store.export import groups
from tiltyard.feedback.store.items import Item, add_tasks
from tiltyard.feedback.store.people import add_guideline

from ..store.conftest import group


def items(n, *, count=2, **settings):
    return [Item(group(k, count), **settings) for k in range(n)]


def place_of(html: str, text: str) -> int:
    """The place on the page of the answer that holds a text."""
    return next(k for k, part in enumerate(html.split('class="card answer"')[1:]) if text in part)


def test_guidelines_come_first_and_again_when_they_change(store, client):
    add_tasks(store, items(2))
    ada = client(accept=False)
    page = ada.get("/")
    assert page.url.path == "/guidelines"
    assert "<strong>helps</strong>" in page.text
    assert ada.submit("/label", "/guidelines").url.path == "/label"
    assert "Which answer is better?" in ada.get("/").text
    add_guideline(store, "Prefer the shorter answer.")
    assert "have changed" in ada.get("/label").text
    ada.submit("/guidelines")
    assert ada.get("/label").url.path == "/label"
    with store.reading() as connection:
        rows = connection.execute(sa.select(t.acceptances.c.guideline).order_by(t.acceptances.c.id)).all()
    assert [row.guideline for row in rows] == [1, 2]


def test_pairs_to_the_end(store, client):
    add_tasks(store, items(4))
    ada = client()
    for k, choice in enumerate(("first", "second", "tie", "both_bad")):
        page = ada.get("/label")
        assert f"{k} done, {4 - k} left" in page.text
        strength = {"strength": "2"} if k == 0 else {}
        done = ada.submit("/label", choice=choice, comment=f"said {k}", seconds="0.5", **strength)
        assert done.status_code == 200
    assert "You are done" in done.text
    assert "You judged 4 tasks" in done.text
    found = list(groups(store))
    assert [g.preference.ranks for g in found][2:] == [(1, 1), None]
    assert {g.preference.ranks for g in found[:2]} <= {(1, 2), (2, 1)}
    assert found[0].preference.meta["strength"] == 2
    assert [g.preference.meta["comment"] for g in found] == [f"said {k}" for k in range(4)]
    assert all(0 <= g.preference.meta["seconds"] <= 0.5 for g in found)


def test_every_kind(store, client):
    """What is said of a text on the page is stored of that response, whatever the order on the page."""
    kinds = {"ranking": 4, "best_worst": 4, "rating": 3, "write": 2}
    for kind, count in kinds.items():
        add_tasks(store, items(1, count=count, kind=kind))
    ada = client()
    for _ in kinds:
        html = ada.get("/label").text
        kind = ada.form("/label")["kind"]
        place = {j: place_of(html, f"answer 0-{j}") for j in range(kinds[kind])}
        if kind == "ranking":
            by_place = sorted(place, key=place.__getitem__)
            sent = {
                f"rank_{k}": 1 + j if j < 3 else 3 for k, j in enumerate(by_place)
            }  # 0 best, then 1, then 2 and 3 equal
        elif kind == "best_worst":
            sent = {"best": place[1], "worst": place[2]}
        elif kind == "rating":
            sent = {f"rating_{place[j]}": 2 + j for j in place}
            sent |= {f"truthful_{place[2]}": "no", f"helpful_{place[2]}": "yes", f"harmless_{place[2]}": ""}
        else:
            sent = {"text": "better\nthan both", "edited": place[1]}
        assert ada.submit("/label", **sent).status_code == 200, kind
    found = {g.preference.meta["kind"]: g for g in groups(store)}
    assert found["ranking"].preference.ranks == (1, 2, 3, 3)
    assert found["best_worst"].preference.ranks == (2, 1, 3, 2)
    assert found["rating"].preference.ratings == (2, 3, 4)
    assert found["rating"].preference.meta["flags"] == [{}, {}, {"truthful": False, "helpful": True}]
    assert found["write"].responses[0].text == "better\r\nthan both".replace("\r", "")


def test_training_gives_feedback_and_gold_does_not(store, client):
    known = {"expected": {"choice": "second"}, "explanation": "It is *shorter*."}
    add_tasks(store, [Item(group(k), stage="training", **known) for k in range(2)])
    add_tasks(store, [Item(group(9), stage="gold", **known)])
    add_tasks(store, items(1))
    ada = client()
    for right in (True, False):
        html = ada.get("/label").text
        assert "Training" in html
        place = place_of(html, "-1</p>") if right else place_of(html, "-0</p>")
        seen = ada.submit("/label", choice=("first", "second")[place])
        assert re.fullmatch(r"/feedback/\d+", seen.url.path)
        assert ("That is what we expected" in seen.text) is right
        assert "<em>shorter</em>" in seen.text
    assert ada.submit("/label", choice="tie").url.path == "/label"
    with store.reading() as connection:
        stages = connection.scalars(
            sa.select(t.tasks.c.stage).join(t.judgements, t.judgements.c.task_id == t.tasks.c.id)
        ).all()
    assert stages == ["training", "training", "real"]


def test_a_gold_item_looks_like_any_other(store, page, client):
    known = {"expected": {"choice": "second"}, "explanation": "Known."}
    add_tasks(store, [Item(group(50), stage="gold", **known)])
    add_tasks(store, items(2))
    ada = client(app=page(gold_every=1))
    seen = []
    for k in range(3):
        html = ada.get("/label").text
        assert f"{k} done, {3 - k} left" in html
        seen.append("Question 50" in html)
        assert "gold" not in html
        assert "Known." not in html
        answer = ada.submit("/label", choice="tie")
        assert answer.url.path == "/label"
    assert seen == [False, True, False]
    for k in range(1, 4):
        assert ada.get(f"/feedback/{k}").status_code == 404


def test_undo_skip_and_flag(store, client):
    add_tasks(store, items(2))
    ada = client()
    first = ada.form("/label")["exposure"]
    ada.submit("/label", choice="first")
    page = ada.submit("/label", "/undo")
    assert "taken back" in page.text
    assert list(groups(store)) == []
    assert "nothing to undo" in ada.submit("/label", "/undo").text
    flagged = ada.submit("/label", "/flag", reason="private", more="a phone number")
    assert "was flagged" in flagged.text
    skipped = ada.submit("/label", "/skip", reason="language")
    assert "Skipped" in skipped.text
    ada.submit("/label", choice="tie")
    assert ada.get("/label").url.path == "/label"
    with store.reading() as connection:
        ends = connection.execute(sa.select(t.exposure_ends.c.reason, t.exposure_ends.c.note)).all()
        flags = connection.scalars(sa.select(t.flags.c.reason)).all()
    assert ("skipped", "language") in [tuple(row) for row in ends]
    assert flags == ["private: a phone number"]
    assert first


def test_a_verdict_that_is_sent_twice_is_stored_once(store, client):
    add_tasks(store, items(2))
    ada = client()
    sent = ada.form("/label") | {"choice": "tie"}
    for _ in range(2):
        assert ada.post("/label", sent).status_code == 200
    assert len(list(groups(store))) == 1


def test_enter_in_a_field_decides_nothing(store, client):
    """A browser presses a form's first button then: it is one without a choice."""
    add_tasks(store, items(1))
    ada = client()
    form = ada.get("/label").text.partition('id="task"')[2]
    assert re.search(r"<button[^>]*>", form).group() == '<button hidden name="choice" value="none" id="nothing">'
    page = ada.submit("/label", choice="none")
    assert page.url.path == "/label"
    assert "Please answer all parts" in page.text
    assert list(groups(store)) == []


def test_an_incomplete_verdict_is_refused_and_nothing_is_stored(store, client):
    add_tasks(store, items(1, count=3, kind="best_worst"))
    ada = client()
    for wrong in ({"best": 0}, {"best": 1, "worst": 1}, {"best": 0, "worst": 7}, {"best": "x", "worst": 1}):
        assert ada.submit("/label", **wrong).status_code in (409, 422)
    assert list(groups(store)) == []


@pytest.mark.parametrize(("lang", "word"), [("ko", "어느 답변이 더 좋습니까?"), ("zh", "哪个回答更好？")])
def test_languages(store, client, lang, word):
    add_tasks(store, items(1))
    ada = client()
    by_browser = ada.get("/label", headers={"accept-language": f"fr, {lang}-XX;q=0.8, en;q=0.5"})
    assert word in by_browser.text
    assert f'<html lang="{lang}">' in by_browser.text
    back = ada.post("/language", {"lang": lang, "back": "/label"})
    assert back.url.path == "/label"
    assert word in back.text
    for bad in ("https://evil.example/", "//evil.example", "/\\evil.example"):
        assert ada.post("/language", {"lang": "en", "back": bad}, follow_redirects=False).headers["location"] == "/"


def test_the_small_pages_of_those_without_scripts(store, client):
    add_tasks(store, items(1))
    ada = client()
    html = ada.get("/label").text
    for path in re.findall(r'href="(/(?:skip|flag|keys)\?[^"]*)"', html):
        assert ada.get(path).status_code == 200
    exposure = ada.form("/label")["exposure"]
    page = ada.submit(f"/skip?exposure={exposure}", "/skip", reason="broken")
    assert "You are done" in page.text


def test_the_same_desk_as_json(store, client):
    add_tasks(store, items(3))
    ada = client(accept=False)
    me = ada.get("/api/me").json()
    assert (me["name"], me["accepted"], me["guideline"]) == ("ada", 0, 1)
    head = {"x-csrf-token": me["csrf"]}
    assert ada.get("/api/task").status_code == 409
    assert ada.http.post("/api/guidelines", json={"version": 1}, headers=head).json() == {"accepted": True}
    task = ada.get("/api/task").json()
    sent = {"exposure": task["exposure"], "key": "a", "verdict": {"choice": "first", "strength": 3}}
    assert ada.http.post("/api/judgements", json=sent, headers=head).json()["right"] is None
    assert ada.http.post("/api/undo", headers=head).json() == {"undone": True}
    task = ada.get("/api/task").json()
    assert ada.http.post("/api/skip", json={"exposure": task["exposure"], "reason": "x"}, headers=head).is_success
    task = ada.get("/api/task").json()
    assert ada.http.post("/api/flag", json={"exposure": task["exposure"], "reason": "x"}, headers=head).is_success
    assert ada.http.post("/api/judgements", json=sent | {"exposure": task["exposure"]}, headers=head).is_success
    bad = ada.http.post("/api/judgements", json=sent | {"key": "b", "verdict": {}}, headers=head)
    assert bad.status_code == 409
    assert "choice" in bad.json()["expected"]
