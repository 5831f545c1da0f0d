"""The verbs `rate`, `agreement` and `export`: what people's and judges' verdicts amount to."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tiltyard.cli.arguments import LARGEST, Json
from tiltyard.cli.output import console_for, emit
from tiltyard.errors import ConfigError
from tiltyard.numerals import plural

if TYPE_CHECKING:
    from tiltyard.stats.judged import Votes
    from tiltyard.stats.ratings.ability import AbilityFit
    from tiltyard.stats.ratings.board import BoardSettings
    from tiltyard.types import Group

Sources = Annotated[
    list[str], typer.Argument(metavar="SOURCE...", help="Feedback stores (a file or URL), or files of judgements.")
]
Judges = Annotated[
    list[str] | None, typer.Option("--judge", metavar="NAME", help="An annotator that is an AI judge; may be repeated.")
]
Split = Annotated[str, typer.Option(help="Split of a folder or hub data set; else train, or the only one.")]
BadRows = Annotated[str, typer.Option("--bad-rows", help="error, or drop: leave rows out that cannot be used.")]
Level = Annotated[float, typer.Option(min=0.5, max=0.999, help="Of the intervals.")]
Rounds = Annotated[int, typer.Option(min=1, max=1_000_000, help="Draws of the bootstrap.")]
Seed = Annotated[int, typer.Option(min=0, max=LARGEST, help="Of all random draws.")]


def rate(
    source: Sources,
    *,
    ties: Annotated[str, typer.Option(help="half_win, davidson or rao_kupper.")] = "half_win",
    both_bad: Annotated[str, typer.Option(help='apart, tie or "left out".')] = "apart",
    intervals: Annotated[str, typer.Option(help="sandwich or bootstrap.")] = "sandwich",
    anchor: Annotated[str, typer.Option(help="The model that is 1000; win rates are against it.")] = "",
    equal_length: Annotated[bool, typer.Option("--equal-length", help="Ratings at equal length of answers.")] = False,
    by: Annotated[str, typer.Option(help="people, judges or all: whose verdicts make the ratings.")] = "all",
    reliability: Annotated[
        bool, typer.Option("--reliability", help="Weigh annotators by how far the others confirm them.")
    ] = False,
    abilities: Annotated[
        bool, typer.Option("--abilities", help="Ratings together with the ability of each annotator.")
    ] = False,
    hard: Annotated[
        bool, typer.Option("--hard", help="A soft label counts for the side it prefers, not as its probability.")
    ] = False,
    keep_named: Annotated[
        bool, typer.Option("--keep-named", help="Keep votes on answers that name their own model: they were not blind.")
    ] = False,
    level: Level = 0.95,
    rounds: Rounds = 1000,
    seed: Seed = 0,
    judge: Judges = None,
    plot: Annotated[Path | None, typer.Option(help="Write a picture of the board (PNG).")] = None,
    rewards: Annotated[
        Path | None, typer.Option(help="Write each prompt's responses with rewards from their votes (JSONL).")
    ] = None,
    prior_sd: Annotated[float, typer.Option(min=0.01, help="Of the rewards' normal prior, in logits.")] = 1.0,
    split: Split = "",
    bad_rows: BadRows = "error",
    json_output: Json = False,
) -> None:
    """Rate models from people's and judges' verdicts: a leaderboard with intervals and coverage.

    `tiltyard rate labels.db --anchor sft --plot board.png`
    """
    from tiltyard.inputs.judgements import judged
    from tiltyard.stats.judged import rewarded, votes_of
    from tiltyard.stats.ratings.board import BoardSettings

    found = judged(source, split=split, bad_rows=_choice("--bad-rows", bad_rows, ("error", "drop")))  # type: ignore[arg-type]
    choices: dict[str, Any] = {"ties": ties, "both_bad": both_bad, "method": intervals}  # `check` refuses others
    choices |= {"anchor": anchor or None, "length_control": equal_length}
    settings = BoardSettings(**choices, level=level, rounds=rounds, seed=seed)
    who = _choice("--by", by, ("people", "judges", "all"))
    names = tuple(judge or ())
    every = votes_of(found.groups, names, hard=hard, keep_named=keep_named)
    own = [g for g in found.groups if who == "all" or _by(g, names) == who]
    kept = every if who == "all" else votes_of(own, names, hard=hard, keep_named=keep_named)
    report = _rate(every, kept, found.models, settings, reliability)
    if abilities:
        report["abilities"] = _abilities(kept, found.models, settings)
    if plot is not None:
        from tiltyard.report.board_plot import board_png

        board_png(plot, report["board"])
    if rewards is not None:
        report["rewards"] = _write_rewards(rewards, list(rewarded(found.groups, prior_sd=prior_sd)))
    _print_rate(report, found.notes, plot, rewards, json_output)


def _rate(
    every: Votes, kept: Votes, models: Sequence[str], settings: BoardSettings, reliability: bool
) -> dict[str, Any]:
    """Returns the board of the votes `kept`, the win rates corrected from all of them, and what was left out."""
    from tiltyard.stats.judged import battles_of_votes
    from tiltyard.stats.judged_rates import corrected_wins
    from tiltyard.stats.ratings.board import board_of

    settings.check()
    votes = kept.votes
    corrected = corrected_wins(
        every.votes,
        opponent=settings.anchor or "",
        both_bad=settings.both_bad,
        rounds=settings.rounds,
        seed=settings.seed,
        level=settings.level,
    )
    weights, quality = None, {}
    if reliability:
        from tiltyard.stats.reliability import reliabilities

        quality = reliabilities(votes, seed=settings.seed)
        weights = [quality[vote.annotator] for vote in votes]
    board = board_of(battles_of_votes(votes, models=models, weights=weights), settings, kept.rankings)
    return {"board": board, "corrected": corrected, "left_out": kept.left_out, "reliability": quality}


def _abilities(kept: Votes, models: Sequence[str], settings: BoardSettings) -> AbilityFit | str:
    """Returns the joint fit of ratings and abilities, or why there is none."""
    from tiltyard.errors import DataError
    from tiltyard.stats.judged import battles_of_votes
    from tiltyard.stats.ratings.ability import bradley_terry_with_abilities

    try:
        fought = battles_of_votes(kept.votes, models=models)
        names = [vote.annotator or "unnamed" for vote in kept.votes]
        return bradley_terry_with_abilities(fought, names, both_bad=settings.both_bad, level=settings.level)
    except DataError as error:
        return f"{error.what}: {error.got}"


def _by(group: Group, judges: tuple[str, ...]) -> str:
    from tiltyard.stats.judged import is_judge

    return "judges" if group.preference is not None and is_judge(group.preference, judges) else "people"


def _write_rewards(path: Path, groups: Sequence[Group]) -> dict[str, Any]:
    """Writes rows with `prompt`, `responses` and `scores`; those with too many responses for a row are left out."""
    from tiltyard.data.formats import MAX_RESPONSES
    from tiltyard.data.judged_rows import answer_of, asked_of

    kept = [group for group in groups if len(group.responses) <= MAX_RESPONSES]
    rows = []
    for group in kept:
        row = {"id": group.prompt.id, "prompt": asked_of(group.prompt)}
        row |= {"responses": [answer_of(r) for r in group.responses], "scores": list(group.scores or ())}
        rows.append(row | ({"meta": dict(group.prompt.meta)} if group.prompt.meta else {}))
    _write_lines(path, rows)
    return {"prompts": len(kept), "too_many_responses": len(groups) - len(kept), "file": str(path)}


def _print_rate(
    report: dict[str, Any], notes: tuple[str, ...], plot: Path | None, rewards: Path | None, json_output: bool
) -> None:
    board = report["board"]
    if json_output:
        corrected = [_corrected_row(row) for row in report["corrected"]]
        found = {"abilities": _ability_rows(report["abilities"])} if "abilities" in report else {}
        emit({**report, **found, "board": board.to_dict(), "corrected": corrected, "notes": list(notes)})
        return
    from tiltyard.report.board_tables import print_abilities, print_board, print_corrected
    from tiltyard.report.text import plain

    console = console_for(False)
    print_board(board, console, left_out=report["left_out"])
    print_corrected(report["corrected"], console)
    lines = [*notes]
    if isinstance(fit := report.get("abilities"), str):
        lines.append(f"no abilities: {fit}")
    elif fit is not None:
        print_abilities(fit, console)
    lines += [f"weight of {name}: {weight:.2f}" for name, weight in sorted(report["reliability"].items())]
    if plot is not None:
        lines.append(f"picture: {plot}")
    if rewards is not None:
        lines.append(f"rewards of {plural(report['rewards']['prompts'], 'prompt')}: {rewards}")
    for line in lines:
        console.print(plain(line), markup=False, highlight=False, soft_wrap=True)


def _ability_rows(fit: AbilityFit | str) -> dict[str, Any]:
    if isinstance(fit, str):
        return {"reason": fit}
    from tiltyard.stats.ratings.tables import on_elo_scale

    ends = [on_elo_scale(x) for x in (fit.rating_M, fit.low_M, fit.high_M)]
    ratings = {name: dict(zip(("rating", "low", "high"), map(float, row), strict=True))
               for name, *row in zip(fit.models, *ends, strict=True)}  # fmt: skip
    return {"annotators": {str(name): one._asdict() for name, one in fit.ability.items()}, "ratings": ratings}


def _corrected_row(row: Any) -> dict[str, Any]:
    from tiltyard.stats.judged_rates import estimates_of

    found = {key: estimate._asdict() for key, estimate in estimates_of(row).items()}
    names = {key: getattr(row, key) for key in ("judge", "model", "opponent", "items", "labelled", "reason")}
    weight = None if row.corrected is None else row.corrected.weight
    return {**names, "weight": weight, "rates": found}


def _choice(where: str, value: str, known: tuple[str, ...]) -> str:
    from tiltyard.errors import nearest

    if value not in known:
        raise ConfigError("unknown choice", where=where, got=value, fix=nearest(value, known))
    return value


def agreement(
    source: Sources,
    *,
    floor: Annotated[float, typer.Option(min=0.0, max=1.0, help="Competence below which an annotator is poor.")] = 0.3,
    show: Annotated[int, typer.Option(min=0, max=LARGEST, help="Disagreements to print.")] = 5,
    disagreements: Annotated[
        Path | None, typer.Option(help="Write all items with different labels (JSONL), the most disputed first.")
    ] = None,
    level: Level = 0.95,
    rounds: Rounds = 1000,
    seed: Seed = 0,
    judge: Judges = None,
    split: Split = "",
    bad_rows: BadRows = "error",
    json_output: Json = False,
) -> None:
    """Measure how far labels can be trusted: agreement, quality and habits of annotators, disputed items.

    `tiltyard agreement labels.db --disagreements disputed.jsonl`
    """
    from tiltyard.inputs.judgements import ALL_STAGES, judged
    from tiltyard.stats.label_quality import label_report

    rule = _choice("--bad-rows", bad_rows, ("error", "drop"))
    found = judged(source, split=split, bad_rows=rule, stages=ALL_STAGES)  # type: ignore[arg-type]
    report = label_report(found.groups, judges=tuple(judge or ()), floor=floor, rounds=rounds, seed=seed, level=level)
    if disagreements is not None:
        _write_lines(disagreements, [one._asdict() for one in report.disagreements])
    if json_output:
        emit({**report.to_dict(), "notes": [*report.notes, *found.notes]})
        return
    from tiltyard.report.agreement_tables import print_label_report
    from tiltyard.report.text import plain

    console = console_for(False)
    print_label_report(report, console, shown=show)
    for line in found.notes:
        console.print(plain(line), markup=False, highlight=False, soft_wrap=True)
    if disagreements is not None:
        console.print(f"disputed items: {disagreements}", markup=False, highlight=False, soft_wrap=True)


def _write_lines(path: Path, rows: Sequence[Any]) -> None:
    import json

    from tiltyard.files import atomic_write, jsonable

    with atomic_write(path) as file:
        for row in rows:
            file.write(json.dumps(jsonable(row), ensure_ascii=False, default=str) + "\n")


def export(
    source: Sources,
    *,
    out: Annotated[Path, typer.Option(help="The file to write: .jsonl, .json (a list) or .parquet.")],
    to: Annotated[
        str,
        typer.Option(
            help="rows, groups, trl, demonstrations, best, edits, hh, battles, ultrafeedback, argilla or label_studio."
        ),
    ] = "rows",
    by: Annotated[str, typer.Option(help="people, judges or all: whose verdicts are written.")] = "all",
    judge: Judges = None,
    split: Split = "",
    bad_rows: BadRows = "error",
    json_output: Json = False,
) -> None:
    """Write judgements in the form of another tool; every form is read back by `rate`, `agreement` and training.

    `tiltyard export labels.db --to trl --out pairs.jsonl`
    """
    from tiltyard.data.exchange import write_judged
    from tiltyard.inputs.judgements import judged

    rule = _choice("--bad-rows", bad_rows, ("error", "drop"))
    who = _choice("--by", by, ("people", "judges", "all"))
    found = judged(source, split=split, bad_rows=rule)  # type: ignore[arg-type]
    kept = [group for group in found.groups if who == "all" or _by(group, tuple(judge or ())) == who]
    written = write_judged(out, kept, to)
    if json_output:
        emit({"file": str(out), "form": to, "rows": written.rows, "left_out": written.left_out})
        return
    console = console_for(False)
    console.print(f"{plural(written.rows, 'row')} as {to}: {out}", markup=False, highlight=False, soft_wrap=True)
    for line in [*(f"left out: {n:,} {reason}" for reason, n in written.left_out.items()), *found.notes]:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
