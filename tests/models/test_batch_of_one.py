"""Scores and log-probs do not depend on what shares the batch: one response at a time against eight together."""

import pytest
import torch

from tiltyard.evaluation.before_after import each_logp
from tiltyard.scoring import RewardScorer

from . import tiny

FAMILIES = ("llama", "gpt2")


def groups():
    return [tiny.group(3 + i, 2 + i % 4, seed=i) for i in range(8)]


def scored(family: str, dtype: str, budget: int) -> torch.Tensor:
    model = tiny.scalar(family, dtype)
    torch.manual_seed(0)
    model.head.weight.data.normal_()
    return torch.tensor([s for g in RewardScorer(model, budget=budget).score(groups()) for s in g.scores or ()])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_of_one_has_the_scores_of_a_batch_of_eight(family: str) -> None:
    alone, together = scored(family, "float32", 1), scored(family, "float32", 10_000)
    assert together.std() > 0.01
    torch.testing.assert_close(alone, together, atol=1e-5, rtol=0)
    half = (scored(family, "bfloat16", 1) - scored(family, "bfloat16", 10_000)).abs().max()
    print(f"{family}: drift of a score in bfloat16 {half:.3g}, standard deviation {together.std():.3g}")
    assert half < together.std()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_of_one_has_the_log_probs_of_a_batch_of_eight(family: str) -> None:
    def logps(dtype: str, budget: int) -> torch.Tensor:
        found = each_logp(tiny.language(family, dtype), groups(), budget)
        return torch.tensor([logp for of_group in found for logp, _ in of_group])

    torch.testing.assert_close(logps("float32", 1), logps("float32", 10_000), atol=1e-5, rtol=0)
    half = (logps("bfloat16", 1) - logps("bfloat16", 10_000)).abs().max()
    print(f"{family}: drift of a log-prob in bfloat16 {half:.3g}")
