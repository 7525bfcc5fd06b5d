"""Normal numbers that are drawn from a key, also between bounds."""

import math

import torch
from torch import Tensor

from fundl._common import draws, representable
from fundl._common.keys import require_key_and_shape
from fundl.random._keys import Key
from fundl.random._requirements import require_numbers


def normal(
    key: Key, shape: tuple[int, ...], *, mean: float = 0.0, std: float = 1.0, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Random numbers of the normal distribution, by the method of Box and Muller.

    Two at a time: mean + std sqrt(-2 log u) (cos(2 pi v), sin(2 pi v)), with u uniform in (0, 1] and v in [0, 1).

    u and v have 53 bits, so no number is further than 8.58 std from the mean. All is computed in float64, without functions of
    a library, and rounded once. Where a compiler contracts products and sums, as those for GPUs do, the last bit of float64
    may differ, which shows in float32 less than once in 10**8 numbers.
    Key, shape and dtype are as in `uniform`.

    Args:
        mean: of the distribution.
        std: its standard deviation, not negative.

    Raises:
        ValueError: std is negative, or the numbers could be too large for the dtype.

    Source: Box and Muller, "A note on the generation of random normal deviates", 1958.

    >>> from fundl import key, random
    >>> random.normal(key(0), (3,))
    tensor([-0.1215, -1.3500, -0.0819])
    """
    _require_scale(mean, std, dtype, reach=9.0)
    require_key_and_shape(key, shape)
    return draws.normal(key, shape, dtype, std=std, mean=mean)


def truncated_normal(
    key: Key,
    shape: tuple[int, ...],
    *,
    mean: float = 0.0,
    std: float = 1.0,
    low: float = -2.0,
    high: float = 2.0,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Random numbers of the normal distribution, given that they are between two bounds.

    By inversion: mean + std Q(P(low) + (P(high) - P(low)) u), with u uniform in (0, 1), P the distribution function of the
    standard normal distribution, and Q the inverse of P.

    mean and std are those of the distribution before it is truncated, and as in `normal`, like all but the bounds. All is
    computed in float64 and rounded once, but never across a bound, if a number of the dtype is between the two.

    Args:
        low: the least number that may come, in standard deviations from the mean; may be -inf.
        high: the greatest, likewise; may be inf.

    Raises:
        ValueError: as `normal`; or low is not less than high, or hardly any probability is between them (less than 1e-300,
            some 37 standard deviations away).

    >>> from fundl import key, random
    >>> random.truncated_normal(key(0), (3,), std=0.02)
    tensor([-0.0049,  0.0120,  0.0330])
    """
    if type(low) is not float or type(high) is not float:
        require_numbers(low=low, high=high)
    if not low < high:
        raise ValueError(f"the bounds of a truncated normal must be low < high, not low={low}, high={high}")
    _require_scale(mean, std, dtype, reach=min(max(abs(low), abs(high)), 38.0))
    mirrored = low > 0  # small probabilities are precise, those near 1 are not
    left, right = (-high, -low) if mirrored else (low, high)
    least = _normal_probability(left)
    mass = _normal_probability(right) - least
    if mass < 1e-300:
        raise ValueError(f"less than 1e-300 of the normal distribution is between low={low} and high={high}")
    require_key_and_shape(key, shape)
    halves = 2 * draws.integers(key, shape, 52) + 1  # odd: u is neither 0 nor 1
    probabilities = halves.to(torch.float64) * (mass * 2.0**-53) + least
    deviations: Tensor = torch.special.ndtri(probabilities).clamp(left, right)
    numbers = deviations * (-std if mirrored else std) + mean
    ends = _ends(mean + low * std, mean + high * std, dtype) if std else (mean, mean)  # 0 times infinity is not a number
    return numbers.clamp(*ends).to(dtype)


def _ends(low: float, high: float, dtype: torch.dtype) -> tuple[float, float]:
    """The least and the greatest number of a dtype in [low, high]; if none is, the bounds, which then are rounded alike."""
    least, greatest = representable.rounded_to(low, dtype, math.ceil), representable.rounded_to(high, dtype, math.floor)
    return (least, greatest) if least <= greatest else (low, high)


def _normal_probability(x: float) -> float:
    """The probability that a standard normal number is less than x, precise where it is small."""
    return math.erfc(-x / math.sqrt(2)) / 2


def _require_scale(mean: float, std: float, dtype: torch.dtype, *, reach: float) -> None:
    """Raise unless all numbers within so many standard deviations are finite in the dtype."""
    representable.digits_of(dtype)
    if type(mean) is not float or type(std) is not float:
        require_numbers(mean=mean, std=std)
    if not std >= 0:
        raise ValueError(f"a standard deviation is a number of 0 or more, not {std}")
    if not abs(mean) + reach * std <= representable.GREATEST[dtype]:
        raise ValueError(f"numbers of mean={mean} and std={std} are not all finite in {dtype}")
