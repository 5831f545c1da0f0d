"""Supervised fine-tuning, the plain way.

Maximise the likelihood of the demonstrated responses given their prompts:

    L(batch) = - sum over all response tokens of log pi(y_t | x, y_<t)  /  number of response tokens in the batch

Every token of the batch weighs the same; long responses therefore weigh more than short ones. Prompt tokens are read
but not learnt. The response includes its end-of-turn token if it has one.
"""

import torch

PAD = 0  # any id: padding is hidden by the attention mask, never recognised by its value


def pad_right(rows):
    """Rows of ids -> (ids, attention mask, position ids), each [rows, longest], padded on the right."""
    longest = max(len(row) for row in rows)
    ids = torch.tensor([[*row, *[PAD] * (longest - len(row))] for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    return ids, mask, torch.arange(longest).expand(len(rows), -1)


def response_log_probs(model, pairs):
    """log pi(y_t | x, y_<t) for every response token of every (prompt, response): a list of 1-d tensors."""
    ids, mask, positions = pad_right([[*prompt, *response] for prompt, response in pairs])
    log_probs = model(input_ids=ids, attention_mask=mask, position_ids=positions).logits.log_softmax(-1)
    out = []
    for row, (prompt, response) in enumerate(pairs):
        # The logits at position i predict the token at i+1: the last prompt token predicts the first response token.
        first = len(prompt) - 1
        predicted = log_probs[row, first : first + len(response)]
        out.append(predicted[torch.arange(len(response)), torch.tensor(response)])
    return out


def run(model, batches, lr, max_grad_norm=1.0):
    """One optimiser step for each batch of `(prompt_ids, response_ids)`; trains `model` in place.

    AdamW(betas 0.9/0.999, eps 1e-8, no weight decay), constant learning rate, gradient norm clipped.
    Returns (metrics of each step, final parameters by name).
    """
    model.eval()  # no dropout
    optimiser = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)
    metrics = []
    for batch in batches:
        log_probs = torch.cat(response_log_probs(model, batch))
        loss = -log_probs.sum() / len(log_probs)

        optimiser.zero_grad()
        loss.backward()
        grad_norm = torch.nn.utils.clip_grad_norm_(model.parameters(), max_grad_norm)
        optimiser.step()
        metrics.append({"loss": loss.item(), "tokens": len(log_probs), "grad_norm": grad_norm.item()})
    return metrics, {name: p.detach().clone() for name, p in model.named_parameters()}
