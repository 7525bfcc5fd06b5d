"""Means over batches: of losses, and of metrics, each weighted by what it divided by."""

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final, Generic

import torch
from torch import Tensor

from fundl import tree
from fundl._common.modes import callers_mode, no_grad
from fundl.collectives import gather_numbers, gathered
from fundl.groups import Group, device_of
from fundl.layer import Prediction, Target
from fundl.metrics.metric import Metric, gathering_of
from fundl.runs import Runs, T, each
from fundl.training._known import Mean, Measured, added, mean_of, measured, summed
from fundl.training._over import has_rows
from fundl.training.history import Evaluation, Known, Sums
from fundl.training.step import Report
from fundl.weights import Rule, Weight, by_rows, count_along, rule_of

_BUFFER_NUMBERS: Final = 2**20  # so many predicted numbers wait to be measured together
_BUFFER_WORK: Final = 2**32  # and so much work was done for them: products of a number of x and one of the model


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
        self._loss = Mean("the loss", runs.axes, over)
        self._measured = _Metrics(metrics, runs, size) if metrics else None

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
        named = self._known()
        if self.over is not None:
            named = self._of_all(named, self.over)
        losses = [mean_of(of_run, "the loss") for of_run in named.pop("loss")]
        metrics = {} if self._measured is None else self._measured.values(named)
        return [Evaluation(loss, {name: of_runs[run] for name, of_runs in metrics.items()}) for run, loss in enumerate(losses)]

    def divergence(self) -> tuple[int, int, float] | None:
        """The first loss that counts and is not finite: its run, its place among the losses, and what it is."""
        return self._loss.divergence()

    def sums(self) -> tuple[Sums, ...]:
        """What there is to know of the batches so far, for each process, who ask together; no predictions may wait."""
        named, examples = [self._known()], [self.examples]
        if self.over is not None:
            named, examples = _of_each(named[0], self.over), gather_numbers(examples, self.over)
        return tuple([Sums(self.count, own, one.pop("loss"), one) for one, own in zip(named, examples, strict=True)])

    def _known(self) -> dict[str, list[Known]]:
        """What this process knows of the loss and of the metrics, by their names, for each run; no metric is called loss."""
        return {"loss": self._loss.sums()} | ({} if self._measured is None else self._measured.known())

    def _of_all(self, named: Mapping[str, list[Known]], over: Group) -> dict[str, list[Known]]:
        """What all processes know."""
        if self._measured is None or self._measured.adds_up:
            return _in_places(named, summed([_in_a_row(named)], over)[0])
        of_each = _of_each(named, over)
        return {name: self._merged(name, [one[name] for one in of_each]) for name in named}

    def _merged(self, name: str, of_each: Sequence[Sequence[Known]]) -> list[Known]:
        """What several processes know of a name together, for each run."""
        merge = added if self._measured is None or name == "loss" else self._measured.merge(name)
        return [merge(of_run) for of_run in zip(*of_each, strict=True)]

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
        own = sums[rank] if len(sums) == size else self._all_of(sums, size, is_first=not rank)
        self.count, self.examples = own.count, own.examples
        self._loss.go_on_from(own.loss, own.count)
        if self._measured is not None:
            self._measured.go_on_from(own.metrics)

    def _all_of(self, sums: Sequence[Sums], size: int, *, is_first: bool) -> Sums:
        """What processes of another number have seen, for one of so many: for the first all of it, and nothing for others."""
        examples = sum(one.examples for one in sums) // size
        if not is_first:
            nothing: dict[str, list[Known]] = {} if self._measured is None else self._measured.known()
            return Sums(sums[0].count, examples, [(0.0, 0.0) for _ in sums[0].loss], nothing)
        metrics = {name: self._merged(name, [one.metrics[name] for one in sums]) for name in sums[0].metrics}
        return Sums(sums[0].count, examples, self._merged("loss", [one.loss for one in sums]), metrics)


def _words(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names)) or "no metric"


class _Metrics(Generic[Prediction, Target]):
    """The means of metrics over many batches.

    Measuring many small batches costs as much as their training. Where it is known what a metric is a mean over, it makes no
    difference to measure several batches as one: so predictions wait, and are measured together. How many do depends on their
    sizes alone, so that the same batches give the same bits; where steps take long, it is one.
    """

    def __init__(self, metrics: Mapping[str, Metric[Prediction, Target]], runs: Runs, size: int) -> None:
        self._all = {name: measured(name, metric, runs) for name, metric in metrics.items()}
        self.adds_up = all(gathering_of(metric) is None for metric in metrics.values())  # numbers that are as many everywhere
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

    def known(self) -> dict[str, list[Known]]:
        """By the metrics' names, in their order: what is known, for each run."""
        return {name: one.known() for name, one in self._all.items()}

    def merge(self, name: str) -> Callable[[Sequence[Known]], Known]:
        """How what several know of a metric is put together."""
        return self._all[name].merged

    def values(self, known: Mapping[str, Sequence[Known]]) -> dict[str, list[float]]:
        """What the metrics are, for each run."""
        return {name: [one.value(of_run) for of_run in known[name]] for name, one in self._all.items()}

    def go_on_from(self, known: Mapping[str, Sequence[Known]]) -> None:
        for name, one in self._all.items():
            one.go_on_from(known[name])

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

    def _measure(self, metrics: Sequence[Measured[Prediction, Target]], prediction: Prediction, target: Target) -> None:
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


def _in_a_row(named: Mapping[str, list[Known]]) -> list[float]:
    return [number for runs in named.values() for of_run in runs for number in of_run]


def _in_places(like: Mapping[str, list[Known]], row: Sequence[float]) -> dict[str, list[Known]]:
    """Numbers in a row by their names, as others are."""
    numbers = iter(row)
    return {name: [tuple(itertools.islice(numbers, len(of_run))) for of_run in runs] for name, runs in like.items()}


def _of_each(named: Mapping[str, list[Known]], over: Group) -> list[dict[str, list[Known]]]:
    """What each process knows, to the bit, in the order of the ranks: not all need know as many numbers."""
    lengths = [len(of_run) for runs in named.values() for of_run in runs]
    every, width = gather_numbers(lengths, over), len(lengths)
    of_ranks = [every[place : place + width] for place in range(0, len(every), width)]
    longest = max(map(sum, of_ranks))
    row = _in_a_row(named)
    with no_grad():
        own = torch.tensor([row + [0.0] * (longest - len(row))], dtype=torch.float64, device=device_of(over))
        rows: list[list[float]] = gathered([own], over)[0].tolist()
    found = []
    for numbers, sizes in zip(rows, of_ranks, strict=True):
        size = iter(sizes)
        found.append(_in_places({name: [(0.0,) * next(size) for _ in runs] for name, runs in named.items()}, numbers))
    return found
