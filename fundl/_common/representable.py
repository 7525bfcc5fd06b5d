"""Which numbers a dtype can hold: their precision, the greatest and the smallest, and rounding to them."""

import functools
import math
from collections.abc import Callable
from typing import Final

import torch

_DIGITS: Final = {torch.float64: 53, torch.float32: 24, torch.float16: 11, torch.bfloat16: 8}
GREATEST: Final = {dtype: torch.finfo(dtype).max for dtype in _DIGITS}
_SMALLEST: Final = {dtype: torch.finfo(dtype).tiny * torch.finfo(dtype).eps for dtype in _DIGITS}


def digits_of(dtype: torch.dtype) -> int:
    """The precision of a dtype, in bits."""
    try:
        return _DIGITS[dtype]
    except (KeyError, TypeError):  # of what cannot be hashed
        raise TypeError(f"random numbers come in float64, float32, float16 and bfloat16, not in {dtype}") from None


def bounds(low: float, high: float, dtype: torch.dtype) -> tuple[float, float]:
    """What a number that is drawn from [low, high) is multiplied by, after its random bits, and the greatest that may come."""
    digits, greatest = _DIGITS[dtype], greatest_below(low, high, dtype)
    # The product of k and a span of 53 - d bits is exact, so that it is all one whether the addition is fused with it.
    span = high - low if dtype == torch.float64 else rounded(high - low, 53 - digits)
    return span * 2.0**-digits, greatest


kept_bounds: Final = functools.lru_cache(bounds)  # layers of a kind have the same


def greatest_below(low: float, high: float, dtype: torch.dtype) -> float:
    """The greatest number in [low, high), both rounded to the dtype; raises if there is none."""
    most = GREATEST[dtype]
    if not (abs(low) <= most and abs(high) <= most and math.isfinite(high - low)):
        raise ValueError(f"[low, high) = [{low}, {high}) is not a range of finite {dtype} numbers")
    end = rounded_to(high, dtype)
    if not rounded_to(low, dtype) < end:
        raise ValueError(f"no {dtype} number is in [low, high) = [{low}, {high}): low must be less than high")
    return rounded_to(math.nextafter(end, -math.inf), dtype, math.floor)


def rounded_to(x: float, dtype: torch.dtype, rounding: Callable[[float], int] = round) -> float:
    """The nearest number of the dtype, or what another rounding than to the nearest gives; infinities stay."""
    return x if math.isinf(x) else rounded(x, _DIGITS[dtype], smallest=_SMALLEST[dtype], rounding=rounding)


def rounded(x: float, digits: int, *, smallest: float = 0.0, rounding: Callable[[float], int] = round) -> float:
    """The number rounded to so many binary digits, and to a multiple of the smallest."""
    unit = max(math.ldexp(1.0, math.frexp(x)[1] - digits), smallest)
    return rounding(x / unit) * unit
