"""Exponential numbers from integers, and Gumbel's, which are their logarithms, in float64.

The logarithm is a polynomial, see `elementary`. draws.c does the same.
"""

from collections.abc import Callable, Mapping
from typing import Final, Literal

import torch
from torch import Tensor

from fundl._common.elementary import logarithm

BITS: Final = 53
LONGEST: Final = 36.8
"""No number is greater: -log 2**-53 is 36.74."""


def exponential(integers: Tensor) -> Tensor:
    """-log u, with u = (2 k + 1) / 2**53, of 2 k or 2 k + 1: u is neither 0 nor 1."""
    return -logarithm((integers | 1).to(torch.float64), BITS)


def gumbel(integers: Tensor) -> Tensor:
    """-log -log u, with the same u: from -3.61 to 36.74."""
    return -logarithm(exponential(integers) * 2.0**BITS, BITS)


OF: Final[Mapping[Literal["exponential", "gumbel"], Callable[[Tensor], Tensor]]] = {
    "exponential": exponential,
    "gumbel": gumbel,
}
