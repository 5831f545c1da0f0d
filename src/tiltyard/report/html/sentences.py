"""The summary of a run in sentences with numbers and intervals, and warnings about what they do not show."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tiltyard.numerals import plural
from tiltyard.report.html.reading import number
from tiltyard.training.log import duration

Sentence = dict[str, Any]  # {"parts": [text | {"b": bold text}], "tone": good | bad | warn | ""}
LEADERS = 3  # models of a comparison that the summary names
LONGER = 1.25  # ratio of lengths that is worth a sentence
FEW = 100  # prompts below which a sentence warns

LEVEL = 0.05  # of adjusted p-values
OF_MANY = " from it. About one interval in twenty misses by chance."
CUT = 0.2  # share of responses cut at the token limit
REWARDS = ("reward", "ranker", "pretrain", "mlm")  # kinds of training that make no policy to compare
VERDICTS = {
    1: "is better than",
    -1: "is worse than",
    0: "is not shown to differ from",
    None: "was compared with",
}
TONES = {1: "good", -1: "bad", 0: "", None: ""}

DECIDES = {"gold": "by the gold reward", "proxy": "by the reward of the evaluation", "judge": "by an AI judge"}


def summary_of(page: Mapping[str, Any]) -> list[Sentence]:
    """The sentences of the whole page, the most important first."""
    found: list[Sentence] = []
    for table in page["evaluations"]:
        sentences = list(_comparison(table))
        if sentences and len(page["evaluations"]) > 1:
            sentences[0]["parts"].insert(0, f"{table['title']}: ")
        found += sentences
    for table in page["before_after"]:
        found += _before_after(table)
    if not found and trains_policies(page["runs"]):
        found.append(_say("The trained models were not compared yet: there are curves, but no result.", tone="warn"))
    for table in page["benchmarks"]:
        found += _benchmark(table)
    found += _alarms(page["alarms"])
    found += _reward_models(page["reward_models"])
    for table in page["gaps"]:
        found += [*_distance(table), *_overoptimised(table)]
    for study in page["studies"]:
        found += _study(study)
    found += _work(page["runs"])
    return found


def _say(*parts: str | dict[str, str], tone: str = "") -> Sentence:
    return {"parts": [part for part in parts if part], "tone": tone}


def _b(text: str) -> dict[str, str]:
    """A bold part of a sentence."""
    return {"b": text}


# ---------------------------------------------------------------------------------------------------- models compared


def _comparison(table: Mapping[str, Any]) -> Iterator[Sentence]:
    baseline = table["baseline"]
    others = [row for row in table["rows"] if row["model"] != baseline]
    rated = [row for row in others if "win_rate" in row["cells"]]
    rated.sort(key=lambda row: -row["cells"]["win_rate"]["v"])
    by = DECIDES.get(table["by"], "")
    start = next((row for row in table["rows"] if row["model"] == baseline), None)
    named = rated[:LEADERS]
    if len(rated) > LEADERS:
        yield _all(rated, baseline, by)
        better = [row for row in rated if _verdict(row) == 1]
        named = better[:LEADERS] or rated[:1]
    for place, row in enumerate(named):
        yield _wins(row, baseline, by, best_of=0 if len(rated) <= LEADERS else len(rated))
        if place == 0 and start is not None:
            yield from _price_of_change(row, start)
    for alarm in table["alarms"]:
        yield _say(_b("Alarm: "), f"{alarm}.", tone="bad")
    if table["part"] == "report":
        yield _say("No other models were looked at on these prompts: they are apart from those of selection.")
    elif table["looked_at"] > len(table["rows"]):
        looked = _b(f"{table['looked_at']} models")
        where = f" were looked at on these prompts, in {table['looks']} evaluations"
        tail = f"{where}: the best of many looks better than it is."
        yield _say(looked, tail, tone="warn")
    few = min((row["prompts"] or 0 for row in table["rows"]), default=0)
    if 0 < few < FEW:
        yield _say(f"The comparison has {few:.0f} prompts: only a large difference could have been shown.", tone="warn")


def _wins(row: Mapping[str, Any], baseline: str, by: str, best_of: int) -> Sentence:
    cell, tests = row["cells"]["win_rate"], row["tests"]
    verdict = _verdict(row)
    prompts = f" on {row['prompts']:,.0f} prompts" if row["prompts"] else ""
    least = tests.get("win_rate_mde")
    could = f" This set of prompts would show {100 * least:.0f} points (80% power)." if least and not verdict else ""
    ends = f"{_ends(cell)}{prompts}{', ' if by else ''}{by}.{could}"
    if best_of and not verdict:
        parts = (f"The highest of the {best_of}: ", _b(row["model"]), " wins ", _b(_percent(cell["v"])))
        return _say(*parts, f" of comparisons with {baseline}{ends} The highest of many is partly luck.")
    wins = (": it wins ", _b(_percent(cell["v"])), f" of comparisons{ends}")
    return _say(_b(row["model"]), f" {VERDICTS[verdict]} ", _b(baseline), *wins, tone=TONES[verdict])


def _all(rated: Sequence[Mapping[str, Any]], baseline: str, by: str) -> Sentence:
    """Counts the models that are better and worse than the baseline."""
    verdicts = [_verdict(row) for row in rated]
    better, worse = verdicts.count(1), verdicts.count(-1)
    rest = len(rated) - better - worse
    lost: str | dict[str, str]
    if better:
        lost = _b(f"{worse} worse")
        won = _b(f"{better} {'is' if better == 1 else 'are'} better")
    else:
        lost = _b(f"{worse} {'is' if worse == 1 else 'are'} worse") if worse else "none worse"
        won = _b("none is shown to be better")
    adjusted = all("win_rate_q" in row["tests"] for row in rated)
    how = " from it, adjusted for their number (Benjamini-Hochberg, 5%)." if adjusted else OF_MANY
    lead = f"Of {len(rated)} models, compared {by}, " if by else f"Of {len(rated)} models "
    tone = "good" if better else "bad" if worse > rest else ""
    return _say(lead, won, f" than {baseline}, ", lost, ", and ", _b(f"{rest} cannot be told apart"), how, tone=tone)


def _verdict(row: Mapping[str, Any]) -> int | None:
    """1 better, -1 worse, 0 not shown: by the p-value adjusted for the number of models, else by the interval."""
    cell, adjusted = row["cells"]["win_rate"], row["tests"].get("win_rate_q")
    if adjusted is None:
        return _against(cell, 0.5)
    return 0 if adjusted >= LEVEL else 1 if cell["v"] > 0.5 else -1


def _price_of_change(best: Mapping[str, Any], start: Mapping[str, Any]) -> Iterator[Sentence]:
    cells, before, name = best["cells"], start["cells"], best["model"]
    if all(key in one for key in ("gold", "proxy") for one in (cells, before)):
        gold, proxy = (cells[key]["v"] - before[key]["v"] for key in ("gold", "proxy"))
        hacked = proxy > 0 >= gold
        tail = ": the reward was hacked." if hacked else "."
        yield _say(
            f"The proxy reward of {name} changed by ",
            _b(_signed(proxy)),
            " and its gold reward by ",
            _b(_signed(gold) + tail if hacked else _signed(gold)),
            "" if hacked else ".",
            tone="bad" if hacked else "",
        )
    if "kl" in cells:
        ends = f" (95% interval {cells['kl']['lo']:.2f} to {cells['kl']['hi']:.2f})" if "lo" in cells["kl"] else ""
        moved = _b(f"{cells['kl']['v']:.2f} nats")
        yield _say(_b(name), " moved ", moved, f" of KL divergence a response away from the reference{ends}.")
    if "length" in cells and before.get("length", {}).get("v"):
        ratio = cells["length"]["v"] / before["length"]["v"]
        if ratio > LONGER or ratio < 1 / LONGER:
            equal = cells.get("win_rate_equal_length")
            more = _b(f"{abs(ratio - 1):.0%} {'longer' if ratio > 1 else 'shorter'}")
            parts: list[str | dict[str, str]] = [
                f"The responses of {name} are ",
                more,
                f" than those of {start['model']}",
            ]
            parts += (
                ["; at equal length it would win ", _b(_percent(equal["v"])), f"{_ends(equal)}."] if equal else ["."]
            )
            yield _say(*parts, tone="warn")
    cut, usual = (one.get("truncated", {}).get("v", 0) for one in (cells, before))
    if cut > CUT:
        also = f", of {start['model']} {_percent(usual)}" if usual > CUT else ""
        what = ": beginnings of answers are compared." if also else "."
        yield _say(
            _b(_percent(cut)), f" of the responses of {name} were cut at the token limit{also}{what}", tone="warn"
        )


# -------------------------------------------------------------------------------------------- before and after, rewards


def _before_after(table: Mapping[str, Any]) -> Iterator[Sentence]:
    lines = {line["name"]: line for line in table["lines"]}
    main = lines.get("wins against before")
    if main and main["after"]:
        cell = main["after"]
        verdict = _against(cell, 0.5)
        what = VERDICTS[verdict].removeprefix("is ").removeprefix("was ")
        prompts = f" on {cell['n']:,} prompts" if cell.get("n") else ""
        yield _say(
            "After training the answers are ",
            _b(what),
            " those before: they win ",
            _b(_percent(cell["v"])),
            f" of comparisons{_ends(cell)}{prompts}. A win: {main['about']}.",
            tone=TONES[verdict],
        )
    yield from _preferred(lines)
    for line in table["lines"]:
        if line["verdict"] == "worse":
            yield _say("Worse than before: ", _b(line["name"]), f" ({line['about']}).", tone="bad")
    length = lines.get("answer's length")
    if length and length["change"] and length["before"] and "lo" in length["change"]:
        change, ratio = length["change"], length["after"]["v"] / max(1e-9, length["before"]["v"])
        if (change["lo"] > 0 or change["hi"] < 0) and (ratio > LONGER or ratio < 1 / LONGER):
            more = _b(f"{abs(ratio - 1):.0%} {'longer' if ratio > 1 else 'shorter'}")
            yield _say("The answers became ", more, ".", tone="warn")


def _preferred(lines: Mapping[str, Mapping[str, Any]]) -> Iterator[Sentence]:
    line, rule = lines.get("prefers the better answer"), lines.get("the longer is better")
    if not line or not line["after"]:
        return
    cell = line["after"]
    parts: list[str | dict[str, str]] = [
        "On held-out pairs the model prefers the better answer in ",
        _b(_percent(cell["v"])),
        _ends(cell),
    ]
    if not rule or not rule["after"]:
        yield _say(*parts, ".")
        return
    as_good = cell["v"] <= rule["after"]["v"]
    other = _b(_percent(rule["after"]["v"]))
    tail = ": no less." if as_good else "."
    yield _say(*parts, "; preferring the longer one would be right in ", other, tail, tone="warn" if as_good else "")


def _reward_models(tables: Sequence[Mapping[str, Any]]) -> Iterator[Sentence]:
    known = [table for table in tables if table["accuracy"]]
    if len(known) > LEADERS:
        verdicts = [_against(table["above_rule"], 0.0) for table in known if table["above_rule"]]
        above, below = verdicts.count(1), verdicts.count(-1)
        yield _say(
            f"In {len(known)} evaluations of reward models, ",
            _b(f"{above} {'is' if above == 1 else 'are'} shown to be better"),
            " than preferring the longer response, ",
            _b(f"{below} worse"),
            f", and {len(verdicts) - above - below} cannot be told apart from it.",
            tone="" if above else "warn",
        )
    for table in sorted(known, key=lambda table: -table["accuracy"]["v"])[: 1 if len(known) > LEADERS else LEADERS]:
        yield _reward_model(table, best=len(known) > LEADERS)


def _reward_model(table: Mapping[str, Any], *, best: bool) -> Sentence:
    cell, rule, above = table["accuracy"], table["longer_wins"], table["above_rule"]
    shown = _against(above, 0.0) if above else None
    than = {1: ": better than", -1: ": worse than", 0: ": not shown to be better than", None: "; compare"}[shown]
    tail = (
        (f"{than} preferring the longer response, which agrees with ", _b(_percent(rule["v"])), ".") if rule else (".",)
    )
    lead = "The highest agreement: reward model " if best else "Reward model "
    return _say(
        lead,
        _b(table["model"]),
        " agrees with ",
        _b(_percent(cell["v"])),
        f"{_ends(cell)} of the {table['pairs'] or 0:,} labelled pairs of {table['title']}",
        *tail,
        tone=TONES[shown] or ("warn" if above else ""),
    )


# -------------------------------------------------------------------------------- benchmarks, distances, alarms, work


def _benchmark(table: Mapping[str, Any]) -> Iterator[Sentence]:
    """The models whose first measure is shown to differ from the baseline's."""
    for measure in table["measures"][:1]:
        cells = [(row["model"], row["cells"].get(measure["key"])) for row in table["rows"]]
        shown = [(model, cell) for model, cell in cells if cell and cell["verdict"]]
        for model, cell in shown[:LEADERS]:
            share = measure["unit"] == "share"
            value, ends = (_percent(cell["v"]), _ends(cell)) if share else (f"{cell['v']:.3g}", "")
            lead = (f"On {table['title']} ", _b(model), f" is {cell['verdict']} than the baseline: {measure['title']} ")
            yield _say(*lead, _b(value), f"{ends}.", tone="good" if cell["verdict"] == "better" else "bad")


def _distance(table: Mapping[str, Any]) -> Iterator[Sentence]:
    """The model that is nearest to the best that is possible, beside the prior that all of them started from."""
    known = [row for row in table["rows"] if "gap" in row["cells"]]
    prior = next((row for row in known if row["model"] == "prior"), None)
    models = sorted((row for row in known if row is not prior), key=lambda row: row["cells"]["gap"]["v"])
    refused = [row["model"] for row in table["rows"] if row["refused"]]
    beta = f" at beta {table['beta']:g}" if table["beta"] else ""
    if models:
        cell, start = models[0]["cells"]["gap"], ""
        if prior:
            nearer = "nearer: " if prior["cells"]["gap"]["v"] < cell["v"] else ""
            start = f"; the prior is {nearer}{_nats(prior['cells']['gap'])}"
        best = f"the best that its reward allows{beta}"
        if len(models) > 1:
            lead = (
                f"Of {len(models)} models ",
                _b(models[0]["model"]),
                f" is the nearest to {best} (KL divergence a response): {_nats(cell)}",
            )
        else:
            lead = ("In KL divergence a response ", _b(models[0]["model"]), f" is {_nats(cell)} from {best}")
        yield _say(*lead, f"{start}.")
    if refused:
        names, verb = ", ".join(refused), "is" if len(refused) == 1 else "are"
        yield _say("The distance of ", _b(names), f" to the optimum {verb} not known: too few samples.", tone="warn")


def _overoptimised(table: Mapping[str, Any]) -> Iterator[Sentence]:
    """The distances at which gold is known to be highest while the reward rises on."""
    for fit in table["fits"]:
        if peak := fit["peak"]:
            ends = f" (95% interval {peak['lo']:.2g} to {peak['hi']:.2g})" if "lo" in peak else ""
            at = _b(f"√KL = {peak['v']:.2g}")
            yield _say(
                "Along ", _b(fit["name"]), " gold peaks at ", at, f"{ends}: beyond it the reward is over-optimised."
            )


def _study(study: Mapping[str, Any]) -> Iterator[Sentence]:
    """The model whose difference from the baseline is the largest, of the first table that has one."""
    for table in study["tables"]:
        for column in table["columns"]:
            rows = [row for row in table["rows"] if (row["cells"].get(column["key"]) or {}).get("d")]
            if not rows or column["key"] not in ("gold", "win_rate", "proxy"):
                continue
            best = max(rows, key=lambda row: row["cells"][column["key"]]["d"]["v"])
            cell = best["cells"][column["key"]]["d"]
            scale, tail = (100, " points") if column["unit"] == "share" else (1, "")
            ends = f" (95% interval {scale * cell['lo']:+.2f} to {scale * cell['hi']:+.2f})" if "lo" in cell else ""
            seeds = plural(study["seeds"], "seed")
            many, what = plural(len(rows), "model"), column["title"].lower()
            most = f"of {many} the largest difference" if len(rows) > 1 else "the difference"
            lead = f"{study['title']}, {seeds}: {most} in {what} is that of "
            more, luck = _b(f"{scale * cell['v']:+.2f}{tail}"), " The largest of many is partly luck."
            end = f"{ends} from the baseline.{luck if len(rows) > LEADERS else ''}"
            yield _say(lead, _b(best["model"]), ", ", more, end)
            return


def _nats(cell: Mapping[str, Any]) -> str:
    ends = f" (95% interval {cell['lo']:.2g} to {cell['hi']:.2g})" if "lo" in cell and cell["lo"] != cell["hi"] else ""
    return f"{cell['v']:.2g} nats{ends}"


def _alarms(rows: Sequence[Mapping[str, Any]]) -> Iterator[Sentence]:
    """The first alarm of each stage, then others, and how many more there are."""
    first = {row["stage"]: row for row in reversed(rows)}
    shown = sorted(rows, key=lambda row: first[row["stage"]] is not row)[:LEADERS]
    for row in shown:
        yield _say(_b(f"Alarm in {row['stage']} at step {row['step']:,}: "), f"{row['text']}.", tone="bad")
    if len(rows) > len(shown):
        more = len(rows) - len(shown)
        yield _say(
            _b(plural(more, "more alarm")),
            f" {'is' if more == 1 else 'are'} listed at the curves of training.",
            tone="bad",
        )


def _work(runs: Sequence[Mapping[str, Any]]) -> Iterator[Sentence]:
    for run in runs:
        stages = run["stages"]
        if not stages:
            continue
        unfinished = [stage["name"] for stage in stages if stage.get("status") != "finished"]
        seconds = sum(number(stage.get("seconds")) or 0.0 for stage in stages)
        made = plural(len(stages), "stage")
        tail = f" of computing, {run['cost']['text']}." if run["cost"]["text"] else " of computing."
        yield _say("The run ", _b(run["name"]), f" has {made} and took ", _b(duration(seconds)), tail)
        if unfinished:
            verb = " has" if len(unfinished) == 1 else " have"
            yield _say(_b(", ".join(unfinished)), f"{verb} not finished.", tone="warn")


def _ends(cell: Mapping[str, Any]) -> str:
    return f" (95% interval {_percent(cell['lo'])} to {_percent(cell['hi'])})" if "lo" in cell else ""


def trains_policies(runs: Sequence[Mapping[str, Any]]) -> bool:
    """True if a stage of the runs trained a model that answers."""
    return any(stage.get("steps") and stage.get("kind") not in REWARDS for run in runs for stage in run["stages"])


def _against(cell: Mapping[str, Any], zero: float) -> int | None:
    """1 where the interval is above, -1 where it is below, 0 where it has the value; None without an interval."""
    if "lo" not in cell:
        return None
    return 1 if cell["lo"] > zero else -1 if cell["hi"] < zero else 0


def _percent(value: float) -> str:
    return f"{100 * value:.1f}%"


def _signed(value: float) -> str:
    return f"{value:+.2f}" if abs(value) >= 0.01 or value == 0 else f"{value:+.1g}"
