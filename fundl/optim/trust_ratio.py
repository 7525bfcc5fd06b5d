"""Steps in proportion to the parameters that they change: the trust ratio, and what is made with it, LAMB and LARS."""

from typing import Self, TypeAlias, final

import attrs
import torch
from torch import Tensor
from typing_extensions import override

from fundl._common.listed import Listed
from fundl._common.numbers import non_negative, positive
from fundl._common.suggestions import with_suggestions
from fundl.optim._blocks import Stacked, block_norms, stacked_axes
from fundl.optim.adam import AdamState, scale_by_adam
from fundl.optim.chain import chain
from fundl.optim.decay import DecayState, Predicate, add_decayed_weights, predicate
from fundl.optim.flat import Number, Tensors
from fundl.optim.rate import Rate
from fundl.optim.scaling import RateState, scale_by_learning_rate
from fundl.optim.sgd import TraceState, trace
from fundl.optim.transform import Transform
from fundl.tree import Record, Splits


@final
@attrs.frozen(eq=False)
class TrustRatioState(Record, metaclass=Listed):
    """The state of `scale_by_trust_ratio`.

    Args:
        mask: for each leaf, whether it is scaled. It is static.
        stacked: for each leaf, along how many axes it is stacked of blocks. It is static.
    """

    mask: tuple[bool, ...]
    stacked: Stacked


@final
@attrs.frozen
class _ScaleByTrustRatio(Transform[TrustRatioState]):
    writes_over = True  # its state is static
    numbers = ("coefficient", "epsilon")

    coefficient: Number = attrs.field(validator=positive)
    epsilon: Number = attrs.field(validator=non_negative)
    where: Predicate | None = attrs.field(validator=predicate)
    splits: Splits = attrs.field(default=(), repr=False)

    @override
    def divided(self, splits: Splits) -> Self:
        return attrs.evolve(self, splits=splits)

    @override
    def start(self, leaves: Tensors, paths: tuple[str, ...]) -> TrustRatioState:
        where = self.where
        mask = tuple(where is None or bool(where(path, leaf)) for path, leaf in zip(paths, leaves, strict=True))
        return TrustRatioState(mask, tuple(map(stacked_axes, paths)))

    @override
    def change(self, grads: Tensors, state: TrustRatioState, params: Tensors) -> tuple[Tensors, TrustRatioState]:
        if len(state.mask) != len(grads):
            raise ValueError("the state's mask is of other leaves")
        chosen = [place for place, on in enumerate(state.mask) if on]
        if not chosen:
            return grads, state
        own, stacked = tuple(grads[place] for place in chosen), tuple(state.stacked[place] for place in chosen)
        splits = tuple(self.splits[place] for place in chosen) if self.splits else ()
        sizes = block_norms(tuple(params[place] for place in chosen), stacked, splits)
        lengths = block_norms(own, stacked, splits)
        results = [*grads]
        for place, scaled in zip(chosen, self._scaled(own, sizes, lengths), strict=True):
            results[place] = scaled
        return tuple(results), state

    def _scaled(self, grads: Tensors, sizes: list[Tensor], lengths: list[Tensor]) -> Tensors:
        """The gradients as unit vectors, which float32 holds where a ratio may be too large for it, times their new lengths."""
        divisors, factors = [], []
        for grad, size, length in zip(grads, sizes, lengths, strict=True):
            nothing = (size == 0) | (length == 0)
            divisors.append(torch.where(nothing, 1.0, length + self.epsilon).to(grad.dtype))
            factors.append(torch.where(nothing, 1.0, size * self.coefficient).to(grad.dtype))
        return torch._foreach_mul(torch._foreach_div(grads, divisors), factors)


@with_suggestions
def scale_by_trust_ratio(
    *, coefficient: float = 1.0, epsilon: float = 0.0, where: Predicate | None = None
) -> Transform[TrustRatioState]:
    """Make the updates of each parameter as long as the parameter itself, times a coefficient.

        u = g coefficient |p| / (|g| + epsilon),    or u = g if p or g is 0

    The norms are those of each leaf by itself; where `repeat` stacks blocks, those of each block. If a number of g is not
    finite, neither are all of u.

    Args:
        coefficient: the length of the updates for parameters of length 1, above 0.
        epsilon: keeps the denominator from 0; of 0 or more.
        where: chooses, once, in `init`, which leaves are scaled; all by default. `is_matrix` spares biases and norms.

    Source:
        You, Gitman and Ginsburg, Large batch training of convolutional networks, 2017.

    >>> import torch
    >>> from fundl import scale_by_trust_ratio
    >>> transform, params = scale_by_trust_ratio(coefficient=0.5), torch.tensor([6.0, 8.0])
    >>> transform.update(torch.tensor([300.0, -400.0]), transform.init(params), params)[0]
    tensor([ 3., -4.])
    """
    return _ScaleByTrustRatio(coefficient, epsilon, where)


LambState: TypeAlias = tuple[AdamState, DecayState, TrustRatioState, RateState]
"""What `lamb` remembers, part by part of its chain."""


@with_suggestions
def lamb(
    rate: Rate,
    *,
    beta1: float = 0.9,
    beta2: float = 0.999,
    epsilon: float = 1e-6,
    weight_decay: float = 0.0,
    where: Predicate | None = None,
) -> Transform[LambState]:
    """LAMB, AdamW for large batches: steps of each parameter are as long as the parameter, times the rate.

        p = p - rate |p| u / |u|,    u = a + weight_decay p,    with a from `scale_by_adam`

    It is ``chain(scale_by_adam(...), add_decayed_weights(weight_decay, where=where), scale_by_trust_ratio(where=where),
    scale_by_learning_rate(rate))``.

    Args:
        rate: the learning rate, a number of 0 or more or a schedule.
        beta1, beta2, epsilon: see `scale_by_adam`.
        weight_decay: see `add_decayed_weights`.
        where: chooses, once, in `init`, which leaves decay and are scaled by their length; all by default. With `is_matrix`,
            biases and norms are changed as by Adam.

    Source:
        You, Li, Reddi, Hseu, Kumar, Bhojanapalli, Song, Demmel, Keutzer and Hsieh, Large batch optimization for deep learning:
        training BERT in 76 minutes, 2020.

    >>> import torch
    >>> from fundl import lamb
    >>> optimizer, params = lamb(0.1), torch.tensor([3.0, 4.0])
    >>> optimizer.step(torch.tensor([100.0, -100.0]), optimizer.init(params), params)[0]
    tensor([2.6464, 4.3536])
    """
    return chain(
        scale_by_adam(beta1=beta1, beta2=beta2, epsilon=epsilon),
        add_decayed_weights(weight_decay, where=where),
        scale_by_trust_ratio(where=where),
        scale_by_learning_rate(rate),
    )


LarsState: TypeAlias = tuple[DecayState, TrustRatioState, RateState, TraceState]
"""What `lars` remembers, part by part of its chain."""


@with_suggestions
def lars(
    rate: Rate,
    *,
    momentum: float = 0.9,
    nesterov: bool = False,
    coefficient: float = 0.001,
    epsilon: float = 0.0,
    weight_decay: float = 0.0,
    where: Predicate | None = None,
) -> Transform[LarsState]:
    """LARS, momentum for large batches: what each step adds is in proportion to the parameter's length.

        b = momentum b - rate coefficient |p| u / (|u| + epsilon),    p = p + b,    u = g + weight_decay p

    It is ``chain(add_decayed_weights(weight_decay, where=where), scale_by_trust_ratio(...), scale_by_learning_rate(rate),
    trace(momentum, ...))``: the rate is inside of the momentum.

    Args:
        rate: the learning rate, a number of 0 or more or a schedule.
        momentum, nesterov: see `trace`.
        coefficient, epsilon: see `scale_by_trust_ratio`, which also has the source.
        weight_decay: see `add_decayed_weights`.
        where: chooses, once, in `init`, which leaves decay and are scaled by their length; all by default. With `is_matrix`,
            biases and norms are changed as by `momentum`.

    >>> import torch
    >>> from fundl import lars
    >>> optimizer, params = lars(0.1, coefficient=1.0), torch.tensor([3.0, 4.0])
    >>> optimizer.step(torch.tensor([30.0, -40.0]), optimizer.init(params), params)[0]
    tensor([2.7000, 4.4000])
    """
    return chain(
        add_decayed_weights(weight_decay, where=where),
        scale_by_trust_ratio(coefficient=coefficient, epsilon=epsilon, where=where),
        scale_by_learning_rate(rate),
        trace(momentum, nesterov=nesterov),
    )
