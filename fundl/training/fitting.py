"""The training of a model, from the first epoch to the last."""

import math
from collections.abc import Callable, Sequence
from statistics import fmean
from typing import TYPE_CHECKING

import attrs

from fundl import tree
from fundl.layer import P, Prediction, Target
from fundl.memory import keep_freed_memory
from fundl.metrics import Metric
from fundl.runs import ONE
from fundl.training._means import for_any_use
from fundl.training._progress import Progress, show
from fundl.training._step_runner import Compile, CompiledStepRunner, StepRunner, pays
from fundl.training.evaluation import Evaluation
from fundl.training.interruption import Interrupted, Left
from fundl.training.run import Batches, Epoch, Run, one_by_one
from fundl.training.step import Report, S, Step, TrainState, X

if TYPE_CHECKING:
    from rich.console import Console


def fit(
    step: Step[P, S, X, Target, Prediction],
    state: TrainState[P, S],
    batches: Batches[X, Target],
    *,
    epochs: int,
    metric: Metric[Prediction, Target] | None = None,
    evaluate: Callable[[P], Evaluation] | None = None,
    evaluate_every: int = 1,
    compile: Compile = "auto",  # noqa: A002  # what it does; nobody compiles Python here
    donate: bool = False,
    progress: "bool | Console" = True,
) -> tuple[TrainState[P, S], tuple[Epoch, ...]]:
    """A training run: the fold of a step over the batches of some epochs.

    The same step, state and batches give the same bits, and fit(a epochs) followed by fit(b epochs) those of
    fit(a + b epochs): an epoch's key is folded from the state's key and step. (What is compiled rounds differently: to add up
    to the bit, all of the three are compiled, or none.)

    Whatever error ends it, nothing is lost: `last_good` has the state and the history that it carries.

    Args:
        step: makes the next state, as that of `train_step` does. It runs in inference mode, and nothing else does. It may be
            one that `jit` compiled.
        state: to begin with; it stays as it is, also where the step donates, unless `donate` says otherwise.
        batches: of an epoch. A function of the epoch's key: ``lambda key: minibatches(key, data, 10)``; or anything that
            gives pairs (x, target) each time it is gone through: a list, a DataLoader. x and target are what the model and
            the loss take: tensors, or any trees of them, and not of one length or structure in all batches.
        epochs: how often to go through the batches.
        metric: to be measured on the training batches as well, with no forward pass of its own. Its mean, and that of the
            loss, weigh batches as `evaluate` does.
        evaluate: measures the model, on other data: ``lambda model: evaluate(mse, model, [test], metric=accuracy)``.
        evaluate_every: after how many epochs to do so. After the last it is done in any case.
        compile: whether to compile the step, and run many as one call: see `scan`. Batches unlike the first, such as a smaller
            last one, are run as they are. "auto" does so where it saves more time than compiling may take: in runs of many
            steps, as far as the length of the batches tells; and if it can be done.
        donate: whether `state` is used up, and so is the state before each epoch: for a model that fills the memory. Then a run
            takes the memory of one state, that of the params and of what the optimizer remembers, and not of two beside the
            given one (of which nobody else must hold a part: ``del model``). What it costs: of an epoch at whose end a loss or
            a parameter is not finite, nothing is left but the error.
        progress: whether to show a bar (on a terminal) or some lines (elsewhere) on standard error; or where to show them.

    Returns:
        The state after the last step, and what happened, epoch by epoch.

    Raises:
        ValueError: `epochs` is negative, `evaluate_every` less than 1, or an epoch has no batches.
        TypeError: what `batches` gives are not pairs, the state is none, or the metric or `evaluate` returns something else.
        FloatingPointError: the loss, or a parameter, is no longer finite. Looked for after each epoch, since looking waits for
            the device.
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

    def runner_for(steps: int, shown: Progress) -> StepRunner[TrainState[P, S], tuple[X, Target], Report[Prediction]]:
        if pays(steps * epochs, state.model) if compile == "auto" else compile:
            return CompiledStepRunner(step, shown, insist=compile is True)
        return one_by_one(step)

    run = Run(ONE, step, state, batches, metric, runner_for, donate)
    state, history = fold(run, epochs, evaluate, evaluate_every, progress)
    return state, tuple([epoch for (epoch,) in history])


def fold(
    run: Run[P, S, X, Target, Prediction],
    epochs: int,
    evaluate: Callable[[P], Evaluation] | None,
    evaluate_every: int,
    progress: "bool | Console",
) -> tuple[TrainState[P, S], list[tuple[Epoch, ...]]]:
    """Make some epochs of a run, of one model or of many, as `fit` describes it.

    Returns:
        The state after the last, and what happened in each, for each model.
    """
    if epochs < 0:
        raise ValueError(f"the number of epochs must be 0 or more, not {epochs}")
    if evaluate_every < 1:
        raise ValueError(f"evaluate_every must be 1 epoch or more, not {evaluate_every}")
    keep_freed_memory()
    history: list[tuple[Epoch, ...]] = []
    try:
        with show(progress, "epoch", epochs) as shown:
            for number in range(1, epochs + 1):
                history.append(run.epoch(shown))
                if evaluate is not None and (number % evaluate_every == 0 or number == epochs):
                    tests = [_require_evaluation(evaluate(model)) for model in run.runs.apart(run.good.model)]
                    together = zip(history[-1], tests, strict=True)
                    history[-1] = tuple([attrs.evolve(epoch, test=test) for epoch, test in together])
                mean = _over_runs(history[-1])
                shown.finish(number, _summary(mean, run.metric), f"{run.examples / mean.seconds:,.0f} examples/s")
    except KeyboardInterrupt as error:
        raise Interrupted(run.last(), tuple(map(_over_runs, history))) from error
    except BaseException as error:
        error.add_note(Left.of(run.last(), tuple(map(_over_runs, history))))
        raise
    return for_any_use(run.good), history


def _require_evaluation(result: object) -> Evaluation:
    if not isinstance(result, Evaluation):
        raise TypeError(
            f"evaluate, given to fit, returns an Evaluation, as fundl.evaluate(loss, model, batches) does, not"
            f" {tree.describe(result)}: Evaluation(loss=...) makes one of a number"
        )
    return result


# --- What is shown ----------------------------------------------------------------------------------------------------


def _over_runs(epochs: Sequence[Epoch]) -> Epoch:
    """An epoch of an ensemble, as the means over the runs."""
    first, tests = epochs[0], [epoch.test for epoch in epochs if epoch.test is not None]
    if len(epochs) == 1:
        return first
    return attrs.evolve(first, train=_mean([epoch.train for epoch in epochs]), test=_mean(tests) if tests else None)


def _mean(results: Sequence[Evaluation]) -> Evaluation:
    return Evaluation(fmean(result.loss for result in results), fmean(result.metric for result in results))


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
