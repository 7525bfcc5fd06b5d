"""Sample layers: the affine map, and its parts."""

from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

from fundl import Einsum, Linear, bias, einsum, gain, linear, mlp
from tests.samples.table import normal, sample


def affine(p: Linear, x: Tensor) -> Tensor:
    return F.linear(x, p.weight, p.bias)


def einsum_of(p: Einsum, x: Tensor) -> Tensor:
    """The products one by one, without torch.einsum."""
    shapes = {
        "...d,dhk->...hk": lambda: (x[..., None, None] * p.weight).sum(-3),
        "...hk,hkd->...d": lambda: (x[..., None] * p.weight).sum((-3, -2)),
        "bthk,hkm->bmth": lambda: (x[..., None] * p.weight).sum(-2).movedim(-1, 1),
    }
    return shapes[p.equation]()


def by_axes(p: Einsum, shape: tuple[int, ...]) -> Tensor:
    assert p.bias is not None
    return p.bias.reshape(shape)


SAMPLES: Final = (
    sample("Linear", linear(3, 4), normal(5, 3), affine),
    sample("Linear, no bias", linear(3, 4, bias=False), normal(5, 3), affine),
    sample("Linear of a vector", linear(3, 4), normal(3), affine, batched=False),
    sample("Linear of sequences", linear(3, 4), normal(5, 2, 3), affine),
    sample(
        "Einsum",
        einsum("...d,dhk->...hk", {"d": 3, "h": 2, "k": 4}),
        normal(5, 2, 3),
        lambda p, x: einsum_of(p, x) + by_axes(p, (2, 4)),
    ),
    sample("Einsum, no bias", einsum("...hk,hkd->...d", {"h": 2, "k": 3, "d": 4}, bias=False), normal(5, 2, 3), einsum_of),
    sample(
        "Einsum, of each head",
        einsum("bthk,hkm->bmth", {"h": 2, "k": 3, "m": 4}),
        normal(5, 3, 2, 3),
        lambda p, x: einsum_of(p, x) + by_axes(p, (4, 1, 1)),
    ),
    sample("Einsum without a bias of its own", einsum("bd,d->bd", {"d": 3}), normal(5, 3), lambda p, x: x * p.weight),
    sample("mlp", mlp(3, 4, 2), normal(5, 3), lambda p, x: affine(p[-1], torch.relu(affine(p[0], x))), kept=5 * 4 * 8),
    sample("Gain", gain(3), normal(5, 3), lambda p, x: x * p.weight),
    sample("Gain of sequences", gain(3), normal(5, 2, 3), lambda p, x: x * p.weight),
    sample("Bias", bias(3), normal(5, 3), lambda p, x: x + p.bias),
    sample("Bias of sequences", bias(3), normal(5, 2, 3), lambda p, x: x + p.bias),
)
