"""A run on its way: the steps of one epoch after the other, and whether all is well with their numbers."""

import math
import time
from collections.abc import Callable, Mapping
from typing import Final, Generic, TypeAlias

import attrs
import torch
from torch import Tensor

from fundl import random, tree
from fundl._common.modes import inference_mode
from fundl._compiling.donation import clear_fields
from fundl.collectives import gather_numbers, require_same
from fundl.groups import Group
from fundl.layer import P, Prediction, Target
from fundl.metrics.metric import Metric
from fundl.random import Key
from fundl.runs import Runs
from fundl.training._means import Means, for_any_use
from fundl.training._partners import Partners
from fundl.training._progress import Progress
from fundl.training._signals import HeldSignals
from fundl.training._step_runner import CompiledStepRunner, DonatingStepRunner, StepRunner
from fundl.training.batches import Batches, Source
from fundl.training.history import Course, Epoch, Evaluation, Unfinished
from fundl.training.step import Report, S, Step, TrainState, X, donating_of, require_outcome, require_state

_Runner: TypeAlias = StepRunner[TrainState[P, S], tuple[X, Target], Report[Prediction]]
RunnerFor: TypeAlias = Callable[[int, bool | None, Progress], _Runner[P, S, X, Target, Prediction]]

_EPOCHS: Final = 2**63  # the keys of steps are folded from the numbers below, those of epochs from the numbers above
_SETTLED: Final = 32  # after so many steps no process of many has predictions that wait, however many rows are its own
_ADVICE: Final = "Try a smaller learning rate, clip the gradients, or look for NaN in the data"


@attrs.define
class _UnderWay(Generic[Prediction, Target]):
    """An epoch that is not finished: its first step, its means, and when it would have begun if it had not been interrupted."""

    number: int
    first_step: int
    means: Means[Prediction, Target]
    start: float


@attrs.define
class Run(Generic[P, S, X, Target, Prediction]):
    """A run in progress. Its numbers are tuples with an item for each model: one, unless it is an ensemble's.

    Args:
        runs: whether it is of one model, or of an ensemble.
        step: makes the next state.
        good: the state at the end of the last epoch, whose numbers were all finite. No step writes over its tensors, unless
            it is donated.
        batches: of an epoch.
        metrics: to be measured on them, by their names.
        runner_for: how steps are taken, where an epoch is of so many, as far as is known, and where it is known whether those
            before were compiled; None for one by one.
        donate: whether each epoch uses up the good state that it begins with.
        every: how many steps an epoch has; None for as many as there are batches.
        over: the processes that make the run together, more than one; None for this one alone.
    """

    runs: Runs
    step: Step[P, S, X, Target, Prediction]
    good: TrainState[P, S]
    batches: Batches[X, Target]
    metrics: Mapping[str, Metric[Prediction, Target]]
    runner_for: "RunnerFor[P, S, X, Target, Prediction] | None" = None
    donate: bool = False
    every: int | None = None
    over: Group | None = None
    partners: Partners = attrs.field(init=False)
    history: list[tuple[Epoch, ...]] = attrs.field(factory=list, init=False)  # of the epochs that were finished
    examples: int = attrs.field(default=0, init=False)  # of all runs, in the last epoch
    source: Source[X, Target] = attrs.field(init=False)
    _current: TrainState[P, S] = attrs.field(init=False)
    _runner: _Runner[P, S, X, Target, Prediction] | None = attrs.field(default=None, init=False)
    _under_way: _UnderWay[Prediction, Target] | None = attrs.field(default=None, init=False)
    _before: bool | None = attrs.field(default=None, init=False)  # whether the steps that another process took were compiled
    _first: tuple[X, Target] | None = attrs.field(default=None, init=False)  # batch of the pass that it was in

    def __attrs_post_init__(self) -> None:
        require_state(self.good)
        if self.over is not None:
            require_same(tree.as_whole(self.good), self.over, "the state")
        self.partners = Partners.of(self.good, self.over)
        self._current = self.good
        self.source = Source(self.batches, self._key_of_pass, self.every)

    def epoch(self, shown: Progress, between: Callable[[], None] | None = None) -> tuple[Epoch, ...]:
        """Make an epoch; its state is `good` once all is well with its numbers. It is under way until it is finished.

        Args:
            shown: what shows how far it is.
            between: to be done between steps, where the run could be taken up; signals wait for such a place. Of processes
                that make it together, after all steps: they look there whether each of them could be.
        """
        epoch = self._under_way = self._under_way or self._new_epoch()
        self._go_through(epoch, shown, between)
        results = self._results(epoch)
        self._require_finite(epoch)
        self._keep()
        self.examples = epoch.means.examples * len(results)
        seconds, last_step = time.perf_counter() - epoch.start, epoch.first_step + epoch.means.count
        self.history.append(tuple([Epoch(epoch.number, last_step, of_run, None, seconds) for of_run in results]))
        return self.history[-1]

    def finish(self, passed: tuple[Epoch, ...]) -> None:
        """Take for done the epoch that is under way, of which more is known by now."""
        self.history[-1], self._under_way = passed, None

    @property
    def compiled(self) -> bool:
        """Whether its steps are compiled."""
        return isinstance(self._runner, CompiledStepRunner) if self._runner is not None else bool(self._before)

    def go_on_from(self, state: TrainState[P, S]) -> None:
        """Begin the next epoch with another state, in which something else was set.

        Raises:
            TypeError: it is no state.
            ValueError: it is not of the step that the run has come to.
        """
        if not isinstance(state, TrainState):
            raise TypeError(f"what a run is sent is a state, made of epoch.state, not {tree.describe(state)}")
        if int(state.step) != int(self.good.step) or not torch.equal(state.key, self.good.key):
            raise ValueError(
                f"what a run is sent is made of epoch.state, of step {int(self.good.step)} and of the same key, and not another"
                f" state, of step {int(state.step)}: give that one to a run of its own"
            )
        self.good = self._current = state

    @property
    def is_under_way(self) -> bool:
        """Whether an epoch has begun, and is not finished."""
        return self._under_way is not None

    @property
    def is_settled(self) -> bool:
        """Whether it could be gone on from here, as far as this process knows."""
        epoch = self._under_way
        return epoch is None or (
            epoch.means.count > 0
            and epoch.means.is_settled  # else predictions wait to be measured
            and int(self._current.step) == epoch.first_step + epoch.means.count  # else what was made of a step is not complete
        )

    def course(self) -> Course:
        """What there is to know of the run beside its state, to go on from here; all processes ask together."""
        epoch = self._under_way
        if epoch is None:
            return Course(tuple(self.history), self.source.began, self.compiled)
        unfinished = Unfinished(epoch.first_step, time.perf_counter() - epoch.start, epoch.means.sums())
        return Course(tuple(self.history[: epoch.number - 1]), self.source.began, self.compiled, unfinished)

    def snapshot(self) -> TrainState[P, S] | None:
        """The state after the last step, for good; None if the run cannot be gone on from here, or no step was made.

        Processes that make it together ask together, where all of them are settled.
        No step writes over what somebody else holds; of another kind of step it is not known what it writes over.

        Raises:
            FloatingPointError: a loss or a parameter is not finite.
        """
        epoch = self._under_way
        if epoch is None:
            return self.good
        if not self.is_settled:
            return None
        if (found := epoch.means.divergence()) is not None:
            raise self._diverged(*found, epoch)
        self._require_finite(epoch)
        if self._runner is not None and not self._runner.writes_over:
            return tree.map(torch.clone, self._current)
        return attrs.evolve(self._current)

    def take_up(self, state: TrainState[P, S], course: Course) -> None:
        """Go on where another process has come to.

        Raises:
            ValueError: that was another run, or it has measured something else.
        """
        if not torch.equal(state.key, self.good.key):
            raise ValueError(
                "it is of a run with another key: give Checkpoints another folder, or fit the state that it began with"
            )
        if (unfinished := course.unfinished) is not None:
            epoch = self._under_way = self._new_epoch(len(course.history) + 1, unfinished.first_step, unfinished.seconds)
            epoch.means.go_on_from(unfinished.sums)
        if self.donate:
            clear_fields(self.good)
        self.good = self._current = state
        self.history, self._before = [*course.history], course.compiled
        if self.every is not None or unfinished is not None:
            self._first = self.source.take_up(course.began, int(state.step))

    def _new_epoch(
        self, number: int | None = None, first_step: int | None = None, seconds: float = 0.0
    ) -> _UnderWay[Prediction, Target]:
        """The next epoch, or one that has begun already, and has taken some seconds."""
        return _UnderWay(
            len(self.history) + 1 if number is None else number,
            int(self.good.step) if first_step is None else first_step,
            Means(self.step, self.metrics, self.runs, self.over, tree.count(self.good.model)),
            time.perf_counter() - seconds,
        )

    def last(self) -> TrainState[P, S] | None:
        """The state after the last step, if all is well with it; else the last good one, if that was not donated."""
        try:
            state = for_any_use(self._current)
            if _not_finite(state.model) is None:
                return state
        except Exception:  # a step used it up and made no other, or there is no memory for copies
            pass
        return None if self.donate else self.good

    def _begin(self, runner: _Runner[P, S, X, Target, Prediction]) -> None:
        """Find the state that the first step of an epoch is given, and may use up."""
        if self.donate:
            self._current = attrs.evolve(self.good)
            clear_fields(self.good)
        elif runner.writes_over:
            self._current = attrs.evolve(self.good)  # both hold its tensors, so that the first step makes new ones
        elif self._current is self.good:
            self._current = tree.map(torch.clone, self.good)

    def _keep(self) -> None:
        """Take the state of the last step for good."""
        if self._runner is not None and self._runner.writes_over:
            self._current = self.good = tree.map(_as_any_other, self._current)
        elif self.donate:
            self._current = self.good = for_any_use(self._current)
        else:
            self.good = tree.map(torch.clone, self._current)

    def _go_through(self, epoch: _UnderWay[Prediction, Target], shown: Progress, between: Callable[[], None] | None) -> None:
        """Make a step of each batch of an epoch that are left."""
        means, is_shared = epoch.means, bool(self.partners)
        step = epoch.first_step + means.count
        batches = self.source.epoch(epoch.first_step, step)
        for group in self.partners.along:
            self._require_alike(group, step)
        if self._runner is None:
            steps = self.source.steps
            self._runner = one_by_one(self.step) if self.runner_for is None else self.runner_for(steps, self._before, shown)
            if self._first is not None:
                self._runner.expect(self._first)
        steps = self.source.steps
        # Inference mode makes small kernels cheaper by a tenth. Only the steps run in it: a user's code that makes batches, or
        # measures, may do with tensors what it forbids.
        self._begin(self._runner)
        with HeldSignals() as signals, inference_mode():
            for after, (x, target), report, count in self._runner.take(self._current, batches, signals):
                if after.__class__ is not TrainState or report.__class__ is not Report:
                    require_outcome(after, report)
                self._current = after
                before = means.count
                if count:
                    means.add_many(x, target, report)
                else:
                    means.add(x, target, report)
                if is_shared and means.count // _SETTLED > before // _SETTLED:
                    means.settle()
                shown.move(epoch.number - 1 + means.count / max(steps, means.count))
                if between is None:
                    signals.release()
                elif is_shared or means.is_settled:
                    signals.release()
                    between()
            means.settle()

    def _require_alike(self, group: Group, first_step: int) -> None:
        """Raise where processes begin an epoch otherwise than others: these would wait for steps that never come."""
        found = gather_numbers([first_step, self.source.steps], group)
        for what, numbers in ("begin at step", found[::2]), ("have batches, as many as", found[1::2]):
            if len({*numbers}) > 1:
                other = next(rank for rank, number in enumerate(numbers) if number != numbers[0])
                raise ValueError(
                    f"the processes {what} {numbers[0]} in process 0 and {numbers[other]} in process {other}: give each its"
                    " part of the same batches, minibatches(key, data, batch_size, part=group)"
                )

    def _key_of_pass(self, first_step: int) -> Key:
        with inference_mode():  # many small kernels
            folded = self.runs.each(lambda key: random.fold_in(key, _EPOCHS + first_step))(self._current.key)
        return folded.clone()

    def _results(self, epoch: _UnderWay[Prediction, Target]) -> list[Evaluation]:
        """The means of an epoch, if there were batches, and their losses finite."""
        means = epoch.means
        if not means.count:
            raise ValueError(
                f"epoch {epoch.number} has no batches: batches are a list, a DataLoader, or a function of the epoch's key; an"
                " iterator can be gone through only once"
            )
        results = means.results()
        if not all(math.isfinite(result.loss) for result in results) and (found := means.divergence()) is not None:
            raise self._diverged(*found, epoch)
        return results

    def _diverged(self, run: int, place: int, value: float, epoch: _UnderWay[Prediction, Target]) -> FloatingPointError:
        """What is said of a loss that is not finite, and how to get the batch that it is of once more."""
        whose, its = (f" of run {run}", "its") if self.runs.axes else ("", "the")
        step = epoch.first_step + place
        if not self.donate:
            self._current = self.good  # with which the steps up to there can be made once more
        error = FloatingPointError(
            f"the loss{whose} is {value} in epoch {epoch.number}, at step {step + 1}: {its} training diverges. {_ADVICE}"
        )
        error.add_note(self._how_to_look(step))
        return error

    def _how_to_look(self, step: int) -> str:
        """What gives the batch of a step after so many others, and what looks for the layer."""
        folded = f"fold_in({'key' if self.runs.axes else 'state.key'}, 2**63 + {{began}})"
        batch = self.source.how_to_get(step, f"ensemble.each(lambda key: {folded})(state.key)" if self.runs.axes else folded)
        again = (
            ""
            if self.donate
            else f"last_good(error, state) has the state of step {int(self.good.step)}: make the steps from there again; "
        )
        over = "" if self.over is None else ", over=group"
        return (
            f"the batch of step {step + 1} is {batch}; {again}check_finite(state, x, target, loss{over}) before a step says in"
            " which layer it makes a NaN or an infinity"
        )

    def _require_finite(self, epoch: _UnderWay[Prediction, Target]) -> None:
        """Find what the last step of an epoch so far did to the model: no loss tells of it yet."""
        model, last_step = self._current.model, epoch.first_step + epoch.means.count
        is_finite = _not_finite(model) is None
        (is_wrong,) = self.partners.largest(not is_finite)
        if is_finite and is_wrong:
            raise FloatingPointError(f"the model of another process is no longer finite after epoch {epoch.number}. {_ADVICE}")
        if is_finite:
            return
        for run, of_run in enumerate(self.runs.apart(model)):
            if (path := _not_finite(of_run)) is not None:
                whose = f" of run {run}" if self.runs.axes else ""
                error = FloatingPointError(
                    f"the model{whose} is no longer finite after step {last_step}, in epoch {epoch.number}: model{path}"
                    f" holds nan or inf. {_ADVICE}"
                )
                error.add_note(self._how_to_look(last_step - 1))
                raise error


def one_by_one(step: Step[P, S, X, Target, Prediction]) -> _Runner[P, S, X, Target, Prediction]:
    """What takes steps as they are, and writes over the states where it can."""
    donating = donating_of(step)
    return StepRunner(step) if donating is None else DonatingStepRunner(donating)


def _as_any_other(leaf: Tensor) -> Tensor:
    """A tensor over the memory of one that was made in inference mode, and that nobody else is going to use."""
    if not leaf.is_inference():
        return leaf
    return torch.empty(0, dtype=leaf.dtype, device=leaf.device).set_(
        leaf.untyped_storage(), leaf.storage_offset(), leaf.size(), leaf.stride()
    )


def _not_finite(model: object) -> str | None:
    """Where the first trainable leaf is that is not finite; None if all are."""
    leaves = tree.trainable_leaves(model)
    largest = torch._foreach_norm([leaf for leaf in leaves if leaf.numel()], math.inf)
    for device in {number.device for number in largest}:  # each is waited for once
        if not torch.stack([number for number in largest if number.device == device]).isfinite().all():
            paths = zip(tree.trainable_paths(model), leaves, strict=True)
            return next(path for path, leaf in paths if not leaf.isfinite().all())
    return None
