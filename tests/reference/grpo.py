"""GRPO and two descendants, the plain way (Shao et al. 2024; Dr. GRPO, Liu et al. 2025; DAPO, Yu et al. 2025).

No critic: the baseline of an answer is the mean of its group, the G answers to the same prompt. Each step, with answers
y_1 .. y_G ~ pi_old to every prompt given:

    advantage   A_i  = (R_i - mean R) / (std R + eps)             the same on every token of y_i; std optional
    ratio       w_it = pi(y_it) / pi_old(y_it)
    policy      p_it = -min(w_it A_i, clip(w_it, 1 - low, 1 + high) A_i)
    pull        k_it = ref/pi - 1 - log(ref/pi)                   at y_it: k3, whose mean under pi is KL(pi || ref)
             or k_it = (log(ref/pi))^2 / 2                        k2
    token       l_it = p_it + beta k_it

and the loss is one of three averages of l_it:

    "sequence"   (1/N) sum over answers of (1/|y_i|) sum over t     GRPO
    "token"      (sum over answers and t) / (number of tokens)      DAPO
    "constant"   (sum over answers and t) / (N * longest)           Dr. GRPO

The pull may instead stand in the reward, as k1: R_i less beta log(pi_old(y_i) / ref(y_i)), and nothing in the loss.
Old and reference log-probs are measured once a step, before the first update. Sampling is not here.
"""

from typing import NamedTuple

import torch

PAD = 0  # any id: padding is hidden by the attention mask, never recognised by its value


class Answer(NamedTuple):
    response: list[int]
    finish: str  # "stop": ended by itself; "length": cut by the token limit
    score: float


class Question(NamedTuple):
    prompt: list[int]
    answers: list[Answer]


def pad_right(rows):
    """Rows of ids -> (ids, attention mask, position ids), each [rows, longest], padded on the right."""
    longest = max(len(row) for row in rows)
    ids = torch.tensor([[*row, *[PAD] * (longest - len(row))] for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    return {"input_ids": ids, "attention_mask": mask, "position_ids": torch.arange(longest).expand(len(rows), -1)}


def log_probs_of(model, question):
    """log pi(y_t | x, y_<t) of the tokens of each answer: one 1-d tensor an answer. Position i predicts token i+1."""
    n = len(question.prompt)
    logits = model(**pad_right([[*question.prompt, *a.response] for a in question.answers])).logits
    out = []
    for row, answer in zip(logits.log_softmax(-1), question.answers, strict=True):
        out.append(row[n - 1 + torch.arange(len(answer.response)), torch.tensor(answer.response)])
    return out


def advantages_of(rewards, std, ddof, eps):
    """Each reward against the mean of its group; `std` is a number, "group" or None. Equal rewards: all 0."""
    if len(set(rewards)) == 1:
        return [0.0] * len(rewards)
    mean = sum(rewards) / len(rewards)
    if std == "group":
        std = (sum((r - mean) ** 2 for r in rewards) / (len(rewards) - ddof)) ** 0.5
    return [(r - mean) if std is None else (r - mean) / (std + eps) for r in rewards]


def punished(answer, missing, penalty, longest, soft):
    """The score after two rules.

    That of a cut answer becomes -penalty (`missing` "replace"), loses the penalty ("subtract") or stays ("none"). By
    DAPO's soft overlong punishment the last `soft` of `longest` tokens cost up to 1.
    """
    score, length = answer.score, len(answer.response)
    if answer.finish == "length":
        score = {"replace": -penalty, "subtract": score - penalty, "none": score}[missing]
    return score if soft == 0 or length <= longest - soft else score - min(1.0, (length - longest + soft) / soft)


def run(
    policy, ref, batches, order, *, lr, beta=0.04, pull="k3", scale="group", ddof=1, eps=1e-4, average="sequence",
    low=0.2, high=0.2, epochs=1, minibatches=1, longest=None, soft=0, mask_truncated=False, missing="none", penalty=1.0,
    max_grad_norm=1.0,
):  # fmt: skip
    """One GRPO step for each batch of questions; trains `policy` in place.

    `order(step, epoch, n)` gives the permutation of the n questions, cut into `minibatches` equal parts. `pull`:
    "k3", "k2" or "reward". `scale`: "group", "batch" (over the rewards of all answers of the step) or "none". With
    `mask_truncated` answers that were cut count in the baseline and are left out of the loss. AdamW, no weight decay,
    constant rate. Returns (metrics of each step, parameters by name).
    """
    policy.eval(), ref.eval()
    optimiser = torch.optim.AdamW(policy.parameters(), lr=lr, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)
    metrics = []
    for step, questions in enumerate(batches):
        # 1. Measure, with the policy as it is.
        with torch.no_grad():
            old = [log_probs_of(policy, q) for q in questions]
            reference = [log_probs_of(ref, q) for q in questions]
        rewards = [[punished(a, missing, penalty, longest, soft) for a in q.answers] for q in questions]
        if pull == "reward":
            for row, own, theirs in zip(rewards, old, reference, strict=True):
                row[:] = [r - beta * (o - f).sum().item() for r, o, f in zip(row, own, theirs, strict=True)]
        std = {"group": "group", "none": None}.get(scale, scale)
        if scale == "batch":
            std = torch.tensor([r for row in rewards for r in row], dtype=torch.float64).std(correction=ddof).item()
        advantages = [advantages_of(row, std, ddof, eps) for row in rewards]

        # 2. Learn: several passes over the same answers, in minibatches of whole groups.
        updates, size = [], len(questions) // minibatches
        assert size * minibatches == len(questions), "the minibatches must be equal"
        for epoch in range(epochs):
            permutation = list(order(step, epoch, len(questions)))
            for start in range(0, len(questions), size):
                per_answer, clipped = [], []  # the token losses of each answer
                for q in permutation[start : start + size]:
                    now = log_probs_of(policy, questions[q])
                    for i, answer in enumerate(questions[q].answers):
                        a, w = advantages[q][i], torch.exp(now[i] - old[q][i])
                        surrogate = torch.minimum(w * a, w.clamp(1 - low, 1 + high) * a)
                        gap = reference[q][i] - now[i]
                        clipped += (surrogate < w * a).tolist()
                        if not (mask_truncated and answer.finish == "length"):
                            k = {"k3": gap.exp() - 1 - gap, "k2": gap**2 / 2, "reward": 0 * gap}[pull]
                            per_answer.append(-surrogate + beta * k)
                if average == "sequence":
                    loss = sum(x.mean() for x in per_answer) / len(per_answer)
                elif average == "token":
                    loss = sum(x.sum() for x in per_answer) / sum(len(x) for x in per_answer)
                else:
                    everyone = sum(len(questions[q].answers) for q in permutation[start : start + size])
                    loss = sum(x.sum() for x in per_answer) / (everyone * longest)
                optimiser.zero_grad()
                loss.backward()
                grad_norm = torch.nn.utils.clip_grad_norm_(policy.parameters(), max_grad_norm)
                optimiser.step()
                counted = {"sequence": len(per_answer), "token": sum(map(len, per_answer)), "constant": 1}[average]
                row = {"loss": loss.item(), "grad_norm": grad_norm.item(), "clipped": sum(clipped)}
                updates.append({**row, "tokens": len(clipped), "counted": counted})
        kl = [(o - f).sum().item() for a, b in zip(old, reference, strict=True) for o, f in zip(a, b, strict=True)]
        mean = lambda name, by: sum(u[name] * u[by] for u in updates) / sum(u[by] for u in updates)  # noqa: E731, B023
        row = {"kl": sum(kl) / len(kl), "loss": mean("loss", "counted"), "updates": updates}
        row["grad_norm"] = sum(u["grad_norm"] for u in updates) / len(updates)
        row["clipped"] = sum(u["clipped"] for u in updates) / sum(u["tokens"] for u in updates)
        metrics.append(row)
    return metrics, {n: p.detach().clone() for n, p in policy.named_parameters()}
