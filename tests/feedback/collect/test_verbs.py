"""The command line from an empty folder to labels: add, guidelines, people, serve, export."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time

import httpx
import pytest

from tiltyard.cli import main


def run(*words):
    return main(["collect", *map(str, words)])


@pytest.fixture
def desk(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = ({"prompt": f"{k}?", "chosen": f"good {k}", "rejected": f"bad {k}"} for k in range(4))
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    (tmp_path / "guide.md").write_text("Prefer what helps.", encoding="utf-8")
    return tmp_path


@pytest.mark.usefixtures("desk")
def test_a_store_from_nothing(capsys):
    assert run("add", "labels.db", "pairs.jsonl", "--overlap", 2) == 0
    assert "4 tasks added (pair, real), each for 2 people" in capsys.readouterr().out
    assert run("guidelines", "labels.db", "guide.md") == 0
    assert run("guidelines", "labels.db") == 0
    assert "Prefer what helps." in capsys.readouterr().out
    assert run("people", "labels.db", "ada", "bob", "--url", "https://labels.example.org/") == 0
    links = re.findall(r"^(\w+)  (https://labels.example.org/in#[\w-]{43})$", capsys.readouterr().out, re.MULTILINE)
    assert [name for name, _ in links] == ["ada", "bob"]
    assert run("people", "labels.db", "bob", "--shut") == 0
    assert run("people", "labels.db", "ada", "--new-link", "--json") == 0
    assert json.loads(capsys.readouterr().out)["ada"] != links[0][1]
    assert run("people", "labels.db", "--json") == 0
    people = json.loads(capsys.readouterr().out)
    assert [(one["name"], one["active"]) for one in people] == [("ada", True), ("bob", False)]


@pytest.mark.usefixtures("desk")
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("serve", "lables.db"), "there is no such store"),
        (("people", "lables.db"), "there is no such store"),
        (("add", "labels.db", "pairs.jsonl", "--kind", "pairs"), "unknown kind of task"),
        (("add", "labels.db", "pairs.jsonl", "--stage", "golden"), "unknown stage"),
        (("add", "labels.db", "nothing.jsonl"), "nothing.jsonl"),
        (("people", "labels.db", "ada", "--role", "boss"), "unknown role"),
        (("people", "labels.db", "ada", "--shut", "--new-link"), "exclude each other"),
        (("guidelines", "labels.db", "no.md"), "cannot be read"),
    ],
)
def test_mistakes_are_said(capsys, words, message):
    assert run(*words) == 2
    assert message in capsys.readouterr().err


@pytest.mark.usefixtures("desk")
def test_serving_needs_guidelines(capsys):
    assert run("add", "labels.db", "pairs.jsonl") == 0
    assert run("serve", "labels.db") == 2
    assert "there are no guidelines yet" in capsys.readouterr().err


@pytest.mark.slow
def test_the_served_page_survives_its_process(desk, capsys):
    """Signs in at a server of its own process, judges, kills the server, goes on at a new one: nothing is lost."""
    for words in (
        ("add", "labels.db", "pairs.jsonl"),
        ("guidelines", "labels.db", "guide.md"),
        ("people", "labels.db", "ada", "--json"),
    ):
        assert run(*words) == 0
    token = re.findall(r"#([\w-]{43})", capsys.readouterr().out)[0]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    client = httpx.Client(base_url=f"http://127.0.0.1:{port}", follow_redirects=True)
    for attempt in range(2):
        server = serve(desk, port)
        try:
            wait(client)
            if attempt == 0:
                assert client.post("/in", data={"token": token}).status_code == 200
                csrf = client.get("/api/me").json()["csrf"]
                client.post("/guidelines", data={"csrf": csrf, "version": 1})
            head = {"x-csrf-token": client.get("/api/me").json()["csrf"]}
            for k in range(2):
                task = client.get("/api/task").json()
                sent = {"exposure": task["exposure"], "key": f"{attempt}-{k}", "verdict": {"choice": "first"}}
                assert client.post("/api/judgements", json=sent, headers=head).status_code == 200
            assert client.get("/api/me").json()["judged"] == 2 * attempt + 2
        finally:
            os.kill(server.pid, signal.SIGKILL if attempt == 0 else signal.SIGTERM)
            out = server.communicate(timeout=20)[0]
    assert f"http://127.0.0.1:{port} (this machine alone)" in out
    assert token not in out
    assert main(["export", "labels.db", "--to", "groups", "--out", "out.groups.jsonl"]) == 0
    assert "4 rows as groups" in capsys.readouterr().out


def serve(folder, port):
    """Starts `tiltyard collect serve`."""
    command = [sys.executable, "-m", "tiltyard.cli", "collect", "serve", "labels.db", "--port", str(port)]
    return subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ}
    )


def wait(client):
    """Waits until the server answers."""
    for _ in range(300):
        try:
            if client.get("/in").status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.1)
    raise AssertionError("the server did not start")
