"""Sample layers: those that rearrange, and those made of layers."""

from typing import Final, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from fundl import (
    Dropout,
    Flatten,
    Identity,
    Linear,
    ReLU,
    Reshape,
    Residual,
    SiLU,
    Softmax,
    Tanh,
    Tied,
    checkpoint,
    compose,
    embedding,
    frozen,
    key,
    linear,
    mixed_precision,
    over_time,
    parallel,
    repeat,
    residual,
    tied,
    tree,
)
from tests.samples.activation import dropped
from tests.samples.embedding import TOKENS
from tests.samples.linear import affine
from tests.samples.table import normal, sample

SAMPLES: Final = (
    sample("Flatten", Flatten(), normal(5, 2, 3, 2), lambda _, x: x.flatten(1)),
    sample("Flatten, start", Flatten(start=-2), normal(5, 2, 3, 2), lambda _, x: x.flatten(2)),
    sample("Reshape", Reshape((3, -1)), normal(5, 12), lambda _, x: x.reshape(-1, 3, 4)),
    sample(
        "residual",
        residual(linear(3, 3), Tanh()),
        normal(5, 3),
        lambda p, x: x + torch.tanh(affine(p.layers[0], x)),
        kept=5 * 3 * 8,
    ),
    sample(
        "parallel, sum",
        parallel(linear(3, 4), (linear(3, 4, bias=False), Tanh())),
        normal(5, 3),
        lambda p, x: affine(p.branches[0], x) + torch.tanh(affine(p.branches[1][0], x)),
        kept=5 * 4 * 8,
    ),
    sample(
        "parallel, concatenate",
        parallel(linear(3, 4), Identity(), Tanh(), join="concatenate", axis=1),
        normal(5, 3),
        lambda p, x: torch.cat((affine(p.branches[0], x), x, torch.tanh(x)), 1),
        kept=5 * 3 * 8,
    ),
    sample(
        "checkpoint",
        checkpoint(linear(3, 4), Dropout(0.4, key(3)), Tanh()),
        normal(5, 3),
        lambda p, x: torch.tanh(dropped(affine(p.layers[0], x))),
    ),
    sample(
        "repeat",
        repeat(3, linear(3, 3), Tanh()),
        normal(5, 3),
        lambda p, x: repeated(p.stacked[0], x),
        kept=2 * 5 * 3 * 8,
    ),
    sample(
        "repeat, frozen in part",
        repeat(3, frozen(linear(3, 3)), linear(3, 3), Tanh()),
        normal(5, 3),
        lambda p, x: repeated(p.stacked[1], x, p.stacked[0].layers[0]),
        kept=(3 + 2) * 5 * 3 * 8,
    ),
    sample(
        "repeat, once",
        repeat(1, (linear(3, 3),)),
        normal(5, 3),
        lambda p, x: affine(tree.unstack(p.stacked[0][0], 1)[0], x),
    ),
    sample(
        "mixed_precision",
        mixed_precision(linear(3, 4), Tanh(), linear(4, 2), compute=torch.float64),
        normal(5, 3),
        lambda p, x: affine(p.layers[2], torch.tanh(affine(p.layers[0], x))),
        kept=5 * 4 * 8,
    ),
    sample(
        "mixed_precision, inside another",
        mixed_precision(linear(3, 4), Tanh(), mixed_precision(linear(4, 2), compute=torch.float64), compute=torch.float64),
        normal(5, 3),
        lambda p, x: affine(p.layers[2].layers[0], torch.tanh(affine(p.layers[0], x))),
        kept=5 * 4 * 8,
    ),
    sample(
        "over_time",
        over_time(linear(3, 4), Tanh(), linear(4, 2)),
        normal(5, 4, 3),
        lambda p, x: affine(p.layers[2], torch.tanh(affine(p.layers[0], x))),
        kept=5 * 4 * 4 * 8,
    ),
    sample(
        "over_time, of images",
        over_time(Flatten(), linear(12, 2)),
        normal(5, 4, 3, 2, 2),
        lambda p, x: affine(p.layers[1], x.flatten(2)),
    ),
    sample(
        "tied",
        tied(embedding(10, 4), residual(linear(4, 4), Tanh())),
        TOKENS,
        lambda p, x: tied_formula(p, x),  # noqa: PLW0108  # it is defined below
        kept=(2 * 12 + 12) * 4 * 8,
    ),
    sample(
        "frozen",
        frozen(linear(3, 4), Tanh(), linear(4, 2)),
        normal(5, 3),
        lambda p, x: affine(p.layers[2], torch.tanh(affine(p.layers[0], x))),
        kept=5 * 4 * 8,
    ),
    sample(
        "frozen, behind a trained layer",
        compose(linear(3, 4), frozen(residual(linear(4, 4))), linear(4, 2)),
        normal(5, 3),
        lambda p, x: affine(p[2], (h := affine(p[0], x)) + affine(p[1].layers[0].layers[0], h)),
        kept=2 * 5 * 4 * 8,
    ),
    sample(
        "compose",
        compose(linear(3, 4), ReLU(), linear(4, 2)),
        normal(5, 3),
        lambda p, x: affine(p[2], torch.relu(affine(p[0], x))),
        kept=5 * 4 * 8,
    ),
    sample(
        "compose, nested",
        compose(Flatten(), compose(linear(6, 3), Tanh()), residual((linear(3, 3), SiLU())), (Softmax(),)),
        normal(5, 2, 3),
        lambda p, x: nested(p[1][0], p[2].layers[0][0], x.flatten(1)),
        kept=2 * 5 * 3 * 8,
    ),
)


def tied_formula(p: "Tied[Literal[4], Residual[Linear[Literal[4], Literal[4]], Tanh]]", x: Tensor) -> Tensor:
    embedded = F.embedding(x, p.embedding.weight)
    return (embedded + torch.tanh(affine(p.layers[0].layers[0], embedded))) @ p.embedding.weight.t()


def repeated(layer: Linear, x: Tensor, before: Linear | None = None) -> Tensor:
    """Three times an affine map and tanh, perhaps behind another map."""
    for place in range(3):
        x = x if before is None else affine(tree.unstack(before, 3)[place], x)
        x = torch.tanh(affine(tree.unstack(layer, 3)[place], x))
    return x


def nested(first: Linear, second: Linear, x: Tensor) -> Tensor:
    hidden = torch.tanh(affine(first, x))
    return torch.softmax(hidden + F.silu(affine(second, hidden)), -1)
