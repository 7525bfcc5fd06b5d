"""Fans: how many numbers a layer adds up for one of its output, and for one of its input's gradient.

By them an initialiser keeps the variance from layer to layer: weights of the variance 1 / fan_in make outputs of variance 1 of
inputs of variance 1, and weights of the variance 1 / fan_out do so for gradients.
"""

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from fundl._common.listed import ListedABC
from fundl._common.suggestions import with_suggestions
from fundl.tree import Record


class Fans(NamedTuple):
    """How many inputs one output element of a layer depends on, and the other way round; on average, where they differ."""

    fan_in: float
    fan_out: float

    @property
    def fan_mean(self) -> float:
        """The mean of the two."""
        return (self.fan_in + self.fan_out) / 2


@with_suggestions
def fans(shape: tuple[int, ...]) -> Fans:
    """The fans of a weight whose first axis is that of the outputs, the second that of the inputs.

        fan_in = shape[1] r,    fan_out = shape[0] r,    r = product of shape[2:], the receptive field

    Args:
        shape: of the weight, (out, in) or (out, in, *kernel).

    Raises:
        ValueError: the shape has fewer than two axes.

    >>> from fundl import fans
    >>> fans((16, 3, 5, 5))
    Fans(fan_in=75, fan_out=400)
    """
    if not isinstance(shape, tuple):
        raise TypeError(f"a shape is a tuple of ints, such as (16, 3, 5, 5), not {shape!r}")
    if len(shape) < 2:
        raise ValueError(f"fans are of a weight of two or more axes, (out, in, *kernel), not of shape {tuple(shape)}")
    receptive_field = math.prod(shape[2:])
    return Fans(shape[1] * receptive_field, shape[0] * receptive_field)


class OwnFans(metaclass=ListedABC):
    """A layer whose fans are not to be read off the shape of its weight, as `fans` does: it says them itself."""

    __slots__ = ()

    @abstractmethod
    def own_fans(self) -> Fans:
        """The fans of all parameters of the layer."""


def fans_of(record: Record, name: str, leaf: Tensor, leaves: Sequence[Tensor]) -> Fans:
    """The fans of the leaf in a record's field, and of all its leaves: those that a layer says, or those of the shape.

    A bias has those of its weight.
    """
    if isinstance(record, OwnFans):
        return record.own_fans()
    of_bias: object = getattr(record, name.replace("bias", "weight"), None)
    for other in (leaf, of_bias, *leaves):
        if isinstance(other, Tensor) and other.ndim >= 2:
            return fans(other.shape)
    return Fans(1, 1)
