"""The picture of many methods: it is drawn from whatever is known, and names are only names."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tiltyard.errors import DataError
from tiltyard.report import comparison_plot
from tiltyard.report.comparison_plot import comparison_png


def facts(gold: float | None, kl: float | None, **more: Any) -> dict[str, Any]:
    ci = None if gold is None else [gold - 0.1, gold + 0.1]
    return {"gold": gold, "gold_ci": ci, "kl": kl, "kl_ci": None, "proxy": 0.5, "proxy_ci": [0.4, 0.6], **more}


def drawn(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, models: dict[str, Any]) -> Any:
    """The figure that would be written, after it was written."""
    kept = []

    def save(figure: Any, path: Path) -> Path:
        kept.append(figure)
        return real(figure, path)

    real = comparison_plot.save_png
    monkeypatch.setattr(comparison_plot, "save_png", save)
    path = comparison_png(tmp_path / "c.png", models)
    assert path.read_bytes()[:4] == b"\x89PNG"
    return kept[0]


def test_methods_stand_in_the_order_of_their_gold(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    models = {"low": facts(0.1, 1.0), "high": facts(0.9, 2.0, seconds=12.0), "none": facts(None, 0.0)}
    figure = drawn(monkeypatch, tmp_path, models)
    names = [label.get_text() for ax in figure.get_axes() for label in ax.get_yticklabels()]
    assert [n for n in names if n in models] == ["high", "low", "none"]
    titles = {ax.get_title() for ax in figure.get_axes()}
    assert "seconds" in titles
    assert "judge calls" not in titles, "a column that nobody has is left out"


def test_far_ones_make_the_axis_logarithmic(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    near = drawn(monkeypatch, tmp_path, {"a": facts(0.1, 1.0), "b": facts(0.2, 3.0)})
    far = drawn(monkeypatch, tmp_path, {"a": facts(0.1, 1.0), "b": facts(0.2, 60.0)})
    assert [figure.get_axes()[0].get_xscale() for figure in (near, far)] == ["linear", "symlog"]


def test_names_that_would_collide_stand_apart(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    models = {f"method {i}": facts(0.5 + 0.001 * i, 1.0) for i in range(8)} | {"other": facts(-0.5, 2.0)}
    axis = drawn(monkeypatch, tmp_path, models).get_axes()[0]
    heights = sorted(text.get_position()[1] for text in axis.texts if "method" in text.get_text())
    gaps = [b - a for a, b in pairwise(heights)]
    assert min(gaps) > 0.02


def test_every_row_has_its_measurements_with_intervals(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    models = {"a": facts(0.1, 1.0), "b": facts(0.2, 3.0), "unknown": facts(None, None)}
    figure = drawn(monkeypatch, tmp_path, models)
    axis = next(ax for ax in figure.get_axes() if ax.get_title() == "gold")
    assert [text.get_text() for text in axis.texts] == ["0.20", "0.10"]
    bars = [part.get_segments()[0] for box in axis.containers for part in box.lines[2]]
    ends = [(float(bar[0][0]), float(bar[1][0])) for bar in bars]
    assert ends == [pytest.approx((0.1, 0.3)), pytest.approx((0.0, 0.2))]
    assert {"proxy", "KL, nats"} <= {ax.get_title() for ax in figure.get_axes()}


def test_a_name_is_no_formula(tmp_path: Path) -> None:
    comparison_png(tmp_path / "c.png", {"$\\frac{": facts(0.1, 1.0), "b": facts(0.2, 1.0)})


def test_nothing_to_compare(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no models"):
        comparison_png(tmp_path / "c.png", {})
