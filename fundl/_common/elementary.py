"""Logarithm, exponential function and square root of whole tensors in float64, the same to the bit wherever they are computed.

They are polynomials of a fixed order of products and sums, and no functions of a library: each operation is rounded as IEEE 754
says, so that the numbers are the same wherever no compiler contracts a product and a sum. draws.c does the same.
"""

import math
from typing import Final

import torch
from torch import Tensor

from fundl._common.looping import is_exported

_MANTISSA: Final = 52
_BIAS: Final = 1023
"""How a float64 lies in memory: the bits of its mantissa without the first one, and what is added to its exponent."""

# log m = 2 s + 2 s^3 / 3 + 2 s^5 / 5 + ..., where s = (m - 1) / (m + 1) is below 0.172: the rest is less than 2**-55 of it.
_LOGARITHM: Final = tuple(2.0 / odd for odd in range(19, 1, -2))
# exp r = 1 + r + r^2 / 2 + ..., where r is below 0.347: the rest is less than 2**-57.
_EXPONENTIAL: Final = tuple(1.0 / math.factorial(power) for power in range(13, -1, -1))
_LOG_2_HIGH: Final = math.floor(math.log(2) * 2.0**32) * 2.0**-32  # times any exponent, it is exact
_LOG_2_LOW: Final = 1.9082149292705877e-10  # what is left of log(2)
_LEAST: Final = -700.0  # its exponential is no subnormal number


def logarithm(x: Tensor, scale: int) -> Tensor:
    """log(x / 2**scale), of numbers from 1 to 2**63."""
    exponent, fraction = _by_halving(x, scale) if is_exported() else _from_bits(x, scale)
    is_low = fraction < math.sqrt(0.5)
    fraction = torch.where(is_low, fraction * 2.0, fraction)  # from sqrt(1 / 2) to sqrt(2)
    exponent = torch.where(is_low, exponent - 1.0, exponent)
    s = (fraction - 1.0) / (fraction + 1.0)
    square = s * s
    return exponent * math.log(2) + (s * 2.0 + s * square * polynomial(_LOGARITHM, square))


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


def exponential(x: Tensor) -> Tensor:
    """exp(x), of numbers of 0 or less; 0 of those below -700.

    exp(n log 2 + r) = 2**n exp(r), where n is the integer that leaves r between -log(2) / 2 and log(2) / 2.
    """
    near = x.clamp(min=_LEAST)
    power = (near * (1 / math.log(2))).round()
    rest = near - power * _LOG_2_HIGH - power * _LOG_2_LOW
    found = _halved(polynomial(_EXPONENTIAL, rest), power)
    return torch.where(x < _LEAST, 0.0, found)


def _halved(x: Tensor, power: Tensor) -> Tensor:
    """X 2**power, of whole numbers from -1022 to 0."""
    if not is_exported():
        return x * ((power.to(torch.int64) + _BIAS) << _MANTISSA).view(torch.float64)
    for halvings in (512, 256, 128, 64, 32, 16, 8, 4, 2, 1):
        is_low = power <= -halvings
        x = torch.where(is_low, x * 0.5**halvings, x)
        power = torch.where(is_low, power + halvings, power)
    return x


def square_root(x: Tensor) -> Tensor:
    """Rounded as IEEE 754 says. torch's own is MKL's, off by one in the last bit of one number in a hundred.

    A root y is mended by (x - y y) / 2 y, with the halves of y, high and low, whose products are exact.
    """
    y = x.sqrt()
    scaled = y * (2.0**27 + 1)
    high = scaled - (scaled - y)
    low = y - high
    rest = x - high * high - high * low * 2.0 - low * low
    return y + rest / (y * 2.0).clamp(min=torch.finfo(torch.float64).tiny)


def polynomial(coefficients: tuple[float, ...], x: Tensor) -> Tensor:
    """By Horner's rule, from the coefficient of the highest power on."""
    value = torch.full_like(x, coefficients[0])
    for coefficient in coefficients[1:]:
        value = value * x + coefficient
    return value
