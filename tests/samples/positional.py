"""Sample layers: what tells steps of a sequence apart."""

import math
from typing import Final

import torch
from torch import Tensor

from fundl import Rotary, SinusoidalPositions, learned_positions
from tests.samples.table import normal, sample


def turned(x: Tensor, base: float) -> Tensor:
    """Rotary positions, by the multiplication of complex numbers: pair i is a number that is turned by t base^(-2 i / d)."""
    half = x.shape[-1] // 2
    frequencies = torch.tensor([base ** (-2 * i / x.shape[-1]) for i in range(half)], dtype=torch.float64)
    angles = torch.outer(torch.arange(x.shape[-2], dtype=torch.float64), frequencies)
    numbers = torch.complex(x[..., :half], x[..., half:]) * torch.polar(torch.ones_like(angles), angles)
    return torch.cat((numbers.real, numbers.imag), -1)


def waves(x: Tensor) -> Tensor:
    """x and a sine or a cosine for each of its numbers, one after the other."""
    steps, features = x.shape[-2:]
    numbers = [
        [(math.cos if j % 2 else math.sin)(t / 10_000 ** ((j - j % 2) / features)) for j in range(features)]
        for t in range(steps)
    ]
    return x + torch.tensor(numbers, dtype=x.dtype).reshape(steps, features)


SAMPLES: Final = (
    sample("LearnedPositions", learned_positions(3, 4), normal(5, 3, 4), lambda p, x: x + p.weight),
    sample("LearnedPositions, shorter", learned_positions(7, 4), normal(5, 3, 4), lambda p, x: x + p.weight[:3]),
    sample("LearnedPositions, one sequence", learned_positions(7, 4), normal(3, 4), lambda p, x: x + p.weight[: len(x)]),
    sample("SinusoidalPositions", SinusoidalPositions(), normal(5, 3, 4), lambda _, x: waves(x)),
    sample("SinusoidalPositions, odd", SinusoidalPositions(), normal(5, 2, 3, 7), lambda _, x: waves(x)),
    sample("Rotary", Rotary(), normal(5, 3, 4), lambda p, x: turned(x, p.base), kept=2 * 3 * 4 * 8),
    sample("Rotary of heads", Rotary(base=50.0), normal(5, 2, 3, 6), lambda p, x: turned(x, p.base), kept=2 * 3 * 6 * 8),
)
