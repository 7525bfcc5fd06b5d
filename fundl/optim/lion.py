"""Lion: steps of the learning rate's size in every element, in the direction of a momentum's sign."""

from typing import TypeAlias, final

import attrs
import torch
from typing_extensions import override

from fundl._common.listed import Listed
from fundl._common.numbers import fraction
from fundl._common.suggestions import with_suggestions
from fundl.optim.chain import chain
from fundl.optim.decay import DecayState, Predicate, add_decayed_weights
from fundl.optim.flat import Number, Tensors, mixed, require_fit, zeros_like
from fundl.optim.rate import Rate
from fundl.optim.scaling import RateState, scale_by_learning_rate
from fundl.optim.transform import Transform
from fundl.tree import Record


@final
@attrs.frozen(eq=False)
class LionState(Record, metaclass=Listed):
    """The state of `scale_by_lion`.

    Args:
        momentum: the decayed mean of the gradients.
    """

    momentum: Tensors


@final
@attrs.frozen
class _ScaleByLion(Transform[LionState]):
    elementwise = True
    writes_over = True
    numbers = ("beta1", "beta2")

    beta1: Number = attrs.field(validator=fraction)
    beta2: Number = attrs.field(validator=fraction)

    @override
    def start(self, leaves: Tensors, paths: tuple[str, ...]) -> LionState:
        return LionState(zeros_like(leaves))

    @override
    def change(self, grads: Tensors, state: LionState, params: Tensors) -> tuple[Tensors, LionState]:
        require_fit(state.momentum, grads)
        sign = self._sign(grads, state)
        return sign, LionState(mixed(state.momentum, grads, 1 - self.beta2))

    @override
    def change_over(self, grads: Tensors, state: LionState, params: Tensors) -> tuple[Tensors, LionState]:
        require_fit(state.momentum, grads)
        sign = self._sign(grads, state)
        torch._foreach_lerp_(state.momentum, grads, 1 - float(self.beta2))
        return sign, state

    def _sign(self, grads: Tensors, state: LionState) -> Tensors:
        direction = mixed(state.momentum, grads, 1 - self.beta1)
        # torch.sign says that of NaN it is 0, and nothing would tell; 0 times NaN, and 0 times infinity, is NaN.
        return torch._foreach_add(torch._foreach_sign(direction), direction, alpha=0)


@with_suggestions
def scale_by_lion(*, beta1: float = 0.9, beta2: float = 0.99) -> Transform[LionState]:
    """Replace the gradient by the sign of a momentum that looks ahead.

        u = sign(beta1 m + (1 - beta1) g),    m = beta2 m + (1 - beta2) g

    Where a gradient is infinite or not a number, so that the momentum is from then on, u is NaN.

    Args:
        beta1: how much of the momentum the direction has, in [0, 1).
        beta2: the decay of the momentum, in [0, 1).

    Source:
        Chen et al., Symbolic discovery of optimization algorithms, 2023.

    >>> from fundl import scale_by_lion
    >>> transform, params = scale_by_lion(), torch.zeros(2)
    >>> transform.update(torch.tensor([100.0, -0.01]), transform.init(params), params)[0]
    tensor([ 1., -1.])
    """
    return _ScaleByLion(beta1, beta2)


LionChainState: TypeAlias = tuple[LionState, DecayState, RateState]
"""What `lion` remembers, part by part of its chain."""


@with_suggestions
def lion(
    rate: Rate, *, beta1: float = 0.9, beta2: float = 0.99, weight_decay: float = 0.0, where: Predicate | None = None
) -> Transform[LionChainState]:
    """Lion: p = p - rate (u + weight_decay p), with u from `scale_by_lion`.

    It is ``chain(scale_by_lion(...), add_decayed_weights(weight_decay, where=where), scale_by_learning_rate(rate))``.

    Args:
        rate: the learning rate, a number of 0 or more or a schedule; a third to a tenth of Adam's.
        beta1, beta2: see `scale_by_lion`, which also has the source.
        weight_decay, where: see `add_decayed_weights`.

    >>> from fundl import lion
    >>> optimizer, params = lion(0.1), torch.ones(2)
    >>> optimizer.step(torch.tensor([100.0, -0.01]), optimizer.init(params), params)[0]
    tensor([0.9000, 1.1000])
    """
    return chain(
        scale_by_lion(beta1=beta1, beta2=beta2),
        add_decayed_weights(weight_decay, where=where),
        scale_by_learning_rate(rate),
    )
