"""The reference of a run: a model in memory, or log-probs of fixed data that are computed once and kept on disk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tiltyard.data import GroupFile
from tiltyard.distributed import processes
from tiltyard.distributed.unread import read_now
from tiltyard.inputs.settings import CachedRefModels, OptionalRefModels, RefModels, StageSettings
from tiltyard.inputs.workspace import Workspace, cache_folder, model_folder
from tiltyard.models.adapters import without_adapters
from tiltyard.models.language import LanguageModel
from tiltyard.models.load import frozen_copy, load_language_model
from tiltyard.scoring.reward_model import check_vocabularies
from tiltyard.training.algorithm import Algorithm, Models
from tiltyard.training.refcache import RefCache, cache_ref_logps
from tiltyard.training.run import ModelSettings
from tiltyard.training.source import Offline
from tiltyard.types import Group


def load_options(models: ModelSettings) -> dict[str, Any]:
    """Keyword arguments of the functions that load a model."""
    spread = models.shard and processes.world() > 1
    how: dict[str, Any] = {"blocks": "files"} if spread else {}
    return {"dtype": models.dtype, "device": models.device, "trust_remote_code": models.trust_remote_code, **how}


def attach_reference(
    algorithm: Algorithm, work: Workspace, settings: StageSettings, models: Models, steps: int
) -> None:
    """Gives a method its reference: its log-probs of the data from disk, or the model itself in memory.

    Methods that do not read one have it for measuring where `show_kl` is set. The reference is the model as the stage
    starts unless `ref` names another; called before anything is trained. A method with a proposal gets one:
    a copy of the model as it starts.
    """
    if "proposal" in algorithm.mutable_models:
        models["proposal"] = frozen_copy(models["policy"], "proposal")
    chosen = settings.models
    shown = isinstance(chosen, OptionalRefModels) and chosen.show_kl
    if not (algorithm.reads_ref or shown):
        return
    source = algorithm.source
    if isinstance(chosen, CachedRefModels) and chosen.ref_cache and isinstance(source, Offline):
        read = source.indices_until(steps)  # what no step reads is not computed
        groups = source.groups
        subset = groups.pick(read) if isinstance(groups, GroupFile) and len(read) < len(groups) else groups
        cache = reference_logps(work, settings, models, subset)
        models.ref_cache = cache
        how = "computed" if cache.fresh else "found on disk"
        work.report("reference", [f"log-probs of {len(cache.table):,} groups {how}; no reference in memory"])
        return
    if isinstance(chosen, RefModels) and chosen.ref:
        models.ref = _named_reference(work, chosen.ref, load_options(settings.models), models.get("policy"))
        models.ref.module.requires_grad_(False)
        return
    policy = models.get("policy")  # of a frozen backbone the reference is the backbone, unless it is to be renewed
    bare = policy.binding and "ref" not in algorithm.mutable_models
    models.ref = without_adapters(policy) if bare else frozen_copy(policy)


def _named_reference(work: Workspace, name: str, options: Mapping[str, Any], policy: LanguageModel) -> LanguageModel:
    """Loads the reference that the settings name.

    Raises:
        ModelError: it has another tokenizer than the policy.
    """
    ref = load_language_model(model_folder(work, name), **options)
    fix = "name the model that this one was trained from, or leave ref out: it is then the model as it starts"
    check_vocabularies(ref.chat, policy.chat, f"{work.name}.models.ref", fix)
    return ref


def reference_logps(work: Workspace, settings: StageSettings, models: Models, groups: Sequence[Group]) -> RefCache:
    """Log-probs of the reference (or, where no other is named, of the model as it starts), cached beside the runs."""
    ref = without_adapters(models.get("policy"))
    chosen = settings.models
    if isinstance(chosen, RefModels) and chosen.ref:
        ref = _named_reference(work, chosen.ref, load_options(settings.models), models.get("policy"))
    # shared by all runs of a folder: the same data under the same reference are scored once
    budget = settings.run.tokens_per_microbatch
    read_now(ref.module)  # many passes follow, in which the processes do different things
    return cache_ref_logps(
        ref,
        groups,
        cache_folder(work, "ref-logps"),
        budget,
        lambda line: work.report("reference", [f"log-probs of groups: {line}"]),
    )
