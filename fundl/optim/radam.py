"""RAdam: Adam that begins as momentum, until the mean of the squares can be relied on."""

from typing import TypeAlias, final

import attrs
import torch
from torch import Tensor
from typing_extensions import override

from fundl._common.listed import Listed
from fundl._common.numbers import fraction, non_negative
from fundl._common.suggestions import with_suggestions
from fundl.optim._advancing import Advancing
from fundl.optim._moments import mean_of, square_mean_of
from fundl.optim.chain import chain
from fundl.optim.decay import DecayState, Predicate, add_decayed_weights
from fundl.optim.flat import Number, Tensors, new_count, require_fit, shifted, times, zeros_like
from fundl.optim.rate import Rate
from fundl.optim.scaling import RateState, scale_by_learning_rate
from fundl.optim.transform import Transform
from fundl.tree import Record


@final
@attrs.frozen(eq=False)
class RAdamState(Record, metaclass=Listed):
    """The state of `scale_by_radam`.

    Args:
        count: the steps done, int64 without axes.
        first_moment: m, the decayed mean of the gradients.
        second_moment: v, the decayed mean of their squares.
    """

    count: Tensor
    first_moment: Tensors
    second_moment: Tensors


@final
@attrs.frozen
class _ScaleByRAdam(Advancing[RAdamState]):
    elementwise = True
    numbers = ("beta1", "beta2", "epsilon")

    beta1: Number = attrs.field(validator=fraction)
    beta2: Number = attrs.field(validator=fraction)
    epsilon: Number = attrs.field(validator=non_negative)

    @override
    def start(self, leaves: Tensors, paths: tuple[str, ...]) -> RAdamState:
        return RAdamState(new_count(leaves), zeros_like(leaves), zeros_like(leaves))

    @override
    def advance(self, grads: Tensors, state: RAdamState, params: Tensors, *, over: bool) -> tuple[Tensors, RAdamState]:
        if type(state) is not RAdamState:  # that of Adam has all that it takes
            raise TypeError("the state is of another transform")
        require_fit(state.first_moment, grads)
        require_fit(state.second_moment, grads)
        first = mean_of(state.first_moment, grads, self.beta1, over=over)
        second = square_mean_of(state.second_moment, grads, self.beta2, over=over)
        after = state if over else RAdamState(state.count + 1, first, second)
        if over:
            state.count.add_(1)
        return self._direction(after), after

    def _direction(self, state: RAdamState) -> Tensors:
        steps = state.count.to(torch.float64)
        first_bias, second_bias = 1 - torch.pow(self.beta1, steps), 1 - torch.pow(self.beta2, steps)
        longest = 2 / (1 - self.beta2) - 1
        length = longest - 2 * steps * (1 - second_bias) / second_bias
        is_long = length > 5
        rectified = ((length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length)).sqrt()
        factor = torch.where(is_long, rectified * second_bias.sqrt(), 1.0) / first_bias
        roots = shifted(torch._foreach_sqrt(state.second_moment), self.epsilon)
        divisors = [torch.where(is_long, root, 1.0) for root in roots]
        return times(torch._foreach_div(state.first_moment, divisors), factor)


@with_suggestions
def scale_by_radam(*, beta1: float = 0.9, beta2: float = 0.999, epsilon: float = 1e-8) -> Transform[RAdamState]:
    """Divide the mean of the gradients by the root of the mean of their squares, once that is of enough steps.

        m = beta1 m + (1 - beta1) g,    v = beta2 v + (1 - beta2) g^2,    M = m / (1 - beta1^t)    at step t = 1, 2, ...
        L = 2 / (1 - beta2) - 1,    l = L - 2 t beta2^t / (1 - beta2^t)

        u = M                                                       while l <= 5
        u = M r sqrt(1 - beta2^t) / (sqrt(v) + epsilon)             from then on, with
        r = sqrt((l - 4) (l - 2) L / ((L - 4) (L - 2) l))

    l is of how many steps v is a mean, as its variance has it. The square of a gradient beyond 1e19 is more than float32 holds:
    u is 0 then, and not a number after. Clip before.

    Args:
        beta1: the decay of m, in [0, 1).
        beta2: the decay of v, in [0, 1).
        epsilon: keeps the denominator from 0; of 0 or more.

    Source:
        Liu, Jiang, He, Chen, Liu, Gao and Han, On the variance of the adaptive learning rate and beyond, 2020.

    >>> from fundl import scale_by_radam
    >>> transform, params = scale_by_radam(), torch.zeros(2)
    >>> transform.update(torch.tensor([100.0, -0.01]), transform.init(params), params)[0]
    tensor([ 1.0000e+02, -1.0000e-02])
    """
    return _ScaleByRAdam(beta1, beta2, epsilon)


RAdamChainState: TypeAlias = tuple[RAdamState, DecayState, RateState]
"""What `radam` remembers, part by part of its chain."""


@with_suggestions
def radam(
    rate: Rate,
    *,
    beta1: float = 0.9,
    beta2: float = 0.999,
    epsilon: float = 1e-8,
    weight_decay: float = 0.0,
    where: Predicate | None = None,
) -> Transform[RAdamChainState]:
    """RAdam: p = p - rate (u + weight_decay p), with u from `scale_by_radam`.

    It is ``chain(scale_by_radam(...), add_decayed_weights(weight_decay, where=where), scale_by_learning_rate(rate))``. The
    first steps, 5 by default, are those of a momentum: the rate has to be one for it, too.

    Args:
        rate: the learning rate, a number of 0 or more or a schedule.
        beta1, beta2, epsilon: see `scale_by_radam`, which also has the source.
        weight_decay, where: see `add_decayed_weights`.

    >>> from fundl import radam
    >>> optimizer, params = radam(0.1), torch.ones(2)
    >>> optimizer.step(torch.tensor([1.0, -2.0]), optimizer.init(params), params)[0]
    tensor([0.9000, 1.2000])
    """
    return chain(
        scale_by_radam(beta1=beta1, beta2=beta2, epsilon=epsilon),
        add_decayed_weights(weight_decay, where=where),
        scale_by_learning_rate(rate),
    )
