import logging
import math

import numpy as np
import pytest
from PIL import Image

from tiltyard.errors import DataError
from tiltyard.report import curves_png, read_metrics, reward_vs_kl_png
from tiltyard.report.plots import smooth


def curve(n=60, gold=True):
    t = np.arange(n)
    return {"step": list(t), "kl": list(t / 10), "proxy": list(np.sqrt(t)), "gold": list(-t) if gold else None}


def pixels(path):
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert round(image.info["dpi"][0]) == 150
        return np.asarray(image.convert("RGB"))


def has(image, colour):
    rgb = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return (np.abs(image.astype(int) - rgb).max(axis=-1) <= 3).sum() > 50


def test_reward_vs_kl_is_a_picture_of_each_run(tmp_path):
    image = pixels(reward_vs_kl_png(tmp_path / "a" / "rk.png", {"kl on": curve(), "no $kl$ _\x1b": curve(gold=False)}))
    assert image.std() > 5
    assert has(image, "#0072B2")
    assert has(image, "#D55E00")
    alone = pixels(reward_vs_kl_png(tmp_path / "p.png", {"run": curve(gold=False)}))
    assert alone.shape[1] < image.shape[1]  # one panel where no gold score exists


@pytest.mark.parametrize("n", [0, 1, 2, 13])
def test_short_and_gappy_curves_draw(tmp_path, n):
    gappy = curve(n) | {"gold": [None if i % 2 else math.nan for i in range(n)]}
    assert pixels(reward_vs_kl_png(tmp_path / "rk.png", {"run": gappy})).std() > 5


def test_curves_png(tmp_path):
    panels = {f"panel {i}": {"step": [0, 10, 20], "a": [1, None, 3], "b": [3, 2, i]} for i in range(4)}
    image = pixels(curves_png(tmp_path / "c.png", panels))
    assert image.std() > 5
    assert has(image, "#D55E00")
    assert pixels(curves_png(tmp_path / "one.png", {"loss": {"loss": [3.0, 2.0]}})).std() > 5


def test_uneven_or_missing_curves_are_errors(tmp_path):
    with pytest.raises(DataError, match=r"run: .*one length"):
        reward_vs_kl_png(tmp_path / "x.png", {"run": {"kl": [1, 2], "proxy": [1]}})
    with pytest.raises(DataError, match="no curves"):
        reward_vs_kl_png(tmp_path / "x.png", {})
    with pytest.raises(DataError, match="no curves"):
        curves_png(tmp_path / "x.png", {})


def test_plotting_leaves_matplotlib_alone(tmp_path):
    import matplotlib

    before = dict(matplotlib.rcParams)
    curves_png(tmp_path / "c.png", {"a": {"a": [1, 2]}})
    assert dict(matplotlib.rcParams) == before


@pytest.mark.parametrize("n", [1, 2, 3, 5, 40])
def test_smooth_keeps_lines_and_removes_noise(n):
    line = 3.0 - 0.5 * np.arange(n)
    assert smooth(line, 7) == pytest.approx(line)
    noise = np.random.default_rng(0).normal(size=2000)
    middle = smooth(noise, 25)[12 : len(noise) - 12]
    assert middle == pytest.approx(np.convolve(noise, np.ones(25) / 25, mode="valid"))


def test_read_metrics_aligns_columns(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 2.5}\n\n{"step": 2, "loss": NaN, "kl": 0.1}\n')
    got = read_metrics(path)
    assert (got["step"], got["kl"]) == ([1, 2], [None, 0.1])
    assert math.isnan(got["loss"][1])


def test_read_metrics_warns_of_an_incomplete_last_line(tmp_path, caplog):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes('{"step": 1}\n{"step": 2, "text": "é'.encode()[:-1])
    with caplog.at_level(logging.WARNING):
        assert read_metrics(path) == {"step": [1]}
    assert f"{path}:2" in caplog.text
    assert "incomplete" in caplog.text


def test_read_metrics_names_a_broken_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    for text in ('{"step": 1\n{"step": 2}\n', '[1]\n{"step": 2}\n', '{"step": 1\n'):
        path.write_text(text)
        with pytest.raises(DataError, match=r"metrics.jsonl:1"):
            read_metrics(path)
    with pytest.raises(DataError, match="cannot be read"):
        read_metrics(tmp_path / "none.jsonl")
    path.write_text("")
    assert read_metrics(path) == {}
