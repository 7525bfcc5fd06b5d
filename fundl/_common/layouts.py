"""Tensors of the same numbers that lie in memory in other orders: for checks that no layer takes one for granted."""

import math
from collections.abc import Callable, Mapping
from typing import Final, TypeAlias

import torch
from torch import Tensor

Layout: TypeAlias = Callable[[Tensor], Tensor]
"""From a tensor to one of its shape in another layout; only of `expanded` are the numbers others."""


def transposed(x: Tensor) -> Tensor:
    """The same numbers, in memory with the first axis last."""
    return x.movedim(0, -1).contiguous().movedim(-1, 0) if x.ndim > 1 else x


def channels_last(x: Tensor) -> Tensor:
    """The same numbers, in memory with the second axis last, as images may have their channels."""
    return x.movedim(1, -1).contiguous().movedim(-1, 1) if x.ndim > 2 else x


def strided(x: Tensor) -> Tensor:
    """The same numbers, every second of a tensor twice as large; between them is NaN, or zero for integers."""
    between = torch.full_like(x, math.nan) if x.is_floating_point() else torch.zeros_like(x)
    return torch.stack((x, between), -1)[..., 0]


def expanded(x: Tensor) -> Tensor:
    """The first along axis 0 in place of all of them, once in memory."""
    return x[:1].expand(x.shape) if x.ndim else x


LAYOUTS: Final[Mapping[str, Layout]] = {
    "transposed": transposed,
    "with the channels last": channels_last,
    "strided": strided,
    "expanded": expanded,
}
"""All of them, by what messages call them."""
