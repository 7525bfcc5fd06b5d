"""What normalising layers share: their parameters, and what they refuse."""

import math

import torch
from torch import Tensor
from typing_extensions import TypeVar

from fundl.shapes import AnySize

Channels = TypeVar("Channels", bound=int, covariant=True, default=AnySize)
Count = TypeVar("Count", bound=int)


def scale_and_shift(*sizes: int, bias: bool, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """A weight and a bias of these sizes, without values."""
    weight = torch.empty(sizes, dtype=dtype, device="meta")
    return weight, torch.empty_like(weight) if bias else None


def require_eps(eps: float) -> None:
    """Raise unless a number can be added to a variance."""
    if not 0 <= eps < math.inf:
        raise ValueError(f"eps is added to the variance, and must be a finite number of 0 or more, not {eps}")


def require_channels(layer: str, *parameters: Tensor | None, x: Tensor, error: Exception | None = None) -> None:
    """Raise unless the input has the channels of the parameters."""
    shape = tuple(x.shape)
    if x.ndim < 2:
        raise ValueError(f"{layer} expects an input of shape (B, channels, ...), but the input's shape is {shape}") from error
    for parameter in parameters:
        if parameter is not None and parameter.shape[0] != x.shape[1]:
            count = parameter.shape[0]
            raise ValueError(
                f"{layer} expects {count} channel{'s' * (count != 1)}, but the input's shape is {shape}: its axis 1 must be of"
                f" size {count}"
            ) from error
