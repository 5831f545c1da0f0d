"""Direct alignment from pairs, the plain way: DPO (Rafailov et al. 2023), IPO (Azar et al. 2023), SLiC-HF's hinge.

Of two responses to one prompt the first is preferred with probability q: 1 or 0 where people simply chose, in between
where several voted. What the policy thinks is one number a pair, and the loss is the expected loss of the label:

    L(pair)  = q l(h) + (1 - q) l(-h)
    L(batch) = mean over the pairs that say something; where neither was chosen (a tie), a pair says nothing

    DPO           h = sum log pi/ref(first)  - sum log pi/ref(second)    l(h) = -log sigmoid(beta h)
    IPO           h the same                                             l(h) = (h - 1/(2 tau))^2
    IPO, averaged h = mean log pi/ref(first) - mean log pi/ref(second)   l(h) = (h - 1/(2 tau))^2
    SLiC-HF       h = sum log pi(first)      - sum log pi(second)        l(h) = max(0, delta - h)

Sums and means are over the response's tokens, its end-of-turn token among them; the prompt's are read, not summed.
Labels flipped with probability e are allowed for by another q. Conservative (cDPO; Mitchell 2023): q becomes
(1-2e) q + e, the chance of the flipped label. Robust (Chowdhury et al. 2024): q becomes (q - e)/(1-2e): undone.
"""

import torch
from torch.nn.functional import logsigmoid, relu

PAD = 0  # any id: padding is hidden by the attention mask, never recognised by its value


def pad_right(rows):
    """Rows of ids -> (ids, attention mask, position ids), each [rows, longest], padded on the right."""
    longest = max(len(row) for row in rows)
    ids = torch.tensor([[*row, *[PAD] * (longest - len(row))] for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    return {"input_ids": ids, "attention_mask": mask, "position_ids": torch.arange(longest).expand(len(rows), -1)}


def log_prob(model, rows):
    """log pi(response | prompt), summed: one number for each (prompt, response). Position i predicts token i+1."""
    log_probs = model(**pad_right([[*prompt, *response] for prompt, response in rows])).logits.log_softmax(-1)
    out = []
    for row, (prompt, response) in enumerate(rows):
        predicted = log_probs[row, len(prompt) - 1 : len(prompt) - 1 + len(response)]
        out.append(predicted[torch.arange(len(response)), torch.tensor(response)].sum())
    return torch.stack(out)


def label(q, noise, kind):
    """The label that stands for q when labels are flipped at the rate `noise`."""
    return {"conservative": (1 - 2 * noise) * q + noise, "robust": (q - noise) / (1 - 2 * noise)}[kind]


def losses(h, kind, strength):
    """l(h) of each pair; `strength` is DPO's beta, IPO's tau or SLiC-HF's delta."""
    if kind == "dpo":
        return -logsigmoid(strength * h)
    if kind in ("ipo", "ipo averaged"):
        return (h - 1 / (2 * strength)) ** 2
    assert kind == "slic"
    return relu(strength - h)


def run(policy, ref, batches, kind, strength, lr, noise=0.0, noise_kind="conservative", max_grad_norm=1.0):
    """One optimiser step for each batch of `(prompt_ids, first_ids, second_ids, q)`; trains `policy` in place.

    q is None for a tie. AdamW(betas 0.9/0.999, eps 1e-8, no weight decay), constant learning rate, gradient norm
    clipped. Returns (metrics of each step, final parameters by name).
    """
    policy.eval()  # no dropout, or the policy would not start as its reference
    ref.eval()
    optimiser = torch.optim.AdamW(policy.parameters(), lr=lr, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)
    metrics = []
    for batch in batches:
        pairs = [pair for pair in batch if pair[3] is not None]
        rows = [(prompt, response) for prompt, first, second, _ in pairs for response in (first, second)]
        x = log_prob(policy, rows)
        if kind != "slic":
            with torch.no_grad():
                reference = log_prob(ref, rows)
            x = x - reference
        if kind == "ipo averaged":
            x = x / torch.tensor([len(response) for _, response in rows])

        first, second = x[0::2], x[1::2]
        h = first - second
        q = torch.tensor([q for *_, q in pairs], dtype=h.dtype)
        seen = label(q, noise, noise_kind)
        loss = (seen * losses(h, kind, strength) + (1 - seen) * losses(-h, kind, strength)).mean()

        optimiser.zero_grad()
        loss.backward()
        grad_norm = torch.nn.utils.clip_grad_norm_(policy.parameters(), max_grad_norm)
        optimiser.step()
        sided = q != 0.5  # an even vote is learnt from, and has no right side to be measured by
        margin = torch.where(q > 0.5, h, -h)[sided].detach()
        right = (margin > 0).double() + 0.5 * (margin == 0)
        metrics.append(
            {
                "loss": loss.item(),
                "pairs": len(pairs),
                "margin": margin.mean().item(),  # of h, without beta
                "accuracy": right.mean().item(),
                "grad_norm": grad_norm.item(),
            }
        )
    return metrics, {name: p.detach().clone() for name, p in policy.named_parameters()}
