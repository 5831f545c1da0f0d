"""vBoN: fine-tuning to the distribution of best-of-n, so that one draw does what n draws and a ranking did."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from tiltyard.batch.batch import Batch, Metrics
from tiltyard.distributed import processes
from tiltyard.errors import ConfigError, ScoringError
from tiltyard.inputs import Policy, Prompts, Reference, Reward
from tiltyard.losses.divergence import best_of_n_factor
from tiltyard.methods.base import method
from tiltyard.methods.distribution import DEFAULTS, DEFAULTS_FROM, DivergenceAdvantages, TargetRatios
from tiltyard.methods.policy_gradient import (
    require_fresh_responses,
    require_several_samples,
    require_untruncated_sampling,
)
from tiltyard.methods.rloo import Reinforce
from tiltyard.sampling.streams import response_seeds
from tiltyard.training.algorithm import Algorithm, Models
from tiltyard.training.apart import score_apart
from tiltyard.training.prepare import OldLogp, column, sum_count
from tiltyard.training.source import Online, generate
from tiltyard.types import Prompt, prompt_digest

KEY = 13  # of the random numbers of the reference's responses


@dataclass
class BestOfN:
    """`reward_B`: log p_n/ref of each response, p_n the distribution of the best of n responses of the reference.

    Where a score stands among the reference's is estimated from `samples` responses of the reference to each prompt and
    the response itself, so that no rank is 0. They are sampled when a prompt first comes, and their scores kept. Only
    ranks count: a monotone change of the scores changes nothing. Metric: `rank`, the mean share of the reference's
    responses that score less, ties half: 0.5 at the start, n/(n + 1) at p_n without ties.
    """

    source: Any
    n: float
    samples: int
    kept: dict[str, Tensor] = field(default_factory=dict)
    needs: ClassVar[tuple[str, ...]] = ("score_B",)
    writes: ClassVar[tuple[str, ...]] = ("reward_B",)
    reads_ref: ClassVar[bool] = True

    def __call__(self, models: Models, batch: Batch) -> Batch:
        metrics = self._sample(models, [group.prompt for group in batch.groups])
        below: list[float] = []
        equal: list[float] = []
        total: list[float] = []
        for group in batch.groups:
            drawn = self.kept[_key(group.prompt)]
            for value in group.scores or ():
                below.append(float((drawn < value).sum()))
                equal.append(float((drawn == value).sum()))
                total.append(float(len(drawn)))
        below_B, equal_B, total_B = column(below, batch), column(equal, batch), column(total, batch)
        reward_B = best_of_n_factor(below_B, equal_B + 1, total_B + 1, self.n)
        metrics |= {"rank": sum_count((below_B + equal_B / 2) / total_B)}
        return batch.with_columns(metrics, reward_B=reward_B)

    def _sample(self, models: Models, prompts: Sequence[Prompt]) -> Metrics:
        """Samples and scores the reference's responses to new prompts; a response depends on its prompt alone."""
        new = {_key(prompt): prompt for prompt in prompts if _key(prompt) not in self.kept}
        if not any(processes.gather_objects(bool(new))):
            return {}
        source = self.source
        places = [int(prompt_digest(prompt), 16) >> 1 for prompt in new.values()]
        seeds = response_seeds(places, self.samples, source.seed, KEY)
        source.sampler.sync(models["ref"], 0)
        groups = generate(source.sampler, list(new.values()), self.samples, source.settings, seeds)
        scored, metrics = score_apart(source.scorer, groups)
        for group in scored:
            self.kept[_key(group.prompt)] = torch.tensor(group.scores or (), dtype=torch.float64)
        for key, prompt in new.items():
            if not len(self.kept.get(key, ())):
                raise ScoringError(
                    "best-of-n needs scores of the reference's responses",
                    where=f"prompt {prompt.id}",
                    got=f"none of {self.samples} responses was scored",
                    fix="leave the prompt out, or take a scorer that scores it",
                )
        return {**metrics, "ref_sampled": (float(len(new) * self.samples), float(processes.is_main()))}

    def state_dict(self) -> dict[str, list[float]]:
        return {key: drawn.tolist() for key, drawn in self.kept.items()}

    def load_state_dict(self, state: dict[str, list[float]]) -> None:
        self.kept = {key: torch.tensor(drawn, dtype=torch.float64) for key, drawn in state.items()}


def _key(prompt: Prompt) -> str:
    return f"{prompt_digest(prompt)} {prompt.id}"


@method(
    "distribution",
    source=Prompts(),
    roles=(Policy(), Reference(), Reward()),
    defaults={**DEFAULTS, "samples_per_prompt": 4},
    defaults_from=DEFAULTS_FROM,
    formula="p_n(y) = ref(y) [F(s)^n - F(<s)^n] / [F(s) - F(<s)], F the distribution of the reference's scores s at "
    "the prompt, from ref_samples of them\n"
    "R_i = log p_n(y_i) - log pi(y_i);  A_i = R_i - mean of the other responses' R;  L = mean over responses of -A_i "
    "log pi(y_i), A held constant: the gradient of KL(pi || p_n)",
    oracle="p_n = ref(y)/ref(level) (F(level)^n - F(below)^n), ties by chance; at most log n - (n - 1)/n nats from ref",
    paper="Amini et al. 2024 (vBoN); under ties: Beirami et al. 2024",
    pitfalls="Responses below all of the reference's have a rank of about 1/ref_samples, so large n needs many "
    "ref_samples. The reference's are sampled once a prompt: epochs over few prompts are cheap, one pass over many is "
    "not. Like best-of-n it follows a wrong reward as far as n goes.",
)
def vbon(
    source: Online,
    *,
    n: Annotated[float, Field(ge=1)] = 4,
    ref_samples: Annotated[int, Field(gt=1)] = 32,
) -> Algorithm:
    """Minimises KL(pi || p_n) to p_n, the distribution of the best of n responses of the reference.

    Only the order of the scores of one prompt counts, so there is no temperature to choose: n is the dial. A response
    that was cut competes with the score that it has.

    Args:
        source: `Online` with samples_per_prompt >= 2 whose scores stand for themselves (no judge of pairs, no policy as
            judge); responses are sampled without truncation.
        n: draws of the best-of-n that is imitated; at most log n - (n - 1)/n nats from the reference. [4: Tiltyard]
        ref_samples: responses of the reference to each prompt, for the ranks. [32: Tiltyard; the error of a rank is at
            most 0.5/sqrt(ref_samples)]
    """
    require_untruncated_sampling(source, "vbon")
    require_fresh_responses(source, "vbon")
    require_several_samples(source, "vbon")
    scale = source.scorer.scale
    if not scale.comparable or scale.moving:
        raise ConfigError(
            "best-of-n ranks scores that were given at different times",
            where="vbon",
            got="a judge of pairs, whose scores say who wins within a group"
            if not scale.comparable
            else "the policy as judge, which changes",
            expected="scores that mean the same whenever they are given",
            fix="set judge.ask=score, or take a reward model",
        )
    temperature = source.settings.temperature
    return Algorithm(
        "vbon",
        source,
        Reinforce(),
        prepare=(
            OldLogp(temperature, against_ref=True),
            BestOfN(source, n, ref_samples),
            TargetRatios(1.0),
            DivergenceAdvantages("reverse_kl"),
        ),
        temperature=temperature,
    )
