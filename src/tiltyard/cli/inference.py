"""`tiltyard sample --infer`: samples the posterior of a target, prompt by prompt, into a file that can be resumed.

Imports torch.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tiltyard.cli.conversation import encoded, loaded_model
from tiltyard.cli.output import console_for, responses_as_json
from tiltyard.errors import ConfigError, nearest
from tiltyard.files import jsonable, reading
from tiltyard.inputs.scores import ScoreSettings
from tiltyard.models.backbone import DType
from tiltyard.models.load import load_scalar_model
from tiltyard.posterior import Prior, exp, score
from tiltyard.posterior.infer import SAMPLERS, Drawn, PosteriorSampler, TwistedSMC, learn_twist, make_sampler
from tiltyard.posterior.infer.report import Report, report_of
from tiltyard.posterior.measure import check_sampling
from tiltyard.posterior.target import check_beta
from tiltyard.runs.journal import JsonlFile, whole_lines
from tiltyard.sampling import SampleSettings
from tiltyard.scoring import check_prompts, highest_score
from tiltyard.stages.base import StageContext
from tiltyard.stages.rewards import Rewards
from tiltyard.training.log import Tally
from tiltyard.types import Group, Prompt, Response
from tiltyard.yaml_values import parse_value

ROWS = 256  # candidates or particles between two lines of progress; no result depends on it
SECONDS = 5.0
LEARN = "learn"  # in place of a value model: a twist that is learned from samples of the prior
TWIST_SAMPLES = 64  # to each prompt


def infer(
    model: str | Path,
    placed: Sequence[tuple[str, Prompt]],
    *,
    name: str,
    reward: str,
    beta: float | None,
    settings: Mapping[str, Any],
    n: int,
    sampling: SampleSettings,
    seed: int,
    device: str,
    dtype: DType,
    out: Path | None = None,
) -> tuple[list[dict[str, Any]], Report]:
    """Samples the posterior of every prompt.

    Args:
        placed: (where it comes from, conversation). name: of the sampler. reward: as in training.
        settings: of the sampler; None: its default; `score_bound` in units of the reward.
        out: a file of one row a prompt, which is appended to as they finish; what it holds already is not done again.

    Returns:
        One row a prompt, with its responses and the numbers of the sampler, and the report over all of them.

    Raises:
        ConfigError: a sampler, setting, reward or sampling distribution that cannot be used.
    """
    _check(name, beta)
    if not reward:
        raise ConfigError(
            "a posterior needs a reward",
            where="sample --infer",
            expected="--reward REWARD_MODEL, gold, file.py:function or '{from: rule, max_words: 40}'",
            fix="add --reward",
        )
    prior = Prior(loaded_model(model, device, dtype), sampling.temperature)
    prompts = encoded(prior.model, placed)
    context = StageContext("sample", "sample", Path(), Path(), console=console_for(True))
    scoring = ScoreSettings(reward=parse_value(reward))
    scorer = Rewards(context, scoring, device=device, dtype=dtype).scorer(prior.model.chat)
    check_prompts(scorer, prompts)
    target = prior * exp(score(scorer) / (1.0 if beta is None else beta))
    check_sampling(target, sampling)
    values = dict(settings)
    if values.get("twist") == LEARN and name == TwistedSMC.name:
        context.report("twist", [f"learning it from {len(prompts) * TWIST_SAMPLES:,} samples of the model"])
        values["twist_with"] = learn_twist(target, prompts, sampling, samples=TWIST_SAMPLES, seed=seed).twist()
        del values["twist"]
    sampler = _sampler(name, beta, values, highest_score(scorer), device, dtype)
    asked = {"infer": name, "model": str(model), "reward": reward, "beta": beta, "n": n, "seed": seed}
    key = json.loads(json.dumps({**asked, "prompts": _digest(prompts), **settings, **vars(sampling)}))
    rows = _Rows(out, key, prompts)
    tally = Tally(len(prompts), lambda line: context.report(name, [f"{line} prompts"]), every=SECONDS)
    tally.add(len(rows.done))
    step = max(1, ROWS // max(1, sampler.rows(n)))
    while (first := len(rows.done)) < len(prompts):
        part = prompts[first : first + step]
        started = time.perf_counter()
        drawn = sampler.draw(target, part, n, sampling, seed=seed, first=first, progress=tally.add)
        cost, seconds = target.log_factor.take_cost(), time.perf_counter() - started
        share = {"seconds": seconds / len(part), "calls": cost.calls / len(part), "read": cost.tokens_in / len(part)}
        rows.add([_row(asked, one, share, beta) for (_, asked), one in zip(placed[first:], drawn, strict=False)])
    facts = [row["infer"] for row in rows.done]
    return rows.done, report_of(name, facts, beta, weighted=sampler.weighted, seed=seed)


def _check(name: str, beta: float | None) -> None:
    """Refuses what can be refused before a model is loaded."""
    if name not in SAMPLERS:
        raise ConfigError("there is no such sampler", where="--infer", got=name, fix=nearest(name, SAMPLERS))
    if beta is None and not SAMPLERS[name].sampler.ranks_only:
        raise ConfigError(
            "the target prior * exp(reward / beta) needs a beta",
            where=f"sample --infer {name}",
            expected="--beta above 0, in units of the reward",
            fix="take the beta of training, or start at the standard deviation of the reward over responses",
        )
    if beta is not None:
        check_beta(beta)


def _sampler(
    name: str, beta: float | None, settings: Mapping[str, Any], highest: float | None, device: str, dtype: DType
) -> PosteriorSampler:
    """The sampler, with settings in units of the target's g; `twist` names a value model.

    Args:
        highest: the highest score that the reward declares, where it does.
    """
    strength = 1.0 if beta is None else beta
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


def _row(asked: Prompt, drawn: Drawn, share: Mapping[str, float], beta: float | None) -> dict[str, Any]:
    group = drawn.group
    row = responses_as_json(asked, group)
    for response, g in zip(row["responses"], group.scores or (), strict=True):
        response["score"] = g * (1.0 if beta is None else beta)
    return jsonable({**row, "infer": {**drawn.facts(), **share}})


class _Rows:
    """The rows of finished prompts: in memory, and in a file where one is named.

    Args:
        key: the settings, which are the file's first line.

    Raises:
        ConfigError: a file of other settings, or one that holds something else.
    """

    def __init__(self, path: Path | None, key: Mapping[str, Any], prompts: Sequence[Prompt]):
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
        self.done = lines[1:][: len(prompts)]
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
            "this file was not written by `tiltyard sample --infer`",
            where=str(path),
            got="rows of something else",
            expected="a new file, or one that the same command left unfinished",
            fix="name another file",
        )
    return rows


def _digest(prompts: Sequence[Prompt]) -> str:
    return hashlib.sha256(json.dumps([p.to_row() for p in prompts]).encode()).hexdigest()[:16]


def groups_of(rows: Sequence[Mapping[str, Any]]) -> list[Group]:
    """The responses of rows, for printing: texts and the reason that each ended."""
    return [
        Group(Prompt(), tuple(Response(text=r["text"], finish=r["finish"]) for r in row["responses"])) for row in rows
    ]
