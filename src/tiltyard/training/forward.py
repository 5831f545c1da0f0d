"""Forward passes with gradient: the columns that losses read, each computed when it is first read.

A forward pass is an object that declares the model it runs (`role`), the columns of the batch that it needs and the
columns that it writes. `FORWARD_PASSES` holds those that are registered, by column. A method adds its own by
`register_forward`, or, where the pass has parameters, by naming the object itself among the `needs` of its loss; a pass
named there takes the place of a registered one that writes the same columns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Protocol, TypeVar

from torch import Tensor

from tiltyard.batch.batch import Batch
from tiltyard.errors import CompositionError, nearest
from tiltyard.losses.kl import sum_per_response
from tiltyard.training.models import Models


class ForwardPass(Protocol):
    """One forward pass of one model: `(forward) -> columns`, with gradient."""

    @property
    def role(self) -> str: ...
    @property
    def needs(self) -> tuple[str, ...]: ...
    @property
    def writes(self) -> tuple[str, ...]: ...

    def __call__(self, forward: Forward) -> Mapping[str, Tensor]: ...


Need = str | ForwardPass
Pass = TypeVar("Pass", bound=ForwardPass)
FORWARD_PASSES: dict[str, ForwardPass] = {}


def register_forward(step: Pass) -> Pass:
    """Registers a forward pass for every column that it writes, and returns it.

    Raises:
        CompositionError: another pass writes one of the columns.
    """
    for column in step.writes:
        known = FORWARD_PASSES.setdefault(column, step)
        if known != step:
            raise CompositionError(f"two forward passes write the column '{column}'", got=f"{known!r} and {step!r}")
    return step


def column_names(needs: Sequence[Need]) -> tuple[str, ...]:
    """The names among a loss's needs, and the columns of the forward passes among them, each once."""
    return tuple(dict.fromkeys(c for n in needs for c in ((n,) if isinstance(n, str) else n.writes)))


def roles_of(needs: Sequence[Need]) -> tuple[str, ...]:
    """The models that a loss with these needs runs, those of the passes that its own passes read included."""
    roles: dict[str, None] = {}
    waiting, seen = [*needs], set()
    while waiting:
        need = waiting.pop(0)
        step = FORWARD_PASSES.get(need) if isinstance(need, str) else need
        if step is not None and id(step) not in seen:
            seen.add(id(step))
            roles[step.role] = None
            waiting += step.needs
    return tuple(roles)


class Forward:
    """The forward columns of a micro-batch: `forward["logp_R"]`, or `forward.logp_R` for a usual one.

    Args:
        temperature: of the policy's distribution.
        needs: the loss's; a pass that can compute several columns computes those that are named here.
    """

    def __init__(self, models: Models, batch: Batch, temperature: float = 1.0, needs: Sequence[Need] = ()):
        self.models, self.batch, self.temperature = models, batch, temperature
        self.needs = column_names(needs)
        self.columns: dict[str, Tensor] = {}
        self._passes = FORWARD_PASSES | {c: step for step in needs if not isinstance(step, str) for c in step.writes}

    def __getitem__(self, name: str) -> Tensor:
        """The column, computed if it has not been yet.

        Raises:
            CompositionError: no forward pass writes it, or one does and the loss does not declare that it needs it.
        """
        if name not in self.columns:
            if name not in self._passes:
                fix = f"{nearest(name, self._passes)}, or add a pass with register_forward"
                raise CompositionError(f"no forward pass writes '{name}'", fix=fix)
            self.columns = {**self._passes[name](self), **self.columns}
        if name not in self.columns:
            raise CompositionError(f"the loss reads {name} without declaring it", fix=f"add '{name}' to its needs")
        return self.columns[name]

    @property
    def logp_R(self) -> Tensor:
        """The policy's log-probs of the response tokens."""
        return self["logp_R"]

    @property
    def logp_B(self) -> Tensor:
        """Log-probs of whole responses: the sum over their (loss) tokens, never an average."""
        return self["logp_B"]

    @property
    def entropy_R(self) -> Tensor:
        """The entropy of the policy's distribution before each response token."""
        return self["entropy_R"]

    @property
    def value_R(self) -> Tensor:
        """The value model's estimate before each response token."""
        return self["value_R"]

    @property
    def model_score_B(self) -> Tensor:
        """The reward model's score of each response."""
        return self["model_score_B"]

    def states(self, role: str) -> dict[str, Tensor]:
        """`{"hidden_R": ...}` where the policy and another model read the same hidden states, else `{}`.

        Both then run on one pass of the backbone, and one backward pass.
        """
        shared = role == "policy" or self.models.shares_states(role)
        return self._policy_states if shared else {}

    @cached_property
    def _policy_states(self) -> dict[str, Tensor]:
        if not any(self.models.shares_states(role) for role in self.models):
            return {}
        return {"hidden_R": self.models["policy"].hidden_R(self.batch.forest)}


@dataclass(frozen=True)
class PolicyLogps:
    """`logp_R`, and `entropy_R` where the loss needs it: log-probs and entropy of the policy, at the temperature."""

    role: ClassVar[str] = "policy"
    needs: ClassVar[tuple[str, ...]] = ()
    writes: ClassVar[tuple[str, ...]] = ("logp_R", "entropy_R")

    def __call__(self, forward: Forward) -> Mapping[str, Tensor]:
        policy, entropy = forward.models["policy"], "entropy_R" in forward.needs
        states = forward.states("policy")
        forest = forward.batch.forest
        logp_R, entropy_R = policy.logp_R(forest, temperature=forward.temperature, entropy=entropy, **states)
        return {"logp_R": logp_R} | ({} if entropy_R is None else {"entropy_R": entropy_R})


@dataclass(frozen=True)
class ResponseLogps:
    """`logp_B`: the sum of `logp_R` over each response."""

    role: ClassVar[str] = "policy"
    needs: ClassVar[tuple[str, ...]] = ()
    writes: ClassVar[tuple[str, ...]] = ("logp_B",)

    def __call__(self, forward: Forward) -> Mapping[str, Tensor]:
        forest = forward.batch.forest
        return {"logp_B": sum_per_response(forward["logp_R"], forest.response_R, forest.B)}


@dataclass(frozen=True)
class TokenValues:
    """A scalar model's number before each response token, as `column`."""

    role: str = "value"
    column: str = "value_R"
    needs: ClassVar[tuple[str, ...]] = ()

    @property
    def writes(self) -> tuple[str, ...]:
        return (self.column,)

    def __call__(self, forward: Forward) -> Mapping[str, Tensor]:
        model = forward.models[self.role]
        return {self.column: model.value_R(forward.batch.forest, **forward.states(self.role))}


@dataclass(frozen=True)
class ResponseScores:
    """A scalar model's number at the last token of each response, as `column`."""

    role: str = "reward"
    column: str = "model_score_B"
    needs: ClassVar[tuple[str, ...]] = ()

    @property
    def writes(self) -> tuple[str, ...]:
        return (self.column,)

    def __call__(self, forward: Forward) -> Mapping[str, Tensor]:
        return {self.column: forward.models[self.role].score_B(forward.batch.forest)}


for _step in (PolicyLogps(), ResponseLogps(), TokenValues(), ResponseScores()):
    register_forward(_step)
