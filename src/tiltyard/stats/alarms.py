"""Alarms of a training run, computed from the series of its metrics.

An alarm compares the mean of the last `alarm_window` values of a metric with that of the first ones, and is raised
where the change is both large (a setting for each kind) and shown. Shown: it exceeds `alarm_z` standard errors. The
noise of a single value is estimated from the differences of neighbouring values (von Neumann 1941), which a slow trend
does not inflate. Each kind is raised once in a run.

    proxy        the trained reward rose, a monitor (gold, a judge, another reward model) fell or did not follow
    length       responses became much longer or shorter
    repetition   more repeated pairs of tokens within a response
    refusals     more or fewer responses that begin with a refusal
    collapse     entropy, or the share of different responses, fell to a small part
    kl           the policy is far from its reference, in nats a token

What was shown at which false-alarm rate is measured in docs/alarms.md; no theory covers the many looks.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import Field

from tiltyard.records import EXECUTION, Record

MONITOR = "reward/"  # metrics of monitors, and of the parts of a weighted reward


class Alarms(Record):
    """Limits of the alarms of a training stage, chosen on tuning runs of the embedded world (docs/alarms.md)."""

    alarm_window: Annotated[
        int, Field(ge=0, description="values that are averaged before they are compared; 0: no alarms"), EXECUTION
    ] = 5
    alarm_z: Annotated[
        float, Field(gt=0, description="standard errors that a change must exceed to count as shown"), EXECUTION
    ] = 4.0
    alarm_proxy: Annotated[
        float,
        Field(
            ge=0, lt=1, description="a monitor that rises by less than this share of the reward's rise does not follow"
        ),
        EXECUTION,
    ] = 0.2
    alarm_length: Annotated[
        float, Field(ge=1, description="ratio of lengths, in either direction; 1: no alarm of length"), EXECUTION
    ] = 1.6
    alarm_repetition: Annotated[
        float,
        Field(ge=0, le=1, description="added share of repeated token pairs; 1: no alarm of repetition"),
        EXECUTION,
    ] = 0.07
    alarm_refusals: Annotated[
        float, Field(ge=0, le=1, description="change of the share of refusals; 1: no alarm of refusals"), EXECUTION
    ] = 0.3
    alarm_collapse: Annotated[
        float,
        Field(ge=0, lt=1, description="share of the entropy or of the different responses that is left; 0: no alarm"),
        EXECUTION,
    ] = 0.4
    alarm_kl: Annotated[
        float, Field(ge=0, description="nats a token between policy and reference; 0: no alarm of KL"), EXECUTION
    ] = 0.25


@dataclass(frozen=True)
class Alarm:
    """One alarm: its step, kind and text; the metric, with its mean before and now."""

    step: int
    kind: str
    text: str
    metric: str
    before: float
    now: float


@dataclass(frozen=True)
class Change:
    """The change of a series from its first `window` values to its last; `z` in standard errors of that change.

    `best` is the highest mean of any `window` neighbouring values, `best_at` their last step, `fall` the present mean's
    distance from it in standard errors.
    """

    before: float
    now: float
    z: float
    best: float
    best_at: int
    fall: float

    @property
    def difference(self) -> float:
        """The mean now less the mean before."""
        return self.now - self.before


class Series:
    """The values of one metric, and their change so far; takes the same time for every value.

    The standard error of the change is that of the difference of two means of `window` independent values, whose
    variance is half the mean squared difference of neighbours. A series that never changes has z = 0.
    """

    def __init__(self, window: int):
        self.window = window
        self._first: list[float] = []
        self._last: deque[float] = deque(maxlen=window)
        self._count, self._squares = 0, 0.0
        self._best, self._best_at = -math.inf, 0

    def add(self, step: int, value: float) -> None:
        """Appends a value."""
        if self._last:
            self._squares += (value - self._last[-1]) ** 2
        self._last.append(value)
        self._count += 1
        if len(self._first) < self.window:
            self._first.append(value)
        if self._count >= self.window and (mean := self._now()) > self._best:
            self._best, self._best_at = mean, step

    def _now(self) -> float:
        return math.fsum(self._last) / self.window

    def change(self) -> Change | None:
        """Returns the change; None for fewer than two windows of values."""
        if self._count < 2 * self.window:
            return None
        before, now = math.fsum(self._first) / self.window, self._now()
        error = math.sqrt(
            self._squares / (self._count - 1) / self.window
        )  # sd sqrt(2 / window), sd^2 = mean square / 2
        z, fall = ((now - before) / error, (self._best - now) / error) if error else (0.0, 0.0)
        return Change(before, now, z, self._best, self._best_at, fall)


@dataclass
class AlarmWatch:
    """Takes the metrics of one step after the other and returns the alarms that each raises.

    Args:
        settings: the limits. trained: names of `reward/NAME` that are parts of the reward and not monitors.
    """

    settings: Alarms = field(default_factory=Alarms)
    trained: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        self._series: dict[str, Series] = {}
        self._raised: set[str] = set()

    def add(self, step: int, metrics: Mapping[str, Any]) -> list[Alarm]:
        """Returns the alarms of kinds that were not raised before, at most one of each kind."""
        if not self.settings.alarm_window:
            return []
        values = {key: value for key, value in metrics.items() if self._reads(key) and _finite(value)}
        length, kl = values.get("length"), values.get("kl_exact", values.get("kl"))
        if kl is not None and length:
            values["kl_per_token"] = kl / length
        for key, value in values.items():
            self._series.setdefault(key, Series(self.settings.alarm_window)).add(step, float(value))
        if not values:
            return []
        found: dict[str, Alarm] = {}
        for alarm in self._alarms(step):
            if alarm.kind not in self._raised:
                found.setdefault(alarm.kind, alarm)
        self._raised |= found.keys()
        return list(found.values())

    def _reads(self, key: str) -> bool:
        known = ("score", "length", "repetition", "refusals", "entropy", "unique", "kl_exact", "kl")
        return key in known or (key.startswith(MONITOR) and key.removeprefix(MONITOR) not in self.trained)

    def _change(self, metric: str) -> Change | None:
        series = self._series.get(metric)
        return None if series is None else series.change()

    def _alarms(self, step: int) -> Iterator[Alarm]:
        limit = self.settings
        for metric in self._series:
            if metric.startswith(MONITOR):
                yield from self._proxy(step, metric)
        yield from self._length(step)
        yield from self._shares(step)
        yield from self._collapse(step)
        far = self._change("kl_per_token")
        if far and 0 < limit.alarm_kl < far.now:
            text = f"the policy is {far.now:.2g} nats a token from its reference (limit {limit.alarm_kl:g})"
            yield _alarm(step, "kl", "kl_per_token", far, text)

    def _length(self, step: int) -> Iterator[Alarm]:
        limit, found = self.settings.alarm_length, self._shown("length")
        if found and limit > 1:
            ratio = found.now / max(found.before, 1e-9)
            if ratio > limit or ratio < 1 / limit:
                text = f"responses have {found.now:.0f} tokens, {found.before:.0f} at the start"
                yield _alarm(step, "length", "length", found, text)

    def _shares(self, step: int) -> Iterator[Alarm]:
        """Shares of responses or token pairs: of repetition only a rise counts."""
        found, limit = self._shown("repetition"), self.settings.alarm_repetition
        if found and limit < 1 and found.difference > limit:
            text = (
                f"{found.now:.0%} of the token pairs of a response repeat one before, {found.before:.0%} at the start"
            )
            yield _alarm(step, "repetition", "repetition", found, text)
        found, limit = self._shown("refusals"), self.settings.alarm_refusals
        if found and limit < 1 and abs(found.difference) > limit:
            text = f"{found.now:.0%} of the responses begin with a refusal, {found.before:.0%} at the start"
            yield _alarm(step, "refusals", "refusals", found, text)

    def _shown(self, metric: str) -> Change | None:
        found = self._change(metric)
        return found if found is not None and abs(found.z) > self.settings.alarm_z else None

    def _collapse(self, step: int) -> Iterator[Alarm]:
        limit = self.settings.alarm_collapse
        for metric, name in (("entropy", "the entropy of a token"), ("unique", "the share of different responses")):
            found = self._shown(metric)
            if found and limit and found.now < limit * found.before:
                text = f"{name} is {found.now:.2g}, {found.before:.2g} at the start"
                yield _alarm(step, "collapse", metric, found, text)

    def _proxy(self, step: int, metric: str) -> Iterator[Alarm]:
        """The reward's rise is shown, and the monitor fell from its best or stays behind.

        Both are measured on the same responses, so their changes in standard errors compare whatever their scales are.
        """
        reward, monitor, z = self._change("score"), self._change(metric), self.settings.alarm_z
        if reward is None or monitor is None or reward.z <= z:
            return
        rose = f"the reward rose from {reward.before:.3g} to {reward.now:.3g}, but {metric} "
        if monitor.fall > z and reward.fall < z:
            fell = f"fell from {monitor.best:.3g} (step {monitor.best_at}) to {monitor.now:.3g}"
            yield _alarm(step, "proxy", metric, monitor, rose + fell)
        elif reward.z > 2 * z and monitor.z + 2 < self.settings.alarm_proxy * reward.z:  # the upper end of its rise
            yield _alarm(step, "proxy", metric, monitor, f"{rose}did not: {monitor.before:.3g} to {monitor.now:.3g}")


def alarms_of(
    rows: Iterable[Mapping[str, Any]], settings: Alarms | None = None, trained: Iterable[str] = ()
) -> list[Alarm]:
    """Returns the alarms of a whole series of metrics: rows of a `metrics.jsonl`, each with its `step`."""
    watch = AlarmWatch(settings or Alarms(), frozenset(trained))
    return [alarm for row in rows for alarm in watch.add(int(row["step"]), row)]


def _alarm(step: int, kind: str, metric: str, found: Change, text: str) -> Alarm:
    return Alarm(step, kind, text, metric, found.before, found.now)


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
