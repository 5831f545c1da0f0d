"""RLHF with PPO, the plain way (Schulman et al. 2017; Ziegler et al. 2019; Stiennon et al. 2020; InstructGPT).

Maximise  E[ R(x, y) - beta log(pi(y|x) / ref(y|x)) ]  over y ~ pi. Writing a response is an episode; each token is an
action; the state before token t is the prompt and the tokens so far. Each step, with responses y ~ pi_old given:

    reward      r_t   = -beta (log pi_old(y_t) - log ref(y_t)), plus the score R at the response's last token
    TD error    d_t   = r_t + gamma V_{t+1} - V_t,             V = 0 after the last token
    advantage   A_t   = d_t + gamma lam A_{t+1}                (GAE), and return G_t = A_t + V_t
    policy      pg_t  = max(-A_t ratio_t, -A_t clip(ratio_t, 1-clip, 1+clip)),  ratio_t = pi(y_t) / pi_old(y_t)
    value       vf_t  = 0.5 max((V_t - G_t)^2, (clip(V_t, V_old-c, V_old+c) - G_t)^2)
    loss              = sum over the minibatch's tokens of (pg_t + vf_coef vf_t) / number of its tokens

Log-probs, values, advantages and returns are measured once a step, before the first update. The advantages in pg_t are
whitened over all tokens of the step; the returns use them unwhitened. Sampling is not here: the rollouts are given.
"""

from typing import NamedTuple

import torch

PAD = 0  # any id: padding is hidden by the attention mask, never recognised by its value


class Rollout(NamedTuple):
    prompt: list[int]
    response: list[int]  # as sampled, with the end-of-turn token if it came
    finish: str  # "stop": ended by itself; "length": cut by the token limit
    score: float  # the reward model's


def pad_right(rows):
    """Rows of ids -> (ids, attention mask, position ids), each [rows, longest], padded on the right."""
    longest = max(len(row) for row in rows)
    ids = torch.tensor([[*row, *[PAD] * (longest - len(row))] for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    return {"input_ids": ids, "attention_mask": mask, "position_ids": torch.arange(longest).expand(len(rows), -1)}


def log_probs_of(model, rollouts):
    """log pi(y_t | x, y_<t) of every response token: one 1-d tensor a rollout. Position i predicts token i+1."""
    log_probs = model(**pad_right([[*r.prompt, *r.response] for r in rollouts])).logits.log_softmax(-1)
    out = []
    for row, r in enumerate(rollouts):
        predicted = log_probs[row, len(r.prompt) - 1 : len(r.prompt) - 1 + len(r.response)]
        out.append(predicted[torch.arange(len(r.response)), torch.tensor(r.response)])
    return out


def values_of(model, rollouts):
    """V(state before y_t) of every response token: the scalar head at the position that PREDICTS the token."""
    hidden = model.model(**pad_right([[*r.prompt, *r.response] for r in rollouts])).last_hidden_state
    value = model.score(hidden)[..., 0]
    return [value[i, len(r.prompt) - 1 : len(r.prompt) - 1 + len(r.response)] for i, r in enumerate(rollouts)]


def score_of(rollout, missing_eos, penalty):
    """The reward model's score, after the rule for responses that were cut: `replace`, `subtract` or `none`."""
    if rollout.finish == "stop" or missing_eos == "none":
        return rollout.score
    return {"replace": -penalty, "subtract": rollout.score - penalty}[missing_eos]


def advantages_of(reward, value, gamma, lam):
    """GAE of one response, backwards from its last token."""
    advantage, next_advantage, next_value = torch.zeros_like(reward), 0.0, 0.0
    for t in reversed(range(len(reward))):
        delta = reward[t] + gamma * next_value - value[t]
        advantage[t] = next_advantage = delta + gamma * lam * next_advantage
        next_value = value[t]
    return advantage


def run(
    policy, ref, value, batches, order, *, beta, lr, value_lr, gamma=1.0, lam=0.95, clip=0.2, value_clip=0.2,
    vf_coef=0.1, epochs=1, minibatches=1, missing_eos="replace", penalty=1.0, whiten=True, max_grad_norm=1.0,
):  # fmt: skip
    """One PPO step for each batch of rollouts; trains `policy` and `value` in place.

    `value` is a LlamaForSequenceClassification with one label. `order(step, epoch, n)` gives the permutation of the n
    rollouts, cut into `minibatches` equal parts. One AdamW (betas 0.9/0.999, eps 1e-8, no weight decay) with constant
    rates `lr` for the policy and `value_lr` for the value; ONE clip of the gradient norm over both models together.
    Returns (metrics of each step, {"policy": parameters by name, "value": parameters by name}).
    """
    for model in (policy, ref, value):
        model.eval()  # no dropout, or the ratio would not start at 1 nor the KL at 0
    parameters = [*policy.parameters(), *value.parameters()]
    groups = [{"params": policy.parameters(), "lr": lr}, {"params": value.parameters(), "lr": value_lr}]
    optimiser = torch.optim.AdamW(groups, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)
    metrics = []
    for step, rollouts in enumerate(batches):
        # 1. Measure, with the models as they are.
        with torch.no_grad():
            old, reference = log_probs_of(policy, rollouts), log_probs_of(ref, rollouts)
            old_value = values_of(value, rollouts)
        scores = [score_of(r, missing_eos, penalty) for r in rollouts]
        rewards = [-beta * (o - f) for o, f in zip(old, reference, strict=True)]
        for reward, score in zip(rewards, scores, strict=True):
            reward[-1] += score
        advantages = [advantages_of(r, v, gamma, lam) for r, v in zip(rewards, old_value, strict=True)]
        returns = [a + v for a, v in zip(advantages, old_value, strict=True)]
        if whiten:
            every = torch.cat(advantages)
            mean, var = every.mean(), every.var(correction=0)
            advantages = [(a - mean) * torch.rsqrt(var + 1e-8) for a in advantages]

        # 2. Learn: several passes over the same rollouts, in minibatches of whole responses.
        updates, size = [], len(rollouts) // minibatches
        assert size * minibatches == len(rollouts), "the minibatches must be equal"
        for epoch in range(epochs):
            permutation = list(order(step, epoch, len(rollouts)))
            for start in range(0, len(rollouts), size):
                chosen = permutation[start : start + size]
                take = lambda rows: torch.cat([rows[i] for i in chosen])  # noqa: E731, B023
                a, g, v_old = take(advantages), take(returns), take(old_value)

                ratio = torch.exp(torch.cat(log_probs_of(policy, [rollouts[i] for i in chosen])) - take(old))
                pg = torch.maximum(-a * ratio, -a * ratio.clamp(1 - clip, 1 + clip))
                v = torch.cat(values_of(value, [rollouts[i] for i in chosen]))
                v_near = torch.clamp(v, v_old - value_clip, v_old + value_clip)
                vf = 0.5 * torch.maximum((v - g) ** 2, (v_near - g) ** 2)
                loss = (pg + vf_coef * vf).sum() / len(pg)

                optimiser.zero_grad()
                loss.backward()
                grad_norm = torch.nn.utils.clip_grad_norm_(parameters, max_grad_norm)
                optimiser.step()
                named = {"loss": loss, "pg_loss": pg.mean(), "vf_loss": vf.mean(), "ratio": ratio.mean()}
                updates.append({name: x.item() for name, x in {**named, "grad_norm": grad_norm}.items()})
        sequence_kl = [(o - f).sum().item() for o, f in zip(old, reference, strict=True)]  # k1, per response
        step_metrics = {"score": sum(scores) / len(scores), "kl": sum(sequence_kl) / len(sequence_kl)}
        for name in updates[0]:  # the mean over the step's updates
            step_metrics[name] = sum(u[name] for u in updates) / len(updates)
        metrics.append({**step_metrics, "updates": updates})
    final = {"policy": policy, "value": value}
    return metrics, {k: {n: p.detach().clone() for n, p in m.named_parameters()} for k, m in final.items()}
