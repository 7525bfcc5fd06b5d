"""The training of all runs at once."""

import math
import operator
import time
from collections.abc import Callable, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Generic, TypeVar

import attrs
import torch
from torch import Tensor

from fundl import random, training
from fundl.kernels import no_grad
from fundl.layer import Model
from fundl.layers.dropout import rekey
from fundl.memory import keep_freed_memory
from fundl.model import Loss, backward_params, forward
from fundl.optim.transform import Transform
from fundl.progress import show
from fundl.training import Batches, Epoch, Evaluation, Interrupted, Metric, Report, Step, TrainState
from fundl.tree import describe

if TYPE_CHECKING:
    from rich.console import Console
from fundl.ensemble.models import Ensemble, require_keys, unstack
from fundl.ensemble.optimizers import of_runs
from fundl.ensemble.runs import each, of_each

P = TypeVar("P", bound=Model)
S = TypeVar("S")
Target = TypeVar("Target")


def train_state(keys: Tensor, models: Ensemble[P], optimizer: Transform[S]) -> TrainState[Ensemble[P], S]:
    """The state that the training of an ensemble starts from.

    Args:
        keys: one for each run: where all its randomness comes from, as in `train_state`.
        models: with values, as `ensemble.initialize` gives them.
        optimizer: makes its own first state.

    Shape:
        keys (R, 2)

    Raises:
        TypeError: `keys` are not keys, or `models` is not an ensemble.
        ValueError: there are not as many keys as models, or these have no values yet.

    >>> from fundl import ensemble, key, linear, sgd, split
    >>> models = ensemble.initialize(split(key(0), 3), linear(2, 1))
    >>> ensemble.train_state(split(key(1), 3), models, sgd(0.1)).key.shape
    torch.Size([3, 2])
    """
    if not isinstance(models, Ensemble):
        raise TypeError(f"an ensemble is what ensemble.initialize or ensemble.stack makes, not {describe(models)}")
    if require_keys(keys) != models.runs:
        raise ValueError(f"each run needs a key of its own, but the ensemble has {models.runs} runs, and keys are {len(keys)}")
    return attrs.evolve(training.train_state(keys[0], models, of_runs(optimizer)), key=keys)


def train_step(loss: Loss[Tensor, Target], optimizer: Transform[S]) -> Step[Ensemble[P], S, Target]:
    """The step of all runs at once: of each what `train_step` does.

        state, report = step(state, (x, target))

    Args:
        loss: of one run; see `each` for what it may do.
        optimizer: that made the state. One that looks at more than each number by itself (`clip_by_global_norm`, a weight
            decay with a predicate, one of your own) takes the runs one after the other, and R times as long.

    Shape:
        x (R, B, ...), target (R, B, ...), `Report.loss` (R,), `Report.prediction` (R, B, ...)

    >>> from fundl import ensemble, key, linear, mse, sgd, split
    >>> optimizer = sgd(0.1)
    >>> state = ensemble.train_state(split(key(1), 3), ensemble.initialize(split(key(0), 3), linear(2, 1)), optimizer)
    >>> state, report = ensemble.train_step(mse, optimizer)(state, (torch.ones(3, 4, 2), torch.zeros(3, 4, 1)))
    >>> report
    Report(loss=float32[3], prediction=float32[3, 4, 1])
    """
    losses, optimizer = each(loss), of_runs(optimizer)

    def step(state: TrainState[Ensemble[P], S], batch: tuple[Tensor, Target]) -> tuple[TrainState[Ensemble[P], S], Report]:
        x, target = training._pair(batch)
        model = _rekeyed(state) if training._draws(state.model) else state.model
        prediction, residuals = forward(model, x)
        kept = [residuals]
        del residuals  # so that backward can free them one by one
        with no_grad():
            values, grad = losses(prediction, target)
            if (scale := optimizer.loss_scale(state.optimizer.inner)) is not None:
                grad = grad * scale.reshape(-1, *[1] * (grad.ndim - 1))  # each run has its own
            grads = backward_params(model, kept.pop(), grad)
            trained, optimizer_state = optimizer.step(grads, state.optimizer, state.model)
            return TrainState(trained, optimizer_state, state.key, state.step + 1), Report(values, prediction)

    return step


def _rekeyed(state: TrainState[Ensemble[P], S]) -> Ensemble[P]:
    """The models with the keys of the step, for each run its own."""
    step = state.step

    def of_one(models: P, key: Tensor) -> P:
        return rekey(models, random.fold_in(key, step))

    return Ensemble(each(of_one)(state.model.models, state.key))


def fit(
    step: Step[Ensemble[P], S, Target],
    state: TrainState[Ensemble[P], S],
    batches: Batches[Target],
    *,
    epochs: int,
    metric: Metric[Target] | None = None,
    evaluate: Callable[[P], Evaluation] | None = None,
    evaluate_every: int = 1,
    progress: "bool | Console" = True,
) -> tuple[TrainState[Ensemble[P], S], tuple[tuple[Epoch, ...], ...]]:
    """The training of an ensemble: of each run what `fit` does.

    Args:
        step: makes the next state, as that of `ensemble.train_step` does.
        state: to begin with; it stays as it is.
        batches: of an epoch, for all runs. A function of the epoch's keys, one for each run:
            ``lambda keys: ensemble.minibatches(keys, data, 10)``; or anything that gives pairs (x, target) each time it is
            gone through.
        epochs: how often to go through the batches.
        metric: of one run, to be measured on the training batches as well.
        evaluate: measures one model, on other data; it is called for each.
        evaluate_every: after how many epochs to do so. After the last it is done in any case.
        progress: whether to show a bar (on a terminal) or some lines (elsewhere) on standard error, of the means over the
            runs; or where to show them.

    Returns:
        The state after the last step, and for each run its history, as `fit` gives it (`Epoch.seconds` is that of all runs
        together).

    Raises:
        ValueError: `epochs` is negative, `evaluate_every` less than 1, or an epoch has no batches.
        TypeError: what `batches` gives are not pairs.
        FloatingPointError: the loss of a run is no longer finite.
        Interrupted: Ctrl-C was pressed. Its history is that of the means over the runs.

    >>> from fundl import disk, ensemble, key, linear, mse, one_hot, sgd, split
    >>> points, labels = disk(key(0), 100)
    >>> data, optimizer = ensemble.share((points, one_hot(labels, 2)), 3), sgd(0.1)
    >>> state = ensemble.train_state(split(key(2), 3), ensemble.initialize(split(key(1), 3), linear(2, 2)), optimizer)
    >>> step = ensemble.train_step(mse, optimizer)
    >>> state, histories = ensemble.fit(
    ...     step, state, lambda keys: ensemble.minibatches(keys, data, 10), epochs=5, progress=False
    ... )
    >>> [history[-1].step for history in histories]
    [50, 50, 50]
    """
    if epochs < 0:
        raise ValueError(f"the number of epochs must be 0 or more, not {epochs}")
    if evaluate_every < 1:
        raise ValueError(f"evaluate_every must be 1 epoch or more, not {evaluate_every}")
    keep_freed_memory()
    history: list[tuple[Epoch, ...]] = []
    means: list[Epoch] = []
    try:
        with torch.inference_mode(), show(progress, "epoch", epochs) as shown:
            steps = 0
            for number in range(1, epochs + 1):
                start, first_step, measured = time.perf_counter(), int(state.step), _Measured(metric)
                of_epoch = batches(_epoch_keys(state.key, first_step)) if callable(batches) else batches
                steps = operator.length_hint(of_epoch) or steps
                for batch in of_epoch:
                    state, report = step(state, batch)
                    measured.add(*batch, report)
                    shown.move(number - 1 + len(measured.losses) / max(steps, len(measured.losses)))
                steps = len(measured.losses)
                train = measured.results(number, first_step)
                seconds = time.perf_counter() - start
                is_due = number % evaluate_every == 0 or number == epochs
                test = [evaluate(model) for model in unstack(state.model)] if evaluate is not None and is_due else None
                history.append(
                    tuple(
                        Epoch(number, first_step + steps, of_run, None if test is None else test[run], seconds)
                        for run, of_run in enumerate(train)
                    )
                )
                means.append(Epoch(number, first_step + steps, _mean(train), None if test is None else _mean(test), seconds))
                speed = f"{len(train) * sum(measured.rows) / seconds:,.0f} examples/s"
                shown.finish(number, training._summary(means[-1], metric), speed)
    except KeyboardInterrupt as error:
        raise Interrupted(training._for_any_use(state), tuple(means)) from error
    return training._for_any_use(state), tuple(zip(*history, strict=True)) if history else ((),) * len(state.key)


def _epoch_keys(keys: Tensor, first_step: int) -> Tensor:
    """The keys of an epoch that begins with a step, as `fit` derives each from that of its run."""
    return each(lambda key: random.fold_in(key, training._EPOCHS + first_step))(keys)


def _mean(results: Sequence[Evaluation]) -> Evaluation:
    return Evaluation(fmean(result.loss for result in results), fmean(result.metric for result in results))


class _Measured(Generic[Target]):
    """The losses and metrics of the batches of an epoch, for each run."""

    def __init__(self, metric: Metric[Target] | None) -> None:
        self.losses: list[Tensor] = []  # (R,) each
        self.rows: list[int] = []
        self._metric = metric
        self._waiting: list[tuple[Tensor, Target]] = []
        self._metrics: list[Tensor] = []  # (R,) each
        self._metric_rows: list[int] = []

    def add(self, x: Tensor, target: Target, report: Report) -> None:
        self.losses.append(report.loss)
        self.rows.append(x.shape[1])
        if self._metric is not None:
            self._waiting.append((report.prediction, target))
            if len(self._waiting) * report.prediction.numel() > training._BUFFER_NUMBERS:
                self._measure(self._metric)

    def _measure(self, metric: Metric[Target]) -> None:
        of_runs = of_each(each(training._concatenated)(self._waiting))
        self._metrics.append(torch.stack([metric(prediction, target) for prediction, target in of_runs]))
        self._metric_rows.append(sum(self.rows) - sum(self._metric_rows))
        self._waiting = []

    def results(self, epoch: int, first_step: int) -> list[Evaluation]:
        """The means of each run, if there were batches, and the losses finite."""
        if not self.losses:
            raise ValueError(
                f"epoch {epoch} has no batches: batches are a list, a DataLoader, or a function of the epoch's keys; an"
                " iterator can be gone through only once"
            )
        if self._metric is not None and self._waiting:
            self._measure(self._metric)
        losses = _means(self.losses, self.rows)
        for run, loss in enumerate(losses):
            if not math.isfinite(loss):
                step = next(step for step, values in enumerate(self.losses, 1) if not values[run].isfinite())
                raise FloatingPointError(
                    f"the loss of run {run} is {float(self.losses[step - 1][run])} in epoch {epoch}, at step"
                    f" {first_step + step}: its training diverges. Try a smaller learning rate, clip the gradients, or look for"
                    " NaN in the data"
                )
        metrics = _means(self._metrics, self._metric_rows) if self._metrics else [math.nan] * len(losses)
        return [Evaluation(loss, metric) for loss, metric in zip(losses, metrics, strict=True)]


def _means(numbers: Sequence[Tensor], weights: Sequence[int]) -> list[float]:
    """For each run the weighted mean of its numbers, which come as one tensor (R,) for each weight."""
    stacked = torch.stack([*numbers], 1)
    if stacked.ndim != 2:
        raise ValueError(
            "a loss and a metric are single numbers for each run, tensors without axes, but those of all runs are of shape"
            f" {tuple(numbers[0].shape)}"
        )
    of_runs: list[list[float]] = stacked.tolist()  # the one place that waits for the device
    return [sum(map(operator.mul, of_run, weights)) / sum(weights) for of_run in of_runs]
