"""Windows of micro-batches that are not full where batches end."""

import sys
import warnings
from typing import cast

from fundl import tree
from fundl._common.generated import module_of
from fundl._common.suggestions import with_suggestions
from fundl.layer import P, Prediction, Target
from fundl.optim.accumulate import AccumulateState
from fundl.training._over import said_of
from fundl.training.step import FINISHING, S, Step, TrainState, X
from fundl.tree import describe


@with_suggestions
def finish(step: Step[P, S, X, Target, Prediction], state: TrainState[P, S]) -> TrainState[P, S]:
    """The state once the micro-batches that wait in it are applied, in a window of `accumulate` that is not full.

    It is for the end of a run, which tells of such by a warning: what waits is not lost, and a run that goes on from the state
    fills its window first. The gradient is the mean of those that came, by their weights, as of one batch of all of them. Where
    nothing waits, or nothing is gathered at all, the state stays as it is.

    Args:
        step: that made the state: one of `train_step`, of one run or of an ensemble, compiled or not.
        state: with what waits; it stays as it is.

    Raises:
        TypeError: the step is another one, or the state is none.
        ValueError: micro-batches wait where nothing can make a step of them: in the midst of a chain, or in a transform of your
            own that does not hand on `Transform.rest`.

    >>> import torch
    >>> from fundl import Linear, accumulate, finish, key, mse, sgd, train_state, train_step
    >>> optimizer = accumulate(sgd(0.5), steps=3)
    >>> step, state = train_step(mse, optimizer), train_state(key(0), Linear(torch.zeros(1, 1), bias=None), optimizer)
    >>> state, _ = step(state, (torch.ones(1, 1), torch.ones(1, 1)))
    >>> state.model.weight, finish(step, state).model.weight
    (tensor([[0.]]), tensor([[1.]]))
    """
    if not isinstance(state, TrainState):
        raise TypeError(f"finish(step, state) takes the state that a step or fit returned, not {describe(state)}")
    finished = said_of(step, FINISHING)
    if not callable(finished):
        raise TypeError(
            f"finish takes a step that train_step made, not {describe(step)}; whoever writes a step writes as well:"
            " model, memory = optimizer.finish(state.optimizer, state.model)"
        )
    after = cast("TrainState[P, S]", finished(state))  # a step's own
    if count := waiting(after):
        raise ValueError(f"{_said(count)} still: a transform around `accumulate` does not hand on `rest`, as those of fundl do")
    return after


def waiting(state: object) -> int:
    """How many micro-batches wait in a state: the most that do so in a window."""
    counts = [record.count for record in tree.records(state) if isinstance(record, AccumulateState)]
    return max([int(count.max()) for count in counts], default=0)


def warn_of_waiting(state: object) -> None:
    """Tell of micro-batches that wait at the end of a run."""
    if not (count := waiting(state)):
        return
    depth, frame = 1, sys._getframe()
    while frame.f_back is not None and module_of(frame).startswith("fundl."):
        depth, frame = depth + 1, frame.f_back
    warnings.warn(
        f"{_said(count)} at the end of the run, in a window of accumulate that is not full: a run that goes on from its state"
        " begins with them, and finish(step, state) makes a step of them",
        stacklevel=depth,
    )


def _said(count: int) -> str:
    return f"{count} micro-batches wait" if count > 1 else "1 micro-batch waits"
