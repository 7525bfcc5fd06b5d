"""NAdam: Adam with a momentum that looks ahead, and grows in the beginning."""

from typing import Final, TypeAlias, final

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

_WARMUP: Final = 0.96  # the paper's


@final
@attrs.frozen(eq=False)
class NAdamState(Record, metaclass=Listed):
    """The state of `scale_by_nadam`.

    Args:
        count: the steps done, int64 without axes.
        product: of the momenta of all steps, float64 without axes.
        first_moment: m, the decayed mean of the gradients.
        second_moment: v, the decayed mean of their squares.
    """

    count: Tensor
    product: Tensor
    first_moment: Tensors
    second_moment: Tensors


@final
@attrs.frozen
class _ScaleByNAdam(Advancing[NAdamState]):
    elementwise = True
    numbers = ("beta1", "beta2", "epsilon", "momentum_decay")

    beta1: Number = attrs.field(validator=fraction)
    beta2: Number = attrs.field(validator=fraction)
    epsilon: Number = attrs.field(validator=non_negative)
    momentum_decay: Number = attrs.field(validator=non_negative)

    @override
    def start(self, leaves: Tensors, paths: tuple[str, ...]) -> NAdamState:
        count = new_count(leaves)
        return NAdamState(count, torch.ones_like(count, dtype=torch.float64), zeros_like(leaves), zeros_like(leaves))

    @override
    def advance(self, grads: Tensors, state: NAdamState, params: Tensors, *, over: bool) -> tuple[Tensors, NAdamState]:
        require_fit(state.first_moment, grads)
        require_fit(state.second_moment, grads)
        first = mean_of(state.first_moment, grads, self.beta1, over=over)
        second = square_mean_of(state.second_moment, grads, self.beta2, over=over)
        count = state.count.add_(1) if over else state.count + 1
        momentum = self._momentum_at(count)
        product = state.product.mul_(momentum) if over else state.product * momentum
        after = state if over else NAdamState(count, product, first, second)
        return self._direction(grads, after), after

    def _direction(self, grads: Tensors, state: NAdamState) -> Tensors:
        momentum, following = self._momentum_at(state.count), self._momentum_at(state.count + 1)
        of_grads = times(grads, (1 - momentum) / (1 - state.product))
        ahead = torch._foreach_add(of_grads, times(state.first_moment, following / (1 - state.product * following)))
        second_bias = 1 - torch.pow(self.beta2, state.count.to(torch.float64))
        root = times(torch._foreach_sqrt(state.second_moment), second_bias.rsqrt())
        return torch._foreach_div(ahead, shifted(root, self.epsilon))

    def _momentum_at(self, count: Tensor) -> Tensor:
        """The momentum of a step, the first of which is 1."""
        return self.beta1 * (1 - 0.5 * torch.pow(_WARMUP, count.to(torch.float64) * self.momentum_decay))


@with_suggestions
def scale_by_nadam(
    *, beta1: float = 0.9, beta2: float = 0.999, epsilon: float = 1e-8, momentum_decay: float = 0.004
) -> Transform[NAdamState]:
    """Divide a momentum that looks one step ahead by the root of the mean of the squares.

        m = beta1 m + (1 - beta1) g,    v = beta2 v + (1 - beta2) g^2,    at step t = 1, 2, ...
        b_t = beta1 (1 - 0.96^(t momentum_decay) / 2),    B_t = b_1 b_2 ... b_t

        u = (g (1 - b_t) / (1 - B_t) + m b_(t+1) / (1 - B_(t+1))) / (sqrt(v / (1 - beta2^t)) + epsilon)

    The square of a gradient beyond 1e19 is more than float32 holds: u is 0 then, and not a number after. Clip before.

    Args:
        beta1: the decay of m, and what the momentum b grows to, in [0, 1).
        beta2: the decay of v, in [0, 1).
        epsilon: keeps the denominator from 0; of 0 or more.
        momentum_decay: how quickly the momentum grows from beta1 / 2 to beta1, of 0 or more.

    Source:
        Dozat, Incorporating Nesterov momentum into Adam, 2016.

    >>> from fundl import scale_by_nadam
    >>> transform, params = scale_by_nadam(), torch.zeros(2)
    >>> transform.update(torch.tensor([100.0, -0.01]), transform.init(params), params)[0]
    tensor([ 1.0565, -1.0565])
    """
    return _ScaleByNAdam(beta1, beta2, epsilon, momentum_decay)


NAdamChainState: TypeAlias = tuple[NAdamState, DecayState, RateState]
"""What `nadam` remembers, part by part of its chain."""


@with_suggestions
def nadam(
    rate: Rate,
    *,
    beta1: float = 0.9,
    beta2: float = 0.999,
    epsilon: float = 1e-8,
    momentum_decay: float = 0.004,
    weight_decay: float = 0.0,
    where: Predicate | None = None,
) -> Transform[NAdamChainState]:
    """NAdam: p = p - rate (u + weight_decay p), with u from `scale_by_nadam`.

    It is ``chain(scale_by_nadam(...), add_decayed_weights(weight_decay, where=where), scale_by_learning_rate(rate))``.

    Args:
        rate: the learning rate, a number of 0 or more or a schedule.
        beta1, beta2, epsilon, momentum_decay: see `scale_by_nadam`, which also has the source.
        weight_decay, where: see `add_decayed_weights`.

    >>> from fundl import nadam
    >>> optimizer, params = nadam(0.1), torch.ones(2)
    >>> optimizer.step(torch.tensor([100.0, -0.01]), optimizer.init(params), params)[0]
    tensor([0.8944, 1.1056])
    """
    return chain(
        scale_by_nadam(beta1=beta1, beta2=beta2, epsilon=epsilon, momentum_decay=momentum_decay),
        add_decayed_weights(weight_decay, where=where),
        scale_by_learning_rate(rate),
    )
