"""A training run as an iterator: what it has reached, epoch by epoch."""

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Generic, final

import attrs

from fundl import tree
from fundl._common.suggestions import name_of, with_suggestions
from fundl.groups import Group
from fundl.layer import P, Prediction, Target
from fundl.memory import keep_freed_memory
from fundl.metrics.metric import Metric, require_metrics
from fundl.runs import ONE
from fundl.training._keeping import Keeper
from fundl.training._over import processes_of, runs_in_python
from fundl.training._progress import Progress, show
from fundl.training._run import Run, RunnerFor, one_by_one
from fundl.training._step_runner import Compile, CompiledStepRunner, StepRunner, pays
from fundl.training.batches import Batches
from fundl.training.checkpoints import Checkpoints
from fundl.training.finishing import warn_of_waiting
from fundl.training.history import Epoch, Evaluation
from fundl.training.interruption import Interrupted, Left
from fundl.training.step import Report, S, Step, TrainState, X

if TYPE_CHECKING:
    from rich.console import Console


@final
@attrs.frozen
class Milestone(Epoch, Generic[P, S]):
    """What `epochs` gives of each epoch: its numbers, and the state at its end.

    Args:
        state: the state; it stays as it is, unless the run was told to donate: then only until the next epoch begins.
        history: of all epochs so far, this one among them, and those before a run was taken up.
    """

    state: TrainState[P, S] = attrs.field(eq=False, repr=False)
    history: tuple[Epoch, ...] = attrs.field(eq=False, repr=False)


@with_suggestions
def epochs(
    step: Step[P, S, X, Target, Prediction],
    state: TrainState[P, S],
    batches: Batches[X, Target],
    *,
    count: int,
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
) -> Generator[Milestone[P, S], TrainState[P, S] | None, None]:
    """A training run, epoch by epoch: to write down, to save, or to end early, by plain statements of a loop.

    What is computed is what `fit` computes, to the bit: it compiles once for the whole loop, draws one progress bar, and
    numbers the epochs through. Whoever leaves the loop has the last state in his hands, whatever made him leave it.

    Args:
        step, state, batches, metrics, evaluate, evaluated, evaluate_every, checkpoints, compile: see `fit`.
        donate, over, progress: likewise.
        count: how many epochs there are at most.
        every: how many steps an epoch has, however many batches there are: an epoch begins where the one before it ended, and
            the batches are made anew when they end. For a data set that nobody finishes. None for as many as there are batches.

    Returns:
        An iterator; each item is made when it is asked for. A run that is taken up from a checkpoint at the end of an epoch
        gives that epoch once more, since it is not known whether all was done with it, and then what comes after it; from
        one in the middle of an epoch, that epoch is the first. Its `send` takes another state for the next epoch to begin
        with: one made of ``epoch.state``, in which something else was set. It can be called within the loop, and returns the
        item with that state:

            for epoch in (run := epochs(step, state, batches, count=100)):
                if epoch.epoch == 50:
                    run.send(with_hyperparameters(epoch.state, rate=1e-4))

        What is sent is a part of the run, as all that the loop does with an epoch: a run that is taken up does it again.

    Raises:
        TypeError, ValueError: what is sent is no state, or of another step or key.
        Exception: what `fit` raises, when the epoch is asked for that it comes from. `last_good` has the state, as for `fit`.

    >>> from fundl import disk, epochs, initialize, is_stalled, key, linear, minibatches, mse, one_hot, sgd
    >>> from fundl import train_state, train_step
    >>> points, labels = disk(key(0), 100)
    >>> data, optimizer = (points, one_hot(labels, 2)), sgd(0.1)
    >>> state = train_state(key(2), initialize(key(1), linear(2, 2)), optimizer)
    >>> step = train_step(mse, optimizer)
    >>> for epoch in epochs(step, state, lambda key: minibatches(key, data, 10), count=50, progress=False):
    ...     if is_stalled(epoch.history, "train_loss", patience=2):
    ...         break
    >>> model = epoch.state.model
    >>> epoch.epoch < 50
    True
    """
    together = processes_of(step, over)
    runner = runner_for(step, state, count, compile, together)
    run = Run(ONE, step, state, batches, require_metrics(metrics), runner, donate, every, together)
    return _milestones(
        run,
        reached(
            run,
            count,
            evaluate=evaluate,
            evaluated=evaluated,
            evaluate_every=evaluate_every,
            checkpoints=checkpoints,
            progress=progress,
        ),
    )


def _milestones(
    run: Run[P, S, X, Target, Prediction], reached: Iterator[tuple[Epoch, ...]]
) -> Generator[Milestone[P, S], TrainState[P, S] | None, None]:
    for (epoch,) in reached:
        history = tuple([one for (one,) in run.history])
        milestone = Milestone(epoch.epoch, epoch.step, epoch.train, epoch.test, epoch.seconds, run.good, history)
        while (state := (yield milestone)) is not None:
            run.go_on_from(state)
            milestone = attrs.evolve(milestone, state=state)


def runner_for(
    step: Step[P, S, X, Target, Prediction],
    state: TrainState[P, S],
    count: int,
    compile: Compile,  # noqa: A002  # as it is called above
    over: Group | None = None,
) -> RunnerFor[P, S, X, Target, Prediction]:
    """What decides how the steps of a run of so many epochs are taken."""
    if compile != "auto" and not isinstance(compile, bool):
        raise ValueError(f'compile is "auto", True or False, not {compile!r}')

    def decide(
        steps: int, before: bool | None, shown: Progress
    ) -> StepRunner[TrainState[P, S], tuple[X, Target], Report[Prediction]]:
        compiled = compile
        if runs_in_python(step):
            if compiled is True:
                raise ValueError(
                    "the step of a pipeline runs in Python: give fit compile=False, and write pipeline_step(..., compile=True),"
                    " which compiles what each stage computes"
                )
            compiled = False
        if compiled == "auto":
            compiled = pays(steps * count, state.model) if before is None else before
        return CompiledStepRunner(step, shown, insist=compile is True, over=over) if compiled else one_by_one(step)

    return decide


def reached(
    run: Run[P, S, X, Target, Prediction],
    count: int,
    *,
    evaluate: Callable[[P], Evaluation] | None,
    evaluated: Callable[[TrainState[P, S]], P] | None,
    evaluate_every: int,
    checkpoints: Checkpoints | None,
    progress: "bool | Console",
) -> Iterator[tuple[Epoch, ...]]:
    """Make some epochs of a run, of one model or of many, as `fit` describes it: what happened in each, for each model."""
    _require_whole("the number of epochs", count)
    _require_whole("evaluate_every", evaluate_every)
    if run.every is not None:
        _require_whole("every, the steps of an epoch,", run.every)
    if not isinstance(checkpoints, Checkpoints | None):
        raise TypeError(f"checkpoints are Checkpoints(folder), which says what is kept there, not {tree.describe(checkpoints)}")
    if evaluate is not None and not callable(evaluate):
        raise TypeError(
            "evaluate is a function of a model, such as lambda model: fundl.evaluate(loss, model, batches), not"
            f" {tree.describe(evaluate)}"
        )
    if evaluated is not None and not callable(evaluated):
        raise TypeError(
            "evaluated is a function from the state to the model that is evaluated, such as averaged, not"
            f" {tree.describe(evaluated)}"
        )
    if not callable(run.step):
        raise TypeError(f"a step is what train_step(loss, optimizer) makes, not {tree.describe(run.step)}")
    if str(getattr(run.step, "__module__", "")).startswith("fundl.losses."):
        raise TypeError(f"a step is what train_step({name_of(run.step)}, optimizer) makes, not the loss itself")
    if count < 0:
        raise ValueError(f"the number of epochs must be 0 or more, not {count}")
    if evaluate_every < 1:
        raise ValueError(f"evaluate_every must be 1 epoch or more, not {evaluate_every}")
    if run.every is not None and run.every < 1:
        raise ValueError(f"every, the steps of an epoch, must be 1 or more, not {run.every}")
    keep_freed_memory()
    if not run.partners.is_first:
        progress = False
    keeper = Keeper.of(run, checkpoints, count)
    return _epoch_by_epoch(
        run, count, evaluate=evaluate, evaluated=evaluated, evaluate_every=evaluate_every, keeper=keeper, progress=progress
    )


def _require_whole(what: str, number: object) -> None:
    if type(number) is not int:
        raise TypeError(f"{what} must be an int, not {number!r}")


def _epoch_by_epoch(
    run: Run[P, S, X, Target, Prediction],
    count: int,
    *,
    evaluate: Callable[[P], Evaluation] | None,
    evaluated: Callable[[TrainState[P, S]], P] | None,
    evaluate_every: int,
    keeper: Keeper[P, S, X, Target, Prediction],
    progress: "bool | Console",
) -> Iterator[tuple[Epoch, ...]]:
    if run.history and not run.is_under_way:  # what was done with it may not have come to its end
        yield run.history[-1]
    first = len(run.history) + 1
    try:
        with show(progress, "epoch", count) as shown:
            for number in range(first, max(count, first if run.is_under_way else 0) + 1):
                with keeper.during_epoch() as between:
                    passed = run.epoch(shown, between)
                    if evaluate is not None and (number % evaluate_every == 0 or number >= count):
                        models = run.good.model if evaluated is None else evaluated(run.good)
                        tests = [_require_evaluation(evaluate(model)) for model in run.runs.apart(models)]
                        passed = tuple([attrs.evolve(epoch, test=test) for epoch, test in zip(passed, tests, strict=True)])
                    run.finish(passed)
                    keeper.after_epoch(is_last=number >= count)
                mean = _over_runs(passed)
                shown.finish(number, _summary(mean), f"{run.examples / mean.seconds:,.0f} examples/s")
                given = run.good
                try:
                    yield passed
                except GeneratorExit:
                    keeper.after_loop(given)
                    raise
                del given  # nothing holds a state longer than the run does
            keeper.wait()
        warn_of_waiting(run.good.optimizer)
    except GeneratorExit:  # whoever leaves the loop has the state
        raise
    except KeyboardInterrupt as error:
        keeper.end_with(error)
        raise Interrupted(run.last(), _means(run), keeper.how_to_go_on) from error
    except BaseException as error:
        keeper.end_with(error)
        error.add_note(Left.of(run.last(), _means(run), keeper.how_to_go_on))
        raise


def _means(run: Run[P, S, X, Target, Prediction]) -> tuple[Epoch, ...]:
    return tuple(map(_over_runs, run.history))


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
    shared = [name for name in results[0].metrics if all(name in result.metrics for result in results)]
    metrics = {name: fmean(result.metrics[name] for result in results) for name in shared}
    return Evaluation(fmean(result.loss for result in results), metrics)


def _summary(epoch: Epoch) -> str:
    """An epoch in a line."""
    parts = described(epoch.train)
    if epoch.test is not None:
        parts += [f"test {part}" for part in described(epoch.test)]
    return "  ".join(parts)


def described(result: Evaluation) -> list[str]:
    """The numbers of an evaluation, with their names."""
    return [
        f"{name} {number:.4f}" if not abs(number) < 0.001 else f"{name} {number:.0e}"  # as wide as each other
        for name, number in result.numbers.items()
    ]
