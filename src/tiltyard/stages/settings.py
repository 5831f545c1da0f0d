"""Settings that a stage adds to `TrainSettings`, by what the method eats. Declared once; the functions use them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, create_model

from tiltyard.config import Settings, settings_model
from tiltyard.feedback import JudgeSettings, ModelJudgeSettings
from tiltyard.methods.base import Method
from tiltyard.training.run import TrainSettings

TooLong = Literal["drop", "truncate"]


class Arch(Settings):
    """A model from scratch: Llama shape (`mlm`: ModernBERT's), tied embeddings, a tokenizer of the stage's own data."""

    preset: Annotated[str, Field(description="1m, 12m or 60m")] = "12m"
    vocab: Annotated[int, Field(ge=300, description="tokens of the vocabulary")] = 8192
    context: Annotated[int, Field(ge=16, description="longest sequence the model is made for")] = 1024


class ModelSettings(Settings):
    model: Annotated[str, Field(description="an earlier stage, a folder or a hub name")]
    trust_remote_code: Annotated[bool, Field(description="run code that comes with a hub model")] = False


class PretrainModel(Settings):
    model: Annotated[str, Field(description="continue from this one; empty: a new model of shape `arch`")] = ""
    arch: Annotated[Arch, Field(description="shape of a new model")] = Arch()
    trust_remote_code: Annotated[bool, Field(description="run code that comes with a hub model")] = False


class DataSettings(Settings):
    data: Annotated[
        str | list[str], Field(description="training data: a file, stage/file or hub name; or a list of them")
    ]
    held_out: Annotated[str, Field(description="held-out data to measure on; empty: none")] = ""
    split: Annotated[str, Field(description="split or file of a folder or hub data set; empty: the only one")] = ""
    limit: Annotated[int, Field(ge=0, description="use the first rows of each file only; 0: all")] = 0
    max_length: Annotated[int, Field(ge=4, description="tokens of prompt and answer together")] = 512
    too_long: Annotated[TooLong, Field(description="drop longer rows, or cut them (prompt left, answer right)")] = (
        "drop"
    )


class TokenSettings(Settings):
    tokens_per_step: Annotated[
        int,
        Field(ge=0, description="packed tokens a step, in place of a number of groups; 0: `prompts_per_step` groups"),
    ] = 0


class RewardSettings(Settings):
    demonstrations: Annotated[
        str, Field(description="rewards are normalised on these; empty: on the training answers")
    ] = ""
    normalise: Annotated[
        Literal["mean", "unit", "none"],
        Field(description="shift rewards to mean 0, also scale them to variance 1, or leave them as they are"),
    ] = "mean"


class PairSettings(Settings):
    pairs: Annotated[
        Literal["given", "all", "best_worst"],
        Field(
            description="rankings: as they are (refused by methods for pairs), all their pairs, or best against worst"
        ),
    ] = "given"


class LabelSettings(Settings):
    good_from: Annotated[
        float | Literal["best"] | None,
        Field(description="answers with at least this score are good, or those ranked best; empty: rows say so"),
    ] = None


class RefSettings(Settings):
    ref: Annotated[str, Field(description="the reference; empty: the model as it starts")] = ""


class ShowSettings(Settings):
    show_kl: Annotated[
        bool,
        Field(
            description="keep the reference where it would only show the KL; false: one model and one forward pass less"
        ),
    ] = True


class RefCacheSettings(Settings):
    ref_cache: Annotated[
        bool,
        Field(description="keep the reference's log-probs on disk, computed once; false: it stays in memory"),
    ] = True


class SelfPlaySettings(Settings):
    iterations: Annotated[int, Field(gt=0, description="snapshots that the model plays against, in turn")] = 4
    temperature: Annotated[float, Field(gt=0, description="of the opponent's answers")] = 1.0
    max_tokens: Annotated[int, Field(gt=0, description="longest answer of the opponent")] = 128
    max_concurrent: Annotated[int, Field(gt=0, description="answers decoded at once; bounds memory only")] = 256


class Demonstrations(Settings):
    demonstrations: Annotated[str, Field(description="demonstrations to keep likely beside the data; empty: none")] = ""


class RoundDemonstrations(Settings):
    demonstrations: Annotated[
        str, Field(description="demonstrations that join the answers of every round, scored like them; empty: none")
    ] = ""


class Corpus(Settings):
    corpus: Annotated[
        str, Field(description="plain documents for a auxiliary language-modelling loss; empty: none")
    ] = ""


SECOND = {"demonstrations": "demonstrations", "text": "corpus"}  # kind of a second data set -> its setting


class PromptSettings(Settings):
    prompts: Annotated[str, Field(description="prompts: a file, stage/file or hub name")]
    split: Annotated[str, Field(description="split or file of a folder or hub data set; empty: the only one")] = ""
    limit: Annotated[int, Field(ge=0, description="use the first rows only; 0: all")] = 0
    max_prompt: Annotated[int, Field(ge=1, description="tokens of a prompt")] = 256
    too_long: Annotated[TooLong, Field(description="drop longer prompts, or cut them on the left")] = "drop"
    samples_per_prompt: Annotated[int, Field(gt=0, description="answers a prompt")] = 1
    temperature: Annotated[float, Field(gt=0, description="of sampling; RL trains the policy under it too")] = 1.0
    max_tokens: Annotated[int, Field(gt=0, description="longest answer")] = 128
    max_concurrent: Annotated[int, Field(gt=0, description="answers decoded at once; bounds memory only")] = 256
    replay: Annotated[
        str, Field(description="folder of a stage whose stored answers and scores are learnt from; empty: sample")
    ] = ""


class ScoreSettings(Settings):
    """Who says what an answer is worth: exactly one of the two."""

    reward: Annotated[
        str, Field(description="the reward model: an earlier stage, a folder, a hub name; gold: the demo world's rules")
    ] = ""
    judge: Annotated[
        JudgeSettings | None, Field(description="an AI judge in place of a reward model; its model may be `policy`")
    ] = None


class SelfJudge(ModelJudgeSettings):
    """A judge that is the policy itself unless another model is named: points with reasons, several times, averaged."""

    kind: Annotated[Literal["model"], Field(description="a model; for other judges: iterative_dpo, online_dpo")] = (
        "model"
    )
    ask: Annotated[
        Literal["pair", "score", "points"],
        Field(description="which of two is better; a rating from 1 to 10; points from 0 to 5 with reasons"),
    ] = "points"
    model: Annotated[str, Field(description="who judges; policy: the one that is trained, as it is at the time")] = (
        "policy"
    )


class SelfJudgeSettings(Settings):
    judge: Annotated[SelfJudge, Field(description="how the policy judges its own answers")] = SelfJudge()


class RoundSettings(Settings):
    iterations: Annotated[int, Field(gt=0, description="rounds of sampling and learning")] = 3
    round_prompts: Annotated[
        int, Field(ge=0, description="prompts answered a round; 0: as many as the round's steps take")
    ] = 0
    top_p: Annotated[float, Field(gt=0, le=1, description="sample from the likeliest tokens of this probability")] = 1.0
    top_k: Annotated[int, Field(ge=0, description="sample from so many likeliest tokens; 0: all")] = 0


class ValueSettings(Settings):
    value_init: Annotated[
        Literal["reward", "model", "shared"],
        Field(description="a copy of the reward model, a copy of the policy, or a head on the policy's own backbone"),
    ] = "reward"
    value_lr: Annotated[float, Field(ge=0, description="learning rate of the value model; 0: the same as lr")] = 0.0


def method_settings(method: Method) -> type[Settings]:
    """The settings of a method's stage: the common ones, its data's, and the function's own keyword arguments."""
    sources: list[Any] = [TrainSettings]
    if method.online:
        sources += [ModelSettings, PromptSettings, *(part for part, wanted in _online_parts(method) if wanted)]
    else:
        sources += [PretrainModel if method.family == "pretrain" else ModelSettings, DataSettings]
        sources += [part for part, wanted in _offline_parts(method) if wanted]
    known: dict[str, Any] = {}
    for part in sources:
        known |= part.model_fields
    sources += [method.build, _defaults(method, known)]
    return settings_model(method.name, *sources)


def _online_parts(method: Method) -> list[tuple[type[Settings], bool]]:
    """Settings of methods that sample, and whether this method has them."""
    return [
        (ScoreSettings, "reward" in method.frozen),
        (SelfJudgeSettings, "reward" not in method.frozen),
        # who judges for itself renews its reference every round: another one would be gone before it is read
        (RefSettings, {"ref", "reward"} <= set(method.frozen)),
        (ShowSettings, "ref" in method.optional),
        (RoundSettings, method.samples == "per iteration"),
        (ValueSettings, "value" in method.trains),
        (Corpus, method.second == "text"),
        (RoundDemonstrations, method.second == "demonstrations"),
    ]


def _offline_parts(method: Method) -> list[tuple[type[Settings], bool]]:
    """Settings of methods that learn from files, and whether this method has them."""
    needs_ref = "ref" in method.frozen
    return [
        (TokenSettings, method.samples == "no"),
        (RewardSettings, method.pointwise),
        (PairSettings, method.eats == "comparisons" and method.encode is None),
        (LabelSettings, method.eats == "labelled"),
        (RefSettings, needs_ref and method.samples == "no"),
        (RefCacheSettings, needs_ref and "ref" in method.cached),
        (SelfPlaySettings, method.samples == "per iteration"),
        (Demonstrations, method.second == "demonstrations"),
    ]


def _defaults(method: Method, known: dict[str, Any]) -> type[Settings]:
    fields = {key: (known[key].annotation, value) for key, value in method.defaults.items()}
    return create_model(f"{method.name}_defaults", __base__=Settings, **fields)  # type: ignore[call-overload]


REFERS = ("model", "data", "held_out", "prompts", "reward", "ref", "demonstrations", "corpus", "replay", "judge")
WORDS = ("gold", "policy")
NEUTRAL = ("device", "log_to", "save_every", "sample_every", "max_concurrent", "trust_remote_code")
