"""Exponential numbers that are drawn from a key, and Gumbel's."""

import torch
from torch import Tensor

from fundl._common import draws, waiting_times
from fundl._common.keys import require_key_and_shape
from fundl.random._keys import Key
from fundl.random._requirements import require_scale


def exponential(key: Key, shape: tuple[int, ...], *, scale: float = 1.0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Random numbers of the exponential distribution, with the density exp(-x / scale) / scale above 0: -scale log u.

    u = (2 k + 1) / 2**53 is uniform in (0, 1), where k has 52 random bits, so no number is 0, unless the dtype makes it so, or
    greater than 36.8 scale. All is computed in float64, without functions of a library, and rounded once, as in `normal`. Key,
    shape and dtype are as in `uniform`.

    Args:
        scale: the mean, one divided by the rate; not negative.

    Raises:
        ValueError: the scale is negative, or the numbers could be too large for the dtype.

    >>> from fundl import key, random
    >>> random.exponential(key(0), (3,))
    tensor([0.9187, 0.3069, 0.0282])
    """
    require_scale(scale, dtype, greatest=waiting_times.LONGEST)
    require_key_and_shape(key, shape)
    return draws.exponential(key, shape, dtype, scale=scale)


def gumbel(
    key: Key, shape: tuple[int, ...], *, location: float = 0.0, scale: float = 1.0, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Random numbers of Gumbel's distribution, P(x < z) = exp(-exp(-(z - location) / scale)): location - scale log(-log u).

    It is that of the greatest of many numbers. u is as in `exponential`: no number is further below the location than 3.7
    scale, or above it than 36.8 scale. All is computed in float64, without functions of a library, and rounded once, as in
    `normal`. Key, shape and dtype are as in `uniform`.

    Args:
        location: where the density is greatest; the mean is location + 0.5772 scale.
        scale: the standard deviation divided by pi / sqrt(6), not negative.

    Raises:
        ValueError: the scale is negative, or the numbers could be too large for the dtype.

    Source: Gumbel, "Statistics of extremes", 1958.

    >>> from fundl import key, random
    >>> random.gumbel(key(0), (3,))
    tensor([0.0848, 1.1812, 3.5702])
    """
    require_scale(scale, dtype, greatest=waiting_times.LONGEST, location=location)
    require_key_and_shape(key, shape)
    return draws.gumbel(key, shape, dtype, scale=scale, location=location)
