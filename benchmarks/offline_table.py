"""One table and one picture of a run of benchmarks/offline_real.yaml, from what its stages measured.

python benchmarks/offline_table.py runs/offline_real [docs/images/offline_real.png]
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

REWARDS = ("independent_pairs", "kwise", "listwise")


def read(run: Path) -> tuple[dict[str, dict[str, Any]], list[dict[str, Any]]]:
    """(the evaluate stage's models, one row of figures a method)."""
    models = json.loads((run / "evaluate" / "summary.json").read_text())["models"]
    rows = []
    for name, found in models.items():
        metrics = [json.loads(line) for line in (run / name / "metrics.jsonl").read_text().splitlines()]
        result = json.loads((run / name / "done.json").read_text())["result"]
        speed = median(m["time/tokens_per_second"] for m in metrics)
        pairs = f"{sum(m.get('groups', m.get('responses', 0) / 2) for m in metrics):.0f}" if name != "sft" else ""
        rows.append(
            {
                "method": name,
                "accuracy": result.get("held_out/accuracy"),
                "likelihood": result.get("held_out/likelihood_accuracy"),
                "reward": found["proxy"],
                "reward_ci": found["proxy_ci"],
                "kl": found["kl"],
                "kl_ci": found["kl_ci"],
                "win": found["win_rate"],
                "win_ci": found["win_rate_ci"],
                "length": found["length"],
                "truncated": found["truncated"],
                "distinct": found["distinct_2"],
                "speed": speed,
                "pairs": pairs,
            }
        )
    return models, rows


def markdown(rows: list[dict[str, Any]]) -> str:
    """The table."""
    out = [
        "| method | held-out accuracy of log pi/ref | of log pi a token | reward model's score | KL to SFT, nats | "
        "wins against SFT | tokens | cut | distinct-2 | tokens/s |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        share = lambda x: "" if x is None else f"{100 * x:.1f}%"  # noqa: E731
        low, high = r["reward_ci"]
        out.append(
            f"| {r['method']} | {share(r['accuracy'])} | {share(r['likelihood'])} | {r['reward']:.3f} "
            f"({low:.3f} to {high:.3f}) | {r['kl']:.1f} | {share(r['win'])} ({share(r['win_ci'][0])} to "
            f"{share(r['win_ci'][1])}) | {r['length']:.0f} | {share(r['truncated'])} | {r['distinct']:.2f} | "
            f"{r['speed']:,.0f} |"
        )
    return "\n".join(out)


def reward_models(run: Path) -> str:
    """Three losses on the same rankings."""
    out = ["| loss | steps | held-out accuracy | held-out loss | seconds |", "|---|---|---|---|---|"]
    for name in REWARDS:
        path = run / name / "done.json"
        if not path.exists():
            continue
        done = json.loads(path.read_text())
        result = done["result"]
        accuracy, loss = result["held_out/accuracy"], result["held_out/loss"]
        out.append(f"| {name} | {result['steps']} | {100 * accuracy:.1f}% | {loss:.3f} | {done['seconds']:.0f} |")
    return "\n".join(out)


def picture(rows: list[dict[str, Any]], path: Path) -> None:
    """Reward against KL with intervals, and held-out accuracy beside it."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.6), width_ratios=(3, 2), layout="constrained")
    for i, r in enumerate(rows):
        y = [[r["reward"] - r["reward_ci"][0]], [r["reward_ci"][1] - r["reward"]]]
        x = [[r["kl"] - r["kl_ci"][0]], [r["kl_ci"][1] - r["kl"]]]
        left.errorbar(r["kl"], r["reward"], xerr=x, yerr=y, fmt="o", ms=4, lw=1, color=f"C{i % 10}")
        left.annotate(r["method"], (r["kl"], r["reward"]), xytext=(5, 5), textcoords="offset points", fontsize=8)
    left.set_xscale("symlog", linthresh=1)
    left.set(xlabel="KL to the SFT model, nats an answer", ylabel="reward model's score, 95% interval")
    measured = sorted((r for r in rows if r["accuracy"] is not None), key=lambda r: r["accuracy"])
    right.barh([r["method"] for r in measured], [100 * r["accuracy"] for r in measured], color="0.6")
    right.axvline(50, color="0.3", lw=1, ls="--")
    right.set(xlabel="held-out pairs ordered rightly by log pi/ref, %", xlim=(40, None))
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)


def main() -> None:
    """Prints the tables; draws the picture if a path is given."""
    run = Path(sys.argv[1])
    _, rows = read(run)
    print(markdown(rows), "\n")
    print(reward_models(run))
    if len(sys.argv) > 2:
        picture(rows, Path(sys.argv[2]))


if __name__ == "__main__":
    main()
