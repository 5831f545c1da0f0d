"""What was measured, as a record (JSON), a table and a picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.speed.rows import Row
from rich.console import Console
from rich.table import Table

Found = dict[str, Any]


def record(row: Row, ours: dict[str, Found], peer: dict[str, Found], floor: Found, about: Found) -> Found:
    """One row's results.

    Args:
        ours, peer: by how they were started: ours `as_it_comes` and `no_tune`, the peer's `as_it_comes` and `tuned`;
            each with `seconds`, `rss_mib`, `versions`. Either may lack some; an empty one was not measured.
        floor: `gflop` of a step, and `gemm_gflops` and `best_gflops` of the machine.
    """
    mine, theirs = ours.get("as_it_comes", {}), peer.get("as_it_comes", {})
    least = floor["gflop"] / floor["gemm_gflops"]
    return {
        "work": row.title,
        "against": row.peer.name,
        "ours": mine.get("seconds"),
        "peer": theirs.get("seconds"),
        "ratio": _ratio(theirs, mine, "seconds"),
        "cpu_ratio": _ratio(theirs, mine, "cpu_seconds"),
        "peak_rss_ratio": _ratio(mine, theirs, "rss_mib"),
        "floor": {**floor, "seconds": least},
        "share_of_floor": least / mine["seconds"] if mine else None,
        "share_of_best": floor["gflop"] / floor["best_gflops"] / mine["seconds"] if mine else None,
        "peer_share_of_floor": least / theirs["seconds"] if theirs else None,
        "ratio_both_tuned": _ratio(peer.get("tuned", {}), mine, "seconds"),
        "ratio_neither_tuned": _ratio(theirs, ours.get("no_tune", {}), "seconds"),
        "reach": {"ratio": row.reach, "peak_rss_ratio": row.rss or None, "share_of_floor": row.share or None},
        "versions": {"ours": mine.get("versions", {}), "peer": theirs.get("versions", {})},
        "measured": {"ours": ours, "peer": peer},
        **about,
    }


def _ratio(above: Found, below: Found, key: str) -> float | None:
    return above[key] / below[key] if above.get(key) and below.get(key) else None


def verdicts(found: Found) -> dict[str, bool | None]:
    """Whether each of what is to be reached is; None where it was not measured."""
    wanted = found["reach"]
    said: dict[str, bool | None] = {"ratio": None if found["ratio"] is None else found["ratio"] >= wanted["ratio"]}
    if wanted["peak_rss_ratio"]:
        rss = found["peak_rss_ratio"]
        said["peak_rss_ratio"] = None if rss is None else rss <= wanted["peak_rss_ratio"]
    if wanted["share_of_floor"]:
        share = found["share_of_floor"]
        said["share_of_floor"] = None if share is None else share >= wanted["share_of_floor"]
    return said


def write(found: Found, folder: Path, name: str) -> None:
    """One row's JSON."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(found, indent=2, default=str) + "\n")


def show(rows: list[Found], console: Console) -> None:
    """The table: seconds a step (a call where answers are sampled), ratios, memory, floor, what is to be reached."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("work")
    table.add_column("against")
    for title in (
        "ours s",
        "peer s",
        "ratio",
        "reach",
        "of CPU s",
        "both tuned",
        "neither",
        "RSS ours",
        "peer",
        "ratio",
        "reach",
    ):
        table.add_column(title, justify="right")
    for title in ("floor s", "of it", "of best", "peer's"):
        table.add_column(title, justify="right")
    for found in rows:
        said, mine, theirs = verdicts(found), found["measured"]["ours"], found["measured"]["peer"]
        wanted = found["reach"]
        table.add_row(
            found["work"],
            found["against"],
            _said(found["ours"], ".3f"),
            _said(found["peer"], ".3f") if theirs else f"[dim]{found.get('why', '-')}[/]",
            _mark(found["ratio"], ".2f", said["ratio"]),
            f"{wanted['ratio']:g}",
            _said(found["cpu_ratio"], ".2f"),
            _said(found["ratio_both_tuned"], ".2f"),
            _said(found["ratio_neither_tuned"], ".2f"),
            _said(mine.get("as_it_comes", {}).get("rss_mib"), ",.0f"),
            _said(theirs.get("as_it_comes", {}).get("rss_mib"), ",.0f"),
            _mark(found["peak_rss_ratio"], ".2f", said.get("peak_rss_ratio")),
            f"{wanted['peak_rss_ratio']:g}" if wanted["peak_rss_ratio"] else "",
            f"{found['floor']['seconds']:.3f}",
            _mark(found["share_of_floor"], ".0%", said.get("share_of_floor")),
            _said(found["share_of_best"], ".0%"),
            _said(found["peer_share_of_floor"], ".0%"),
        )
    console.print(table)
    met = [v for found in rows for v in verdicts(found).values()]
    console.print(f"reached: {met.count(True)}, missed: {met.count(False)}, not measured: {met.count(None)}")


def _said(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _mark(value: float | None, form: str, fine: bool | None) -> str:
    colour = {True: "green", False: "red", None: "default"}[fine]
    return f"[{colour}]{_said(value, form)}[/]"


def picture(rows: list[Found], path: Path) -> None:
    """Three panels: how many times faster, part of the peer's memory, share of the floor, each with its target."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    names = [f"{found['work']}  /  {found['against']}" for found in rows]
    panels: tuple[tuple[str, str, str], ...] = (
        ("ratio", "times faster than the peer", "ratio"),
        ("peak_rss_ratio", "peak memory, part of the peer's", "peak_rss_ratio"),
        ("share_of_floor", "share of the arithmetic floor", "share_of_floor"),
    )
    figure, axes = plt.subplots(
        1, 3, sharey=True, figsize=(13, 1.2 + 0.36 * len(rows)), width_ratios=(2, 1, 1), layout="constrained"
    )
    for axis, (key, title, target) in zip(axes, panels, strict=True):
        for place, found in enumerate(rows):
            fine, value, wanted = verdicts(found).get(target), found[key], found["reach"][target]
            colour = {True: "tab:green", False: "tab:red", None: "0.6"}[fine]
            if value is not None:
                axis.barh(place, value, color=colour, height=0.62)
                beside = {"xytext": (3, 0), "textcoords": "offset points", "va": "center", "size": 8}
                axis.annotate(f"{value:.2f}", (value, place), **beside)
            if wanted:
                axis.plot([wanted, wanted], [place - 0.42, place + 0.42], color="black", lw=1.5)
            if key == "share_of_floor" and found["peer_share_of_floor"] is not None:
                axis.plot(found["peer_share_of_floor"], place, marker="D", ms=4, color="black", mfc="white")
        axis.set_title(title, fontsize=10)
        axis.margins(x=0.12)
        axis.set_xlim(left=0)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].axvline(1, color="0.5", lw=1, ls=":")
    axes[0].set_yticks(range(len(rows)), names, fontsize=8)
    axes[0].invert_yaxis()
    said = "black line: to be reached; diamond: the peer; green: reached, red: missed, grey: no target"
    figure.supxlabel(said, size=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)
