"""How much a log-prob depends on what shares the batch: answers one at a time, and eight together, by width of number.

python -m benchmarks.batch_drift models/smollm2 hhh.jsonl --pairs 40
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from tiltyard.data.benchmarks import read_benchmark
from tiltyard.evaluation.before_after import each_logp
from tiltyard.evaluation.benchmarks import pair_columns
from tiltyard.models.load import load_language_model


def log_probs(folder: Path, groups_of: list, dtype: str, together: int) -> torch.Tensor:  # type: ignore[type-arg]
    """The summed log-prob of every answer, `together` answers in a forward pass at most, [N] in nats."""
    model = load_language_model(folder, device="cpu", dtype=dtype)
    groups = model.chat.encode_groups(groups_of)
    budget = 1 if together == 1 else together * max(group.tokens for group in groups)
    return torch.tensor([[logp for logp, _ in of] for of in each_logp(model, groups, budget)], dtype=torch.float64)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("file", type=Path, help="pairs")
    parser.add_argument("--pairs", type=int, default=40)
    asked = parser.parse_args()
    items = read_benchmark(asked.file, kind="pairs", limit=asked.pairs).items
    groups = [item.group for item in items]
    found = {(dtype, n): log_probs(asked.model, groups, dtype, n) for dtype in ("float32", "bfloat16") for n in (1, 8)}
    exact = found["float32", 1]
    print("| numbers | one against eight, largest | root mean square | mean | choices that differ | from float32 |")
    print("|---|---|---|---|---|---|")
    for dtype in ("float32", "bfloat16"):
        alone, eight = found[dtype, 1], found[dtype, 8]
        gap, off = eight - alone, alone - exact
        places = list(range(len(items)))
        first = [pair_columns(items, places, some.tolist())[0].values for some in (alone, eight)]
        differ = sum(a != b for a, b in zip(*first, strict=True))
        cells = [f"{gap.abs().max():.2g} nats", f"{gap.square().mean().sqrt():.2g}", f"{gap.mean():+.2g}"]
        print(
            "| " + " | ".join([dtype, *cells, f"{differ} of {len(items)}", f"{off.square().mean().sqrt():.2g}"]) + " |"
        )


if __name__ == "__main__":
    main()
