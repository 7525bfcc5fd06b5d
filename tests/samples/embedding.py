"""Sample layers: a vector for each token."""

from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

from fundl import Embedding, embedding
from tests.samples.table import sample

TOKENS: Final = torch.tensor([[3, 1, 4], [1, 5, 9], [2, 6, 5], [3, 5, 8]])


def looked_up(p: Embedding, x: Tensor) -> Tensor:
    return F.embedding(x, p.weight, padding_idx=p.padding)


SAMPLES: Final = (
    sample("Embedding", embedding(10, 4), TOKENS, looked_up),
    sample("Embedding of int32", embedding(10, 4), TOKENS.to(torch.int32), looked_up),
    sample("Embedding of one token", embedding(10, 4), TOKENS[0, 0], looked_up, batched=False),
    # A token that is the padding has no gradient, which no differences would find: of these tokens, none is.
    sample("Embedding, padding", embedding(10, 4, padding=0), TOKENS, looked_up),
)
