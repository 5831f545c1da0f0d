"""The stage `collect`: asks through the labelling page, waits, survives being killed, and goes on with what came."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tiltyard.data import BadRows, parsed_rows, read_groups
from tiltyard.errors import ConfigError, DataError
from tiltyard.feedback.collect.client import Session
from tiltyard.feedback.store import assignment, items, judgements, people
from tiltyard.feedback.store.assignment import next_task
from tiltyard.feedback.store.campaigns import counted
from tiltyard.feedback.store.database import Database, now
from tiltyard.feedback.store.export import groups
from tiltyard.feedback.store.people import add_guideline, annotators, guideline, new_link, session_of, sign_in
from tiltyard.pipeline import run_stage
from tiltyard.runs.groups import write_groups
from tiltyard.stages.collect_wait import Watch
from tiltyard.types import Group, Response
from tiltyard.world import make_world, write_world

from .planted import Place, killed

pytest.importorskip("fastapi")


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Answers of two policies to the same four prompts of the embedded world, as files of groups."""
    folder = tmp_path_factory.mktemp("answers")
    write_world(make_world(0), folder, documents=20, dialogues=20, demonstrations=12, prompts=5, held_out=5, tuning=5)
    rows = [group for _, group in parsed_rows(str(folder / "demonstrations.jsonl"), "demonstrations", BadRows())]
    prompts = list({group.prompt.messages: group for group in rows}.values())[:4]
    files = {name: folder / f"{name}.groups.jsonl" for name in ("old", "new")}
    write_groups(files["old"], [Group(g.prompt, (Response(text="hm"), Response(text="well"))) for g in prompts])
    write_groups(files["new"], [Group(g.prompt, (g.responses[0], Response(text="no"))) for g in prompts])
    return files


def collected(folder: Path, data: Any, **settings: Any) -> tuple[dict[str, Any], str, list[Group]]:
    out = io.StringIO()
    values = {"data": json.loads(json.dumps(data, default=str)), "port": 0, **settings}
    outcome = run_stage("collect", values, name="r", runs_root=folder, console=Console(file=out, width=300))
    labels = list(read_groups(folder / "r" / "collect" / "labels.groups.jsonl"))
    return outcome["stages"]["collect"]["result"], out.getvalue(), labels


def choices(labels: list[Group]) -> dict[Any, Any]:
    """What each annotator prefers of each prompt's texts."""
    return {
        (group.preference.annotator, group.prompt.id, tuple(r.text for r in group.responses)): group.preference.ranks
        for group in labels
        if group.preference
    }


def test_simulated_annotators_come_by_the_door_of_people(answers: dict[str, Path], tmp_path: Path) -> None:
    asked = {"simulated": ["careful", "friendly"], "overlap": 2, "adjudicate": False, "seed": 3}
    result, text, labels = collected(tmp_path / "one", answers, **asked)
    assert len(labels) == result["rankings"] == result["wanted"] == 8
    assert result["annotators"] == {"careful": 4, "friendly": 4}
    assert "4 tasks (pair), each of 2 annotators" in text
    assert "8 of 8 judgements" in text or "0 of 8 judgements" in text
    assert all({r.meta["policy"] for r in group.responses} == {"old", "new"} for group in labels)
    assert all(group.preference.meta["chosen_with"] == 0.25 for group in labels)
    [versions] = result["versions"]
    assert (versions["new"], versions["old"], versions["labels"]["n"], versions["gold"]["n"]) == ("new", "old", 8, 4)
    assert "new against old: preferred in" in text
    store = Database(tmp_path / "one" / "r" / "labels.db")
    assert {one.role for one in annotators(store)} == {"simulated"}
    assert {group.preference.meta["role"] for group in groups(store)} == {"simulated"}
    store.close()
    _, _, again = collected(tmp_path / "two", answers, **asked)
    assert choices(again) == choices(labels)  # their noise depends on the question, not on the order of the work


def test_a_third_annotator_decides_where_there_is_one(answers: dict[str, Path], tmp_path: Path) -> None:
    asked = {"overlap": 2, "seed": 3}
    two, text, _ = collected(tmp_path / "two", answers, simulated=["careful", "careless"], **asked)
    three, _, _ = collected(tmp_path / "three", answers, simulated=["careful", "careless", "friendly"], **asked)
    assert two["rankings"] == 8 < two["wanted"] == two["tasks"] + 4  # disputes that no one is left for
    assert "no simulated annotator has a task left" in text
    assert three["rankings"] == three["wanted"]


@pytest.mark.parametrize("kind", ["ranking", "best_worst"])
def test_simulated_annotators_rank_several(answers: dict[str, Path], tmp_path: Path, kind: str) -> None:
    result, _, labels = collected(tmp_path, [answers["old"], answers["new"]], kind=kind, simulated=["all"])
    assert result["tasks"] == 4
    assert {len(group.responses) for group in labels} == {4}
    assert all(group.preference.ranks for group in labels)


class Waiting:
    """The stage in a thread, and what it has printed."""

    def __init__(self, folder: Path, data: Any, **settings: Any):
        self.out = io.StringIO()
        values = {"data": json.loads(json.dumps(data, default=str)), "port": 0, **settings}
        options = {"name": "r", "runs_root": folder, "console": Console(file=self.out, width=300)}
        self.result: dict[str, Any] = {}
        self.thread = threading.Thread(
            target=lambda: self.result.update(run_stage("collect", values, **options)), daemon=True
        )
        self.thread.start()

    def printed(self, pattern: str) -> re.Match[str]:
        return found_in(self.out.getvalue, pattern)

    def ended(self) -> dict[str, Any]:
        self.thread.join(30)
        assert not self.thread.is_alive()
        return dict(self.result["stages"]["collect"]["result"])


def found_in(text: Any, pattern: str, seconds: float = 60) -> re.Match[str]:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if match := re.search(pattern, text()):
            return match
        time.sleep(0.05)
    raise AssertionError(f"nothing like {pattern!r} in:\n{text()}")


LINK = r"ada  (http://\S+)/in#(\S+)"


def test_people_label_and_the_run_says_what_it_waits_for(answers: dict[str, Path], tmp_path: Path) -> None:
    waiting = Waiting(tmp_path, answers, labellers=["ada"], enough=0.5)
    url, token = waiting.printed(LINK).groups()
    waiting.printed(rf"waits for labels: 0 of 4 judgements \(goes on at 50%\), 0 annotators so far; label at {url}/in")
    with Session(url, token) as ada:
        for choice in ("both_bad", "tie"):
            task = ada.task()
            assert task is not None
            ada.judge(task["exposure"], {"choice": choice}, choice)
    result = waiting.ended()
    assert (result["rankings"], result["annotators"]) == (2, {"ada": 2})
    assert result["versions"][0]["both_bad"] == 1
    store = Database(tmp_path / "r" / "labels.db")
    [ada_id] = [one.id for one in annotators(store)]
    assert next_task(store, ada_id) is None  # what is left is asked of no one any more
    store.close()


def test_other_settings_ask_anew_and_no_one_for_the_old(answers: dict[str, Path], tmp_path: Path) -> None:
    collected(tmp_path, answers, simulated=["careful"])
    result, text, _ = collected(tmp_path, answers, simulated=["careful"], pairs=2)
    assert (result["tasks"], result["rankings"]) == (8, 8)
    result, text, _ = collected(tmp_path, answers, simulated=["careful"], pairs=2, enough=0.9, port=0)
    assert "skipped" in text  # how long it waits is no part of what was collected


def test_guidelines_of_a_file(answers: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "g.md").write_text("# Be fair")
    common = {"simulated": ["careful"], "store": str(tmp_path / "s.db"), "guidelines": str(tmp_path / "g.md")}
    collected(tmp_path / "a", answers, **common)
    store = Database(tmp_path / "s.db")
    assert guideline(store) == (1, "# Be fair")
    add_guideline(store, "# Be very fair")  # the admin's newer version is in force in the rounds that follow
    collected(tmp_path / "b", answers, **common)
    assert guideline(store) == (2, "# Be very fair")
    assert Counter(group.preference.guideline for group in groups(store)) == {"1": 4, "2": 4}
    store.close()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"simulated": ["carefull"]}, "careful"),
        ({"simulated": ["careful"], "overlap": 2}, "overlap 2"),
        ({"simulated": ["careful"], "kind": "rating"}, "rank and give no ratings"),
        ({"serve": False}, "needs url"),
        ({"overlap": 0}, "overlap"),
        ({"store": "postgresql://ada:secret@localhost/labels"}, "the store's URL holds a password"),
    ],
)
def test_settings_that_cannot_be(answers: dict[str, Path], tmp_path: Path, settings: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        collected(tmp_path, answers, **settings)
    assert "secret" not in str(error.value)


def test_the_worlds_annotators_know_their_world_alone(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"prompt": "Hello?", "responses": ["a", "b"]}\n')
    with pytest.raises(DataError, match="embedded world"):
        collected(tmp_path, tmp_path / "rows.jsonl", simulated=["all"])
    (tmp_path / "same.jsonl").write_text('{"prompt": "Hello?", "responses": ["a", "a"]}\n')
    with pytest.raises(DataError, match="two equal responses"):
        collected(tmp_path, tmp_path / "same.jsonl")


def test_stopped_for_a_week_it_goes_on(answers: dict[str, Path], tmp_path: Path, monkeypatch: Any) -> None:
    """Killed while it waits and run again a week later: the link, the label and the task that was open are there."""
    killed(lambda: collected(tmp_path, answers["new"], labellers=["ada"]), Place(Watch, "wait").plant)
    store = Database(tmp_path / "r" / "labels.db")
    [ada] = annotators(store)
    token = new_link(store, "ada")
    cookie, _ = sign_in(store, token) or ("", None)
    first, judged = next_task(store, ada.id), judgements.judge
    assert first is not None
    judged(store, ada.id, first.exposure, {"choice": "first"}, key="one")
    held = next_task(store, ada.id)
    assert held is not None
    store.close()
    week = 7 * 24 * 3_600_000
    for module in (assignment, items, judgements, people):
        monkeypatch.setattr(module, "now", lambda: now() + week)
    waiting = Waiting(tmp_path, answers["new"], labellers=["ada"])
    url = waiting.printed(r"waits for labels: 1 of 4 judgements, 1 annotator so far; label at (http://\S+)/in").group(1)
    assert "ada: their links are known to them" in waiting.out.getvalue()
    store = Database(tmp_path / "r" / "labels.db")
    assert session_of(store, cookie) is None  # sessions do not last so long, links do
    store.close()
    with Session(url, token) as session:
        assert session.judged == 1
        seen = []
        while task := session.task():
            seen.append(task["texts"])
            session.judge(task["exposure"], {"choice": "second"}, f"k{task['exposure']}")
    assert list(held.texts) in seen  # its lease ran out long ago, and it was given out again
    assert len(seen) == 3
    result = waiting.ended()
    assert (result["rankings"], result["wanted"], result["annotators"]) == (4, 4, {"ada": 4})


# ------------------------------------------------------------------------------------------------------------- kill -9


def started(folder: Path, data: Path) -> tuple[subprocess.Popen[bytes], Path]:
    """The stage in a process of its own, as `tiltyard train` runs it."""
    out = folder / f"out-{time.monotonic_ns()}.txt"
    code = "import sys; from tiltyard.cli import main; sys.exit(main())"
    words = ["train", "collect", f"data={data}", "labellers=[ada]", "port=0", "name=r"]
    with out.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-c", code, *words], cwd=folder, stdout=file, stderr=subprocess.STDOUT, env={**os.environ}
        )
    return process, out


@pytest.mark.slow
def test_killed_and_run_again_it_waits_for_the_rest(answers: dict[str, Path], tmp_path: Path) -> None:
    """kill -9 while it waits; the link, the labels and the tasks are there after it, and SIGTERM ends it in order."""
    process, out = started(tmp_path, answers["new"])
    url, token = found_in(out.read_text, LINK).groups()
    with Session(url, token) as ada:
        first = ada.task()
        assert first is not None
        ada.judge(first["exposure"], {"choice": "first"}, "one")
        held = ada.task()
    process.kill()
    process.wait()

    process, out = started(tmp_path, answers["new"])
    url = found_in(out.read_text, r"1 of 4 judgements, 1 annotator so far; label at (http://\S+)/in").group(1)
    assert "in#" not in out.read_text()  # a link is shown once
    with Session(url, token) as ada:
        assert ada.judged == 1
        assert ada.task() == held
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 143

    process, out = started(tmp_path, answers["new"])
    url = found_in(out.read_text, r"label at (http://\S+)/in").group(1)
    with Session(url, token) as ada:
        while task := ada.task():
            ada.judge(task["exposure"], {"choice": "second"}, f"k{task['exposure']}")
    assert process.wait(30) == 0
    labels = list(read_groups(tmp_path / "runs" / "r" / "collect" / "labels.groups.jsonl"))
    assert len({group.prompt.id for group in labels}) == len(labels) == 4
    store = Database(tmp_path / "runs" / "r" / "labels.db")
    with store.reading() as connection:
        [name] = connection.exec_driver_sql("SELECT DISTINCT name FROM campaigns").scalars()
    assert counted(store, name) == (4, 4, 4, 1)
    store.close()
