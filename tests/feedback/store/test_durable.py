"""Many annotators at once, a server that is killed, a store of another version: nothing is lost, nothing is doubled."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import pytest
import sqlalchemy as sa

from tiltyard.errors import ConfigError, DataError
from tiltyard.feedback.store import tables as t
from tiltyard.feedback.store.assignment import next_task
from tiltyard.feedback.store.database import Database
from tiltyard.feedback.store.export import groups
from tiltyard.feedback.store.items import add_tasks
from tiltyard.feedback.store.judgements import judge
from tiltyard.feedback.store.people import (
    accept_guideline,
    accepted_guideline,
    add_annotator,
    add_guideline,
    annotators,
    guideline,
    new_link,
    session_of,
    set_active,
    sign_in,
    sign_out,
)

from .conftest import undo_migrations_to_0003

WRITER = """
import sys
from tiltyard.feedback.store.assignment import next_task
from tiltyard.feedback.store.database import Database
from tiltyard.feedback.store.judgements import judge
database, who = Database(sys.argv[1]), int(sys.argv[2])
k = 0
while (task := next_task(database, who)) is not None:
    stored = judge(database, who, task.exposure, {"choice": "first"}, key=f"{sys.argv[3]}-{k}")
    print(stored.id, flush=True)
    k += 1
"""


@pytest.mark.slow
def test_an_acknowledged_judgement_survives_kill_9(store, url, items):
    """Three times a writer is killed while it works; every number that it printed is in the store, once."""
    add_tasks(store, items(400))
    who = add_annotator(store, "ada")[0].id
    acknowledged: list[int] = []
    for attempt in range(3):
        command = [sys.executable, "-c", WRITER, url, str(who), str(attempt)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout is not None
            for _ in range(20 + 7 * attempt):
                acknowledged.append(int(writer.stdout.readline()))
            os.kill(writer.pid, signal.SIGKILL)
            acknowledged += [int(line) for line in writer.stdout.read().split()]
    with store.reading() as connection:
        stored = connection.scalars(sa.select(t.judgements.c.id)).all()
    assert set(acknowledged) <= set(stored)
    assert len(stored) <= len(acknowledged) + 3, "at most one each time was stored and not yet told"
    per_task = Counter(g.preference.meta["task"] for g in groups(store))
    assert max(per_task.values()) == 1
    assert len(set(acknowledged)) == len(acknowledged)


def test_many_annotators_at_once(store, items):
    """Twelve people label 40 tasks of overlap 3 at once: each task gets three judgements, of three people."""
    ids = add_tasks(store, items(40, overlap=3))
    people = [add_annotator(store, f"p{k}")[0].id for k in range(12)]
    failures: list[Exception] = []

    def label(who: int) -> None:
        k = 0
        try:
            while (task := next_task(store, who)) is not None:
                judge(store, who, task.exposure, {"choice": "tie"}, key=f"{who}-{k}")
                k += 1
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=label, args=(who,)) for who in people]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    with store.reading() as connection:
        rows = connection.execute(sa.select(t.judgements.c.task_id, t.judgements.c.annotator_id)).all()
    assert len(set(rows)) == len(rows)
    assert Counter(task for task, _ in rows) == dict.fromkeys(ids, 3)


@pytest.mark.slow
def test_two_processes_share_a_store(store, url, items):
    add_tasks(store, items(60))
    people = [str(add_annotator(store, name)[0].id) for name in "ab"]
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, url, who, who], stdout=subprocess.PIPE, text=True)
        for who in people
    ]
    printed = [int(line) for writer in writers for line in writer.communicate()[0].split()]
    assert all(writer.returncode == 0 for writer in writers)
    assert len(printed) == len(set(printed)) == 60


def test_links_are_stored_as_hashes_and_sessions_end(store):
    _, token = add_annotator(store, "ada")
    with store.reading() as connection:
        everything = str([connection.execute(sa.select(table)).all() for table in t.metadata.sorted_tables])
    assert token not in everything
    assert sign_in(store, "guessed") is None
    cookie, session = sign_in(store, token)
    assert session_of(store, cookie) == session
    assert session_of(store, "guessed") is None
    with store.reading() as connection:
        assert cookie not in str(connection.execute(sa.select(t.sessions)).all())
    newer = new_link(store, "ada")
    assert session_of(store, cookie) is None
    assert sign_in(store, token) is None
    cookie, _ = sign_in(store, newer)
    sign_out(store, cookie)
    assert session_of(store, cookie) is None
    cookie, _ = sign_in(store, newer)
    set_active(store, "ada", False)
    assert session_of(store, cookie) is None
    assert sign_in(store, newer) is None
    assert [one.name for one in annotators(store)] == ["ada"]
    for call in (
        lambda: add_annotator(store, "ada"),
        lambda: new_link(store, "eve"),
        lambda: add_annotator(store, " "),
    ):
        with pytest.raises(ConfigError):
            call()


def test_guidelines_have_versions(store, items):
    assert guideline(store) == (1, "Prefer the answer that helps.")
    assert add_guideline(store, "Prefer the answer that helps.") == 1
    add_tasks(store, items(2))
    who = add_annotator(store, "ada")[0].id
    task = next_task(store, who)
    assert task.guideline == 1
    assert add_guideline(store, "Prefer the shorter answer.") == 2
    judge(store, who, task.exposure, {"choice": "tie"}, key="a")
    judge(store, who, next_task(store, who).exposure, {"choice": "tie"}, key="b")
    assert [g.preference.guideline for g in groups(store)] == ["1", "2"]


def test_databases_that_are_no_store(tmp_path: Path):
    with pytest.raises(ConfigError, match="not a store's URL"):
        Database("mysql://host/x")
    with pytest.raises(DataError, match="cannot be used"):
        Database(tmp_path / "no" / "folder" / "labels.db")
    text = tmp_path / "notes.db"
    text.write_text("not a database, but a text of some length\n" * 100)
    with pytest.raises(DataError, match="cannot be used"):
        Database(text)
    other = tmp_path / "other.db"
    engine = sa.create_engine(f"sqlite:///{other}")
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE customers (id INTEGER)")
    with pytest.raises(DataError, match="belongs to something else"):
        Database(other)
    later = tmp_path / "later.db"
    store = Database(later)
    with store.writing() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    store.close()
    with pytest.raises(DataError, match="later version"):
        Database(later)


def test_a_store_of_the_first_version_is_brought_to_this_one(store, items):
    """A store as version 0001 left it, with judgements in it, opens: nothing in it changes."""
    add_tasks(store, items(3))
    who = add_annotator(store, "ada")[0].id
    judge(store, who, next_task(store, who).exposure, {"choice": "tie"}, key="k")
    before = list(groups(store))
    with store.writing() as connection:
        undo_migrations_to_0003(connection)
        for table in ("acceptances", "campaigns"):
            connection.exec_driver_sql(f"DROP TABLE {table}")
        for table in ("judgements", "exposures"):
            connection.exec_driver_sql(f"DROP INDEX ix_{table}_task_annotator")
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '0001'")
    with store.reading() as connection:
        queued = connection.execute(sa.select(t.tasks.c.id, t.tasks.c.place).order_by(t.tasks.c.id)).all()
    again = Database(store.url.render_as_string(hide_password=False))
    assert list(groups(again)) == before
    with again.reading() as connection:
        rows = connection.execute(sa.select(t.task_state).order_by(t.task_state.c.task_id)).all()
    assert [(row.task_id, row.place) for row in rows] == queued
    assert sorted((row.stage, row.missing, row.begun) for row in rows) == [("real", 0, -1), *[("real", 1, 0)] * 2]
    assert next_task(again, who) is not None
    accept_guideline(again, who, 1)
    assert accepted_guideline(again, who) == 1
    again.close()


def test_migrations_lead_to_the_tables_of_the_code(store):
    """What the migrations made and what `tables.py` describes are the same schema."""
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    with store.reading() as connection:
        assert compare_metadata(MigrationContext.configure(connection), t.metadata) == []
