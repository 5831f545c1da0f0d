"""What SMC costs beyond sampling: 64 particles against 64 plain responses, in one run.

    python -m benchmarks.smc MODEL [--prompts 4] [--tokens 32] [--value VALUE]

The reward is a function that costs nothing, so what is measured is resampling: weights, and rows of the cache that
move. Rounds alternate, and the median ratio is printed with the number of resamplings.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

from tiltyard.models.load import load_language_model, load_scalar_model
from tiltyard.posterior import Prior, exp, score
from tiltyard.posterior.infer import make_sampler
from tiltyard.posterior.measure import draw
from tiltyard.sampling import SampleSettings
from tiltyard.scoring import FunctionScorer
from tiltyard.types import Message, Prompt, Response

WORDS = ("weather", "bread", "music", "trains", "rivers", "maps", "paper", "glass")


def timed(work: Callable[[], list]) -> tuple[float, list]:
    start = time.perf_counter()
    found = work()
    return time.perf_counter() - start, found


def letters(_: Prompt, response: Response) -> float:
    return response.text.count("e") / 4


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--particles", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--every", type=int, default=4)
    parser.add_argument("--value", default="")
    args = parser.parse_args()
    model = load_language_model(args.model)
    asked = [Prompt(messages=(Message("user", f"Tell me something about {word}."),)) for word in WORDS[: args.prompts]]
    prompts = model.chat.encode_prompts(asked)
    target = Prior(model) * exp(score(FunctionScorer(letters, time_limit=None)) / 0.5)
    sampling = SampleSettings(max_tokens=args.tokens)
    samplers = {f"smc every {args.every}": make_sampler("smc", particles=args.particles, every=args.every)}
    if args.value:
        value = load_scalar_model(args.value)
        samplers["twisted_smc"] = make_sampler("twisted_smc", particles=args.particles, value=value, scale=2.0)
    draw(model, prompts[:1], 2, sampling, (9,))  # the first call compiles and compares decoders
    for name, sampler in samplers.items():
        plain, particle, drawn = [], [], []
        for seed in range(args.rounds):
            plain.append(timed(partial(draw, model, prompts, args.particles, sampling, (seed,)))[0])
            took, drawn = timed(partial(sampler.draw, target, prompts, 1, sampling, seed=seed))
            particle.append(took)
        resampled = sum(one.resampled for one in drawn) / len(drawn)
        tokens = sum(one.tokens for one in drawn)
        ratio = statistics.median(b / a for a, b in zip(plain, particle, strict=True))
        print(
            f"{name}: {args.particles} particles x {len(prompts)} prompts x {args.tokens} tokens: "
            f"{statistics.median(particle):.2f} s, plain {statistics.median(plain):.2f} s, ratio {ratio:.2f}; "
            f"resampled {resampled:.1f} times a prompt, {tokens:,} tokens"
        )


if __name__ == "__main__":
    main()
