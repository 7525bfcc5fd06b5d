"""Multiplying updates: by a constant, and by the learning rate, which ends every optimizer."""

from typing import final

import attrs
import torch
from torch import Tensor
from typing_extensions import override

from fundl._common.listed import Listed
from fundl._common.numbers import finite
from fundl._common.suggestions import with_suggestions
from fundl.optim.flat import Number, StateError, Tensors, new_count, scaled_by, times
from fundl.optim.rate import Rate, learning_rate, rate_at
from fundl.optim.transform import Stateless, Transform
from fundl.tree import Record


@final
@attrs.frozen
class _Scale(Stateless):
    elementwise = True
    numbers = ("factor",)

    factor: Number = attrs.field(validator=finite)

    @override
    def updates(self, grads: Tensors) -> Tensors:
        return scaled_by(grads, self.factor)


@with_suggestions
def scale(factor: float) -> Transform[tuple[()]]:
    """Multiply by a constant: u = factor g.

    Args:
        factor: any finite number; ``chain(scale(-1.0), sgd(0.1))`` maximises.

    >>> import torch
    >>> from fundl import scale
    >>> scale(2.0).update(torch.ones(2), scale(2.0).init(torch.zeros(2)), torch.zeros(2))[0]
    tensor([2., 2.])
    """
    return _Scale(factor)


@final
@attrs.frozen(eq=False)
class RateState(Record, metaclass=Listed):
    """The state of `scale_by_learning_rate`.

    Args:
        count: the steps done, int64 without axes, if the rate was a schedule in `init`.
    """

    count: Tensor | None


@final
@attrs.frozen
class ScaleByLearningRate(Transform[RateState]):
    """See `scale_by_learning_rate`."""

    elementwise = True
    writes_over = True

    rate: Rate | Tensor = attrs.field(validator=learning_rate)

    @property
    @override
    def numbers(self) -> tuple[str, ...]:
        return () if callable(self.rate) else ("rate",)

    @override
    def start(self, leaves: Tensors, paths: tuple[str, ...]) -> RateState:
        return RateState(new_count(leaves) if callable(self.rate) else None)

    @override
    def change(self, grads: Tensors, state: RateState, params: Tensors) -> tuple[Tensors, RateState]:
        rate, state = self.next_rate(state)
        if isinstance(rate, Tensor):
            return times(grads, -rate), state
        return torch._foreach_mul(grads, -rate), state

    @override
    def move(self, grads: Tensors, state: RateState, params: Tensors) -> tuple[Tensors, RateState]:
        rate, state = self.next_rate(state)
        if isinstance(rate, Tensor):
            return torch._foreach_sub(params, times(grads, rate)), state
        return torch._foreach_add(params, grads, alpha=-rate), state

    @override
    def change_over(self, grads: Tensors, state: RateState, params: Tensors) -> tuple[Tensors, RateState]:
        updates, _ = self.change(grads, state, params)
        self.count_over(state)
        return updates, state

    @override
    def move_over(self, grads: Tensors, state: RateState, params: Tensors) -> tuple[Tensors, RateState]:
        rate = self.rate_at(state)
        if isinstance(rate, Tensor):
            torch._foreach_sub_(params, times(grads, rate))
        else:
            torch._foreach_add_(params, grads, alpha=-rate)
        self.count_over(state)
        return params, state

    def next_rate(self, state: RateState) -> tuple[float | Tensor, RateState]:
        """The rate of this step, and the state after it."""
        rate = self.rate_at(state)
        return rate, state if state.count is None else RateState(state.count + 1)

    def rate_at(self, state: RateState) -> float | Tensor:
        """The rate of this step."""
        if type(state) is not RateState:
            raise TypeError("the state is of another transform")
        if isinstance(self.rate, (float, int)):  # a third faster than the union
            return self.rate
        if isinstance(self.rate, Tensor):
            return self.rate
        if state.count is None:
            raise StateError("a learning rate that is a schedule (or has a rate_decay)", "a count of steps")
        return rate_at(self.rate, state.count)

    def count_over(self, state: RateState) -> None:
        """Write the state after this step over it: the rate, which may be the count itself, is of no more use."""
        if state.count is not None:
            state.count.add_(1)


@with_suggestions
def scale_by_learning_rate(rate: Rate) -> Transform[RateState]:
    """Multiply by the learning rate, downhill: u = -rate g.

    Args:
        rate: a number of 0 or more, or a schedule: a function from the count of steps, an int64 tensor without axes that is
            0 at the first step, to a tensor without axes.

    >>> import torch
    >>> from fundl import linear_schedule, scale_by_learning_rate
    >>> descend = scale_by_learning_rate(linear_schedule(1.0, 0.0, steps=2))
    >>> params, state = torch.zeros(2), descend.init(torch.zeros(2))
    >>> for _ in range(3):
    ...     params, state = descend.step(torch.ones(2), state, params)
    >>> params
    tensor([-1.5000, -1.5000])
    """
    return ScaleByLearningRate(rate)
