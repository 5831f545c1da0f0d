"""The models of one run, by role."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor

from tiltyard.errors import CompositionError
from tiltyard.models.backbone import Backbone
from tiltyard.models.encoder import MaskedModel
from tiltyard.models.language import LanguageModel, ScalarModel
from tiltyard.types import Group

Model = TypeVar("Model", bound=Backbone)


class RefLogps(Protocol):
    """Log-probs of a reference, looked up."""

    def logp_R(self, groups: Sequence[Group]) -> Tensor: ...


class Role(Generic[Model]):
    """An attribute of `Models` for a usual role: the model, or None where there is none."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, models: Models, owner: type) -> Model | None:
        return models.get(self.name)

    def __set__(self, models: Models, model: Model | None) -> None:
        models[self.name] = model


class Models:
    """The models of one run, by role: `models["policy"]`, or `models.policy` for a usual role.

    A role may have any name: `Models(policy=..., reward=..., twist=...)`. A method declares which roles it trains.

    Attributes:
        policy, ref, reward, value, encoder: the usual roles; None where there is no such model.
        version: number of updates of the policy, counted in outer steps.
        ref_cache: the reference's log-probs of fixed data, computed before (`training.refcache`), in place of `ref`.
    """

    policy = Role[LanguageModel]()
    ref = Role[LanguageModel]()
    reward = Role[ScalarModel]()
    value = Role[ScalarModel]()
    encoder = Role[MaskedModel]()

    USUAL = ("policy", "ref", "reward", "value", "encoder")

    def __init__(self, *, version: int = 0, ref_cache: RefLogps | None = None, **models: Any):
        self.version, self.ref_cache = version, ref_cache
        self._models: dict[str, Any] = {role: model for role, model in models.items() if model is not None}

    def __getitem__(self, role: str) -> Any:
        """The model of a role.

        Raises:
            CompositionError: there is none.
        """
        if role not in self._models:
            raise CompositionError(
                f"the method needs a model '{role}' and none was given",
                got=", ".join(self) or "no models",
                fix=f"pass Models({role}=...)",
            )
        return self._models[role]

    def __setitem__(self, role: str, model: Any) -> None:
        """Sets the model of a role; None removes it."""
        self._models.pop(role, None)
        if model is not None:
            self._models[role] = model

    def __contains__(self, role: object) -> bool:
        return role in self._models

    def __iter__(self) -> Iterator[str]:
        """The roles that have a model: the usual ones in their order, then the others."""
        yield from (role for role in self.USUAL if role in self._models)
        yield from (role for role in self._models if role not in self.USUAL)

    def __repr__(self) -> str:
        return f"Models({', '.join(self)}, version={self.version})"

    def get(self, role: str, default: Any = None) -> Any:
        """The model of a role, or `default` where there is none."""
        return self._models.get(role, default)

    def present(self) -> dict[str, Backbone]:
        """The models by role, the usual roles first."""
        return {role: self._models[role] for role in self}

    def replace(self, **changes: Any) -> Models:
        """A copy with other models in some roles (None: without one), another `version` or `ref_cache`."""
        return Models(**{"version": self.version, "ref_cache": self.ref_cache, **self._models, **changes})

    @property
    def in_memory(self) -> int:
        """Number of models whose weights are in memory; heads on one backbone count as one model."""
        return len({id(model.backbone) for model in self._models.values()})

    @property
    def device(self) -> torch.device:
        """The device of the first model."""
        return next(iter(self.present().values())).device

    def shares_states(self, role: str) -> bool:
        """True if the role's model is a head on the policy's own hidden states, so that one pass serves both."""
        policy, model = self.policy, self.get(role)
        return policy is not None and isinstance(model, ScalarModel) and model.shares_hidden_states(policy)
