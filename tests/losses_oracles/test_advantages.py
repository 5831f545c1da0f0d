"""methods.md §2.1 (token rewards), §2.4 (GAE, whitening) and §2.6 (missing EOS)."""

import pytest
import torch

from tiltyard.errors import ConfigError
from tiltyard.losses.advantages import gae_R, mean_var, missing_eos_B, moments, token_rewards_R, whiten

from .toy import F64, SequenceWorld, same


@pytest.fixture
def flat():
    g = torch.Generator().manual_seed(0)
    length_B = torch.tensor([3, 1, 7, 2])
    reward_R, value_R = torch.randn(2, 13, generator=g, dtype=F64)
    return reward_R, value_R, length_B.cumsum(0) - length_B, length_B


def naive(reward, value, gamma, lam):
    advantage, later, next_value = [], 0.0, 0.0
    for r, v in zip(reversed(reward.tolist()), reversed(value.tolist()), strict=True):
        later = r + gamma * next_value - v + gamma * lam * later
        advantage.insert(0, later)
        next_value = v
    return torch.tensor(advantage, dtype=F64)


def test_token_rewards_sum_to_the_regularised_score_of_every_sequence():
    w = SequenceWorld()
    old_R, ref_R = w.logp_R(w.theta), w.logp_R(w.ref_theta)
    reward_R = token_rewards_R(old_R, ref_R, w.score_B, w.end_B, 0.3)
    same(w.sum_B(reward_R), w.score_B - 0.3 * (w.sum_B(old_R) - w.sum_B(ref_R)).detach())
    assert not reward_R.requires_grad
    at_start_R = token_rewards_R(ref_R, ref_R, w.score_B, w.end_B, 0.3)
    before_end = torch.ones(len(ref_R), dtype=torch.bool)
    before_end[w.end_B] = False
    assert (at_start_R[before_end] == 0).all()
    assert (at_start_R[w.end_B] == w.score_B).all()


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (1.0, 1.0), (0.9, 0.0), (0.97, 0.5)])
def test_gae_equals_the_naive_loop_on_each_trimmed_response(flat, gamma, lam):
    reward_R, value_R, start_B, length_B = flat
    advantage_R, return_R = gae_R(reward_R, value_R, start_B, length_B, gamma, lam)
    for s, n in zip(start_B.tolist(), length_B.tolist(), strict=True):
        assert (advantage_R[s : s + n] == naive(reward_R[s : s + n], value_R[s : s + n], gamma, lam)).all()
    assert (return_R == advantage_R + value_R).all()


def test_gae_limits(flat):
    reward_R, value_R, start_B, length_B = flat
    whole_R, _ = gae_R(reward_R, value_R, start_B, length_B, 1.0, 1.0)
    one_step_R, _ = gae_R(reward_R, value_R, start_B, length_B, 0.9, 0.0)
    for s, n in zip(start_B.tolist(), length_B.tolist(), strict=True):
        r, v = reward_R[s : s + n], value_R[s : s + n]
        same(whole_R[s : s + n], r.flip(0).cumsum(0).flip(0) - v)  # lam=1: reward to go minus value
        same(one_step_R[s : s + n], r + 0.9 * torch.cat([v[1:], v.new_zeros(1)]) - v)  # lam=0: delta


def test_terminal_reward_alone_gives_every_token_the_score(flat):
    _, value_R, start_B, length_B = flat
    zero_R, score_B = torch.zeros_like(value_R), torch.randn(4, dtype=F64)
    reward_R = token_rewards_R(zero_R, zero_R, score_B, start_B + length_B - 1, 0.1)
    advantage_R, _ = gae_R(reward_R, zero_R, start_B, length_B, 1.0, 1.0)
    assert (advantage_R == torch.repeat_interleave(score_B, length_B)).all()


def test_one_responses_nan_stays_its_own(flat):
    reward_R, value_R, start_B, length_B = flat
    clean_R, _ = gae_R(reward_R, value_R, start_B, length_B, 1.0, 0.95)
    dirty = reward_R.clone()
    dirty[0] = float("nan")
    dirty_R, _ = gae_R(dirty, value_R, start_B, length_B, 1.0, 0.95)
    assert (dirty_R[3:] == clean_R[3:]).all()


@pytest.mark.parametrize("lam", [0.0, 0.5, 0.95, 1.0])
def test_true_values_leave_no_expected_advantage_in_any_state(lam):
    """V = the exact value function: E[A_t | prefix] = 0 for every prefix, whatever lam."""
    w = SequenceWorld()
    with torch.no_grad():
        old_R, ref_R, p_B = w.logp_R(w.theta), w.logp_R(w.ref_theta), w.p_B(w.theta)
        reward_R = token_rewards_R(old_R, ref_R, w.score_B, w.end_B, 0.7)
        to_go_R, _ = gae_R(reward_R, torch.zeros_like(reward_R), w.start_B, w.length_B, 1.0, 1.0)
        law = w.prefix_law(w.theta)
        p_R = p_B[w.response_R]
        average = lambda x_R: torch.zeros_like(law).index_add(0, w.prefix_R, p_R * x_R) / law  # noqa: E731
        advantage_R, _ = gae_R(reward_R, average(to_go_R)[w.prefix_R], w.start_B, w.length_B, 1.0, lam)
        same(average(advantage_R), torch.zeros_like(law))
        assert advantage_R.abs().max() > 0.1


def test_whitening():
    x = torch.randn(50, dtype=F64) * 3 + 2
    white = whiten(x)
    assert abs(white.mean().item()) < 1e-12
    assert white.std(correction=0).item() == pytest.approx(1, abs=1e-8)
    kept = whiten(x, shift_mean=False)
    assert kept.mean().item() == pytest.approx(x.mean().item(), abs=1e-12)
    assert kept.std(correction=0).item() == pytest.approx(1, abs=1e-8)
    same(white, (x - x.mean()) * torch.rsqrt(x.var(correction=0) + 1e-8), 1e-12)
    assert (whiten(torch.full((4,), 3.0, dtype=F64)) == 0).all()  # no spread: zero, not NaN
    assert whiten(x[:1]).tolist() == [0]


def test_whitening_with_the_statistics_of_all_processes():
    """Two shards that add up their moments give what one process gives."""
    x = torch.randn(31, dtype=F64)
    parts = [x[:20], x[20:]]
    mean, var = mean_var(*[sum(m) for m in zip(*map(moments, parts), strict=True)])
    same(torch.cat([whiten(part, mean, var) for part in parts]), whiten(x), 1e-12)
    assert [m.item() for m in mean_var(*moments(x[:0]))] == [0, 0]


def test_whitened_advantages_ignore_affine_changes_of_the_score():
    """§1.6: a bias moves nothing; a gain is undone by whitening (beta = 0)."""
    w = SequenceWorld()
    zero_R = torch.zeros(len(w.token_R), dtype=F64)
    run = lambda score_B: whiten(  # noqa: E731
        gae_R(token_rewards_R(zero_R, zero_R, score_B, w.end_B, 0.0), zero_R, w.start_B, w.length_B, 1.0, 1.0)[0],
        eps=0.0,
    )
    same(run(w.score_B), run(3.5 * w.score_B + 11), 1e-10)


def test_missing_eos_rules():
    score_B, stopped_B = torch.tensor([1.0, 2.0], dtype=F64), torch.tensor([True, False])
    assert missing_eos_B(score_B, stopped_B, "replace", 1.0).tolist() == [1, -1]  # Ziegler
    assert missing_eos_B(score_B, stopped_B, "subtract", 1.0).tolist() == [1, 1]  # TRL
    assert missing_eos_B(score_B, stopped_B, "none", 1.0).tolist() == [1, 2]
    with pytest.raises(ConfigError, match="size"):
        missing_eos_B(score_B, stopped_B, "replace", -1.0)
    with pytest.raises(ConfigError, match="rule"):
        missing_eos_B(score_B, stopped_B, "drop", 1.0)


def test_a_cut_response_is_charged_at_its_last_token():
    w = SequenceWorld()
    zero_R = torch.zeros(len(w.token_R), dtype=F64)
    score_B = missing_eos_B(w.score_B, w.stopped_B, "replace", 1.0)
    reward_R = token_rewards_R(zero_R, zero_R, score_B, w.end_B, 0.1)
    cut = (~w.stopped_B).nonzero()[:, 0]
    assert len(cut) == 8
    for b in cut.tolist():
        s, n = int(w.start_B[b]), int(w.length_B[b])
        assert reward_R[s : s + n].tolist() == [0, 0, -1]
