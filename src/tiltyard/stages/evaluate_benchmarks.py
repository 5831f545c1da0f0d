"""The benchmark files of the stage `evaluate`: read before anything runs, measured model by model, then compared."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Discriminator, Field, Tag

from tiltyard.data.benchmarks import BenchmarkFile, BenchmarkKind, Expect, Form, Item, read_benchmark
from tiltyard.data.chat import Chat
from tiltyard.errors import ConfigError, DataError
from tiltyard.evaluation import benchmarks as measures
from tiltyard.evaluation.before_after import each_logp
from tiltyard.evaluation.benchmarks import Column, Figure
from tiltyard.evaluation.harness import SCHEME, Harness, program, run_harness
from tiltyard.evaluation.judged import NamedReward, values_of
from tiltyard.files import atomic_write
from tiltyard.models.language import LanguageModel
from tiltyard.numerals import plural, verb
from tiltyard.records import Settings
from tiltyard.sampling import SampleSettings, sample
from tiltyard.scoring import FunctionScorer
from tiltyard.scoring.refusals import refusal
from tiltyard.stages.base import StageContext
from tiltyard.stages.rewards import Rewards
from tiltyard.stages.selection import prompts_digest
from tiltyard.training.log import Tally
from tiltyard.types import MICRO_TOKENS, Group

SECONDS = 10.0  # between two lines of progress


class BenchmarkSource(Settings):
    """A benchmark file and how it is read."""

    model_config = ConfigDict(populate_by_name=True, serialize_by_alias=True)

    source: Annotated[
        str,
        Field(
            alias="from",
            min_length=1,
            description="a file (JSON lines, JSON, Parquet, CSV, or .txt), a hub data set, or lmeval:TASK",
        ),
    ]
    kind: Annotated[Literal["auto", BenchmarkKind], Field(description="what its rows are; auto: by their columns")] = (
        "auto"
    )
    expect: Annotated[
        Expect, Field(description="what a good model does with its prompts, where the rows do not have it")
    ] = ""
    form: Annotated[
        Form, Field(description="questions in the chat template or as plain text; auto: as it is published")
    ] = "auto"
    prefix: Annotated[str, Field(description="plain text before each question, e.g. solved examples")] = ""
    split: Annotated[str, Field(description="of a folder or hub data set; empty: the only one")] = ""
    limit: Annotated[int, Field(ge=0, description="number of rows; 0: all")] = 0

    def folders(self) -> dict[str, str]:
        """Settings that refer to a file."""
        return {"from": self.source}


def _form(value: Any) -> str:
    """The form of a source, by the tags below."""
    return "[source]" if isinstance(value, BenchmarkSource | Mapping) else "[file]"


One = Annotated[
    Annotated[str, Tag("[file]")] | Annotated[BenchmarkSource, Tag("[source]")],
    Discriminator(_form),
]
Sources = list[str] | dict[str, One]


def named_sources(sources: Sources) -> dict[str, BenchmarkSource]:
    """Returns {name in the table: source}; a file of a list is called by its name without suffixes.

    Raises:
        ConfigError: two of one name.
    """
    if isinstance(sources, dict):
        return {k: v if isinstance(v, BenchmarkSource) else BenchmarkSource(source=v) for k, v in sources.items()}
    found: dict[str, BenchmarkSource] = {}
    for one in sources:
        name = Path(one.removeprefix(SCHEME)).name.partition(".")[0]
        if name in found:
            raise ConfigError(
                f"two benchmarks would both be called '{name}'",
                where="evaluate.benchmarks",
                got=f"{found[name].source} and {one}",
                fix=f"name them: benchmarks={{{name}: {found[name].source}, other: {one}}}",
            )
        found[name] = BenchmarkSource(source=one)
    return found


@dataclass
class _Benchmark:
    """One benchmark: its items, and what was measured of each model."""

    name: str
    source: BenchmarkSource
    file: BenchmarkFile
    columns: dict[str, list[Column]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


class Benchmarks:
    """The benchmarks of an evaluation.

    Args:
        sampling, samples, seed: of responses to benchmark prompts. load: `device` and `dtype`.

    Raises:
        ConfigError, DataError: a file that is not there, or that is no benchmark; lm-eval is not installed.
    """

    def __init__(
        self, context: StageContext, sources: Sources, sampling: SampleSettings, samples: int, seed: int, **load: str
    ):
        self.context, self.sampling, self.seed, self.load = context, sampling, seed, load
        self.samples = samples if sampling.temperature > 0 else 1
        self.all = [self._read(name, source) for name, source in named_sources(sources).items()]
        self.responses: list[dict[str, Any]] = []
        self._rewarded: set[str] = set()

    def _read(self, name: str, source: BenchmarkSource) -> _Benchmark:
        if source.source.startswith(SCHEME):
            program()
            return _Benchmark(name, source, BenchmarkFile("lm-eval", "choices", "text", []))
        options = source.model_dump(exclude={"source"})
        file = read_benchmark(self.context.resolve(source.source, want=""), **options)
        if file.kind == "prompts" and source.limit == 0 and not file.items:
            raise DataError("no prompts", where=source.source)
        self.context.report(
            name, [f"{plural(len(file.items), 'item')} of the form {file.name} ({file.kind}, as {file.form})"]
        )
        return _Benchmark(name, source, file)

    def measure(self, name: str, folder: Path | str, model: LanguageModel, scoring: Rewards) -> None:
        """Measures one model on every benchmark.

        Args:
            name: of the model in the table. folder: where it is, for lm-eval. scoring: of its responses, and of pairs.
        """
        rewards = scoring.of(model.chat) if self.all else []
        for one in self.all:
            self.context.console.print(f"  {one.name}: {name}", markup=False, highlight=False)
            if one.source.source.startswith(SCHEME):
                self._harness(one, name, str(folder))
            elif one.file.kind == "prompts":
                self._sampled(one, name, model, rewards)
            elif one.file.kind == "text":
                one.columns[name] = [self._text(one, model)]
            else:
                self._logps(one, name, model)
                if one.file.kind == "pairs":
                    self._scored(one, model.chat, rewards)

    # ------------------------------------------------------------------------------------------------- by log-prob

    def _logps(self, one: _Benchmark, name: str, model: LanguageModel) -> None:
        groups = [item.group for item in one.file.items]
        plain = one.file.kind == "choices" and one.file.form == "text"
        encode = model.chat.encode_continuations if plain else model.chat.encode_groups
        encoded = encode(groups)
        places = [i for i, group in enumerate(encoded) if _fits(group, model.chat)]
        self._left_out(one, name, len(encoded) - len(places))
        found = self._sums(one, name, model, [encoded[i] for i in places])
        make = measures.pair_columns if one.file.kind == "pairs" else measures.choice_columns
        one.columns[name] = make(one.file.items, places, found)

    def _text(self, one: _Benchmark, model: LanguageModel) -> Column:
        length = model.chat.max_length or MICRO_TOKENS
        pieces = model.chat.encode_documents([item.group for item in one.file.items], length)
        owner = [i for i, some in enumerate(pieces) for _ in some]
        flat = [piece for some in pieces for piece in some]
        nats: dict[int, float] = dict.fromkeys(range(len(pieces)), 0.0)
        for i, (logp,) in zip(owner, self._sums(one, "", model, flat), strict=True):
            nats[i] -= logp
        return measures.text_column(one.file.items, nats)

    def _sums(self, one: _Benchmark, name: str, model: LanguageModel, groups: Sequence[Group]) -> list[list[float]]:
        if not groups:
            raise DataError(
                "no item fits into the model's context",
                where=one.source.source,
                got=f"{len(one.file.items):,} items, a context of {model.chat.max_length} tokens",
                expected="items that fit",
            )

        def tell(line: str) -> None:
            self.context.report(one.name, [f"{name} {line}".strip()])

        tally = Tally(len(groups), tell, every=SECONDS)
        found = []
        for of in each_logp(model, groups, MICRO_TOKENS):
            found.append([logp for logp, _ in of])
            tally.add()
        return found

    def _left_out(self, one: _Benchmark, name: str, count: int) -> None:
        if count:
            longer = f"{count:,} of {plural(len(one.file.items), 'item')} {verb(count, 'is', 'are')}"
            one.notes.append(f"{name}: {longer} longer than its context")

    # ------------------------------------------------------------------------------------ by rewards and of responses

    def _scored(self, one: _Benchmark, chat: Chat, rewards: Sequence[NamedReward]) -> None:
        """The rewards' own choices between the answers of pairs; once, since no policy has a part in them."""
        if one.name in self._rewarded:
            return
        self._rewarded.add(one.name)
        groups = chat.encode_groups([item.group for item in one.file.items])
        for reward in rewards:
            values = values_of(reward.scorer, groups)
            kept = [(i, [x for x in row if x is not None]) for i, row in enumerate(values) if None not in row]
            places, scores = [i for i, _ in kept], [row for _, row in kept]
            column = measures.reward_column(reward.name, one.file.items, places, scores)
            one.columns[f"({reward.name})"] = [column]

    def _sampled(self, one: _Benchmark, name: str, model: LanguageModel, rewards: Sequence[NamedReward]) -> None:
        prompts = model.chat.encode_prompts([item.group.prompt for item in one.file.items])
        limit = model.chat.max_length
        places = [i for i, prompt in enumerate(prompts) if limit is None or len(prompt.ids) < limit]
        self._left_out(one, name, len(prompts) - len(places))
        groups = sample(model, [prompts[i] for i in places], self.samples, self.sampling, seed=self.seed)
        groups = [
            replace(group, origin=one.file.items[i].group.origin) for i, group in zip(places, groups, strict=True)
        ]
        words = NamedReward("refusal", FunctionScorer(refusal, "refusal"), 0.0, True)
        every = [words, *(reward for reward in rewards if reward.name != words.name)]
        values = {reward.name: values_of(reward.scorer, groups) for reward in every}
        rates = {reward.name for reward in every if reward.is_rate}
        one.columns[name] = measures.response_columns(one.file.items, places, values, rates)
        self.responses += [
            {
                "benchmark": one.name,
                "model": name,
                "item": group.origin,
                "expect": one.file.items[i].expect,
                "text": response.text,
                **{key: rows[k][r] for key, rows in values.items()},
            }
            for k, (i, group) in enumerate(zip(places, groups, strict=True))
            for r, response in enumerate(group.responses)
        ]

    def _harness(self, one: _Benchmark, name: str, folder: str) -> None:
        task = one.source.source.removeprefix(SCHEME)
        device = "cuda" if self.load["device"] == "cuda" else "cpu"
        asked = Harness(task, one.source.limit, device, self.load["dtype"])
        items, one.columns[name] = run_harness(asked, folder, self.context.folder / "lm-eval" / one.name / name)
        one.file = one.file._replace(items=items)

    # ----------------------------------------------------------------------------------------------------- the result

    def figures(self, baseline: str) -> list[Figure]:
        """Returns the figures of all benchmarks, with p-values adjusted for all of their differences."""
        found = [f for one in self.all for f in measures.figures(one.name, one.file.items, one.columns, baseline)]
        return measures.adjusted(found)

    def facts(self, found: Sequence[Figure]) -> list[dict[str, Any]]:
        """Returns JSON-ready facts of each benchmark: what it is, its figures, what was left out."""
        return [
            {
                "name": one.name,
                "source": one.source.source,
                "form": one.file.name,
                "kind": one.file.kind,
                "items": len(one.file.items),
                "digest": self.digest(one.name),
                "chance": _chance(one.file.items),
                "notes": one.notes,
                "figures": [figure.to_dict() for figure in found if figure.benchmark == one.name],
            }
            for one in self.all
        ]

    def digest(self, name: str) -> str:
        """A digest of a benchmark's items, by which evaluations on the same ones are found."""
        one = next(one for one in self.all if one.name == name)
        return prompts_digest(f"{name} {measures.key_of(i, item)}" for i, item in enumerate(one.file.items))

    def notes(self) -> Iterator[str]:
        """Yields lines on what was left out, and what a guess would get."""
        for one in self.all:
            chance = _chance(one.file.items)
            if chance is not None:
                yield f"{one.name}: by chance {chance:.0%}"
            yield from (f"{one.name}: {note}" for note in one.notes)

    def write(self, folder: Path) -> None:
        """Writes benchmarks.jsonl (each item's values) and, of sampled responses, benchmark_answers.jsonl."""
        rows = [row for one in self.all for row in measures.item_rows(one.name, one.file.items, one.columns)]
        for name, some in (("benchmarks.jsonl", rows), ("benchmark_answers.jsonl", self.responses)):
            if some:
                with atomic_write(folder / name) as file:
                    file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in some)


def _chance(items: Sequence[Item]) -> float | None:
    value = measures.chance(items)
    return None if math.isnan(value) else value


def _fits(group: Group, chat: Chat) -> bool:
    longest = max(len(response.ids) for response in group.responses)
    return chat.max_length is None or len(group.prompt.ids) + longest <= chat.max_length
