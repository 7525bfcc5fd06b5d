"""Schedules made of others, or of values that are given for some steps."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Final, Literal, final

import attrs
import torch
from torch import Tensor
from typing_extensions import override

from fundl._common.numbers import non_negative
from fundl._common.suggestions import with_suggestions
from fundl.optim.rate import value_at
from fundl.optim.schedules import Schedule, between, cosine_schedule, linear_schedule
from fundl.tree import describe

AnySchedule = Callable[[Tensor], Tensor]


def _schedules(given: object) -> tuple[AnySchedule, ...]:
    """The schedules that are given, or an error that says which is none."""
    if not isinstance(given, Iterable):
        raise TypeError(f"schedules are several, in a list: write [schedule], not {given!r}")
    schedules = tuple(given)
    for place, schedule in enumerate(schedules):
        if not callable(schedule):
            hint = f": write constant_schedule({schedule})" if isinstance(schedule, float | int) else ""
            raise TypeError(f"schedule {place} is {schedule!r}, not a schedule{hint}")
    return schedules


def _boundaries(given: object) -> tuple[int, ...]:
    """The steps that are given, or an error that says what they must be."""
    if not isinstance(given, Iterable):
        raise TypeError(f"boundaries are several, in a list: write [10], not {given!r}")
    steps = tuple(given)
    if not all(type(step) is int for step in steps):
        raise TypeError(f"the boundaries are steps, each an int, not {steps}")
    if any(first >= second for first, second in pairwise((0, *steps))):
        raise ValueError(f"the boundaries must be above 0 and grow, not {steps}")
    return steps


def _at(schedule: AnySchedule, count: Tensor) -> Tensor:
    """The value of a schedule, or of a user's function, which is given an integer as from an optimizer."""
    if isinstance(schedule, Schedule):
        return schedule.at(count)
    return torch.as_tensor(value_at(schedule, count.to(torch.int64)), dtype=torch.float64, device=count.device)


@final
@attrs.frozen
class _Joined(Schedule):
    schedules: tuple[AnySchedule, ...] = attrs.field(converter=_schedules)
    boundaries: tuple[int, ...] = attrs.field(converter=_boundaries)

    def __attrs_post_init__(self) -> None:
        if len(self.schedules) != len(self.boundaries) + 1:
            raise ValueError(
                f"{len(self.schedules)} schedules meet at {len(self.schedules) - 1} boundaries, not {len(self.boundaries)}"
            )

    @override
    def at(self, count: Tensor) -> Tensor:
        value = _at(self.schedules[0], count)
        for schedule, boundary in zip(self.schedules[1:], self.boundaries, strict=True):
            value = torch.where(count < boundary, value, _at(schedule, count - boundary))
        return value


@with_suggestions
def join_schedules(schedules: Sequence[AnySchedule], boundaries: Sequence[int]) -> Schedule:
    """Schedules one after the other, each counting its steps from where it begins.

    Args:
        schedules: in the order of time; functions from a count to a number as well.
        boundaries: the steps at which the second schedule, the third... take over; one less than schedules.

    >>> from fundl import constant_schedule, join_schedules, linear_schedule
    >>> join_schedules([linear_schedule(0.0, 1.0, steps=2), constant_schedule(0.5)], boundaries=[3])(torch.arange(5))
    tensor([0.0000, 0.5000, 1.0000, 0.5000, 0.5000], dtype=torch.float64)
    """
    return _Joined(schedules, boundaries)


@final
@attrs.frozen
class _Product(Schedule):
    schedules: tuple[AnySchedule, ...] = attrs.field(converter=_schedules)

    def __attrs_post_init__(self) -> None:
        if not self.schedules:
            raise ValueError("schedules are one or more: of none there is no product")

    @override
    def at(self, count: Tensor) -> Tensor:
        value = _at(self.schedules[0], count)
        for schedule in self.schedules[1:]:
            value = value * _at(schedule, count)
        return value


@with_suggestions
def multiply_schedules(schedules: Sequence[AnySchedule]) -> Schedule:
    """The product of schedules, all of which count from the first step: of a warm-up from 0 to 1 and a decay, say.

    Args:
        schedules: at least 1; functions from a count to a number as well.

    >>> from fundl import linear_schedule, multiply_schedules, step_schedule
    >>> multiply_schedules([linear_schedule(0.0, 1.0, steps=2), step_schedule(0.1, factor=0.5, every=3)])(torch.arange(5))
    tensor([0.0000, 0.0500, 0.1000, 0.0500, 0.0500], dtype=torch.float64)
    """
    return _Product(schedules)


def _values(given: object) -> tuple[float, ...]:
    if not isinstance(given, Iterable) or isinstance(given, str | Tensor):
        raise TypeError(f"values are numbers, in a list: write [0.1, 0.01], not {given!r}")
    values = tuple(given)
    for place, value in enumerate(values):
        non_negative.require(f"value {place}", value)
    return values


@final
@attrs.frozen
class _Piecewise(Schedule):
    values: tuple[float, ...] = attrs.field(converter=_values)
    boundaries: tuple[int, ...] = attrs.field(converter=_boundaries)

    def __attrs_post_init__(self) -> None:
        if len(self.values) != len(self.boundaries) + 1:
            raise ValueError(f"{len(self.values)} values meet at {len(self.values) - 1} boundaries, not {len(self.boundaries)}")

    @override
    def at(self, count: Tensor) -> Tensor:
        value = torch.full_like(count, self.values[0])
        for new, boundary in zip(self.values[1:], self.boundaries, strict=True):
            value = torch.where(count < boundary, value, new)
        return value


@with_suggestions
def piecewise_schedule(values: Sequence[float], boundaries: Sequence[int]) -> Schedule:
    """Constants, one after the other: the value number i from the boundary number i - 1 up to, but not at, number i.

    Args:
        values: of 0 or more.
        boundaries: the steps at which the second value, the third... take over; one less than values.

    >>> from fundl import piecewise_schedule
    >>> piecewise_schedule([1.0, 0.5, 0.1], boundaries=[2, 4])(torch.arange(6))
    tensor([1.0000, 1.0000, 0.5000, 0.5000, 0.1000, 0.1000], dtype=torch.float64)
    """
    return _Piecewise(values, boundaries)


_SHAPES: Final = ("linear", "cosine")


def _points(given: object) -> tuple[tuple[int, float], ...]:
    """The points that are given, in the order of their steps, or an error that says what they must be."""
    if not isinstance(given, Mapping):
        raise TypeError(f"points are a dict of values by their steps, such as {{0: 0.1, 100: 0.01}}, not {describe(given)}")
    for step, value in given.items():
        if type(step) is not int or step < 0:
            raise (ValueError if type(step) is int else TypeError)(f"the steps of points are ints of 0 or more, not {step!r}")
        non_negative.require(f"the value of the point at step {step}", value)
    if len(given) < 2:
        raise ValueError(f"points are two or more, to be joined, not {given}: write constant_schedule(value) for one")
    return tuple(sorted(given.items()))


@final
@attrs.frozen
class _Interpolated(Schedule):
    points: tuple[tuple[int, float], ...] = attrs.field(converter=_points)
    shape: Literal["linear", "cosine"] = attrs.field()

    @shape.validator
    def _known(self, _field: "attrs.Attribute[str]", value: object) -> None:
        if value not in _SHAPES:
            raise (ValueError if isinstance(value, str) else TypeError)(f'shape is "linear" or "cosine", not {value!r}')

    @override
    def at(self, count: Tensor) -> Tensor:
        value = torch.full_like(count, self.points[0][1])
        for (begin, first), (end, second) in pairwise(self.points):
            part = (count - begin) / (end - begin)
            is_line = self.shape == "linear"
            here = first + (second - first) * part.clamp(0, 1) if is_line else between(first, second, part)
            value = torch.where(count <= begin, value, here)
        return value


@with_suggestions
def interpolated_schedule(points: Mapping[int, float], *, shape: Literal["linear", "cosine"] = "linear") -> Schedule:
    """Values at some steps, and lines between them, or halves of cosines; constant before the first and after the last.

    Between a point (a, v) and the next one (b, w), at step t: v + (w - v) s, with s = (t - a) / (b - a), or with
    s = (1 - cos(pi (t - a) / (b - a))) / 2.

    Args:
        points: for two steps or more, the value there, of 0 or more.
        shape: "linear" or "cosine".

    >>> from fundl import interpolated_schedule
    >>> interpolated_schedule({0: 0.0, 2: 1.0, 6: 0.2})(torch.arange(8))
    tensor([0.0000, 0.5000, 1.0000, 0.8000, 0.6000, 0.4000, 0.2000, 0.2000],
           dtype=torch.float64)
    """
    return _Interpolated(points, shape)


@with_suggestions
def warmup_cosine_schedule(peak: float, *, warmup_steps: int, steps: int, initial: float = 0.0, final: float = 0.0) -> Schedule:
    """A line up to the peak, then half a cosine down: `linear_schedule` and `cosine_schedule`, joined.

    Args:
        peak: the greatest value, at step `warmup_steps`.
        warmup_steps: how long the rise takes, at least 1.
        steps: how long rise and fall take together, more than `warmup_steps`.
        initial: the value at step 0.
        final: the value at step `steps`, and after.

    Source:
        Goyal et al., Accurate, large minibatch SGD, 2017 (the warm-up); Loshchilov and Hutter, SGDR, 2017 (the cosine).

    >>> from fundl import warmup_cosine_schedule
    >>> warmup_cosine_schedule(1.0, warmup_steps=2, steps=6)(torch.arange(6))
    tensor([0.0000, 0.5000, 1.0000, 0.8536, 0.5000, 0.1464], dtype=torch.float64)
    """
    if steps <= warmup_steps:
        raise ValueError(f"steps must be more than warmup_steps={warmup_steps}, not {steps}: it counts the rise and the fall")
    rise = linear_schedule(initial, peak, warmup_steps)
    return join_schedules((rise, cosine_schedule(peak, steps - warmup_steps, final=final)), boundaries=(warmup_steps,))
