"""Learning rates: numbers, or schedules."""

import math
from collections.abc import Callable
from typing import TypeAlias

import attrs
from torch import Tensor

from fundl._common import suggestions
from fundl._common.numbers import number
from fundl.tree import describe

Rate: TypeAlias = float | Callable[[Tensor], Tensor]
"""A learning rate: a number, or a schedule, from the count of steps (int64, no axes) to a number (float64, no axes)."""


def learning_rate(_record: object, _field: "attrs.Attribute[Rate]", value: Rate) -> None:
    """Refuse all but schedules and finite numbers of 0 or more."""
    if callable(value):
        if isinstance(value, type) or getattr(value, "__name__", "").endswith("_schedule"):
            name = suggestions.name_of(value)
            raise TypeError(f"{name} makes schedules, and is none: call it, {name}(...)")
        return
    if not 0 <= number("the learning rate", value) < math.inf:
        raise ValueError(f"the learning rate must be a finite number of 0 or more, or a schedule, not {value}")


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
