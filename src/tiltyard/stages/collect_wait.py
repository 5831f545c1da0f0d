"""The waiting of the stage `collect`: the page is served, annotators sign in, the store is watched."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from tiltyard.errors import ConfigError
from tiltyard.stages.base import StageContext
from tiltyard.stopping import stop
from tiltyard.types import Prompt
from tiltyard.world import ANNOTATORS

if TYPE_CHECKING:
    from tiltyard.feedback.collect.simulated import SimulatedLabeller
    from tiltyard.feedback.store.campaigns import Count
    from tiltyard.feedback.store.database import Database
    from tiltyard.stages.collect import CollectSettings

SECONDS, QUIET = 0.5, 10.0  # between two looks at the store, and between two lines about it


def simulated_names(names: Sequence[str]) -> list[str]:
    """Returns the names of the world's annotators that the setting `simulated` means."""
    return [one.name for one in ANNOTATORS] if "all" in names else list(dict.fromkeys(names))


def collect(
    context: StageContext, settings: CollectSettings, database: Database, campaign: str, prompts: Sequence[Prompt]
) -> None:
    """Waits until enough of the campaign's judgements are in the store; serves the page and signs annotators in.

    Raises:
        Stopped: a signal came. What was judged is in the store.
        ConfigError: the port is taken, or an annotator's name belongs to one of another role.
    """
    watch = Watch(context, settings, database, campaign)
    if watch.enough():
        return
    with served(settings, database) as url:
        watch.url = url
        _invite(context, settings, database, url)
        with ExitStack() as sessions:
            labellers = _simulated(settings, database, url, prompts, sessions)
            _judge(labellers, watch)
        if labellers and not settings.labellers and not watch.enough():
            context.report("collect", [f"no simulated annotator has a task left: {watch.state()}"])
            return
        watch.wait()


class Watch:
    """Counts the judgements in the store, and prints their number from time to time."""

    def __init__(self, context: StageContext, settings: CollectSettings, database: Database, campaign: str):
        self.context, self.settings, self.database, self.campaign = context, settings, database, campaign
        self.url = ""
        self._said: tuple[float, Count | None] = (0.0, None)

    def count(self) -> Count:
        """Returns what the store holds."""
        from tiltyard.feedback.store.campaigns import counted

        return counted(self.database, self.campaign)

    def enough(self) -> bool:
        """True when the wanted share of judgements is there."""
        found = self.count()
        return found.given >= found.wanted * self.settings.enough

    def state(self) -> str:
        """Returns how many judgements of how many are there."""
        found = self.count()
        needed = "" if self.settings.enough == 1 else f" (goes on at {self.settings.enough:.0%})"
        people = "1 annotator" if found.annotators == 1 else f"{found.annotators} annotators"
        return f"{found.given:,} of {found.wanted:,} judgements{needed}, {people} so far"

    def say(self, *, at_once: bool = False) -> None:
        """Prints what is waited for, if anything changed and not too often."""
        when, old = self._said
        found = self.count()
        if not at_once and (found == old or time.monotonic() - when < QUIET):
            return
        self._said = (time.monotonic(), found)
        line = f"{self.state()}; label at {self.url}/in"
        self.context.console.print(f"  waits for labels: {line}", markup=False, highlight=False, soft_wrap=True)

    def wait(self) -> None:
        """Returns when enough judgements are there."""
        self.say(at_once=True)
        while not self.enough():
            stop()
            time.sleep(SECONDS)
            self.say()


@contextmanager
def served(settings: CollectSettings, database: Database) -> Iterator[str]:
    """Serves the labelling page, unless something else does; yields the address that people open."""
    if not settings.serve:
        yield settings.url.rstrip("/")
        return
    from tiltyard.feedback.collect.app import PACKAGE, collect_app
    from tiltyard.feedback.collect.desk import Settings
    from tiltyard.feedback.web.limits import Limits
    from tiltyard.feedback.web.server import address, bound, in_background
    from tiltyard.feedback.web.site import Site

    listening = bound(settings.host, settings.port)
    url = address(settings.host, listening.getsockname()[1], settings.url)
    # programs on this machine need no limit that protects from strangers
    limits = Limits(session=1e4, burst=1e4, address=1e4) if settings.simulated and not settings.labellers else None
    given = (settings.gold_every, settings.lease, settings.strength, settings.adjudicate, settings.seed)
    desk = Settings(*given, settings.pairing, settings.stop_flagged)
    with in_background(collect_app(Site("collect", database, url, (PACKAGE,), limits), desk), listening):
        yield url.rstrip("/")


def _invite(context: StageContext, settings: CollectSettings, database: Database, url: str) -> None:
    """Prints the personal links of people who are new to the store, once."""
    from tiltyard.feedback.store.people import add_annotator, annotators
    from tiltyard.feedback.web.sign_in import link

    known = {one.name for one in annotators(database)}
    new = [name for name in settings.labellers if name not in known]
    lines = [f"{name}  {link(url, add_annotator(database, name)[1])}" for name in new]
    if lines:
        lines.append("each link lets its owner in; it is stored as a hash and cannot be shown again")
    old = [name for name in settings.labellers if name in known]
    again = f"tiltyard collect people STORE NAME --new-link --url {url}"
    if old:
        lines.append(f"{', '.join(old)}: their links are known to them; {again} makes another")
    if not (settings.labellers or settings.simulated or known):
        lines.append(f"no one can sign in yet: tiltyard collect people STORE NAME --url {url}")
    for line in lines:
        context.console.print(f"  people: {line}", markup=False, highlight=False, soft_wrap=True)


def _simulated(
    settings: CollectSettings, database: Database, url: str, prompts: Sequence[Prompt], sessions: ExitStack
) -> list[SimulatedLabeller]:
    """Signs the simulated annotators in, as people do."""
    from tiltyard.feedback.collect.client import Session
    from tiltyard.feedback.collect.simulated import SimulatedLabeller, facts_of
    from tiltyard.feedback.store.people import add_annotator, annotators, new_link

    known = {one.name: one.role for one in annotators(database)}
    by_name = {one.name: one for one in ANNOTATORS}
    facts = facts_of(prompts)
    found = []
    for name in simulated_names(settings.simulated):
        if known.get(name, "simulated") != "simulated":
            raise ConfigError(
                "a simulated annotator's name belongs to a person of this store",
                where=f"collect.simulated: {name}",
                got=f"role {known[name]}",
                fix="give the run a store of its own",
            )
        token = new_link(database, name) if name in known else add_annotator(database, name, "simulated")[1]
        session = sessions.enter_context(Session(url, token))
        found.append(SimulatedLabeller(by_name[name], session, facts, settings.seed))
    return found


def _judge(labellers: Sequence[SimulatedLabeller], watch: Watch) -> None:
    """Has the simulated annotators judge until enough is there or none has a task left."""
    from tiltyard.feedback.collect.simulated import take_turns

    if not labellers:
        return
    watch.say(at_once=True)
    looked = time.monotonic()
    for _ in take_turns(labellers):
        stop()
        if watch.settings.enough < 1 and watch.enough():
            return
        if time.monotonic() - looked > SECONDS:
            looked = time.monotonic()
            watch.say()
