"""Normal numbers from integers, by the method of Box and Muller, in float64.

Logarithm, sine and cosine are polynomials, see `elementary`. draws.c does the same.

Source: Box and Muller, "A note on the generation of random normal deviates", 1958.
"""

import math
from typing import Final

import torch
from torch import Tensor

from fundl._common.elementary import logarithm, polynomial, square_root

BITS: Final = 53

# For angles up to pi / 4, from the last term of the series to the first but for t and 1.
_SINE: Final = tuple((-1.0) ** (odd // 2) / math.factorial(odd) for odd in range(15, 1, -2))
_COSINE: Final = tuple((-1.0) ** (even // 2) / math.factorial(even) for even in range(16, 0, -2))


def pairs(radius: Tensor, angle: Tensor) -> Tensor:
    """sqrt(-2 log u) (cos 2 pi v, sin 2 pi v), as (2, n), with u = (radius + 1) / 2**53 and v = angle / 2**53."""
    length = square_root(logarithm((radius + 1).to(torch.float64), BITS) * -2.0)
    quarter = (angle + 2 ** (BITS - 3)) >> (BITS - 2)  # the nearest, from 0 to 4
    t = (angle - (quarter << (BITS - 2))).to(torch.float64) * (2 * math.pi * 2.0**-BITS)
    square = t * t
    sine, cosine = t + t * square * polynomial(_SINE, square), polynomial(_COSINE, square) * square + 1.0
    is_odd = (quarter & 1) == 1
    x, y = torch.where(is_odd, sine, cosine), torch.where(is_odd, cosine, sine)
    x, y = torch.where(((quarter + 1) & 2) == 2, -x, x), torch.where((quarter & 2) == 2, -y, y)
    return torch.stack((length * x, length * y))
