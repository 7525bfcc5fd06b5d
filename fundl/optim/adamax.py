"""Adamax: Adam with the greatest of the last gradients in the place of the root of their mean square."""

from typing import TypeAlias, final

import attrs
import torch
from torch import Tensor
from typing_extensions import override

from fundl._common.listed import Listed
from fundl._common.numbers import fraction, non_negative
from fundl._common.suggestions import with_suggestions
from fundl.optim._advancing import Advancing
from fundl.optim._moments import mean_of
from fundl.optim.chain import chain
from fundl.optim.decay import DecayState, Predicate, add_decayed_weights
from fundl.optim.flat import Number, Tensors, new_count, require_fit, scaled_by, shifted, times, zeros_like
from fundl.optim.rate import Rate
from fundl.optim.scaling import RateState, scale_by_learning_rate
from fundl.optim.transform import Transform
from fundl.tree import Record


@final
@attrs.frozen(eq=False)
class AdamaxState(Record, metaclass=Listed):
    """The state of `scale_by_adamax`.

    Args:
        count: the steps done, int64 without axes.
        first_moment: m, the decayed mean of the gradients.
        greatest: s, the greatest of their sizes, which decay.
    """

    count: Tensor
    first_moment: Tensors
    greatest: Tensors


@final
@attrs.frozen
class _ScaleByAdamax(Advancing[AdamaxState]):
    elementwise = True
    numbers = ("beta1", "beta2", "epsilon")

    beta1: Number = attrs.field(validator=fraction)
    beta2: Number = attrs.field(validator=fraction)
    epsilon: Number = attrs.field(validator=non_negative)

    @override
    def start(self, leaves: Tensors, paths: tuple[str, ...]) -> AdamaxState:
        return AdamaxState(new_count(leaves), zeros_like(leaves), zeros_like(leaves))

    @override
    def advance(self, grads: Tensors, state: AdamaxState, params: Tensors, *, over: bool) -> tuple[Tensors, AdamaxState]:
        require_fit(state.first_moment, grads)
        require_fit(state.greatest, grads)
        first = mean_of(state.first_moment, grads, self.beta1, over=over)
        sizes = shifted(torch._foreach_abs(grads), self.epsilon)
        if over:
            torch._foreach_mul_(state.greatest, float(self.beta2))
            torch._foreach_maximum_(state.greatest, sizes)
            state.count.add_(1)
            return self._direction(state), state
        after = AdamaxState(state.count + 1, first, torch._foreach_maximum(scaled_by(state.greatest, self.beta2), sizes))
        return self._direction(after), after

    def _direction(self, state: AdamaxState) -> Tensors:
        first_bias = 1 - torch.pow(self.beta1, state.count.to(torch.float64))
        return times(torch._foreach_div(state.first_moment, state.greatest), 1 / first_bias)


@with_suggestions
def scale_by_adamax(*, beta1: float = 0.9, beta2: float = 0.999, epsilon: float = 1e-8) -> Transform[AdamaxState]:
    """Divide the mean of the gradients by the greatest of their sizes.

        m = beta1 m + (1 - beta1) g,    s = max(beta2 s, |g| + epsilon),    u = m / ((1 - beta1^t) s)    at step t = 1, 2, ...

    Args:
        beta1: the decay of m, in [0, 1).
        beta2: the decay of s, in [0, 1).
        epsilon: keeps the denominator from 0; of 0 or more.

    Source:
        Kingma and Ba, Adam: a method for stochastic optimization, 2015, section 7.1.

    >>> from fundl import scale_by_adamax
    >>> transform, params = scale_by_adamax(), torch.zeros(2)
    >>> transform.update(torch.tensor([100.0, -0.01]), transform.init(params), params)[0]
    tensor([ 1.0000, -1.0000])
    """
    return _ScaleByAdamax(beta1, beta2, epsilon)


AdamaxChainState: TypeAlias = tuple[AdamaxState, DecayState, RateState]
"""What `adamax` remembers, part by part of its chain."""


@with_suggestions
def adamax(
    rate: Rate,
    *,
    beta1: float = 0.9,
    beta2: float = 0.999,
    epsilon: float = 1e-8,
    weight_decay: float = 0.0,
    where: Predicate | None = None,
) -> Transform[AdamaxChainState]:
    """Adamax: p = p - rate (u + weight_decay p), with u from `scale_by_adamax`.

    It is ``chain(scale_by_adamax(...), add_decayed_weights(weight_decay, where=where), scale_by_learning_rate(rate))``.

    Args:
        rate: the learning rate, a number of 0 or more or a schedule.
        beta1, beta2, epsilon: see `scale_by_adamax`, which also has the source.
        weight_decay, where: see `add_decayed_weights`.

    >>> from fundl import adamax
    >>> optimizer, params = adamax(0.1), torch.ones(2)
    >>> optimizer.step(torch.tensor([100.0, -0.01]), optimizer.init(params), params)[0]
    tensor([0.9000, 1.1000])
    """
    return chain(
        scale_by_adamax(beta1=beta1, beta2=beta2, epsilon=epsilon),
        add_decayed_weights(weight_decay, where=where),
        scale_by_learning_rate(rate),
    )
