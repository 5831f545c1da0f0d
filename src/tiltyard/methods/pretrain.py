"""Pretraining: next-token prediction on plain documents."""

from __future__ import annotations

from tiltyard.inputs import Texts
from tiltyard.methods.base import method
from tiltyard.methods.sft import Nll
from tiltyard.training.algorithm import Algorithm, Source


@method(
    "pretrain",
    source=Texts(),
    defaults={"lr": 1e-3, "prompts_per_step": 64, "weight_decay": 0.1, "beta2": 0.95, "warmup": 0.02},
    defaults_from="weight_decay, beta2: Brown et al. 2020 (GPT-3), appendix B; lr, prompts_per_step, warmup: "
    "Tiltyard, small new models",
    formula="L = mean over all tokens of -log pi(y_t | y_<t)",
    oracle="The empirical distribution of the documents; the loss ends at its entropy a token.",
    paper="Radford et al. 2019 (GPT-2)",
    pitfalls="Held-out bits per byte, not training loss: a small corpus is memorised in a few epochs.",
)
def pretrain(source: Source) -> Algorithm:
    """Causal language modelling: the mean over tokens of -log pi(y_t | y_<t).

    Documents are packed without attending to each other; each begins after a document-start token.

    Args:
        source: `Offline` over documents (`load_groups(..., kind="text")`).
    """
    return Algorithm("pretrain", source, Nll())
