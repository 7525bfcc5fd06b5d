"""Means over batches: of losses, and of metrics, each weighted by what it divided by."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, Generic, Literal

import torch
from torch import Tensor

from fundl import tree
from fundl._common.modes import callers_mode, no_grad
from fundl.collectives import gather_numbers, gathered, reduced
from fundl.groups import Group, device_of
from fundl.layer import Prediction, Target
from fundl.metrics import Metric
from fundl.runs import Runs, T, each
from fundl.training._over import has_rows
from fundl.training.history import Evaluation, Sums, WeighedSum
from fundl.training.step import Report
from fundl.weights import Rule, Weight, by_rows, count_along, rule_of

_BUFFER_NUMBERS: Final = 2**20  # so many predicted numbers wait to be measured together
_BUFFER_WORK: Final = 2**32  # and so much work was done for them: products of a number of x and one of the model
_GATHERED: Final = 4096  # so many numbers of batches are kept one by one


class Means(Generic[Prediction, Target]):
    """The mean loss and metrics of many batches, of each run. Numbers stay on their device until they are gathered.

    Args:
        loss: what knows how the batches' losses weigh: the loss, or a step of it.
        metrics: to be measured as well, by their names.
        runs: one, or many.
        over: the processes, each of which adds its part of each batch; None for one that adds all.
        size: how many numbers the model has, if it is known: of a large one, few predictions wait to be measured together.
    """

    def __init__(
        self,
        loss: object,
        metrics: Mapping[str, Metric[Prediction, Target]],
        runs: Runs,
        over: Group | None = None,
        size: int = 0,
    ) -> None:
        self.over = over
        self.count: int = 0  # of batches
        self.examples: int = 0
        self._rule: Rule = runs.each(rule_of(loss) or by_rows)
        self._axes = runs.axes
        self._loss = _Mean("the loss", runs.axes, over)
        self._measured = _Measured(metrics, runs, size) if metrics else None

    @property
    def is_settled(self) -> bool:
        """Whether no predictions wait: whether all that there is to know of the batches are numbers."""
        return self._measured is None or not self._measured.waiting

    def add(self, x: object, target: Target, report: Report[Prediction]) -> None:
        """Add a batch, and its report."""
        has_part = self.over is None or has_rows(report.prediction)
        if report.weight is not None:
            self._loss.add(report.loss, report.weight)
        else:
            self._loss.add(report.loss, self._rule(report.prediction, target) if has_part else 0.0)
        self.examples += count_along(x, self._axes)
        if self._measured is not None and has_part:
            if report.prediction is None:
                raise ValueError(
                    "metrics measure predictions, and the report of this step has none: train without"
                    f" {_words(self._measured.names)}, and measure the model by evaluate, one in stages by pipeline_evaluate"
                )
            self._measured.add(x, report.prediction, target)
        self.count += 1  # at last: an error leaves a count that does not fit

    def add_many(self, x: object, target: Target, reports: Report[Prediction]) -> None:
        """Add batches, and their reports, that are along a first axis."""
        count = len(reports.loss)
        has_part = self.over is None or count_along(reports.prediction, 1) > 0
        weights: Weight = 0.0
        if reports.weight is not None:
            weights = reports.weight
        elif has_part:
            weights = each(self._rule)(reports.prediction, target)
        self._loss.add_many(reports.loss.unbind(), weights.unbind() if isinstance(weights, Tensor) else [weights] * count)
        self.examples += count * count_along(x, 1)
        if self._measured is not None and has_part:
            self._measured.add_many(count, x, reports.prediction, target)
        self.count += count

    def settle(self) -> None:
        """Measure the predictions that wait, at the end of all batches."""
        if self._measured is not None:
            self._measured.measure_waiting()

    def results(self) -> list[Evaluation]:
        """The means of each run; there must have been batches."""
        self.settle()
        named = {"loss": self._loss.sums()}  # no metric is called so
        if self._measured is not None:
            named |= self._measured.sums()
        if self.over is not None:
            named = _of_all(named, self.over)
        means = {name: [_mean(*of_run, name) for of_run in runs] for name, runs in named.items()}
        losses = means.pop("loss")
        return [Evaluation(loss, {name: of_runs[run] for name, of_runs in means.items()}) for run, loss in enumerate(losses)]

    def divergence(self) -> tuple[int, int, float] | None:
        """The first loss that counts and is not finite: its run, its place among the losses, and what it is."""
        return self._loss.divergence()

    def sums(self) -> tuple[Sums, ...]:
        """What there is to know of the batches so far, for each process, who ask together; no predictions may wait."""
        named = {"loss": self._loss.sums()}
        if self._measured is not None:
            named |= self._measured.sums()
        rows = [_in_a_row(named)]
        examples = [self.examples]
        if self.over is not None:
            rows, examples = _of_each(rows[0], self.over), gather_numbers(examples, self.over)
        found: list[Sums] = []
        for row, own in zip(rows, examples, strict=True):
            metrics = _in_places(named, row)
            found.append(Sums(self.count, own, metrics.pop("loss"), metrics))
        return tuple(found)

    def go_on_from(self, sums: Sequence[Sums]) -> None:
        """Go on from batches that others have seen: each process where that of its rank was, if they are as many.

        Of another number, the first adds what all of them have seen.

        Raises:
            ValueError: they have measured something else.
        """
        names = [] if self._measured is None else self._measured.names
        if {*names} != {*sums[0].metrics}:
            raise ValueError(
                f"it is in the middle of an epoch in which {_words(sums[0].metrics)} was measured, not {_words(names)}: give"
                " those metrics, or remove it, so that the one before is gone on from"
            )
        rank, size = (0, 1) if self.over is None else (self.over.rank, self.over.size)
        own = sums[rank] if len(sums) == size else _all_of(sums, size, is_first=not rank)
        self.count, self.examples = own.count, own.examples
        self._loss.go_on_from(own.loss, own.count)
        if self._measured is not None:
            self._measured.go_on_from(own.metrics)


def _all_of(sums: Sequence[Sums], size: int, *, is_first: bool) -> Sums:
    """What processes of another number have seen, for one of so many: for the first all of it, and nothing for others."""
    metrics = {name: _added([one.metrics[name] for one in sums], is_first) for name in sums[0].metrics}
    examples = sum(one.examples for one in sums) // size
    return Sums(sums[0].count, examples, _added([one.loss for one in sums], is_first), metrics)


def _added(of_all: Sequence[Sequence[WeighedSum]], is_first: bool) -> list[WeighedSum]:
    return [
        (sum(total for total, _ in of_run), sum(weight for _, weight in of_run)) if is_first else (0.0, 0.0)
        for of_run in zip(*of_all, strict=True)
    ]


def _words(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names)) or "no metric"


class _Mean:
    """The weighted mean of numbers that come one by one, for each run. One of weight 0 does not count: it may be no number."""

    def __init__(self, what: str, axes: Literal[0, 1], over: Group | None = None) -> None:
        self._what, self._axes, self._over = what, axes, over
        self._numbers: list[Tensor] = []  # that are not gathered yet
        self._weights: list[Weight] = []
        self._gathered = 0
        self._sums: list[WeighedSum] = []
        self._wrong: dict[
            int, list[tuple[int, float, float]]
        ] = {}  # by runs, what is not finite: its place, what it is, its weight

    def add(self, number: Tensor, weight: Weight) -> None:
        self._numbers.append(number)
        self._weights.append(weight)
        if len(self._numbers) >= _GATHERED:
            self._gather()

    def add_many(self, numbers: Sequence[Tensor], weights: Sequence[Weight]) -> None:
        self._numbers += numbers
        self._weights += weights
        if len(self._numbers) >= _GATHERED:
            self._gather()

    def sums(self) -> list[WeighedSum]:
        if self._numbers:
            self._gather()
        return self._sums or [(0.0, 0.0)]  # a process may have no rows at all

    def go_on_from(self, sums: Sequence[WeighedSum], count: int) -> None:
        self._sums, self._gathered = [*sums], count

    def divergence(self) -> tuple[int, int, float] | None:
        self.sums()
        for run, wrong in sorted(self._wrong.items()):
            weights = [weight for _, _, weight in wrong]
            if self._over is not None:  # the losses are those of all processes, and the same in each
                (weights,) = _summed([weights], self._over)
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

    def _sum(self, run: int, before: WeighedSum, values: Sequence[float], weights: Sequence[float]) -> WeighedSum:
        total, heavy = before
        for place, (value, weight) in enumerate(zip(values, weights, strict=True), self._gathered):
            heavy += weight
            if weight:
                total += value * weight
            if not math.isfinite(value) and (self._over is not None or (weight and run not in self._wrong)):
                self._wrong.setdefault(run, []).append((place, value, weight))
        return total, heavy


class _Metric(Generic[Prediction, Target]):
    """What a metric was for each batch, or for several as one."""

    def __init__(self, name: str, metric: Metric[Prediction, Target], runs: Runs) -> None:
        rule = rule_of(metric)
        self.may_wait = rule is not None
        self.mean = _Mean(f"the metric {name!r}", runs.axes)
        self._name, self._metric, self._runs = name, metric, runs
        self._rule = runs.each(rule or by_rows)

    def measure(self, prediction: Prediction, target: Target) -> None:
        numbers = [self._number(*of_run) for of_run in self._runs.apart((prediction, target))]
        self.mean.add(torch.stack(numbers) if self._runs.axes else numbers[0], self._rule(prediction, target))

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
    difference to measure several batches as one: so predictions wait, and are measured together. How many do depends on their
    sizes alone, so that the same batches give the same bits; where steps take long, it is one.
    """

    def __init__(self, metrics: Mapping[str, Metric[Prediction, Target]], runs: Runs, size: int) -> None:
        self._all = {name: _Metric(name, metric, runs) for name, metric in metrics.items()}
        self._at_once = [one for one in self._all.values() if not one.may_wait]
        self._later = [one for one in self._all.values() if one.may_wait]
        self._runs, self._size = runs, size
        self.waiting: list[tuple[Prediction, Target]] = []
        self._waiting_numbers = self._waiting_work = 0
        self._mode = callers_mode()

    @property
    def names(self) -> list[str]:
        return [*self._all]

    def add(self, x: object, prediction: Prediction, target: Target) -> None:
        if self._at_once:
            self._measure(self._at_once, prediction, target)
        if self._later:
            self.waiting.append((prediction, target))
            self._measure_if_many(x, prediction)

    def add_many(self, count: int, x: object, prediction: Prediction, target: Target) -> None:
        together = prediction, target
        if self._later and all(leaf.ndim > 1 for leaf in tree.leaves(together)):
            self.waiting.append(tree.map(lambda leaf: leaf.flatten(0, 1), together))
        elif self._later:
            self.waiting += tree.unstack(together, count)
        if self._at_once:
            for one in tree.unstack(together, count):
                self._measure(self._at_once, *one)
        if self._later:
            self._measure_if_many(x, prediction)

    def sums(self) -> dict[str, list[WeighedSum]]:
        """By the metrics' names, in their order: what the mean is of, for each run."""
        return {name: one.mean.sums() for name, one in self._all.items()}

    def go_on_from(self, sums: Mapping[str, Sequence[WeighedSum]]) -> None:
        for name, one in self._all.items():
            one.mean.go_on_from(sums[name], 0)

    def _measure_if_many(self, x: object, prediction: Prediction) -> None:
        """Measure what waits, if that is much, or if it took long to come by."""
        self._waiting_numbers += _numbers_in(prediction)
        self._waiting_work += _numbers_in(x) * self._size
        if self._waiting_numbers > _BUFFER_NUMBERS or self._waiting_work > _BUFFER_WORK:
            self.measure_waiting()

    def measure_waiting(self) -> None:
        alike: dict[object, list[tuple[Prediction, Target]]] = {}
        for place, batch in enumerate(self.waiting):
            alike.setdefault(_kind(*batch, self._runs.axes) or place, []).append(batch)
        for batches in alike.values():
            self._measure(self._later, *_concatenated(batches, self._runs.axes))
        self.waiting, self._waiting_numbers, self._waiting_work = [], 0, 0

    def _measure(self, metrics: Sequence[_Metric[Prediction, Target]], prediction: Prediction, target: Target) -> None:
        with self._mode, no_grad():
            prediction, target = for_any_use((prediction, target))
            for metric in metrics:
                metric.measure(prediction, target)


def _numbers_in(values: object) -> int:
    return values.numel() if isinstance(values, Tensor) else sum([leaf.numel() for leaf in tree.leaves(values)])


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


def _of_all(named: Mapping[str, list[WeighedSum]], over: Group) -> dict[str, list[WeighedSum]]:
    """The sums of all processes."""
    return _in_places(named, _summed([_in_a_row(named)], over)[0])


def _in_a_row(named: Mapping[str, list[WeighedSum]]) -> list[float]:
    return [number for runs in named.values() for of_run in runs for number in of_run]


def _in_places(like: Mapping[str, list[WeighedSum]], row: Sequence[float]) -> dict[str, list[WeighedSum]]:
    """Numbers in a row by their names, as others are."""
    numbers = iter(row)
    return {name: [(next(numbers), next(numbers)) for _ in runs] for name, runs in like.items()}


def _of_each(row: list[float], over: Group) -> list[list[float]]:
    """The numbers of each process, to the bit."""
    with no_grad():
        own = torch.tensor([row], dtype=torch.float64, device=device_of(over))
        rows: list[list[float]] = gathered([own], over)[0].tolist()
    return rows


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
