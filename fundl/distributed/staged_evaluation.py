"""What a model in stages is worth on data: batches go through the stages, one behind the other."""

import functools
import itertools
from collections.abc import Callable, Iterable, Mapping
from typing import Final, Generic, TypeVar, cast

import torch

from fundl._common.checks import loss_and_gradient, require_loss
from fundl._common.modes import no_grad
from fundl._common.running import Pass
from fundl._common.suggestions import with_suggestions
from fundl.collectives import spread
from fundl.distributed._links import Links
from fundl.distributed.pipeline import require_stages, running
from fundl.groups import Group, device_of, require_group
from fundl.layer import Loss, Model, Prediction, Target
from fundl.metrics.metric import Metric, require_metrics
from fundl.runs import ONE
from fundl.training._means import Means
from fundl.training._over import has_rows
from fundl.training._partners import Partners
from fundl.training.history import Evaluation
from fundl.training.step import Report, X, pair
from fundl.tree import describe

T = TypeVar("T")


@with_suggestions
def pipeline_evaluate(
    loss: Loss[Prediction, Target],
    model: Model,
    batches: Iterable[tuple[X, Target]],
    *,
    through: Group,
    metrics: Mapping[str, Metric[Prediction, Target]] | None = None,
    over: Group | None = None,
) -> Evaluation:
    """`evaluate` of a model that is in stages: nobody ever has all of it.

        fit(step, state, batches, epochs=3, evaluate=lambda model: pipeline_evaluate(loss, model, test, through=pipeline))

    All processes of the pipeline call it, with the same batches. The first uses x, the last the target; while one stage works
    on a batch, the one before it works on the next. All get the result.

    Args:
        loss: as `evaluate` takes it.
        model: as `stages` made it, with values.
        batches: pairs (x, target), as many in each process.
        through: the processes of the pipeline, that of `stages`.
        metrics: as `evaluate` takes them.
        over: a group of processes that have the same stage, and other rows of each batch.

    Raises:
        TypeError: something is not what it is to be.
        ValueError: there are no batches, or not as many in each process, or the model is in stages of another group.
        RuntimeError: the batches, the loss or a metric raised an error in another process.

    >>> import torch
    >>> from fundl import initialize, key, linear, mse
    >>> from fundl.distributed import pipeline_evaluate, stages, start
    >>> group, device = start()
    >>> model = initialize(key(0), stages(group, (linear(2, 3), linear(3, 1))))
    >>> data = torch.zeros(4, 2), torch.full((4, 1), 2.0)
    >>> round(pipeline_evaluate(mse, model, [data], through=group).loss, 4)
    2.0608
    """
    require_loss(loss)
    require_group(through)
    if not isinstance(batches, Iterable):
        raise TypeError(f"batches are pairs (x, target), such as minibatches(None, (x, target), 1000), not {describe(batches)}")
    if over is not None:
        require_group(over)
    asked = require_metrics(metrics)
    require_stages(model, through)
    means = Means(loss, asked, ONE, over if over is not None and over.size > 1 else None)
    own, links = running(model), Links(model, through, ({}, {}))
    rounds = _Rounds(
        batches, Partners(tuple([group for group in (through, means.over) if group is not None and group.size > 1]))
    )
    with no_grad():
        while some := rounds.next(8 * through.size):  # at the end of a round stages wait for each other
            for batch in some:
                x, target = pair(batch)
                output = Pass(own, links.input(x)).output
                if not links.is_last:
                    links.give(x, output)
                    continue
                prediction = cast(
                    "Prediction", output
                )  # only the model's run tells what it gives: the loss says what it is for
                if means.over is None or has_rows(prediction):
                    rounds.do(functools.partial(_judge, means, loss, x, prediction, target))
            rounds.do(means.settle)
        links.finish()
        if not rounds.done and means.over is None:
            raise ValueError("there is nothing to evaluate on: no batches came")
        results: list[Evaluation] = []
        rounds.do(lambda: results.extend(means.results() if links.is_last else ()))
        rounds.agree(0)
        return _told_to_all(results[0] if results else None, [*asked], through)


def _judge(
    means: Means[Prediction, Target], loss: Loss[Prediction, Target], x: object, prediction: Prediction, target: Target
) -> None:
    value, _ = loss_and_gradient(loss, prediction, target)
    means.add(x, target, Report(value, prediction))


class _Rounds(Generic[T]):
    """Batches, some at a time, before which all processes agree that each of them has as many, and goes on.

    Args:
        batches: of this process.
        partners: all processes.
    """

    def __init__(self, batches: Iterable[T], partners: Partners) -> None:
        self._batches, self._partners = iter(batches), partners
        self._failure: Exception | None = None
        self.done = 0

    def do(self, what: Callable[[], None]) -> None:
        """Do what only this process needs; once it has failed, nothing more: the others hear of it at the end of the round."""
        if self._failure is not None:
            return
        try:
            what()
        except Exception as error:
            self._failure = error

    def next(self, count: int) -> list[T]:
        """So many more batches, or as many as there are; all processes ask together."""
        some: list[T] = []
        self.do(lambda: some.extend(itertools.islice(self._batches, count)))
        most, least = self.agree(len(some))
        if most != least:
            raise ValueError(
                f"the processes of a pipeline are given the same batches, but some have {self.done + least}, and others"
                f" {self.done + most}{' or more' if most == count else ''}: here, there are {self.done + len(some)}"
            )
        self.done += len(some)
        return some

    def agree(self, number: int) -> tuple[int, int]:
        """The largest and the least of the numbers that the processes have, if none of them has failed."""
        partners = self._partners
        who, most, under = partners.largest(0 if self._failure is None else 1 + partners.number, number, _BEYOND - number)
        if self._failure is not None:
            raise self._failure
        if who:
            raise RuntimeError(f"process {who - 1} cannot go on, so the evaluation ends in all of them: its own error says why")
        return most, _BEYOND - under


_BEYOND: Final = 2**31  # any number of batches


def _told_to_all(result: Evaluation | None, names: list[str], through: Group) -> Evaluation:
    """What the last stage has found."""
    numbers = [0.0] * (1 + len(names)) if result is None else [result.loss, *(result.metrics[name] for name in names)]
    told = torch.tensor(numbers, dtype=torch.float64, device=device_of(through))
    loss, *measured = spread([told], through, through.size - 1)[0].tolist()
    return Evaluation(loss, dict(zip(names, measured, strict=True)))
