"""Online direct alignment, the plain way (OAIF, Guo et al. 2024): DPO, IPO or the hinge on answers made a moment ago.

Each step, with the policy pi as it is now and a reference ref that stays as it was:

    sample      y1, y2 ~ pi(. | x) for every prompt x, at a temperature that the loss knows nothing of
    judge       q = chance that y1 is the better of the two: 1 or 0 where it is plain; a tie is left out of the mean
    h           = log pi/ref(y1) - log pi/ref(y2), summed over the tokens, the end-of-turn token among them if it came
    L(pair)     = q l(h) + (1 - q) l(-h),   L = mean over the pairs that are no ties

    dpo         l(h) = -log sigmoid(beta h)
    ipo         l(h) = (h - 1/(2 beta))^2
    hinge       l(h) = max(0, 1 - beta h)

Then one optimiser step; where all pairs are ties there is none. No gradient flows through the sampling.
"""

import torch
from torch.nn.functional import logsigmoid, relu

PAD = 0  # any id: padding is hidden by the attention mask, never recognised by its value


def sample(model, prompt, uniforms, eos, temperature):
    """One answer, a token for each of `uniforms` at most: the token in whose share of [0, 1) the number falls."""
    answer = []
    for u in uniforms:
        logits = model(input_ids=torch.tensor([[*prompt, *answer]])).logits[0, -1]
        shares = (logits / temperature).softmax(-1).cumsum(-1)
        answer.append(int((shares <= u).sum()))
        if answer[-1] == eos:
            break
    return answer


def pad_right(rows):
    """Rows of ids -> (ids, attention mask, position ids), each [rows, longest], padded on the right."""
    longest = max(len(row) for row in rows)
    ids = torch.tensor([[*row, *[PAD] * (longest - len(row))] for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    return {"input_ids": ids, "attention_mask": mask, "position_ids": torch.arange(longest).expand(len(rows), -1)}


def log_prob(model, rows):
    """log pi(answer | prompt), summed: one number for each (prompt, answer). Position i predicts token i+1."""
    log_probs = model(**pad_right([[*prompt, *answer] for prompt, answer in rows])).logits.log_softmax(-1)
    out = []
    for row, (prompt, answer) in enumerate(rows):
        predicted = log_probs[row, len(prompt) - 1 : len(prompt) - 1 + len(answer)]
        out.append(predicted[torch.arange(len(answer)), torch.tensor(answer)].sum())
    return torch.stack(out)


def losses(h, kind, beta):
    """l(h) of each pair."""
    if kind == "dpo":
        return -logsigmoid(beta * h)
    return (h - 1 / (2 * beta)) ** 2 if kind == "ipo" else relu(1 - beta * h)


def run(policy, ref, batches, uniforms, judge, *, kind, beta, lr, eos, temperature=1.0, max_grad_norm=1.0):
    """One step for each batch of prompts; trains `policy` in place. AdamW, no weight decay, constant rate.

    `uniforms(step)` are the chances of a step, [prompts, 2, longest answer]; `judge(prompt, first, second)` gives q, or
    None for a tie. Returns (metrics of each step, final parameters by name); a step of ties has no loss.
    """
    policy.eval(), ref.eval()
    optimiser = torch.optim.AdamW(policy.parameters(), lr=lr, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)
    metrics = []
    for step, prompts in enumerate(batches):
        with torch.no_grad():
            pairs = [
                (prompt, *(sample(policy, prompt, u.tolist(), eos, temperature) for u in chances))
                for prompt, chances in zip(prompts, uniforms(step), strict=True)
            ]
        verdicts = [judge(*pair) for pair in pairs]
        metrics.append({"answers": [answer for _, *two in pairs for answer in two], "ties": verdicts.count(None)})
        decided = [(pair, q) for pair, q in zip(pairs, verdicts, strict=True) if q is not None]
        if not decided:
            continue
        rows = [(prompt, answer) for (prompt, *two), _ in decided for answer in two]
        with torch.no_grad():
            reference = log_prob(ref, rows)
        ratio = log_prob(policy, rows) - reference
        h = ratio[0::2] - ratio[1::2]
        q = torch.tensor([q for _, q in decided], dtype=h.dtype)
        loss = (q * losses(h, kind, beta) + (1 - q) * losses(-h, kind, beta)).mean()
        optimiser.zero_grad()
        loss.backward()
        grad_norm = torch.nn.utils.clip_grad_norm_(policy.parameters(), max_grad_norm)
        optimiser.step()
        margin = torch.where(q > 0.5, h, -h)[q != 0.5].detach()  # an even verdict has no right side
        right = (margin > 0).double() + 0.5 * (margin == 0)
        metrics[-1] |= {"loss": loss.item(), "grad_norm": grad_norm.item()}
        metrics[-1] |= {"margin": margin.mean().item(), "accuracy": right.mean().item()}
    return metrics, {name: p.detach().clone() for name, p in policy.named_parameters()}
