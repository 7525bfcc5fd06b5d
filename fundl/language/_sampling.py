"""How the next token is drawn from the logits of all."""

import math
from typing import final

import attrs
import torch
from torch import Tensor


@final
@attrs.frozen
class Choice:
    """What decides which token follows, but for numbers: those are tensors, so that nothing is compiled anew for another.

    Args:
        greedy: whether to take the likeliest.
        top_k: from how many of the likeliest to draw; None for all.
        stop: the token after which a sequence has ended; None for none.
    """

    greedy: bool
    top_k: int | None
    stop: int | None


def chosen(choice: Choice, logits: Tensor, draw: Tensor, temperature: Tensor, top_p: Tensor | None) -> Tensor:
    """A token (B,) for each row of logits (B, V), from numbers (B,) drawn from [0, 1); -1 where a logit is not a number.

    Each is the first whose likelihood, added to those of all tokens before it, is above the number drawn.
    """
    if choice.greedy:
        return torch.where(logits.isnan().any(-1), -1, logits.argmax(-1))
    scores = logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature
    if choice.top_k is not None and choice.top_k < scores.shape[1]:
        least = torch.topk(scores, choice.top_k, -1)[0][:, -1:]
        scores = scores.masked_fill(scores < least, -math.inf)
    likelihoods = torch.softmax(scores, -1)
    if top_p is not None:
        ordered = likelihoods.sort(-1, descending=True)[0]
        before = ordered.cumsum(-1) - ordered
        least = torch.where(before < top_p, ordered, math.inf).amin(-1, keepdim=True)
        likelihoods = torch.where(likelihoods < least, 0, likelihoods)
    sums = likelihoods.to(torch.float64).cumsum(-1)
    total = sums[:, -1:]
    token = (sums <= draw.unsqueeze(1) * total).sum(-1)
    return torch.where(total.squeeze(1).isnan(), -1, token.clamp(max=logits.shape[1] - 1))
