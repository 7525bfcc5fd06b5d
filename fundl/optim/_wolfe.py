"""A line search: along a direction, a point that is low enough, and flat enough."""

import math
from collections.abc import Callable
from typing import Final

import attrs
from torch import Tensor

_NARROW: Final = 1e-9  # of so small steps no more can be told


@attrs.frozen(eq=False)
class Point:
    """A point on the line.

    Args:
        position: how far along the direction.
        value: of the function.
        slope: its derivative along the direction.
        grad: its gradient.
    """

    position: float
    value: float
    slope: float
    grad: Tensor


@attrs.frozen(eq=False)
class Line:
    """A line through params.

    Args:
        at: gives the point at a position.
        start: the point at 0, from where it goes downhill.
        length: the largest number of the direction, by which it is judged what is too narrow.
    """

    at: Callable[[float], Point]
    start: Point
    length: float


@attrs.frozen
class Wolfe:
    """The strong Wolfe conditions for a point at t on a line that begins with the value f and the slope f' < 0.

        f(t) <= f + decrease t f',    |f'(t)| <= curvature |f'|

    Args:
        decrease, curvature: 0 < decrease < curvature < 1.
        evaluations: how many points are tried at most.

    Source:
        Nocedal and Wright, Numerical optimization, 2006, algorithms 3.5 and 3.6, with the safeguards of Schmidt, minFunc, 2005.
    """

    decrease: float
    curvature: float
    evaluations: int

    def search(self, line: Line, first: float) -> Point:
        """A point that meets the conditions, or the lowest found after so many; the first position is given."""
        start = line.start
        before, now, tried = start, line.at(first), 1
        while tried < self.evaluations:
            is_high = self._is_high(now, start) or (tried > 2 and now.value >= before.value)
            if not is_high and self._is_flat(now, start):
                return now
            if is_high or now.slope >= 0:
                return self._between(line, before, now, tried)
            bounds = now.position + 0.01 * (now.position - before.position), 10 * now.position
            before, now, tried = now, line.at(_lowest(before, now, *bounds)), tried + 1
        return now if now.value <= start.value else start

    def _between(self, line: Line, one: Point, other: Point, tried: int) -> Point:
        """A point between two, of which the lower one is low enough and has the other one downhill."""
        start = line.start
        low, high = (one, other) if not one.value > other.value else (other, one)
        was_near = False
        while tried < self.evaluations and abs(high.position - low.position) * line.length >= _NARROW:
            left, right = sorted((low.position, high.position))
            position, was_near = _inside(_lowest(low, high, left, right), left, right, was_near=was_near)
            now, tried = line.at(position), tried + 1
            if self._is_high(now, start) or now.value >= low.value:
                high = now
                if high.value < low.value:
                    low, high = high, low
            else:
                if self._is_flat(now, start):
                    return now
                if now.slope * (high.position - low.position) >= 0:
                    high = low
                low = now
        return low

    def _is_high(self, point: Point, start: Point) -> bool:
        """Whether it is too high; so is what is no number."""
        return not point.value <= start.value + self.decrease * point.position * start.slope

    def _is_flat(self, point: Point, start: Point) -> bool:
        return abs(point.slope) <= -self.curvature * start.slope


def _inside(position: float, left: float, right: float, *, was_near: bool) -> tuple[float, bool]:
    """A position that is not near an end for the second time, or beyond it; and whether it is near one."""
    margin = 0.1 * (right - left)
    if min(right - position, position - left) >= margin:
        return position, False
    if was_near or position >= right or position <= left:
        return (right - margin if abs(position - right) < abs(position - left) else left + margin), False
    return position, True


def _lowest(one: Point, other: Point, least: float, most: float) -> float:
    """Where, within bounds, the cubic polynomial with the values and slopes of two points is lowest; else their middle."""
    first, second = (one, other) if one.position <= other.position else (other, one)
    width = second.position - first.position
    if width <= 0 or not math.isfinite(first.value + second.value + first.slope + second.slope):
        return (least + most) / 2
    mean = first.slope + second.slope - 3 * (second.value - first.value) / width
    square = mean * mean - first.slope * second.slope
    if square < 0 or (divisor := second.slope - first.slope + 2 * math.sqrt(square)) == 0:
        return (least + most) / 2
    found = second.position - width * (second.slope + math.sqrt(square) - mean) / divisor
    return min(max(found, least), most)
