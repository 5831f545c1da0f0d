"""Samples of a prior and of policies with all that the estimators need: log-probs under both, exact KL, scores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from tiltyard.batch.batch import split_by_tokens
from tiltyard.batch.compare import compare_with_ref
from tiltyard.batch.forest import Forest, pack
from tiltyard.errors import ConfigError, DataError
from tiltyard.losses.kl import sum_per_response
from tiltyard.models.backbone import Backbone
from tiltyard.models.language import LanguageModel
from tiltyard.posterior.estimates import Cut, Samples
from tiltyard.posterior.target import Target
from tiltyard.sampling import SampleSettings, response_seeds, sample
from tiltyard.scoring.reward_model import same_vocabulary
from tiltyard.stats.importance import Floats
from tiltyard.types import MICRO_TOKENS, Group, Prompt

AT_ONCE = 256  # responses of a block: sampled, measured and kept together
COMPARED = {"log_model": "logp_R", "log_prior": "ref_logp_R", "kl": "kl_R", "entropy": "entropy_R"}
Columns = dict[str, Floats]  # of responses, [prompts, values] each
Progress = Callable[[int], None]  # takes the number of further responses that are sampled


def silent(_: int) -> None:
    """Reports no progress."""


@dataclass(frozen=True)
class PriorSamples:
    """Responses of the prior, with their log-probs, entropies and log factors [prompts, responses]."""

    groups: list[Group]
    log_prior: Floats
    entropy: Floats
    log_factor: Floats
    cut: Cut = "outcome"

    @property
    def ended(self) -> np.ndarray | None:
        """True for each response that ended by itself; None where being cut is an outcome."""
        return _ended(self.groups, self.cut)

    def as_policy(self) -> Samples:
        """The prior as a policy of its own."""
        none = np.zeros_like(self.log_prior)
        n = self.log_prior.shape[-1]
        return Samples(self.log_prior, self.log_prior, self.log_factor, none, self.entropy, n, self.ended)


def check_sampling(target: Target, sampling: SampleSettings) -> None:
    """Checks that responses come from the whole distribution of the target's prior.

    Raises:
        ConfigError: truncated or greedy sampling, or another temperature.
    """
    if sampling.is_untruncated and sampling.temperature == target.prior.temperature:
        return
    raise ConfigError(
        "responses of a truncated distribution carry no log Z: what is never sampled has no weight",
        where="sampling",
        got=f"temperature={sampling.temperature:g}, top_p={sampling.top_p:g}, top_k={sampling.top_k}",
        expected=f"temperature={target.prior.temperature:g} (the prior's), top_p=1, top_k=0",
        fix="leave top_p and top_k out",
    )


def draw(
    model: LanguageModel,
    prompts: Sequence[Prompt],
    n: int,
    sampling: SampleSettings,
    keys: tuple[int, ...],
    progress: Progress = silent,
    *,
    indices: Sequence[int] | None = None,
) -> list[Group]:
    """`n` responses to each prompt, some prompts at a time.

    Args:
        keys: of the random numbers, with the prompt's and the response's index. indices: of the prompts; None: from 0.
    """
    groups: list[Group] = []
    step = max(1, AT_ONCE // n)
    indices = range(len(prompts)) if indices is None else indices
    for start in range(0, len(prompts), step):
        part = prompts[start : start + step]
        seeds = response_seeds(indices[start : start + step], n, *keys)
        groups += sample(model, part, n, sampling, seeds=seeds)
        progress(len(part) * n)
    return groups


class Keep(Protocol):
    """Keeps measured prompts, so that a run that is interrupted goes on after the last block."""

    def done(self) -> tuple[list[Group], Columns]:
        """The groups that are kept, of the first prompts, and the columns of all their responses."""

    def add(self, groups: Sequence[Group], columns: Columns, first: int) -> None:
        """Keeps the groups and columns of the prompts from the index `first` on."""


class Nothing:
    """Keeps nothing."""

    def done(self) -> tuple[list[Group], Columns]:
        return [], {}

    def add(self, groups: Sequence[Group], columns: Columns, first: int) -> None:
        pass


def in_blocks(
    model: LanguageModel,
    prompts: Sequence[Prompt],
    n: int,
    sampling: SampleSettings,
    keys: tuple[int, ...],
    columns_of: Callable[[list[Group], int], Columns],
    keep: Keep,
    progress: Progress = silent,
) -> tuple[list[Group], Columns]:
    """Samples `n` responses to each prompt and measures them, some prompts at a time, after those that are kept.

    Args:
        keys: of the random numbers, with the prompt's index and the response's.
        columns_of: (groups, index of the first) -> columns [groups, values] of them.
    """
    groups, columns = keep.done()
    if groups:
        progress(len(groups) * n)
    parts = [columns] if groups else []
    groups, step = list(groups), max(1, AT_ONCE // n)
    for first in range(len(groups), len(prompts), step):
        part = prompts[first : first + step]
        drawn = draw(model, part, n, sampling, keys, indices=range(first, first + len(part)))
        found = columns_of(drawn, first)
        keep.add(drawn, found, first)
        groups += drawn
        parts.append(found)
        progress(len(part) * n)
    return groups, {key: np.concatenate([part[key] for part in parts]) for key in parts[0]} if parts else {}


def measure_prior(
    target: Target,
    prompts: Sequence[Prompt],
    n: int,
    sampling: SampleSettings,
    *,
    cut: Cut = "outcome",
    seed: int = 0,
    key: int = 0,
    keep: Keep | None = None,
    progress: Progress = silent,
) -> PriorSamples:
    """Samples the prior and scores what it wrote.

    Args:
        prompts: encoded. n: responses a prompt. sampling: untruncated, at the prior's temperature.
        key: tells its random numbers from those of policies and of other samples of it.
        keep: where responses are kept, and those of an interrupted run are found; None: nowhere.

    Raises:
        ConfigError: truncated sampling. ScoringError: a scorer abstained from a response.
    """
    check_sampling(target, sampling)
    model, temperature = target.prior.model, target.prior.temperature

    def columns_of(groups: list[Group], _: int) -> Columns:
        found = [_without_grad(model, forest, temperature) for forest in _forests(groups, model)]
        logp, entropy = (_rows([one[i] for one in found], len(groups)) for i in (0, 1))
        return {"log_prior": logp, "entropy": entropy, "log_factor": _factors(target, groups)}

    groups, columns = in_blocks(model, prompts, n, sampling, (seed, key), columns_of, keep or Nothing(), progress)
    return PriorSamples(groups, columns["log_prior"], columns["entropy"], columns["log_factor"], cut)


def measure_policy(
    policy: LanguageModel,
    target: Target,
    prior: PriorSamples,
    n: int,
    sampling: SampleSettings,
    *,
    seed: int = 0,
    key: int = 1,
    keep: Keep | None = None,
    progress: Progress = silent,
) -> tuple[list[Group], Samples]:
    """Samples a policy on the prompts of `prior`, and returns its groups and all columns of both.

    One pass of the policy and one of the prior over the policy's responses, one of the policy over the prior's.

    Args:
        key: tells one policy's random numbers from another's; 0 is the prior's.
        keep: see `measure_prior`.

    Raises:
        ConfigError: truncated sampling. DataError: a policy of another tokenizer. ScoringError: a scorer abstained.
    """
    check_sampling(target, sampling)
    check_comparable(policy, target.prior.model)
    temperature = target.prior.temperature

    def columns_of(groups: list[Group], first: int) -> Columns:
        parts: dict[str, list[Floats]] = {name: [] for name in COMPARED}
        for forest in _forests(groups, policy):
            found = compare_with_ref(policy, target.prior.model, forest, temperature)
            for name, column in COMPARED.items():
                parts[name].append(_sums(getattr(found, column), forest))
        others = prior.groups[first : first + len(groups)]
        parts["log_of_prior"] = [_without_grad(policy, forest, temperature)[0] for forest in _forests(others, policy)]
        columns = {name: _rows(part, len(groups)) for name, part in parts.items()}
        return columns | {"log_factor": _factors(target, groups)}

    prompts = [group.prompt for group in prior.groups]
    groups, columns = in_blocks(policy, prompts, n, sampling, (seed, key), columns_of, keep or Nothing(), progress)
    ended = _ended(groups, prior.cut)
    return groups, Samples(
        log_policy=np.concatenate([columns["log_model"], columns["log_of_prior"]], -1),
        log_prior=np.concatenate([columns["log_prior"], prior.log_prior], -1),
        log_factor=np.concatenate([columns["log_factor"], prior.log_factor], -1),
        kl=columns["kl"],
        entropy=columns["entropy"],
        n=n,
        ended=None if ended is None else np.concatenate([ended, prior.ended], -1),
    )


def check_comparable(policy: Backbone, prior: LanguageModel) -> None:
    """Checks that both models read and write the same tokens, and end responses with the same.

    Raises:
        DataError: another vocabulary, or other tokens that end a response.
    """
    one, two = policy.chat, prior.chat
    if one is two or (same_vocabulary(one, two) and set(one.stop_ids) == set(two.stop_ids)):
        return
    raise DataError(
        "the model and the prior have different tokenizers, so no log-prob of one can be set against the other's",
        where=str(one.tokenizer.name_or_path),
        got=f"ends at {sorted(one.stop_ids)}",
        expected=f"the vocabulary of {two.tokenizer.name_or_path}, which ends at {sorted(two.stop_ids)}",
        fix="take the model that this one was trained from as --prior",
    )


def _forests(groups: Sequence[Group], model: LanguageModel) -> list[Forest]:
    return [pack(part, model.device) for part in split_by_tokens(groups, MICRO_TOKENS)]


@torch.no_grad()
def _without_grad(model: LanguageModel, forest: Forest, temperature: float) -> tuple[Floats, Floats]:
    """Log-probs and entropies of the forest's responses, summed over tokens."""
    logp_R, entropy_R = model.logp_R(forest, temperature=temperature, entropy=True)
    assert entropy_R is not None
    return _sums(logp_R, forest), _sums(entropy_R, forest)


def _sums(x_R: Tensor, forest: Forest) -> Floats:
    found: Floats = sum_per_response(x_R.double(), forest.response_R, forest.B).cpu().numpy()
    return found


def _rows(parts: Sequence[Floats], prompts: int) -> Floats:
    return np.concatenate(parts).reshape(prompts, -1)


def _factors(target: Target, groups: Sequence[Group]) -> Floats:
    return np.array(target.log_weights(groups), dtype=np.float64)


def _ended(groups: Sequence[Group], cut: Cut) -> np.ndarray | None:
    if cut == "outcome":
        return None
    return np.array([[response.finish == "stop" for response in group.responses] for group in groups])
