"""Checks of numbers that a user gives: attrs validators that say which is wrong, and what it can be."""

import math
from collections.abc import Callable
from typing import Final, TypeAlias

import attrs

_Check: TypeAlias = "Callable[[object, attrs.Attribute[float], float], None]"


def _all_but(fits: Callable[[float], bool], what: str) -> _Check:
    """Refuse all but numbers that fit."""

    def check(_record: object, field: "attrs.Attribute[float]", value: float) -> None:
        if not fits(number(field.name, value)):
            raise ValueError(f"{field.name} must be {what}, not {value}")

    return check


non_negative: Final = _all_but(lambda value: 0 <= value < math.inf, "a finite number of 0 or more")
positive: Final = _all_but(lambda value: 0 < value < math.inf, "a finite number above 0")
finite: Final = _all_but(math.isfinite, "a finite number")
fraction: Final = _all_but(lambda value: 0 <= value < 1, "in [0, 1)")


def count_of_steps(_record: object, field: "attrs.Attribute[int]", value: int) -> None:
    """Refuse all but integers of 1 or more."""
    if type(value) is not int:
        raise TypeError(f"{field.name} must be an int, not {value!r}")
    if value < 1:
        raise ValueError(f"{field.name} must be 1 or more, not {value}")


def number(name: str, value: float) -> float:
    """The value, which must be a number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number, not {value!r}")
    return value
