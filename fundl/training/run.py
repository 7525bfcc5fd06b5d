"""A run: a fold of a step over the batches of some epochs, of which nothing is lost, whatever ends it."""

import math
import operator
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Final, Generic, Self, TypeAlias, TypeVar, cast, final

import attrs
import torch
from torch import Tensor

from fundl import tree
from fundl._common.modes import callers_mode, inference_mode
from fundl._common.progress import Progress, show
from fundl._common.step_runner import StepRunner
from fundl.data import Minibatches
from fundl.layer import Model
from fundl.memory import keep_freed_memory
from fundl.random import Key
from fundl.runs import of_each
from fundl.training.evaluation import Evaluation, Means, Metric, for_any_use
from fundl.training.step import Report, Step, TrainState
from fundl.weights import by_rows, rule_of

if TYPE_CHECKING:
    from rich.console import Console

P = TypeVar("P", bound=Model)
S = TypeVar("S")
T = TypeVar("T")
X = TypeVar("X")
Target = TypeVar("Target")
Prediction = TypeVar("Prediction")

Batches: TypeAlias = Callable[[Key], Iterable[tuple[X, Target]]] | Iterable[tuple[X, Target]]
"""The batches (x, target) of an epoch: as a function of the epoch's key, or something to go through once per epoch."""

EPOCHS: Final = 2**63  # the keys of steps are folded from the numbers below, those of epochs from the numbers above


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


# --- What is left of a run that an error ended ------------------------------------------------------------------------


class Interrupted(KeyboardInterrupt):
    """Ctrl-C during `fit`, with all that was done so far. Who does not catch it stops, as after any Ctrl-C.

    Args:
        state: the `TrainState` after the last step; `last_good` gives it with its type.
        history: of the epochs that were finished.
    """

    def __init__(self, state: object, history: tuple[Epoch, ...]) -> None:
        super().__init__(
            f"finished epochs: {len(history)}. Nothing is lost: `except Interrupted as stop` has stop.state and stop.history;"
            " in a notebook, sys.last_value has them"
        )
        self.state = state
        self.history = history


class _Left(str):
    """A note on an error that ended a run; it has what is left of it."""

    __slots__ = ("history", "state")
    state: object
    history: tuple[Epoch, ...]

    @classmethod
    def of(cls, state: object, history: tuple[Epoch, ...]) -> Self:
        note = cls(
            f"during fit, finished epochs: {len(history)}. Nothing is lost: `except Exception as error` has the last good state"
            " and the history, by `state, history = last_good(error, state)`; in a notebook, error is sys.last_value"
        )
        note.state, note.history = state, history
        return note


def last_good(error: BaseException, state: TrainState[P, S]) -> tuple[TrainState[P, S], tuple[Epoch, ...]]:
    """What was done by a `fit` before an error ended it: whatever error that was, Ctrl-C among them.

    Args:
        error: that was raised.
        state: that was given to `fit`.

    Returns:
        The state after the last step that left the model finite (after an error that was found at the end of an epoch, that
        before the epoch), and the history of the epochs that were finished. Of an error that does not come from a `fit`, the
        given state and an empty history.

    >>> from fundl import fit, initialize, key, last_good, linear, mse, sgd, train_state, train_step
    >>> def batches():
    ...     yield torch.ones(4, 2), torch.zeros(4, 1)
    ...     raise OSError("the disk is gone")
    >>> state = train_state(key(1), initialize(key(0), linear(2, 1)), sgd(0.1))
    >>> try:
    ...     state, history = fit(train_step(mse, sgd(0.1)), state, batches(), epochs=5, progress=False)
    ... except OSError as error:
    ...     state, history = last_good(error, state)
    >>> state.step, history
    (tensor(1), ())
    """
    notes = [note for note in getattr(error, "__notes__", ()) if isinstance(note, _Left)]
    left = error if isinstance(error, Interrupted) else notes[-1] if notes else None
    if left is None or not isinstance(left.state, TrainState):
        return state, ()
    return cast("TrainState[P, S]", left.state), left.history  # a run's states are all of the type of the first


# --- The fold ---------------------------------------------------------------------------------------------------------

# What a run is about is one model, or an ensemble: `ensemble.fit` is the same fold, of a state whose tensors have a first axis
# of the runs. Whatever is asked of each run is a tuple here, of one for a single model.


@attrs.define
class Run(Generic[P, S, X, Target, Prediction]):
    """A run on its way.

    Args:
        step: makes the next state.
        good: the state at the end of the last epoch, whose numbers were all finite. Steps never see its tensors: a step that
            donates, or writes, uses up others.
        batches: of an epoch.
        epoch_key: from the state's key, and the step that an epoch begins with, to the epoch's key.
        metric: to be measured on the training batches.
        evaluate: measures the model of each run; None if nothing is to be measured.
        evaluate_every: after how many epochs.
        pace_for: how steps are taken, for so many steps as the run may have.
        ensemble: whether this is the run of an ensemble.
    """

    step: Step[P, S, X, Target, Prediction]
    good: TrainState[P, S]
    batches: Batches[X, Target]
    epoch_key: Callable[[Key, int], Key]
    metric: Metric[Prediction, Target] | None
    evaluate: Callable[[P], Sequence[Evaluation]] | None
    evaluate_every: int
    pace_for: "Callable[[int, Progress], _StepRunner[P, S, X, Target, Prediction]]"
    ensemble: bool = False
    history: list[tuple[Epoch, ...]] = attrs.field(factory=list, init=False)
    _current: TrainState[P, S] = attrs.field(init=False)
    _pace: "_StepRunner[P, S, X, Target, Prediction] | None" = attrs.field(default=None, init=False)
    _steps: int = attrs.field(default=0, init=False)  # of an epoch, as far as is known

    def __attrs_post_init__(self) -> None:
        if not isinstance(self.good, TrainState):
            raise TypeError(
                f"the state is what train_state(key, model, optimizer) makes, or a step or fit returned, not"
                f" {tree.describe(self.good)}"
            )
        self._current = _copied(self.good)

    def go(self, epochs: int, progress: "bool | Console") -> None:
        """Make some epochs; an error carries what was done before it."""
        if epochs < 0:
            raise ValueError(f"the number of epochs must be 0 or more, not {epochs}")
        if self.evaluate_every < 1:
            raise ValueError(f"evaluate_every must be 1 epoch or more, not {self.evaluate_every}")
        keep_freed_memory()
        try:
            with show(progress, "epoch", epochs) as shown:
                for number in range(1, epochs + 1):
                    self._epoch(number, epochs, shown)
        except KeyboardInterrupt as error:
            raise Interrupted(self._last(), self._told()) from error
        except BaseException as error:
            error.add_note(_Left.of(self._last(), self._told()))
            raise

    def _epoch(self, number: int, epochs: int, shown: Progress) -> None:
        """Make an epoch, and write it down once all is well with its numbers."""
        start, first_step = time.perf_counter(), int(self.good.step)
        means = self._go_through(number, epochs, first_step, shown)
        train = _results(means, number, first_step)
        good = _copied(self._current)
        _require_finite(good.model, f"epoch {number}, step {first_step + self._steps}", ensemble=self.ensemble)
        self.good = good
        seconds = time.perf_counter() - start
        self.history.append(tuple([Epoch(number, first_step + self._steps, of_run, None, seconds) for of_run in train]))
        if self.evaluate is not None and (number % self.evaluate_every == 0 or number == epochs):
            tests = self.evaluate(good.model)
            together = zip(self.history[-1], map(_require_evaluation, tests), strict=True)
            self.history[-1] = tuple([attrs.evolve(epoch, test=test) for epoch, test in together])
        summary = _summary(_over_runs(self.history[-1]), self.metric)
        shown.finish(number, summary, f"{means.examples * len(train) / seconds:,.0f} examples/s")

    def _go_through(self, number: int, epochs: int, first_step: int, shown: Progress) -> Means[Prediction, Target]:
        """Make a step of each batch."""
        means = Means(rule_of(self.step) or by_rows, self.metric, rows=1 if self.ensemble else 0)
        batches = self.batches
        of_epoch = batches(self.epoch_key(self.good.key, first_step)) if callable(batches) else batches
        steps = operator.length_hint(of_epoch) or self._steps
        if self._pace is None:
            self._pace = self.pace_for(steps * epochs, shown)
        source = of_epoch if type(of_epoch) in _OURS else _outside(callers_mode(), of_epoch)
        # Inference mode makes small kernels cheaper by a tenth. It is for the steps alone: who makes batches, or measures, may
        # want to do with tensors what it forbids.
        with inference_mode():
            for after, (x, target), report, count in self._pace.take(self._current, source):
                self._current = after
                if count:
                    means.add_many(x, target, report)
                else:
                    means.add(x, target, report)
                shown.move(number - 1 + len(means.losses) / max(steps, len(means.losses)))
        self._steps = len(means.losses)
        return means

    def _last(self) -> TrainState[P, S]:
        """The state after the last step, if all is well with it; else the last good one."""
        try:
            state = for_any_use(self._current)
            return state if _not_finite(state.model) is None else self.good
        except Exception:  # a step used it up and made no other, or there is no memory for copies
            return self.good

    def _told(self) -> tuple[Epoch, ...]:
        return tuple(map(_over_runs, self.history))


_StepRunner: TypeAlias = StepRunner[TrainState[P, S], tuple[X, Target], Report[Prediction]]


_OURS: Final = frozenset({list, tuple, Minibatches})
"""What runs nothing of a user's as it is gone through."""


def _outside(mode: callers_mode, batches: Iterable[T]) -> Iterator[T]:
    """The batches, made in another mode than that of who takes them."""
    with mode:
        iterator = iter(batches)
    while True:
        with mode:
            try:
                batch = next(iterator)
            except StopIteration:
                return
        yield batch


def _copied(state: TrainState[P, S]) -> TrainState[P, S]:
    return tree.map(torch.clone, state)


def _over_runs(epochs: Sequence[Epoch]) -> Epoch:
    """An epoch of an ensemble, as the means over the runs."""
    first, tests = epochs[0], [epoch.test for epoch in epochs if epoch.test is not None]
    if len(epochs) == 1:
        return first
    return attrs.evolve(first, train=_mean([epoch.train for epoch in epochs]), test=_mean(tests) if tests else None)


def _mean(results: Sequence[Evaluation]) -> Evaluation:
    return Evaluation(fmean(result.loss for result in results), fmean(result.metric for result in results))


# --- Whether all is well ----------------------------------------------------------------------------------------------

_ADVICE: Final = "Try a smaller learning rate, clip the gradients, or look for NaN in the data"


def _results(means: Means[Prediction, Target], epoch: int, first_step: int) -> tuple[Evaluation, ...]:
    """The means of an epoch, if there were batches, and their losses finite."""
    if not means.losses:
        raise ValueError(
            f"epoch {epoch} has no batches: batches are a list, a DataLoader, or a function of the epoch's key; an iterator can"
            " be gone through only once"
        )
    results = means.results()
    if not all(math.isfinite(result.loss) for result in results) and (found := means.divergence()) is not None:
        run, place, value = found
        whose, its = (f" of run {run}", "its") if len(results) > 1 else ("", "the")
        raise FloatingPointError(
            f"the loss{whose} is {value} in epoch {epoch}, at step {first_step + place + 1}: {its} training diverges. {_ADVICE}"
        )
    return results


def _require_finite(model: object, place: str, *, ensemble: bool) -> None:
    """Find what the last step of an epoch did to a model: no loss tells of it any more."""
    if (path := _not_finite(model)) is None:
        return
    whose = ""
    if ensemble:
        whose = f" of run {next(run for run, of_run in enumerate(of_each(model)) if _not_finite(of_run) is not None)}"
    raise FloatingPointError(
        f"the model{whose} is no longer finite after the last step of {place}: model{path} holds nan or inf. {_ADVICE}"
    )


def _not_finite(model: object) -> str | None:
    """Where the first trainable leaf is that is not finite; None if all are."""
    leaves = tree.trainable_leaves(model)
    largest = torch._foreach_norm([leaf for leaf in leaves if leaf.numel()], math.inf)
    if all(of_device.isfinite().all() for of_device in _by_device(largest)):
        return None
    return next(path for path, leaf in zip(tree.trainable_paths(model), leaves, strict=True) if not leaf.isfinite().all())


def _by_device(numbers: Sequence[Tensor]) -> list[Tensor]:
    """Numbers, those of each device as one tensor, so that each is waited for once."""
    devices = dict.fromkeys(number.device for number in numbers)
    return [torch.stack([number for number in numbers if number.device == device]) for device in devices]


def _require_evaluation(result: object) -> Evaluation:
    if not isinstance(result, Evaluation):
        raise TypeError(
            f"evaluate, given to fit, returns an Evaluation, as fundl.evaluate(loss, model, batches) does, not"
            f" {tree.describe(result)}: Evaluation(loss=...) makes one of a number"
        )
    return result


# --- What is shown ----------------------------------------------------------------------------------------------------


def _summary(epoch: Epoch, metric: Metric[Prediction, Target] | None) -> str:
    """An epoch in a line."""
    name = str(getattr(getattr(metric, "func", metric), "__name__", "metric"))  # a configured metric is a functools.partial
    parts = described(epoch.train, "loss", name)
    if epoch.test is not None:
        parts += described(epoch.test, "test loss", f"test {name}")
    return "  ".join(parts)


def described(result: Evaluation, loss: str, metric: str) -> list[str]:
    """The numbers of an evaluation, with their names."""
    numbers = {loss: result.loss, metric: result.metric}
    return [
        f"{name} {number:.4f}" if abs(number) >= 0.001 else f"{name} {number:.0e}"  # as wide as each other
        for name, number in numbers.items()
        if not math.isnan(number)
    ]
