"""Sample layers: models whose last linear map is left to the loss."""

from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

from fundl import Deferred, DeferredLogits, Embedding, Linear, Tanh, Tied, deferred, embedding, linear, tied
from tests.samples.table import normal, sample

TOKENS: Final = torch.tensor([[3, 0, 6], [3, 3, 1]])


def with_linear(p: Deferred[Linear, Tanh, Linear], x: Tensor) -> DeferredLogits:
    first, _, last = p.layers
    return DeferredLogits(torch.tanh(F.linear(x, first.weight, first.bias)), last.weight, last.bias)


def with_nested(p: Deferred[Embedding, tuple[Tanh, Linear]], x: Tensor) -> DeferredLogits:
    return DeferredLogits(torch.tanh(F.embedding(x, p.layers[0].weight)), p.layers[1][1].weight, None)


def with_tied(p: Deferred[Tied[int, Linear, Tanh]], x: Tensor) -> DeferredLogits:
    weight, inside = p.layers[0].embedding.weight, p.layers[0].layers[0]
    return DeferredLogits(torch.tanh(F.linear(F.embedding(x, weight), inside.weight, inside.bias)), weight, None)


SAMPLES: Final = (
    sample("deferred", deferred(linear(3, 4), Tanh(), linear(4, 5)), normal(6, 3), with_linear, batched=False),
    sample(
        "deferred, of tokens, in parts",
        deferred(embedding(7, 4), (Tanh(), linear(4, 5, bias=False))),
        TOKENS,
        with_nested,
        batched=False,
    ),
    sample(
        "deferred, tied",
        deferred(tied(embedding(7, 4), linear(4, 4), Tanh())),
        TOKENS,
        with_tied,
        batched=False,
        kept=2 * 3 * 4 * 8,
    ),
)
