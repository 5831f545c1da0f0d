"""Many annotators at one labelling page, whose server is killed in the middle: how long a vote takes, what is lost.

`python -m benchmarks.pages.crowd --people 50 --votes 30 --pause 1`: on SQLite and on PostgreSQL, as a table.
Each annotator is a browser without scripts: it opens the page of its task, thinks, sends the form of a verdict, follows
to the next. When half of the votes are there, the server is killed (SIGKILL) and started again; an annotator whose
form got no answer sends the same form again, as a person would.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from benchmarks.pages.postgres import new_database, postgres_server
from sqlalchemy import select

from tiltyard.feedback.store import tables as t
from tiltyard.feedback.store.database import Database
from tiltyard.feedback.store.items import Item, add_tasks
from tiltyard.feedback.store.people import add_annotator, add_guideline
from tiltyard.types import Group, Message, Prompt, Response

OVERLAP = 2
CHOICES = ("first", "second", "tie", "both_bad")
TEXT = "The tide goes out twice a day, and twice a day it comes back. " * 6
HIDDEN = re.compile(r'<input type="hidden" name="(\w+)" value="([^"]*)"')
MOST_SECONDS = 300.0  # of a run; what has not ended then is an error


@dataclass
class Tally:
    """What the annotators saw: times in seconds, keys of forms that were sent and of those that were acknowledged."""

    vote_s: list[float] = field(default_factory=list)
    page_s: list[float] = field(default_factory=list)
    sent: set[str] = field(default_factory=set)
    acknowledged: list[str] = field(default_factory=list)
    resent: int = 0
    refused: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Outcome:
    """Of one run: votes a second, percentiles in milliseconds, and what the store holds afterwards.

    `lost`: acknowledged forms that are not in the store. `doubled`: a person's second judgement of a task, a form that
    was stored twice, or a judgement beyond a task's overlap. `down_s`: from the kill to the next answer.
    """

    people: int
    votes: int
    per_second: float
    vote_ms: tuple[float, float, float]  # 50%, 95%, 99%
    page_ms: tuple[float, float, float]
    resent: int
    lost: int
    doubled: int
    refused: tuple[str, ...]
    down_s: float


class Server:
    """`tiltyard collect serve` in a process of its own."""

    def __init__(self, store: str):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.store = store
        self.process: subprocess.Popen[bytes] | None = None

    async def start(self) -> None:
        """Starts it and waits until it answers."""
        command = [sys.executable, "-m", "tiltyard.cli", "collect", "serve", self.store, "--port", str(self.port)]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"})
        async with httpx.AsyncClient(base_url=self.url) as client:
            for _ in range(600):
                try:
                    if (await client.get("/in")).status_code == 200:
                        return
                except httpx.TransportError:
                    await asyncio.sleep(0.05)
        raise RuntimeError("the server did not start")

    def kill(self) -> None:
        """Ends it at once, in the middle of whatever it does."""
        assert self.process is not None
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait()


def crowd(store: str, *, people: int, votes: int, pause: float, kill: bool = True, seed: int = 0) -> Outcome:
    """Lets `people` annotators give `votes` verdicts each, at an empty store.

    Args:
        store: a file or URL of SQLAlchemy.
        pause: mean seconds between seeing a task and sending the verdict, exponentially distributed; 0: none.
        kill: end the server with SIGKILL once half of the votes are there, and start it again.
    """
    database = Database(store)
    add_guideline(database, "Prefer the answer that helps.")
    items = [Item(_group(k), overlap=OVERLAP) for k in range(people * votes // OVERLAP + people)]
    known = [Item(_group(-k - 1), stage="gold", expected={"choice": "first"}) for k in range(votes // 10 + 1)]
    add_tasks(database, [*items, *known], seed=seed)
    tokens = [add_annotator(database, f"p{k}")[1] for k in range(people)]
    tally = Tally()
    seconds, down = asyncio.run(_work(Server(store), tokens, votes, pause, kill, random.Random(seed), tally))
    lost, doubled = _compared(database, tally)
    database.close()
    return Outcome(
        people,
        len(tally.acknowledged),
        len(tally.acknowledged) / seconds,
        _percentiles(tally.vote_s),
        _percentiles(tally.page_s),
        tally.resent,
        lost,
        doubled,
        tuple(tally.refused),
        down,
    )


async def _work(
    server: Server, tokens: list[str], votes: int, pause: float, kill: bool, rng: random.Random, tally: Tally
) -> tuple[float, float]:
    await server.start()
    try:
        annotators = [_Annotator(server.url, token, pause, random.Random(rng.random()), tally) for token in tokens]
        for one in annotators:
            await one.enter()
        began = time.perf_counter()
        killer = asyncio.create_task(_kill(server, tally, len(tokens) * votes // 2)) if kill else None
        async with asyncio.timeout(MOST_SECONDS):
            await asyncio.gather(*(one.label(votes) for one in annotators))
            seconds = time.perf_counter() - began
            return seconds, await killer if killer else 0.0
    finally:
        server.kill()


async def _kill(server: Server, tally: Tally, votes: int) -> float:
    while len(tally.acknowledged) < votes:
        await asyncio.sleep(0.005)
    began = time.perf_counter()
    server.kill()
    await server.start()
    return time.perf_counter() - began


class _Annotator:
    def __init__(self, url: str, token: str, pause: float, rng: random.Random, tally: Tally):
        self.http = httpx.AsyncClient(base_url=url, timeout=30, trust_env=False)
        self.token, self.pause, self.rng, self.tally = token, pause, rng, tally

    async def enter(self) -> None:
        await self.http.post("/in", data={"token": self.token})
        page = (await self.http.get("/guidelines")).text
        await self.http.post("/guidelines", data=dict(HIDDEN.findall(page)))

    async def label(self, votes: int) -> None:
        for _ in range(votes):
            began = time.perf_counter()
            page, whole = await self._sent("GET", "/label")
            if whole:
                self.tally.page_s.append(time.perf_counter() - began)
            fields = dict(HIDDEN.findall(page.text.partition('id="task"')[2].partition("</form>")[0]))
            if page.status_code != 200 or "key" not in fields:
                self.tally.refused.append(f"GET {page.status_code}")
                return
            if self.pause:
                await asyncio.sleep(self.rng.expovariate(1 / self.pause))
            self.tally.sent.add(fields["key"])
            began = time.perf_counter()
            answer, whole = await self._sent("POST", "/label", data=fields | {"choice": self.rng.choice(CHOICES)})
            if whole:
                self.tally.vote_s.append(time.perf_counter() - began)
            if answer.status_code == 303:
                self.tally.acknowledged.append(fields["key"])
            else:
                self.tally.refused.append(f"POST {answer.status_code}")
        await self.http.aclose()

    async def _sent(self, method: str, path: str, **more: Any) -> tuple[httpx.Response, bool]:
        """The answer, and whether the first attempt got it."""
        for attempt in range(1000):
            try:
                return await self.http.request(method, path, **more), attempt == 0
            except httpx.TransportError:
                self.tally.resent += 1
                await asyncio.sleep(0.2)
        raise RuntimeError("the server does not answer")


def _compared(database: Database, tally: Tally) -> tuple[int, int]:
    with database.reading() as connection:
        rows = connection.execute(
            select(t.judgements.c.key, t.judgements.c.task_id, t.judgements.c.annotator_id, t.tasks.c.stage)
            .join(t.tasks, t.tasks.c.id == t.judgements.c.task_id)
            .order_by(t.judgements.c.id)
        ).all()
    stored = Counter(row.key for row in rows)
    lost = sum(key not in stored for key in tally.acknowledged)
    doubled = len(rows) - len({(row.task_id, row.annotator_id) for row in rows})
    doubled += sum(n - 1 for n in stored.values()) + sum(key not in tally.sent for key in stored)
    limit = {"real": OVERLAP, "adjudication": 1}
    per_task = Counter((row.task_id, row.stage) for row in rows)
    return lost, doubled + sum(max(0, n - limit.get(stage, n)) for (_, stage), n in per_task.items())


def _percentiles(seconds: list[float]) -> tuple[float, float, float]:
    return tuple(float(1000 * one) for one in np.percentile(seconds, (50, 95, 99)))  # type: ignore[return-value]


def _group(k: int) -> Group:
    responses = tuple(Response(text=f"{TEXT}{k}-{j}", meta={"policy": f"model-{j}"}) for j in range(2))
    return Group(Prompt(messages=(Message("user", f"Question {k}: what do the tides do?"),), id=f"q{k}"), responses)


def processor() -> str:
    """The processor's name and the number of cores."""
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    name = re.search(r"^model name\s*:\s*(.+)$", info, re.MULTILINE)
    return f"{name.group(1) if name else 'unknown processor'}, {os.cpu_count()} cores"


def main() -> None:
    """Prints a table for both databases."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--people", type=int, default=50)
    parser.add_argument("--votes", type=int, default=30, help="verdicts of each")
    parser.add_argument("--pause", type=float, nargs="+", default=[1.0], help="mean seconds of thinking")
    parser.add_argument("--only", choices=("sqlite", "postgresql"))
    given = parser.parse_args()
    print(f"{processor()}; load {os.getloadavg()[0]:.1f}; {given.people} annotators, the server killed in the middle")
    print(
        "store       pause  votes  votes/s  vote ms 50%  95%  99%  page ms 95%  resent  lost  doubled  refused  down s"
    )
    for kind in ("sqlite", "postgresql") if given.only is None else (given.only,):
        for pause in given.pause:
            with tempfile.TemporaryDirectory() as folder, postgres_server(durable=True) as server:
                url = f"{folder}/labels.db" if kind == "sqlite" else new_database(server)
                one = crowd(url, people=given.people, votes=given.votes, pause=pause)
            vote = "  ".join(f"{ms:4.0f}" for ms in one.vote_ms)
            print(
                f"{kind:10}  {pause:5.1f}  {one.votes:5}  {one.per_second:7.1f}  {vote:>20}  {one.page_ms[1]:11.0f}  "
                f"{one.resent:6}  {one.lost:4}  {one.doubled:7}  {len(one.refused):7}  {one.down_s:6.1f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
