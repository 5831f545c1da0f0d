"""What a training stage learns from: files, prompts answered by the policy, or demonstrations against a snapshot.

Also what the reference says of fixed data: computed once and kept on disk where a method allows it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tiltyard.data import GroupFile
from tiltyard.errors import DataError
from tiltyard.methods.base import Method
from tiltyard.models.adapters import without_adapters
from tiltyard.models.load import frozen_copy, load_language_model
from tiltyard.sampling import NativeSampler, SampleSettings
from tiltyard.stages.base import StageContext
from tiltyard.stages.data import files_of, groups_of, model_folder, report, rewritten, stream_of, write_group_file
from tiltyard.stages.online import online_source
from tiltyard.stages.settings import SECOND
from tiltyard.training.algorithm import Algorithm, Models
from tiltyard.training.refcache import RefCache, cache_ref_logps
from tiltyard.training.select import all_pairs, best_worst
from tiltyard.training.source import Offline, SelfPlay, generator
from tiltyard.types import Group


def source_of(method: Method, context: StageContext, settings: Any, models: Models) -> tuple[Any, int, Sequence[Group]]:
    """(the source, outer steps, the groups of methods that learn from a file)."""
    if method.online:
        source, steps = online_source(method, context, settings, models, steps_of)
        return source, steps, []
    groups = data_groups(method, context, "data", settings.data, settings, models.get(method.trains[0]).chat)
    if method.eats == "comparisons" and all(g.shares is None and len(set(g.ranks or ())) < 2 for g in groups):
        raise DataError(
            "every comparison is a tie: there is nothing to learn",
            where=", ".join(files_of("data", settings.data)),
            got=f"{len(groups):,} groups",
            expected="some response that is ranked above another",
        )
    if method.samples == "per iteration":
        steps = steps_of(settings, len(groups))
        every = -(-steps // settings.iterations)
        law = SampleSettings(
            temperature=settings.temperature, max_tokens=settings.max_tokens, max_concurrent=settings.max_concurrent
        )
        return SelfPlay(groups, NativeSampler(), settings.prompts_per_step, every, law, settings.seed), steps, groups
    rows = Offline(groups, settings.prompts_per_step, settings.seed, settings.tokens_per_step)
    return rows, settings.steps or rows.steps(settings.epochs), groups


def steps_of(settings: Any, size: int) -> int:
    return settings.steps or max(1, round(settings.epochs * size / settings.prompts_per_step))


def second_source(method: Method, context: StageContext, settings: Any, models: Models) -> tuple[Any, ...]:
    """The source over a method's second data set, as its second argument; nothing for methods that have none."""
    if method.second is None:
        return ()
    key = SECOND[method.second]
    wanted = getattr(settings, key)
    if not wanted:
        return (None,)
    # a method that samples has no max_length of its own: what a prompt and its answer may take together
    longest = getattr(settings, "max_length", 0) or settings.max_prompt + settings.max_tokens
    limits = SimpleNamespace(max_length=longest, too_long=settings.too_long)
    groups = groups_of(context, key, wanted, method.second, models.get(method.trains[0]).chat, limits)
    return (Offline(groups, settings.prompts_per_step, settings.seed, getattr(settings, "tokens_per_step", 0)),)


def data_groups(
    method: Method, context: StageContext, key: str, source: str | list[str], settings: Any, chat: Any
) -> GroupFile:
    """Groups of files in the shape that the method takes: rankings cut into pairs, ranks or scores made labels."""
    from_ranks = method.eats == "labelled" and settings.good_from is not None
    groups = stream_of(context, key, source, "comparisons" if from_ranks else method.eats, chat, settings)
    groups = rewritten(context, key, method.encode, groups, chat, settings)
    if getattr(settings, "pairs", "given") != "given":
        groups = as_pairs(context, key, write_group_file(context, groups), settings.pairs, settings.seed)
    if from_ranks:
        groups = (labelled(g, settings.good_from) for g in groups)
    elif method.eats == "labelled":
        groups = map(check_labels, groups)
    return write_group_file(context, groups)


def as_pairs(context: StageContext, key: str, groups: Sequence[Group], how: str, seed: int) -> Iterator[Group]:
    """The pairs among the groups as they are, soft labels too; then every ranking cut into pairs."""
    made = ties = 0
    for group in groups:
        if len(group.responses) == 2:
            made += 1
            yield group
    draws = generator(seed, 6)
    for group in groups:
        if len(group.responses) > 2:
            ranked = [replace(group, scores=tuple(-float(k) for k in group.ranks or ()))]
            cut = best_worst(ranked, draws) if how == "best_worst" else all_pairs(ranked)
            made, ties = made + len(cut), ties + cut.dropped
            yield from cut
    report(context, key, [f"{made:,} pairs of {len(groups):,} rows (pairs={how}), {ties:,} ties left out"])


def labelled(group: Group, good_from: float | str) -> Group:
    """Scores turned into labels, at least `good_from` being good; or ranks, the best alone being good."""
    if good_from == "best" and group.ranks is not None:
        return replace(group, scores=tuple(float(k == min(group.ranks)) for k in group.ranks))
    if group.scores is None or isinstance(good_from, str):
        raise DataError(
            "good_from compares what this row does not have",
            where=group.origin or group.prompt.id,
            got="no scores" if group.scores is None else "no ranks",
            expected="scores for a number, ranks for good_from=best",
            fix="leave good_from out where the rows are labelled already",
        )
    return replace(group, scores=tuple(float(s >= good_from) for s in group.scores))


def check_labels(group: Group) -> Group:
    """Every answer must be labelled good (1) or bad (0): sampled groups may come with ranks or with a model's scores.

    Raises:
        DataError: an answer is not; it says how labels are made of what is there.
    """
    if group.scores is None or not set(group.scores) <= {0.0, 1.0}:
        raise DataError(
            "nobody labelled these answers good or bad",
            where=group.origin or group.prompt.id,
            got=f"scores {group.scores}" if group.scores is not None else "ranks" if group.ranks else "no scores",
            expected="1 (good) or 0 (bad) for each answer",
            fix="set good_from=best: the best-ranked answers are good, or good_from=NUMBER: those with that score",
        )
    return group


# ------------------------------------------------------------------------------------------------ the reference


def attach_reference(
    method: Method, algorithm: Algorithm, context: StageContext, settings: Any, models: Models, steps: int
) -> None:
    """Gives a method its reference: what it says of the data from disk, or the model itself in memory.

    Methods that do not read one have it for measuring where `show_kl` says so. The reference is the model as the stage
    starts unless `ref` names another; called before anything is trained.
    """
    if not (algorithm.reads_ref or getattr(settings, "show_kl", False)):
        return
    source = algorithm.source
    if "ref" in method.cached and settings.ref_cache and isinstance(source, Offline):
        read = source.indices_until(steps)  # what no step reads is not computed
        groups = source.groups
        some = groups.pick(read) if isinstance(groups, GroupFile) and len(read) < len(groups) else groups
        cache = reference_logps(context, settings, models, some)
        models.ref_cache = cache
        done = "computed" if cache.fresh else "found on disk"
        report(context, "reference", [f"log-probs of {len(cache.table):,} groups {done}; no reference in memory"])
        return
    if getattr(settings, "ref", ""):
        models.ref = load_language_model(model_folder(context, settings.ref), **_common(settings))
        models.ref.module.requires_grad_(False)
    else:  # of a frozen backbone the reference is the backbone, unless it is to be renewed
        policy = models.get("policy")
        models.ref = (
            without_adapters(policy)
            if policy.binding and "ref" not in algorithm.mutable_models
            else frozen_copy(policy)
        )


def reference_logps(context: StageContext, settings: Any, models: Models, groups: Sequence[Group]) -> RefCache:
    """Log-probs of the reference (or, where no other is named, of the model as it starts), cached beside the runs."""
    other = getattr(settings, "ref", "")
    ref = without_adapters(models.get("policy"))
    if other:
        ref = load_language_model(model_folder(context, other), **_common(settings))
    return cache_ref_logps(ref, groups, cache_folder(context), settings.tokens_per_microbatch)


def cache_folder(context: StageContext) -> Path:
    """Shared by all runs of a folder: the same data under the same reference are scored once."""
    return context.run_folder.parent / ".cache" / "ref-logps"


def _common(settings: Any) -> dict[str, Any]:
    return {"dtype": settings.dtype, "device": settings.device, "trust_remote_code": settings.trust_remote_code}
