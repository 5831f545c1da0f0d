"""The tables of docs/scale.md are what `python -m benchmarks.scale` prints, and its model of a step is plausible."""

from __future__ import annotations

from pathlib import Path

import pytest
from benchmarks.scale import __main__ as scale
from benchmarks.scale import measure, memory, simulate
from benchmarks.scale.shapes import CONFIGS, shape
from benchmarks.scale.simulate import H100, Batch, gathering, pushing, sampling, step, training

from tiltyard import from_scratch, train_tokenizer

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "scale.md").read_text(encoding="utf-8")
BATCH = Batch(64, 256, 8, 1024)


@pytest.mark.parametrize("lines", [memory.table, memory.parts, simulate.table, simulate.published])
def test_the_tables_of_the_page_are_computed(lines) -> None:
    assert "\n".join(lines()) in PAGE, "run python -m benchmarks.scale memory (or time) and put its table there"


def test_the_command_prints_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert scale.main(["time"]) == 0
    assert simulate.table()[2] in capsys.readouterr().out
    assert scale.main(["tmie"]) == 2


def test_training_is_six_operations_a_parameter_and_token() -> None:
    """Kaplan et al. 2020: 6 N D without attention; a reference's pass is 2 N D more, recomputation 2 N D again."""
    parameters = shape("8B").parameters - CONFIGS["8B"]["vocab_size"] * 4096  # an embedding is no product
    plain = training("8B", BATCH, "dpo", H100, 1, recomputed=False)
    expected = 6 * parameters * BATCH.tokens.tree / H100.speed
    assert plain == pytest.approx(expected, rel=0.1)
    assert training("8B", BATCH, "grpo", H100, 1, recomputed=False) == pytest.approx(plain * 4 / 3, rel=0.02)
    assert training("8B", BATCH, "dpo", H100, 1, recomputed=True) == pytest.approx(plain * 4 / 3, rel=0.02)
    assert training("8B", BATCH, "dpo", H100, 4, recomputed=False) == pytest.approx(plain / 4)


def test_decoding_one_row_reads_the_weights_once_a_token() -> None:
    one = sampling("8B", Batch(1, 1, 1, 100), H100, 1)
    assert one == pytest.approx(100 * 2 * shape("8B").parameters / H100.bandwidth, rel=0.02)
    assert sampling("8B", Batch(64, 1, 1, 100), H100, 1) < 2 * one  # more rows read no more weights
    assert sampling("8B", Batch(512, 1, 1, 100), H100, 1) > 2 * one  # but two waves of 256 rows twice


def test_what_travels() -> None:
    assert gathering("8B", H100, 1, 3) == 0
    inside, between = gathering("8B", H100, 8, 1), gathering("8B", H100, 64, 1)
    assert inside < between
    assert between == pytest.approx(4 * 4 * shape("8B").parameters * 63 / 64 / H100.link)
    assert pushing(8e9, H100) == pytest.approx(1 + H100.start)
    times = step("8B", BATCH, "grpo", trainers=4, engines=4)
    assert max(times.train, times.sample) + times.push <= times.apart <= times.together == pytest.approx(sum(times))


@pytest.mark.slow
def test_a_measurement_runs() -> None:
    """Of a tiny model; the figures are printed, none is promised."""
    model = from_scratch("1m", train_tokenizer((f"word{i}" for i in range(500)), 400))
    lines = measure.run(model, model.module.config.to_dict(), pairs=2, length=8, rows=2, tokens=4)
    assert [line.split("|")[1].strip() for line in lines[2:4]] == [
        "DPO, 2 pairs of 3 x 8 tokens",
        "2 rows x 4 tokens decoded",
    ]
    CONFIGS.pop("here")
