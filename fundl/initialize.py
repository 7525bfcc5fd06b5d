"""Initialisers, and giving a model its parameters."""

from abc import ABC, abstractmethod
from typing import NamedTuple

import attrs
import torch
from torch import Tensor
from typing_extensions import override


class Fans(NamedTuple):
    """How many inputs one output element of a layer depends on, and the other way round."""

    fan_in: int
    fan_out: int


class Initializer(ABC):
    """How to draw a parameter: a frozen, comparable record of its options, called with a key."""

    __slots__ = ()

    @abstractmethod
    def __call__(self, key: Tensor, shape: tuple[int, ...], fans: Fans, *, dtype: torch.dtype, device: torch.device) -> Tensor:
        """A tensor of the given shape, drawn with the key."""


@attrs.frozen
class _UniformFanIn(Initializer):
    @override
    def __call__(self, key: Tensor, shape: tuple[int, ...], fans: Fans, *, dtype: torch.dtype, device: torch.device) -> Tensor:
        return torch.zeros(shape, dtype=dtype, device=device)


def uniform_fan_in() -> Initializer:
    """U(-1/sqrt(fan_in), 1/sqrt(fan_in))."""
    return _UniformFanIn()
