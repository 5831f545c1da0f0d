"""Reward modelling from rankings, the plain way (Bradley-Terry; InstructGPT, eq. 1).

A scalar head reads the hidden state of the LAST token of prompt + response: s = score(x, y). People ranked the K
responses of each prompt (1 is best, equal ranks are ties). Each untied pair should be ordered with Bradley-Terry
probability sigmoid(s_winner - s_loser):

    L(prompt) = mean over the prompt's untied pairs of  -log sigmoid(s_winner - s_loser)
    L(batch)  = mean over prompts that have at least one untied pair

Two responses make one pair, which is the ordinary pairwise loss. All pairs of a prompt are one element of the batch
and each response goes through the model once: K rows, not K(K-1).
"""

import torch
from torch.nn.functional import logsigmoid

PAD = 0  # any id: padding is hidden by the attention mask, never recognised by its value


def pad_right(rows):
    """Rows of ids -> (ids, attention mask, position ids), each [rows, longest], padded on the right."""
    longest = max(len(row) for row in rows)
    ids = torch.tensor([[*row, *[PAD] * (longest - len(row))] for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    return ids, mask, torch.arange(longest).expand(len(rows), -1)


def scores(model, pairs):
    """Score of each (prompt, response): the head at the last real token, found by length."""
    rows = [[*prompt, *response] for prompt, response in pairs]
    ids, mask, positions = pad_right(rows)
    hidden = model.model(input_ids=ids, attention_mask=mask, position_ids=positions).last_hidden_state
    last = torch.tensor([len(row) - 1 for row in rows])
    return model.score(hidden[torch.arange(len(rows)), last])[:, 0]


def run(model, batches, lr, max_grad_norm=1.0):
    """One optimiser step for each batch of groups `(prompt_ids, [response_ids, ...], ranks)`; trains `model` in place.

    `model` is a LlamaForSequenceClassification with one label. AdamW(betas 0.9/0.999, eps 1e-8, no weight decay),
    constant learning rate, gradient norm clipped. Returns (metrics of each step, final parameters by name).
    """
    model.eval()  # no dropout
    optimiser = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)
    metrics = []
    for batch in batches:
        batch_scores = scores(model, [(prompt, response) for prompt, responses, _ in batch for response in responses])

        losses, hits, start = [], [], 0
        for _, responses, ranks in batch:
            s = batch_scores[start : start + len(responses)]
            start += len(responses)
            places = range(len(responses))
            pairs = [(i, j) for i in places for j in places if ranks[i] < ranks[j]]  # ties are in neither order
            if pairs:
                winner, loser = map(list, zip(*pairs, strict=True))
                margin = s[winner] - s[loser]
                losses.append(-logsigmoid(margin).mean())
                hits.append(((margin > 0).double() + 0.5 * (margin == 0)).mean())
        loss = torch.stack(losses).mean()

        optimiser.zero_grad()
        loss.backward()
        grad_norm = torch.nn.utils.clip_grad_norm_(model.parameters(), max_grad_norm)
        optimiser.step()
        metrics.append(
            {
                "loss": loss.item(),
                "accuracy": torch.stack(hits).mean().item(),
                "groups": len(losses),
                "grad_norm": grad_norm.item(),
            }
        )
    return metrics, {name: p.detach().clone() for name, p in model.named_parameters()}
