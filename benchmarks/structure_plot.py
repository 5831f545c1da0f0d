"""The picture of the package's dependencies: packages as boxes in layers, an arrow to each package that is imported."""

from __future__ import annotations

import io
from collections import Counter
from pathlib import Path

from benchmarks.structure import imports, layers, reached, sources
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

GROUND = (
    "records",
    "config",
    "types",
    "files",
    "profiler",
    "errors",
    "yaml_values",
    "allocator",
    "journal",
)  # imported by nearly all
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#4d4d4d")
HEIGHT, GAP = 0.62, 1.3


def draw(path: Path, root: Path) -> Path:
    """Draws the packages of the checkout at `root` into a PNG file."""
    graph, lines = imports(root), _lines(root)
    rows = _rows(root, set(graph))
    places = _places(rows)
    width = max(sum(_width(name, lines[name]) + 0.5 for name in row) for row in rows)
    figure = Figure(figsize=(13, 0.95 * len(rows) + 1.2), dpi=130)
    FigureCanvasAgg(figure)
    ax = figure.add_axes((0.01, 0.01, 0.98, 0.95))
    positions = _positions(rows, lines, width)
    _arrows(ax, graph, positions, places)
    for row in rows:
        for name in row:
            _box(ax, name, lines[name], positions[name])
    ax.set_xlim(-width / 2 - 0.4, width / 2 + 0.4)
    ax.set_ylim(-GAP * len(rows) + 0.3, 0.5)
    note = "Pale: implied by other arrows. The lowest row is imported by nearly all; its arrows are left out."
    ax.text(0, -GAP * len(rows) + 0.5, note, ha="center", fontsize=8.5, color="0.35")
    ax.axis("off")
    figure.suptitle("tiltyard: layers, lines of code, and which package imports which", fontsize=13, fontweight="bold")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(buffer.getvalue())
    return path


def _lines(root: Path) -> Counter[str]:
    found: Counter[str] = Counter()
    for path, _ in sources(root):
        parts = path.relative_to(root / "src/tiltyard").with_suffix("").parts
        found[parts[0]] += len(path.read_text(encoding="utf-8").splitlines())
    return found


def _rows(root: Path, known: set[str]) -> list[list[str]]:
    """Returns the layers with the ground in one row."""
    rows = [[name for name in row if name in known and name not in GROUND] for row in layers(root)]
    rows = [row for row in rows if row]
    named = {name for row in rows for name in row}
    rest = sorted(known - named - set(GROUND) - {"tiltyard", "__init__"})
    ground = [name for name in GROUND if name in known]
    return [*rows, [*rest, *ground]]


def _places(rows: list[list[str]]) -> dict[str, int]:
    return {name: number for number, row in enumerate(rows) for name in row}


def _width(name: str, lines: int) -> float:
    return max(1.35, 0.16 * len(name) + 0.3, 0.00042 * lines)


def _positions(rows: list[list[str]], lines: Counter[str], width: float) -> dict[str, tuple[float, float, float]]:
    """Returns (centre, height, width) of each box; rows are spread, alternately shifted so that arrows can pass."""
    found = {}
    for number, row in enumerate(rows):
        widths = [_width(name, lines[name]) for name in row]
        space = min(2.6, (width - sum(widths)) / max(1, len(row) - 1)) if len(row) > 1 else 0.0
        shift = (-1 if number % 2 else 1) * min(2.2, (width - sum(widths) - space * (len(row) - 1)) / 2)
        x = -(sum(widths) + space * (len(row) - 1)) / 2 + (shift if len(row) < 5 else 0.0)
        for name, size in zip(row, widths, strict=True):
            found[name] = (x + size / 2, -GAP * number, size)
            x += size + space
    return found


def _arrows(
    ax: Axes, graph: dict[str, Counter[str]], positions: dict[str, tuple[float, float, float]], places: dict[str, int]
) -> None:
    """Draws an arrow for each import between packages; those to the lowest row are left out, and those that
    another import implies are pale.
    """
    last = max(places.values())
    reachable = {name: reached(name, graph) for name in graph}
    for name, others in graph.items():
        if name not in positions or places[name] == last:
            continue
        colour = COLOURS[sorted(positions).index(name) % len(COLOURS)]
        for other, count in others.items():
            if other not in positions or places[other] == last:
                continue
            (x, y, width), (to_x, to_y, to_width) = positions[name], positions[other]
            start = x + max(-0.4, min(0.4, (to_x - x) / 12)) * width
            end = to_x + max(-0.4, min(0.4, (x - to_x) / 12)) * to_width
            implied = any(other in reachable[third] for third in others if third != other)
            straight = places[other] - places[name] <= 1
            bend = 0.0 if straight else 0.10 if (to_x >= x) == (places[name] % 2 == 0) else -0.10
            ax.add_patch(
                FancyArrowPatch(
                    (start, y - HEIGHT / 2),
                    (end, to_y + HEIGHT / 2),
                    connectionstyle=f"arc3,rad={bend}",
                    arrowstyle="-|>,head_length=3,head_width=1.6",
                    color=colour,
                    linewidth=0.5 if implied else 0.7 + min(2.0, count / 14),
                    alpha=0.3 if implied else 0.75,
                    zorder=1,
                )
            )


def _box(ax: Axes, name: str, lines: int, position: tuple[float, float, float]) -> None:
    x, y, width = position
    ax.add_patch(
        FancyBboxPatch(
            (x - width / 2, y - HEIGHT / 2),
            width,
            HEIGHT,
            boxstyle="round,pad=0.02,rounding_size=0.12",
            facecolor="#f3f6fa",
            edgecolor="0.35",
            linewidth=1.0,
            zorder=2,
        )
    )
    ax.text(x, y + 0.1, name, ha="center", va="center", fontsize=10, fontweight="bold", zorder=3)
    ax.text(x, y - 0.17, f"{lines:,} lines", ha="center", va="center", fontsize=7.5, color="0.35", zorder=3)
