"""A leaderboard: ratings with intervals, what they stand on, and which models cannot be compared.

Every model that is named stays on the board, with its coverage, whether it can be rated or not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from tiltyard.errors import DataError, nearest
from tiltyard.numerals import plural
from tiltyard.stats.ratings.battles import BOTH_BAD_CHOICES, Battles, BothBad
from tiltyard.stats.ratings.bradley_terry import Fit, bradley_terry
from tiltyard.stats.ratings.elo import LEAST_ORDERS, Elo, elo
from tiltyard.stats.ratings.plackett_luce import LARGEST_TIE, plackett_luce
from tiltyard.stats.ratings.tables import Coverage, by_source, coverage, on_elo_scale, win_matrix
from tiltyard.stats.ratings.tie_models import TIE_MODELS, Ties
from tiltyard.stats.ratings.uncertainty import IntervalMethod, Uncertain, intervals, parameter_covariance

CENTRE = 1000.0  # points of the anchor, or of the mean of the rated models
ELO_MOST = 200_000  # battles up to which orders of Elo are computed


@dataclass(frozen=True)
class BoardSettings:
    """The choices behind a board; the fields are those of `bradley_terry` and `intervals`.

    `elo_orders`: random orders of Elo; 0: no Elo.
    """

    ties: Ties = "half_win"
    both_bad: BothBad = "apart"
    method: IntervalMethod = "sandwich"
    anchor: str | None = None
    length_control: bool = False
    level: float = 0.95
    rounds: int = 1000
    seed: int = 0
    elo_orders: int = LEAST_ORDERS

    def check(self) -> None:
        """Checks the choices.

        Raises:
            DataError: an unknown one.
        """
        for name, value, known in (
            ("ties", self.ties, TIE_MODELS),
            ("both_bad", self.both_bad, BOTH_BAD_CHOICES),
            ("intervals", self.method, ("sandwich", "bootstrap")),
        ):
            if value not in known:
                raise DataError(f"unknown choice for {name}", where=name, got=value, fix=nearest(str(value), known))


@dataclass(frozen=True)
class Standing:
    """One model's line: rating and interval in points, bounds of the rank (1 is best), coverage.

    `rating` is infinite or nan where the battles do not bound it (`status`: rated, above, below, apart). `elo`: mean
    over orders, `elo_sd` their deviation. `plackett_luce`: points, from rankings of three and more.
    """

    model: str
    status: str
    rating: float
    low: float
    high: float
    rank_low: int
    rank_high: int
    battles: int
    opponents: int
    prompts: int
    wins: float
    ties: float
    both_bad: float
    by_source: dict[str, int]
    elo: float = math.nan
    elo_sd: float = math.nan
    plackett_luce: float = math.nan
    plackett_luce_half: float = math.nan


@dataclass(frozen=True)
class Board:
    """A leaderboard, the best model first.

    Args:
        wins: {model: {opponent: share of wins, ties half}}, pairs that met alone. met: {model: {opponent: weight}}.
        sources: {source: {model: points}}, or why its battles alone rate no model.
        effective: number of even battles that tell as much as the weighted ones, (sum w)^2 / sum w^2.
        length: (coefficient in logits, its standard error) of length control.
        notes: sentences about what cannot be compared, or was not computed.
    """

    settings: BoardSettings
    standings: tuple[Standing, ...]
    battles: int
    prompts: int
    weighted: bool
    effective: float
    tie_parameter: float | None
    length: tuple[float, float] | None
    wins: dict[str, dict[str, float]]
    met: dict[str, dict[str, float]]
    sources: dict[str, dict[str, float] | str]
    notes: tuple[str, ...] = field(default_factory=tuple)

    def to_dict(self) -> dict[str, Any]:
        """Returns the board as JSON-ready values."""
        return asdict(self)


def board_of(
    battles: Battles,
    settings: BoardSettings | None = None,
    rankings: Sequence[tuple[str, Sequence[Sequence[str]]]] = (),
) -> Board:
    """Computes a leaderboard.

    Args:
        rankings: (prompt, models from best to worst) of three and more, which Plackett-Luce rates.

    Raises:
        DataError: an unknown choice or anchor, or no lengths for length control. Battles that rate no model are no
            error: the board then shows their coverage and a note.
    """
    settings = BoardSettings() if settings is None else settings
    settings.check()
    if settings.anchor is not None and settings.anchor not in battles.models:
        raise DataError(
            "unknown anchor", where="anchor", got=settings.anchor, fix=nearest(settings.anchor, battles.models)
        )
    if settings.length_control and battles.length_N2 is None:
        raise DataError("length control needs the texts of both responses of every comparison", where="length_control")
    notes: list[str] = []
    fit, found = _rated(battles, settings, notes)
    orders = _elo(battles, settings, notes)
    ranked = _plackett_luce(rankings, settings, notes)
    weight_N = battles.weight_N
    matrix = win_matrix(battles, both_bad=settings.both_bad)
    met = _table(battles.models, matrix.battles_MM, matrix.battles_MM)
    wins = _table(battles.models, matrix.rate_MM, matrix.battles_MM)
    lines = [
        _standing(battles, place, covered, fit, found, orders, ranked, wins)
        for place, covered in enumerate(coverage(battles, both_bad=settings.both_bad))
    ]
    return Board(
        settings,
        tuple(sorted(lines, key=_best_first)),
        len(battles),
        len(set(battles.prompt_N.tolist())),
        bool(np.ptp(weight_N) > 0),
        float(weight_N.sum() ** 2 / (weight_N**2).sum()),
        None if fit is None else fit.tie_parameter,
        _length(fit),
        wins,
        met,
        _sources(battles, settings),
        tuple(notes),
    )


def _rated(battles: Battles, settings: BoardSettings, notes: list[str]) -> tuple[Fit | None, Uncertain | None]:
    """Returns ratings and intervals; None, with a note, where the battles allow none."""
    try:
        fit = bradley_terry(
            battles, ties=settings.ties, both_bad=settings.both_bad, length_control=settings.length_control
        )
    except DataError as error:
        if settings.length_control:
            raise
        notes.append(f"no ratings: {error.what}{f' ({error.fix})' if error.fix else ''}")
        return None, None
    notes += fit.connectivity.notes()
    try:
        return fit, intervals(
            fit,
            method=settings.method,
            anchor=settings.anchor,
            level=settings.level,
            rounds=settings.rounds,
            seed=settings.seed,
        )
    except DataError as error:
        notes.append(f"no intervals: {error.what}")
        return fit, None


def _elo(battles: Battles, settings: BoardSettings, notes: list[str]) -> Elo | None:
    if not settings.elo_orders:
        return None
    if len(battles) > ELO_MOST:
        notes.append(f"no Elo: more than {ELO_MOST:,} battles; Bradley-Terry ratings are on its scale")
        return None
    try:
        return elo(battles, orders=settings.elo_orders, seed=settings.seed, both_bad=settings.both_bad)
    except DataError as error:
        notes.append(f"no Elo: {error.what}")
        return None


def _plackett_luce(
    rankings: Sequence[tuple[str, Sequence[Sequence[str]]]], settings: BoardSettings, notes: list[str]
) -> dict[str, tuple[float, float]]:
    """Returns {model: (points, half width of the interval)} from rankings, ties averaged over their orders."""
    kept = [(p, r) for p, r in rankings if max(map(len, r)) <= LARGEST_TIE]
    if len(kept) < len(rankings):
        notes.append(
            f"no Plackett-Luce of {plural(len(rankings) - len(kept), 'ranking')} with more than {LARGEST_TIE} equals"
        )
    if not kept:
        return {}
    try:
        fit = plackett_luce([r for _, r in kept], prompt=[p for p, _ in kept], ties="every_order")
    except DataError as error:
        notes.append(f"no Plackett-Luce ratings: {error.what}")
        return {}
    from tiltyard.stats.intervals import normal_quantile

    sd_M = np.sqrt(np.diag(fit.covariance_MM).clip(0))
    half_M = normal_quantile(settings.level) * (on_elo_scale(sd_M, at=0.0))
    points_M = on_elo_scale(fit.rating_M, at=CENTRE)
    return {name: (float(points_M[i]), float(half_M[i])) for i, name in enumerate(fit.models)}


def _standing(
    battles: Battles,
    place: int,
    covered: Coverage,
    fit: Fit | None,
    found: Uncertain | None,
    orders: Elo | None,
    ranked: dict[str, tuple[float, float]],
    wins: dict[str, dict[str, float]],
) -> Standing:
    name, m = battles.models[place], len(battles.models)
    rating = low = high = math.nan
    rank_low, rank_high = 1, m
    if found is not None:
        rating, low, high = (float(on_elo_scale(x[place], at=CENTRE)) for x in found[:3])
        rank_low, rank_high = int(found.rank_low_M[place]), int(found.rank_high_M[place])
    elif fit is not None:
        rating = float(on_elo_scale(fit.rating_M[place], at=CENTRE))
    points, half = ranked.get(name, (math.nan, math.nan))
    played = covered.battles > 0
    rates = list(wins.get(name, {}).values())
    return Standing(
        name,
        "apart" if fit is None else fit.connectivity.status[place],
        rating,
        low,
        high,
        rank_low,
        rank_high,
        covered.battles,
        covered.opponents,
        covered.prompts,
        float(np.mean(rates)) if rates else math.nan,
        covered.ties if played else math.nan,
        covered.both_bad if played else math.nan,
        covered.by_source,
        float(orders.mean_M[place]) if orders is not None and played else math.nan,
        float(orders.sd_M[place]) if orders is not None and played else math.nan,
        points,
        half,
    )


def _best_first(line: Standing) -> tuple[int, float, float, str]:
    """Orders models that were never beaten first, those without any rating last, and among these by wins."""
    group = 3 if math.isnan(line.rating) else 0 if line.rating == math.inf else 2 if line.rating == -math.inf else 1
    finite = line.rating if math.isfinite(line.rating) else 0.0
    return group, -finite, -(0.0 if math.isnan(line.wins) else line.wins), line.model


def _length(fit: Fit | None) -> tuple[float, float] | None:
    if fit is None or fit.length_coefficient is None:
        return None
    k = fit.design.n_models
    error = math.nan if fit.rows.n_clusters < 2 else math.sqrt(float(parameter_covariance(fit)[k, k]))
    return fit.length_coefficient, error


def _table(models: Sequence[str], value_MM: Any, battles_MM: Any) -> dict[str, dict[str, float]]:
    return {
        name: {other: float(value_MM[i, j]) for j, other in enumerate(models) if battles_MM[i, j] > 0}
        for i, name in enumerate(models)
    }


def _sources(battles: Battles, settings: BoardSettings) -> dict[str, dict[str, float] | str]:
    """Returns the points of each source's own fit, centred at its own rated models; {} where there is one source."""
    if len(battles.sources) < 2:
        return {}
    found: dict[str, dict[str, float] | str] = {}
    for source, fit in by_source(battles, ties=settings.ties, both_bad=settings.both_bad).items():
        if isinstance(fit, DataError):
            found[source] = fit.what
            continue
        points_M = on_elo_scale(fit.rating_M, at=CENTRE)
        here = battles.where(battles.source_N == battles.sources.index(source))
        played = {int(m) for m in (*here.a_N, *here.b_N)}
        found[source] = {name: float(points_M[i]) for i, name in enumerate(fit.models) if i in played}
    return found
