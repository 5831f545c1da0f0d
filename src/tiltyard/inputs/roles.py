"""The models of a method by their roles: how each is loaded, and what it adds to the settings and to the end."""

from __future__ import annotations

import random
from abc import ABC
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from torch import nn

from tiltyard.data import Chat, plain_texts, train_tokenizer
from tiltyard.distributed import processes
from tiltyard.errors import ConfigError, DataError
from tiltyard.inputs.files import Rows, files_of, groups_of
from tiltyard.inputs.measure import Measure, cloze, each_score, ranking
from tiltyard.inputs.reference import load_options
from tiltyard.inputs.scores import ScoreSettings, SelfJudgeSettings
from tiltyard.inputs.settings import (
    CachedRefModels,
    FileSettings,
    OptionalRefModels,
    PretrainSettings,
    RefModels,
    RewardTraining,
    StageSettings,
    ValueModels,
)
from tiltyard.inputs.workspace import Workspace, model_folder
from tiltyard.models.adapters import adapt, value_adapter
from tiltyard.models.backbone import Backbone
from tiltyard.models.language import ScalarModel
from tiltyard.models.load import (
    check_values,
    from_scratch,
    load_language_model,
    load_masked_model,
    load_scalar_model,
    load_tokenizer,
    masked_from_scratch,
    pick_device,
    value_from,
    value_head,
)
from tiltyard.records import Record, Settings, part
from tiltyard.scoring.reward_model import check_vocabularies
from tiltyard.training.algorithm import Algorithm, Models
from tiltyard.training.log import told
from tiltyard.training.run import ValueOptimizer
from tiltyard.types import Group


class Role(ABC):
    """A model of a method.

    Attributes:
        name: of the field of `Models`.
        trained: whether the method updates it.
        cached: whether its log-probs of fixed data are kept on disk, so that it need not be in memory.
        optional: whether it is there to be measured against alone under some settings (`show_kl`).
        counted: whether it is a model in memory at all.
    """

    name: ClassVar[str]
    trained: ClassVar[bool] = False
    counted: ClassVar[bool] = True
    cached: bool = False
    optional: bool = False

    @property
    def settings(self) -> tuple[type[Settings], ...]:
        """Settings that it adds to the stage's."""
        return ()

    @property
    def records(self) -> Mapping[str, tuple[type[Record], ...]]:
        """Settings that it adds to the stage's records."""
        return {}


class Start(Role):
    """The model that a stage starts from and trains."""

    trained = True
    measures: ClassVar[bool] = False  # whether `finish` runs the model

    def load_model(self, folder: Path | str, settings: StageSettings, options: dict[str, Any]) -> Backbone:
        """Loads the model of a folder or hub name."""
        raise NotImplementedError

    def new_model(self) -> Callable[..., Any]:
        """The function that makes a model from scratch.

        Raises:
            ConfigError: there is none for this role.
        """
        raise ConfigError("this method cannot begin with a new model", where=self.name, fix="set model=MODEL")

    def measure(self, algorithm: Algorithm, groups: Sequence[Group], budget: int) -> Measure | None:
        """Returns the measure on held-out groups; None: the source's."""
        return None

    def load(self, work: Workspace, settings: StageSettings) -> Backbone:
        """The model that `settings.model` names, or a new one; with an adapter where `lora` is set."""
        chosen = settings.models
        if chosen.quantize != "none" and chosen.lora is None:
            raise ConfigError(
                "weights in 4 bits cannot be trained themselves",
                where=f"{work.name}.quantize",
                got=f"quantize={chosen.quantize} without lora",
                fix="set lora={}: adapters are trained on the quantised backbone",
            )
        if not settings.model:
            return _from_scratch(self, work, part(settings, PretrainSettings))
        options = {**load_options(chosen), "quantize": chosen.quantize}
        model = self.load_model(model_folder(work, settings.model), settings, options)
        if chosen.lora is not None:
            model = adapt(model, chosen.lora, self.name, settings.seed)
            count = sum(p.numel() for p in model.parameters())
            work.report("lora", [f"{count / 1e6:.2f}M trained parameters on a frozen backbone"])
        return model

    def finish(
        self, work: Workspace, settings: StageSettings, model: Backbone, groups: Sequence[Group]
    ) -> dict[str, Any]:
        """Finishes the trained model before it is written. Returns results of the stage."""
        return {}


@dataclass(frozen=True)
class Policy(Start):
    """The language model that is trained."""

    name = "policy"

    def load_model(self, folder: Path | str, settings: StageSettings, options: dict[str, Any]) -> Backbone:
        """Loads a decoder."""
        return load_language_model(folder, **options)

    def new_model(self) -> Callable[..., Any]:
        """A decoder of Llama shape."""
        return from_scratch


@dataclass(frozen=True)
class Encoder(Start):
    """The encoder that is trained on masked tokens."""

    name = "encoder"

    def load_model(self, folder: Path | str, settings: StageSettings, options: dict[str, Any]) -> Backbone:
        """Loads an encoder with its head for masked tokens."""
        return load_masked_model(folder, **options)

    def new_model(self) -> Callable[..., Any]:
        """An encoder of ModernBERT's shape."""
        return masked_from_scratch

    def measure(self, algorithm: Algorithm, groups: Sequence[Group], budget: int) -> Measure:
        """Its loss on tokens that the method's own mask chooses, the same ones at every step."""
        return cloze(groups, budget, algorithm.prepare[0])


@dataclass(frozen=True)
class RewardModel(Start):
    """The reward model that is trained.

    Args:
        pairwise: it reads two responses at once and gives a comparison, not a score each.
    """

    pairwise: bool = False

    name = "reward"
    measures = True

    @property
    def settings(self) -> tuple[type[Settings], ...]:
        """Scores have a zero, which is set after training."""
        return () if self.pairwise else (RewardTraining,)

    def load_model(self, folder: Path | str, settings: StageSettings, options: dict[str, Any]) -> Backbone:
        """Loads a scalar model; of a language model the backbone, with a new head."""
        return load_scalar_model(folder, seed=settings.seed, **options)

    def measure(self, algorithm: Algorithm, groups: Sequence[Group], budget: int) -> Measure:
        """Its accuracy on held-out rankings."""
        return ranking(groups, budget)

    def finish(
        self, work: Workspace, settings: StageSettings, model: Backbone, groups: Sequence[Group]
    ) -> dict[str, Any]:
        """Marks a pairwise model as one; shifts and scales the scores of others."""
        assert isinstance(model, ScalarModel)
        model.compares = self.pairwise
        return {} if self.pairwise else _normalise(work, settings, model, groups)


@dataclass(frozen=True)
class Value(Role):
    """The value model, trained beside the policy."""

    name = "value"
    trained = True

    @property
    def records(self) -> Mapping[str, tuple[type[Record], ...]]:
        """Settings of its initial weights and its learning rate."""
        return {"models": (ValueModels,), "optimizer": (ValueOptimizer,)}

    def load(self, work: Workspace, settings: StageSettings, models: Models) -> ScalarModel:
        """Loads the value model that `value_init` selects; without a reward model it is initialised from the policy."""
        chosen, policy = settings.models, models.get("policy")
        init = part(chosen, ValueModels).value_init
        if init == "shared":
            return value_head(policy)
        start = models.reward if init == "reward" else None
        if start is not None:
            check_values(start)
            fix = "set value_init=model: the value model then starts from the policy"
            check_vocabularies(start.chat, policy.chat, f"{work.name}.models.value_init", fix)
        if chosen.lora is not None:
            return value_adapter(start or policy, chosen.lora, settings.seed)
        if start is not None:
            return value_from(start)
        return load_scalar_model(model_folder(work, settings.model), **load_options(chosen))


@dataclass(frozen=True)
class Reference(Role):
    """The frozen model that the policy is held close to, or measured against.

    Args:
        cached: the method reads it on fixed data alone, so its log-probs can be kept on disk.
        optional: under some settings the method only measures the KL to it.
        renewed: the method replaces it while it runs, so that no other can be named.
    """

    cached: bool = False
    optional: bool = False
    renewed: bool = False

    name = "ref"

    @property
    def records(self) -> Mapping[str, tuple[type[Record], ...]]:
        """Settings that select the reference and whether it stays in memory."""
        kinds: list[type[Record]] = [] if self.renewed else [RefModels]
        kinds += [CachedRefModels] if self.cached else []
        kinds += [OptionalRefModels] if self.optional else []
        return {"models": tuple(kinds)}


@dataclass(frozen=True)
class Proposal(Role):
    """A frozen copy of the policy that is sampled from; the method replaces it by the policy now and then."""

    name = "proposal"


@dataclass(frozen=True)
class Reward(Role):
    """The scorer of sampled responses: a reward model, a function, a weighted sum, or a judge in its place."""

    name = "reward"

    @property
    def settings(self) -> tuple[type[Settings], ...]:
        """The reward or the judge, and monitors."""
        return (ScoreSettings,)


@dataclass(frozen=True)
class PolicyAsJudge(Role):
    """The policy, as it is at the time, scores its own responses."""

    name = "judge"
    counted = False

    @property
    def settings(self) -> tuple[type[Settings], ...]:
        """Settings of its judgements."""
        return (SelfJudgeSettings,)


def _from_scratch(role: Start, work: Workspace, settings: PretrainSettings) -> Backbone:
    """A new model with a tokenizer of the stage's own data."""
    if settings.models.lora is not None:
        raise ConfigError(
            "a new model has no weights that an adapter could go by",
            where=f"{work.name}.lora",
            got="lora without a model",
            fix="set model=MODEL to go on from, or leave lora out",
        )
    make, arch = role.new_model(), settings.arch
    tokenizer_folder = work.folder / "tokenizer"
    if processes.is_main() and not (tokenizer_folder / "done").exists():
        texts = _texts(work, settings)
        train_tokenizer(texts, arch.vocab, mask=isinstance(role, Encoder)).save_pretrained(tokenizer_folder)
        (tokenizer_folder / "done").touch()
    processes.barrier()
    tokenizer = load_tokenizer(tokenizer_folder)
    if settings.data.max_length > arch.context:
        raise ConfigError(
            "sequences are longer than the model's context",
            where=f"{work.name}.max_length",
            got=settings.data.max_length,
            expected=f"at most arch.context = {arch.context}",
            fix="raise arch.context or lower max_length",
        )
    model: Backbone = make(
        arch.preset, tokenizer, seed=settings.seed, context=arch.context, dtype=settings.models.dtype
    )
    module: nn.Module = model.module
    module.to(pick_device(settings.models.device))
    count = sum(p.numel() for p in model.module.parameters())
    work.report("model", [f"{count / 1e6:.2f}M parameters, vocabulary {len(tokenizer):,}"])
    return model


def _texts(work: Workspace, settings: FileSettings) -> Iterable[str]:
    data = settings.data
    for one in files_of("data", data.path):
        yield from plain_texts(work.resolve(one, want=""), split=data.split or None, bad_rows=data.bad_rows)


def _normalise(work: Workspace, settings: StageSettings, model: ScalarModel, groups: Sequence[Group]) -> dict[str, Any]:
    """Shifts rewards so that demonstrations average 0 (Stiennon et al. 2020), and scales them to variance 1 if set.

    A shift changes no preference and no pi*; a factor a does: pi*(a r, beta) is pi*(r, beta / a), so a beta that was
    chosen for one scale means another on the other (Ziegler et al. 2019 normalise for that reason).
    """
    own = part(settings, RewardTraining)
    if own.normalise == "none":
        return {}
    if own.demonstrations:
        data = part(settings, FileSettings).data
        limits = Rows(data.max_length, data.too_long, data.split, data.limit, data.bad_rows, data.limit_by)
        chat: Chat = model.chat
        groups = groups_of(work, "demonstrations", own.demonstrations, "demonstrations", chat, limits, settings.seed)
    what = f"{len(groups):,} groups of {own.demonstrations or 'the training data'}"
    if 0 < own.normalise_limit < len(groups):  # a pass over all would cost a third of the training
        drawn = sorted(random.Random(settings.seed).sample(range(len(groups)), own.normalise_limit))
        groups, what = [groups[i] for i in drawn], f"{own.normalise_limit:,} of the {what}"
    what = f"the rewards of {what} are measured"
    work.report("normalising", [f"{what} (normalise={own.normalise})"])
    scored = each_score(model, groups, settings.run.tokens_per_microbatch)
    every = told(scored, len(groups), lambda line: work.report("normalising", [line]))
    scores = np.fromiter((s for row in every for s in row), dtype=np.float64)
    mean, spread = float(scores.mean()), float(scores.std())
    model.bias += mean / model.gain
    result: dict[str, Any] = {"reward_bias": model.bias}
    if own.normalise == "unit":
        if spread < 1e-8:
            raise DataError(
                "all demonstrations score alike, so rewards cannot be scaled by their spread",
                where=f"{work.name}.normalise",
                got=f"a standard deviation of {spread:g}",
                fix="set normalise=mean, or train longer",
            )
        model.gain /= spread
        result["reward_gain"] = model.gain
    return {**result, "normalised_on": own.demonstrations or "the training responses"}
