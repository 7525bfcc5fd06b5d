"""Checks of hyper-parameters: attrs validators that say which value is wrong, and what it can be."""

import math
from collections.abc import Callable
from typing import TypeAlias

import attrs
from torch import Tensor

from fundl.tree import describe

Rate: TypeAlias = float | Callable[[Tensor], Tensor]
"""A learning rate: a number, or a schedule, from the count of steps (int64, no axes) to a number (float64, no axes)."""


def non_negative(_record: object, field: "attrs.Attribute[float]", value: float) -> None:
    """Refuse all but finite numbers of 0 or more."""
    if not 0 <= _number(field.name, value) < math.inf:
        raise ValueError(f"{field.name} must be a finite number of 0 or more, not {value}")


def positive(_record: object, field: "attrs.Attribute[float]", value: float) -> None:
    """Refuse all but finite numbers above 0."""
    if not 0 < _number(field.name, value) < math.inf:
        raise ValueError(f"{field.name} must be a finite number above 0, not {value}")


def finite(_record: object, field: "attrs.Attribute[float]", value: float) -> None:
    """Refuse all but finite numbers."""
    if not math.isfinite(_number(field.name, value)):
        raise ValueError(f"{field.name} must be a finite number, not {value}")


def fraction(_record: object, field: "attrs.Attribute[float]", value: float) -> None:
    """Refuse all but numbers from 0 up to, but not, 1."""
    if not 0 <= _number(field.name, value) < 1:
        raise ValueError(f"{field.name} must be in [0, 1), not {value}")


def count_of_steps(_record: object, field: "attrs.Attribute[int]", value: int) -> None:
    """Refuse all but integers of 1 or more."""
    if type(value) is not int:
        raise TypeError(f"{field.name} must be an int, not {value!r}")
    if value < 1:
        raise ValueError(f"{field.name} must be 1 or more, not {value}")


def learning_rate(_record: object, _field: "attrs.Attribute[Rate]", value: Rate) -> None:
    """Refuse all but schedules and finite numbers of 0 or more."""
    if callable(value):
        return
    if not 0 <= _number("the learning rate", value) < math.inf:
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


def _number(name: str, value: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number, not {value!r}")
    return value
