"""Arguments of the verbs: shared options, `KEY=VALUE` settings, and names of models."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from tiltyard.cli.output import console_for
from tiltyard.errors import ConfigError, ModelError, nearest

Json = Annotated[bool, typer.Option("--json", help="Print JSON on standard output; progress goes to standard error.")]
Runs = Annotated[Path, typer.Option("--runs", help="The folder that holds the runs.")]
Shard = Annotated[bool, typer.Option("--shard", help="Under torchrun: weights in parts over the processes (FSDP2).")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Check everything, print the plan, write nothing.")]
Pairs = Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Settings.")]
Model = Annotated[str, typer.Argument(help="A model folder, RUN/STAGE (runs/demo/sft or demo/sft), or a hub name.")]


LARGEST = 2**63 - 1  # a number of 64 bits
COMMAND_LINE = "command line"


def check_words(words: Sequence[str]) -> None:
    """Checks that the words of the command line are text.

    Raises:
        ConfigError: bytes that are not UTF-8.
    """
    for word in words:
        try:
            word.encode()
        except UnicodeEncodeError as error:
            raise ConfigError(
                "an argument is not UTF-8",
                where=COMMAND_LINE,
                got=ascii(word[max(0, error.start - 20) : error.end + 20]),
                expected="UTF-8",
                fix="set the terminal to UTF-8, or put the text into a file and convert it: iconv -f latin1 -t utf-8",
            ) from None


def check_extra(verb: str, words: Sequence[str], parameters: Sequence[Any]) -> None:
    """Names the option to write in place of a word that a verb does not take.

    Args:
        parameters: click's of the verb.

    Raises:
        ConfigError: a word beyond its arguments, such as `max_tokens=40` for `--max-tokens 40`.
    """
    options = {name: p for p in parameters for name in p.opts if name.startswith("-")}
    places = [p for p in parameters if p.param_type_name == "argument"]
    if any(p.nargs == -1 for p in places):
        return
    given, taken = [], False
    for word in words:
        if taken:
            taken = False
        elif word.startswith("-") and word != "-":
            option = options.get(word)
            if option is None and "=" not in word:
                return  # an unknown option, which is named as that: it is not known whether the next word is its value
            taken = option is not None and not option.is_flag
        else:
            given.append(word)
    for word in given[len(places) :]:
        raise ConfigError(
            "this word is no argument of the command",
            where=verb,
            got=word[:200],
            expected=f"{len(places)} {'argument' if len(places) == 1 else 'arguments'}, and options that begin with --",
            fix=_option_for(word, sorted(name for name in options if name.startswith("--"))),
        )


def _option_for(word: str, names: Sequence[str]) -> str:
    key, sign, value = word.partition("=")
    name = "--" + key.strip().replace("_", "-").lower()
    if sign and name in names:
        return f"write {name} {shlex.quote(value)}"
    if sign:
        return nearest(name, [*names])
    return f"write --prompt {shlex.quote(word)}" if "--prompt" in names else "leave it out"


def run_one_stage(
    kind: str, pairs: Sequence[str] | None, *, dry_run: bool, json_output: bool, runs: Path
) -> dict[str, Any]:
    """Runs one kind of stage with `KEY=VALUE` arguments; `name=` is the name of the run."""
    from tiltyard.pipeline import run_stage
    from tiltyard.stages.base import get_stage

    get_stage(kind)  # so that an unknown method is reported before its settings
    pairs = list(pairs or ())
    names = [pair for pair in pairs if pair.partition("=")[0].strip() == "name"]
    values = settings_of([pair for pair in pairs if pair not in names])
    name = names[-1].partition("=")[2].strip() if names else None
    console = console_for(json_output)
    return run_stage(kind, values, name=name, dry_run=dry_run, runs_root=runs, console=console, place=COMMAND_LINE)


def settings_of(pairs: Sequence[str]) -> dict[str, Any]:
    """Parses `KEY=VALUE` arguments; dotted keys are nested settings."""
    from tiltyard.pipeline.recipe import set_key
    from tiltyard.yaml_values import split_assignment

    values: dict[str, Any] = {}
    for pair in pairs:
        key, value = split_assignment(pair)
        values = set_key(values, key, value, f"{COMMAND_LINE}: {pair}")
    return values


def bench_settings(method: str, model: Path, data: str, prompts: str, pairs: Sequence[str] | None) -> dict[str, Any]:
    """Returns the settings of the stage that `bench` measures.

    Raises:
        ConfigError: data for a method that takes prompts, or prompts for one that takes data.
    """
    from tiltyard.methods import METHODS

    expected = "prompts" if method in METHODS and METHODS[method].source.data_kind == "prompts" else "data"
    given = {"data": data, "prompts": prompts}
    for key, value in given.items():
        if value and key != expected and method in METHODS:
            raise ConfigError(f"{method} takes no {key}", where=f"--{key}", got=value, fix=f"give it --{expected}")
    return {"model": str(model), **{k: v for k, v in given.items() if v}, **settings_of(pairs or ())}


def find_model(name: str, runs: Path = Path("runs")) -> Path:
    """Resolves a model's folder: a path, a stage's folder (its `model/`), RUN/STAGE below `runs`, or a hub name."""
    from tiltyard.files import exists
    from tiltyard.runs import Ref, existing_path, written_by_stage

    for candidate in (name, str(runs / name)):
        path = existing_path(candidate)
        if path is None:
            continue
        model = written_by_stage(path, "model")
        stages = sorted(str(p.parent) for p in path.glob("*/model") if p.is_dir()) if model == path else []
        if stages:
            raise ConfigError("this is a whole run; name one of its stages", where=name, expected=", ".join(stages))
        if model == path and (path / "done.json").exists():
            raise ConfigError("this stage made no model", where=name)
        return model
    ref = Ref.find(name)
    if ref is not None and ref.kind == "hub" and not exists(runs / name.partition("/")[0]):
        return Path(name)
    models = [str(p.parent) for p in sorted(runs.glob("*/*/model"))]
    fix = nearest(name, models) if models else f"no model is in {runs} yet: run a recipe first"
    raise ModelError("there is no such model", where=name, fix=fix)


def find_reward(reward: str, runs: Path) -> str:
    """Resolves a reward: the folder of a stage or model, or what is none (a function, an address, a rule) as it is.

    Raises:
        ModelError: a stage of a run that is there, which the run has not.
    """
    from tiltyard.files import exists
    from tiltyard.runs import existing_path

    found = existing_path(reward) or existing_path(str(runs / reward))
    folder = found is not None and found.is_dir()
    below_a_run = "/" in reward and ":" not in reward and exists(runs / reward.partition("/")[0])
    return str(find_model(reward, runs)) if reward and (folder or below_a_run) else reward


def replay_arguments(stage: Path, pairs: Sequence[str] | None) -> tuple[str, list[str]]:
    """Returns (kind, `KEY=VALUE` arguments) that train a stage again on its stored responses; later arguments win.

    Settings that name other stages of the run are replaced by their folders.

    Raises:
        ConfigError: not a stage's folder, or a stage that does not sample.
    """
    from tiltyard.files import exists
    from tiltyard.records import canonical_key, records_of
    from tiltyard.runs import StageReader
    from tiltyard.stages.base import get_stage

    config = StageReader(stage).config if exists(stage) else None
    if config is None or not config.kind:
        raise ConfigError(
            "this is no stage of a run", where=str(stage), expected="a folder like runs/NAME/ppo", fix="see `ls runs/*`"
        )
    kind = get_stage(config.kind)
    if "replay" not in kind.settings.model_fields:
        raise ConfigError("a stage that does not sample has nothing to replay", where=str(stage), got=config.kind)

    def moved(value: Any) -> Any:
        """The value with the names of the run's stages replaced by their folders."""
        if isinstance(value, dict):
            return {key: moved(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [moved(inner) for inner in value]
        named = isinstance(value, str) and value and (stage.parent / value.partition("/")[0]).is_dir()
        return str(stage.parent / value) if named else value

    settings = {key: moved(value) if key in kind.refers else value for key, value in config.settings.items()}
    settings["replay"] = str(stage)
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        inside = key in records_of(kind.settings)
        flat |= {f"{key}.{name}": inner for name, inner in value.items()} if inside else {key: value}
    given = {canonical_key(kind.settings, pair.partition("=")[0]) for pair in pairs or ()}
    name = [] if "name" in given else [f"name={config.run}-replay"]
    stored = [f"{key}={json.dumps(value)}" for key, value in flat.items() if key not in given]
    return config.kind, [*stored, *name, *(pairs or ())]


def eval_arguments(reward: str, pairs: Sequence[str] | None, runs: Path) -> tuple[str, list[str]]:
    """Returns (kind, `KEY=VALUE` arguments) of `tiltyard eval`: `evaluate`, or with --reward MODEL `reward_eval`.

    With --reward the first argument is the data, unless `data=` is given.
    """
    pairs = list(pairs or ())
    if not reward:
        return "evaluate", pairs
    if not any(pair.startswith("data=") for pair in pairs):
        if not pairs:
            raise ConfigError(
                "there are no data to evaluate the reward model on",
                where="eval --reward",
                expected="tiltyard eval --reward MODEL DATA",
                fix="name a file of comparisons after the model",
            )
        pairs[0] = f"data={pairs[0]}"
    return "reward_eval", [f"model={find_model(reward, runs)}", *pairs]
