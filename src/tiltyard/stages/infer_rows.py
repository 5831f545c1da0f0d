"""Samples a posterior prompt by prompt, into rows that can be gone on with: the stage `infer` and `tiltyard sample`."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tiltyard.errors import ConfigError, nearest
from tiltyard.files import jsonable, reading
from tiltyard.models.backbone import DType
from tiltyard.models.load import load_scalar_model
from tiltyard.posterior import Target
from tiltyard.posterior.infer import SAMPLERS, Drawn, PosteriorSampler, TwistedSMC, learn_twist, make_sampler
from tiltyard.posterior.infer.report import Report, report_of
from tiltyard.posterior.measure import check_sampling
from tiltyard.posterior.target import check_beta
from tiltyard.report.responses import responses_as_json
from tiltyard.runs.journal import JsonlFile, whole_lines
from tiltyard.sampling import SampleSettings
from tiltyard.training.log import Tally
from tiltyard.types import Prompt

ROWS = 256  # candidates or particles between two lines of progress; no result depends on it
SECONDS = 5.0
LEARN = "learn"  # in place of a value model: a twist that is learned from samples of the prior
TWIST_SAMPLES = 64  # to each prompt


@dataclass(frozen=True)
class Asked:
    """The settings of a sampling run.

    Args:
        name: of the sampler. beta: of the target; None where ranks are all that counts. n: responses to each prompt.
        settings: of the sampler; None or "": its default. `score_bound` in units of the reward, `twist`: a folder.
        key: what else the rows depend on, kept with them.
    """

    name: str
    beta: float | None
    n: int
    seed: int
    sampling: SampleSettings
    settings: Mapping[str, Any]
    key: Mapping[str, Any]
    device: str = "auto"
    dtype: DType = "float32"

    @property
    def strength(self) -> float:
        """The beta that scores are divided by; 1 without one."""
        return 1.0 if self.beta is None else self.beta


def sample_rows(
    target: Target,
    prompts: Sequence[Prompt],
    shown: Sequence[Prompt],
    asked: Asked,
    highest: float | None,
    out: Path | None,
    report: Callable[[str, list[str]], None],
) -> tuple[list[dict[str, Any]], Report]:
    """Samples the posterior of every prompt.

    Args:
        prompts: encoded; `shown`: as rows have them. highest: the highest score that the reward declares.
        out: a file of one row a prompt, which is appended to as they finish; what it holds already is not done again.
        report: takes (key, lines) for the console.

    Returns:
        One row a prompt, with its responses and the numbers of the sampler, and the report over all of them.

    Raises:
        ConfigError: a sampler, setting, file or sampling distribution that cannot be used.
    """
    check_sampling(target, asked.sampling)
    values = dict(asked.settings)
    if values.get("twist") == LEARN and asked.name == TwistedSMC.name:
        report("twist", [f"learning it from {len(prompts) * TWIST_SAMPLES:,} samples of the model"])
        learned = learn_twist(target, prompts, asked.sampling, samples=TWIST_SAMPLES, seed=asked.seed)
        values["twist_with"] = learned.twist()
        del values["twist"]
    sampler = sampler_of(asked.name, asked.strength, values, highest, asked.device, asked.dtype)
    own = {"infer": asked.name, "beta": asked.beta, "n": asked.n, "seed": asked.seed, "prompts": digest(prompts)}
    key = json.loads(json.dumps({**own, **asked.key, **asked.settings, **vars(asked.sampling)}))
    rows = Rows(out, key, len(prompts))
    tally = Tally(len(prompts), lambda line: report(asked.name, [f"{line} prompts"]), every=SECONDS)
    tally.add(len(rows.done))
    step = max(1, ROWS // max(1, sampler.rows(asked.n)))
    while (first := len(rows.done)) < len(prompts):
        part = prompts[first : first + step]
        started = time.perf_counter()
        drawn = sampler.draw(target, part, asked.n, asked.sampling, seed=asked.seed, first=first, progress=tally.add)
        cost, seconds = target.log_factor.take_cost(), time.perf_counter() - started
        share = {"seconds": seconds / len(part), "calls": cost.calls / len(part), "read": cost.tokens_in / len(part)}
        rows.add([_row(one, got, share, asked.strength) for one, got in zip(shown[first:], drawn, strict=False)])
    facts = [row["infer"] for row in rows.done]
    return rows.done, report_of(asked.name, facts, asked.beta, weighted=sampler.weighted, seed=asked.seed)


def check_sampler(name: str, beta: float | None, where: str) -> None:
    """Refuses what can be refused before a model is loaded."""
    if name not in SAMPLERS:
        raise ConfigError("there is no such sampler", where=where, got=name, fix=nearest(name, SAMPLERS))
    if beta is None and not SAMPLERS[name].sampler.ranks_only:
        raise ConfigError(
            "the target prior * exp(reward / beta) needs a beta",
            where=f"{where} {name}",
            expected="a beta above 0, in units of the reward",
            fix="take the beta of training, or start at the standard deviation of the reward over responses",
        )
    if beta is not None:
        check_beta(beta)


def sampler_of(
    name: str, strength: float, settings: Mapping[str, Any], highest: float | None, device: str, dtype: DType
) -> PosteriorSampler:
    """The sampler, with settings in units of the target's g; `twist` names a value model.

    Args:
        strength: beta.
        highest: the highest score that the reward declares, where it does.
    """
    values = {key: value for key, value in settings.items() if value not in (None, "")}
    if highest is not None and "score_bound" in SAMPLERS[name].needs:
        values.setdefault("score_bound", highest)
    if "score_bound" in values:
        values["bound"] = values.pop("score_bound") / strength
    if twist := values.pop("twist", None):
        if name != TwistedSMC.name:
            raise ConfigError("only twisted_smc takes a twist", where="--twist", got=name, fix="leave --twist out")
        inside = Path(twist) / "value"  # of a stage's folder
        folder = inside if inside.is_dir() else Path(twist)
        values |= {"value": load_scalar_model(folder, device=device, dtype=dtype), "scale": 1 / strength}
    return make_sampler(name, **values)


def _row(asked: Prompt, drawn: Drawn, share: Mapping[str, float], strength: float) -> dict[str, Any]:
    group = drawn.group
    row = responses_as_json(asked, group)
    for response, g in zip(row["responses"], group.scores or (), strict=True):
        response["score"] = g * strength
    return jsonable({**row, "infer": {**drawn.facts(), **share}})


class Rows:
    """The rows of finished prompts: in memory, and in a file where one is named.

    Args:
        key: the settings, which are the file's first line. prompts: at most as many rows.

    Raises:
        ConfigError: a file of other settings, or one that holds something else.
    """

    def __init__(self, path: Path | None, key: Mapping[str, Any], prompts: int):
        self.done: list[dict[str, Any]] = []
        self.file: JsonlFile | None = None
        if path is None:
            return
        lines = _whole_rows(path)
        if lines and lines[0] != key:
            differ = sorted(k for k in {*lines[0], *key} if lines[0].get(k) != key.get(k))
            raise ConfigError(
                "this file holds responses of other settings",
                where=str(path),
                got=", ".join(f"{k}={lines[0].get(k)}" for k in differ),
                expected=", ".join(f"{k}={key.get(k)}" for k in differ),
                fix="name another file, or remove this one",
            )
        self.done = lines[1:][:prompts]
        self.file = JsonlFile(path)
        if not lines:
            self.file.write([key])

    def add(self, rows: Sequence[dict[str, Any]]) -> None:
        """Keeps the rows of further prompts."""
        self.done += rows
        if self.file is not None:
            self.file.write(rows)
            self.file.sync()


def _whole_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of an earlier call; a line that a kill cut off is removed."""
    if not path.exists():
        return []
    with reading(path, ConfigError), path.open("r+b") as file:
        file.truncate(whole_lines(file))
        file.seek(0)
        try:
            rows = [json.loads(line) for line in file]
        except ValueError:
            rows = [None]
    if any(not isinstance(row, dict) for row in rows) or (rows and "infer" not in rows[0]):
        raise ConfigError(
            "this file was not written by `tiltyard sample --infer` or the stage `infer`",
            where=str(path),
            got="rows of something else",
            expected="a new file, or one that the same command left unfinished",
            fix="name another file",
        )
    return rows


def digest(prompts: Sequence[Prompt]) -> str:
    """Returns a digest of the prompts."""
    return hashlib.sha256(json.dumps([p.to_row() for p in prompts]).encode()).hexdigest()[:16]
