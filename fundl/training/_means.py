"""Means over batches: of losses, and of metrics, each weighted by what it divided by."""

import math
from collections.abc import Mapping, Sequence
from typing import Final, Generic, Literal, TypeAlias

import torch
from torch import Tensor

from fundl import tree
from fundl._common.modes import callers_mode, no_grad
from fundl.collectives import reduced
from fundl.groups import Group, device_of
from fundl.layer import Prediction, Target
from fundl.metrics import Metric
from fundl.runs import Runs, T, each
from fundl.training._over import has_rows
from fundl.training.history import Evaluation
from fundl.training.step import Report
from fundl.weights import Rule, Weight, by_rows, count_along, rule_of

_BUFFER_NUMBERS: Final = 2**20  # so many predicted numbers wait to be measured together


class Means(Generic[Prediction, Target]):
    """The mean loss and metrics of many batches, of each run. Numbers stay on their device until the results are asked for.

    Args:
        loss: what knows how the batches' losses weigh: the loss, or a step of it.
        metrics: to be measured as well, by their names.
        runs: one, or many.
        over: the processes, each of which adds its part of each batch; None for one that adds all.
    """

    def __init__(
        self, loss: object, metrics: Mapping[str, Metric[Prediction, Target]], runs: Runs, over: Group | None = None
    ) -> None:
        self.losses: list[Tensor] = []
        self.examples: int = 0
        self._rule: Rule = runs.each(rule_of(loss) or by_rows)
        self._axes = runs.axes
        self._weights: list[Weight] = []
        self._measured = _Measured(metrics, runs) if metrics else None
        self.over = over

    def add(self, x: object, target: Target, report: Report[Prediction]) -> None:
        """Add a batch, and its report."""
        self.losses.append(report.loss)
        self.examples += count_along(x, self._axes)
        if self.over is not None and not has_rows(report.prediction):
            self._weights.append(0.0)
            return
        self._weights.append(self._rule(report.prediction, target))
        if self._measured is not None:
            self._measured.add(report.prediction, target)

    def add_many(self, x: object, target: Target, reports: Report[Prediction]) -> None:
        """Add batches, and their reports, that are along a first axis."""
        count = len(reports.loss)
        self.losses += reports.loss.unbind()
        if self.over is not None and not count_along(reports.prediction, 1):
            self._weights += [0.0] * count
            return
        weights = each(self._rule)(reports.prediction, target)
        self._weights += weights.unbind() if isinstance(weights, Tensor) else [weights] * count
        self.examples += count * count_along(x, 1)
        if self._measured is not None:
            self._measured.add_many(count, reports.prediction, target)

    def results(self) -> list[Evaluation]:
        """The means of each run; there must have been batches."""
        named = {"loss": _sums(self.losses, self._weights, self._axes, "the loss")}
        if self._measured is not None:
            named |= self._measured.sums()
        if self.over is not None:
            named = _of_all(named, self.over)
        means = {name: [_mean(*of_run, name) for of_run in runs] for name, runs in named.items()}
        losses = means.pop("loss")  # no metric is called so
        return [Evaluation(loss, {name: of_runs[run] for name, of_runs in means.items()}) for run, loss in enumerate(losses)]

    def divergence(self) -> tuple[int, int, float] | None:
        """The first loss that counts and is not finite: its run, its place among the losses, and what it is."""
        weights = _values(self._weights, self._axes, "the loss")
        if self.over is not None:
            weights = _summed(weights, self.over)
        for of_run, losses in enumerate(_values(self.losses, self._axes, "the loss")):
            for place, (loss, weight) in enumerate(zip(losses, weights[of_run % len(weights)], strict=True)):
                if weight and not math.isfinite(loss):
                    return of_run, place, loss
        return None


class _Numbers(Generic[Prediction, Target]):
    """What a metric was for each batch, or for several as one."""

    def __init__(self, name: str, metric: Metric[Prediction, Target], runs: Runs) -> None:
        rule = rule_of(metric)
        self.may_wait = rule is not None
        self._name, self._metric, self._runs = name, metric, runs
        self._rule = runs.each(rule or by_rows)
        self._numbers: list[Tensor] = []
        self._weights: list[Weight] = []

    def measure(self, prediction: Prediction, target: Target) -> None:
        numbers = [self._number(*of_run) for of_run in self._runs.apart((prediction, target))]
        self._numbers.append(torch.stack(numbers) if self._runs.axes else numbers[0])
        self._weights.append(self._rule(prediction, target))

    def sums(self) -> "list[Sums]":
        return _sums(self._numbers, self._weights, self._runs.axes, f"the metric {self._name!r}")

    def _number(self, prediction: Prediction, target: Target) -> Tensor:
        """The metric, which must be a single number."""
        number: object = self._metric(prediction, target)
        if not isinstance(number, Tensor) or number.ndim or number.is_complex():
            raise TypeError(
                f"a metric returns a single number, a real tensor without axes, but {self._name!r} returned"
                f" {tree.describe(number)}: of a float make torch.tensor(number); of several numbers make several metrics"
            )
        return number


class _Measured(Generic[Prediction, Target]):
    """The means of metrics over many batches.

    Measuring many small batches costs as much as their training. Where it is known what a metric is a mean over, it makes no
    difference to measure several batches as one: so predictions wait, and are measured together.
    """

    def __init__(self, metrics: Mapping[str, Metric[Prediction, Target]], runs: Runs) -> None:
        self._all = {name: _Numbers(name, metric, runs) for name, metric in metrics.items()}
        self._at_once = [one for one in self._all.values() if not one.may_wait]
        self._later = [one for one in self._all.values() if one.may_wait]
        self._runs = runs
        self._waiting: list[tuple[Prediction, Target]] = []
        self._waiting_numbers = 0
        self._mode = callers_mode()

    def add(self, prediction: Prediction, target: Target) -> None:
        if self._at_once:
            self._measure(self._at_once, prediction, target)
        if self._later:
            self._wait(prediction, target)

    def add_many(self, count: int, prediction: Prediction, target: Target) -> None:
        together = prediction, target
        if self._later and all(leaf.ndim > 1 for leaf in tree.leaves(together)):
            self._wait(*tree.map(lambda leaf: leaf.flatten(0, 1), together))
        elif self._later:
            for one in tree.unstack(together, count):
                self._wait(*one)
        if self._at_once:
            for one in tree.unstack(together, count):
                self._measure(self._at_once, *one)

    def sums(self) -> "dict[str, list[Sums]]":
        """By the metrics' names, in their order: what the mean is of, for each run."""
        self._measure_waiting()
        return {name: one.sums() for name, one in self._all.items()}

    def _wait(self, prediction: Prediction, target: Target) -> None:
        self._waiting.append((prediction, target))
        leaves = [prediction] if isinstance(prediction, Tensor) else tree.leaves(prediction)
        self._waiting_numbers += sum([leaf.numel() for leaf in leaves])
        if self._waiting_numbers > _BUFFER_NUMBERS:
            self._measure_waiting()

    def _measure_waiting(self) -> None:
        alike: dict[object, list[tuple[Prediction, Target]]] = {}
        for place, batch in enumerate(self._waiting):
            alike.setdefault(_kind(*batch, self._runs.axes) or place, []).append(batch)
        for batches in alike.values():
            self._measure(self._later, *_concatenated(batches, self._runs.axes))
        self._waiting, self._waiting_numbers = [], 0

    def _measure(self, metrics: Sequence[_Numbers[Prediction, Target]], prediction: Prediction, target: Target) -> None:
        with self._mode, no_grad():
            prediction, target = for_any_use((prediction, target))
            for metric in metrics:
                metric.measure(prediction, target)


def for_any_use(values: T) -> T:
    """A tree with copies of what was made in inference mode: autograd, and writing in place, refuse such tensors."""
    return tree.map(lambda leaf: leaf.clone() if leaf.is_inference() else leaf, values)


def _kind(prediction: object, target: object, axis: int) -> object:
    """What predictions and targets that are one but for their rows, along an axis, have in common; None if they cannot be."""
    leaves: Sequence[object] = (prediction, target)
    kind: list[object] = []
    if not (isinstance(prediction, Tensor) and isinstance(target, Tensor)):  # two need no walk, which takes as long as the rest
        leaves, structure = tree.flatten((prediction, target))
        kind.append(structure)
    for leaf in leaves:
        if isinstance(leaf, Tensor) and leaf.ndim > axis:
            kind += leaf.shape[:axis], leaf.shape[axis + 1 :], leaf.dtype, leaf.device
        elif leaf is None:
            kind.append(None)
        else:
            return None
    return tuple(kind)


def _concatenated(batches: Sequence[T], axis: int) -> T:
    """Batches of one kind as one."""
    if len(batches) == 1:
        return batches[0]
    structure, leaves = tree.flatten(batches[0])[1], tree.flatten([*batches])[0]
    width = structure.num_leaves
    columns = [[leaf for leaf in leaves[place::width] if leaf is not None] for place in range(width)]
    return tree.unflatten(structure, [torch.cat(column, axis) if column else None for column in columns])


# --- Numbers --------------------------------------------------------------------------------------------------------


Sums: TypeAlias = tuple[float, float]
"""The sum of numbers, each times its weight, and that of the weights."""


def _sums(numbers: Sequence[Tensor], weights: Sequence[Weight], axes: Literal[0, 1], what: str) -> list[Sums]:
    """What the weighted mean of numbers is of, for each run. One of weight 0 does not count: it may be no number at all."""
    if not numbers:  # a process may have no rows at all
        return [(0.0, 0.0)]
    heavy = _values(weights, axes, what)
    return [_sums_of_run(values, heavy[run % len(heavy)]) for run, values in enumerate(_values(numbers, axes, what))]


def _sums_of_run(values: Sequence[float], weights: Sequence[float]) -> Sums:
    return sum([value * weight for value, weight in zip(values, weights, strict=True) if weight]), sum(weights)


def _of_all(named: Mapping[str, list[Sums]], over: Group) -> dict[str, list[Sums]]:
    """The sums of all processes."""
    flat = [[number for runs in named.values() for of_run in runs for number in of_run]]
    numbers = iter(_summed(flat, over)[0])
    return {name: [(next(numbers), next(numbers)) for _ in runs] for name, runs in named.items()}


def _summed(rows: list[list[float]], over: Group) -> list[list[float]]:
    """The sums of the numbers of all processes."""
    with no_grad():
        numbers = torch.tensor(rows, dtype=torch.float64, device=device_of(over))
        summed: list[list[float]] = reduced([numbers], over)[0].tolist()
    return summed


def _mean(total: float, weights: float, name: str) -> float:
    if not weights > 0:
        what = "the loss" if name == "loss" else f"the metric {name!r}"
        raise ValueError(f"there is nothing to average: what {what} divided by is 0 for all batches together")
    return total / weights


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
