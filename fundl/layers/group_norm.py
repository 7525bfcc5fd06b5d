"""Normalisation of channels of each example, in groups or each by itself, over space; of squares, see `normalization`."""

import math
from typing import Generic, Self, TypeAlias, final

import attrs
import torch
from torch import Tensor
from typing_extensions import override

from fundl._common import half, kernels
from fundl._common.half import narrowed, widened
from fundl._common.modes import is_in_forward_mode
from fundl._common.suggestions import with_suggestions
from fundl.initializers import Initializer, ones, zeros
from fundl.layer import Layer
from fundl.layers import _real
from fundl.layers._layout import in_a_row, require_sizes
from fundl.layers._normalizing import Channels, Count, require_channels, require_eps, scale_and_shift
from fundl.layers._refusals import require_at_least_one, require_dtype
from fundl.shapes import Batch, Length, Misfit, Rest, Shape, expect
from fundl.tree import BUFFER


@final
@attrs.frozen(eq=False)
class GroupNorm(Layer[tuple[Tensor, Tensor, Tensor]], Generic[Channels]):
    """Gives each group of channels of each example mean 0 and variance 1: y = (x - mean) rstd weight + bias.

        rstd = 1 / sqrt(var + eps),    mean and var over the channels of the group and over space

    Its vjp, with n = (x - mean) rstd, g = grad weight, sums over examples and space, and means over group and space:

        grad_weight = sum of grad n,    grad_bias = sum of grad,    grad_x = rstd (g - mean of g - n mean of g n)

    One group is a LayerNorm of an example with a weight for each channel, and as many groups as channels are an InstanceNorm.

    Args:
        groups: how many groups of consecutive channels there are, at least 1. It divides the number of channels.
        weight: of shape (channels,), or None for 1.
        bias: of shape (channels,), or None for 0.
        eps: added to the variance; 1e-5 by default.
        weight_init: how `initialize` draws the weight; ones by default.
        bias_init: how `initialize` draws the bias; zeros by default.
        mask: of shape (B, ...) and dtype bool, that of the input without its channels, True where a position is real; None, the
            default, if all are. Means are over what is real, and the output at padding is 0. `with_mask` fills it.

    Shape:
        (B, channels, ...), kept, with any number of axes of space, or none

    Residuals:
        The input, shared; the mean and rstd of each group: 2 numbers per group and example.

    Raises:
        ValueError: the input's channels are not the layer's, or not divided by the groups; or eps is negative.
        TypeError: the input's dtype is not the weight's.

    Source:
        Wu and He, Group normalization, 2018.

    >>> from fundl import GroupNorm, apply
    >>> apply(GroupNorm(2), torch.tensor([[1.0, 3.0, 0.0, 100.0]]))
    tensor([[-1.0000,  1.0000, -1.0000,  1.0000]])
    """

    counterpart = "GroupNorm(num_groups=groups)"

    groups: int
    weight: Tensor | None = None
    bias: Tensor | None = None
    eps: float = attrs.field(default=1e-5, kw_only=True)
    weight_init: Initializer = attrs.field(default=ones(), kw_only=True)
    bias_init: Initializer = attrs.field(default=zeros(), kw_only=True)
    mask: Tensor | None = attrs.field(default=None, metadata=BUFFER, kw_only=True)

    def __attrs_post_init__(self) -> None:
        require_at_least_one(groups=self.groups)
        require_eps(self.eps)

    @override
    def forward(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
        return _forward(self, x, self.groups)

    @override
    def backward(self, residuals: tuple[Tensor, Tensor, Tensor], grad: Tensor) -> tuple[Self, Tensor]:
        grad_x, *grads = _backward(self, residuals, grad, self.groups)
        return self.gradient(*grads), grad_x

    @override
    def output_shape(self, shape: Shape[Batch, Channels, *Rest]) -> Shape[Batch, Channels, *Rest]:
        batch, channels, *space = shape.leading(2)
        if self.weight is not None:
            expect("channels", channels, self.weight.shape[-1])
        if isinstance(channels, int) and channels % self.groups:
            raise Misfit(f"a multiple of {self.groups} channels", f"{channels} channels")
        return Shape(batch, channels, *space)


@with_suggestions
def group_norm(
    groups: int,
    channels: Count,
    *,
    bias: bool = True,
    eps: float = 1e-5,
    weight_init: Initializer = ones(),
    bias_init: Initializer = zeros(),
    dtype: torch.dtype = torch.float32,
) -> GroupNorm[Count]:
    """A `GroupNorm` with a weight, without values: give it some with `initialize`.

    Args:
        groups: how many groups of consecutive channels there are.
        channels: the size of the input's axis 1, a multiple of the groups.
        bias: whether to add a bias.
        dtype: the parameters' dtype.

    All other options are fields of `GroupNorm`.

    Raises:
        ValueError: a size is less than 1, the groups do not divide the channels, or eps is negative.

    >>> from fundl import group_norm
    >>> group_norm(4, 32)
    GroupNorm(groups=4, weight=float32[32], bias=float32[32])
    """
    require_at_least_one(groups=groups, channels=channels)
    weight, shift = scale_and_shift(channels, bias=bias, dtype=dtype)
    if channels % groups:
        raise ValueError(f"the groups divide the channels, but {channels} is not a multiple of {groups}")
    return GroupNorm(groups, weight, shift, eps=eps, weight_init=weight_init, bias_init=bias_init)


@final
@attrs.frozen(eq=False)
class InstanceNorm(Layer[tuple[Tensor, Tensor, Tensor]], Generic[Channels]):
    """Gives each channel of each example mean 0 and variance 1: y = (x - mean) rstd weight + bias.

        rstd = 1 / sqrt(var + eps),    mean and var over space

    Its vjp, with n = (x - mean) rstd, g = grad weight, sums over examples and space, and means over space:

        grad_weight = sum of grad n,    grad_bias = sum of grad,    grad_x = rstd (g - mean of g - n mean of g n)

    Its arguments are those of `GroupNorm`, but for the groups.

    Shape:
        (B, channels, ...), kept, with any number of axes of space, at least one

    Residuals:
        The input, shared; the mean and rstd of each channel: 2 numbers per channel and example.

    Raises:
        ValueError: the input's channels are not the layer's, or there is one number in each, which is its own mean; or eps is
            negative.
        TypeError: the input's dtype is not the weight's.

    Source:
        Ulyanov, Vedaldi and Lempitsky, Instance normalization: the missing ingredient for fast stylization, 2016.

    >>> from fundl import InstanceNorm, apply
    >>> apply(InstanceNorm(), torch.tensor([[[1.0, 3.0], [0.0, 100.0]]]))
    tensor([[[-1.0000,  1.0000],
             [-1.0000,  1.0000]]])
    """

    weight: Tensor | None = None
    bias: Tensor | None = None
    eps: float = attrs.field(default=1e-5, kw_only=True)
    weight_init: Initializer = attrs.field(default=ones(), kw_only=True)
    bias_init: Initializer = attrs.field(default=zeros(), kw_only=True)
    mask: Tensor | None = attrs.field(default=None, metadata=BUFFER, kw_only=True)

    def __attrs_post_init__(self) -> None:
        require_eps(self.eps)

    @override
    def forward(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
        if math.prod(x.shape[2:]) == 1 and self.mask is None:
            raise ValueError(
                f"InstanceNorm expects channels of more than one number, but the input's shape is {tuple(x.shape)}: a number"
                " is its own mean, and the output would not depend on it"
            )
        return _forward(self, x, x.shape[1])

    @override
    def backward(self, residuals: tuple[Tensor, Tensor, Tensor], grad: Tensor) -> tuple[Self, Tensor]:
        grad_x, *grads = _backward(self, residuals, grad, residuals[0].shape[1])
        return self.gradient(*grads), grad_x

    @override
    def output_shape(self, shape: Shape[Batch, Channels, Length, *Rest]) -> Shape[Batch, Channels, Length, *Rest]:
        batch, channels, *space = shape.leading(3)
        if self.weight is not None:
            expect("channels", channels, self.weight.shape[-1])
        return Shape(batch, channels, *space)


@with_suggestions
def instance_norm(
    channels: Count,
    *,
    bias: bool = True,
    eps: float = 1e-5,
    weight_init: Initializer = ones(),
    bias_init: Initializer = zeros(),
    dtype: torch.dtype = torch.float32,
) -> InstanceNorm[Count]:
    """An `InstanceNorm` with a weight, without values: give it some with `initialize`.

    One without parameters is made by its class: ``InstanceNorm()``.

    Args:
        channels: the size of the input's axis 1.
        bias: whether to add a bias.
        dtype: the parameters' dtype.

    All other options are fields of `InstanceNorm`.

    Raises:
        ValueError: there is no channel, or eps is negative.

    >>> from fundl import instance_norm
    >>> instance_norm(32, bias=False)
    InstanceNorm(weight=float32[32])
    """
    require_at_least_one(channels=channels)
    weight, shift = scale_and_shift(channels, bias=bias, dtype=dtype)
    return InstanceNorm(weight, shift, eps=eps, weight_init=weight_init, bias_init=bias_init)


# --- The computation ---------------------------------------------------------------------------------------------------

_Layer: TypeAlias = GroupNorm[int] | InstanceNorm[int]


def _forward(layer: _Layer, x: Tensor, groups: int) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
    weight, bias = layer.weight, layer.bias
    if layer.mask is not None:
        return _forward_of_real(layer, layer.mask, x, groups)
    try:
        wide, scale, shift = widened(x), in_a_row(half.alike(x, weight)), in_a_row(half.alike(x, bias))
        dense = _near_zero(wide, groups) if _is_channels_last(wide) else wide.contiguous()
        y, mean, rstd = kernels.group_norm(dense, scale, shift, *_sizes(x), groups, layer.eps)
    except (RuntimeError, IndexError) as error:
        name = type(layer).__name__
        require_channels(name, weight, bias, x=x, error=error)
        if x.shape[1] % groups:
            raise ValueError(
                f"{name}({groups}) expects a multiple of {groups} channels, but the input's shape is {tuple(x.shape)}: its"
                f" axis 1, of the channels, is of size {x.shape[1]}"
            ) from error
        require_dtype(f"{name}'s parameters are", weight if weight is not None else bias, x, error)
        raise
    return narrowed(y, x), (x, mean, rstd)


def _backward(layer: _Layer, residuals: tuple[Tensor, Tensor, Tensor], grad: Tensor, groups: int) -> kernels.Gradients:
    x, mean, rstd = residuals
    weight, bias = layer.weight, layer.bias
    require_sizes(grad, x.shape)
    wide, grad = widened(x), widened(grad)
    if layer.mask is not None:
        real = _real.in_groups(_real.real_in(layer.mask, x, type(layer).__name__), 1)
        given = _real.in_groups(grad, groups), _real.in_groups(wide, groups), real, mean[..., None, None], rstd[..., None, None]
        of_groups, grad_weight, grad_bias = _real.gradients(*given, weight, (2, 3))
        return half.rounded((of_groups.reshape(x.shape), grad_weight, grad_bias), x, weight, bias)
    # For the gradient of a bias, the kernel wants a weight.
    scale = in_a_row(widened(weight if weight is not None or bias is None else torch.ones_like(bias)))
    if _is_channels_last(wide):
        dense, grad = _near_zero(wide, groups), grad.movedim(1, -1).contiguous().movedim(-1, 1)
    else:
        dense, grad = wide.contiguous(), grad.contiguous()
    if is_in_forward_mode():  # where torch knows no derivative of the kernel
        return half.rounded(_by_formula(grad, dense, mean, rstd, scale), x, weight, bias)
    has_parameters = weight is not None or bias is not None
    there = True, has_parameters, has_parameters  # with the channels last, the kernel fails if it is asked for one of the two
    found = kernels.group_norm_backward(grad, dense, mean, rstd, scale, *_sizes(x), groups, there)
    return half.rounded(found, x, weight, bias)


def _forward_of_real(layer: _Layer, mask: Tensor, x: Tensor, groups: int) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
    """The same of what a mask calls real."""
    name = type(layer).__name__
    require_channels(name, layer.weight, layer.bias, x=x)
    require_dtype(f"{name}'s parameters are", layer.weight if layer.weight is not None else layer.bias, x)
    if x.shape[1] % groups:
        raise ValueError(f"{name}({groups}) expects a multiple of {groups} channels, but the input's shape is {tuple(x.shape)}")
    wide, real = _real.in_groups(widened(x), groups), _real.in_groups(_real.real_in(mask, x, name), 1)
    mean, var, _ = _real.moments(wide, real, (2, 3))
    rstd = (var + layer.eps).rsqrt()
    y = _real.scaled(wide, real, mean, rstd, (layer.weight, layer.bias)).reshape(x.shape)
    return narrowed(y, x), (x, mean.flatten(1), rstd.flatten(1))


def _by_formula(grad: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor | None) -> kernels.Gradients:
    """As the kernel, by the formula that the docstrings have; mean and rstd are (B, groups)."""
    channels, groups = (*x.shape[:2], -1), (*mean.shape, -1)
    normalized = (x.reshape(groups) - mean.unsqueeze(2)) * rstd.unsqueeze(2)
    g = grad.reshape(channels)
    g = (g if weight is None else g * weight.unsqueeze(1)).reshape(groups)
    less = g.mean(2, keepdim=True) + normalized * (g * normalized).mean(2, keepdim=True)
    grad_x = ((g - less) * rstd.unsqueeze(2)).reshape(x.shape)
    of_channels = grad.reshape(channels)
    return grad_x, (of_channels * normalized.reshape(channels)).sum((0, 2)), of_channels.sum((0, 2))


def _sizes(x: Tensor) -> tuple[int, int, int]:
    """Those of the batch, the channels and space."""
    sizes = x.shape
    return sizes[0], sizes[1], math.prod(sizes[2:])


def _is_channels_last(x: Tensor) -> bool:
    """Whether the kernels read the tensor as a dense one with the channels behind space: they do on the CPU, of images."""
    return x.is_cpu and x.ndim in {4, 5} and not x.is_contiguous() and x.movedim(1, -1).is_contiguous()


def _near_zero(x: Tensor, groups: int) -> Tensor:
    """A tensor with the channels last, less the mean of each group.

    The kernels for this order take a variance to be the mean of squares less the square of the mean, of which nothing is right
    if the mean is far from 0. The mean that they find is that of what is left here, and is kept as such.
    """
    if not x.numel():
        return x
    batch, channels = x.shape[:2]
    of_channels = x.mean(tuple(range(2, x.ndim))).view(batch, groups, channels // groups)
    of_groups = of_channels.mean(2, keepdim=True).expand_as(of_channels)
    return x - of_groups.reshape(batch, channels, *(1,) * (x.ndim - 2))
