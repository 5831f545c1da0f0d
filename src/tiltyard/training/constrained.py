"""A source whose responses are scored by the log factor of a distributional constraint (Khalifa et al. 2021)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np

from tiltyard.batch.batch import Metrics, summed
from tiltyard.distributed import processes
from tiltyard.errors import ConfigError, nearest
from tiltyard.posterior.constraints import solve_constraint
from tiltyard.posterior.target import complete_scores
from tiltyard.sampling.streams import response_seeds
from tiltyard.scoring.weighted import WeightedScorer
from tiltyard.training.algorithm import Models, StepGroups
from tiltyard.training.apart import costs_apart
from tiltyard.training.replay import Replayed
from tiltyard.training.source import generate
from tiltyard.types import Prompt

KEY = 11  # of the random numbers of the responses on which the coefficients are solved


@dataclass
class Constrained:
    """An `Online` source whose score is sum_i lambda_i phi_i: the log factor of a target with given moments.

    The coefficients are solved before the first step, on responses of the reference, and kept in the checkpoint. Parts
    of the scorer without a moment keep their weight. Everything else is the wrapped source's.

    Args:
        source: an `Online` or what passes for one. moments: the wanted mean of a part's scores, by its name.
        prompts_solved: this many of the source's prompts, spread over all. samples: responses of the reference to each.

    Raises:
        ConfigError: at the first step, a moment of no part, no moment, or moments that cannot be.
    """

    source: Any
    moments: Mapping[str, float]
    prompts_solved: int = 64
    samples: int = 32
    solved: list[float] = field(default_factory=list)  # the weight of each part; empty before the first step
    reads_ref: ClassVar[bool] = True

    def __post_init__(self) -> None:
        scorer = self.source.scorer
        parts = scorer.parts if isinstance(scorer, WeightedScorer) else [(1.0, scorer)]
        wanted = dict(self.moments)
        if len(parts) == 1 and "reward" in wanted:
            wanted = {parts[0][1].name: wanted["reward"]}
        self.wanted = wanted
        self.factor = WeightedScorer(parts, scorer.name)
        self.source = replace(self.source, scorer=self.factor)

    def __getattr__(self, name: str) -> Any:
        if name == "source":  # not set yet
            raise AttributeError(name)
        return getattr(self.source, name)

    def __call__(self, models: Models, step: int) -> StepGroups:
        metrics: Metrics = {}
        once = float(processes.is_main())
        if not self.solved and not isinstance(self.source, Replayed):
            self._check()
            self._use(self._solve(models))
            metrics = summed(costs_apart(part) for _, part in self.factor.parts)  # a step's metrics are its own
            metrics["ref_sampled"] = (len(self._chosen()) * self.samples * once, once)
        drawn: StepGroups = self.source(models, step)
        coefficients: Metrics = {
            f"lambda/{part.name}": (weight * once, once)
            for weight, part in self.factor.parts
            if part.name in self.wanted
        }
        return drawn._replace(metrics={**drawn.metrics, **metrics, **(coefficients if self.solved else {})})

    def _chosen(self) -> list[Prompt]:
        """The prompts on which the coefficients are solved, spread over all."""
        prompts = self.source.prompts
        count = min(self.prompts_solved, len(prompts))
        return [prompts[i * len(prompts) // count] for i in range(count)]

    def _use(self, weights: list[float]) -> None:
        self.solved = weights
        self.factor.parts = [(w, part) for w, (_, part) in zip(weights, self.factor.parts, strict=True)]

    def _check(self) -> None:
        """Raises a ConfigError if there is no moment, or one of no part."""
        names = [part.name for _, part in self.factor.parts]
        if not self.wanted:
            raise ConfigError(
                "there is no constraint",
                where="moments",
                got="{}",
                expected=f"a mean of {', '.join(names)}",
                fix="set moments.NAME=0.5, NAME being a part of reward",
            )
        for name in self.wanted:
            if name not in names:
                raise ConfigError(
                    "a moment of no feature",
                    where=f"moments.{name}",
                    got=name,
                    expected=", ".join(names),
                    fix=nearest(name, names),
                )

    def _solve(self, models: Models) -> list[float]:
        """The weight of every part, from responses of the reference; each process samples and scores its share.

        Raises:
            ConfigError: moments that no tilt of the samples has. ScoringError: a part abstained.
        """
        source = self.source
        own = processes.shard(self._chosen())
        seeds = response_seeds([i for i, _ in own], self.samples, source.seed, KEY)
        source.sampler.sync(models["ref"], 0)
        groups = generate(source.sampler, [prompt for _, prompt in own], self.samples, source.settings, seeds)
        columns = [complete_scores(part, groups) for _, part in self.factor.parts]
        found = {i: [column[g] for column in columns] for g, (i, _) in enumerate(own)}
        found = {i: row for part in processes.gather_objects(found) for i, row in part.items()}
        score_PMK = np.array([found[i] for i in sorted(found)], dtype=np.float64).transpose(0, 2, 1)
        return self._weights(score_PMK)

    def _weights(self, score_PMK: np.ndarray) -> list[float]:
        weights = [weight for weight, _ in self.factor.parts]
        names = [part.name for _, part in self.factor.parts]
        moved = [k for k, name in enumerate(names) if name in self.wanted]
        kept = [k for k, name in enumerate(names) if name not in self.wanted]
        base_PM = score_PMK[:, :, kept] @ np.array([weights[k] for k in kept], dtype=np.float64)
        found = solve_constraint(score_PMK[:, :, moved], [self.wanted[names[k]] for k in moved], base_PM)
        for k, coefficient in zip(moved, found.tolist(), strict=True):
            weights[k] = coefficient
        return weights

    def state_dict(self) -> dict[str, Any]:
        inner = self.source.state_dict() if hasattr(self.source, "state_dict") else {}
        return {"source": inner, "solved": self.solved}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if hasattr(self.source, "load_state_dict"):
            self.source.load_state_dict(state["source"])
        if state["solved"]:
            self._use(list(state["solved"]))
