"""Biases and errors that are planted in judges behind HTTP and in people at the page's door, as a user sees them.

The pairs are balanced: which response is right, longer, and of the judge's own model are three independent halves, so
a judge without a bias has none in any count, and what is planted must fire alone.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.feedback.server import Server, completion, serving

pytest.importorskip("fastapi")
from starlette.testclient import TestClient

from tiltyard.cli import main
from tiltyard.feedback.collect.app import PACKAGE, collect_app
from tiltyard.feedback.collect.desk import Settings
from tiltyard.feedback.store.database import Database
from tiltyard.feedback.store.items import Item, add_tasks
from tiltyard.feedback.store.people import add_annotator, add_guideline
from tiltyard.feedback.web.limits import Limits
from tiltyard.feedback.web.site import Site
from tiltyard.types import Group, Message, Prompt, Response

from .test_evaluate_rewards import evaluated, there  # noqa: F401 - a fixture

ADDRESS = "http://127.0.0.1:8077"
MINE, OTHER = "mine", "other"
PAIRS = 120
Verdict = Callable[[str, str], str]  # (first, second) as they stand on the page -> "first", "second"


def item(k: int, overlap: int) -> Item:
    """A pair: `mine` first in the store; the words say which is right and which is of the own model."""
    right, longer = k % 2, k // 2 % 2
    texts = [
        f"{'right' if right == j else 'wrong'} {k} {('own', 'strange')[j]}{' and so on' * (longer == j)}"
        for j in (0, 1)
    ]
    responses = tuple(
        Response(text=text, meta={"policy": (MINE, OTHER)[j], "version": "1"}) for j, text in enumerate(texts)
    )
    return Item(Group(Prompt(messages=(Message("user", f"Question {k}?"),), id=f"q{k}"), responses), overlap=overlap)


def number(text: str) -> int:
    return int(text.split()[1])


def is_right(text: str) -> bool:
    """What the pair says, but for one of each five blocks of four, whose labels are all turned: balanced errors."""
    return text.startswith("right") != (number(text) // 4 % 5 == 0)


def log_odds(text: str, *, length: float = 0.0, own: float = 0.0) -> float:
    return 1.5 * is_right(text) + length * text.endswith("so on") + own * ("own" in text)


def judge_of(server: Server, *, position: float = 0.0, **biases: float) -> None:
    """Scripts a judge whose log-odds for Response 1 are those of the texts, and a constant for the position."""

    def reply(payload: dict[str, Any], _number: int) -> tuple[int, Any, dict[str, str]]:
        one, two = re.findall(r"Response \d:\n(.*?)\n\n", payload["messages"][0]["content"], re.DOTALL)[-2:]
        gap = log_odds(one, **biases) - log_odds(two, **biases) + position
        return 200, completion("1" if gap >= 0 else "2", {"1": gap - 20, "2": -20.0}), {}

    server.reply = reply


def labelled(path: Path, people: dict[str, Verdict], *, count: int = PAIRS, most: int = PAIRS) -> Path:
    """A store whose people judge through the page's door; each judges `most` of `count` pairs."""
    database = Database(path)
    add_guideline(database, "Prefer what is right.")
    add_tasks(database, [item(k, len(people)) for k in range(count)], seed=3)
    fast = Limits(session=1e6, burst=1e6, address=1e6, wrong=1e6)
    app = collect_app(Site("collect", database, ADDRESS, (PACKAGE,), fast), Settings(adjudicate=False))
    for name, verdict in people.items():
        http = TestClient(app, base_url=ADDRESS)
        http.post("/in", data={"token": add_annotator(database, name)[1]})
        head = {"x-csrf-token": http.get("/api/me").json()["csrf"]}
        http.post("/api/guidelines", json={"version": 1}, headers=head)
        for _ in range(most):
            task = http.get("/api/task").json()
            sent = {"exposure": task["exposure"], "key": f"{name}{task['exposure']}"}
            sent["verdict"] = {"choice": verdict(*task["texts"])}
            assert http.post("/api/judgements", json=sent, headers=head).status_code == 200
    database.close()
    return path


def fair(first: str, second: str) -> str:
    return "first" if first.startswith("right") else "second"


def now_and_then(bias: Verdict, share: int) -> Verdict:
    """A fair person who follows a bias in one of `share` pairs, whichever way the pair stands."""
    return lambda a, b: bias(a, b) if zlib.crc32(str(number(a)).encode()) % share == 0 else fair(a, b)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    return tmp_path


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store that a fair person has labelled; calibration writes nothing into it."""
    return labelled(tmp_path_factory.mktemp("labelled") / "labels.db", {"ada": fair})


def judge(server: Server) -> list[str]:
    return ["judge.kind=api", "judge.model=m", f"judge.url={server.url}", "judge.constrain=none", "judge.concurrency=8"]


@pytest.mark.slow
@pytest.mark.parametrize("planted", ["nothing", "position", "length", "self-preference"])
def test_a_planted_bias_of_a_judge_is_printed_and_no_other(here, store, capsys, planted) -> None:
    biases = {"position": {"position": 2.0}, "length": {"length": 2.0}, "self-preference": {"own": 2.0}}
    with serving() as server:
        judge_of(server, **biases.get(planted, {}))
        words = ["judge", "calibrate", f"store={store}", *judge(server), f"own={MINE}", "repeat=false", "rounds=300"]
        assert main(words) == 0
    printed = capsys.readouterr().out
    assert re.findall(r"has a bias of ([\w-]+):", printed) == ([] if planted == "nothing" else [planted]), printed
    useless = planted in ("length", "self-preference")  # the bias is stronger than what is right
    assert ("is USELESS on these pairs" in printed) == useless
    if planted == "position":
        assert "the response shown first wins 100.0" in printed


@pytest.mark.slow
def test_planted_biases_of_people_are_found_at_the_page_and_on_the_command_line(here, capsys) -> None:
    people = {
        "ada": fair,
        "bea": fair,
        "cem": now_and_then(lambda *_: "first", 2),
        "dan": now_and_then(lambda a, b: "first" if len(a) > len(b) else "second", 2),
    }
    path = labelled(here / "labels.db", people, count=96, most=96)
    assert main(["agreement", str(path), "--rounds", "300"]) == 0
    printed = capsys.readouterr().out
    found = set(
        re.findall(r"^(\w+) (?:has a position bias|prefers the (?:longer|shorter) answer)", printed, re.MULTILINE)
    )
    assert found == {"cem", "dan"}, printed
    assert re.search(r"^cem has a position bias: what was shown first wins \d\d% \[\d\d, \d\d\]", printed, re.MULTILINE)
    assert re.search(r"^dan prefers the longer answer: it wins \d\d% \[\d\d, \d\d\]", printed, re.MULTILINE)
    database = Database(path)
    app = collect_app(Site("collect", database, ADDRESS, (PACKAGE,)), Settings())
    root = TestClient(app, base_url=ADDRESS)
    root.post("/in", data={"token": add_annotator(database, "root", "admin")[1]})
    html = root.get("/admin").text
    database.close()
    habits = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", html.partition('id="habits"')[2].partition("</section>")[0]))
    assert re.search(r"cem [^a-z]*position bias", habits), habits
    assert re.search(r"dan [^a-z]*prefers the longer", habits), habits
    assert not re.search(r"(ada|bea) [^a-z]*(position bias|prefers)", habits), habits


def biased_judge(server: Server, wins: Callable[[int, bool], bool]) -> None:
    """Scripts a judge that decides by (number of the pair, whether the own response is right) that the own one wins."""

    def reply(payload: dict[str, Any], _number: int) -> tuple[int, Any, dict[str, str]]:
        one, two = re.findall(r"Response \d:\n(.*?)\n\n", payload["messages"][0]["content"], re.DOTALL)[-2:]
        own = one if "own" in one else two
        first = wins(number(own), own.startswith("right")) == (own == one)
        return 200, completion("1" if first else "2", {"1": -0.01, "2": -5.0} if first else {"1": -5.0, "2": -0.01}), {}

    server.reply = reply


@pytest.mark.slow
def test_planted_errors_of_a_judge_are_corrected_where_its_rate_is_printed(here, capsys) -> None:
    """Of the own model's 180 losses of 360 the judge misses every second: raw 75%, truth 50%. People label 180."""
    path = labelled(here / "labels.db", {"ada": fair}, count=360, most=180)
    with serving() as server:
        biased_judge(server, lambda k, right: right or k // 2 % 2 == 0)
        assert main(["judge", "run", f"store={path}", *judge(server), "name=labels"]) == 0
    capsys.readouterr()
    assert main(["rate", str(path), "--anchor", f"{OTHER}@1", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["corrected"]
    assert row["rates"]["judge"]["value"] == pytest.approx(0.75, abs=0.01)
    assert row["labelled"] == 180
    assert row["rates"]["judge"]["low"] > 0.5, "the raw rate does not cover the truth"
    assert row["rates"]["corrected"]["low"] < 0.5 < row["rates"]["corrected"]["high"] < 0.75
    assert main(["rate", str(path), "--anchor", f"{OTHER}@1"]) == 0
    printed = capsys.readouterr().out
    shares = re.search(
        r"mine@1 +75% \[\d\d, \d\d\] +(\d\d)% \[\d\d, \d\d\] +(\d\d)% \[(\d\d), (\d\d)\] +180 of 360", printed
    )
    assert shares, printed
    assert int(shares[3]) < 50 < int(shares[4])
    assert main(["judge", "calibrate", f"store={path}", "rounds=300"]) == 0
    printed = capsys.readouterr().out
    for method in ("prediction-powered", "Rogan-Gladen"):
        found = re.search(rf"corrected, {method}: ([\d.]+) \[([\d.]+), ([\d.]+)\]", printed)
        assert found, printed
        assert float(found[2]) < 50 < float(found[3]) < 75, printed


@pytest.mark.slow
def test_with_a_useless_judge_the_peoples_own_interval_is_printed(here, capsys) -> None:
    path = labelled(here / "labels.db", {"ada": fair}, most=60)
    with serving() as server:
        biased_judge(server, lambda _k, _right: True)
        assert main(["judge", "run", f"store={path}", *judge(server), "name=labels"]) == 0
    capsys.readouterr()
    assert main(["judge", "calibrate", f"store={path}", "rounds=300"]) == 0
    printed = capsys.readouterr().out
    people = re.search(r"people alone ([\d.]+ \[[\d.]+, [\d.]+\])", printed)
    assert people, printed
    for method in ("prediction-powered", "Rogan-Gladen"):
        assert f"corrected, {method} (people's own): {people[1]}" in printed, printed
    assert main(["rate", str(path), "--anchor", f"{OTHER}@1", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["corrected"]
    assert row["rates"]["corrected"] == row["rates"]["people"]
    assert row["reason"]


@pytest.mark.slow
@pytest.mark.parametrize("useless", [False, True], ids=["wrong", "useless"])
def test_the_printed_win_rate_of_an_evaluation_is_corrected(there, capsys, monkeypatch, useless) -> None:  # noqa: F811
    """`two` is better than `one` on every second prompt; the judge adds each fourth, or all. People label a third."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    asked = [f"what is number {i}?" for i in range(48)]
    Path("prompts.jsonl").write_text("".join(json.dumps({"prompt": words}) + "\n" for words in asked))
    _, answers = evaluated()
    texts = {name: [a["text"] for a in answers if a["model"] == name] for name in ("one", "two")}
    by_prompt = [{a.strip() for a in texts["two"][3 * i : 3 * i + 3]} for i in range(48)]
    rows = []
    for k, (one, two) in enumerate(zip(texts["one"], texts["two"], strict=True)):
        if k // 3 % 3 == 0 and one.strip() and two.strip() and one != two:
            rows.append({"prompt": asked[k // 3], "responses": [two, one], "label": 1 if k // 3 % 2 == 0 else 2})
    Path("people.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def reply(payload: dict[str, Any], _number: int) -> tuple[int, Any, dict[str, str]]:
        question = payload["messages"][0]["content"]
        one, _ = re.findall(r"Response \d:\n(.*?)\n\n", question, re.DOTALL)[-2:]
        number = int(re.findall(r"number (\d+)", question)[-1])
        first = (one.strip() in by_prompt[number]) == (useless or number % 2 == 0 or number % 4 == 1)
        return 200, completion("1" if first else "2", {"1": -0.01, "2": -5.0} if first else {"1": -5.0, "2": -0.01}), {}

    with serving() as server:
        server.reply = reply
        url = "judge={kind: api, constrain: none, model: m, url: '" + server.url + "'}"
        facts, _ = evaluated(url, "people=people.jsonl", "null_prompts=0")
    printed = capsys.readouterr().out
    people = re.search(
        r"two against one is preferred, the judge: raw ([\d.]+) .*people alone ([\d.]+ \[[^]]*\])", printed
    )
    assert people, printed
    ppi = facts["two"]["corrected"]["ppi"]
    if useless:
        assert float(people[1]) > 95
        assert f"corrected, prediction-powered (people's own): {people[2]}" in printed
    else:
        assert float(people[1]) == pytest.approx(75, abs=5)
        assert ppi["estimate"]["low"] < 0.5 < ppi["estimate"]["high"] < 0.75, ppi
