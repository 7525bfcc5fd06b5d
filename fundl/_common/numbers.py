"""Checks of numbers that a user gives: attrs validators that say which is wrong, and what it can be."""

import math
from collections.abc import Callable
from typing import Final

import attrs


@attrs.frozen
class Bounds:
    """Refuses all numbers but those that fit: a validator of attrs."""

    fits: Callable[[float], bool]
    words: str

    def __call__(self, _record: object, field: "attrs.Attribute[float]", value: float) -> None:
        """Raise unless a field's value fits."""
        self.require(field.name, value)

    def require(self, name: str, value: float) -> None:
        """Raise unless what is called so fits."""
        if not self.fits(number(name, value)):
            raise ValueError(f"{name} must be {self.words}, not {value}")


non_negative: Final = Bounds(lambda value: 0 <= value < math.inf, "a finite number of 0 or more")
positive: Final = Bounds(lambda value: 0 < value < math.inf, "a finite number above 0")
finite: Final = Bounds(math.isfinite, "a finite number")
fraction: Final = Bounds(lambda value: 0 <= value < 1, "in [0, 1)")
proper_fraction: Final = Bounds(lambda value: 0 < value < 1, "above 0 and below 1")
share: Final = Bounds(lambda value: 0 <= value <= 1, "in [0, 1]")

BY_WORDS: Final = {bounds.words: bounds for bounds in (non_negative, positive, finite, fraction, proper_fraction, share)}
"""All of them, for whoever remembers one by its words."""


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
