"""Sample layers: with two inputs or two outputs."""

from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

from fundl import Add, Concatenate, Duplicate, Fork, Linear, Multiply, Pipe, Tanh, bilinear, both, fork, linear, pipe, shared
from fundl.layers.pairs import Pair
from tests.samples.linear import affine
from tests.samples.table import normal, sample

X: Final = (normal(5, 3), normal(5, 7)[:, 4:])
UNLIKE: Final = (normal(5, 3), normal(5, 2))


def put_together(p: Pipe[Tensor, Tensor, Fork[Pair, Linear, Linear], Concatenate], x: Tensor) -> Tensor:
    first, second = p.layers[0].branches
    return torch.cat((affine(first, x), affine(second, x)), -1)


SAMPLES: Final = (
    sample("Duplicate", Duplicate(), normal(5, 3), lambda _, x: (x * 1, x * 1)),
    sample(
        "both",
        both((linear(3, 4), Tanh()), linear(2, 4, bias=False)),
        UNLIKE,
        lambda p, x: (torch.tanh(affine(p.first[0], x[0])), affine(p.second, x[1])),
    ),
    sample(
        "shared",
        shared(linear(3, 4), Tanh()),
        (normal(5, 3), normal(5, 6)[:, 3:]),
        lambda p, x: (torch.tanh(affine(p.layers[0], x[0])), torch.tanh(affine(p.layers[0], x[1]))),
    ),
    sample(
        "shared, of two lengths",
        shared((linear(3, 4, bias=False), Tanh()), linear(4, 2)),
        (normal(5, 2, 3), normal(5, 3)),
        lambda p, x: (
            affine(p.layers[1], torch.tanh(affine(p.layers[0][0], x[0]))),
            affine(p.layers[1], torch.tanh(affine(p.layers[0][0], x[1]))),
        ),
        kept=15 * 4 * 8,
    ),
    sample(
        "siamese",
        pipe(shared(linear(3, 4), Tanh()), Multiply(), linear(4, 1)),
        X,
        lambda p, x: affine(
            p.layers[2], torch.tanh(affine(p.layers[0].layers[0], x[0])) * torch.tanh(affine(p.layers[0].layers[0], x[1]))
        ),
        kept=3 * 5 * 4 * 8,
    ),
    sample(
        "fork",
        fork((linear(3, 4), Tanh()), linear(3, 2, bias=False), Tanh()),
        normal(5, 3),
        lambda p, x: (torch.tanh(affine(p.branches[0][0], x)), affine(p.branches[1], x), torch.tanh(x)),
    ),
    sample("fork, put together", pipe(fork(linear(3, 4), linear(3, 2)), Concatenate()), normal(5, 3), put_together),
    sample("Add", Add(), X, lambda _, x: x[0] + x[1]),
    sample("Multiply", Multiply(), X, lambda _, x: x[0] * x[1]),
    sample("Concatenate", Concatenate(), UNLIKE, lambda _, x: torch.cat(x, -1)),
    sample("Concatenate, axis", Concatenate(axis=1), UNLIKE, lambda _, x: torch.cat(x, 1)),
    sample(
        "bilinear",
        bilinear(3, 2, 4),
        UNLIKE,
        lambda p, x: F.bilinear(*x, p.weight, p.bias),
    ),
    sample("bilinear, no bias", bilinear(3, 2, 4, bias=False), UNLIKE, lambda p, x: F.bilinear(*x, p.weight)),
    sample(
        "bilinear of sequences",
        bilinear(3, 2, 4),
        (normal(5, 2, 3), normal(5, 2, 2)),
        lambda p, x: F.bilinear(*x, p.weight, p.bias),
    ),
    sample(
        "pipe",
        pipe(both(linear(3, 4), linear(2, 4)), Multiply(), linear(4, 2)),
        UNLIKE,
        lambda p, x: affine(p.layers[2], affine(p.layers[0].first, x[0]) * affine(p.layers[0].second, x[1])),
        kept=3 * 5 * 4 * 8,
    ),
    sample(
        "pipe, from one to one",
        pipe(Duplicate(), both(Tanh(), linear(3, 3)), Add()),
        normal(5, 3),
        lambda p, x: torch.tanh(x) + affine(p.layers[1].second, x),
        kept=5 * 3 * 8,
    ),
)
