"""Training: a state, a step that makes the next state of it, and a run, which is a fold of the step over batches.

All of it is pure. A state determines everything that follows from it: the order of the batches, what dropout drops, the
parameters to the last bit. So a run can stop after any epoch and be taken up again, in another process too, and nothing
is different from a run that never stopped. That is why `fit` takes no callbacks: to do something between epochs, fit one
epoch at a time.

    while history[-1].train.metric < 0.97:
        state, more = fit(step, state, batches, epochs=1, metric=accuracy)
        history += more
        save("run.safetensors", state)
"""

import functools
import math
import operator
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Final, Generic, TypeAlias, TypeVar, final

import attrs
import torch
from torch import Tensor

from fundl import random, tree
from fundl.kernels import no_grad
from fundl.layer import Model
from fundl.layers.dropout import rekey
from fundl.memory import keep_freed_memory
from fundl.model import Loss, apply, backward_params, forward, require_gradient, require_model
from fundl.optim.transform import State, Transform
from fundl.pace import Compile, CompiledPace, Pace, pays
from fundl.progress import show
from fundl.random import Key
from fundl.tree import BUFFER, Record

if TYPE_CHECKING:
    from rich.console import Console

P = TypeVar("P", bound=Model)
S = TypeVar("S")
T = TypeVar("T")
Target = TypeVar("Target")

Metric: TypeAlias = Callable[[Tensor, Target], Tensor]
"""A metric: from a prediction and its target to one number, a mean over the examples."""
Batches: TypeAlias = Callable[[Key], Iterable[tuple[Tensor, Target]]] | Iterable[tuple[Tensor, Target]]
"""The batches (x, target) of an epoch: as a function of the epoch's key, or something to go through once per epoch."""

_EPOCHS: Final = 2**63  # the keys of steps are folded from the numbers below, those of epochs from the numbers above
_BUFFER_NUMBERS: Final = 2**20  # so many predicted numbers wait to be measured together


# --- One step -------------------------------------------------------------------------------------------------------


@final
@attrs.frozen(eq=False)
class TrainState(Record, Generic[P, S]):
    """All that a training run carries from step to step; made by `train_state`.

    Args:
        model: the model, without keys: what inference applies.
        optimizer: the state of the optimizer.
        key: where all randomness of the run comes from; it stays the same.
        step: how many steps have been made, an int64 tensor of no axes.
    """

    model: P
    optimizer: State[P, S]
    key: Key
    step: Tensor


@final
@attrs.frozen(eq=False)
class Report(Record):
    """What a step says of itself, without waiting for the device.

    Args:
        loss: the batch's loss, before the step's update.
        prediction: what the model made of the batch, before the step's update.
    """

    loss: Tensor
    prediction: Tensor


Step: TypeAlias = Callable[[TrainState[P, S], tuple[Tensor, Target]], tuple[TrainState[P, S], Report]]
"""A step: from a state and a batch (x, target) to the next state and a report. It counts `TrainState.step` up by one."""


def train_state(key: Key, model: P, optimizer: Transform[S]) -> TrainState[P, S]:
    """The state that a training run starts from.

    Args:
        key: where all randomness of the run comes from: the order of the batches, dropout.
        model: with values, as `initialize` gives them.
        optimizer: makes its own first state.

    Raises:
        TypeError: the key is none, or the model is not a layer or a tuple of layers.
        ValueError: the model has no values yet.

    >>> from fundl import initialize, key, linear, sgd, train_state
    >>> state = train_state(key(1), initialize(key(0), linear(2, 1)), sgd(0.1))
    >>> state.step
    tensor(0)
    """
    random.require_key(key)
    require_model(model)
    if any(leaf.is_meta for leaf in tree.leaves(model)):
        raise ValueError("the model has no values yet, only shapes: train what initialize(key(0), model) returns")
    return TrainState(model, optimizer.init(model), key, torch.zeros((), dtype=torch.int64, device=key.device))


def train_step(loss: Loss[Tensor, Target], optimizer: Transform[S]) -> Step[P, S, Target]:
    """The step of a training run: forward, loss, backward, update, as one pure function.

        state, report = step(state, (x, target))

    If layers of the model draw random numbers, they get keys that are folded from the state's key and step: the same state
    and batch give the same next state. The model in the state never has keys. If the optimizer scales the loss (see
    `dynamic_loss_scale`), its gradient is scaled here.

    Args:
        loss: from a prediction and its target to the loss and its gradient.
        optimizer: that made the state.

    >>> from fundl import initialize, key, linear, mse, sgd, train_state, train_step
    >>> optimizer = sgd(0.1)
    >>> state = train_state(key(1), initialize(key(0), linear(2, 1)), optimizer)
    >>> after, report = train_step(mse, optimizer)(state, (torch.ones(4, 2), torch.zeros(4, 1)))
    >>> state.step, after.step, report
    (tensor(0), tensor(1), Report(loss=float32[], prediction=float32[4, 1]))
    """

    def step(state: TrainState[P, S], batch: tuple[Tensor, Target]) -> tuple[TrainState[P, S], Report]:
        x, target = _pair(batch)
        model = rekey(state.model, random.fold_in(state.key, state.step)) if _draws(state.model) else state.model
        prediction, residuals = forward(model, x)
        kept = [residuals]
        del residuals  # so that backward can free them one by one
        with no_grad():
            value, grad = loss(prediction, target)
            require_gradient(grad, prediction, loss)
            if (scale := optimizer.loss_scale(state.optimizer.inner)) is not None:
                grad = grad * scale
            grads = backward_params(model, kept.pop(), grad)
            trained, optimizer_state = optimizer.step(grads, state.optimizer, state.model)
            return TrainState(trained, optimizer_state, state.key, state.step + 1), Report(value, prediction)

    return step


def _pair(batch: tuple[Tensor, Target]) -> tuple[Tensor, Target]:
    """A batch taken apart; a DataLoader gives lists, and a data set in place of batches gives tensors."""
    parts: object = batch
    if not isinstance(parts, tuple | list) or len(parts) != 2:
        raise TypeError(
            f"a batch is a pair (x, target), not {tree.describe(parts)}; the batches of a data set in memory are"
            " minibatches(key, (x, target), batch_size), or [(x, target)] for all in one"
        )
    x, target = batch
    return x, target


def _draws(model: object) -> bool:
    """Whether a layer of a model is stochastic. Each step asks, so it takes a microsecond; making keys takes a hundred."""
    parts: Iterable[object] = ()
    if isinstance(model, Record):
        stochastic, inner = _where_it_draws(type(model))  # type: ignore[arg-type]  # a class can be hashed, whatever its records can
        if stochastic or not inner:
            return stochastic
        parts = [getattr(model, name) for name in inner]
    elif isinstance(model, tuple | list):
        parts = model
    elif isinstance(model, dict):
        parts = model.values()
    for part in parts:  # noqa: SIM110  # any() over a generator takes four times as long
        if _draws(part):
            return True
    return False


@functools.cache
def _where_it_draws(cls: type[Record]) -> tuple[bool, tuple[str, ...]]:
    """Whether records of a class are stochastic (as `rekey` has it), and which fields may hold more than a tensor."""
    fields = [field for field in attrs.fields(cls) if field.name in cls.children]
    stochastic = any(field.name == "key" and field.metadata.keys() >= BUFFER.keys() for field in fields)
    return stochastic, tuple(field.name for field in fields if field.type not in {Tensor, Tensor | None})


# --- Measuring ------------------------------------------------------------------------------------------------------


@final
@attrs.frozen
class Evaluation:
    """What a model is worth on some data: means over the examples.

    Args:
        loss: the loss.
        metric: the metric; NaN if there was none.
    """

    loss: float
    metric: float = attrs.field(default=math.nan, eq=repr)  # NaN equals NaN


def evaluate(
    loss: Loss[Tensor, Target],
    model: Model,
    batches: Iterable[tuple[Tensor, Target]],
    *,
    metric: Metric[Target] | None = None,
) -> Evaluation:
    """The loss and a metric of a model on data that comes in batches.

    Both are means over the examples; of a loss or a metric that is not itself a mean over the examples, it is the mean
    over the batches, weighted by their sizes.

    Args:
        loss: as `train_step` takes it.
        model: a layer or a nested tuple of layers.
        batches: pairs (x, target): ``[(x, target)]`` for a whole data set at once, ``minibatches(None, (x, target), 1000)``
            for one that is too large for that, or a DataLoader.
        metric: from a prediction and its target to one number, such as `accuracy`.

    Raises:
        TypeError: what `batches` gives are not pairs.
        ValueError: there are no batches.

    >>> from fundl import Linear, evaluate, minibatches, mse
    >>> layer, data = Linear(torch.ones(1, 2), bias=None), (torch.ones(5, 2), torch.zeros(5, 1))
    >>> evaluate(mse, layer, [data]) == evaluate(mse, layer, minibatches(None, data, 2)) == Evaluation(loss=4.0)
    True
    """
    means = _Means(metric)
    for batch in batches:
        x, target = _pair(batch)
        prediction = apply(model, x)
        with no_grad():
            value, _ = loss(prediction, target)
            means.add(x, target, Report(value, prediction))
    if not means.losses:
        raise ValueError("there is nothing to evaluate on: no batches came")
    return means.result()


class _Means(Generic[Target]):
    """The mean loss and metric of many batches. Numbers stay on their device until the result is asked for.

    A metric of many small batches costs as much as their training: predictions wait, and are measured together.
    """

    def __init__(self, metric: Metric[Target] | None) -> None:
        self.losses: list[Tensor] = []
        self.rows: list[int] = []
        self._metric = metric
        self._waiting: list[tuple[Tensor, Target]] = []
        self._waiting_numbers = 0
        self._waiting_rows = 0
        self._measured: list[tuple[Tensor, int]] = []

    def add(self, x: Tensor, target: Target, report: Report) -> None:
        self.losses.append(report.loss)
        self.rows.append(x.shape[0])
        self._wait(report.prediction, target, x.shape[0])

    def add_many(self, x: Tensor, target: Target, reports: Report) -> None:
        """Add batches, and their reports, that are along a first axis."""
        steps, rows = x.shape[:2]
        self.losses += reports.loss.unbind()
        self.rows += [rows] * steps
        if self._metric is not None:
            self._wait(reports.prediction.flatten(0, 1), tree.map(lambda leaf: leaf.flatten(0, 1), target), steps * rows)

    def _wait(self, prediction: Tensor, target: Target, rows: int) -> None:
        if self._metric is not None:
            self._waiting.append((prediction, target))
            self._waiting_rows += rows
            self._waiting_numbers += prediction.numel()
            if self._waiting_numbers > _BUFFER_NUMBERS:
                self._measure(self._metric)

    def _measure(self, metric: Metric[Target]) -> None:
        with no_grad():
            self._measured.append((metric(*_concatenated(self._waiting)), self._waiting_rows))
        self._waiting, self._waiting_numbers, self._waiting_rows = [], 0, 0

    def result(self) -> Evaluation:
        if self._metric is not None and self._waiting:
            self._measure(self._metric)
        metrics, rows = [metric for metric, _ in self._measured], [rows for _, rows in self._measured]
        return Evaluation(_mean(self.losses, self.rows), _mean(metrics, rows) if metrics else math.nan)


def _concatenated(batches: list[T]) -> T:
    """One batch of many."""
    if len(batches) == 1:
        return batches[0]
    structure = tree.flatten(batches[0])[1]
    columns = zip(*(tree.flatten(batch)[0] for batch in batches), strict=True)
    return tree.unflatten(structure, [_cat(column) for column in columns])


def _cat(column: tuple[Tensor | None, ...]) -> Tensor | None:
    tensors = [leaf for leaf in column if leaf is not None]
    return torch.cat(tensors) if tensors else None


def _mean(numbers: list[Tensor], weights: list[int]) -> float:
    return sum(number * weight for number, weight in zip(_floats(numbers), weights, strict=True)) / sum(weights)


def _floats(numbers: list[Tensor]) -> list[float]:
    """The values of tensors of one number each: the one place that waits for the device."""
    stacked = torch.stack(numbers)
    if stacked.ndim != 1:
        raise ValueError(
            f"a loss and a metric are single numbers, tensors without axes, not of shape {tuple(numbers[0].shape)}"
        )
    values: list[float] = stacked.tolist()
    return values


# --- A run ----------------------------------------------------------------------------------------------------------


@final
@attrs.frozen
class Epoch:
    """What `fit` tells of an epoch.

    Args:
        epoch: its number, from 1 on, in this call of `fit`.
        step: how many steps the state has made at its end.
        train: means over the epoch, of each batch before its update.
        test: what the function given as `evaluate` returned; None if it was not asked after this epoch.
        seconds: that the steps took. Two epochs that differ in nothing else are equal.
    """

    epoch: int
    step: int
    train: Evaluation
    test: Evaluation | None
    seconds: float = attrs.field(eq=False)


class Interrupted(KeyboardInterrupt):
    """Ctrl-C during `fit`, with all that was done so far. Who does not catch it stops, as after any Ctrl-C.

    Args:
        state: the `TrainState` after the last step; ``isinstance`` tells a type checker.
        history: of the epochs that were finished.
    """

    def __init__(self, state: object, history: tuple[Epoch, ...]) -> None:
        super().__init__(
            f"finished epochs: {len(history)}. Nothing is lost: `except Interrupted as stop` has stop.state and stop.history;"
            " in a notebook, sys.last_value has them"
        )
        self.state = state
        self.history = history


def fit(
    step: Step[P, S, Target],
    state: TrainState[P, S],
    batches: Batches[Target],
    *,
    epochs: int,
    metric: Metric[Target] | None = None,
    evaluate: Callable[[P], Evaluation] | None = None,
    evaluate_every: int = 1,
    compile: Compile = "auto",  # noqa: A002  # what it does; nobody compiles Python here
    progress: "bool | Console" = True,
) -> tuple[TrainState[P, S], tuple[Epoch, ...]]:
    """A training run: the fold of a step over the batches of some epochs.

    The same step, state and batches give the same bits, and fit(a epochs) followed by fit(b epochs) those of
    fit(a + b epochs): an epoch's key is folded from the state's key and step. (What is compiled rounds differently: to add up
    to the bit, all of the three are compiled, or none.)

    Args:
        step: makes the next state, as that of `train_step` does.
        state: to begin with; it stays as it is.
        batches: of an epoch. A function of the epoch's key: ``lambda key: minibatches(key, data, 10)``; or anything that
            gives pairs (x, target) each time it is gone through: a list, a DataLoader.
        epochs: how often to go through the batches.
        metric: to be measured on the training batches as well, with no forward pass of its own.
        evaluate: measures the model, on other data: ``lambda model: evaluate(mse, model, [test], metric=accuracy)``.
        evaluate_every: after how many epochs to do so. After the last it is done in any case.
        compile: whether to compile the step, and run many as one call: see `scan`. Batches unlike the first, such as a smaller
            last one, are run as they are. "auto" does so where it saves more time than compiling may take: in runs of many
            steps, as far as the length of the batches tells; and if it can be done.
        progress: whether to show a bar (on a terminal) or some lines (elsewhere) on standard error; or where to show them.

    Returns:
        The state after the last step, and what happened, epoch by epoch.

    Raises:
        ValueError: `epochs` is negative, `evaluate_every` less than 1, or an epoch has no batches.
        TypeError: what `batches` gives are not pairs.
        FloatingPointError: the loss is no longer finite. Looked for after each epoch, since looking waits for the device.
        Interrupted: Ctrl-C was pressed.
        ImportError: `compile` is True, and this version of torch is not one that compiling is known to work with.

    >>> from fundl import disk, fit, initialize, key, linear, minibatches, mse, one_hot, sgd, train_state, train_step
    >>> points, labels = disk(key(0), 100)
    >>> data, optimizer = (points, one_hot(labels, 2)), sgd(0.1)
    >>> state = train_state(key(2), initialize(key(1), linear(2, 2)), optimizer)
    >>> step = train_step(mse, optimizer)
    >>> state, history = fit(step, state, lambda key: minibatches(key, data, 10), epochs=3, progress=False)
    >>> [epoch.step for epoch in history]
    [10, 20, 30]
    """
    if epochs < 0:
        raise ValueError(f"the number of epochs must be 0 or more, not {epochs}")
    if evaluate_every < 1:
        raise ValueError(f"evaluate_every must be 1 epoch or more, not {evaluate_every}")
    keep_freed_memory()
    history: list[Epoch] = []
    try:
        # Inference mode makes small kernels cheaper by a tenth; tensors that outlive it are copied below.
        with torch.inference_mode(), show(progress, "epoch", epochs) as shown:
            steps = 0
            pace: Pace[TrainState[P, S], tuple[Tensor, Target], Report] | None = None
            for number in range(1, epochs + 1):
                start, first_step, means = time.perf_counter(), int(state.step), _Means(metric)
                of_epoch = batches(random.fold_in(state.key, _EPOCHS + first_step)) if callable(batches) else batches
                steps = operator.length_hint(of_epoch) or steps
                if pace is None:
                    is_due = pays(steps * epochs, state.model) if compile == "auto" else compile
                    pace = CompiledPace(step, shown, insist=compile is True) if is_due else Pace(step)
                for after, (x, target), report, count in pace.take(state, of_epoch):
                    state = after
                    means.add(x, target, report) if not count else means.add_many(x, target, report)
                    shown.move(number - 1 + len(means.losses) / max(steps, len(means.losses)))
                steps = len(means.losses)
                train = _result(means, number, first_step)
                seconds = time.perf_counter() - start
                is_due = number % evaluate_every == 0 or number == epochs
                test = evaluate(state.model) if evaluate is not None and is_due else None
                history.append(Epoch(number, first_step + steps, train, test, seconds))
                shown.finish(number, _summary(history[-1], metric), f"{sum(means.rows) / seconds:,.0f} examples/s")
    except KeyboardInterrupt as error:
        raise Interrupted(_for_any_use(state), tuple(history)) from error
    return _for_any_use(state), tuple(history)


def _for_any_use(state: T) -> T:
    """The state with copies of what was made in inference mode: autograd, and writing in place, refuse such tensors."""
    return tree.map(lambda leaf: leaf.clone() if leaf.is_inference() else leaf, state)


def _result(means: _Means[Target], epoch: int, first_step: int) -> Evaluation:
    """The means of an epoch, if there were batches, and their losses finite."""
    if not means.losses:
        raise ValueError(
            f"epoch {epoch} has no batches: batches are a list, a DataLoader, or a function of the epoch's key; an iterator can"
            " be gone through only once"
        )
    result = means.result()
    if not math.isfinite(result.loss):
        place, value = next((place, value) for place, value in enumerate(_floats(means.losses)) if not math.isfinite(value))
        raise FloatingPointError(
            f"the loss is {value} in epoch {epoch}, at step {first_step + place + 1}: the training diverges. Try a smaller"
            " learning rate, clip the gradients, or look for NaN in the data"
        )
    return result


def _summary(epoch: Epoch, metric: Metric[Target] | None) -> str:
    """An epoch in a line."""
    name = str(getattr(getattr(metric, "func", metric), "__name__", "metric"))  # a configured metric is a functools.partial
    parts = _described(epoch.train, "loss", name)
    if epoch.test is not None:
        parts += _described(epoch.test, "test loss", f"test {name}")
    return "  ".join(parts)


def _described(result: Evaluation, loss: str, metric: str) -> list[str]:
    numbers = {loss: result.loss, metric: result.metric}
    return [
        f"{name} {number:.4f}" if abs(number) >= 0.001 else f"{name} {number:.0e}"  # as wide as each other
        for name, number in numbers.items()
        if not math.isnan(number)
    ]
