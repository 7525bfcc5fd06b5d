"""Schedules of learning rates: numbers as functions of the count of steps, made of tensor operations alone.

A traced step computes its schedule from the count in its state, so it never has to be traced anew as it counts.
All is computed in float64. The count may be a tensor of any shape, so that ``schedule(torch.arange(1000))`` is a curve to plot.
"""

import math
from abc import abstractmethod
from typing import ClassVar, final

import attrs
import torch
from torch import Tensor
from typing_extensions import override

from fundl._common.listed import ListedABC
from fundl._common.numbers import count_of_steps, non_negative, positive
from fundl._common.suggestions import with_suggestions


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
class _Polynomial(Schedule):
    initial: float = attrs.field(validator=non_negative)
    final: float = attrs.field(validator=non_negative)
    steps: int = attrs.field(validator=count_of_steps)
    power: float = attrs.field(validator=positive)

    @override
    def at(self, count: Tensor) -> Tensor:
        return self.final + (self.initial - self.final) * torch.pow(1 - (count / self.steps).clamp(0, 1), self.power)


@with_suggestions
def polynomial_schedule(initial: float, final: float, steps: int, *, power: float = 2.0) -> Schedule:
    """A power of a line from one value to another, then constant.

        final + (initial - final) (1 - min(t / steps, 1))^power    at step t

    Args:
        initial: the value at step 0.
        final: the value at step `steps`, and after.
        steps: how long it takes, at least 1.
        power: above 0; 1 is a line, and with more it is quick at first and slow at the end.

    Source:
        Chen et al., DeepLab: semantic image segmentation with deep convolutional nets, 2017, where the power is 0.9.

    >>> from fundl import polynomial_schedule
    >>> polynomial_schedule(1.0, 0.0, steps=4)(torch.arange(6))
    tensor([1.0000, 0.5625, 0.2500, 0.0625, 0.0000, 0.0000], dtype=torch.float64)
    """
    return _Polynomial(initial, final, steps, power)


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


def _optional(record: object, field: "attrs.Attribute[float]", value: float | None) -> None:
    if value is not None:
        non_negative(record, field, value)


@final
@attrs.frozen
class _Exponential(Schedule):
    initial: float = attrs.field(validator=non_negative)
    factor: float = attrs.field(validator=non_negative)
    final: float | None = attrs.field(validator=_optional)

    def __attrs_post_init__(self) -> None:
        if self.final is None:
            return
        if self.final > self.initial if self.factor <= 1 else self.final < self.initial:
            raise ValueError(f"final={self.final} is never reached from initial={self.initial} by a factor of {self.factor}")

    @override
    def at(self, count: Tensor) -> Tensor:
        value = self.initial * torch.pow(self.factor, count)
        if self.final is None:
            return value
        return value.clamp(min=self.final) if self.factor <= 1 else value.clamp(max=self.final)


@with_suggestions
def exponential_schedule(initial: float, factor: float, *, final: float | None = None) -> Schedule:
    """A value that is multiplied by a factor at each step: initial factor^t at step t.

    Args:
        initial: the value at step 0.
        factor: of 0 or more.
        final: where it stays once it is there: never less, or, with a factor above 1, never more; None for no bound.

    >>> from fundl import exponential_schedule
    >>> exponential_schedule(1.0, 0.5, final=0.2)(torch.arange(4))
    tensor([1.0000, 0.5000, 0.2500, 0.2000], dtype=torch.float64)
    """
    return _Exponential(initial, factor, final)


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
        return between(self.initial, self.final, count / self.steps)


def between(initial: float, final: float, part: Tensor) -> Tensor:
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
