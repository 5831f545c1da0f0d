"""Gold reward under a trained reward model: samplers that pick among N candidates, on the embedded world.

    python -m benchmarks.infer_gold RUN [--prompts 60] [--samples 128]

RUN is a run of the recipe `tournament` or `demo` (its stages world, sft and reward). Every prompt's samples are drawn
once; each sampler's distribution over them is computed, not drawn, so that all share one noise.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from tiltyard.data.formats import parse_row
from tiltyard.data.read import read_rows
from tiltyard.models.load import load_language_model, load_scalar_model
from tiltyard.posterior.infer import make_sampler
from tiltyard.posterior.infer.base import distance_of
from tiltyard.posterior.measure import draw
from tiltyard.sampling import SampleSettings
from tiltyard.scoring import FunctionScorer, RewardScorer
from tiltyard.stats.intervals import mean_ci
from tiltyard.world.reward import gold

CASES = [
    *(("best_of_n", n, 1.0) for n in (1, 2, 4, 8, 16, 32, 64)),
    *(("best_of_poisson", n, 1.0) for n in (2, 4, 8, 16, 32, 64)),
    *(("pessimism", n, 0.25) for n in (4, 16, 64)),
    *(("importance", n, 0.5) for n in (4, 16, 64)),
]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("run", type=Path)
    parser.add_argument("--prompts", type=int, default=60)
    parser.add_argument("--samples", type=int, default=128)
    args = parser.parse_args()
    model = load_language_model(args.run / "sft/model")
    reward = load_scalar_model(args.run / "reward/model")
    rows = [parse_row(row, "prompts").prompt for row in read_rows(args.run / "world/held_out.jsonl")]
    prompts = model.chat.encode_prompts(rows[: args.prompts])
    groups = draw(model, prompts, args.samples, SampleSettings(max_tokens=64), (3,))
    proxy_PM = np.array([g.scores for g in RewardScorer(reward, model.chat).score(groups)])
    gold_PM = np.array([g.scores for g in FunctionScorer(gold, time_limit=None).score(groups)])
    rng, found = np.random.default_rng(0), {}
    for name, n, beta in CASES:
        sampler = make_sampler(name, candidates=n)
        density_PM = np.array([sampler.density(row / beta, rng) for row in proxy_PM])  # type: ignore[attr-defined]
        kl = np.mean([distance_of(d, row / beta).kl_to_prior for d, row in zip(density_PM, proxy_PM, strict=True)])
        found[name, n] = (density_PM * gold_PM).mean(1)
        value = mean_ci(found[name, n])
        print(
            f"{name:16} N {n:3} KL {kl:5.2f} proxy {(density_PM * proxy_PM).mean():6.3f} "
            f"gold {value.value:6.3f} [{value.low:.3f}, {value.high:.3f}]"
        )
    for one, two in ((("best_of_n", 64), ("best_of_n", 4)), (("pessimism", 64), ("best_of_n", 64))):
        value = mean_ci(found[one] - found[two])
        print(f"{one} - {two}: gold {value.value:+.3f} [{value.low:+.3f}, {value.high:+.3f}], paired over prompts")


if __name__ == "__main__":
    main()
