"""Adafactor: Adam without a momentum, whose second moments of a matrix are a row and a column."""

import math
from typing import TypeAlias, final

import attrs
import torch
from torch import Tensor
from typing_extensions import override

from fundl._common.listed import Listed
from fundl._common.numbers import non_negative, positive
from fundl._common.suggestions import with_suggestions
from fundl.optim._advancing import Advancing
from fundl.optim._blocks import Stacked, block_norms, stacked_axes
from fundl.optim.chain import chain
from fundl.optim.decay import DecayState, Predicate, add_decayed_weights
from fundl.optim.flat import Number, Tensors, mixed, new_count
from fundl.optim.rate import Rate
from fundl.optim.scaling import RateState, scale_by_learning_rate
from fundl.optim.transform import Transform
from fundl.tree import Record


@final
@attrs.frozen(eq=False)
class AdafactorState(Record, metaclass=Listed):
    """The state of `scale_by_adafactor`.

    Args:
        count: the steps done, int64 without axes.
        rows: R, for each matrix the decayed mean of g^2 in each row, (..., n, 1).
        columns: C, that in each column, (..., 1, m).
        squares: v, for each leaf that is no matrix the decayed mean of g^2.
        stacked: for each leaf, along how many axes it is stacked of blocks. It is static.
    """

    count: Tensor
    rows: Tensors
    columns: Tensors
    squares: Tensors
    stacked: Stacked


@final
@attrs.frozen
class _ScaleByAdafactor(Advancing[AdafactorState]):
    numbers = ("decay_power", "epsilon", "threshold", "least_size")

    decay_power: Number = attrs.field(validator=non_negative)
    epsilon: Number = attrs.field(validator=positive)
    threshold: Number = attrs.field(validator=positive)
    least_size: Number = attrs.field(validator=positive)

    @override
    def start(self, leaves: Tensors, paths: tuple[str, ...]) -> AdafactorState:
        stacked = tuple(map(stacked_axes, paths))
        matrices, others = _apart(leaves, stacked)
        rows = tuple(leaf.new_zeros((*leaf.shape[:-1], 1)) for leaf in matrices)
        columns = tuple(leaf.new_zeros((*leaf.shape[:-2], 1, leaf.shape[-1])) for leaf in matrices)
        return AdafactorState(new_count(leaves), rows, columns, tuple(map(torch.zeros_like, others)), stacked)

    @override
    def advance(self, grads: Tensors, state: AdafactorState, params: Tensors, *, over: bool) -> tuple[Tensors, AdafactorState]:
        if len(state.stacked) != len(grads):
            raise ValueError("the state is of other leaves")
        matrices, others = _apart(torch._foreach_mul(grads, grads), state.stacked)
        _require_shapes(state, matrices, others)
        count = state.count.add_(1) if over else state.count + 1
        share = torch.pow(count.to(torch.float64), -self.decay_power)
        rows = _mixed(state.rows, tuple(_mean(square, -1) for square in matrices), share, over=over)
        columns = _mixed(state.columns, tuple(_mean(square, -2) for square in matrices), share, over=over)
        squares = _mixed(state.squares, others, share, over=over)
        factored, plain = iter([self._root(*pair) for pair in zip(rows, columns, strict=True)]), iter(squares)
        roots = [
            next(factored) if _is_matrix(grad, axes) else next(plain).sqrt()
            for grad, axes in zip(grads, state.stacked, strict=True)
        ]
        divided = torch._foreach_div(grads, [root.clamp(min=self.epsilon) for root in roots])
        kept = state if over else AdafactorState(count, rows, columns, squares, state.stacked)
        return self._sized(divided, params, state.stacked), kept

    def _root(self, row: Tensor, column: Tensor) -> Tensor:
        """The root of R C / mean(R), (..., n, m), of products that float32 can hold."""
        return (row / _mean(row, -2).clamp(min=self.epsilon**2)).sqrt() * column.sqrt()

    def _sized(self, updates: Tensors, params: Tensors, stacked: Stacked) -> Tensors:
        """The updates, bounded in their root mean square, in proportion to that of the params."""
        factors: list[Tensor] = []
        lengths, sizes = block_norms(updates, stacked), block_norms(params, stacked)
        for update, length, size in zip(updates, lengths, sizes, strict=True):
            root = math.sqrt(max(1, update.numel() // max(1, length.numel())))
            factor = (size / root).clamp(min=self.least_size) / (length / root / self.threshold).clamp(min=1.0)
            factors.append(factor.to(update.dtype))
        return torch._foreach_mul(updates, factors)


def _is_matrix(leaf: Tensor, stacked: int) -> bool:
    return leaf.ndim - stacked >= 2


def _apart(leaves: Tensors, stacked: Stacked) -> tuple[Tensors, Tensors]:
    """The matrices, and the others."""
    pairs = [*zip(leaves, stacked, strict=True)]
    return tuple(leaf for leaf, axes in pairs if _is_matrix(leaf, axes)), tuple(
        leaf for leaf, axes in pairs if not _is_matrix(leaf, axes)
    )


def _require_shapes(state: AdafactorState, matrices: Tensors, others: Tensors) -> None:
    """Raise unless the state is of such leaves: kernels would broadcast some that are not."""
    shapes = [(*leaf.shape[:-1], 1) for leaf in matrices], [(*leaf.shape[:-2], 1, leaf.shape[-1]) for leaf in matrices]
    expected = [*shapes[0], *shapes[1], *(tuple(leaf.shape) for leaf in others)]
    held = (*state.rows, *state.columns, *state.squares)
    dtypes = [leaf.dtype for leaf in (*matrices, *matrices, *others)]
    if [tuple(leaf.shape) for leaf in held] != expected or [leaf.dtype for leaf in held] != dtypes:
        raise ValueError("the state's tensors are not of the gradient's shapes and dtypes")


def _mixed(old: Tensors, new: Tensors, share: Tensor, *, over: bool) -> Tensors:
    if not old or not over:
        return mixed(old, new, share) if old else ()
    torch._foreach_lerp_(old, new, tuple(share.to(tensor) for tensor in old))
    return old


def _mean(tensor: Tensor, axis: int) -> Tensor:
    """The mean along an axis, which stays; 0 of nothing."""
    return tensor.sum(axis, keepdim=True) / max(1, tensor.shape[axis])


@with_suggestions
def scale_by_adafactor(
    *, decay_power: float = 0.8, epsilon: float = 1e-15, threshold: float = 1.0, least_size: float = 1e-3
) -> Transform[AdafactorState]:
    """Divide by the root of a mean of squares of which rows and columns are kept, in proportion to the params.

        b = 1 - t^(-decay_power)    at step t = 1, 2, ...
        R = b R + (1 - b) (mean of g^2 in each row),    C = b C + (1 - b) (mean of g^2 in each column)
        v = R C / mean(R)

        U = g / max(sqrt(v), epsilon),    u = U max(least_size, rms(p)) / max(1, rms(U) / threshold)

    for matrices; of other leaves, v = b v + (1 - b) g^2. Rows and columns are those of the last two axes; where `repeat` stacks
    blocks, each is by itself. rms is the root of the mean of the squares of a whole leaf, or block: so if a number of g is not
    finite, none of u is one. The square of a gradient beyond 1e19 is more than float32 holds. Clip before.

    What it keeps of a matrix, n + m numbers, is of the whole: it is for parameters that are not sharded.

    Args:
        decay_power: how quickly the means grow long, of 0 or more.
        epsilon: keeps the denominator from 0; above 0.
        threshold: the most that rms(U) may be, above 0.
        least_size: the size of params that are smaller, so that zeros can grow; above 0.

    Source:
        Shazeer and Stern, Adafactor: adaptive learning rates with sublinear memory cost, 2018.

    >>> from fundl import scale_by_adafactor
    >>> transform, params = scale_by_adafactor(), torch.full((2, 3), 0.5)
    >>> transform.update(torch.full((2, 3), -100.0), transform.init(params), params)[0]
    tensor([[-0.5000, -0.5000, -0.5000],
            [-0.5000, -0.5000, -0.5000]])
    """
    return _ScaleByAdafactor(decay_power, epsilon, threshold, least_size)


AdafactorChainState: TypeAlias = tuple[AdafactorState, DecayState, RateState]
"""What `adafactor` remembers, part by part of its chain."""


@with_suggestions
def adafactor(
    rate: Rate,
    *,
    decay_power: float = 0.8,
    epsilon: float = 1e-15,
    threshold: float = 1.0,
    least_size: float = 1e-3,
    weight_decay: float = 0.0,
    where: Predicate | None = None,
) -> Transform[AdafactorChainState]:
    """Adafactor: p = p - rate (u + weight_decay p), with u from `scale_by_adafactor`.

    It is ``chain(scale_by_adafactor(...), add_decayed_weights(weight_decay, where=where), scale_by_learning_rate(rate))``. The
    rate is relative: 0.01 changes each parameter by a hundredth of its size. The paper's falls with the root of the steps,
    ``adafactor(lambda count: (count.double() + 1).rsqrt().clamp(max=0.01))``. For a momentum, write
    ``chain(scale_by_adafactor(), trace(0.9, dampening=0.1), scale_by_learning_rate(rate))``.

    Args:
        rate: the learning rate, a number of 0 or more or a schedule.
        decay_power, epsilon, threshold, least_size: see `scale_by_adafactor`, which also has the source.
        weight_decay, where: see `add_decayed_weights`.

    >>> from fundl import adafactor
    >>> optimizer, params = adafactor(0.1), torch.ones(2)
    >>> optimizer.step(torch.tensor([100.0, -0.01]), optimizer.init(params), params)[0]
    tensor([0.9000, 1.1000])
    """
    return chain(
        scale_by_adafactor(decay_power=decay_power, epsilon=epsilon, threshold=threshold, least_size=least_size),
        add_decayed_weights(weight_decay, where=where),
        scale_by_learning_rate(rate),
    )
