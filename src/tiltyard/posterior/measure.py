"""Samples of a prior and of policies with all that the estimators need: log-probs under both, exact KL, scores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tiltyard.batch.batch import split_by_tokens
from tiltyard.batch.compare import compare_with_ref
from tiltyard.batch.forest import Forest, pack
from tiltyard.errors import ConfigError, DataError
from tiltyard.losses.kl import sum_per_response
from tiltyard.models.language import LanguageModel
from tiltyard.posterior.estimates import Cut, Samples
from tiltyard.posterior.target import Target
from tiltyard.sampling import SampleSettings, response_seeds, sample
from tiltyard.scoring.reward_model import same_vocabulary
from tiltyard.stats.importance import Floats
from tiltyard.types import MICRO_TOKENS, Group, Prompt

AT_ONCE = 256  # responses between two calls of `progress`; no result depends on it
Progress = Callable[[int], None]  # takes the number of further responses that are sampled


def _silent(_: int) -> None:
    pass


@dataclass(frozen=True)
class PriorSamples:
    """Responses of the prior, with their log-probs, entropies and log factors [prompts, responses]."""

    groups: list[Group]
    log_prior: Floats
    entropy: Floats
    log_factor: Floats
    cut: Cut

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
    progress: Progress = _silent,
) -> list[Group]:
    """`n` responses to each prompt, some prompts at a time.

    Args:
        keys: of the random numbers, with the prompt's index and the response's.
    """
    groups: list[Group] = []
    step = max(1, AT_ONCE // n)
    for first in range(0, len(prompts), step):
        part = prompts[first : first + step]
        groups += sample(model, part, n, sampling, seeds=response_seeds(range(first, first + len(part)), n, *keys))
        progress(len(part) * n)
    return groups


def measure_prior(
    target: Target,
    prompts: Sequence[Prompt],
    n: int,
    sampling: SampleSettings,
    *,
    cut: Cut = "outcome",
    seed: int = 0,
    progress: Progress = _silent,
) -> PriorSamples:
    """Samples the prior and scores what it wrote.

    Args:
        prompts: encoded. n: responses a prompt. sampling: untruncated, at the prior's temperature.

    Raises:
        ConfigError: truncated sampling. ScoringError: a scorer abstained from a response.
    """
    check_sampling(target, sampling)
    groups = draw(target.prior.model, prompts, n, sampling, (seed, 0), progress)
    temperature = target.prior.temperature
    logp, entropy = [], []
    for forest in _forests(groups, target.prior.model):
        logp_R, entropy_R = _without_grad(target.prior.model, forest, temperature)
        logp.append(_sums(logp_R, forest))
        entropy.append(_sums(entropy_R, forest))
    shape = (len(groups), n)
    factor = np.array(target.log_weights(groups), dtype=np.float64).reshape(shape)
    return PriorSamples(groups, _rows(logp, shape), _rows(entropy, shape), factor, cut)


def measure_policy(
    policy: LanguageModel,
    target: Target,
    prior: PriorSamples,
    n: int,
    sampling: SampleSettings,
    *,
    seed: int = 0,
    key: int = 1,
    progress: Progress = _silent,
) -> tuple[list[Group], Samples]:
    """Samples a policy on the prompts of `prior`, and returns its groups and all columns of both.

    One pass of the policy and one of the prior over the policy's responses, one of the policy over the prior's.

    Args:
        key: tells one policy's random numbers from another's; 0 is the prior's.

    Raises:
        ConfigError: truncated sampling. DataError: a policy of another tokenizer. ScoringError: a scorer abstained.
    """
    check_sampling(target, sampling)
    check_comparable(policy, target.prior.model)
    temperature = target.prior.temperature
    groups = draw(policy, [group.prompt for group in prior.groups], n, sampling, (seed, key), progress)
    columns: list[list[Floats]] = [[], [], [], []]
    for forest in _forests(groups, policy):
        found = compare_with_ref(policy, target.prior.model, forest, temperature)
        for column, x_R in zip(columns, (found.logp_R, found.ref_logp_R, found.kl_R, found.entropy_R), strict=True):
            column.append(_sums(x_R, forest))
    other = [_sums(_without_grad(policy, forest, temperature)[0], forest) for forest in _forests(prior.groups, policy)]
    shape, shape_prior = (len(groups), n), prior.log_prior.shape
    logp, ref_logp, kl, entropy = (_rows(column, shape) for column in columns)
    factor = np.array(target.log_weights(groups), dtype=np.float64).reshape(shape)
    ended = _ended(groups, prior.cut)
    return groups, Samples(
        log_policy=np.concatenate([logp, _rows(other, shape_prior)], -1),
        log_prior=np.concatenate([ref_logp, prior.log_prior], -1),
        log_factor=np.concatenate([factor, prior.log_factor], -1),
        kl=kl,
        entropy=entropy,
        n=n,
        ended=None if ended is None else np.concatenate([ended, prior.ended], -1),
    )


def check_comparable(policy: LanguageModel, prior: LanguageModel) -> None:
    """Checks that both models are distributions over the same responses.

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
def _without_grad(model: LanguageModel, forest: Forest, temperature: float) -> tuple[Tensor, Tensor]:
    logp_R, entropy_R = model.logp_R(forest, temperature=temperature, entropy=True)
    assert entropy_R is not None
    return logp_R, entropy_R


def _sums(x_R: Tensor, forest: Forest) -> Floats:
    found: Floats = sum_per_response(x_R.double(), forest.response_R, forest.B).cpu().numpy()
    return found


def _rows(parts: list[Floats], shape: tuple[int, ...]) -> Floats:
    return np.concatenate(parts).reshape(shape)


def _ended(groups: Sequence[Group], cut: Cut) -> np.ndarray | None:
    if cut == "outcome":
        return None
    return np.array([[response.finish == "stop" for response in group.responses] for group in groups])
