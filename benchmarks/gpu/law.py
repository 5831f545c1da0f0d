"""The sampler's law: how often each token is drawn, against the model's own softmax computed by a padded pass.

The first token follows a prompt (the prefill), the second a token that was drawn (a decoding step).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from benchmarks.gpu.report import Bench, Result
from benchmarks.gpu.shapes import SMALL, TINY, ids, language
from torch import Tensor

from tiltyard import LanguageModel, Prompt, SampleSettings, sample
from tiltyard.batch.forest import pack
from tiltyard.models.backbone import DType
from tiltyard.types import Group, Response

SPREAD = 2.5  # standard deviation of the logits in nats: an uneven law
SIGMAS = 4.5  # of chi-square: a chance of about 3e-6 for each of a dozen tests
LEAST = 10.0  # draws expected of a class; rarer tokens are one class together
HEADS = 6  # first tokens, the most frequent ones, after which the second token is looked at
LOGP = {"float32": 1e-3, "bfloat16": 0.3}  # nats that a recorded log-prob may differ from the training pass


class Fit(NamedTuple):
    """Chi-square of counts, its degrees of freedom, and the total variation."""

    chi2: float
    freedom: int
    variation: float

    @property
    def sigmas(self) -> float:
        """Standard deviations by which chi-square is too large (Wilson and Hilferty's cube root)."""
        n = max(1, self.freedom)
        return float(((self.chi2 / n) ** (1 / 3) - (1 - 2 / (9 * n))) / (2 / (9 * n)) ** 0.5)


def fit_of(counts_V: Tensor, law_V: Tensor) -> Fit:
    """How well counts fit a law; tokens of probability 0 that were drawn make chi-square infinite."""
    total = float(counts_V.sum())
    expected_V = law_V.double() * total
    if bool((counts_V[law_V == 0] > 0).any()):
        return Fit(float("inf"), 1, 1.0)
    common = expected_V >= LEAST
    seen = torch.cat([counts_V[common].double(), counts_V[~common].double().sum()[None]])
    hoped = torch.cat([expected_V[common], expected_V[~common].sum()[None]])
    keep = hoped > 1.0
    chi2 = float(((seen - hoped).square() / hoped.clamp_min(1e-12))[keep].sum())
    variation = float((counts_V.double() / total - law_V.double()).abs().sum()) / 2
    return Fit(chi2, int(keep.sum()) - 1, variation)


def truncated(law_V: Tensor, settings: SampleSettings) -> Tensor:
    """The law after top-k and top-p, written down anew: the likeliest k, of those the first that reach p."""
    order = sorted(range(len(law_V)), key=lambda v: -float(law_V[v]))
    kept = order[: settings.top_k] if settings.top_k else order
    within = sum(float(law_V[v]) for v in kept)
    mass, chosen = 0.0, []
    for v in kept:
        if mass >= settings.top_p * within:
            break
        chosen.append(v)
        mass += float(law_V[v])
    out = torch.zeros_like(law_V)
    out[chosen] = law_V[chosen] / law_V[chosen].sum()
    return out


def sampler_law(bench: Bench) -> Iterator[Result]:
    """The check in both types; truncated laws in float32 alone, since rounding moves a token across their edge."""
    shape = TINY if bench.tiny else SMALL
    draws = 4000 if bench.tiny else 40_000
    for dtype in ("float32", "bfloat16"):
        scale = SPREAD / (0.02 * shape[0] ** 0.5)  # 0.02: of transformers' random weights
        model = language("Llama", shape, bench.device, dtype, scale=scale)
        model.chat.stop_ids = frozenset({-1})  # an id that nobody draws: every response has two tokens
        prompt = Prompt(text="", ids=ids(20, torch.Generator().manual_seed(3), shape[-1]))
        plain = SampleSettings(max_tokens=2, max_concurrent=4096)
        kinds = {"whole law": plain, "top-k and top-p": replace(plain, top_k=40, top_p=0.8)}
        for name, settings in kinds.items() if dtype == "float32" else [("whole law", plain)]:
            responses = sample(model, [prompt], draws, settings, seed=5)[0].responses
            yield compared(model, prompt, responses, settings, f"{name}, {dtype}")
        yield recorded(model, prompt, sample(model, [prompt], 64, plain, seed=6)[0], dtype)


def next_law(model: LanguageModel, rows: Sequence[tuple[int, ...]]) -> Tensor:
    """The softmax [rows, V] after each row, by the module alone; float64 on the CPU."""
    with torch.no_grad(), model.autocast(), model.plain():
        logits = model.module(input_ids=torch.tensor(rows, device=model.device), use_cache=False).logits[:, -1]
    return logits.cpu().double().softmax(-1)


def compared(
    model: LanguageModel, prompt: Prompt, responses: Sequence[Response], settings: SampleSettings, what: str
) -> Result:
    """The counts of first and second tokens against their laws."""
    firsts = Counter(r.ids[0] for r in responses)
    heads = [token for token, _ in firsts.most_common(HEADS)]
    laws = torch.cat([next_law(model, [prompt.ids]), next_law(model, [(*prompt.ids, token) for token in heads])])
    fits = {}
    for name, law_V in zip(["first", *heads], laws, strict=True):
        tokens = [r.ids[0] if name == "first" else r.ids[1] for r in responses if name == "first" or r.ids[0] == name]
        counts_V = torch.bincount(torch.tensor(tokens), minlength=len(law_V))
        fits[str(name)] = fit_of(counts_V, law_V if settings.is_untruncated else truncated(law_V, settings))
    second = [fit for name, fit in fits.items() if name != "first"]
    both = Fit(sum(f.chi2 for f in second), sum(f.freedom for f in second), max(f.variation for f in second))
    numbers = {
        "first": fits["first"]._asdict() | {"sigmas": fits["first"].sigmas},
        "second": both._asdict() | {"sigmas": both.sigmas},
    }
    good = max(fits["first"].sigmas, both.sigmas) < SIGMAS
    text = "; ".join(
        f"{name} token: chi-square {fit.chi2:.0f} of {fit.freedom} ({fit.sigmas:+.1f} sigma), "
        f"total variation {fit.variation:.4f}"
        for name, fit in (("first", fits["first"]), ("second", both))
    )
    return Result("law", what, "ok" if good else "FAIL", text, {"draws": len(responses), **numbers})


def recorded(model: LanguageModel, prompt: Prompt, group: Group, dtype: DType) -> Result:
    """The log-probs that the sampler recorded against those of the training pass."""
    with torch.no_grad():
        logp_R = model.logp_R(pack([Group(prompt, group.responses)], model.device))[0].cpu()
    sampled_R = torch.tensor([x for r in group.responses for x in r.logps or ()])
    gap_R = (logp_R - sampled_R).abs()
    numbers = {"largest": float(gap_R.max()), "mean": float(gap_R.mean())}
    state = "ok" if numbers["largest"] <= LOGP[dtype] else "FAIL"
    text = f"largest gap {numbers['largest']:.1e} nats (at most {LOGP[dtype]:g}), mean {numbers['mean']:.1e}"
    return Result("law", f"recorded log-probs, {dtype}", state, text, numbers)
