"""Sample layers: what tells steps of a sequence apart."""

from typing import Final

import torch
from torch import Tensor

from fundl import Rotary
from tests.samples.table import normal, sample


def turned(x: Tensor, base: float) -> Tensor:
    """Rotary positions, by the multiplication of complex numbers: pair i is a number that is turned by t base^(-2 i / d)."""
    half = x.shape[-1] // 2
    frequencies = torch.tensor([base ** (-2 * i / x.shape[-1]) for i in range(half)], dtype=torch.float64)
    angles = torch.outer(torch.arange(x.shape[-2], dtype=torch.float64), frequencies)
    numbers = torch.complex(x[..., :half], x[..., half:]) * torch.polar(torch.ones_like(angles), angles)
    return torch.cat((numbers.real, numbers.imag), -1)


SAMPLES: Final = (
    sample("Rotary", Rotary(), normal(5, 3, 4), lambda p, x: turned(x, p.base), kept=2 * 3 * 4 * 8),
    sample("Rotary of heads", Rotary(base=50.0), normal(5, 2, 3, 6), lambda p, x: turned(x, p.base), kept=2 * 3 * 6 * 8),
)
