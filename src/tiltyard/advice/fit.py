"""How much fits into the time: rows, steps, held-out prompts; and the seconds that each stage takes.

Seconds are counts of packed tokens times the measured speeds of `trial`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from tiltyard.advice.choose import batch_of, passes_of
from tiltyard.advice.model import ModelFacts
from tiltyard.advice.parts import Choice
from tiltyard.advice.rows import Lengths, RowFacts
from tiltyard.advice.trial import Speed
from tiltyard.data.held_out import part_by_prompt

START = 6.0  # seconds of importing and checking
SPARE = 0.85  # share of the time that is planned with
LEAST = 32  # rows
EVALUATION = 0.25  # share of the time for measuring, at most
PROMPTS = (64, 48, 32, 24, 16, 8)  # held-out prompts that are answered
RL_PROMPTS, RL_SAMPLES = 8, 4
RL_STEPS = (10, 200)
FILLED = 0.75  # of the limit, by a sampled answer
JUDGE = 0.5  # rows of the judge in those of the policy, where time is short
EXTRA = {"dpo": 1.0, "kto": 3.0, "sft": 0.0}  # further forward passes a token: the reference's; kto's mismatched pairs


class Costs(NamedTuple):
    """Speeds of training and of measuring, the share of a pass without the output head, seconds of reading the data."""

    fast: Speed
    exact: Speed
    body: float
    reading: float


class Amounts(NamedTuple):
    """Sizes: rows of the policy and of the judge (limits of a sample; 0: all), steps, held-out rows and prompts."""

    rows: int
    judge_rows: int
    steps: int
    held_rows: int
    prompts: int
    used: int  # rows that are short enough
    tokens: int  # packed, of one pass over them
    passes: Choice = Choice(1.0)


def body_share(model: ModelFacts) -> float:
    """Share of a forward pass that is not the output head."""
    return max(0.2, 1 - model.head / max(model.parameters, model.head + 1))


def evaluation_seconds(
    costs: Costs, lengths: Sequence[Lengths], held_rows: int, prompts: int, tokens: int, *, scored: bool
) -> float:
    """Seconds of the stage `before_after`."""
    exact = costs.exact
    packed = sum(one.packed for one in lengths) / max(1, len(lengths))
    asked = sum(one.prompt for one in lengths) / max(1, len(lengths))
    whole = prompts * (asked + FILLED * tokens)
    return (
        (3 if scored else 2) * exact.load
        + 2 * held_rows * packed * exact.forward
        + 2 * exact.decoding(prompts, tokens)
        + 2 * prompts * asked * exact.forward
        + 2.2 * whole * exact.forward
        + (2 * whole * exact.forward * costs.body if scored else 0.0)
    )


def size_of_evaluation(
    costs: Costs, lengths: Sequence[Lengths], prompts: int, rows: int, tokens: int, seconds: float, *, scored: bool
) -> tuple[int, int]:
    """(held-out rows, prompts that are answered): as many as fit into a quarter of the time."""
    for count in PROMPTS:
        held = min(rows, 6 * count)
        answered = min(prompts, count)
        needed = evaluation_seconds(costs, lengths, held, answered, tokens, scored=scored)
        if not seconds or needed <= EVALUATION * seconds or count == PROMPTS[-1]:
            return held, answered
    raise AssertionError("the last size is returned")


def train_seconds(costs: Costs, method: str, tokens: float, steps: float) -> float:
    """Seconds of a training stage over `tokens` packed tokens, all passes together."""
    fast = costs.fast
    if method == "reward":
        return 2 * fast.load + tokens * fast.train * costs.body + steps * fast.update
    return 2 * fast.load + tokens * (fast.train + EXTRA[method] * fast.forward) + steps * fast.update


def fit_rows(
    costs: Costs,
    method: str,
    rows: RowFacts,
    *,
    max_length: int,
    share: float,
    seed: int,
    seconds: float,
    fixed: float,
    held_rows: int,
    prompts: int,
    judged: bool,
) -> tuple[Amounts, dict[str, float]]:
    """The largest sample of the rows that fits into the time, and the seconds of the stages that train.

    Args:
        seconds: the whole time; 0: no limit. fixed: seconds of everything that does not depend on the rows.
        judged: whether a reward model is trained on the same rows, to measure by.
    """

    def places(limit: int) -> list[Lengths]:
        parts = part_by_prompt(rows.keys, share, 0, held_rows, limit, seed)
        return [rows.lengths[i] for i in parts.train if rows.lengths[i].longest <= max_length]

    every = len(part_by_prompt(rows.keys, share, 0, held_rows, 0, seed).train)

    def cost(limit: int) -> tuple[Amounts, dict[str, float]]:
        used = places(limit)
        tokens = sum(one.packed for one in used)
        passes = passes_of(method, len(used)) if limit == every else Choice(1.0, "more rows, rather than more passes")
        steps = max(1, round(len(used) * passes.value / batch_of(len(used), passes.value).value))
        found = {method: train_seconds(costs, method, tokens * passes.value, steps)}
        judge = 0
        if judged:
            share_of = 1.0 if limit == every or limit <= 2 * LEAST else JUDGE
            judge = round(share_of * limit)
            found["reward"] = train_seconds(costs, "reward", tokens * share_of, steps * share_of)
        amounts = Amounts(
            0 if limit == every else limit,
            0 if judge == limit else judge,
            0,
            held_rows,
            prompts,
            len(used),
            tokens,
            passes,
        )
        return amounts, found

    limit = _largest(every, lambda n: fixed + sum(cost(n)[1].values()) <= SPARE * seconds) if seconds else every
    return cost(limit)


def _largest(every: int, fits: Callable[[int], bool]) -> int:
    """The largest number of rows that fits; at least `LEAST`, or all if these are fewer."""
    low, high = min(LEAST, every), every
    if fits(high):
        return high
    while high - low > max(1, low // 50):
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def step_seconds(costs: Costs, lengths: Sequence[Lengths], tokens: int, samples: int = RL_SAMPLES) -> float:
    """Seconds of a step that samples: decoding, scoring by a forward pass, the reference, the update."""
    fast = costs.fast
    asked = sum(one.prompt for one in lengths) / max(1, len(lengths))
    packed = RL_PROMPTS * (asked + samples * FILLED * tokens)
    decoding = fast.decoding(RL_PROMPTS * samples, tokens) + RL_PROMPTS * asked * fast.forward
    return decoding + packed * (fast.train + 2 * fast.forward) + fast.update


def fit_steps(one: float, seconds: float, fixed: float) -> int:
    """The number of steps that fit into the time."""
    least, most = RL_STEPS
    if not seconds:
        return 100
    return int(min(most, max(least, (SPARE * seconds - fixed) // max(one, 1e-9))))
