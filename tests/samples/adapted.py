"""Sample layers: changes of low rank to the weights of any layer."""

from typing import Final

import attrs
import torch
import torch.nn.functional as F
from torch import Tensor

from fundl import (
    Adapted,
    Conv2d,
    Embedding,
    Linear,
    SelfAttention,
    adapted,
    conv2d,
    embedding,
    linear,
    self_attention,
)
from tests.samples.attention import self_attended
from tests.samples.table import normal, sample, with_values


def weights(p: Adapted) -> list[Tensor]:
    """The changed weights, one number after the other."""
    found = []
    for name, change in zip(p.names, p.changes, strict=True):
        weight: Tensor = getattr(p.layer, name)
        rank = change.down.shape[0]
        added = torch.einsum("or,ri->oi", change.up, change.down) * p.scale / rank
        found.append(weight + added.reshape(weight.shape))
    return found


def of_linear(p: Adapted[Linear], x: Tensor) -> Tensor:
    (weight,) = weights(p)
    return F.linear(x, weight, p.layer.bias)


def of_embedding(p: Adapted[Embedding], x: Tensor) -> Tensor:
    (weight,) = weights(p)
    return F.embedding(x, weight)


def of_convolution(p: Adapted[Conv2d], x: Tensor) -> Tensor:
    (weight,) = weights(p)
    return F.conv2d(x, weight, p.layer.bias)


def of_attention(p: Adapted[SelfAttention], x: Tensor) -> Tensor:
    weight, output = weights(p)
    return self_attended(attrs.evolve(p.layer, weight=weight, output_weight=output), x)


SAMPLES: Final = (
    sample("adapted linear", adapted(with_values(linear(3, 4)), 2, scale=0.7), normal(5, 3), of_linear),
    sample("adapted embedding", adapted(with_values(embedding(7, 4)), 2), torch.tensor([[3, 0, 6], [3, 3, 1]]), of_embedding),
    sample("adapted convolution", adapted(with_values(conv2d(2, 3, 2)), 1), normal(5, 2, 4, 3), of_convolution),
    sample(
        "adapted attention",
        adapted(with_values(self_attention(6, 2, causal=True)), 2),
        normal(5, 4, 6),
        of_attention,
        kept=5 * 4 * (18 + 6 + 2) * 8,
    ),
)
