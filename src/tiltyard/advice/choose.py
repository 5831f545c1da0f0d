"""The choices: method, adapters, lengths, batch, rates, held-out part; each with its reason."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from tiltyard.advice.machine import Machine
from tiltyard.advice.model import ModelFacts
from tiltyard.advice.parts import Choice
from tiltyard.advice.request import Request
from tiltyard.advice.rows import Lengths, RowFacts
from tiltyard.errors import ConfigError, DataError
from tiltyard.numerals import plural
from tiltyard.stages.footprint import Work, memory_of
from tiltyard.types import MICRO_TOKENS

SMALL = 50e6  # parameters below which all weights are trained
TINY = 20e6
FITTING = 0.95  # share of the rows that max_length keeps
LONGEST = {"cpu": 1024, "cuda": 2048}  # tokens of a row, where the model's context allows more
SIZES = (64, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096, 8192)
STEPS = 40  # a run has at least so many updates, where the rows allow it
SHARE_OF_MEMORY = 0.8


class Sizes(NamedTuple):
    """Lengths and memory settings that all stages share."""

    max_length: Choice
    max_prompt: int
    max_tokens: Choice
    lora: bool
    why_lora: str
    micro: Choice
    checkpointing: Choice
    memory: float  # bytes at the peak


def method_of(want: str, rows: RowFacts) -> Choice:
    """The method for a wish and its rows (docs/tournament.md, docs/offline.md)."""
    if want == "imitate":
        return Choice("sft", "demonstrations are imitated by supervised fine-tuning")
    if want == "reward":
        return Choice(
            "rloo", "a reward for single answers to prompts: REINFORCE with the prompt's other answers as baseline"
        )
    if want == "judge":
        return Choice("online_dpo", "a judge of pairs, asked about fresh pairs at every step, needs the fewest calls")
    if rows.kind == "labelled":
        return Choice("kto", "answers are labelled good or bad, without pairs")
    return Choice("dpo", "pairs teach the policy directly; no reward model stands in between")


def max_length_of(rows: RowFacts, model: ModelFacts, machine: Machine, answer: int) -> Choice:
    """The length that keeps nearly all rows.

    Args:
        answer: tokens that are left for an answer to each prompt, where answers are sampled.

    Raises:
        DataError: no row fits into the model's context.
    """
    longest = sorted(one.longest + answer for one in rows.lengths)
    context = model.context or SIZES[-1]
    if longest[0] > context:
        what = "every prompt with its answer is longer than the model's context"
        raise DataError(
            what,
            where=model.source,
            got=f"the shortest of {len(longest):,} rows has {longest[0]:,} tokens",
            expected=f"rows of at most {context:,} tokens",
            fix="shorten the rows (split conversations), or take a model with a longer context",
        )
    limit = min(context, LONGEST[machine.device if machine.device in LONGEST else "cuda"])
    if longest[0] > limit or _share(longest, limit) < 0.5:
        limit = context
    fits = [size for size in SIZES if size < limit and _share(longest, size) >= FITTING]
    size = fits[0] if fits else limit
    left_out = len(longest) - sum(one <= size for one in longest)
    kept = f"holds {1 - left_out / len(longest):.0%} of the rows"
    kept += f"; {plural(left_out, 'longer one is', 'longer ones are')} left out" if left_out else ""
    return Choice(size, kept)


def _share(sorted_lengths: Sequence[int], size: int) -> float:
    return sum(one <= size for one in sorted_lengths) / len(sorted_lengths)


def answer_tokens(rows: RowFacts) -> Choice:
    """The limit of sampled answers: three quarters of the data's own answers fit, between 48 and 256 tokens."""
    answers = sorted(one.answer for one in rows.lengths if one.answer)
    if not answers:
        return Choice(96, "the data have no answers to measure: enough for a short paragraph")
    usual = answers[int(0.75 * (len(answers) - 1))]
    size = min(256, max(48, 16 * math.ceil(usual / 16)))
    return Choice(size, f"three quarters of the data's own answers have at most {usual:,} tokens; 48 to 256")


def sizes_of(
    request: Request, model: ModelFacts, rows: RowFacts, machine: Machine, max_length: Choice, max_tokens: Choice
) -> Sizes:
    """Adapters or all weights, and the size of a micro-batch, so that training fits into memory.

    Raises:
        ConfigError: nothing fits.
    """
    max_prompt = max(one.prompt for one in rows.lengths if one.longest <= max_length.value)
    free = SHARE_OF_MEMORY * machine.memory
    wanted = [request.size == "lora"] if request.size != "auto" else [model.parameters >= SMALL, True]
    largest = max(one.packed for one in rows.lengths if one.longest <= max_length.value)
    budgets = sorted({max(MICRO_TOKENS, largest), max(1024, largest), max(512, largest)}, reverse=True)
    for lora in dict.fromkeys(wanted):
        for recomputed in (False, True):
            for micro in budgets if not recomputed else budgets[-1:]:
                memory = peak(model, micro, lora=lora, recomputed=recomputed)
                if memory <= free:
                    return Sizes(
                        max_length,
                        max_prompt,
                        max_tokens,
                        lora,
                        _why_lora(request, model, lora, wanted),
                        Choice(micro, _why_micro(micro, largest, budgets)),
                        Choice(
                            recomputed, "activations are recomputed: they do not fit into memory" if recomputed else ""
                        ),
                        memory,
                    )
    least = peak(model, budgets[-1], lora=True, recomputed=True)
    fitting = model.parameters * free / least
    fix = "--lora needs the least" if request.size == "full" and least <= free else ""
    take = (
        f"take a model of at most about {fitting / 1e6:,.0f}M parameters, shorter rows, or a machine with more memory"
    )
    raise ConfigError(
        "too little memory to train this model",
        where=model.source,
        got=f"{machine.memory / 2**30:.1f} GiB free, of which {SHARE_OF_MEMORY:.0%} are planned with",
        expected=f"about {least / 2**30:.1f} GiB with adapters, "
        f"{peak(model, budgets[-1], lora=False, recomputed=True) / 2**30:.1f} GiB with all weights",
        fix=fix or take,
    )


def _why_lora(request: Request, model: ModelFacts, lora: bool, wanted: Sequence[bool]) -> str:
    if request.size != "auto":
        return "as asked for"
    if lora and not wanted[0]:
        return "all weights do not fit into memory"
    if lora:
        return "a pretrained model and little data: adapters keep the rest as it is, and one copy serves as reference"
    return f"a model of {model.parameters / 1e6:.1f}M parameters is small enough to train whole"


def _why_micro(micro: int, largest: int, budgets: Sequence[int]) -> str:
    if micro == largest:
        return "the longest row fills a pass"
    return "" if micro == budgets[0] else "smaller passes, for memory"


def peak(model: ModelFacts, micro: int, *, lora: bool, recomputed: bool) -> float:
    """Bytes at the peak of training with `micro` tokens a pass, as the stage's own plan counts them."""
    if model.shape is None:  # other families: four numbers a weight where it is trained, and a share for activations
        return 4.0 * model.parameters * (1.5 if lora else 4.5) * (1 + micro / 8192)
    trunk, rank = (model.shape, 16) if lora else (None, 0)
    work = Work({"policy": model.shape}, {}, micro, 2, trunk, fused=True, recomputed=recomputed, rank=rank)
    return memory_of(work).total


def rate_of(method: str, model: ModelFacts, lora: bool) -> Choice:
    """The learning rate: for adapters ten to twenty times that of all weights, lower for larger models.

    The rates for adapters on 135M parameters are those of docs/lab.md; the others follow the published ones (5e-7 to
    5e-6 for DPO on billions of parameters, 1e-5 to 2e-5 for SFT).
    """
    size = model.parameters
    base = {"sft": 2e-4, "reward": 2e-4, "kto": 5e-5, "rloo": 1e-4, "online_dpo": 5e-5}.get(method, 1e-4)
    if size < TINY:
        return Choice(10 * base if method in ("sft", "reward") else 2 * base, "a very small model takes a high rate")
    scale = 1.0 if size < 5e8 else 0.5 if size < 2e9 else 0.2
    if lora:
        return Choice(float(f"{base * scale:.1g}"), "for adapters, ten to twenty times the rate for all weights")
    return Choice(float(f"{base * scale / 20:.1g}"), "for all weights of a pretrained model")


def batch_of(rows: int, passes: float) -> Choice:
    """Rows a step: the largest of 4, 8, 16, 32 that leaves at least `STEPS` updates."""
    fits = [size for size in (32, 16, 8, 4) if rows * passes / size >= STEPS]
    size = fits[0] if fits else 2 if rows * passes < 4 * 10 else 4
    steps = max(1, round(rows * passes / size))
    return Choice(size, f"{steps:,} updates")


def passes_of(method: str, rows: int) -> Choice:
    """Epochs: imitation takes two and more, preferences one, and both more of little data."""
    usual, most, enough = (2, 4, 500) if method == "sft" else (1, 3, 800)
    count = min(most, max(usual, round(enough / max(1, rows))))
    why = "the usual number for this method" if count == usual else f"only {rows:,} rows"
    return Choice(float(count), why)


def held_out_of(prompts: int) -> Choice:
    """The share of the prompts that is held out."""
    if prompts <= 20:
        share = max(1, prompts // 4) / prompts
        return Choice(round(share, 3), f"a quarter of only {prompts} prompts")
    target = min(100, max(10, round(0.2 * prompts)), prompts // 2)
    return Choice(
        float(f"{target / prompts:.3g}"),
        f"{target} of {prompts:,} prompts: intervals are over prompts, so these must be many",
    )


def lengths_of(rows: RowFacts, places: Sequence[int]) -> list[Lengths]:
    """The lengths of some of the rows."""
    return [rows.lengths[place] for place in places]
