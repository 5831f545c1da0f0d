"""The desk of an arena: begins battles, streams both answers, stores them with what was shown, and takes votes.

A battle is stored once both answers are complete: prompt, responses, task with the probability of its pair, and the
exposure with the order on the page. From then on the store alone holds it, so that a vote after a restart counts. A
vote counts once, and not after the names were shown.
"""

from __future__ import annotations

import hashlib
import logging
import queue
import random
import secrets
import threading
from collections import Counter, OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import func, insert, select

from tiltyard.errors import ConfigError, DataError, TiltyardError
from tiltyard.feedback.arena.identity import names_itself
from tiltyard.feedback.arena.models import Decoding, EndpointModel, Writer
from tiltyard.feedback.arena.pairing import Pair, Pairing, Policy
from tiltyard.feedback.store import tables as t
from tiltyard.feedback.store.assignment import show
from tiltyard.feedback.store.database import Database, now
from tiltyard.feedback.store.items import Item, add_tasks, register_policy
from tiltyard.feedback.store.judgements import end_exposure, judge
from tiltyard.feedback.store.people import add_guideline, guideline
from tiltyard.feedback.store.texts import response_texts
from tiltyard.stats.judged import NAMES_ITSELF
from tiltyard.types import Group, Message, Prompt, Response

log = logging.getLogger("tiltyard.arena")

GUIDELINE = "Which answer is better? Both good: tie. Both useless or wrong: both bad."
CHOOSER = "arena"
MOST_PROMPT = 4000  # characters
MOST_OPEN = 500  # battles whose answers are not complete
HOURS = 24 * 3600.0  # a vote may come so late
CHOICES = ("first", "second", "tie", "both_bad")


class Busy(Exception):
    """As many battles as the arena answers at once are under way."""


class _Stopped(Exception):
    """The visitor has gone."""


@dataclass(frozen=True)
class ArenaSettings:
    """The choices behind an arena.

    Args:
        pairing, seed: of the pairs, and of the side on which each model stands.
        decoding: of all models. at_once: battles that are answered at the same time.
    """

    pairing: Policy = "uniform"
    seed: int = 0
    decoding: Decoding = field(default_factory=Decoding)
    at_once: int = 2


@dataclass
class Opened:
    """A battle whose answers are to come."""

    visitor: int
    prompt: Prompt
    source: str
    pair: Pair
    seed: int
    taken: bool = False


@dataclass(frozen=True)
class Battle:
    """A stored battle as its visitor sees it; `models` are the names of the left and the right one, "" before the end.

    `choice`: the verdict about places ("first" is the left one), "" without one. `named`: an answer introduces its
    model, so no vote on the battle counts.
    """

    exposure: int
    prompt: str
    texts: tuple[str, str]
    models: tuple[str, str]
    choice: str
    ended: bool
    named: bool = False


class Desk:
    """An arena on a store.

    Args:
        writers: the models; all of them are registered, and stay on the board for good.
        drawn: prompts that a visitor may draw.

    Raises:
        ConfigError: fewer than two models, or two of one name and version.
    """

    def __init__(
        self,
        database: Database,
        writers: Sequence[Writer],
        settings: ArenaSettings | None = None,
        drawn: Sequence[Prompt] = (),
    ):
        self.database, self.writers, self.drawn = database, list(writers), list(drawn)
        self.settings = ArenaSettings() if settings is None else settings
        self.pairing = Pairing(len(self.writers), self.settings.pairing, self.settings.seed)
        names = [name_of(writer) for writer in self.writers]
        if len(set(names)) < len(names):
            raise ConfigError("two models have one name", where="--model", got=", ".join(names))
        with database.writing() as connection:
            for writer in self.writers:
                register_policy(connection, writer.name, writer.version, {"arena": True}, now())
        if guideline(database) is None:
            add_guideline(database, GUIDELINE)
        self._lock = threading.Lock()
        self._open: OrderedDict[str, Opened] = OrderedDict()
        self._slots = threading.BoundedSemaphore(self.settings.at_once)
        self._number, self._met = self._counted()

    def _counted(self) -> tuple[int, Counter[tuple[int, int]]]:
        """Returns the number of battles in the store, and how often each pair of the present models has met."""
        place = {name_of(writer): k for k, writer in enumerate(self.writers)}
        query = select(t.tasks.c.responses).where(t.tasks.c.chooser.startswith(CHOOSER))
        met: Counter[tuple[int, int]] = Counter()
        with self.database.reading() as connection:
            rows = [tuple(row.responses) for row in connection.execute(query)]
            names = _names(connection, [key for row in rows for key in row])
        for row in rows:
            places = [place.get(names[key], -1) for key in row]
            if min(places) >= 0:
                met[min(places), max(places)] += 1
        return len(rows), met

    def visitor(self, cookie: str) -> int:
        """Returns the annotator that a visitor's cookie stands for; it is added at the first battle."""
        name = f"visitor-{hashlib.sha256(cookie.encode()).hexdigest()[:16]}"
        with self.database.writing() as connection:
            found = connection.scalar(select(t.annotators.c.id).where(t.annotators.c.name == name))
            if found is not None:
                return int(found)
            row: dict[str, Any] = {"name": name, "role": "visitor", "token": None, "facts": {}, "created": now()}
            key = connection.execute(insert(t.annotators).values(row)).inserted_primary_key
            assert key is not None
            return int(key[0])

    def begin(self, visitor: int, text: str) -> str:
        """Begins a battle and returns its name; an empty text draws a prompt.

        Raises:
            DataError: a text that is too long, or nothing to draw from.
        """
        words = text.strip()
        if len(words) > MOST_PROMPT:
            raise DataError(
                "the prompt is too long", where="prompt", got=len(words), expected=f"{MOST_PROMPT} characters"
            )
        if not words and not self.drawn:
            raise DataError("the prompt is empty", where="prompt", fix="write one")
        with self._lock:
            number, self._number = self._number, self._number + 1
            pair = self.pairing.draw(number, self._met)
            self._met[pair.one, pair.other] += 1
        rng = random.Random(f"{self.settings.seed}:{number}:prompt")
        prompt = Prompt(messages=(Message("user", words),)) if words else rng.choice(self.drawn)
        opened = Opened(visitor, prompt, "visitor" if words else "drawn", pair, rng.getrandbits(48))
        name = secrets.token_urlsafe(18)
        with self._lock:
            self._open[name] = opened
            while len(self._open) > MOST_OPEN:
                self._open.popitem(last=False)
        return name

    def opened(self, name: str, visitor: int) -> Opened | None:
        """Returns a battle of this visitor whose answers are to come; None where there is none."""
        with self._lock:
            found = self._open.get(name)
        return found if found is not None and found.visitor == visitor else None

    def answers(self, name: str, visitor: int) -> Iterator[dict[str, Any]]:
        """Yields pieces of both answers as they are written, then the stored battle or an error.

        `{"side": "a", "text": ...}`, `{"battle": exposure}`, `{"error": "busy" or "no_answer"}`.

        Raises:
            DataError: there is no such battle, or its answers were asked for before.
        """
        with self._lock:
            opened = self._open.get(name)
            if opened is None or opened.visitor != visitor or opened.taken:
                raise DataError("there is no such battle", where="battle", fix="begin another")
            if not self._slots.acquire(blocking=False):
                raise Busy
            opened.taken = True
        try:
            yield from self._answered(opened)
        finally:
            with self._lock:
                self._open.pop(name, None)
            self._slots.release()

    def _answered(self, opened: Opened) -> Iterator[dict[str, Any]]:
        places = (opened.pair.one, opened.pair.other)
        order = places if opened.pair.left == 0 else places[::-1]
        events: queue.Queue[dict[str, Any]] = queue.Queue()
        gone = threading.Event()
        found: dict[int, Response] = {}

        def write(side: str, place: int) -> None:
            def shown(piece: str) -> None:
                if gone.is_set():
                    raise _Stopped
                events.put({"side": side, "text": piece})

            writer = self.writers[place]
            try:
                found[place] = writer.write(opened.prompt.messages or (), opened.seed + place, shown)
                events.put({"side": side, "end": True})
            except _Stopped:
                events.put({"error": "gone"})
            except TiltyardError as error:
                log.warning("%s gave no answer: %s", name_of(writer), error)
                events.put({"error": "no_answer"})
            except Exception:
                log.exception("%s failed", name_of(writer))
                events.put({"error": "no_answer"})

        threads = [threading.Thread(target=write, args=one, daemon=True) for one in zip("ab", order, strict=True)]
        for thread in threads:
            thread.start()
        ended, begun = 0, set[str]()
        held: list[dict[str, Any]] = []  # nothing is shown before both have begun: the faster one would be known by it
        try:
            while ended < len(threads):
                event = events.get()
                if "error" in event:
                    yield event
                    return
                ended += "end" in event
                begun.add(event["side"])
                held.append(event)
                if len(begun) == len(threads):
                    yield from held
                    held = []
            yield {"battle": self._stored(opened, places, found)}
        finally:
            gone.set()
            for thread in threads:
                thread.join()

    def _stored(self, opened: Opened, places: tuple[int, int], found: dict[int, Response]) -> int:
        d, pair = self.settings.decoding, opened.pair
        facts = {"temperature": d.temperature, "top_p": d.top_p, "max_tokens": d.max_tokens}
        responses = tuple(
            Response(
                text=found[k].text,
                meta={
                    "policy": self.writers[k].name,
                    "version": self.writers[k].version,
                    "seed": opened.seed + k,
                    "finish": found[k].finish,
                    **({NAMES_ITSELF: True} if names_itself(found[k].text, names_of(self.writers[k])) else {}),
                    **facts,
                },
            )
            for k in places
        )
        item = Item(
            Group(opened.prompt, responses),
            probability=pair.probability,
            chooser=f"{CHOOSER}:{self.settings.pairing}",
            source=opened.source,
            reserved=True,
        )
        (task,) = add_tasks(self.database, [item])
        shown = [0, 1] if pair.left == 0 else [1, 0]
        return show(self.database, opened.visitor, task, shown, lease_seconds=HOURS)

    def battle(self, exposure: int, visitor: int) -> Battle | None:
        """Returns a stored battle of this visitor; None where there is none."""
        with self.database.reading() as connection:
            row = connection.execute(_battles().where(t.exposures.c.id == exposure)).one_or_none()
            if row is None or row.annotator_id != visitor:
                return None
            keys = [row.responses[k] for k in row.shown]
            texts = response_texts(connection, keys)
            metas = connection.scalars(select(t.responses.c.meta).where(t.responses.c.id.in_(keys))).all()
            ended = row.reason is not None
            names = _names(connection, keys) if ended else {}
            j = t.judgements
            query = select(j.c.verdict).where(j.c.exposure_id == exposure)
            verdict = connection.scalar(query)
        choice = verdict["choice"] if verdict else ""
        if choice in CHOICES[:2]:
            choice = CHOICES[list(row.shown).index(CHOICES.index(choice))]
        left, right = keys
        models = (names.get(left, ""), names.get(right, ""))
        named = any(meta.get(NAMES_ITSELF) for meta in metas)
        return Battle(exposure, _words(row.messages), (texts[left], texts[right]), models, choice, ended, named)

    def vote(self, exposure: int, visitor: int, choice: str, key: str) -> None:
        """Stores a vote; "first" is the left answer.

        Raises:
            DataError: a battle of another visitor, one whose names were shown or that was voted on, or no choice.
        """
        verdict = {"choice": choice}
        judge(self.database, visitor, exposure, verdict, key=key, adjudicate=False, open_alone=True, since_shown=True)

    def reveal(self, exposure: int, visitor: int) -> None:
        """Ends a battle without a vote; its names may then be shown, and no vote counts.

        Raises:
            DataError: a battle of another visitor.
        """
        end_exposure(self.database, visitor, exposure, "revealed")


def name_of(writer: Writer) -> str:
    """Returns the name on the board: `name`, or `name@version`."""
    return f"{writer.name}@{writer.version}" if writer.version else writer.name


def names_of(writer: Writer) -> tuple[str, ...]:
    """Returns the names under which a model could introduce itself: here, and at its server."""
    served = writer.model.rpartition("/")[2] if isinstance(writer, EndpointModel) else ""
    return writer.name, served


def _battles() -> Any:
    return (
        select(
            t.exposures.c.id,
            t.exposures.c.annotator_id,
            t.exposures.c.shown,
            t.tasks.c.responses,
            t.prompts.c.messages,
            t.exposure_ends.c.reason,
        )
        .join(t.tasks, t.tasks.c.id == t.exposures.c.task_id)
        .join(t.prompts, t.prompts.c.id == t.tasks.c.prompt_id)
        .outerjoin(t.exposure_ends, t.exposure_ends.c.exposure_id == t.exposures.c.id)
    )


def _names(connection: Any, responses: Sequence[int]) -> dict[int, str]:
    """Returns the name of the model of each response."""
    query = select(t.responses.c.id, t.policies.c.name, t.policies.c.version).join(
        t.policies, t.policies.c.id == t.responses.c.policy_id
    )
    found: dict[int, str] = {}
    keys = sorted(set(responses))
    for start in range(0, len(keys), 500):
        for row in connection.execute(query.where(t.responses.c.id.in_(keys[start : start + 500]))):
            found[row.id] = f"{row.name}@{row.version}" if row.version else row.name
    return found


def _words(messages: Any) -> str:
    turns = messages if isinstance(messages, list) else [{"content": messages.get("text", "")}]
    return "\n\n".join(str(turn.get("content", "")) for turn in turns)


def battles_so_far(database: Database) -> int:
    """Returns how many battles of an arena the store holds."""
    query = select(func.count()).select_from(t.tasks).where(t.tasks.c.chooser.startswith(CHOOSER))
    with database.reading() as connection:
        return int(connection.scalar(query) or 0)
