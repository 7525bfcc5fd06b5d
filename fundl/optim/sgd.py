"""Stochastic gradient descent, with and without momentum."""

from typing import TypeAlias, final

import attrs
import torch
from torch import Tensor
from typing_extensions import override

from fundl._common.numbers import non_negative
from fundl._common.suggestions import with_suggestions
from fundl.optim.chain import chain
from fundl.optim.decay import DecayState, add_decayed_weights
from fundl.optim.flat import StateError, Tensors, copies, new_count, require_fit, times, zeros_like
from fundl.optim.rate import Rate
from fundl.optim.scaling import RateState, scale_by_learning_rate
from fundl.optim.transform import Transform
from fundl.tree import Record


@final
@attrs.frozen(eq=False)
class TraceState(Record):
    """The state of `trace`.

    Args:
        trace: the decayed sum of the gradients; nothing if the momentum was 0 in `init`.
        count: the steps done, int64 without axes, if there was dampening as well.
    """

    trace: Tensors
    count: Tensor | None


@final
@attrs.frozen
class _Trace(Transform[TraceState]):
    elementwise = True

    momentum: float = attrs.field(validator=non_negative)
    dampening: float = attrs.field(validator=non_negative)
    nesterov: bool

    def __attrs_post_init__(self) -> None:
        if self.nesterov and (self.momentum == 0 or self.dampening != 0):
            raise ValueError(
                "nesterov needs a momentum above 0 and no dampening,"
                f" not momentum={self.momentum} and dampening={self.dampening}"
            )

    @override
    def start(self, leaves: Tensors, paths: tuple[str, ...]) -> TraceState:
        if self.momentum == 0:
            return TraceState((), None)
        return TraceState(zeros_like(leaves), new_count(leaves) if self.dampening else None)

    @override
    def change(self, grads: Tensors, state: TraceState, params: Tensors) -> tuple[Tensors, TraceState]:
        if not state.trace:
            if self.momentum:
                raise StateError(f"momentum={self.momentum}", "a trace of the gradients")
            return grads, state
        require_fit(state.trace, grads)
        count = None if state.count is None else state.count + 1
        if self.momentum == 0:
            return grads, TraceState(copies(grads), count)
        if self.dampening and state.count is None:
            raise StateError(f"dampening={self.dampening}", "a count of steps")
        damped = grads
        if state.count is not None:
            damped = times(grads, 1 - self.dampening * (state.count > 0).to(torch.float64))
        total = torch._foreach_add(damped, state.trace, alpha=self.momentum)
        updates = torch._foreach_add(grads, total, alpha=self.momentum) if self.nesterov else total
        return updates, TraceState(total, count)


def trace(momentum: float, *, dampening: float = 0.0, nesterov: bool = False) -> Transform[TraceState]:
    """Momentum: replace the gradient by a decayed sum of all so far.

        b = momentum b + (1 - dampening) g    (b = g at the first step),    u = b, or u = g + momentum b with `nesterov`

    Args:
        momentum: how much of the sum is kept, of 0 or more; 0 leaves the gradient as it is.
        dampening: how much of the gradient is not added, of 0 or more.
        nesterov: whether to look ahead; this needs a momentum above 0 and no dampening.

    Source:
        Polyak, Some methods of speeding up the convergence of iteration methods, 1964; Sutskever et al., On the importance of
        initialization and momentum in deep learning, 2013.

    >>> from fundl import trace
    >>> transform, params = trace(0.5), torch.zeros(1)
    >>> updates, state = transform.update(torch.ones(1), transform.init(params), params)
    >>> transform.update(torch.ones(1), state, params)[0]
    tensor([1.5000])
    """
    return _Trace(momentum, dampening, nesterov)


SGDState: TypeAlias = tuple[DecayState, TraceState, RateState]


@with_suggestions
def sgd(
    rate: Rate, *, momentum: float = 0.0, dampening: float = 0.0, nesterov: bool = False, weight_decay: float = 0.0
) -> Transform[SGDState]:
    """Stochastic gradient descent: p = p - rate g, where weight decay and momentum may change g before.

    It is ``chain(add_decayed_weights(weight_decay), trace(momentum, ...), scale_by_learning_rate(rate))``.

    Args:
        rate: the learning rate, a number of 0 or more or a schedule.
        momentum, dampening, nesterov: see `trace`.
        weight_decay: the weight of the L2 penalty, of 0 or more.

    Source:
        Robbins and Monro, A stochastic approximation method, 1951.

    >>> from fundl import sgd
    >>> optimizer, params = sgd(0.1), torch.ones(2)
    >>> optimizer.step(torch.tensor([1.0, -1.0]), optimizer.init(params), params)[0]
    tensor([0.9000, 1.1000])
    """
    return chain(
        add_decayed_weights(weight_decay),
        trace(momentum, dampening=dampening, nesterov=nesterov),
        scale_by_learning_rate(rate),
    )


@with_suggestions
def momentum(rate: Rate, *, momentum: float = 0.9, nesterov: bool = False) -> Transform[SGDState]:
    """Stochastic gradient descent with momentum: `sgd` with another default.

    Args:
        rate, momentum, nesterov: see `sgd`.

    >>> from fundl import momentum, sgd
    >>> momentum(0.1) == sgd(0.1, momentum=0.9)
    True
    """
    return sgd(rate, momentum=momentum, nesterov=nesterov)
