"""Schedules that go up and down: once, or again and again."""

from typing import final

import attrs
import torch
from torch import Tensor
from typing_extensions import override

from fundl._common.numbers import count_of_steps, fraction, non_negative, positive, share
from fundl._common.suggestions import with_suggestions
from fundl.optim.schedules import Schedule, between


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
        rising = between(initial, self.peak, count / top)
        falling = between(self.peak, initial / self.final_divisor, (count - top) / (last - top))
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
class _WarmRestarts(Schedule):
    initial: float = attrs.field(validator=non_negative)
    steps: int = attrs.field(validator=count_of_steps)
    growth: int = attrs.field(validator=count_of_steps)
    decay: float = attrs.field(validator=share)
    final: float = attrs.field(validator=non_negative)

    @override
    def at(self, count: Tensor) -> Tensor:
        cycle, begin, length = self._cycle(count)
        peak = self.final + (self.initial - self.final) * torch.pow(self.decay, cycle)
        return self.final + (peak - self.final) * between(1.0, 0.0, (count - begin) / length)

    def _cycle(self, count: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Which cycle a step is in, where that begins, and how long it is: all of them integers, in float64."""
        if self.growth == 1:
            cycle = (count / self.steps).floor()
            return cycle, cycle * self.steps, torch.full_like(count, self.steps)
        ratio = count * (self.growth - 1) / self.steps + 1
        cycle = (ratio.log() / torch.full_like(count, self.growth).log()).floor().clamp(min=0)
        # The logarithm may be rounded across an integer.
        cycle = torch.where(self._begin(cycle + 1) <= count, cycle + 1, cycle)
        cycle = torch.where(self._begin(cycle) > count, cycle - 1, cycle)
        begin = self._begin(cycle)
        return cycle, begin, self._begin(cycle + 1) - begin

    def _begin(self, cycle: Tensor) -> Tensor:
        """The sum of the lengths before: steps (growth^cycle - 1) / (growth - 1)."""
        return ((torch.pow(self.growth, cycle).round() - 1) * self.steps / (self.growth - 1)).round()


@with_suggestions
def warm_restarts_schedule(initial: float, steps: int, *, growth: int = 1, decay: float = 1.0, final: float = 0.0) -> Schedule:
    """Half a cosine down, again and again: each time it starts anew from the top, and may take longer.

    Cycle n = 0, 1, ... takes steps growth^n steps. At step s of them

        final + (initial - final) decay^n (1 + cos(pi s / (steps growth^n))) / 2

    Args:
        initial: the value at step 0.
        steps: how long the first cycle takes, at least 1.
        growth: how many times longer each next cycle is, an int of 1 or more.
        decay: how much of the height above `final` each next cycle begins with, in [0, 1].
        final: what the value comes down to.

    Source:
        Loshchilov and Hutter, SGDR: stochastic gradient descent with warm restarts, 2017.

    >>> from fundl import warm_restarts_schedule
    >>> warm_restarts_schedule(1.0, 2, growth=2, decay=0.5)(torch.arange(7))
    tensor([1.0000, 0.5000, 0.5000, 0.4268, 0.2500, 0.0732, 0.2500],
           dtype=torch.float64)
    """
    return _WarmRestarts(initial, steps, growth, decay, final)


@final
@attrs.frozen
class _Cyclic(Schedule):
    low: float = attrs.field(validator=non_negative)
    high: float = attrs.field(validator=non_negative)
    rise: int = attrs.field(validator=count_of_steps)
    fall: int = attrs.field(validator=count_of_steps)
    decay_per_cycle: float = attrs.field(validator=share)
    decay_per_step: float = attrs.field(validator=share)

    def __attrs_post_init__(self) -> None:
        if self.low > self.high:
            raise ValueError(f"low must be at most high={self.high}, not {self.low}")

    @override
    def at(self, count: Tensor) -> Tensor:
        length = self.rise + self.fall
        cycle = (count / length).floor()
        place = count - cycle * length
        height = torch.where(place <= self.rise, place / self.rise, (length - place) / self.fall)
        size = torch.pow(self.decay_per_cycle, cycle) * torch.pow(self.decay_per_step, count)
        return self.low + (self.high - self.low) * size * height


@with_suggestions
def cyclic_schedule(
    low: float,
    high: float,
    *,
    rise: int,
    fall: int | None = None,
    decay_per_cycle: float = 1.0,
    decay_per_step: float = 1.0,
) -> Schedule:
    """Triangles: a line up, a line down, again and again; later ones may be lower.

    At step t, which is step s of cycle n = 0, 1, ...

        low + (high - low) decay_per_cycle^n decay_per_step^t h,    h = s / rise up to rise, (rise + fall - s) / fall after it

    With ``decay_per_cycle=0.5`` it is what is known as triangular2, with a `decay_per_step` what is known as exp_range.

    Args:
        low: the value at step 0, and at the beginning of each cycle.
        high: the value at step `rise`.
        rise: how long the way up takes, at least 1.
        fall: how long the way down takes; by default as long.
        decay_per_cycle, decay_per_step: how much of the height is left from one to the next, in [0, 1].

    Source:
        Smith, Cyclical learning rates for training neural networks, 2017.

    >>> from fundl import cyclic_schedule
    >>> cyclic_schedule(0.0, 1.0, rise=2, decay_per_cycle=0.5)(torch.arange(9))
    tensor([0.0000, 0.5000, 1.0000, 0.5000, 0.0000, 0.2500, 0.5000, 0.2500, 0.0000],
           dtype=torch.float64)
    """
    return _Cyclic(low, high, rise, rise if fall is None else fall, decay_per_cycle, decay_per_step)
