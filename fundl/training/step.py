"""A training run's state, and the step that makes the next state of it."""

from collections.abc import Callable
from typing import Final, Generic, TypeAlias, TypeVar, cast, final

import attrs
import torch
from torch import Tensor
from typing_extensions import TypeVar as TypeVarWithDefault

from fundl import random, tree
from fundl._common.checks import require_loss, require_model
from fundl._common.keys import require_key
from fundl._common.listed import Listed
from fundl._common.modes import is_untraced, no_grad
from fundl._common.ownership import Ownership
from fundl._common.running import Pass
from fundl._common.suggestions import with_suggestions
from fundl._compiling.donation import clear_fields
from fundl.groups import Group
from fundl.layer import Loss, P, Prediction, Target
from fundl.layers.batch_norm import Statistics, is_batch_norm
from fundl.layers.batch_statistics import normalized_over, require_momentum, statistics_of, without_statistics
from fundl.layers.batch_statistics import track as follow_statistics
from fundl.layers.dropout import has_keys, is_stochastic, rekeyed
from fundl.layers.spectral_norm import is_spectral_norm
from fundl.layers.spectral_norm import refined as with_refined_vectors
from fundl.optim.loss_scale import scaled
from fundl.optim.search import Search
from fundl.optim.transform import State, Transform, require_transform
from fundl.random import Key
from fundl.runs import ONE, Runs
from fundl.training._over import mark, shares_of, summed_backward
from fundl.tree import Record, holds
from fundl.weights import by_rows, rule_of, weighed_by

S = TypeVar("S")
X = TypeVar("X")
Reported = TypeVarWithDefault("Reported", default=Tensor)


@final
@attrs.frozen(eq=False)
class TrainState(Record, Generic[P, S], metaclass=Listed):
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
class Report(Record, Generic[Reported], metaclass=Listed):
    """What a step says of itself, without waiting for the device.

    Args:
        loss: the batch's loss, before the step's update.
        prediction: what the model made of the batch, before the step's update: a tensor, or any tree.
        weight: what the loss divided by, where there is no prediction of which that could be told, as in a pipeline.
    """

    loss: Tensor
    prediction: Reported
    weight: Tensor | None = None


Step: TypeAlias = Callable[[TrainState[P, S], tuple[X, Target]], tuple[TrainState[P, S], Report[Prediction]]]
"""A step goes from a state and a batch (x, target) to the next state and a report. It counts `TrainState.step` up by one.

`train_step` makes one, which `fit` and `epochs` run; a function of your own that does the same may take its place.
"""


@with_suggestions
def train_state(key: Key, model: P, optimizer: Transform[S]) -> TrainState[P, S]:
    """The state that a training run starts from.

    Args:
        key: where all randomness of the run comes from: the order of the batches, dropout. The state has it on the model's
            device: the same key, the same bits.
        model: with values, as `initialize` gives them.
        optimizer: makes its own first state.

    Raises:
        TypeError: the key is none, or the model is not a layer or a tuple of layers.
        ValueError: the model has no values yet, or has keys: a step gives it some.

    >>> from fundl import initialize, key, linear, sgd, train_state
    >>> state = train_state(key(1), initialize(key(0), linear(2, 1)), sgd(0.1))
    >>> state.step
    tensor(0)
    """
    require_key(key)
    require_model(model)
    require_transform(optimizer)
    if any(leaf.is_meta for leaf in tree.leaves(model)):
        raise ValueError("the model has no values yet, only shapes: train what initialize(key(0), model) returns")
    if has_keys(model):
        raise ValueError(
            "the model has keys, with which it would drop the same elements each time it is used: train the model that rekey"
            " was given, since each step gives it keys of its own"
        )
    own = key.to(next(iter(tree.leaves(model)), key).device)  # so that a step waits for no copy of what comes of it
    return TrainState(model, optimizer.init(model), own, torch.zeros((), dtype=torch.int64, device=own.device))


# What train_step returns is a Step, written out: only so does mypy see that the step itself is for any model, which it must
# know of a step that is handed on at once, as in jit(train_step(loss, optimizer)).
@with_suggestions
def train_step(
    loss: Loss[Prediction, Target],
    optimizer: Transform[S],
    *,
    donate: bool = False,
    track: float | None = None,
    over: Group | None = None,
) -> Callable[[TrainState[P, S], tuple[X, Target]], tuple[TrainState[P, S], Report[Prediction]]]:
    """The step of a training run: forward, loss, backward, update, as one pure function.

        state, report = step(state, (x, target))

    x, target and the model's output, the prediction, are what the model and the loss take and give: tensors, or any trees of
    them (pairs, dicts, `Masked`).

    If layers of the model draw random numbers, they get keys that are folded from the state's key and step: the same state
    and batch give the same next state. The model in the state never has keys. If the optimizer scales the loss (see
    `dynamic_loss_scale`), its gradient is scaled here. If it gathers micro-batches (`accumulate`), each has the weight that
    its loss divided by (see `weight_of`), so that they are just one large batch.

    Args:
        loss: from a prediction and its target to the loss and its gradient.
        optimizer: that made the state.
        donate: whether the state that a step is given is used up by it: whoever uses that state again is told so by a
            `DonatedError`. The next state, the same to the bit, is then written over the tensors of the old one, which saves
            time and memory. What somebody else can see stays as it is: where another variable holds the model, or a part of
            it (``state.model[0].weight``, an array over its memory), new tensors are made, as without `donate`. `fit` writes
            over its own states in any case.
        track: for a model with `BatchNorm`: the weight of a batch, between 0 and 1, in the statistics that follow those of the
            batches. Each step normalises with the batch's, and the next state's model has the followed ones, as the function
            `track` finds them: with these it is evaluated and used. Where the first state's model has none, the first step
            makes them; `with_statistics` gives it some before, so that a run can be compiled from its first step on. With
            None, the default, nobody follows: a model without statistics normalises with those of whatever batch it is given,
            also where it is evaluated and used, unless `calibrate` finds some after training; one with statistics is trained
            with these as they are.
        over: a group of processes, each of which is given some rows of each batch, as ``minibatches(..., part=group)`` does.
            Loss, gradients and random numbers are those of the whole batch, so all make the same step; `Report.prediction` is
            that of the own rows. None, the default, for one process.

    >>> from fundl import initialize, key, linear, mse, sgd, train_state, train_step
    >>> optimizer = sgd(0.1)
    >>> state = train_state(key(1), initialize(key(0), linear(2, 1)), optimizer)
    >>> after, report = train_step(mse, optimizer)(state, (torch.ones(4, 2), torch.zeros(4, 1)))
    >>> state.step, after.step, report
    (tensor(0), tensor(1), Report(loss=float32[], prediction=float32[4, 1]))
    """
    return step_of(ONE, loss, optimizer, donate=donate, track=track, over=over)


def step_of(
    runs: Runs,
    loss: Loss[Prediction, Target],
    optimizer: Transform[S],
    *,
    donate: bool,
    track: float | None,
    over: Group | None = None,
) -> Step[P, S, X, Target, Prediction]:
    """`train_step`, of one run or of many; the loss is of one run, the optimizer of all."""
    require_loss(loss)
    require_transform(optimizer)
    if track is not None:
        require_momentum("track", track)
    rule, gathers, searches = rule_of(loss) or by_rows, optimizer.weighed(1.0) is not optimizer, isinstance(optimizer, Search)
    loss_of_all, rule_of_all = runs.each(loss), runs.each(rule)
    if (shares := shares_of(over, loss)) is not None:
        loss_of_all, rule_of_all = shares.loss_of_whole(), shares.weight_of_whole

    def differentiate(
        state: TrainState[P, S], batch: tuple[X, Target]
    ) -> tuple[P, Transform[S], Report[Prediction], tuple[Statistics, ...]]:
        """The gradients of a batch, the optimizer for it, its report, and the statistics to follow."""
        _require_state_of(runs, state)
        x, target = pair(batch)
        model = state.model if track is None else without_statistics(state.model)
        if shares is not None and holds(is_batch_norm, model):
            model = normalized_over(model, shares.group)
        if holds(is_stochastic, model):
            key = state.key if shares is None else shares.key(state.key, x)
            model = runs.each(lambda model, key: rekeyed(model, lambda: random.fold_in(key, state.step)))(model, key)
        ran = Pass(model, x)
        seen = () if track is None else statistics_of(ran.residuals)
        prediction = cast("Prediction", ran.output)  # only running tells what it gives: the loss says what it is for
        value = ran.differentiate(loss_of_all, prediction, target)
        if (scale := optimizer.loss_scale(state.optimizer.inner)) is not None:
            ran.grad = runs.each(scaled)(ran.grad, scale)
        grads, transform = summed_backward(shares, ran, optimizer)
        transform = transform.weighed(rule_of_all(prediction, target)) if gathers else transform
        if searches and isinstance(transform, Search):  # asking takes microseconds
            transform = transform.given(lambda model: evaluated_at(model, state, batch), value, state.model)
        return grads, transform, Report(value, prediction), seen

    def evaluated_at(model: P, state: TrainState[P, S], batch: tuple[X, Target]) -> tuple[Tensor, P]:
        """The loss of another model in the place of the state's, and its gradients."""
        grads, _, report, _ = differentiate(TrainState(model, state.optimizer, state.key, state.step), batch)
        return report.loss, grads

    def followed(after: TrainState[P, S], seen: tuple[Statistics, ...]) -> TrainState[P, S]:
        """The next state, whose model has the statistics that follow those of the batch, and vectors that fit its weights."""
        if track is not None and seen:
            follow = runs.each(lambda model, seen: follow_statistics(model, seen, momentum=track))
            after = TrainState(follow(after.model, seen), after.optimizer, after.key, after.step)
        return refined(after, runs)

    @weighed_by(rule)
    def step(state: TrainState[P, S], batch: tuple[X, Target]) -> tuple[TrainState[P, S], Report[Prediction]]:
        with no_grad():
            grads, transform, report, seen = differentiate(state, batch)
            return followed(updated(transform, grads, state), seen), report

    owned = ownership_of_states()

    @weighed_by(rule)
    def donating(state: TrainState[P, S], batch: tuple[X, Target]) -> tuple[TrainState[P, S], Report[Prediction]]:
        with no_grad():
            grads, transform, report, seen = differentiate(state, batch)
            if not is_untraced(state.step):  # it is for a compiler to say what is written over
                return followed(updated(transform, grads, state), seen), report
            report = _apart_from(state.model, report)
            return followed(updated_over(transform, grads, state, owned), seen), report

    for made in (step, donating):
        made.__qualname__ = "train_step.<locals>.step"  # messages name a step by it: whoever made it called a train_step
        mark_donating(made, donating)
        mark(made, over)
        mark_finishing(made, optimizer)
    return donating if donate else step


def refined(state: TrainState[P, S], runs: Runs = ONE) -> TrainState[P, S]:
    """The state, whose model's SpectralNorms have been refined, if it has such."""
    if not holds(is_spectral_norm, state.model):
        return state
    refine = runs.each(lambda model: with_refined_vectors(model, None))
    return TrainState(refine(state.model), state.optimizer, state.key, state.step)


_DONATING: Final = "__fundl_donating__"
FINISHING: Final = "__fundl_finishing__"


def mark_donating(step: object, donating: object) -> None:
    """Say of a step which one does the same and donates."""
    setattr(step, _DONATING, (step, donating))


def mark_finishing(step: object, optimizer: Transform[S]) -> None:
    """Say of a step what makes the last state of a run, of which nothing waits."""

    def finished(state: TrainState[P, S]) -> TrainState[P, S]:
        model, memory = optimizer.finish(state.optimizer, state.model)
        return TrainState(model, memory, state.key, state.step)

    setattr(step, FINISHING, finished)


def donating_of(step: Step[P, S, X, Target, Prediction]) -> Step[P, S, X, Target, Prediction] | None:
    """The step that does the same and donates, of one that `train_step` made; None of any other."""
    made: tuple[object, Step[P, S, X, Target, Prediction]] | None = getattr(step, _DONATING, None)
    return made[1] if made is not None and made[0] is step else None  # functools.wraps hands on what a function is marked with


def updated(transform: Transform[S], grads: P, state: TrainState[P, S]) -> TrainState[P, S]:
    """The next state, by the gradients of this one."""
    model, memory = transform.step(grads, state.optimizer, state.model)
    return TrainState(model, memory, state.key, state.step + 1)


def _apart_from(model: P, report: Report[Prediction]) -> Report[Prediction]:
    """The report with copies of the parameters that its prediction holds, as that of a `deferred` model does.

    The step writes over them.
    """
    if isinstance(report.prediction, Tensor):
        return report
    own = {*map(id, tree.leaves(model))}
    return Report(report.loss, tree.map(lambda leaf: leaf.clone() if id(leaf) in own else leaf, report.prediction))


def ownership_of_states() -> Ownership:
    """What finds out whether a state alone holds what `updated_over` writes over."""
    return Ownership("model", "optimizer", "step")


def updated_over(transform: Transform[S], grads: P, state: TrainState[P, S], owned: Ownership) -> TrainState[P, S]:
    """The same of a state that is used up: written over it, if it alone holds what is in it."""
    if transform.writes_over and owned.is_sole(state):
        return _written_over(transform, grads, state, owned)
    after = updated(transform, grads, state)
    clear_fields(state)
    return after


def _written_over(transform: Transform[S], grads: P, state: TrainState[P, S], owned: Ownership) -> TrainState[P, S]:
    """An error must not leave the state half-written."""
    model, memory, key, step = state.model, state.optimizer, state.key, state.step
    after = TrainState(model, memory, key, step)
    owned.move(state, after)
    clear_fields(state)
    trained, remembered = transform.step_over(grads, memory, model)
    step.add_(1)
    return after if trained is model and remembered is memory else TrainState(trained, remembered, key, step)


def require_state(state: object) -> None:
    """Raise an error that says what makes a state, unless this is one."""
    if not isinstance(state, TrainState):
        raise TypeError(
            f"the state is what train_state(key, model, optimizer) makes, or a step or fit returned, not {tree.describe(state)}"
        )


def _require_state_of(runs: Runs, state: object) -> None:
    if not isinstance(state, TrainState):
        require_state(state)
    elif state.key.ndim != 1 + runs.axes:
        here, there = ("an ensemble", "one model") if runs.axes else ("one model", "an ensemble")
        right = "train_step and train_state" if runs.axes else "ensemble.train_step and ensemble.train_state"
        raise ValueError(f"this is a step of {here}, but the state is that of {there}: for {there}, take {right}")


def require_outcome(state: object, report: object) -> None:
    """Raise an error unless a step of a user's own returned what a step returns."""
    if not isinstance(state, TrainState):
        raise TypeError(f"a step returns the next state, a TrainState, and a report, but this state is {tree.describe(state)}")
    if not isinstance(report, Report):
        raise TypeError(
            f"a step returns the next state and a report, Report(loss, prediction), but this report is {tree.describe(report)}"
        )


def pair(batch: tuple[X, Target]) -> tuple[X, Target]:
    """A batch taken apart; a DataLoader gives lists, and a data set in place of batches gives tensors."""
    parts: object = batch
    if not isinstance(parts, tuple | list) or len(parts) != 2:
        raise TypeError(
            f"a batch is a pair (x, target), not {tree.describe(parts)}; the batches of a data set in memory are"
            " minibatches(key, (x, target), batch_size), or [(x, target)] for all in one"
        )
    x, target = batch
    return x, target
