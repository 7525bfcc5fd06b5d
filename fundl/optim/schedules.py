"""Schedules of learning rates: numbers as functions of the count of steps, made of tensor operations alone.

A traced step computes its schedule from the count in its state, so it never has to be traced anew as it counts.
All is computed in float64. The count may be a tensor of any shape, so that ``schedule(torch.arange(1000))`` is a curve to plot.
"""

import math
from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import ClassVar, final

import attrs
import torch
from torch import Tensor
from typing_extensions import override

from fundl._common.listed import ListedABC
from fundl._common.numbers import count_of_steps, fraction, non_negative, positive
from fundl._common.suggestions import with_suggestions
from fundl.optim.rate import value_at


class Schedule(metaclass=ListedABC):
    """A number of 0 or more for each step: a frozen, comparable record that is called with the count of steps done before.

    Whatever takes a schedule takes any other function from a tensor to a tensor as well.
    """

    __slots__ = ()

    _is_contract: ClassVar[bool] = True  # see Listed

    def __call__(self, count: Tensor | int) -> Tensor:
        """The value at a step, in float64, of the shape of the count; the first step has count 0."""
        steps = count if isinstance(count, Tensor) else _counted(count)
        return self.at(steps.to(torch.float64))

    @abstractmethod
    def at(self, count: Tensor) -> Tensor:
        """The value at a count that is given in float64."""


def _counted(count: object) -> Tensor:
    if isinstance(count, bool) or not isinstance(count, int | float):
        raise TypeError(f"a schedule is called with the count of steps done, an int or a tensor, not {count!r}")
    return torch.tensor(count)


@final
@attrs.frozen
class _Constant(Schedule):
    value: float = attrs.field(validator=non_negative)

    @override
    def at(self, count: Tensor) -> Tensor:
        return torch.full_like(count, self.value)


@with_suggestions
def constant_schedule(value: float) -> Schedule:
    """The same value at every step.

    Args:
        value: the rate, of 0 or more.

    >>> from fundl import constant_schedule
    >>> constant_schedule(0.1)(7)
    tensor(0.1000, dtype=torch.float64)
    """
    return _Constant(value)


@final
@attrs.frozen
class _Linear(Schedule):
    initial: float = attrs.field(validator=non_negative)
    final: float = attrs.field(validator=non_negative)
    steps: int = attrs.field(validator=count_of_steps)

    @override
    def at(self, count: Tensor) -> Tensor:
        return self.initial + (self.final - self.initial) * (count / self.steps).clamp(0, 1)


@with_suggestions
def linear_schedule(initial: float, final: float, steps: int) -> Schedule:
    """A line from one value to another, then constant: initial + (final - initial) min(t / steps, 1) at step t.

    Args:
        initial: the value at step 0.
        final: the value at step `steps`, and after.
        steps: how long it takes, at least 1.

    >>> from fundl import linear_schedule
    >>> linear_schedule(0.0, 1.0, steps=4)(torch.arange(6))
    tensor([0.0000, 0.2500, 0.5000, 0.7500, 1.0000, 1.0000], dtype=torch.float64)
    """
    return _Linear(initial, final, steps)


@final
@attrs.frozen
class _Step(Schedule):
    initial: float = attrs.field(validator=non_negative)
    factor: float = attrs.field(validator=non_negative)
    every: int = attrs.field(validator=count_of_steps)

    @override
    def at(self, count: Tensor) -> Tensor:
        return self.initial * torch.pow(self.factor, (count / self.every).floor())


@with_suggestions
def step_schedule(initial: float, *, factor: float = 0.1, every: int) -> Schedule:
    """A value that is multiplied by a factor every so many steps: initial factor^floor(t / every) at step t.

    Args:
        initial: the value at step 0.
        factor: of 0 or more.
        every: how many steps a value lasts, at least 1.

    >>> from fundl import step_schedule
    >>> step_schedule(1.0, factor=0.5, every=2)(torch.arange(5))
    tensor([1.0000, 1.0000, 0.5000, 0.5000, 0.2500], dtype=torch.float64)
    """
    return _Step(initial, factor, every)


@with_suggestions
def exponential_schedule(initial: float, factor: float) -> Schedule:
    """A value that is multiplied by a factor at each step: initial factor^t at step t.

    Args:
        initial: the value at step 0.
        factor: of 0 or more.

    >>> from fundl import exponential_schedule
    >>> exponential_schedule(1.0, 0.5)(torch.arange(4))
    tensor([1.0000, 0.5000, 0.2500, 0.1250], dtype=torch.float64)
    """
    return _Step(initial, factor, every=1)


@final
@attrs.frozen
class _InverseTime(Schedule):
    initial: float = attrs.field(validator=non_negative)
    decay: float = attrs.field(validator=non_negative)

    @override
    def at(self, count: Tensor) -> Tensor:
        return self.initial / (1 + self.decay * count)


@with_suggestions
def inverse_time_schedule(initial: float, decay: float) -> Schedule:
    """A value that decays like the inverse of the time: initial / (1 + decay t) at step t.

    Args:
        initial: the value at step 0.
        decay: per step, of 0 or more.

    Source:
        Robbins and Monro, A stochastic approximation method, 1951: the rates' sum diverges, that of their squares does not.

    >>> from fundl import inverse_time_schedule
    >>> inverse_time_schedule(1.0, 1.0)(torch.arange(4))
    tensor([1.0000, 0.5000, 0.3333, 0.2500], dtype=torch.float64)
    """
    return _InverseTime(initial, decay)


@final
@attrs.frozen
class _Cosine(Schedule):
    initial: float = attrs.field(validator=non_negative)
    final: float = attrs.field(validator=non_negative)
    steps: int = attrs.field(validator=count_of_steps)

    @override
    def at(self, count: Tensor) -> Tensor:
        return _between(self.initial, self.final, count / self.steps)


def _between(initial: float, final: float, part: Tensor) -> Tensor:
    """Half a cosine from one value to another, and constant before and after."""
    return final + (initial - final) * (1 + torch.cos(math.pi * part.clamp(0, 1))) / 2


@with_suggestions
def cosine_schedule(initial: float, steps: int, *, final: float = 0.0) -> Schedule:
    """Half a cosine from one value to another, then constant.

        final + (initial - final) (1 + cos(pi min(t / steps, 1))) / 2    at step t

    Args:
        initial: the value at step 0.
        steps: how long it takes, at least 1.
        final: the value at step `steps`, and after.

    Source:
        Loshchilov and Hutter, SGDR: stochastic gradient descent with warm restarts, 2017.

    >>> from fundl import cosine_schedule
    >>> cosine_schedule(1.0, steps=4)(torch.arange(6))
    tensor([1.0000, 0.8536, 0.5000, 0.1464, 0.0000, 0.0000], dtype=torch.float64)
    """
    return _Cosine(initial, final, steps)


@final
@attrs.frozen
class _OneCycle(Schedule):
    peak: float = attrs.field(validator=non_negative)
    steps: int = attrs.field(validator=count_of_steps)
    rise: float = attrs.field(validator=fraction)
    initial_divisor: float = attrs.field(validator=positive)
    final_divisor: float = attrs.field(validator=positive)

    def __attrs_post_init__(self) -> None:
        if self.rise * self.steps <= 1:
            raise ValueError(f"rise * steps must be more than 1 step, not {self.rise} * {self.steps}")

    @override
    def at(self, count: Tensor) -> Tensor:
        initial, top, last = self.peak / self.initial_divisor, self.rise * self.steps - 1, self.steps - 1
        rising = _between(initial, self.peak, count / top)
        falling = _between(self.peak, initial / self.final_divisor, (count - top) / (last - top))
        return torch.where(count <= top, rising, falling)


@with_suggestions
def one_cycle_schedule(
    peak: float, steps: int, *, rise: float = 0.3, initial_divisor: float = 25.0, final_divisor: float = 1e4
) -> Schedule:
    """Half a cosine up to the peak, and half a cosine down to far below where it began.

    It begins at initial = peak / initial_divisor, is at the peak at step rise * steps - 1, a fraction perhaps, and at
    initial / final_divisor at the last step, steps - 1, and after.

    Args:
        peak: the greatest value.
        steps: how many steps there are.
        rise: which part of them the rise takes, in (0, 1); rise * steps must be more than 1.
        initial_divisor: how many times less than the peak the first value is.
        final_divisor: how many times less than the first value the last one is.

    Source:
        Smith and Topin, Super-convergence: very fast training of neural networks using large learning rates, 2019.

    >>> from fundl import one_cycle_schedule
    >>> one_cycle_schedule(1.0, steps=6, rise=0.5, final_divisor=10.0)(torch.arange(6))
    tensor([0.0400, 0.5200, 1.0000, 0.7510, 0.2530, 0.0040], dtype=torch.float64)
    """
    return _OneCycle(peak, steps, rise, initial_divisor, final_divisor)


@final
@attrs.frozen
class _Joined(Schedule):
    schedules: tuple[Callable[[Tensor], Tensor], ...]
    boundaries: tuple[int, ...]

    def __attrs_post_init__(self) -> None:
        given: tuple[object, ...] = self.schedules
        for place, schedule in enumerate(given):
            if not callable(schedule):
                hint = f": write constant_schedule({schedule})" if isinstance(schedule, float | int) else ""
                raise TypeError(f"schedule {place} is {schedule!r}, not a schedule{hint}")
        if len(self.schedules) != len(self.boundaries) + 1:
            raise ValueError(
                f"{len(self.schedules)} schedules meet at {len(self.schedules) - 1} boundaries, not {len(self.boundaries)}"
            )
        if any(first >= second for first, second in pairwise((0, *self.boundaries))):
            raise ValueError(f"the boundaries must be above 0 and grow, not {self.boundaries}")

    @override
    def at(self, count: Tensor) -> Tensor:
        value = _at(self.schedules[0], count)
        for schedule, boundary in zip(self.schedules[1:], self.boundaries, strict=True):
            value = torch.where(count < boundary, value, _at(schedule, count - boundary))
        return value


def _at(schedule: Callable[[Tensor], Tensor], count: Tensor) -> Tensor:
    """The value of a schedule, or of a user's function, which is given an integer as from an optimizer."""
    if isinstance(schedule, Schedule):
        return schedule.at(count)
    return torch.as_tensor(value_at(schedule, count.to(torch.int64)), dtype=torch.float64, device=count.device)


@with_suggestions
def join_schedules(schedules: Sequence[Callable[[Tensor], Tensor]], boundaries: Sequence[int]) -> Schedule:
    """Schedules one after the other, each counting its steps from where it begins.

    Args:
        schedules: in the order of time; functions from a count to a number as well.
        boundaries: the steps at which the second schedule, the third... take over; one less than schedules.

    >>> from fundl import constant_schedule, join_schedules, linear_schedule
    >>> join_schedules([linear_schedule(0.0, 1.0, steps=2), constant_schedule(0.5)], boundaries=[3])(torch.arange(5))
    tensor([0.0000, 0.5000, 1.0000, 0.5000, 0.5000], dtype=torch.float64)
    """
    for name, given in ("schedules", schedules), ("boundaries", boundaries):
        if not isinstance(given, Iterable):
            raise TypeError(
                f"{name} are several, in a list: write [{'10' if name == 'boundaries' else 'schedule'}], not {given!r}"
            )
    steps = tuple(boundaries)
    if not all(isinstance(step, int) for step in steps):
        raise TypeError(f"the boundaries are steps, each an int, not {steps}")
    return _Joined(tuple(schedules), steps)


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
