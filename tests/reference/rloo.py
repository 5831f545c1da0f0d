"""RLOO, the plain way (Kool et al. 2019; Ahmadian et al. 2024): REINFORCE against the mean of a prompt's other answers.

Maximise  E[ R(x, y) - beta log(pi(y|x) / ref(y|x)) ]  over y ~ pi. A whole answer is ONE action. Each step, with k
answers y_1 .. y_k ~ pi to every prompt given:

    reward      R_i = score_i - beta (log pi(y_i) - log ref(y_i)),      log-probs summed over tokens; a constant
    baseline    b_i = mean of R_j over j != i
    advantage   A_i = R_i - b_i
    loss            = mean over all answers of the step of  -A_i log pi(y_i)

Sampling is not here: the answers are given. One update a step, so that they come from the policy that is updated.
"""

from typing import NamedTuple

import torch

PAD = 0  # any id: padding is hidden by the attention mask, never recognised by its value


class Answer(NamedTuple):
    response: list[int]  # as sampled, with the end-of-turn token if it came
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
    """log pi(y|x) of each answer, summed over its tokens, [k]. Position i predicts token i+1."""
    n = len(question.prompt)
    logits = model(**pad_right([[*question.prompt, *a.response] for a in question.answers])).logits
    out = []
    for row, answer in zip(logits.log_softmax(-1), question.answers, strict=True):
        steps = torch.arange(len(answer.response))
        out.append(row[n - 1 + steps, torch.tensor(answer.response)].sum())
    return torch.stack(out)


def punished(answer, missing, penalty):
    """The score; a cut answer's becomes -penalty ("replace"), loses the penalty ("subtract") or stays ("none")."""
    cut = {"replace": -penalty, "subtract": answer.score - penalty, "none": answer.score}[missing]
    return cut if answer.finish == "length" else answer.score


def run(policy, ref, batches, *, beta, lr, missing="subtract", penalty=0.0, max_grad_norm=1.0):
    """One step for each batch of questions; trains `policy` in place. AdamW, no weight decay, constant rate.

    `missing` and `penalty` say what becomes of the score of a cut answer. Returns (metrics of each step, parameters).
    """
    policy.eval(), ref.eval()
    optimiser = torch.optim.AdamW(policy.parameters(), lr=lr, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)
    metrics = []
    for questions in batches:
        losses, kls, sizes = [], [], []
        for question in questions:
            log_prob = log_probs_of(policy, question)
            with torch.no_grad():
                kl = log_prob - log_probs_of(ref, question)
            score = [punished(a, missing, penalty) for a in question.answers]
            reward = [s - beta * float(k) for s, k in zip(score, kl, strict=True)]
            for i, own in enumerate(reward):
                others = reward[:i] + reward[i + 1 :]
                advantage = own - sum(others) / len(others)
                losses.append(-advantage * log_prob[i])
                sizes.append(abs(advantage))
            kls += kl.tolist()
        loss = torch.stack(losses).mean()
        optimiser.zero_grad()
        loss.backward()
        grad_norm = torch.nn.utils.clip_grad_norm_(policy.parameters(), max_grad_norm)
        optimiser.step()
        row = {"loss": loss.item(), "grad_norm": grad_norm.item(), "kl": sum(kls) / len(kls)}
        metrics.append({**row, "advantage_size": sum(sizes) / len(sizes)})
    return metrics, {n: p.detach().clone() for n, p in policy.named_parameters()}
