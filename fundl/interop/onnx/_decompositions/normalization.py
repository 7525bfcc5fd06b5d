"""Layer, group and batch normalisation, and their gradients."""

from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from fundl._compiling.graphs import Decompositions

_aten = torch.ops.aten
Grads: TypeAlias = tuple[Tensor | None, Tensor | None, Tensor | None]
"""With respect to the input, the weight and the bias; None where it is not wanted."""


def wide(x: Tensor) -> Tensor:
    """Numbers in float32 at least, in which kernels add up what is in half precision."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _moments(x: Tensor, axes: list[int], eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """The mean, what deviates from it, and one over the standard deviation."""
    mean = x.mean(axes, keepdim=True)
    deviation = x - mean
    return mean, deviation, torch.rsqrt((deviation * deviation).mean(axes, keepdim=True) + eps)


def _scaled(y: Tensor, weight: Tensor | None, bias: Tensor | None, shape: Sequence[int]) -> Tensor:
    if weight is not None:
        y = y * weight.reshape(shape)
    return y if bias is None else y + bias.reshape(shape)


def _grad_input(grad: Tensor, normalized: Tensor, axes: list[int]) -> Tensor:
    """The gradient with respect to the input, times the standard deviation."""
    mean, along = grad.mean(axes, keepdim=True), (grad * normalized).mean(axes, keepdim=True)
    return grad - mean - normalized * along


# --- Layer ---------------------------------------------------------------------------------------------------------------


def _layer_norm(
    x: Tensor, sizes: Sequence[int], weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    mean, deviation, scale = _moments(wide(x), [*range(-len(sizes), 0)], eps)
    return _scaled(deviation * scale, weight, bias, sizes).to(x.dtype), mean.to(x.dtype), scale.to(x.dtype)


def _layer_norm_backward(
    grad: Tensor,
    x: Tensor,
    sizes: Sequence[int],
    mean: Tensor,
    scale: Tensor,
    weight: Tensor | None,
    _bias: Tensor | None,
    wanted: Sequence[bool],
) -> Grads:
    axes, rest = [*range(-len(sizes), 0)], [*range(x.ndim - len(sizes))]
    dtype, grad, mean, scale = x.dtype, wide(grad), wide(mean), wide(scale)
    normalized = (x - mean) * scale
    scaled = grad if weight is None else grad * weight
    grad_weight, grad_bias = grad * normalized, grad
    if rest:
        grad_weight, grad_bias = grad_weight.sum(rest), grad_bias.sum(rest)
    return _chosen(wanted, dtype, scale * _grad_input(scaled, normalized, axes), grad_weight, grad_bias)


def _chosen(wanted: Sequence[bool], dtype: torch.dtype, *grads: Tensor) -> Grads:
    """What is wanted; the rest is computed by nobody, for no output needs it."""
    grad_x, grad_weight, grad_bias = (
        grad.to(dtype) if is_wanted else None for grad, is_wanted in zip(grads, wanted, strict=True)
    )
    return grad_x, grad_weight, grad_bias


# --- Group ---------------------------------------------------------------------------------------------------------------


def _group_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    batch: int,
    channels: int,
    pixels: int,
    groups: int,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    mean, deviation, scale = _moments(wide(x).reshape(batch, groups, channels // groups * pixels), [2], eps)
    y = _scaled((deviation * scale).reshape(batch, channels, pixels), weight, bias, (1, channels, 1))
    return y.reshape(x.shape).to(x.dtype), mean.squeeze(2).to(x.dtype), scale.squeeze(2).to(x.dtype)


def _group_norm_backward(
    grad: Tensor,
    x: Tensor,
    mean: Tensor,
    scale: Tensor,
    weight: Tensor | None,
    batch: int,
    channels: int,
    pixels: int,
    groups: int,
    wanted: Sequence[bool],
) -> Grads:
    grad, scale, mean = wide(grad), wide(scale).reshape(batch, groups, 1), wide(mean)
    normalized = (x.reshape(batch, groups, channels // groups * pixels) - mean.reshape(batch, groups, 1)) * scale
    own = grad.reshape(batch, channels, pixels)
    scaled = (own if weight is None else own * weight.reshape(1, channels, 1)).reshape(normalized.shape)
    grad_x = (scale * _grad_input(scaled, normalized, [2])).reshape(x.shape)
    return _chosen(wanted, x.dtype, grad_x, (own * normalized.reshape(own.shape)).sum([0, 2]), own.sum([0, 2]))


# --- Batch ---------------------------------------------------------------------------------------------------------------


def _of_channels(x: Tensor) -> tuple[list[int], list[int]]:
    """The axes over which each channel is normalised, and the shape of what there is one of for each channel."""
    return [0, *range(2, x.ndim)], [1, -1, *[1] * (x.ndim - 2)]


def _batch_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor | None,
    variance: Tensor | None,
    training: bool,
    _momentum: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    axes, shape = _of_channels(x)
    if training:
        center, deviation, scale = _moments(wide(x), axes, eps)
        kept = center.reshape(-1).to(x.dtype), scale.reshape(-1).to(x.dtype)
    else:
        assert mean is not None
        assert variance is not None
        deviation, scale = wide(x) - mean.reshape(shape), torch.rsqrt(wide(variance) + eps).reshape(shape)
        kept = x.new_zeros(0), x.new_zeros(0)
    return _scaled(deviation * scale, weight, bias, shape).to(x.dtype), *kept


def _batch_norm_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor | None,
    mean: Tensor | None,
    variance: Tensor | None,
    kept_mean: Tensor | None,
    kept_scale: Tensor | None,
    training: bool,
    eps: float,
    wanted: Sequence[bool],
) -> Grads:
    axes, shape = _of_channels(x)
    center, scale = kept_mean, kept_scale
    if not training:
        assert variance is not None
        center, scale = mean, torch.rsqrt(wide(variance) + eps)
    assert center is not None
    assert scale is not None
    grad, scale = wide(grad), wide(scale).reshape(shape)
    normalized = (x - wide(center).reshape(shape)) * scale
    scaled = grad if weight is None else grad * weight.reshape(shape)
    grad_x = scale * (_grad_input(scaled, normalized, axes) if training else scaled)
    return _chosen(wanted, x.dtype, grad_x, (grad * normalized).sum(axes), grad.sum(axes))


TABLE: Decompositions = {
    _aten.native_layer_norm.default: _layer_norm,
    _aten.native_layer_norm_backward.default: _layer_norm_backward,
    _aten.native_group_norm.default: _group_norm,
    _aten.native_group_norm_backward.default: _group_norm_backward,
    _aten.native_batch_norm.default: _batch_norm,
    _aten.native_batch_norm_backward.default: _batch_norm_backward,
}
