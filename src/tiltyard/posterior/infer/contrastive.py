"""Contrastive twist learning: psi of every next token, fitted to samples of the prior alone.

The twisted beginnings pi_psi(y_1..t) = prior(y_1..t) psi_t / Z_t should be those of pi*; the objective is the sum over
t of KL(pi*(y_1..t) || pi_psi(y_1..t)) (Zhao, Brekelmans, Makhzani & Grosse 2024, 2404.17546, section 4). With M samples
of the prior and their weights w = exp(g) it is, up to a constant,

    sum_t  log mean_i psi_t(i) - sum_i w~_i log psi_t(i),

and its gradient is theirs: log psi's mean under pi* against its mean under pi_psi, both by importance sampling. A
response that ended before t keeps psi = exp(g), which also fixes the scale of psi.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tiltyard.batch.batch import split_by_tokens
from tiltyard.batch.forest import pack
from tiltyard.errors import ModelError
from tiltyard.models.language import LanguageModel
from tiltyard.posterior.infer.twists import TokenTwist
from tiltyard.posterior.measure import Progress, check_sampling, draw, silent
from tiltyard.posterior.target import Target
from tiltyard.sampling import SampleSettings
from tiltyard.sampling.particles import Particles
from tiltyard.types import MICRO_TOKENS, Group, Prompt

KEY = 11


class LinearTwist:
    """log psi of each next token v after a state h of the prior: e_v . (A h) + b . h, e_v the output head's row.

    Args:
        model: the prior; packed. matrix: A [d, d] and b as its last row, [d + 1, d].
    """

    def __init__(self, model: LanguageModel, matrix: Tensor):
        self.model, self.matrix = model, matrix

    def of_tokens(self, hidden_R: Tensor, target_R: Tensor) -> Tensor:
        """log psi [R] of these next tokens."""
        moved_R = hidden_R @ self.matrix.T
        rows_R = self.model.head.weight[target_R]
        return (moved_R[:, :-1] * rows_R).sum(-1) + moved_R[:, -1]

    @torch.no_grad()
    def __call__(self, particles: Particles) -> Tensor:
        """log psi [S, V] of every next token of each running particle."""
        hidden = particles.next.hidden
        assert hidden is not None
        moved = hidden.to(self.matrix.dtype) @ self.matrix.T
        return moved[:, :-1] @ self.model.head.weight.T.to(self.matrix.dtype) + moved[:, -1:]

    def twist(self) -> TokenTwist:
        """As the twist of `twisted_smc`, with its own proposal."""
        return TokenTwist(self)


def learn_twist(
    target: Target,
    prompts: Sequence[Prompt],
    sampling: SampleSettings,
    *,
    samples: int = 64,
    steps: int = 60,
    decay: float = 1e-4,
    seed: int = 0,
    progress: Progress = silent,
) -> LinearTwist:
    """Fits a twist to samples of the prior; the objective is convex in its weights.

    Args:
        prompts: encoded. samples: to each prompt. steps: of L-BFGS. decay: of the squared weights.

    Raises:
        ConfigError: truncated sampling. ModelError: a prior that cannot be packed. ScoringError: a scorer abstained.
    """
    check_sampling(target, sampling)
    model = target.prior.model
    if not model.packed:
        raise ModelError("a twist reads the states of a packed prior", got=model.padded_reason, fix="take smc")
    groups = draw(model, prompts, samples, sampling, (seed, KEY), progress)
    factor_N = torch.tensor([g for row in target.log_weights(groups) for g in row], dtype=torch.float64)
    hidden_R, target_R, row_R, step_R = _states(model, groups)
    width = hidden_R.shape[-1]
    twist = LinearTwist(model, torch.zeros(width + 1, width, dtype=hidden_R.dtype, device=hidden_R.device))
    twist.matrix.requires_grad_(True)
    cells = _Cells(factor_N.view(len(groups), samples), row_R, step_R)
    optimizer = torch.optim.LBFGS([twist.matrix], max_iter=steps, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = cells.loss(twist.of_tokens(hidden_R, target_R).double()) + decay * twist.matrix.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    twist.matrix = twist.matrix.detach()
    return twist


@torch.no_grad()
def _states(model: LanguageModel, groups: Sequence[Group]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """States that predict tokens, the tokens, the response of each and its index within it: [R, d], [R], [R], [R].

    The last token of a response is one of them: the proposal has to know when to end.
    """
    hidden, tokens, rows, places, first = [], [], [], [], 0
    for part in split_by_tokens(groups, MICRO_TOKENS):
        forest = pack(part, model.device)
        lengths = [len(r.ids) for group in part for r in group.responses]
        step_R = torch.cat([torch.arange(n) for n in lengths]).to(model.device)
        hidden.append(model.hidden_R(forest))
        tokens.append(forest.target_R)
        rows.append(forest.response_R + first)
        places.append(step_R)
        first += len(lengths)
    return torch.cat(hidden), torch.cat(tokens), torch.cat(rows), torch.cat(places)


class _Cells:
    """The objective over each prompt and step: samples with a token there by log psi, the others by g."""

    def __init__(self, factor_GM: Tensor, row_R: Tensor, step_R: Tensor):
        self.groups, self.samples = factor_GM.shape
        self.steps = int(step_R.max()) + 1
        self.place_R = row_R * self.steps + step_R
        device = row_R.device
        self.factor_N = factor_GM.reshape(-1).to(device)
        running = torch.zeros(self.groups * self.samples * self.steps, dtype=torch.bool, device=device)
        running[self.place_R] = True
        self.used_GT = running.view(self.groups, self.samples, self.steps).any(1)
        self.weight_GM = factor_GM.softmax(-1).to(device)

    def loss(self, log_psi_R: Tensor) -> Tensor:
        """The mean over prompts and steps that have running samples."""
        flat = self.factor_N.repeat_interleave(self.steps)
        flat = flat.index_put((self.place_R,), log_psi_R)
        log_psi_GMT = flat.view(self.groups, self.samples, self.steps)
        loss_GT = log_psi_GMT.logsumexp(1) - (self.weight_GM[..., None] * log_psi_GMT).sum(1)
        return loss_GT[self.used_GT].mean()
