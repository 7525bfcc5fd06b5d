"""RMSprop: steps divided by the root mean square of the gradients."""

from typing import TypeAlias, final

import attrs
import torch
from torch import Tensor
from typing_extensions import override

from fundl._common.listed import Listed
from fundl._common.numbers import fraction, non_negative
from fundl._common.suggestions import with_suggestions
from fundl.optim.chain import chain
from fundl.optim.decay import DecayState, add_decayed_weights
from fundl.optim.flat import Number, StateError, Tensors, mixed, new_count, require_fit, shifted, times, zeros_like
from fundl.optim.rate import Rate
from fundl.optim.scaling import RateState, scale_by_learning_rate
from fundl.optim.sgd import TraceState, trace
from fundl.optim.transform import Transform
from fundl.tree import Record


@final
@attrs.frozen(eq=False)
class RMSState(Record, metaclass=Listed):
    """The state of `scale_by_rms`.

    Args:
        square: the decayed mean of the squares of the gradients.
        mean: the decayed mean of the gradients, if it was centered in `init`, else nothing.
        count: the steps done, int64 without axes, if there was `debias` in `init`.
    """

    square: Tensors
    mean: Tensors
    count: Tensor | None = None


@final
@attrs.frozen
class _ScaleByRMS(Transform[RMSState]):
    elementwise = True
    writes_over = True
    numbers = ("decay", "epsilon")

    decay: Number = attrs.field(validator=fraction)
    epsilon: Number = attrs.field(validator=non_negative)
    centered: bool
    debias: bool

    def __attrs_post_init__(self) -> None:
        if self.centered and self.debias:
            raise ValueError("centered and debias exclude each other: the variance of the first gradient alone would be 0")

    @override
    def start(self, leaves: Tensors, paths: tuple[str, ...]) -> RMSState:
        mean = zeros_like(leaves) if self.centered else ()
        return RMSState(zeros_like(leaves), mean, new_count(leaves) if self.debias else None)

    @override
    def change(self, grads: Tensors, state: RMSState, params: Tensors) -> tuple[Tensors, RMSState]:
        self._require_fit(state, grads)
        square = mixed(state.square, torch._foreach_mul(grads, grads), 1 - self.decay)
        mean = mixed(state.mean, grads, 1 - self.decay) if state.mean else ()
        after = RMSState(square, mean, None if state.count is None else state.count + 1)
        return self._divided(grads, after), after

    @override
    def change_over(self, grads: Tensors, state: RMSState, params: Tensors) -> tuple[Tensors, RMSState]:
        self._require_fit(state, grads)
        torch._foreach_lerp_(state.square, torch._foreach_mul(grads, grads), 1 - float(self.decay))
        if state.mean:
            torch._foreach_lerp_(state.mean, grads, 1 - float(self.decay))
        if state.count is not None:
            state.count.add_(1)
        return self._divided(grads, state), state

    def _require_fit(self, state: RMSState, grads: Tensors) -> None:
        require_fit(state.square, grads)
        if state.mean:
            require_fit(state.mean, grads)
        elif self.centered:
            raise StateError("centered=True", "a mean of the gradients")
        if self.debias and state.count is None:
            raise StateError("debias=True", "a count of steps")

    def _divided(self, grads: Tensors, state: RMSState) -> Tensors:
        square, mean = state.square, state.mean
        if self.debias and state.count is not None:
            weight = 1 / (1 - torch.pow(self.decay, state.count.to(torch.float64)))
            square = times(square, weight)
        variance = square
        if self.centered:
            # Rounding must not make the root's argument negative, as it does once all gradients are alike.
            variance = torch._foreach_clamp_min(torch._foreach_addcmul(square, mean, mean, value=-1), 0)
        return torch._foreach_div(grads, shifted(torch._foreach_sqrt(variance), self.epsilon))


@with_suggestions
def scale_by_rms(
    *, decay: float = 0.99, epsilon: float = 1e-8, centered: bool = False, debias: bool = False
) -> Transform[RMSState]:
    """Divide by the root of a decayed mean of squares.

        v = decay v + (1 - decay) g^2,    u = g / (sqrt(v) + epsilon)

    The square of a gradient beyond 1e19 is more than float32 holds: u is 0 then, and not a number after. Clip before.

    With `centered`, it is by the standard deviation, sqrt(v - m^2), where m = decay m + (1 - decay) g. With `debias`, it is by
    sqrt(v / (1 - decay^t)) at step t = 1, 2, ..., so that v is a mean of the squares that there are.

    Args:
        decay: of the means, in [0, 1).
        epsilon: keeps the denominator from 0; of 0 or more.
        centered: whether to subtract the square of the mean.
        debias: whether to divide v by the sum of its weights so far; not with `centered`.

    Source:
        Tieleman and Hinton, Lecture 6.5: RMSprop, 2012; Graves, Generating sequences with recurrent neural networks, 2013
        (centered).

    >>> from fundl import scale_by_rms
    >>> transform, params = scale_by_rms(decay=0.75), torch.zeros(2)
    >>> transform.update(torch.tensor([100.0, -0.01]), transform.init(params), params)[0]
    tensor([ 2.0000, -2.0000])
    """
    return _ScaleByRMS(decay, epsilon, centered, debias)


RMSPropState: TypeAlias = tuple[DecayState, RMSState, TraceState, RateState]
"""What `rmsprop` remembers, part by part of its chain."""


@with_suggestions
def rmsprop(
    rate: Rate,
    *,
    decay: float = 0.99,
    epsilon: float = 1e-8,
    momentum: float = 0.0,
    centered: bool = False,
    weight_decay: float = 0.0,
) -> Transform[RMSPropState]:
    """RMSprop: p = p - rate u, with u from `scale_by_rms`, and perhaps momentum.

    It is ``chain(add_decayed_weights(weight_decay), scale_by_rms(...), trace(momentum), scale_by_learning_rate(rate))``.

    Args:
        rate, weight_decay: see `sgd`.
        decay, epsilon, centered: see `scale_by_rms`, which also has the sources.
        momentum: see `trace`.

    >>> from fundl import rmsprop
    >>> optimizer, params = rmsprop(0.1, decay=0.75), torch.ones(2)
    >>> optimizer.step(torch.tensor([100.0, -0.01]), optimizer.init(params), params)[0]
    tensor([0.8000, 1.2000])
    """
    return chain(
        add_decayed_weights(weight_decay),
        scale_by_rms(decay=decay, epsilon=epsilon, centered=centered),
        trace(momentum),
        scale_by_learning_rate(rate),
    )
