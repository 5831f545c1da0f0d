"""Judges that a stage queries about items: one, or several as a panel, whose verdicts become preferences.

A judgement is a `Preference` without a verdict where the judge gave none (`meta["reason"]`, `meta["cause"]`). A panel's
verdict is the mean of its members' (probabilities, ratings, ranks) over those that have one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from tiltyard.errors import ConfigError
from tiltyard.feedback import (
    BothLists,
    Debiased,
    Grade,
    JudgeSettings,
    Ranking,
    Usage,
    Verdict,
    build_judge,
    build_list_judge,
    build_score_judge,
    judge_identity,
)
from tiltyard.feedback.answers import content_key
from tiltyard.feedback.budget import Budget, Forecast
from tiltyard.feedback.identity import JudgeIdentity
from tiltyard.feedback.scorers import ParseFailures, set_turn
from tiltyard.feedback.simulated import seed_from
from tiltyard.feedback.verdicts import PositionCounts, ScoreJudge, response_text
from tiltyard.files import jsonable
from tiltyard.inputs.workspace import answers_file, model_folder
from tiltyard.models.language import LanguageModel
from tiltyard.models.load import load_language_model
from tiltyard.stages.base import StageContext
from tiltyard.types import Group, Preference, dense_ranks

Disagreement = Literal["average", "drop"]
APART = "the two orders prefer different responses"


@dataclass
class Member:
    """One judge and its settings.

    Attributes:
        seed: of the order in which a pair is shown where one order is asked.
    """

    settings: JudgeSettings
    judge: Debiased | BothLists | ScoreJudge
    failures: ParseFailures
    seed: int = 0

    @property
    def identity(self) -> JudgeIdentity:
        """Its identity, as far as its replies showed by now."""
        inner = getattr(self.judge, "judge", self.judge)
        return judge_identity(self.settings, getattr(inner, "snapshot", ""))

    @property
    def usage(self) -> Usage:
        return self.judge.usage

    def ask(self, items: Sequence[Group], turn: int | None = None) -> list[Preference]:
        """Returns a judgement of each item, with the judge's name.

        Raises:
            JudgeError: more than `max_missing` of the items have no verdict, or the server fails or refuses.
        """
        set_turn(self.judge, turn)
        given = self._given(items)
        who = self.identity
        source = Preference(annotator=who.name, guideline=f"{who.template}#{who.digest}")
        return [replace(one, annotator=source.annotator, guideline=source.guideline) for one in given]

    def _given(self, items: Sequence[Group]) -> list[Preference]:
        if isinstance(self.judge, Debiased):
            verdicts = self._verdicts(self.judge, items)
            self.failures.add(verdicts)
            return [_of_verdict(v) for v in verdicts]
        if isinstance(self.judge, BothLists):
            rankings = self.judge.rank(items)
            self.failures.add([Verdict(None if r.ranks is None else 0.5, r.reason, cause=r.cause) for r in rankings])
            return [_of_ranking(r) for r in rankings]
        graded = self.judge.score(items)
        self.failures.add([grade for grades in graded for grade in grades])
        return [_of_grades(grades) for grades in graded]

    def _verdicts(self, judge: Debiased, pairs: Sequence[Group]) -> list[Verdict]:
        """One verdict per pair. A single order is drawn: files often have the better response first."""
        swapped = [
            judge.how == "none" and bool(seed_from(self.seed, *map(response_text, g.responses)) % 2) for g in pairs
        ]
        asked = [
            Group(g.prompt, g.responses[::-1] if swap else g.responses, origin=g.origin)
            for g, swap in zip(pairs, swapped, strict=True)
        ]
        return [v.swapped() if swap else v for v, swap in zip(judge(asked), swapped, strict=True)]

    def forecast(self, items: Sequence[Group]) -> Forecast | None:
        """Estimates the cost of a judge behind a server; None of others."""
        if isinstance(self.judge, BothLists):
            return self.judge.forecast(items)
        inner = self.judge.judge if isinstance(self.judge, Debiased) else self.judge
        estimate = getattr(inner, "forecast", None)
        if estimate is None:
            return None
        asked = self.judge.asked(items) if isinstance(self.judge, Debiased) else items
        found: Forecast = estimate(asked)
        return found

    @property
    def budget(self) -> Budget | None:
        """The budget of a judge behind a server; None of others."""
        client = getattr(getattr(self.judge, "judge", self.judge), "client", None)
        return None if client is None else client.budget

    @property
    def constraint_line(self) -> str:
        """A line about a server's structured choice; empty without one."""
        return str(getattr(getattr(self.judge, "judge", self.judge), "constraint_line", ""))

    def take_positions(self) -> PositionCounts:
        """The counts of position bias since the last call."""
        if not isinstance(self.judge, Debiased):
            return PositionCounts()
        counts, self.judge.position_counts = self.judge.position_counts, PositionCounts()
        return counts


@dataclass
class Panel:
    """One judge or several that are asked the same.

    Args:
        disagreement: `drop` gives no verdict on a pair whose two orders prefer different responses.
    """

    members: list[Member]
    disagreement: Disagreement = "average"
    forecasts: dict[str, Forecast] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The annotator of the verdicts that count: the judge, or the panel by the digest of its members."""
        names = [member.identity.name for member in self.members]
        return names[0] if len(names) == 1 else f"panel:{len(names)}#{content_key(sorted(names))[:12]}"

    def ask(self, items: Sequence[Group], turn: int | None = None) -> tuple[list[Preference], list[list[Preference]]]:
        """Returns the verdict that counts for each item, and each member's judgements."""
        each = [[self._kept(one) for one in member.ask(items, turn)] for member in self.members]
        if len(each) == 1:
            return each[0], each
        return [self._joint([row[i] for row in each]) for i in range(len(items))], each

    def _kept(self, one: Preference) -> Preference:
        if self.disagreement != "drop" or not orders_apart(one):
            return one
        return replace(one, shares=None, ranks=None, meta={**one.meta, "reason": APART, "cause": "orders"})

    def _joint(self, given: Sequence[Preference]) -> Preference:
        parts = {one.annotator: one for one in given}
        known = [one for one in given if has_verdict(one)]
        meta: dict[str, Any] = {"panel": {name: _short(one) for name, one in parts.items()}}
        source = Preference(annotator=self.name, guideline=content_key([p.guideline for p in given])[:12])
        if not known:
            return replace(source, meta=meta | {"reason": "no member has a verdict", "cause": _cause(given)})
        if known[0].shares is not None:
            p = sum(one.shares[0] for one in known if one.shares) / len(known)
            return replace(source, shares=(p, 1 - p), meta=meta)
        if known[0].ratings is not None:
            means = [sum(values) / len(known) for values in zip(*(one.ratings or () for one in known), strict=True)]
            return replace(source, ratings=tuple(means), meta=meta)
        means = [sum(values) / len(known) for values in zip(*(one.ranks or () for one in known), strict=True)]
        return replace(source, ranks=dense_ranks([-x for x in means]), meta=meta)

    def estimate(self, items: Sequence[Group]) -> list[str]:
        """Returns lines about what the questions will cost, before any is asked.

        Raises:
            ConfigError: they need more requests than a budget allows.
        """
        lines = []
        for member in self.members:
            found, budget = member.forecast(items), member.budget
            if found is None or budget is None:
                continue
            name = f"{member.identity.model}: " if len(self.members) > 1 else ""
            self.forecasts[member.identity.model] = found
            lines += [f"{name}{line}" for line in budget.check(found)]
        return lines

    def take_usage(self) -> Usage:
        """The usage of all members since the last call."""
        used = Usage()
        for member in self.members:
            used = used + member.usage.taken()
        return used

    def close(self) -> None:
        """Checks the share of items without a verdict once more, at the end.

        Raises:
            JudgeError: a judge gave none on more than `max_missing` of them.
        """
        for member in self.members:
            member.failures.check()


def open_panel(
    context: StageContext,
    judges: Sequence[JudgeSettings],
    *,
    device: str,
    seed: int = 0,
    disagreement: Disagreement = "average",
    repeat: int = 0,
) -> Panel:
    """Opens the judges of a stage; each has a file of answers of its own.

    Args:
        repeat: number of this repetition: a server is asked the same again under each number.

    Raises:
        ConfigError: they are asked different things, or two of them are the same.
    """
    asks = {one.ask for one in judges}
    if len(asks) > 1:
        raise ConfigError(
            "the judges of a panel are asked the same",
            where=f"{context.name}.panel",
            got=f"ask: {', '.join(sorted(asks))}",
            fix="give all of them the ask of judge",
        )
    names = [judge_identity(one).name + content_key(one.model_dump(mode="json")) for one in judges]
    if len(set(names)) < len(names):
        raise ConfigError("two judges of the panel are the same", where=f"{context.name}.panel", fix="leave one out")

    def load(name: str) -> LanguageModel:
        return load_language_model(model_folder(context, name), device=device)

    build: Mapping[str, Callable[..., Any]] = {"pair": build_judge, "rank": build_list_judge}
    members = []
    for k, settings in enumerate(judges):
        file = answers_file(context, f"judge{k}" if k else "")
        judge = build.get(settings.ask, build_score_judge)(settings, load, file, context.execution)
        inner = getattr(judge, "judge", judge)
        if repeat and hasattr(inner, "sample"):
            inner.sample = repeat
        members.append(Member(settings, judge, ParseFailures(settings.max_missing), seed))
    return Panel(members, disagreement)


def has_verdict(one: Preference) -> bool:
    """True if a judgement prefers, rates or ranks."""
    return one.shares is not None or one.ranks is not None or one.ratings is not None


def orders_apart(one: Preference) -> bool:
    """True if both orders were asked and prefer different responses: the same position won in both."""
    return bool(one.meta.get("same_position"))


def _of_verdict(verdict: Verdict) -> Preference:
    shares = None if verdict.p is None else (verdict.p, 1 - verdict.p)
    meta = {k: x for k, x in jsonable(asdict(verdict)).items() if k != "p" and x not in (None, "")}
    return Preference(shares=shares, meta=meta)


def _of_ranking(ranking: Ranking) -> Preference:
    meta = {k: x for k, x in jsonable(asdict(ranking)).items() if k != "ranks" and x not in (None, "", [])}
    return Preference(ranks=ranking.ranks, meta=meta)


def _of_grades(grades: Sequence[Grade]) -> Preference:
    scores = [grade.score for grade in grades]
    known = [score for score in scores if score is not None]
    meta: dict[str, Any] = {"text": "\n\n".join(text for grade in grades for text in grade.texts if text)}
    meta = {key: value for key, value in meta.items() if value}
    if len(known) == len(scores) and known:
        return Preference(ratings=tuple(known), meta=meta)
    first = next((grade for grade in grades if grade.score is None), Grade(None, "there are no responses"))
    return Preference(meta=meta | {"grades": scores, "reason": first.reason, "cause": first.cause or "unreadable"})


def _short(one: Preference) -> Any:
    """A member's verdict in the panel's record."""
    if one.shares is not None:
        return one.shares[0]
    return list(one.ratings or one.ranks or ()) or None


def _cause(given: Sequence[Preference]) -> str:
    return next((str(one.meta["cause"]) for one in given if one.meta.get("cause")), "unreadable")
