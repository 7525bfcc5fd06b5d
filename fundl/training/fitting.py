"""The training of a model, from the first epoch to the last."""

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from fundl import random
from fundl._common.modes import inference_mode
from fundl._common.progress import Progress
from fundl._common.step_runner import Compile, CompiledStepRunner, StepRunner, pays
from fundl.layer import Model
from fundl.random import Key
from fundl.training.evaluation import Evaluation, Metric, for_any_use
from fundl.training.run import EPOCHS, Batches, Epoch, Run
from fundl.training.step import Report, Step, TrainState

if TYPE_CHECKING:
    from rich.console import Console

P = TypeVar("P", bound=Model)
S = TypeVar("S")
X = TypeVar("X")
Target = TypeVar("Target")
Prediction = TypeVar("Prediction")


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
        state: to begin with; it stays as it is, and is copied, also where the step donates.
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
    run = Run(
        step,
        state,
        batches,
        _epoch_key,
        metric,
        None if evaluate is None else lambda model: (evaluate(model),),
        evaluate_every,
        lambda steps, shown: _pace(step, state, steps, compile, shown),
    )
    run.go(epochs, progress)
    return for_any_use(run.good), tuple([epoch for (epoch,) in run.history])


def _epoch_key(key: Key, first_step: int) -> Key:
    with inference_mode():  # many small kernels
        folded = random.fold_in(key, EPOCHS + first_step)
    return folded.clone()


def _pace(
    step: Step[P, S, X, Target, Prediction], state: TrainState[P, S], steps: int, compiled: Compile, shown: Progress
) -> StepRunner[TrainState[P, S], tuple[X, Target], Report[Prediction]]:
    """How the steps of a run are taken."""
    if pays(steps, state.model) if compiled == "auto" else compiled:
        return CompiledStepRunner(step, shown, insist=compiled is True)
    return StepRunner(step)
