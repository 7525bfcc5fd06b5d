"""Batch normalisation of a batch of which each process of a group has some examples."""

import torch
from torch import Tensor

from fundl._common import half
from fundl.collectives import gathered, reduced
from fundl.groups import Group


def moments(group: Group, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and variance of each channel in the whole batch, and how many numbers of it there are; x may be empty.

    Those of the processes are put together by Chan, Golub and LeVeque: no large squares are subtracted.
    """
    channels, wide = x.shape[1], half.widened(x)
    if x.numel():
        var, mean = torch.var_mean(wide, [0, *range(2, x.ndim)], correction=0)
    else:
        var = mean = wide.new_zeros(channels)
    own = torch.cat((wide.new_full((1,), x.numel() // max(channels, 1)), mean, var))
    (rows,) = gathered([own.unsqueeze(0)], group)  # (n, 1 + 2 C)
    counts, means, variances = rows.split_with_sizes([1, channels, channels], 1)
    total = counts.sum()
    shares = counts / total.clamp(min=1)
    mean = (shares * means).sum(0)
    return mean, (shares * (variances + (means - mean).square())).sum(0), total.to(torch.int64)


def gradients(group: Group, grad: Tensor, normal: Tensor, factor: Tensor, total: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients with respect to x, the weight and the bias; of these two the part of this process.

        grad_x = factor (grad - mean of grad - normal * mean of grad normal)

    Args:
        group: whose means these are.
        grad: with respect to the output.
        normal: (x - mean) rstd.
        factor: rstd weight, of each channel.
        total: how many numbers of a channel there are.
    """
    axes, shape = [0, *range(2, grad.ndim)], (1, -1, *[1] * (grad.ndim - 2))
    grad_bias, grad_weight = grad.sum(axes), (grad * normal).sum(axes)
    (sums,) = reduced([torch.stack((grad_bias, grad_weight))], group)
    means = sums / total.clamp(min=1).to(sums.dtype)
    grad_x = (grad - means[0].view(shape) - normal * means[1].view(shape)) * factor.view(shape)
    return grad_x, grad_weight, grad_bias
