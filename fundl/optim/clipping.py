"""Clipping: bounds for the updates' norm, and for each of their elements."""

from typing import Self, final

import attrs
import torch
from torch import Tensor
from typing_extensions import override

from fundl import tree
from fundl._common.numbers import positive
from fundl._common.suggestions import with_suggestions
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
