"""Clipping: bounds for the norm of all updates, of each tensor, of each unit, and for each element."""

from typing import Self, final

import attrs
import torch
from torch import Tensor
from typing_extensions import override

from fundl import tree
from fundl._common.numbers import positive
from fundl._common.suggestions import with_suggestions
from fundl.optim._blocks import BlocksState, OfBlocks, Stacked, block_norms, stacked_axes, unit_axes
from fundl.optim.flat import Number, Tensors, times
from fundl.optim.transform import Stateless, Transform


@final
@attrs.frozen
class _ClipByGlobalNorm(Stateless):
    numbers = ("max_norm",)

    max_norm: Number = attrs.field(validator=positive)
    splits: tree.Splits = attrs.field(default=(), repr=False)

    @override
    def divided(self, splits: tree.Splits) -> Self:
        return attrs.evolve(self, splits=splits)

    @override
    def updates(self, grads: Tensors) -> Tensors:
        norm = tree.norm_of(grads, self.splits)
        most = self.max_norm.to(norm) if isinstance(self.max_norm, Tensor) else self.max_norm
        return times(grads, most / norm.clamp(min=most))


@with_suggestions
def clip_by_global_norm(max_norm: float) -> Transform[tuple[()]]:
    """Shorten all updates together, if they are longer than a bound: u = g min(1, max_norm / |g|).

    |g| is the norm of all trainable elements together. If one is not a number, neither is any of the result.

    Args:
        max_norm: the bound, above 0.

    Source:
        Pascanu, Mikolov and Bengio, On the difficulty of training recurrent neural networks, 2013.

    >>> import torch
    >>> from fundl import clip_by_global_norm
    >>> clip, params = clip_by_global_norm(1.0), {"weight": torch.zeros(1), "bias": torch.zeros(1)}
    >>> grads = {"weight": torch.tensor([3.0]), "bias": torch.tensor([4.0])}
    >>> clip.update(grads, clip.init(params), params)[0]
    {'weight': tensor([0.6000]), 'bias': tensor([0.8000])}
    """
    return _ClipByGlobalNorm(max_norm)


@final
@attrs.frozen
class _ClipByValue(Stateless):
    elementwise = True
    numbers = ("limit",)

    limit: Number = attrs.field(validator=positive)

    @override
    def updates(self, grads: Tensors) -> Tensors:
        if isinstance(self.limit, Tensor):
            limits = [self.limit.to(grad) for grad in grads]
            return tuple(torch.clamp(grad, -limit, limit) for grad, limit in zip(grads, limits, strict=True))
        return torch._foreach_clamp_max(torch._foreach_clamp_min(grads, -self.limit), self.limit)


@with_suggestions
def clip_by_value(limit: float) -> Transform[tuple[()]]:
    """Clip each element: u = max(-limit, min(limit, g)).

    Args:
        limit: the bound, above 0.

    >>> import torch
    >>> from fundl import clip_by_value
    >>> clip_by_value(1.0).update(torch.tensor([-3.0, 0.5]), clip_by_value(1.0).init(torch.zeros(2)), torch.zeros(2))[0]
    tensor([-1.0000,  0.5000])
    """
    return _ClipByValue(limit)


@final
@attrs.frozen
class _ClipByNorm(OfBlocks):
    numbers = ("max_norm",)

    max_norm: Number = attrs.field(validator=positive)

    @override
    def axes(self, path: str, leaf: Tensor) -> int:
        return stacked_axes(path)

    @override
    def updates(self, grads: Tensors, axes: Stacked, params: Tensors) -> Tensors:
        norms = block_norms(grads, axes, self.splits)
        return _shortened(grads, norms, [torch.zeros_like(norm) + self.max_norm for norm in norms])


def _shortened(grads: Tensors, norms: list[Tensor], bounds: list[Tensor]) -> Tensors:
    """The gradients, whose norms are given, no longer than bounds."""
    factors = [
        (bound / torch.maximum(norm, bound)).to(grad.dtype) for grad, norm, bound in zip(grads, norms, bounds, strict=True)
    ]
    return torch._foreach_mul(grads, factors)


@with_suggestions
def clip_by_norm(max_norm: float) -> Transform[BlocksState]:
    """Shorten each tensor by itself, if it is longer than a bound: u = g min(1, max_norm / |g|), of each tensor g.

    Of tensors that `repeat` stacks, each block is one. Where a tensor holds a NaN, all of it becomes NaN.

    Args:
        max_norm: the bound, above 0.

    >>> import torch
    >>> from fundl import clip_by_norm
    >>> clip, params = clip_by_norm(1.0), {"weight": torch.zeros(2), "bias": torch.zeros(1)}
    >>> grads = {"weight": torch.tensor([3.0, 4.0]), "bias": torch.tensor([0.5])}
    >>> clip.update(grads, clip.init(params), params)[0]
    {'weight': tensor([0.6000, 0.8000]), 'bias': tensor([0.5000])}
    """
    return _ClipByNorm(max_norm)


@final
@attrs.frozen
class _ClipAdaptively(OfBlocks):
    numbers = ("ratio", "epsilon")

    ratio: Number = attrs.field(validator=positive)
    epsilon: Number = attrs.field(validator=positive)

    @override
    def axes(self, path: str, leaf: Tensor) -> int:
        return unit_axes(path, leaf)

    @override
    def updates(self, grads: Tensors, axes: Stacked, params: Tensors) -> Tensors:
        norms, sizes = block_norms(grads, axes, self.splits), block_norms(params, axes, self.splits)
        return _shortened(grads, norms, [self.ratio * torch.clamp(size, min=self.epsilon) for size in sizes])


@with_suggestions
def clip_adaptively(ratio: float = 0.01, *, epsilon: float = 1e-3) -> Transform[BlocksState]:
    """Shorten the gradient of each unit, if it is long in proportion to the unit: u = g min(1, ratio max(|p|, epsilon) / |g|).

    The units of a matrix, and of the weights of a convolution, are its rows, the parts at one place of the first axis; a vector
    is one unit. Of tensors that `repeat` stacks, each block has units of its own.

    Args:
        ratio: how long the gradient of a unit may be, in proportion to the unit; above 0.
        epsilon: a unit counts as no smaller, so that what is 0 at first is learned; above 0.

    Source:
        Brock, De, Smith and Simonyan, High-performance large-scale image recognition without normalization, 2021, who leave
        out the last layer: ``partition`` does so.

    >>> import torch
    >>> from fundl import clip_adaptively
    >>> clip, weight = clip_adaptively(0.1), torch.tensor([[3.0, 4.0], [30.0, 40.0]])
    >>> clip.update(torch.tensor([[0.6, 0.8], [0.6, 0.8]]), clip.init(weight), weight)[0]
    tensor([[0.3000, 0.4000],
            [0.6000, 0.8000]])
    """
    return _ClipAdaptively(ratio, epsilon)
