"""Win rates of AlpacaEval's annotations as they are published, and as Tiltyard computes them.

    python -m benchmarks.win_rates annotations.json [...]
    python -m benchmarks.win_rates --shared ../shared/data

An annotation has `instruction`, `output_1` (the baseline's), `output_2` (the model's) and `preference` in 1..2: 1 where
the baseline wins, 2 where the model does, 1.5 (or 0) a tie, between them a probability. `--shared` brings judged
answers of other files into that form (`shared_sets`).

The published way (alpaca_eval 0.6, `metrics/winrate.py` and `metrics/glm_winrate.py`): the raw rate is the mean of
preference - 1 with the standard error of a mean; the length-controlled one a logistic regression
`tanh(difference in length / its sd) + 1` (and the instruction's difficulty, where there is one), fitted by
LogisticRegressionCV (L1, liblinear, 5 folds by instruction), whose probabilities at equal length are averaged. Its
standard error is that of these fitted probabilities, which leaves out that the coefficients were estimated.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tiltyard.stats.intervals import Estimate, rate_ci
from tiltyard.stats.length_control import length_controlled_win_rate

Annotation = Mapping[str, Any]
FOLDS = 5
STRENGTHS = np.logspace(-4, 4, 10)  # inverse penalties that LogisticRegressionCV tries
ROUNDED = 5e-5  # half of the last digit of the shared probabilities
Z = 1.96


class Published(NamedTuple):
    """Rates and standard errors in percent; `unpenalised`: the length-controlled rate of the same fit without L1."""

    raw: float
    raw_error: float
    controlled: float
    controlled_error: float
    unpenalised: float


def outcomes(annotations: Sequence[Annotation]) -> NDArray[np.float64]:
    """Returns the model's win in 0..1 of each annotation."""
    given = np.array([float(one["preference"]) for one in annotations])
    return np.where(given == 0, 1.5, given) - 1


def length_differences(annotations: Sequence[Annotation]) -> NDArray[np.float64]:
    """Returns the model's length less the baseline's, in characters."""
    return np.array([float(len(one["output_2"]) - len(one["output_1"])) for one in annotations])


def published(annotations: Sequence[Annotation], difficulty: NDArray[np.float64] | None = None) -> Published:
    """Computes both rates as alpaca_eval does, without its weights of gamed baselines (which are its own data).

    Args:
        difficulty: of each instruction, a feature of the regression; None: none.
    """
    y_P, d_P = outcomes(annotations), length_differences(annotations)
    x_PF = np.stack([np.tanh(d_P / d_P.std(ddof=1)), np.ones(len(y_P))], axis=1)
    at_PF = np.stack([np.zeros(len(y_P)), np.ones(len(y_P))], axis=1)
    if difficulty is not None:
        x_PF, at_PF = (np.column_stack([some, difficulty]) for some in (x_PF, at_PF))
    scores = [_loss(x_PF, y_P, strength) for strength in STRENGTHS]
    fitted, free = (
        _fit(x_PF, y_P, strength).predict_proba(at_PF)[:, 1] for strength in (STRENGTHS[int(np.argmin(scores))], 1e8)
    )
    error = _error(y_P), _error(fitted)
    return Published(100 * y_P.mean(), error[0], 100 * fitted.mean(), error[1], 100 * free.mean())


def _error(values: NDArray[np.float64]) -> float:
    return float(100 * values.std(ddof=1) / np.sqrt(len(values)))


def _fit(x_PF: NDArray[np.float64], y_P: NDArray[np.float64], strength: float) -> Any:
    """The regression of probabilities: every row once as a win and once as a loss, weighted by them."""
    from sklearn.linear_model import LogisticRegression

    both = np.repeat([1, 0], len(y_P))
    weights = np.concatenate([y_P, 1 - y_P])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = LogisticRegression(
            C=strength, l1_ratio=1.0, solver="liblinear", fit_intercept=False, random_state=123, tol=1e-8, max_iter=2000
        )
        return model.fit(np.concatenate([x_PF, x_PF]), both, sample_weight=weights)


def _loss(x_PF: NDArray[np.float64], y_P: NDArray[np.float64], strength: float) -> float:
    """The mean log-loss on the held-out parts."""
    from sklearn.model_selection import GroupKFold

    found = []
    for train, test in GroupKFold(FOLDS).split(x_PF, y_P, groups=np.arange(len(y_P))):
        p = np.clip(_fit(x_PF[train], y_P[train], strength).predict_proba(x_PF[test])[:, 1], 1e-15, 1 - 1e-15)
        found.append(-np.mean(y_P[test] * np.log(p) + (1 - y_P[test]) * np.log(1 - p)))
    return float(np.mean(found))


def ours(annotations: Sequence[Annotation], rounds: int = 1000) -> tuple[Estimate, Estimate]:
    """Computes (raw, length-controlled) as `tiltyard eval` does: instructions are the clusters."""
    y_P, d_P = outcomes(annotations), length_differences(annotations)
    keys = [one["instruction"] for one in annotations]
    return rate_ci(y_P, keys, rounds=rounds), length_controlled_win_rate(y_P, d_P, keys, rounds=rounds)


# ----------------------------------------------------------------------------------------------------- shared data


def shared_sets(folder: Path) -> Iterator[tuple[str, list[Annotation], NDArray[np.float64] | None]]:
    """Yields (name, annotations, difficulty of the instructions) made from judged answers of the shared data.

    * `rankings`: real answers of published models, each with the probability that GPT-4-turbo prefers it to one fixed
      baseline. Two answers to an instruction are compared by Luce's rule on these. "Models" are rules of length. The
      difficulty is the mean log-odds of all answers to the instruction.
    * `llmbar`: GPT-4's verdicts on two answers in both orders; the model is the answer that people agreed on.
    * `human_pairs`: people's verdicts on two answers.
    """
    rows = [row for part in ("train", "dev") for row in _rows(folder / f"rankings/{part}.jsonl.gz")]
    for name, pick in (("longest", -1), ("shortest", 0)):
        made = [_of_lengths(row, pick) for row in rows]
        yield f"the {name} of 4 to 9 against a middle one, GPT-4-turbo", made, _difficulty(rows)
    bar = _rows(folder / "judging/llmbar.jsonl.gz")
    for judge in ("GPT-4/Vanilla", "ChatGPT/Vanilla"):
        for kind in ("natural", "adversarial"):
            some = [row for row in bar if (row["source"].endswith("natural")) == (kind == "natural")]
            yield f"LLMBar {kind}, {judge}", [made for row in some if (made := _verdict(row, judge))], None
    pairs = _rows(folder / "judging/human_pairs.jsonl.gz")
    for source in sorted({row["source"] for row in pairs}):
        yield f"{source}, people", [_pair(row, row["label"]) for row in pairs if row["source"] == source], None


def _rows(path: Path) -> list[dict[str, Any]]:
    with gzip.open(path, "rt") as file:
        return [json.loads(line) for line in file]


def _of_lengths(row: Mapping[str, Any], pick: int) -> Annotation:
    order = sorted(range(len(row["responses"])), key=lambda i: (len(row["responses"][i]), _digest(row["responses"][i])))
    model, baseline = order[pick], order[len(order) // 2]
    won, lost = (row["scores"][i] + ROUNDED for i in (model, baseline))
    return _annotation(row["prompt"], row["responses"][baseline], row["responses"][model], 1 + won / (won + lost))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _difficulty(rows: Sequence[Mapping[str, Any]]) -> NDArray[np.float64]:
    chances = [np.clip(np.array(row["scores"]), ROUNDED, 1 - ROUNDED) for row in rows]
    values = np.array([float(np.log(p / (1 - p)).mean()) for p in chances])
    return (values - values.mean()) / values.std()


def _verdict(row: Mapping[str, Any], judge: str) -> Annotation | None:
    given = row["verdicts"].get(judge) or []
    known = [one for one in given if one in (1, 2)]
    if not known:
        return None
    right = float(np.mean([one == row["label"] for one in known]))
    return _pair(row, row["label"]) | {"preference": 1 + right} if row["label"] == 2 else _turned(row, 1 + right)


def _turned(row: Mapping[str, Any], preference: float) -> Annotation:
    first, second = row["responses"]
    return _annotation(row["prompt"], second, first, preference)


def _pair(row: Mapping[str, Any], label: int) -> dict[str, Any]:
    first, second = row["responses"]
    return dict(_annotation(row["prompt"], first, second, float(label)))


def _annotation(instruction: str, output_1: str, output_2: str, preference: float) -> Annotation:
    return {"instruction": instruction, "output_1": output_1, "output_2": output_2, "preference": preference}


# ----------------------------------------------------------------------------------------------------------- the table


def line(name: str, annotations: Sequence[Annotation], difficulty: NDArray[np.float64] | None, rounds: int) -> str:
    """Returns a row of the table in Markdown: points with 95% intervals, in percent."""
    theirs, (raw, controlled) = published(annotations, difficulty), ours(annotations, rounds)
    cells = [name, f"{len(annotations)}", _around(theirs.raw, theirs.raw_error), _interval(raw)]
    free = f"{_around(theirs.controlled, theirs.controlled_error)} ({theirs.unpenalised:.1f})"
    return "| " + " | ".join([*cells, free, _interval(controlled)]) + " |"


def _around(value: float, error: float) -> str:
    return f"{value:.1f} ± {Z * error:.1f}"


def _interval(one: Estimate) -> str:
    return "none" if np.isnan(one.value) else f"{100 * one.value:.1f} ({100 * one.low:.1f} to {100 * one.high:.1f})"


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path, help="annotations.json of AlpacaEval")
    parser.add_argument("--shared", type=Path, help="folder of the shared data")
    parser.add_argument("--rounds", type=int, default=1000, help="bootstrap draws")
    asked = parser.parse_args()
    sets = [(path.stem, json.loads(path.read_text()), None) for path in asked.files]
    sets += list(shared_sets(asked.shared)) if asked.shared else []
    print("| set | pairs | raw, published | raw, ours | length-controlled, published (no L1) | ours |")
    print("|---|---|---|---|---|---|")
    for name, some, difficulty in sets:
        print(line(name, some, difficulty, asked.rounds), flush=True)
        if difficulty is not None:
            print(line(f"{name}, without difficulty", some, None, asked.rounds), flush=True)


if __name__ == "__main__":
    main()
