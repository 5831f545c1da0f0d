"""Forest batches against ordinary padded batches on the same pairs: one forward and backward of the log-probs.

    python benchmarks/forest.py [--preset 12m] [--groups 8] [--k 2] [--rounds 5]

Both sides run in one process, turn by turn, and the median of each is compared; the ratio is what carries over to
another machine. The padded side is transformers as it comes: right padding, the prompt in every row, all logits.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import transformers

from tiltyard.batch.forest import pack, padded_rows
from tiltyard.data import train_tokenizer
from tiltyard.models.language import LanguageModel
from tiltyard.models.load import from_scratch
from tiltyard.types import Group, Prompt, Response


def pairs(groups: int, k: int, vocab: int) -> list[Group]:
    """Groups with prompts of 20 to 60 tokens and answers of 40 to 250, as in real preference data."""
    g = torch.Generator().manual_seed(0)

    def ids(low: int, high: int) -> tuple[int, ...]:
        length = int(torch.randint(low, high + 1, (1,), generator=g))
        return tuple(torch.randint(5, vocab, (length,), generator=g).tolist())

    return [Group(Prompt(ids=ids(20, 60)), tuple(Response(ids=ids(40, 250)) for _ in range(k))) for _ in range(groups)]


def packed_step(model: LanguageModel, groups: list[Group]) -> Callable[[], None]:
    forest = pack(groups)

    def step() -> None:
        (-model.logp_R(forest)[0].mean()).backward()
        model.module.zero_grad(set_to_none=True)

    return step


def padded_step(model: LanguageModel, groups: list[Group]) -> Callable[[], None]:
    forest = pack(groups)
    (ids, mask), places = padded_rows(forest)

    def step() -> None:
        with model.plain():
            logits = model.module(input_ids=ids, attention_mask=mask).logits
        logp = torch.log_softmax(logits, -1).flatten(0, 1)[places[forest.predictor_R]]
        (-logp.gather(-1, forest.target_R[:, None]).mean()).backward()
        model.module.zero_grad(set_to_none=True)

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="12m")
    parser.add_argument("--groups", type=int, default=8)
    parser.add_argument("--k", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    tokenizer = train_tokenizer((f"word{i} and number {i * 7}" for i in range(2000)), 512)
    model = from_scratch(asked.preset, tokenizer)
    model.module.resize_token_embeddings(8192)
    model.module.train()
    groups = pairs(asked.groups, asked.k, 8192)
    sides = {"packed": packed_step(model, groups), "padded": padded_step(model, groups)}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for round_ in range(asked.rounds + 1):
        for name, step in sides.items():
            began = time.perf_counter()
            step()
            if round_:  # the first is a warm-up
                seconds[name].append(time.perf_counter() - began)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    forest = pack(groups)
    (ids, _), _ = padded_rows(forest)
    found = {
        "work": f"log-probs forward+backward, {asked.preset}, {asked.groups} prompts x {asked.k} answers",
        "ours": median["packed"],
        "peer": median["padded"],
        "ratio": median["padded"] / median["packed"],
        "tokens": {"packed": forest.T, "padded": ids.numel(), "loss": forest.R},
        "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
    }
    folder = Path(__file__).parent / "results"
    folder.mkdir(exist_ok=True)
    (folder / f"forest-{asked.preset}-k{asked.k}.json").write_text(json.dumps(found, indent=2) + "\n")
    print(f"{found['work']}: packed {median['packed']:.3f} s, padded {median['padded']:.3f} s, {found['ratio']:.2f}x")


if __name__ == "__main__":
    main()
