"""Adadelta: steps as large as the last ones were, in proportion to the last gradients."""

from typing import TypeAlias, final

import attrs
import torch
from typing_extensions import override

from fundl._common.listed import Listed
from fundl._common.numbers import fraction, non_negative
from fundl._common.suggestions import with_suggestions
from fundl.optim._advancing import Advancing
from fundl.optim._moments import square_mean_of
from fundl.optim.chain import chain
from fundl.optim.decay import DecayState, Predicate, add_decayed_weights
from fundl.optim.flat import Number, Tensors, require_fit, shifted, zeros_like
from fundl.optim.rate import Rate
from fundl.optim.scaling import RateState, scale_by_learning_rate
from fundl.optim.transform import Transform
from fundl.tree import Record


@final
@attrs.frozen(eq=False)
class AdadeltaState(Record, metaclass=Listed):
    """The state of `scale_by_adadelta`.

    Args:
        square: v, the decayed mean of the squares of the gradients.
        update_square: w, that of the squares of the updates.
    """

    square: Tensors
    update_square: Tensors


@final
@attrs.frozen
class _ScaleByAdadelta(Advancing[AdadeltaState]):
    elementwise = True
    numbers = ("decay", "epsilon")

    decay: Number = attrs.field(validator=fraction)
    epsilon: Number = attrs.field(validator=non_negative)

    @override
    def start(self, leaves: Tensors, paths: tuple[str, ...]) -> AdadeltaState:
        return AdadeltaState(zeros_like(leaves), zeros_like(leaves))

    @override
    def advance(self, grads: Tensors, state: AdadeltaState, params: Tensors, *, over: bool) -> tuple[Tensors, AdadeltaState]:
        require_fit(state.square, grads)
        require_fit(state.update_square, grads)
        square = square_mean_of(state.square, grads, self.decay, over=over)
        updates = self._updates(grads, square, state.update_square)
        update_square = square_mean_of(state.update_square, updates, self.decay, over=over)
        return updates, state if over else AdadeltaState(square, update_square)

    def _updates(self, grads: Tensors, square: Tensors, update_square: Tensors) -> Tensors:
        last, root = (torch._foreach_sqrt(shifted(squares, self.epsilon)) for squares in (update_square, square))
        return torch._foreach_mul(grads, torch._foreach_div(last, root))


@with_suggestions
def scale_by_adadelta(*, decay: float = 0.9, epsilon: float = 1e-6) -> Transform[AdadeltaState]:
    """Multiply by the root mean square of the last updates over that of the last gradients.

        v = decay v + (1 - decay) g^2,    u = g sqrt(w + epsilon) / sqrt(v + epsilon),    w = decay w + (1 - decay) u^2

    The square of a gradient beyond 1e19 is more than float32 holds: u is 0 then, and not a number after. Clip before.

    Args:
        decay: of both means, in [0, 1).
        epsilon: keeps the denominator from 0, and begins the updates; of 0 or more.

    Source:
        Zeiler, Adadelta: an adaptive learning rate method, 2012.

    >>> from fundl import scale_by_adadelta
    >>> transform, params = scale_by_adadelta(decay=0.75, epsilon=1e-4), torch.zeros(2)
    >>> transform.update(torch.tensor([100.0, -10.0]), transform.init(params), params)[0]
    tensor([ 0.0200, -0.0200])
    """
    return _ScaleByAdadelta(decay, epsilon)


AdadeltaChainState: TypeAlias = tuple[AdadeltaState, DecayState, RateState]
"""What `adadelta` remembers, part by part of its chain."""


@with_suggestions
def adadelta(
    rate: Rate = 1.0,
    *,
    decay: float = 0.9,
    epsilon: float = 1e-6,
    weight_decay: float = 0.0,
    where: Predicate | None = None,
) -> Transform[AdadeltaChainState]:
    """Adadelta: p = p - rate (u + weight_decay p), with u from `scale_by_adadelta`.

    It is ``chain(scale_by_adadelta(...), add_decayed_weights(weight_decay, where=where), scale_by_learning_rate(rate))``.

    Args:
        rate: the learning rate, a number of 0 or more or a schedule; 1 in the paper, which has none.
        decay, epsilon: see `scale_by_adadelta`, which also has the source.
        weight_decay, where: see `add_decayed_weights`.

    >>> from fundl import adadelta
    >>> optimizer, params = adadelta(decay=0.75, epsilon=1e-4), torch.ones(2)
    >>> optimizer.step(torch.tensor([100.0, -10.0]), optimizer.init(params), params)[0]
    tensor([0.9800, 1.0200])
    """
    return chain(
        scale_by_adadelta(decay=decay, epsilon=epsilon),
        add_decayed_weights(weight_decay, where=where),
        scale_by_learning_rate(rate),
    )
