"""Uniform numbers that are drawn from a key."""

import torch
from torch import Tensor

from fundl._common import draws, representable
from fundl._common.keys import require_key_and_shape
from fundl.random._keys import Key
from fundl.random._requirements import require_numbers


def uniform(
    key: Key, shape: tuple[int, ...], *, low: float = 0.0, high: float = 1.0, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Random numbers from low up to, but never, high: low + (high - low) k / 2**d, where k has d random bits.

    d is the precision of the dtype: 53 bits for float64, 24 for float32, 11 for float16, 8 for bfloat16. In [0, 1) these
    numbers are exact. Elsewhere they are computed in float64, rounded once, and where that would give high, the next
    number below it is taken. In float64 itself, whether the last bit is that of two roundings or of one (where a compiler
    fuses the multiplication with the addition) is the one thing that may differ between machines.

    Args:
        key: a key that nothing else was drawn from.
        shape: of the result.
        low: the least number that may come.
        high: the bound that never comes. Both bounds are rounded to the dtype.
        dtype: float64, float32, float16 or bfloat16.

    Raises:
        TypeError: the dtype is none of these.
        ValueError: no number of the dtype is in [low, high), or a bound is too large for the dtype.

    >>> from fundl import key, random
    >>> random.uniform(key(0), (3,))
    tensor([0.3990, 0.8805, 0.7357])
    """
    digits = representable.digits_of(dtype)
    require_key_and_shape(key, shape)
    if type(low) is not float or type(high) is not float:
        require_numbers(low=low, high=high)
    if low == 0 and high == 1:
        return draws.unit(key, shape, digits, dtype)
    is_compiling = torch.compiler.is_compiling()  # which warns of caches
    bounds = representable.bounds if is_compiling else representable.kept_bounds
    span, greatest = bounds(low, high, dtype)
    return draws.uniform(key, shape, digits, dtype, span=span, low=low, greatest=greatest)
