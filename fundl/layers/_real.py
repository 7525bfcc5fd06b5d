"""Normalisation of what a mask calls real: statistics over it alone, and 0 at padding."""

import torch
from torch import Tensor

from fundl._common import half
from fundl._common.kernels import Gradients


def real_in(mask: Tensor, x: Tensor, layer: str) -> Tensor:
    """Where an input (B, C, *space) is real, of shape (B, 1, *space), by a mask (B, *space), or of its first axes alone.

    In layers over time, the first two axes of the mask are one, as those of the input are.
    """
    sizes = (*x.shape[:1], *x.shape[2:])
    for shape in (mask.shape, (mask.shape[0] * mask.shape[1], *mask.shape[2:]) if mask.ndim > 1 else mask.shape):
        if sizes[: len(shape)] == shape:
            ones = (1,) * (len(sizes) - len(shape))
            return mask.reshape(*shape, *ones).unsqueeze(1).expand(x.shape[0], 1, *x.shape[2:])
    raise ValueError(
        f"{layer} expects a mask that tells of each position of its input, of shape {sizes} for an input of shape"
        f" {tuple(x.shape)}, but the mask's is {tuple(mask.shape)}: channels are the input's axis 1, so that sequences"
        " (B, T, F) are normalised in over_time"
    )


def moments(x: Tensor, real: Tensor, axes: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and variance over the axes, and how many numbers they are of; all with the axes of size 1."""
    count = real.expand(x.shape).sum(axes, keepdim=True)
    divisor = count.clamp(min=1)
    mean = torch.where(real, x, 0).sum(axes, keepdim=True) / divisor
    return mean, torch.where(real, x - mean, 0).square().sum(axes, keepdim=True) / divisor, count


def scaled(x: Tensor, real: Tensor, mean: Tensor, rstd: Tensor, affine: tuple[Tensor | None, Tensor | None]) -> Tensor:
    """Y = (x - mean) rstd weight + bias where x is real, else 0; x is (B, G, C / G, S)."""
    y = (x - mean) * rstd
    weight, bias = (None if part is None else half.widened(part).view(1, *x.shape[1:3], 1) for part in affine)
    y = y if weight is None else y * weight
    return torch.where(real, y if bias is None else y + bias, 0)


def gradients(  # noqa: PLR0917  # what the formula has
    grad: Tensor, x: Tensor, real: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor | None, axes: tuple[int, ...]
) -> Gradients:
    """The gradients with respect to x, weight and bias: those of the formula, with means over what is real.

    grad_x = rstd (g - mean of g - n mean of g n),    n = (x - mean) rstd, g = grad weight
    """
    grad = torch.where(real, grad, 0)
    normal = torch.where(real, (x - mean) * rstd, 0)
    g = grad if weight is None else grad * half.widened(weight).view(1, *x.shape[1:3], 1)
    count = real.expand(x.shape).sum(axes, keepdim=True).clamp(min=1)
    less = g.sum(axes, keepdim=True) / count + normal * ((g * normal).sum(axes, keepdim=True) / count)
    grad_x = torch.where(real, (g - less) * rstd, 0)
    return grad_x, (grad * normal).sum((0, 3)).flatten(), grad.sum((0, 3)).flatten()


def in_groups(x: Tensor, groups: int) -> Tensor:
    """An input (B, C, *space) as (B, G, C / G, S)."""
    return x.reshape(x.shape[0], groups, x.shape[1] // max(groups, 1), x.shape[2:].numel())
