"""Greedy answers, and how far an answer is from greedy."""

import torch


def greedy(model, ids, count):
    batch = torch.tensor([ids])
    output = model.generate(batch, attention_mask=torch.ones_like(batch), max_new_tokens=count, do_sample=False)
    return output[0, len(ids):].tolist()


@torch.no_grad()
def shortfall(model, prompt, answer):
    """The most that any token of `answer` lies below the best token, in logits; 0 if `model` would have answered the same.

    Two ways of rounding may choose differently where two tokens tie, and everything after reads differently. This tells a tie from a
    mistake: each token is judged after the tokens that were really chosen before it.
    """
    logits = model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1:-1].float()
    chosen = logits[torch.arange(len(answer)), torch.tensor(answer)]
    return (logits.max(dim=-1).values - chosen).max().item()
