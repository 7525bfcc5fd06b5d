"""Normal numbers from integers, by the method of Box and Muller, in float64.

Logarithm, sine and cosine are polynomials of a fixed order of products and sums, and no functions of a library: each operation
is rounded as IEEE 754 says, so that the numbers are the same to the bit wherever no compiler contracts a product and a sum.
draws.c does the same.

Source: Box and Muller, "A note on the generation of random normal deviates", 1958.
"""

import math
from typing import Final

import torch
from torch import Tensor

from fundl._common.looping import is_exported

BITS: Final = 53

_MANTISSA: Final = 52
_BIAS: Final = 1023
"""How a float64 lies in memory: the bits of its mantissa without the first one, and what is added to its exponent."""

# log m = 2 s + 2 s^3 / 3 + 2 s^5 / 5 + ..., where s = (m - 1) / (m + 1) is below 0.172: the rest is less than 2**-55 of it.
_LOGARITHM: Final = tuple(2.0 / odd for odd in range(19, 1, -2))
# For angles up to pi / 4 likewise, from the last term to the first but for t and 1.
_SINE: Final = tuple((-1.0) ** (odd // 2) / math.factorial(odd) for odd in range(15, 1, -2))
_COSINE: Final = tuple((-1.0) ** (even // 2) / math.factorial(even) for even in range(16, 0, -2))


def pairs(radius: Tensor, angle: Tensor) -> Tensor:
    """sqrt(-2 log u) (cos 2 pi v, sin 2 pi v), as (2, n), with u = (radius + 1) / 2**53 and v = angle / 2**53."""
    length = _square_root(_logarithm((radius + 1).to(torch.float64), BITS) * -2.0)
    quarter = (angle + 2 ** (BITS - 3)) >> (BITS - 2)  # the nearest, from 0 to 4
    t = (angle - (quarter << (BITS - 2))).to(torch.float64) * (2 * math.pi * 2.0**-BITS)
    square = t * t
    sine, cosine = t + t * square * _polynomial(_SINE, square), _polynomial(_COSINE, square) * square + 1.0
    is_odd = (quarter & 1) == 1
    x, y = torch.where(is_odd, sine, cosine), torch.where(is_odd, cosine, sine)
    x, y = torch.where(((quarter + 1) & 2) == 2, -x, x), torch.where((quarter & 2) == 2, -y, y)
    return torch.stack((length * x, length * y))


def _logarithm(x: Tensor, scale: int) -> Tensor:
    """log(x / 2**scale), of numbers from 1 to 2**scale."""
    exponent, fraction = _by_halving(x, scale) if is_exported() else _from_bits(x, scale)
    is_low = fraction < math.sqrt(0.5)
    fraction = torch.where(is_low, fraction * 2.0, fraction)  # from sqrt(1 / 2) to sqrt(2)
    exponent = torch.where(is_low, exponent - 1.0, exponent)
    s = (fraction - 1.0) / (fraction + 1.0)
    square = s * s
    return exponent * math.log(2) + (s * 2.0 + s * square * _polynomial(_LOGARITHM, square))


def _from_bits(x: Tensor, scale: int) -> tuple[Tensor, Tensor]:
    """The e and f with x / 2**scale = f 2**e, f from 1 / 2 to 1; torch 2.13 compiles no frexp."""
    bits = x.view(torch.int64)
    exponent = ((bits >> _MANTISSA) - (_BIAS - 1 + scale)).to(torch.float64)
    return exponent, ((bits & ((1 << _MANTISSA) - 1)) | ((_BIAS - 1) << _MANTISSA)).view(torch.float64)


def _by_halving(x: Tensor, scale: int) -> tuple[Tensor, Tensor]:
    """The same where bits cannot be looked at: halved 32 times if that leaves 1 or more, then 16 times, ..., all exact."""
    exponent, fraction = torch.full_like(x, 1.0 - scale), x * 0.5
    for halvings in (32, 16, 8, 4, 2, 1):
        is_high = fraction >= 0.5 * 2.0**halvings
        fraction = torch.where(is_high, fraction * 0.5**halvings, fraction)
        exponent = torch.where(is_high, exponent + halvings, exponent)
    return exponent, fraction


def _square_root(x: Tensor) -> Tensor:
    """Rounded as IEEE 754 says. torch's own is MKL's, off by one in the last bit of one number in a hundred.

    A root y is mended by (x - y y) / 2 y, with the halves of y, high and low, whose products are exact.
    """
    y = x.sqrt()
    scaled = y * (2.0**27 + 1)
    high = scaled - (scaled - y)
    low = y - high
    rest = x - high * high - high * low * 2.0 - low * low
    return y + rest / (y * 2.0).clamp(min=torch.finfo(torch.float64).tiny)


def _polynomial(coefficients: tuple[float, ...], x: Tensor) -> Tensor:
    """By Horner's rule, from the coefficient of the highest power on."""
    value = torch.full_like(x, coefficients[0])
    for coefficient in coefficients[1:]:
        value = value * x + coefficient
    return value
