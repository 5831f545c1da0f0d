"""An annotator's desk: the next task, verdicts, skipping, undoing, and the guidelines that come first.

The HTML pages (`pages`) and the JSON door (`door`) both stand on it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from tiltyard.errors import ConfigError, DataError, nearest
from tiltyard.feedback.store import judgements as store
from tiltyard.feedback.store.active import ActiveOrder
from tiltyard.feedback.store.assignment import Assignment, next_task
from tiltyard.feedback.store.database import Database
from tiltyard.feedback.store.people import accept_guideline, accepted_guideline, guideline, guideline_state
from tiltyard.feedback.store.progress import Progress, progress
from tiltyard.feedback.store.review import Review, review

Pairing = Literal["random", "active"]
PAIRINGS: tuple[Pairing, ...] = ("random", "active")
STOP_FLAGGED = 2  # people: one can be mistaken, or mean harm


@dataclass(frozen=True)
class Settings:
    """Settings of the assignment and of the page.

    Args:
        gold_every: after this number of real tasks a gold or attention item comes; 0: none.
        lease_minutes: an annotator who does not answer for so long gives the task back.
        strength: pairs may be given a strength.
        adjudicate: two different verdicts on a task make one for a third person.
        seed: of the order of the answers on the page, and of the choice of gold items.
        pairing: which pair comes next: `random`, in the order that was drawn when it was added, or `active`, drawn by
            what a verdict is expected to tell about the ratings (`store.active`).
        stop_flagged: people whose flags stop a prompt: it is given to no one any more; 0: it never stops.

    Raises:
        ConfigError: an unknown pairing.
    """

    gold_every: int = 10
    lease_minutes: float = 20.0
    strength: bool = True
    adjudicate: bool = True
    seed: int = 0
    pairing: Pairing = "random"
    stop_flagged: int = STOP_FLAGGED

    def __post_init__(self) -> None:
        if self.pairing not in PAIRINGS:
            fix = nearest(str(self.pairing), PAIRINGS)
            raise ConfigError("unknown pairing", where="pairing", got=self.pairing, fix=fix)


class GuidelinesFirst(DataError):
    """The annotator has not accepted the newest guidelines."""


class Desk:
    """The work of annotators on one store with one set of settings."""

    def __init__(self, database: Database, settings: Settings):
        self.database, self.settings = database, settings
        self._active = ActiveOrder() if settings.pairing == "active" else None

    def guidelines(self, annotator: int) -> tuple[int, str, int]:
        """Returns (newest version, its text, the newest version that the annotator has accepted or 0).

        Raises:
            DataError: there are none.
        """
        newest = guideline(self.database)
        if newest is None:
            raise DataError("there are no guidelines yet", where=self.database.where, fix="tiltyard collect guidelines")
        return *newest, accepted_guideline(self.database, annotator)

    def accept(self, annotator: int, version: int) -> None:
        """Notes that the annotator accepts a version of the guidelines."""
        accept_guideline(self.database, annotator, version)

    def next(self, annotator: int) -> Assignment | None:
        """Returns the annotator's task; None where there is none left.

        Raises:
            GuidelinesFirst: the newest guidelines are not accepted. DataError: there are none.
        """
        self._read(annotator)
        settings = self.settings
        return next_task(
            self.database,
            annotator,
            gold_every=settings.gold_every,
            seed=settings.seed,
            lease_seconds=60 * settings.lease_minutes,
            active=self._active,
        )

    def judge(
        self, annotator: int, exposure: int, verdict: Any, *, key: str, seconds: float | None, comment: str
    ) -> store.Stored:
        """Stores a verdict; `seconds`, None where the page has no script, are at most those since the task was shown.

        Raises:
            DataError: what the store refuses, or guidelines that are not accepted.
        """
        self._read(annotator)
        return store.judge(
            self.database,
            annotator,
            exposure,
            verdict,
            key=key,
            seconds=seconds,
            since_shown=True,
            comment=comment,
            adjudicate=self.settings.adjudicate,
        )

    def undo(self, annotator: int) -> bool:
        """Withdraws the annotator's last verdict; False if there is none to withdraw."""
        return store.undo(self.database, annotator) is not None

    def skip(self, annotator: int, exposure: int, reason: str) -> None:
        """Gives a task to another annotator."""
        store.skip(self.database, annotator, exposure, reason)

    def flag(self, annotator: int, exposure: int, reason: str) -> bool:
        """Marks the prompt of a task as one that should not be judged; True if it is given to no one any more."""
        return store.flag(self.database, annotator, exposure, reason, stop_at=self.settings.stop_flagged)

    def review(self, annotator: int, judgement: int) -> Review | None:
        """Returns a judged training item of the annotator."""
        return review(self.database, annotator, judgement)

    def progress(self, annotator: int) -> Progress:
        """Returns how much the annotator has judged."""
        return progress(self.database, annotator)

    def _read(self, annotator: int) -> None:
        newest, accepted = guideline_state(self.database, annotator)
        if not newest:
            raise DataError("there are no guidelines yet", where=self.database.where, fix="tiltyard collect guidelines")
        if accepted < newest:
            raise GuidelinesFirst(
                "the guidelines are not accepted yet", where="guidelines", fix="read and accept them first"
            )
