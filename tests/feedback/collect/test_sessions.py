"""Sessions end, what is secret is stored as a hash and logged nowhere, and no string of a visitor is part of SQL."""

from __future__ import annotations

import ast
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
import sqlalchemy as sa

import tiltyard.feedback
from tiltyard.feedback.store import people
from tiltyard.feedback.store import tables as t
from tiltyard.feedback.store.database import now
from tiltyard.feedback.store.export import groups
from tiltyard.feedback.store.items import Item, add_tasks
from tiltyard.feedback.store.people import SESSION_HOURS, add_annotator

from ..store.conftest import group
from .conftest import fields
from .test_pages import place_of

HOUR = 3_600_000
INJECTIONS = (
    "'; DROP TABLE judgements; --",
    '" OR ""="',
    "1) OR (1=1",
    "x' UNION SELECT token FROM annotators --",
    "%' OR '1'='1",
    "\\'; SELECT pg_sleep(9); --",
    "{exposure} :key %(key)s ?",
)


def later(monkeypatch, hours: float) -> None:
    """Moves the clock of sessions."""
    monkeypatch.setattr(people, "now", lambda: now() + round(hours * HOUR))


def test_a_session_ends_after_its_hours(store, client, monkeypatch):
    """A person who comes back after that signs in by the same link and finds the task that was open."""
    add_tasks(store, [Item(group(1))])
    ada, root = client(), client("root", role="admin")
    (cookie,) = [one for one in ada.http.cookies.jar if one.name == "tiltyard-collect"]
    assert cookie.expires - time.time() == pytest.approx(3600 * SESSION_HOURS, abs=60)
    sent = ada.form("/label") | {"choice": "tie"}
    later(monkeypatch, SESSION_HOURS - 0.1)
    assert ada.get("/label").url.path == "/label"
    later(monkeypatch, SESSION_HOURS + 0.1)
    for path in ("/label", "/guidelines", "/skip", "/feedback/1"):
        page = ada.get(path)
        assert page.url.path == "/in"
        assert "session has ended" in page.text
    assert ada.post("/label", sent).url.path == "/in"
    assert ada.http.post("/api/undo", headers={"x-csrf-token": sent["csrf"]}).status_code == 401
    assert ada.get("/api/task").status_code == 401
    assert root.get("/admin").url.path == "/in"
    assert list(groups(store)) == []
    assert ada.post("/in", {"token": ada.token}).url.path == "/label"
    again = ada.form("/label")
    assert again["exposure"] == sent["exposure"]
    assert again["csrf"] != sent["csrf"]
    assert ada.post("/label", sent).status_code == 403, "the token of a form ends with its session"
    assert ada.post("/label", sent | {"csrf": again["csrf"]}).status_code == 200
    assert len(list(groups(store))) == 1
    with store.reading() as connection:
        assert connection.scalar(sa.select(sa.func.count()).select_from(t.sessions)) == 1, "ended ones are deleted"


def test_nobody_is_told_that_a_session_ended_who_had_none(client):
    stranger = type(client())(client("bob").http.app)
    page = stranger.get("/label")
    assert page.url.path == "/in"
    assert "session has ended" not in page.text


def test_the_stores_file_holds_no_link_and_no_cookie(store, client, tmp_path):
    add_tasks(store, [Item(group(k)) for k in range(3)])
    people_of = [client(name, role) for name, role in (("ada", "annotator"), ("bob", "annotator"), ("root", "admin"))]
    people_of[0].submit("/label", choice="tie")
    files = list(tmp_path.glob("labels.db*"))
    assert files
    held = b"".join(path.read_bytes() for path in files)
    assert b"Question 1?" in held
    for one in people_of:
        assert one.token.encode() not in held
        assert one.http.cookies["tiltyard-collect"].encode() not in held


def test_no_statement_of_sql_is_put_together_from_strings():
    """Every call that takes SQL as text has a literal; the pragmas of a new connection are literals too.

    Migrations make triggers whose names are those of the package's own tables.
    """
    found = []
    for path in Path(tiltyard.feedback.__file__).parent.rglob("*.py"):
        if "migrations" in path.parts:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or not node.args:
                continue
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            first = node.args[0]
            if isinstance(first, ast.Constant):
                continue
            texts = isinstance(first, ast.JoinedStr | ast.BinOp) or name in ("text", "exec_driver_sql")
            if name in ("execute", "scalar", "scalars", "text", "exec_driver_sql") and texts:
                found.append((path.name, ast.unparse(first)))
    allowed = [
        ("database.py", "begin"),  # BEGIN or BEGIN IMMEDIATE
        ("database.py", "f'PRAGMA {pragma}'"),
    ]
    assert [one for one in sorted(set(found)) if one not in allowed] == []


@pytest.mark.parametrize("bad", INJECTIONS)
def test_strings_of_a_visitor_stay_strings(store, client, bad):
    add_tasks(store, [Item(group(k), source=bad) for k in range(2)])
    add_tasks(store, [Item(group(9, 0), kind="write")])
    ada = client(bad)
    assert ada.post("/in", {"token": bad}).status_code == 403
    ada.submit("/label", "/flag", reason="private", more=bad)
    ada.submit("/label", choice="tie", comment=bad)
    ada.submit("/label", "/skip", reason="other", more=bad)
    assert ada.get("/label", params={"note": bad[:40]}).status_code == 200
    assert ada.submit("/label", text=bad, key=f"k {bad}"[:64]).status_code == 200
    assert ada.submit("/label", "/undo").status_code == 200
    assert ada.get(f"/feedback/{bad}").status_code == 422
    assert client("root", role="admin").get("/admin").status_code == 200
    (one,) = groups(store)
    assert one.preference.meta["comment"] == bad
    assert one.preference.annotator == bad
    assert one.preference.meta["source"] == bad


def test_an_annotator_sees_nothing_of_what_others_judged(store, client):
    """Not before its own verdict, not after it, and not as the third person who decides."""
    add_tasks(store, [Item(group(k), overlap=2) for k in range(3)])

    def judged(who, response, **more):
        place = place_of(who.get("/label").text, f"-{response}</p>")
        who.submit("/label", choice=("first", "second")[place], **more)

    def seen(who):
        pages = ("/label", "/guidelines", "/api/task", "/api/me", "/keys", "/skip", "/feedback/1", "/feedback/2")
        return "".join(who.get(path).text for path in pages)

    bob = client("bob-the-other")
    for _ in range(3):
        judged(bob, 0, strength="3", comment="the others comment")
    ada = client("ada")
    texts = [seen(ada)]
    for _ in range(3):
        judged(ada, 1, comment="mine")
        texts.append(seen(ada))
    eve = client("eve")
    for _ in range(3):
        texts.append(seen(eve))
        judged(eve, 0)
    assert len(list(groups(store, stages=("adjudication",)))) == 3
    for text in texts:
        for secret in ("bob-the-other", "the others comment", "model-", "adjudication"):
            assert secret not in text
    assert "mine" not in "".join(texts[-3:])
    for path in ("/admin", "/admin/task/1", "/admin/labels.groups.jsonl"):
        assert ada.get(path).status_code == 403


@pytest.mark.slow
def test_the_server_is_on_loopback_alone_and_prints_no_secret(store, tmp_path):
    """`tiltyard collect serve` as a process: the address that it binds, what it says, and what it writes."""
    add_tasks(store, [Item(group(k)) for k in range(2)])
    token = add_annotator(store, "ada")[1]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "tiltyard.cli", "collect", "serve", str(tmp_path / "labels.db")]
    written = tmp_path / "printed.txt"
    with written.open("wb") as file:
        server = subprocess.Popen([*command, "--port", str(port)], stdout=file, stderr=file, env=os.environ)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", follow_redirects=True) as http:
            for _ in range(600):
                try:
                    http.get("/in")
                    break
                except httpx.TransportError:
                    time.sleep(0.05)
            listening = [
                line.split()[1] for line in Path("/proc/net/tcp").read_text().splitlines()[1:] if " 0A " in line
            ]
            assert f"0100007F:{port:04X}" in listening
            assert f"00000000:{port:04X}" not in listening
            secrets = [token]
            assert http.post("/in", data={"token": token}).url.path == "/guidelines"
            secrets.append(http.cookies["tiltyard-collect"])
            form = fields(http.get("/guidelines").text, "/guidelines")
            secrets.append(form["csrf"])
            http.post("/guidelines", data=form)
            assert http.post("/label", data={"csrf": form["csrf"][:-1], "exposure": "x"}).status_code == 403
            assert http.post("/label", data={"csrf": form["csrf"], "exposure": "x"}).status_code == 422
            assert http.get("/label", params={"token": token}).status_code == 200
        server.send_signal(signal.SIGINT)
        server.wait(20)
    finally:
        server.kill()
    text = written.read_text()
    assert re.search(rf"http://127\.0\.0\.1:{port} \(this machine alone\)", text), text
    for secret in secrets:
        assert secret not in text
