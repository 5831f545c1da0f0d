"""The arena's leaderboard: computed from the store, and kept for some seconds."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field

from tiltyard.errors import DataError
from tiltyard.feedback.store.database import Database
from tiltyard.feedback.store.export import groups, policies
from tiltyard.stats.judged import NAMED, battles_of_votes, votes_of
from tiltyard.stats.ratings.board import Board, BoardSettings, Standing, board_of

SECONDS = 10.0


@dataclass(frozen=True)
class Ranking:
    """A board, or the models alone where nothing was voted on yet; `votes` on them, and by how many visitors.

    `named`: votes that do not count, since an answer introduced its model by a name.
    """

    board: Board | None
    models: tuple[str, ...]
    votes: int
    visitors: int
    named: int = 0


@dataclass
class Leaderboard:
    """Computes the board of all pairs in a store that people judged.

    Every policy ever registered is on it; none can be taken off.
    """

    database: Database
    settings: BoardSettings = field(default_factory=lambda: BoardSettings(elo_orders=0))
    _found: Ranking | None = None
    _at: float = 0.0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def ranking(self) -> Ranking:
        """Returns the board, at most `SECONDS` old."""
        with self._lock:
            if self._found is None or time.monotonic() - self._at > SECONDS:
                self._found, self._at = self._computed(), time.monotonic()
            return self._found

    def forget(self) -> None:
        """Has the next board computed anew."""
        with self._lock:
            self._found = None

    def _computed(self) -> Ranking:
        names = policies(self.database)
        votes = votes_of(groups(self.database, kinds=("pair",)))
        found, named = [vote for vote in votes.votes if not vote.judge], votes.left_out.get(NAMED, 0)
        visitors = len({vote.annotator for vote in found})
        if not found:
            return Ranking(None, tuple(names), 0, 0, named)
        try:
            board = board_of(battles_of_votes(found, models=names), self.settings)
        except DataError:
            return Ranking(None, tuple(names), len(found), visitors, named)
        return Ranking(board, tuple(names), len(found), visitors, named)


@dataclass(frozen=True)
class Bar:
    """A model's line in the picture: places from 0 to 100 across; None where there is no number."""

    line: Standing
    rating: float | None
    low: float | None
    high: float | None


def bars(board: Board) -> tuple[list[Bar], list[tuple[float, int]]]:
    """Returns the lines of the picture, and the marks of its scale: (place, points)."""
    import math

    known = [x for line in board.standings for x in (line.rating, line.low, line.high) if math.isfinite(x)]
    if not known:
        return [Bar(line, None, None, None) for line in board.standings], []
    low, high = min(known), max(known)
    width = max(high - low, 50.0)
    start = (low + high - width) / 2 - 0.05 * width
    scale = 100 / (1.1 * width)

    def place(value: float) -> float | None:
        return round((value - start) * scale, 2) if math.isfinite(value) else None

    step = next(s for s in (10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 10**9) if width / s <= 6)
    first = math.ceil(start / step) * step
    marks = [first + k * step for k in range(8) if (first + k * step - start) * scale <= 100]
    lines = []
    for line in board.standings:
        ends = (place(line.low), place(line.high)) if math.isfinite(line.rating) else (None, None)
        lines.append(
            Bar(line, place(line.rating), 0.0 if ends[0] is None else ends[0], 100.0 if ends[1] is None else ends[1])
        )
    return lines, [(place(mark) or 0.0, round(mark)) for mark in marks]
