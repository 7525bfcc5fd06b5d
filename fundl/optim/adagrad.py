"""Adagrad: steps divided by the root of the sum of the squares of all gradients."""

import math
from typing import TypeAlias, final

import attrs
import torch
from typing_extensions import override

from fundl._common.listed import Listed
from fundl._common.numbers import non_negative
from fundl._common.suggestions import with_suggestions
from fundl.optim.chain import chain
from fundl.optim.decay import DecayState, add_decayed_weights
from fundl.optim.flat import Number, Tensors, require_fit, shifted
from fundl.optim.rate import Rate
from fundl.optim.scaling import RateState, scale_by_learning_rate
from fundl.optim.schedules import inverse_time_schedule
from fundl.optim.transform import Transform
from fundl.tree import Record


@final
@attrs.frozen(eq=False)
class AdagradState(Record, metaclass=Listed):
    """The state of `scale_by_adagrad`.

    Args:
        square_sum: the sum of the squares of the gradients.
    """

    square_sum: Tensors


@final
@attrs.frozen
class _ScaleByAdagrad(Transform[AdagradState]):
    elementwise = True
    writes_over = True
    numbers = ("epsilon",)

    initial: float = attrs.field(validator=non_negative)
    epsilon: Number = attrs.field(validator=non_negative)

    @override
    def start(self, leaves: Tensors, paths: tuple[str, ...]) -> AdagradState:
        return AdagradState(tuple(torch.full_like(leaf, self.initial) for leaf in leaves))

    @override
    def change(self, grads: Tensors, state: AdagradState, params: Tensors) -> tuple[Tensors, AdagradState]:
        require_fit(state.square_sum, grads)
        square_sum = torch._foreach_addcmul(state.square_sum, grads, grads)
        return self._divided(grads, square_sum), AdagradState(square_sum)

    @override
    def change_over(self, grads: Tensors, state: AdagradState, params: Tensors) -> tuple[Tensors, AdagradState]:
        require_fit(state.square_sum, grads)
        torch._foreach_addcmul_(state.square_sum, grads, grads)
        return self._divided(grads, state.square_sum), state

    def _divided(self, grads: Tensors, square_sum: Tensors) -> Tensors:
        return torch._foreach_div(grads, shifted(torch._foreach_sqrt(square_sum), self.epsilon))


@with_suggestions
def scale_by_adagrad(*, initial: float = 0.0, epsilon: float = 1e-10) -> Transform[AdagradState]:
    """Divide by the root of the sum of all squares: s = s + g^2, u = g / (sqrt(s) + epsilon).

    The square of a gradient beyond 1e19 is more than float32 holds: s is infinite from then on, and u is 0. Clip before.

    Args:
        initial: the sum before the first step, of 0 or more.
        epsilon: keeps the denominator from 0; of 0 or more.

    Source:
        Duchi, Hazan and Singer, Adaptive subgradient methods for online learning and stochastic optimization, 2011.

    >>> from fundl import scale_by_adagrad
    >>> transform, params = scale_by_adagrad(initial=5.0), torch.zeros(1)
    >>> transform.update(torch.tensor([2.0]), transform.init(params), params)[0]
    tensor([0.6667])
    """
    return _ScaleByAdagrad(initial, epsilon)


AdagradChainState: TypeAlias = tuple[DecayState, AdagradState, RateState]
"""What `adagrad` remembers, part by part of its chain."""


@with_suggestions
def adagrad(
    rate: Rate, *, rate_decay: float = 0.0, initial: float = 0.0, epsilon: float = 1e-10, weight_decay: float = 0.0
) -> Transform[AdagradChainState]:
    """Adagrad: p = p - rate u, with u from `scale_by_adagrad`.

    It is ``chain(add_decayed_weights(weight_decay), scale_by_adagrad(...), scale_by_learning_rate(rate))``.

    Args:
        rate, weight_decay: see `sgd`.
        rate_decay: if not 0, the rate is `inverse_time_schedule` (rate, rate_decay).
        initial, epsilon: see `scale_by_adagrad`, which also has the source.

    Raises:
        ValueError: the rate is a schedule, and there is a rate_decay.

    >>> from fundl import adagrad
    >>> optimizer, params = adagrad(0.1), torch.ones(2)
    >>> optimizer.step(torch.tensor([100.0, -0.01]), optimizer.init(params), params)[0]
    tensor([0.9000, 1.1000])
    """
    if not 0 <= rate_decay < math.inf:
        raise ValueError(f"rate_decay must be a finite number of 0 or more, not {rate_decay}")
    scaling = scale_by_learning_rate(rate)
    if rate_decay > 0:
        if not isinstance(rate, float | int):
            raise ValueError(f"a schedule makes the rate decay by itself: give no rate_decay={rate_decay} with it")
        scaling = scale_by_learning_rate(inverse_time_schedule(rate, rate_decay))
    return chain(add_decayed_weights(weight_decay), scale_by_adagrad(initial=initial, epsilon=epsilon), scaling)
