"""A smaller learning rate where the loss has stopped to fall."""

from collections.abc import Sequence
from typing import TypeVar

from fundl._common.numbers import number
from fundl._common.suggestions import with_suggestions
from fundl.optim.adjustable import hyperparameters, with_hyperparameters

T = TypeVar("T")


@with_suggestions
def reduce_on_plateau(state: T, losses: Sequence[float], *, factor: float = 0.1, patience: int = 10, least: float = 0.0) -> T:
    """The state with a smaller learning rate, if the losses so far end on a plateau; else the state as it is.

    A plateau is as many losses in a row as `patience` says of which none is below the least one before. After it the count
    begins anew, so that the same losses give the same decisions, whoever asks, and when: it needs no memory of its own.

        run = epochs(step, state, batches, count=100, evaluate=evaluated)
        for epoch in run:
            run.send(reduce_on_plateau(epoch.state, [one.test.loss for one in epoch.history], patience=5))

    Args:
        state: of an `adjustable` optimizer, or what holds one. All its rates are made smaller, those of all parts.
        losses: one for each epoch, from the first one on; of what is to be large, take the negative.
        factor: what the rate is multiplied by, above 0 and below 1.
        patience: how many losses make a plateau, of 1 or more.
        least: no rate gets below this.

    Raises:
        ValueError: factor, patience or least are out of their bounds, or the state has no rate that is a number.

    >>> import torch
    >>> from fundl import adjustable, hyperparameters, reduce_on_plateau, sgd
    >>> state = adjustable(sgd(0.5)).init(torch.zeros(2))
    >>> for losses in ([3.0], [3.0, 2.0], [3.0, 2.0, 2.0], [3.0, 2.0, 2.0, 2.5]):
    ...     state = reduce_on_plateau(state, losses, patience=2)
    ...     print(float(hyperparameters(state)["rate"]))
    0.5
    0.5
    0.5
    0.05
    """
    if not 0 < number("factor", factor) < 1:
        raise ValueError(f"factor, what the rate is multiplied by, must be above 0 and below 1, not {factor}")
    if patience < 1:
        raise ValueError(f"patience must be 1 loss or more, not {patience}")
    if not number("least", least) >= 0:
        raise ValueError(f"least, the least rate, must be 0 or more, not {least}")
    rates = {name: rate for name, rate in hyperparameters(state).items() if name.rpartition(".")[2] == "rate"}
    if not rates:
        raise ValueError("the state has no learning rate that could be made smaller: its optimizer follows a schedule")
    if not _end_on_plateau(losses, patience):
        return state
    return with_hyperparameters(state, {name: (rate * factor).clamp(min=least) for name, rate in rates.items()})


def _end_on_plateau(losses: Sequence[float], patience: int) -> bool:
    best, waited = float("inf"), 0
    for loss in losses:
        if waited == patience:
            waited = 0
        best, waited = (loss, 0) if loss < best else (best, waited + 1)
    return waited == patience
