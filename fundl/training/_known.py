"""What is known of batches, for the loss and for metrics: sums of which means are made, sums of other kinds, and rows."""

import abc
import itertools
import math
from collections.abc import Sequence
from typing import Final, Generic, Literal, final

import torch
from torch import Tensor
from typing_extensions import override

from fundl import tree
from fundl._common.modes import no_grad
from fundl.collectives import reduced
from fundl.groups import Group, device_of
from fundl.layer import Prediction, Target
from fundl.metrics.metric import Gathering, Metric, gathering_of
from fundl.runs import Runs
from fundl.training.history import Known
from fundl.weights import Weight, by_rows, rule_of

_GATHERED: Final = 4096  # so many numbers of batches are kept one by one


class Mean:
    """The weighted mean of numbers that come one by one, for each run. One of weight 0 does not count: it may be no number."""

    def __init__(self, what: str, axes: Literal[0, 1], over: Group | None = None) -> None:
        self._what, self._axes, self._over = what, axes, over
        self._numbers: list[Tensor] = []  # that are not gathered yet
        self._weights: list[Weight] = []
        self._gathered = 0
        self._sums: list[Known] = []
        self._wrong: dict[
            int, list[tuple[int, float, float]]
        ] = {}  # by runs, what is not finite: its place, what it is, its weight

    def add(self, number: Tensor, weight: Weight) -> None:
        """Add a number."""
        self._numbers.append(number)
        self._weights.append(weight)
        if len(self._numbers) >= _GATHERED:
            self._gather()

    def add_many(self, numbers: Sequence[Tensor], weights: Sequence[Weight]) -> None:
        """Add some."""
        self._numbers += numbers
        self._weights += weights
        if len(self._numbers) >= _GATHERED:
            self._gather()

    def sums(self) -> list[Known]:
        """The sum of the numbers, each times its weight, and that of the weights, of each run."""
        if self._numbers:
            self._gather()
        return self._sums or [(0.0, 0.0)]  # a process may have no rows at all

    def go_on_from(self, sums: Sequence[Known], count: int) -> None:
        """Go on from so many that others have added."""
        self._sums, self._gathered = [*sums], count

    def divergence(self) -> tuple[int, int, float] | None:
        """The first number that counts and is not finite: its run, its place, and what it is."""
        self.sums()
        for run, wrong in sorted(self._wrong.items()):
            weights = [weight for _, _, weight in wrong]
            if self._over is not None:  # the losses are those of all processes, and the same in each
                (weights,) = summed([weights], self._over)
            for (place, value, _), weight in zip(wrong, weights, strict=True):
                if weight:
                    return run, place, value
        return None

    def _gather(self) -> None:
        """Add up what came in: the numbers are added in their order, so that it does not matter when."""
        weights = _values(self._weights, self._axes, self._what)
        numbers = _values(self._numbers, self._axes, self._what)
        before = self._sums or [(0.0, 0.0)] * len(numbers)
        self._sums = [self._sum(run, before[run], of_run, weights[run % len(weights)]) for run, of_run in enumerate(numbers)]
        self._gathered += len(self._numbers)
        self._numbers, self._weights = [], []

    def _sum(self, run: int, before: Known, values: Sequence[float], weights: Sequence[float]) -> Known:
        total, heavy = before
        for place, (value, weight) in enumerate(zip(values, weights, strict=True), self._gathered):
            heavy += weight
            if weight:
                total += value * weight
            if not math.isfinite(value) and (self._over is not None or (weight and run not in self._wrong)):
                self._wrong.setdefault(run, []).append((place, value, weight))
        return total, heavy


class Measured(abc.ABC, Generic[Prediction, Target]):
    """What a metric was for each batch, or for several as one."""

    may_wait: bool
    """Whether several batches can be measured as one."""

    @abc.abstractmethod
    def measure(self, prediction: Prediction, target: Target) -> None:
        """Take in a batch."""

    @abc.abstractmethod
    def known(self) -> list[Known]:
        """What is known of the batches so far, for each run."""

    @abc.abstractmethod
    def go_on_from(self, known: Sequence[Known]) -> None:
        """Go on from batches that others have seen."""

    @abc.abstractmethod
    def merged(self, known: Sequence[Known]) -> Known:
        """What several together know of a run."""

    @abc.abstractmethod
    def value(self, known: Known) -> float:
        """What the metric is, of what is known of all batches."""


def measured(name: str, metric: Metric[Prediction, Target], runs: Runs) -> Measured[Prediction, Target]:
    """A metric, of which nothing is known yet."""
    gathering = gathering_of(metric)
    return _MeanMetric(name, metric, runs) if gathering is None else _GatheredMetric(name, gathering, runs)


def added(known: Sequence[Known]) -> Known:
    """Numbers in their places added up; who has none adds nothing."""
    return tuple([sum(of_place) for of_place in zip(*[one for one in known if one], strict=True)])


def mean_of(known: Known, what: str) -> float:
    """The mean of numbers of which the weighted sum is known, and the sum of the weights."""
    total, weights = known
    if not weights > 0:
        raise ValueError(f"there is nothing to average: what {what} divided by is 0 for all batches together")
    return total / weights


@final
class _MeanMetric(Measured[Prediction, Target]):
    """A metric that is a mean of what it is for each batch."""

    def __init__(self, name: str, metric: Metric[Prediction, Target], runs: Runs) -> None:
        rule = rule_of(metric)
        self.may_wait = rule is not None
        self._mean = Mean(f"the metric {name!r}", runs.axes)
        self._name, self._metric, self._runs = name, metric, runs
        self._rule = runs.each(rule or by_rows)

    @override
    def measure(self, prediction: Prediction, target: Target) -> None:
        numbers = [self._number(*of_run) for of_run in self._runs.apart((prediction, target))]
        self._mean.add(torch.stack(numbers) if self._runs.axes else numbers[0], self._rule(prediction, target))

    @override
    def known(self) -> list[Known]:
        return self._mean.sums()

    @override
    def go_on_from(self, known: Sequence[Known]) -> None:
        self._mean.go_on_from(known, 0)

    @override
    def merged(self, known: Sequence[Known]) -> Known:
        return added(known)

    @override
    def value(self, known: Known) -> float:
        return mean_of(known, f"the metric {self._name!r}")

    def _number(self, prediction: Prediction, target: Target) -> Tensor:
        """The metric, which must be a single number."""
        number: object = self._metric(prediction, target)
        if not isinstance(number, Tensor) or number.ndim or number.is_complex():
            raise TypeError(
                f"a metric returns a single number, a real tensor without axes, but {self._name!r} returned"
                f" {tree.describe(number)}: of a float make torch.tensor(number); of several numbers make several metrics"
            )
        return number


@final
class _GatheredMetric(Measured[Prediction, Target]):
    """A metric that is found of sums over all batches, or of all their rows.

    What is known of a run are the sums; or how many numbers a row has, and then those of all rows.
    """

    may_wait = True

    def __init__(self, name: str, gathering: Gathering, runs: Runs) -> None:
        self._name, self._gathering, self._runs = name, gathering, runs
        self._parts: list[list[Tensor]] = []  # of batches that are not gathered yet, for each run
        self._known: list[Known] = []

    @override
    def measure(self, prediction: Prediction, target: Target) -> None:
        self._parts.append([self._part(*of_run) for of_run in self._runs.apart((prediction, target))])
        if len(self._parts) >= _GATHERED:
            self.known()

    @override
    def known(self) -> list[Known]:
        if self._parts:
            before = self._known or [()] * len(self._parts[0])
            parts = zip(*self._parts, strict=True)
            self._known = [self.merged([one, self._together(of_run)]) for one, of_run in zip(before, parts, strict=True)]
            self._parts = []
        return self._known or [()]  # a process may have no rows at all

    @override
    def go_on_from(self, known: Sequence[Known]) -> None:
        self._known = [*known]

    @override
    def merged(self, known: Sequence[Known]) -> Known:
        there = [one for one in known if one]
        if len({len(one) if not self._gathering.in_rows else one[0] for one in there}) > 1:
            raise ValueError(f"the metric {self._name!r} does not give as many numbers for each batch")
        if not self._gathering.in_rows or not there:
            return added(there)
        return tuple(itertools.chain(there[0][:1], *[one[1:] for one in there]))

    @override
    def value(self, known: Known) -> float:
        if not known:
            raise ValueError(f"there is nothing of which to find the metric {self._name!r}: no batches came")
        numbers = torch.tensor(known, dtype=torch.float64)
        if self._gathering.in_rows:
            numbers = numbers[1:].reshape(-1, int(known[0]))
        value: object = self._gathering.value(numbers)
        if not isinstance(value, Tensor) or value.ndim or value.is_complex():
            raise TypeError(
                f"the value of a metric is a single number, a real tensor without axes, but that of {self._name!r} is"
                f" {tree.describe(value)}"
            )
        return float(value)

    def _together(self, parts: Sequence[Tensor]) -> Known:
        """What batches know of a run."""
        if self._gathering.in_rows:
            rows = torch.cat([part.double() for part in parts])
            return (float(rows.shape[1]), *rows.flatten().tolist())
        if len({part.shape for part in parts}) > 1:
            raise ValueError(f"the metric {self._name!r} does not give as many numbers for each batch")
        numbers: list[float] = torch.stack([part.double() for part in parts]).sum(0).tolist()
        return tuple(numbers)

    def _part(self, prediction: Prediction, target: Target) -> Tensor:
        """What a batch tells."""
        part: object = self._gathering.known(prediction, target)
        axes, words = (2, "rows, of shape (N, K)") if self._gathering.in_rows else (1, "sums, of shape (K,)")
        if not isinstance(part, Tensor) or part.ndim != axes or part.is_complex():
            raise TypeError(f"the metric {self._name!r} is found of {words}, real numbers, but was given {tree.describe(part)}")
        return part


def summed(rows: list[list[float]], over: Group) -> list[list[float]]:
    """The sums of the numbers of all processes."""
    with no_grad():
        numbers = torch.tensor(rows, dtype=torch.float64, device=device_of(over))
        found: list[list[float]] = reduced([numbers], over)[0].tolist()
    return found


def _values(numbers: Sequence[Weight], axes: Literal[0, 1], what: str) -> list[list[float]]:
    """Numbers in a row, for each run, or for all if they are not tensors: the one place that waits for the device."""
    tensors = [number for number in numbers if isinstance(number, Tensor)]
    if not tensors:
        return [[float(number) for number in numbers]]
    if len(tensors) < len(numbers):
        one = tensors[0]
        tensors = [torch.as_tensor(number, dtype=one.dtype, device=one.device).expand(one.shape) for number in numbers]
    try:
        stacked = torch.stack(tensors, axes)  # (N,) or (R, N)
    except RuntimeError as error:
        raise _not_single(tensors, axes, what) from error
    if stacked.ndim != axes + 1:
        raise _not_single(tensors, axes, what)
    rows: list[list[float]] = stacked.reshape(-1, len(tensors)).tolist()
    return rows


def _not_single(numbers: Sequence[Tensor], axes: Literal[0, 1], what: str) -> ValueError:
    shapes = " and ".join(sorted({str(tuple(number.shape)) for number in numbers}))
    if axes:
        return ValueError(
            f"{what} is a single number for each run, a tensor without axes, but those of all runs are of shape {shapes}"
        )
    return ValueError(f"{what} is a single number, a tensor without axes, not of shape {shapes}")
