"""A leaderboard as tables of the terminal: ratings, other ratings, the win matrix, sources, corrected win rates."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tiltyard.numerals import plural
from tiltyard.report.text import plain
from tiltyard.stats.intervals import Estimate
from tiltyard.stats.judged_rates import CorrectedWins, estimates_of
from tiltyard.stats.ratings.ability import AbilityFit
from tiltyard.stats.ratings.board import Board, Standing
from tiltyard.stats.ratings.tables import on_elo_scale

MATRIX_MOST = 12  # models up to which the win matrix is printed
_NAME = 10  # least width of a name's column
TIES = {
    "half_win": "a tie is half a win for each",
    "davidson": "ties by Davidson's model",
    "rao_kupper": "ties by Rao and Kupper's model",
}
BOTH_BAD = {
    "apart": '"both bad" is not part of the ratings',
    "tie": '"both bad" counts as a tie',
    "left out": '"both bad" is left out',
}


def print_board(board: Board, console: Console, *, left_out: Mapping[str, int] | None = None) -> None:
    """Prints a board: ratings with intervals and coverage, other ratings, the win matrix, sources, notes."""
    titled: list[tuple[str, Table | None]] = [("", _main(board, console)), ("", _others(board, console))]
    titled += [("Share of wins of the row over the column (ties half), and battles:", _matrix(board, console))]
    titled += [("Ratings by source, each around its own mean, and battles:", _sources(board, console))]
    for title, table in titled:
        if table is not None:
            if title:
                console.print(title, highlight=False)
            console.print(table)
    for line in board_lines(board, left_out or {}):
        console.print(plain(line), markup=False, highlight=False, soft_wrap=True)


def board_lines(board: Board, left_out: Mapping[str, int] = {}) -> list[str]:
    """Returns the sentences below a board: how it was computed, and what it cannot show."""
    s = board.settings
    rank = f"ranks: models whose difference is significant at {s.level:.0%} after Bonferroni's correction"
    anchor = f"{s.anchor} is 1000" if s.anchor else "the mean of the rated models is 1000"
    lines = [
        f"{plural(board.battles, 'battle')} on {plural(board.prompts, 'prompt')}; Bradley-Terry, {TIES[s.ties]}"
        + (f" ({_parameter(board)})" if board.tie_parameter is not None else "")
        + f"; {BOTH_BAD[s.both_bad]}; {anchor}, 173.7 points are one logit",
        f"intervals: {s.level:.0%}, {s.method}, whole prompts as clusters; {rank}",
    ]
    if board.weighted:
        lines.append(
            f"weighted by 1 / the probability of each pair: as much as "
            f"{plural(round(board.effective), 'battle')} of even pairs"
        )
    if board.length is not None:
        lines.append(
            f"at equal length: a difference in length adds {board.length[0]:+.2f} +- {board.length[1]:.2f} logits "
            "(tanh of it in standard deviations)"
        )
    if any(not math.isnan(line.elo) for line in board.standings):
        lines.append(f"wins: mean over opponents; Elo: over {s.elo_orders} orders, whose deviation is no interval")
    if any(not math.isnan(line.plackett_luce) for line in board.standings):
        lines.append(f"Plackett-Luce: from rankings of three and more, with {s.level:.0%} intervals")
    lines += [f"note: {note}" for note in board.notes]
    lines += [f"left out: {count:,} {reason}" for reason, count in left_out.items()]
    return lines


def print_abilities(fit: AbilityFit, console: Console) -> None:
    """Prints the ability of each annotator and the ratings of an annotator of mean ability."""
    table = _columns(_table(console), "annotator", "battles", "ability", "interval")
    for name, one in sorted(fit.ability.items(), key=lambda item: -item[1].value):
        table.add_row(Text(plain(str(name))), f"{one.n:,}", f"{one.value:.2f}", f"[{one.low:.2f}, {one.high:.2f}]")
    console.print("Abilities of annotators, the mean is 1 (0: guesses; below 0: prefers the worse):", highlight=False)
    console.print(table)
    ends = [on_elo_scale(x) for x in (fit.rating_M, fit.low_M, fit.high_M)]
    rated = sorted(zip(fit.models, *ends, strict=True), key=lambda row: -row[1] if row[1] == row[1] else math.inf)
    lines = [f"{plain(name)} {points(value)} [{points(low)}, {points(high)}]" for name, value, low, high in rated]
    console.print(f"Ratings with abilities: {', '.join(lines)}", markup=False, highlight=False, soft_wrap=True)


def _parameter(board: Board) -> str:
    name = "nu" if board.settings.ties == "davidson" else "kappa"
    return f"{name} = {board.tie_parameter:.2f}"


def _table(console: Console) -> Table:
    utf = (console.encoding or "").lower().startswith("utf")
    style = box.SIMPLE_HEAD if utf else box.ASCII2
    return Table(box=style, pad_edge=False, header_style="bold", padding=(0, 1))


def _columns(table: Table, first: str, *others: str) -> Table:
    table.add_column(Text(first), style="cyan", overflow="fold", min_width=_NAME)
    for name in others:
        table.add_column(Text(plain(name)), justify="right", no_wrap=True)
    return table


def _main(board: Board, console: Console) -> Table:
    table = _table(console)
    table.add_column(Text("rank"), justify="right", no_wrap=True)
    _columns(table, "model", "rating", f"{board.settings.level:.0%} interval", "battles", "against")
    for line in board.standings:
        table.add_row(
            _rank(line),
            Text(plain(line.model)),
            points(line.rating),
            interval(line),
            f"{line.battles:,}",
            f"{line.opponents:,}",
        )
    return table


def _rank(line: Standing) -> str:
    if line.status != "rated" or math.isnan(line.low):
        return "?"
    return str(line.rank_low) if line.rank_low == line.rank_high else f"{line.rank_low}-{line.rank_high}"


def points(value: float) -> str:
    """Returns a rating in whole points; "none" where it is not known."""
    if math.isnan(value):
        return "none"
    return ("+inf" if value > 0 else "-inf") if math.isinf(value) else f"{value:.0f}"


def interval(line: Standing) -> str:
    """Returns the interval of a rating as `[low, high]`; "" where there is none."""
    return "" if math.isnan(line.low) else f"[{points(line.low)}, {points(line.high)}]"


def percent(value: float) -> str:
    """Returns a share in per cent; "" where it is not known."""
    return "" if math.isnan(value) else f"{value:.0%}"


def _others(board: Board, console: Console) -> Table:
    elo = any(not math.isnan(line.elo) for line in board.standings)
    ranked = any(not math.isnan(line.plackett_luce) for line in board.standings)
    names = ["wins", "ties", "both bad", *(["Elo, mean +- sd"] * elo), *(["Plackett-Luce"] * ranked)]
    table = _columns(_table(console), "model", *names)
    for line in board.standings:
        cells = [percent(x) for x in (line.wins, line.ties, line.both_bad)]
        if elo:
            cells.append("" if math.isnan(line.elo) else f"{line.elo:.0f} +- {line.elo_sd:.0f}")
        if ranked:
            half = "" if math.isnan(line.plackett_luce_half) else f" +- {line.plackett_luce_half:.0f}"
            cells.append("" if math.isnan(line.plackett_luce) else f"{points(line.plackett_luce)}{half}")
        table.add_row(Text(plain(line.model)), *cells)
    return table


def _matrix(board: Board, console: Console) -> Table | None:
    names = [line.model for line in board.standings if line.battles]
    if not 2 < len(names) <= MATRIX_MOST:
        return None
    table = _columns(_table(console), "", *(f"{k + 1}" for k in range(len(names))))
    for k, name in enumerate(names):
        cells = []
        for other in names:
            n = board.met[name].get(other, 0.0)
            cells.append(f"{board.wins[name][other]:.0%} {n:,.0f}" if n else "" if name == other else "-")
        table.add_row(Text(f"{k + 1} {plain(name)}"), *cells)
    return table


def _sources(board: Board, console: Console) -> Table | None:
    if not board.sources:
        return None
    names = list(board.sources)
    table = _columns(_table(console), "model", *(n or "-" for n in names))
    for line in board.standings:
        cells = []
        for name in names:
            rated = board.sources[name]
            value = math.nan if isinstance(rated, str) else rated.get(line.model, math.nan)
            battles = line.by_source.get(name, 0)
            cells.append(f"{points(value)} ({battles:,})" if battles else "")
        table.add_row(Text(plain(line.model)), *cells)
    return table


def print_corrected(rows: Sequence[CorrectedWins], console: Console) -> None:
    """Prints each judge's win rates beside those of people and the corrected ones; nothing without both."""
    if not rows:
        return
    against = rows[0].opponent or "all others"
    console.print(plain(f"Win rates against {against}, by a judge, by people, and the judge's corrected by people:"))
    table = _columns(_table(console), "judge: model", "judge", "people", "corrected", "people's items")
    for row in rows:
        found = estimates_of(row)
        cells = [share(found[key]) for key in ("judge", "people", "corrected")] if found else ["", "", ""]
        name = f"{row.judge.removeprefix('judge:')}: {row.model}"
        table.add_row(Text(plain(name)), *cells, f"{row.labelled:,} of {row.items:,}")
    console.print(table)
    for reason in dict.fromkeys(row.reason for row in rows if row.reason):
        console.print(plain(f"note: {reason}"), markup=False, highlight=False, soft_wrap=True)


def share(estimate: Estimate | None) -> str:
    """Returns a share and its interval in per cent; "" where it is not known."""
    if estimate is None or math.isnan(estimate.value):
        return ""
    if math.isnan(estimate.low):
        return f"{estimate.value:.0%}"
    return f"{estimate.value:.0%} [{100 * estimate.low:.0f}, {100 * estimate.high:.0f}]"
