"""What is said of the parameters of a distribution that are none."""

import math
from numbers import Real

import torch
from torch import Tensor

from fundl._common import representable
from fundl._common.arguments import said
from fundl._common.modes import is_readable


def require_numbers(**numbers: object) -> None:
    for name, number in numbers.items():
        if isinstance(number, bool) or not isinstance(number, Real):
            raise TypeError(f"{name} must be a number, not {number!r}")


def require_scale(scale: float, dtype: torch.dtype, *, greatest: float, location: float = 0.0) -> None:
    """Raise unless location + scale x is finite in the dtype, of all x up to the greatest."""
    representable.digits_of(dtype)
    if type(scale) is not float or type(location) is not float:
        require_numbers(scale=scale, location=location)
    if not scale >= 0:
        raise ValueError(f"a scale is a number of 0 or more, not {scale}")
    if not abs(location) + greatest * scale <= representable.GREATEST[dtype]:
        where = f"location={location} and " if location else ""
        raise ValueError(f"numbers of {where}scale={scale} are not all finite in {dtype}")


def require_floating(name: str, value: object) -> None:
    """Raise unless a parameter is a tensor of floating-point numbers."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor of floating-point numbers, not {said(value)}")
    if not value.is_floating_point():
        raise TypeError(f"{name} must be a tensor of floating-point numbers, not of {value.dtype}")


def positive(name: str, value: float | Tensor, shape: tuple[int, ...], device: torch.device) -> Tensor:
    """A parameter above 0, or one for each number of a shape, in float64; raises unless it is."""
    if not isinstance(value, Tensor):
        require_numbers(**{name: value})
        if not 0 < value < math.inf:
            raise ValueError(f"{name} must be a finite number above 0, not {value}")
        return torch.full((), value, dtype=torch.float64, device=device)
    require_floating(name, value)
    broadcast = len(value.shape) <= len(shape) and all(
        own in {1, size} for own, size in zip(reversed(value.shape), reversed(shape), strict=False)
    )
    if not broadcast:
        raise ValueError(f"{name} of shape {tuple(value.shape)} does not go with numbers of shape {tuple(shape)}")
    if is_readable(value) and not ((value > 0) & value.isfinite()).all():
        raise ValueError(f"{name} must be of finite numbers above 0, and not all of these are")
    numbers = value.detach().to(device, torch.float64)
    return numbers if is_readable(numbers) else torch.where(numbers > 0, numbers, math.nan)
