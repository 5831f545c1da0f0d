"""Reproduces the published figures of LLMBar's judges from their verdicts, and measures them beside `longest`.

    python -m benchmarks.judges VERDICTS.jsonl.gz [--json FILE]

Rows have `prompt`, `responses`, `label` (1 or 2), `source`, and `verdicts`: {judge: [as shown, with the two
swapped]}, both 1, 2 or null, made of the `result.json` of each judge in LLMBar's repository (Zeng et al. 2024, arXiv
2310.07641, MIT licence). `natural.csv` beside this file has what their `statistics.json` state for LLMBar-Natural:
verdicts that are right in each order and in both, pairs on which both orders name the same response, and Cohen's kappa
of the two orders.

The strategies `Swap` and `Swap_CoT` ask a second time where the two orders disagree, and their published figures are
those after it (`results[-1]`), while the verdicts are of the first pass (`results[0]`); they are not compared.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from tiltyard.data.bad_rows import BadRows, parse_answers, parsed_rows
from tiltyard.evaluation.people import PairTable, judged_pairs, lengths, majorities, verdicts_of_row
from tiltyard.stats.calibration import OrderCounts, calibration_table, order_counts

PUBLISHED = Path(__file__).with_name("natural.csv")
SECOND_PASS = ("Swap", "Swap_CoT")


class Published(NamedTuple):
    """What LLMBar's statistics state of one judge on LLMBar-Natural, of 100 pairs."""

    right: tuple[int, int]
    both: int
    same: int
    kappa: float


def published() -> dict[str, Published]:
    """The published figures by judge."""
    with PUBLISHED.open(encoding="utf-8") as file:
        return {
            row["judge"]: Published(
                (int(row["right_shown"]), int(row["right_swapped"])),
                int(row["right_both"]),
                int(row["same"]),
                float(row["kappa_orders"]),
            )
            for row in csv.DictReader(file)
        }


def read(path: Path, source: str = "") -> PairTable:
    """The pairs of a file with people's labels and the judges' verdicts; `source`: only rows whose source ends so."""
    table = PairTable()
    for row, group in parsed_rows(path, parse_answers, BadRows("error")):
        if str(row.value.get("source", "")).endswith(source):
            table.add_people(group)
            for name, verdict in verdicts_of_row(row).items():
                table.add_verdict(group, name, verdict)
    return table


def counted(table: PairTable, judge: str) -> OrderCounts:
    """A judge's verdicts against the labels."""
    pairs = list(table.pairs.values())
    orders = [pair.verdicts[judge].orders or (None, None) for pair in pairs]
    shown, swapped = ([math.nan if o[k] is None else o[k] for o in orders] for k in (0, 1))
    return order_counts(shown, swapped, majorities(pairs))


def compared(table: PairTable) -> Iterator[tuple[str, OrderCounts, Published | None]]:
    """Yields (judge, counts, the published figures to compare with); None for those of a second pass."""
    known = published()
    for judge in table.names():
        second = judge.rpartition("/")[2] in SECOND_PASS
        yield judge, counted(table, judge), None if second else known.get(judge)


def agrees(found: OrderCounts, stated: Published) -> bool:
    """True if the counts are equal and the kappa is to the last digit."""
    same = (found.right, found.both, found.same) == stated[:3]
    return same and abs(found.kappa - stated.kappa) < 1e-12


def main() -> None:
    """Prints the comparison on Natural, and the calibration of every judge on all pairs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verdicts", type=Path)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    console = Console(width=140)
    natural = Table("judge", "right, shown", "right, swapped", "both", "same", "kappa", "published")
    for judge, found, stated in compared(read(asked.verdicts, "natural")):
        verdict = "second pass" if stated is None else "equal" if agrees(found, stated) else f"DIFFERS: {stated}"
        natural.add_row(judge, *map(str, (*found.right, found.both, found.same)), f"{found.kappa:.6f}", verdict)
    console.print(natural)
    rows = calibrated(read(asked.verdicts))
    whole = Table("judge", "agree %", "over longest", "longer %", "first %", "apart %", "useless")
    for name, row in rows.items():
        whole.add_row(name, *(f"{100 * row[key]:.1f}" for key in ("agreement", "gain", "longer", "first", "disagree")),
                      "useless" if row["useless"] else "")  # fmt: skip
    console.print(whole)
    if asked.json:
        asked.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


def calibrated(table: PairTable) -> Mapping[str, Mapping[str, Any]]:
    """The calibration table of all pairs, values alone."""
    pairs = list(table.pairs.values())
    judges = {name: judged_pairs(pairs, name) for name in table.names()}
    rows = calibration_table(judges, majorities(pairs), [p.prompt for p in pairs], lengths(pairs), rounds=300)
    keys = ("agreement", "gain", "longer", "first", "disagree")
    return {r.name: {k: getattr(r, k).value for k in keys} | {"useless": not r.useful} for r in rows}


if __name__ == "__main__":
    main()
