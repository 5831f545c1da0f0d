"""Matching a target distribution, the plain way: DPG, KL-adaptive DPG, GDC's second half, f-DPG and vBoN.

The target of a prompt is  p(y) = ref(y) exp(g(y)) / Z,  known up to Z. What is g:

    DPG, f-DPG    score / beta
    GDC           sum of lambda_i feature_i(y)
    vBoN          log of (F^n - F_-^n) / m:  F the share of the reference's answers that score at most as much, F_-
                  less, m as much; the answer itself is counted among them

Each step, with k answers y_1 .. y_k ~ q to every prompt given (q = pi, or a proposal):

    weight        w_i = ref(y_i) exp(g_i) / q(y_i), divided by the mean of the prompt's k weights, which estimates Z
    own           u_i = pi(y_i) / q(y_i), divided by its mean too; 1 where q = pi
    advantage     forward KL (DPG): w_i - u_i, or w_i without the baseline
                  f-DPG, q = pi: reward R_i = -f'(pi/p) of 1/t = p/pi = w_i, against the mean of the prompt's other R
    loss              = mean over all answers of the step of  -A_i log pi(y_i),  A held constant

KL-adaptive: after the update, every few steps, the policy takes the proposal's place if the mean of
KL(p || pi) - KL(p || q), estimated with the weights over these steps' prompts, is below 0 by its standard error.

Sampling is not here: the answers are given, and with a proposal also log q of each.
"""

import copy
import math

import torch

from .rloo import log_probs_of, punished


def mean(x):
    return sum(x) / len(x)


def exponent(question, kind):
    """g of each answer, a list; `kind` is ("scores", beta, missing, penalty), ("factor",) or ("best", n, ladder)."""
    if kind[0] == "scores":
        _, beta, missing, penalty = kind
        return [punished(a, missing, penalty) / beta for a in question.answers]
    if kind[0] == "factor":
        return [a.score for a in question.answers]
    _, n, ladder = kind
    found = []
    for answer in question.answers:
        total = len(ladder) + 1
        below = sum(s < answer.score for s in ladder) / total
        level = (1 + sum(s == answer.score for s in ladder)) / total
        found.append(math.log(((below + level) ** n - below**n) / level))
    return found


PSEUDO_REWARD = {  # of p/pi
    "forward_kl": lambda x: x,
    "reverse_kl": math.log,
    "tv": lambda x: (x > 1) / 2 - (x < 1) / 2,
    "js": lambda x: math.log(1 + x),
}


def advantages(g, policy, ref, proposal, loss):
    """`loss`: "dpg", "dpg without baseline" or a divergence. Lists of k floats; log-probs in nats."""
    w = [math.exp(gi + r - q) for gi, r, q in zip(g, ref, proposal, strict=True)]
    w = [x / mean(w) for x in w]
    if loss == "dpg without baseline":
        return w
    if loss == "dpg":
        u = [math.exp(p - q) for p, q in zip(policy, proposal, strict=True)]
        return [x - y / mean(u) for x, y in zip(w, u, strict=True)]
    reward = [PSEUDO_REWARD[loss](x) for x in w]
    return [own - mean(reward[:i] + reward[i + 1 :]) for i, own in enumerate(reward)]


def nearer(g, policy, ref, proposal):
    """KL(p || q) - KL(p || pi): the mean of log pi/q under p."""
    w = [math.exp(gi + r - q) for gi, r, q in zip(g, ref, proposal, strict=True)]
    return sum(x * (p - q) for x, p, q in zip(w, policy, proposal, strict=True)) / sum(w)


def run(policy, ref, batches, *, kind, loss, lr, proposal=None, adapt_every=0, max_grad_norm=1.0):
    """One step for each batch of questions; trains `policy` in place. AdamW, no weight decay, constant rate.

    With a `proposal` answers are taken to be its own. Returns (metrics of each step, parameters).
    """
    policy.eval(), ref.eval()
    optimiser = torch.optim.AdamW(policy.parameters(), lr=lr, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)
    metrics, gains, replaced = [], [], 0
    for step, questions in enumerate(batches):
        losses, sizes = [], []
        for question in questions:
            log_prob = log_probs_of(policy, question)
            with torch.no_grad():
                ref_log_prob = log_probs_of(ref, question).tolist()
                own = log_prob.tolist()
                q = own if proposal is None else log_probs_of(proposal, question).tolist()
            g = exponent(question, kind)
            advantage = advantages(g, own, ref_log_prob, q, loss)
            losses += [-a * x for a, x in zip(advantage, log_prob, strict=True)]
            sizes += [abs(a) for a in advantage]
            gains.append(nearer(g, own, ref_log_prob, q))
        value = torch.stack(losses).mean()
        optimiser.zero_grad()
        value.backward()
        grad_norm = torch.nn.utils.clip_grad_norm_(policy.parameters(), max_grad_norm)
        optimiser.step()
        if adapt_every and (step + 1) % adapt_every == 0:
            spread = math.sqrt(mean([(x - mean(gains)) ** 2 for x in gains]) / (len(gains) - 1))
            if mean(gains) > spread:
                proposal, replaced = copy.deepcopy(policy), replaced + 1
            gains = []
        row = {"loss": value.item(), "grad_norm": grad_norm.item(), "advantage_size": mean(sizes)}
        metrics.append({**row, "proposals": float(replaced)})
    return metrics, {n: p.detach().clone() for n, p in policy.named_parameters()}
