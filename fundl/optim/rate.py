"""Learning rates: numbers, or schedules."""

import math
from collections.abc import Callable
from typing import Final, TypeAlias

import attrs
from torch import Tensor

from fundl._common import suggestions
from fundl._common.modes import is_readable
from fundl._common.numbers import number
from fundl.tree import describe

Rate: TypeAlias = float | Callable[[Tensor], Tensor]
"""A learning rate, a number or a schedule, which goes from the count of steps (int64, no axes) to a number (float64, no axes).

>>> from fundl import Rate, cosine_schedule
>>> rates: list[Rate] = [0.1, cosine_schedule(0.1, 1000), lambda count: 0.1 / (1 + count)]
"""


def learning_rate(_record: object, _field: "attrs.Attribute[Rate]", value: Rate) -> None:
    """Refuse all but schedules and finite numbers of 0 or more."""
    if callable(value):
        if isinstance(value, type) or getattr(value, "__name__", "").endswith("_schedule"):
            name = suggestions.name_of(value)
            raise TypeError(f"{name} makes schedules, but is not one itself: call it, {name}(...)")
        return
    if not 0 <= number("the learning rate", value) < math.inf:
        raise ValueError(f"the learning rate must be a finite number of 0 or more, or a schedule, not {value}")


_ROUNDING: Final = 1e-12  # what should be 0 may come out below


def rate_at(schedule: Callable[[Tensor], Tensor], count: Tensor) -> float | Tensor:
    """The learning rate that a schedule gives for a step, which is looked at where that costs nothing."""
    rate = value_at(schedule, count)
    if not isinstance(rate, Tensor) or (not rate.ndim and is_readable(rate)):
        value = float(rate)
        if not -_ROUNDING <= value < math.inf:
            raise ValueError(
                f"the learning rate must be a finite number of 0 or more, but the schedule gives {value:g} after"
                f" {int(count)} steps"
            )
    return rate


def value_at(schedule: Callable[[Tensor], Tensor], count: Tensor) -> float | Tensor:
    """The value of a schedule, or of another function, which may give a plain number instead of a tensor."""
    value: object = schedule(count)
    if isinstance(value, Tensor) and value.shape == count.shape:
        return value
    if isinstance(value, (int, float)):
        return value
    raise TypeError(
        f"a schedule gives a number for each count, a tensor of shape {tuple(count.shape)} here, not {describe(value)}"
    )
