"""Decayed means of gradients and of their squares, as new tensors or written over the old ones, with the same bits."""

import torch

from fundl.optim.flat import Number, Tensors, mixed, scaled_by


def mean_of(old: Tensors, new: Tensors, decay: Number, *, over: bool) -> Tensors:
    """The decayed means: decay old + (1 - decay) new."""
    if not over:
        return mixed(old, new, 1 - decay)
    torch._foreach_lerp_(old, new, 1 - float(decay))
    return old


def square_mean_of(old: Tensors, grads: Tensors, decay: Number, *, over: bool) -> Tensors:
    """The decayed means of squares: decay old + (1 - decay) g^2.

    Once one is infinite it stays so, where a difference of infinities would be NaN; and squares are divided before they are
    too large.
    """
    shares = scaled_by(grads, 1 - decay)
    if not over:
        return torch._foreach_addcmul(scaled_by(old, decay), shares, grads)
    torch._foreach_mul_(old, float(decay))
    torch._foreach_addcmul_(old, shares, grads)
    return old
