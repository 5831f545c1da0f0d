"""Shared by the policy-gradient methods: their losses, how tokens are averaged, and checks of their source."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from tiltyard.batch.batch import Batch, Metrics
from tiltyard.errors import ConfigError
from tiltyard.losses.kl import k2, k3, sum_per_response
from tiltyard.losses.policy import policy_gradient, ppo_clip_R, value_error_R
from tiltyard.training.algorithm import Forward, Item, Loss, Mean, Need
from tiltyard.training.prepare import OldLogp, sum_count
from tiltyard.training.source import Online

Aggregate = Literal["token", "sequence", "constant"]
KlForm = Literal["reward_k1", "loss_k2", "loss_k3"]


def old_logp(source: Online, *, against_ref: bool) -> OldLogp:
    """`OldLogp` at the temperature of sampling, with importance weights where the sampler is another program."""
    correction = source.weighted_by if isinstance(source, Online) else None
    return OldLogp(source.settings.temperature, against_ref=against_ref, correction=correction)


def weighted_R(loss_R: Tensor, batch: Batch) -> Tensor:
    """A policy loss of tokens times the importance weights between trainer and sampler, where the batch has some."""
    if "sampler_weight_R" not in batch.columns:
        return loss_R
    return loss_R * batch["sampler_weight_R"].to(loss_R.dtype)


@dataclass(frozen=True)
class ActorCritic:
    """-A log pi + value_coef (V - G)^2 - entropy H on every response token, A and G constants: no ratio, no clip."""

    value_coef: float
    entropy: float = 0.0
    item: ClassVar[Item] = "R"

    @property
    def needs(self) -> tuple[str, ...]:
        return ("logp_R", "value_R", "advantage_R", "return_R", *(("entropy_R",) if self.entropy else ()))

    def __call__(self, forward: Forward, batch: Batch) -> tuple[Tensor, Metrics]:
        policy_R = weighted_R(policy_gradient(forward.logp_R, batch["advantage_R"]), batch)
        value_R = value_error_R(forward.value_R, batch["return_R"])
        metrics: Metrics = {"policy_loss": sum_count(policy_R.detach()), "value_loss": sum_count(value_R.detach())}
        loss_R = policy_R + self.value_coef * value_R
        if self.entropy:
            loss_R = loss_R - self.entropy * forward.entropy_R
        return loss_R, metrics


@dataclass(frozen=True)
class ClippedPolicy:
    """max(-A ratio, -A clip(ratio, 1 - clip_low, 1 + clip_high)) + beta k(pi, ref) - entropy H on each token."""

    clip_low: float
    clip_high: float
    beta: float = 0.0
    form: KlForm = "reward_k1"
    entropy: float = 0.0
    item: ClassVar[Item] = "R"

    @property
    def kl_in_loss(self) -> bool:
        return self.beta > 0 and self.form != "reward_k1"

    @property
    def needs(self) -> tuple[str, ...]:
        ref, entropy = ("ref_logp_R",) * self.kl_in_loss, ("entropy_R",) * (self.entropy > 0)
        return ("logp_R", "old_logp_R", "advantage_R", *ref, *entropy)

    def __call__(self, forward: Forward, batch: Batch) -> tuple[Tensor, Metrics]:
        policy = ppo_clip_R(forward.logp_R, batch["old_logp_R"], batch["advantage_R"], self.clip_low, self.clip_high)
        loss_R = weighted_R(policy.loss_R, batch)
        metrics: Metrics = {
            "policy_loss": sum_count(loss_R.detach()),
            "ratio": sum_count(policy.ratio_R),
            "clipped": sum_count(policy.clipped_R.double()),
        }
        if self.kl_in_loss:
            kl_R = (k2 if self.form == "loss_k2" else k3)(forward.logp_R, batch["ref_logp_R"].detach())
            metrics["kl_loss"] = sum_count(kl_R.detach())
            loss_R = loss_R + self.beta * weighted_R(kl_R, batch)  # a mean over the policy's own tokens too
        if self.entropy:
            loss_R = loss_R - self.entropy * forward.entropy_R
        return loss_R, metrics


@dataclass(frozen=True)
class PerResponse:
    """A token loss made a response's: its mean over the response's tokens, or its sum divided by a constant.

    `tokens`: that constant; 0: each response's number of tokens.
    """

    loss: Loss
    tokens: int = 0
    item: ClassVar[Item] = "B"

    @property
    def needs(self) -> tuple[Need, ...]:
        return self.loss.needs

    def __call__(self, forward: Forward, batch: Batch) -> tuple[Tensor, Metrics]:
        loss_R, metrics = self.loss(forward, batch)
        forest = batch.forest
        sum_B = sum_per_response(loss_R, forest.response_R, forest.B)
        return sum_B / (self.tokens or forest.count_B), metrics


def aggregated(loss: Loss, how: Aggregate, longest: int, ended_only: bool) -> tuple[Loss, Mean]:
    """A token loss and its mean, by one of three rules.

    `token`: the mean over all tokens of the batch, so long responses weigh more (PPO here, DAPO). `sequence`: the mean
    over responses of the mean over tokens, so a token of a long response weighs less (GRPO). `constant`: the sum over
    tokens divided by responses times `longest`, so every token weighs the same whatever the batch (Dr. GRPO).

    Args:
        ended_only: responses that were cut are left out, and out of the divisor of the first two rules.
    """
    if how == "token":
        return loss, Mean("kept_R" if ended_only else None)
    if how == "sequence":
        return PerResponse(loss), Mean("kept_B" if ended_only else None)
    return PerResponse(loss, longest), KeptSum("kept_B") if ended_only else Mean()


class KeptSum(Mean):
    """The sum of the items that are kept, divided by the number of all of them."""

    def count(self, item: str, batch: Batch) -> float:
        return Mean().count(item, batch)


def require_untruncated_sampling(source: Online, method: str) -> None:
    """Raises a ConfigError if sampling is truncated (top-p, top-k or temperature 0).

    The log-probs of truncated sampling are not the policy's: ratios and KL would be wrong (TRL #6789).
    """
    settings = source.settings
    if not settings.is_untruncated:
        raise ConfigError(
            f"{method} needs untruncated sampling",
            where=method,
            got=f"temperature={settings.temperature}, top_p={settings.top_p}, top_k={settings.top_k}",
            expected="temperature > 0, top_p=1, top_k=0",
        )


def require_fresh_responses(source: Online, method: str, *, unless_weighted: bool = False) -> None:
    """Raises a ConfigError if the source samples ahead: the method computes with responses of the policy as it is.

    Clipped losses have the ratio to the policy that sampled, and losses on pairs learn from any responses.

    Args:
        unless_weighted: importance weights make up for the age.
    """
    age = getattr(source, "max_staleness", 0)
    if age == 0 or (unless_weighted and source.weighted_by is not None):
        return
    fix = "set max_staleness=0, or take a method for older ones: ppo, grpo, dr_grpo, dapo, reinforce_pp, online_dpo"
    raise ConfigError(
        f"{method} learns from responses of the policy as it is, and these would be older",
        where=f"{method}.max_staleness",
        got=age,
        expected=0,
        fix=f"set mismatch.correction=token, or {fix}" if unless_weighted else fix,
    )


def require_enough_prompts(source: Online, method: str, minibatches: int) -> None:
    """Raises a ConfigError if there are more minibatches than prompts a step."""
    if minibatches > source.prompts_per_step:
        raise ConfigError(
            "there are more minibatches than prompts",
            where=f"{method}.minibatches",
            got=minibatches,
            expected=f"at most prompts_per_step = {source.prompts_per_step}",
        )


def require_several_samples(source: Online, method: str) -> None:
    """Raises a ConfigError if an online source samples one response a prompt: a group baseline needs several."""
    if isinstance(source, Online) and source.samples_per_prompt < 2:
        raise ConfigError(
            f"{method} compares the responses to a prompt with each other",
            where=f"{method}.samples_per_prompt",
            got=source.samples_per_prompt,
            expected="at least 2 responses a prompt",
            fix="set samples_per_prompt=4",
        )
