"""The models that a training stage holds in memory, from its method and settings alone."""

from __future__ import annotations

from typing import NamedTuple

from tiltyard.feedback.settings import ModelJudgeSettings
from tiltyard.inputs.scores import POLICY, ScoreSettings
from tiltyard.inputs.settings import CachedRefModels, OptionalRefModels, RefModels, StageSettings, ValueModels
from tiltyard.methods.base import Method
from tiltyard.records import flattened, records_of
from tiltyard.scoring import is_function
from tiltyard.stages.methods import compose


class Held(NamedTuple):
    """Models in memory: in words; the roles that are trained; names and sources of the frozen ones.

    Under `lora` the trained roles are adapters on one frozen backbone. A source is the setting that names the model;
    "" where the model has the policy's shape.
    """

    words: str
    trained: tuple[str, ...]
    frozen: dict[str, str]
    lora: bool = False

    @property
    def passes(self) -> int:
        """Models whose activations are kept at the same time."""
        return len(self.trained)


def held(method: Method, settings: StageSettings) -> Held:
    """Returns the models that stay in memory while the stage trains."""
    chosen = settings.models
    on_disk = method.cached if isinstance(chosen, CachedRefModels) and chosen.ref_cache else ()
    own_ref = chosen.ref if isinstance(chosen, RefModels) else ""
    frozen: dict[str, str] = {}
    for name in method.frozen:
        if name == "reward":
            frozen |= _scoring_models(settings)
        elif name not in (*on_disk, *_left_out(method, settings)):
            frozen[name] = own_ref if name == "ref" else ""
    shared = isinstance(chosen, ValueModels) and chosen.value_init == "shared"
    trained = ("policy with the value head on its backbone",) if shared else tuple(method.trains)
    if chosen.lora is None:
        words = f"{', '.join(trained)} (trained)" + (f", {', '.join(frozen)} (frozen)" if frozen else "")
        return Held(words, trained, frozen)
    words = f"one frozen backbone with adapters of rank {chosen.lora.rank}: {', '.join(trained)} (trained)"
    if "ref" in frozen and not own_ref:
        words += ", ref (adapters off, or a second adapter where it is renewed)"
        del frozen["ref"]
    if "proposal" in frozen:
        words += ", proposal (a second adapter)"
        del frozen["proposal"]
    if frozen:
        words += f"; {', '.join(frozen)} (frozen; on the same backbone if trained there with lora)"
    return Held(words, trained, frozen, lora=True)


def _scoring_models(settings: StageSettings) -> dict[str, str]:
    """The models in this process that score responses: functions, rules and services are none, nor is the policy."""
    if not isinstance(settings, ScoreSettings):
        return {"reward": ""}
    judge = settings.judge
    if judge is not None:
        own = isinstance(judge, ModelJudgeSettings) and judge.model != POLICY
        return {"judge": judge.model} if own and isinstance(judge, ModelJudgeSettings) else {}
    parts = settings.parts().items()
    models = {name: one.source for name, one in parts if one.service is None and not is_function(one.source)}
    return {"reward" if len(models) == 1 else f"reward {name}": source for name, source in models.items()}


def _left_out(method: Method, settings: StageSettings) -> tuple[str, ...]:
    """Models that the method has by default and these settings do without."""
    chosen = settings.models
    if not isinstance(chosen, OptionalRefModels) or chosen.show_kl:
        return ()
    return () if compose(method, dotted(settings)).reads_ref else method.optional


def dotted(settings: StageSettings) -> dict[str, object]:
    """The settings by dotted key, values of records taken apart, all others as they are."""
    apart = {key: dict(getattr(settings, key)) for key in records_of(type(settings))}
    return {**dict(settings), **flattened(apart)}
