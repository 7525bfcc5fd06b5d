"""Checks of numbers that a user gives: attrs validators that say which is wrong, and what it can be."""

import math

import attrs


def non_negative(_record: object, field: "attrs.Attribute[float]", value: float) -> None:
    """Refuse all but finite numbers of 0 or more."""
    if not 0 <= number(field.name, value) < math.inf:
        raise ValueError(f"{field.name} must be a finite number of 0 or more, not {value}")


def positive(_record: object, field: "attrs.Attribute[float]", value: float) -> None:
    """Refuse all but finite numbers above 0."""
    if not 0 < number(field.name, value) < math.inf:
        raise ValueError(f"{field.name} must be a finite number above 0, not {value}")


def finite(_record: object, field: "attrs.Attribute[float]", value: float) -> None:
    """Refuse all but finite numbers."""
    if not math.isfinite(number(field.name, value)):
        raise ValueError(f"{field.name} must be a finite number, not {value}")


def fraction(_record: object, field: "attrs.Attribute[float]", value: float) -> None:
    """Refuse all but numbers from 0 up to, but not, 1."""
    if not 0 <= number(field.name, value) < 1:
        raise ValueError(f"{field.name} must be in [0, 1), not {value}")


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
