"""The training of a model, from the first epoch to the last."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from fundl._common.suggestions import with_suggestions
from fundl.groups import Group
from fundl.layer import P, Prediction, Target
from fundl.metrics.metric import Metric, require_metrics
from fundl.runs import ONE
from fundl.training._means import for_any_use
from fundl.training._over import processes_of
from fundl.training._run import Run
from fundl.training._step_runner import Compile
from fundl.training.batches import Batches
from fundl.training.checkpoints import Checkpoints
from fundl.training.epochs import reached, runner_for
from fundl.training.history import Epoch, Evaluation
from fundl.training.step import S, Step, TrainState, X

if TYPE_CHECKING:
    from rich.console import Console


@with_suggestions
def fit(
    step: Step[P, S, X, Target, Prediction],
    state: TrainState[P, S],
    batches: Batches[X, Target],
    *,
    epochs: int,
    every: int | None = None,
    metrics: Mapping[str, Metric[Prediction, Target]] | None = None,
    evaluate: Callable[[P], Evaluation] | None = None,
    evaluated: Callable[[TrainState[P, S]], P] | None = None,
    evaluate_every: int = 1,
    checkpoints: Checkpoints | None = None,
    compile: Compile = "auto",  # noqa: A002  # what it does; nobody compiles Python here
    donate: bool = False,
    over: Group | None = None,
    progress: "bool | Console" = True,
) -> tuple[TrainState[P, S], tuple[Epoch, ...]]:
    """A training run: the fold of a step over the batches of some epochs. `epochs` gives the same run epoch by epoch.

    The same step, state and batches give the same bits, and fit(a epochs) followed by fit(b epochs) those of
    fit(a + b epochs): an epoch's key is folded from the state's key and step. (What is compiled rounds differently: to add up
    to the bit, all of the three are compiled, or none.)

    Where micro-batches wait at its end, in a window of `accumulate` that is not full, a warning tells so: see `finish`.

    Whatever error ends it, nothing is lost: `last_good` has the state and the history that it carries.

    Args:
        step: makes the next state, as that of `train_step` does. It runs in inference mode, and nothing else does. It may be
            one that `jit` compiled.
        state: to begin with; it stays as it is, also where the step donates, unless `donate` says otherwise.
        batches: of an epoch. A function of the epoch's key: ``lambda key: minibatches(key, data, 10)``; or anything that
            gives pairs (x, target) each time it is gone through: a list, a DataLoader. x and target are what the model and
            the loss take: tensors, or any trees of them, and not of one length or structure in all batches.
        epochs: how often to go through the batches.
        every: how many steps an epoch has, however many batches there are; see `epochs`.
        metrics: by names of your own, to be measured on the training batches as well, with no forward pass of its own:
            ``{"accuracy": accuracy}``. Their means, and that of the loss, weigh batches as `evaluate` does.
        evaluate: measures the model, on other data: ``lambda model: evaluate(mse, model, [test], metrics=metrics)``.
        evaluated: which model that is, as a function of the state: `averaged` for the average that `ema` keeps. None for the
            one that is trained.
        evaluate_every: after how many epochs to do so. After the last it is done in any case.
        checkpoints: where to keep checkpoints, and to go on from the newest one that is there; None for none.
        compile: whether to compile the step, and run many as one call: see `scan`. Batches unlike the first, such as a smaller
            last one, are run as they are. "auto" does so where it saves more time than compiling may take: in runs of many
            steps, as far as the length of the batches tells; and if it can be done.
        donate: whether `state` is used up, and so is the state before each epoch: for a model that fills the memory. Then a run
            takes the memory of one state, that of the params and of what the optimizer remembers, and not of two beside the
            given one (of which nobody else must hold a part: ``del model``). What it costs: of an epoch at whose end a loss or
            a parameter is not finite, nothing is left but the error.
        over: the processes that make the run together, that the step is over: each of them calls `fit` with the same state, and
            with batches of which it has its part, ``minibatches(key, data, 256, part=group)``. They get the same result. The
            first one alone writes checkpoints, from which all of them go on, and shows progress.
        progress: whether to show a bar (on a terminal) or some lines (elsewhere) on standard error; or where to show them.

    Returns:
        The state after the last step, and what happened, epoch by epoch.

    Raises:
        ValueError: `epochs` is negative, `evaluate_every` less than 1, or an epoch has no batches.
        ValueError: the step is over other processes than `over`, or their states or numbers of batches differ.
        TypeError: what `batches` gives are not pairs, the state is none, or a metric or `evaluate` returns something else.
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
    together = processes_of(step, over)
    runner = runner_for(step, state, epochs, compile, together)
    run = Run(ONE, step, state, batches, require_metrics(metrics), runner, donate, every, together)
    for _ in reached(
        run,
        epochs,
        evaluate=evaluate,
        evaluated=evaluated,
        evaluate_every=evaluate_every,
        checkpoints=checkpoints,
        progress=progress,
    ):
        pass
    return for_any_use(run.good), tuple([epoch for (epoch,) in run.history])
