"""The average of the params that an optimizer keeps, as a model."""

from typing import TypeVar, overload

from fundl.layer import P
from fundl.optim.ema import average_in
from fundl.optim.transform import State
from fundl.training.step import S, TrainState
from fundl.tree import describe

Params = TypeVar("Params")


@overload
def averaged(state: TrainState[P, S]) -> P: ...
@overload
def averaged(state: State[Params, S], params: Params) -> Params: ...
def averaged(state: object, params: object = None) -> object:
    """The model with the average of its params that `ema` keeps in the optimizer's state, those of the last step among them.

    It is a model as any other, to be evaluated, applied and saved. A run evaluates it after each epoch, in place of the one
    that is trained, if it is told so:

        optimizer = chain(ema(0.999), adamw(1e-3))
        for epoch in epochs(step, state, batches, count=100, evaluate=test, evaluated=averaged):
            ...
        model = averaged(epoch.state)

    What no average is kept of is that of the state's model: the buffers, among them the statistics of `BatchNorm`, which
    ``calibrate(averaged(state), batches)`` finds anew; frozen layers; and the parts of a `partition` that have no `ema`. The
    dtypes are those of the model: the average of params of 16 bits, which is kept in float32, is rounded once, here.

    Args:
        state: of a run, also of an ensemble; or of an optimizer, whoever steps by hand.
        params: with the state of an optimizer, the params that its last step made.

    Raises:
        ValueError: the state has no average, or there are several of the same params, or of others.
        TypeError: it is no state, or an optimizer's is given without the params.

    >>> import torch
    >>> from fundl import Linear, averaged, chain, ema, key, mse, sgd, train_state, train_step
    >>> optimizer = chain(ema(0.5), sgd(0.25))
    >>> step, state = train_step(mse, optimizer), train_state(key(0), Linear(torch.zeros(1, 1), bias=None), optimizer)
    >>> for _ in range(2):
    ...     state, _ = step(state, (torch.ones(1, 1), torch.ones(1, 1)))
    >>> state.model.weight, averaged(state).weight
    (tensor([[0.7500]]), tensor([[0.6667]]))
    """
    if isinstance(state, TrainState):
        if params is not None:
            raise TypeError("averaged(state) of a run's state takes no params: the state has the model")
        return average_in(state.optimizer, state.model)
    if not isinstance(state, State):
        raise TypeError(f"averaged takes the state of a run, or that of an optimizer with its params, not {describe(state)}")
    if params is None:
        raise TypeError("the state of an optimizer has no params: write averaged(state, params), or give it a run's state")
    return average_in(state, params)
