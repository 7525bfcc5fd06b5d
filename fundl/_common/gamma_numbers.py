"""Gamma numbers from normal and exponential ones, by the method of Marsaglia and Tsang, in float64.

Of a concentration a of 1 or more, with d = a - 1/3 and c = 1 / (3 sqrt(d)): d t^3, where t = 1 + w, w = c x, and x is normal.
If t is above 0, it is accepted with the probability exp(x^2 / 2 + d - d t^3 + 3 d log t), whose exponent, the surplus, is
3 d (log(1 + w) - w + w^2 / 2 - w^3 / 3): if an exponential number is greater than minus the surplus. draws.c does the same.

Source: Marsaglia and Tsang, "A simple method for generating gamma variables", 2000.
"""

from typing import Final

import torch
from torch import Tensor

from fundl._common.elementary import logarithm, polynomial, square_root

ROUNDS: Final = 12
"""Of numbers that are tried; at least 95 in a hundred are accepted, and no round gives one with a probability below 2**-52."""

_SCALE: Final = 53
_NEAR: Final = 0.125  # where the sum of the series is right to the last bits, which its parts are not
_SERIES: Final = tuple((-1.0) ** (power + 1) / power for power in range(19, 3, -1))


def thirds(normal: Tensor, waiting: Tensor, concentration: Tensor) -> Tensor:
    """The t of each number, or 0 where it is not accepted, of normal and of exponential numbers."""
    d = concentration - 1 / 3
    w = normal * (1.0 / (square_root(d) * 3.0))
    t = w + 1.0
    return torch.where((t > 0.0) & (waiting + _surplus(d, w, t) > 0.0), t, 0.0)


def _surplus(d: Tensor, w: Tensor, t: Tensor) -> Tensor:
    """3 d (log(1 + w) - w + w^2 / 2 - w^3 / 3), which is not above 0."""
    square = w * w
    near = square * square * polynomial(_SERIES, w)
    far = logarithm(torch.where(t > 0.0, t, 1.0) * 2.0**_SCALE, _SCALE) - w + square * 0.5 - square * w * (1 / 3)
    return d * 3.0 * torch.where((w > -_NEAR) & (w < _NEAR), near, far)


def cubed(t: Tensor, concentration: Tensor) -> Tensor:
    """D t^3."""
    return (concentration - 1 / 3) * t * t * t
