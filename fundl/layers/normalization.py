"""Normalisation of each example by itself: of its features, of groups of its channels.

They all are y = (x - mean) rstd weight + bias, rstd = 1 / sqrt(var + eps), and differ in what mean and var are taken over. With
n = (x - mean) rstd, the normalised input, and g = grad weight, the gradient with respect to n, their vjp is

    grad_weight = sum of grad n,    grad_bias = sum of grad,    grad_x = rstd (g - mean of g - n mean of g n)

where the sums are over all that a weight multiplies, and the means over what mean and var are taken over: both depend on x,
whence the last two terms.

Squares are taken in the dtype of x, in float32 at least. Where they are infinite, in float32 of numbers beyond 1e18, there is
nothing to divide by: y is 0 or NaN.
"""

import math
from typing import Generic, final

import attrs
import torch
from torch import Tensor
from typing_extensions import TypeVar, TypeVarTuple, override

from fundl._common import half, kernels, modes
from fundl._common.half import narrowed, widened
from fundl._common.suggestions import with_suggestions
from fundl.initializers import Initializer, ones, zeros
from fundl.layer import Layer
from fundl.layers._layout import in_a_row, require_sizes
from fundl.shapes import AnySize, Misfit, Shape, expect

Features = TypeVar("Features", bound=int | tuple[int, ...], covariant=True, default=AnySize)
Channels = TypeVar("Channels", bound=int, covariant=True, default=AnySize)
Size = TypeVar("Size", bound=int | tuple[int, ...])
Count = TypeVar("Count", bound=int)
Batch = TypeVar("Batch")
Length = TypeVar("Length")
Lead = TypeVarTuple("Lead")
Space = TypeVarTuple("Space")


# --- Features ----------------------------------------------------------------------------------------------------------


@final
@attrs.frozen(eq=False)
class LayerNorm(Layer[tuple[Tensor, Tensor, Tensor]], Generic[Features]):
    """Gives the features of each example mean 0 and variance 1, then a scale and a shift: y = (x - mean) rstd weight + bias.

        rstd = 1 / sqrt(var + eps),    mean and var (divided by the number of features) over the features

    Its vjp, with n = (x - mean) rstd, g = grad weight, sums over all examples and means over the features:

        grad_weight = sum of grad n,    grad_bias = sum of grad,    grad_x = rstd (g - mean of g - n mean of g n)

    Args:
        features: the size of the last axis; or the sizes of the last axes, a tuple, which then are normalised together.
        weight: of the features' shape, or None for 1.
        bias: of the features' shape, or None for 0.
        eps: added to the variance; 1e-5 by default.
        weight_init: how `initialize` draws the weight; ones by default.
        bias_init: how `initialize` draws the bias; zeros by default.

    Shape:
        (..., features), kept

    Residuals:
        The input, shared; the mean and rstd of each example: 2 / features of the input's bytes.

    Raises:
        ValueError: the input's last axes are not those of the features; or a size is less than 1, or eps is negative.
        TypeError: the input's dtype is not the weight's.

    Source:
        Ba, Kiros and Hinton, Layer normalization, 2016.

    >>> from fundl import LayerNorm, apply
    >>> apply(LayerNorm(2), torch.tensor([[1.0, 3.0], [0.0, 100.0]]))
    tensor([[-1.0000,  1.0000],
            [-1.0000,  1.0000]])
    """

    counterpart = "LayerNorm(normalized_shape=features)"

    features: int | tuple[int, ...]
    weight: Tensor | None = None
    bias: Tensor | None = None
    eps: float = attrs.field(default=1e-5, kw_only=True)
    weight_init: Initializer = attrs.field(default=ones(), kw_only=True)
    bias_init: Initializer = attrs.field(default=zeros(), kw_only=True)

    def __attrs_post_init__(self) -> None:
        _require_sizes("features", self.features)
        require_eps(self.eps)

    @override
    def forward(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
        try:
            y, mean, rstd = half.layer_norm(x, _sizes(self.features), self.weight, self.bias, self.eps)
        except RuntimeError as error:
            _require_features("LayerNorm", self.features, x, error)
            require_dtype("LayerNorm", self.weight if self.weight is not None else self.bias, x, error)
            raise
        return y, (x, mean, rstd)

    @override
    def backward(self, residuals: tuple[Tensor, Tensor, Tensor], grad: Tensor) -> tuple["LayerNorm[Features]", Tensor]:
        return self._backward(residuals, grad)

    @override
    def backward_params(self, residuals: tuple[Tensor, Tensor, Tensor], grad: Tensor) -> "LayerNorm[Features]":
        return self._backward(residuals, grad, with_grad_x=False)[0]

    @override
    def backward_input(self, residuals: tuple[Tensor, Tensor, Tensor], grad: Tensor) -> Tensor:
        return self._backward(residuals, grad, with_grads=False)[1]

    def _backward(
        self, residuals: tuple[Tensor, Tensor, Tensor], grad: Tensor, *, with_grads: bool = True, with_grad_x: bool = True
    ) -> tuple["LayerNorm[Features]", Tensor]:
        x, mean, rstd = residuals
        require_sizes(grad, x.shape)
        mask = (with_grad_x, with_grads and self.weight is not None, with_grads and self.bias is not None)
        grad_x, grad_weight, grad_bias = half.layer_norm_backward(
            grad, x, _sizes(self.features), mean, rstd, self.weight, self.bias, mask
        )
        grads: LayerNorm[Features] = LayerNorm(
            self.features,
            grad_weight if mask[1] else None,  # in forward mode, torch has zeros for None
            grad_bias if mask[2] else None,
            eps=self.eps,
            weight_init=self.weight_init,
            bias_init=self.bias_init,
        )
        return grads, grad_x

    @override
    def output_shape(self, shape: Shape[*Lead, Features]) -> Shape[*Lead, Features]:
        return _expect_features(shape, self.features)


@with_suggestions
def layer_norm(
    features: Size,
    *,
    bias: bool = True,
    eps: float = 1e-5,
    weight_init: Initializer = ones(),
    bias_init: Initializer = zeros(),
    dtype: torch.dtype = torch.float32,
) -> LayerNorm[Size]:
    """A `LayerNorm` with a weight, without values: give it some with `initialize`.

    Args:
        features: the size of the input's last axis, or a tuple of the sizes of its last axes.
        bias: whether to add a bias.
        eps: added to the variance.
        weight_init: how to draw the weight; ones by default.
        bias_init: how to draw the bias; zeros by default.
        dtype: the parameters' dtype.

    Raises:
        ValueError: a size is less than 1, or eps is negative.

    >>> from fundl import layer_norm
    >>> layer_norm(25)
    LayerNorm(features=25, weight=float32[25], bias=float32[25])
    """
    _require_sizes("features", features)
    weight = torch.empty(_sizes(features), dtype=dtype, device="meta")
    return LayerNorm(
        features, weight, torch.empty_like(weight) if bias else None, eps=eps, weight_init=weight_init, bias_init=bias_init
    )


@final
@attrs.frozen(eq=False)
class RMSNorm(Layer[tuple[Tensor, Tensor]], Generic[Features]):
    """Divides the features of each example by their root mean square, then scales them: y = x rstd weight.

        rstd = 1 / sqrt(mean of x^2 + eps),    the mean over the features

    Its vjp, with n = x rstd, g = grad weight, the sum over all examples and the mean over the features:

        grad_weight = sum of grad n,    grad_x = rstd (g - n mean of g n)

    Args:
        features: the size of the last axis; or the sizes of the last axes, a tuple, which then are normalised together.
        weight: of the features' shape, or None for 1.
        eps: added to the mean square; 1e-6 by default.
        weight_init: how `initialize` draws the weight; ones by default.

    Shape:
        (..., features), kept

    Residuals:
        The input, shared; the rstd of each example: 1 / features of the input's bytes (half precision keeps it in float32).

    Raises:
        ValueError: the input's last axes are not those of the features; or a size is less than 1, or eps is negative.
        TypeError: the input's dtype is not the weight's.

    Source:
        Zhang and Sennrich, Root mean square layer normalization, 2019.

    >>> from fundl import RMSNorm, apply
    >>> apply(RMSNorm(2), torch.tensor([[3.0, 4.0], [0.0, 100.0]]))
    tensor([[0.8485, 1.1314],
            [0.0000, 1.4142]])
    """

    counterpart = "RMSNorm(normalized_shape=features)"

    features: int | tuple[int, ...]
    weight: Tensor | None = None
    eps: float = attrs.field(default=1e-6, kw_only=True)
    weight_init: Initializer = attrs.field(default=ones(), kw_only=True)

    def __attrs_post_init__(self) -> None:
        _require_sizes("features", self.features)
        require_eps(self.eps)

    @override
    def forward(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        _require_features("RMSNorm", self.features, x)  # no kernel does: sizes of 1 would be stretched, and dtypes promoted
        require_dtype("RMSNorm", self.weight, x)
        axes, wide = tuple(range(-len(_sizes(self.features)), 0)), widened(x)
        norm = torch.linalg.vector_norm(wide, 2, axes, keepdim=True)
        rstd = norm.square().mul_(1 / self._count).add_(self.eps).rsqrt_()  # (..., 1): the mean of squares, and so on
        normalized = wide * rstd
        y = normalized if self.weight is None else normalized * self.weight
        return y.to(x.dtype), (x, rstd)

    @override
    def backward(self, residuals: tuple[Tensor, Tensor], grad: Tensor) -> tuple["RMSNorm[Features]", Tensor]:
        return self._backward(residuals, grad)

    @override
    def backward_params(self, residuals: tuple[Tensor, Tensor], grad: Tensor) -> "RMSNorm[Features]":
        if self.weight is None:
            return self
        if modes.is_in_forward_mode():
            return self._by_formula(residuals, grad)[0]
        return self._layer_norm_backward(residuals, grad, with_grad_x=False)[0]

    @override
    def backward_input(self, residuals: tuple[Tensor, Tensor], grad: Tensor) -> Tensor:
        return self._backward(residuals, grad, with_grads=False)[1]

    def _backward(
        self, residuals: tuple[Tensor, Tensor], grad: Tensor, *, with_grads: bool = True
    ) -> tuple["RMSNorm[Features]", Tensor]:
        if modes.is_in_forward_mode():
            return self._by_formula(residuals, grad, with_grads=with_grads)
        # The kernel for LayerNorm, told that the mean is 0, subtracts rstd times the mean of g, and else does what is due.
        grads, less = self._layer_norm_backward(residuals, grad, with_grads=with_grads)
        rstd, wide = residuals[1], widened(grad)
        flat = wide.flatten(-len(_sizes(self.features)))
        of_row = flat.sum(-1) if self.weight is None else torch.matmul(flat, widened(self.weight).flatten())
        grad_x = less.add(of_row.reshape(rstd.shape) * rstd, alpha=1 / self._count)
        return grads, grad_x.to(grad.dtype)

    def _by_formula(
        self, residuals: tuple[Tensor, Tensor], grad: Tensor, *, with_grads: bool = True
    ) -> tuple["RMSNorm[Features]", Tensor]:
        """The vjp as the docstring has it: torch would differentiate the kernel as if its mean were that of x."""
        x, rstd = residuals
        require_sizes(grad, x.shape)
        wide, normalized, weight = widened(grad), widened(x) * rstd, widened(self.weight)
        axes = tuple(range(-len(_sizes(self.features)), 0))
        g = wide if weight is None else wide * weight
        grad_x = rstd * (g - normalized * (g * normalized).mean(axes, keepdim=True))
        grad_weight = (wide * normalized).flatten(0, axes[0] - 1).sum(0) if wide.ndim > len(axes) else wide * normalized
        own = narrowed(grad_weight, grad) if with_grads and self.weight is not None else None
        return RMSNorm(self.features, own, eps=self.eps, weight_init=self.weight_init), grad_x.to(grad.dtype)

    def _layer_norm_backward(
        self, residuals: tuple[Tensor, Tensor], grad: Tensor, *, with_grads: bool = True, with_grad_x: bool = True
    ) -> tuple["RMSNorm[Features]", Tensor]:
        x, rstd = residuals
        require_sizes(grad, x.shape)
        weight = widened(self.weight)
        mask = (with_grad_x, with_grads and weight is not None, False)
        grad_x, grad_weight, _ = kernels.layer_norm_backward(
            widened(grad), widened(x), _sizes(self.features), torch.zeros_like(rstd), rstd, weight, None, mask
        )
        if grad_weight is not None:
            grad_weight = narrowed(grad_weight, grad)
        return RMSNorm(self.features, grad_weight, eps=self.eps, weight_init=self.weight_init), grad_x

    @property
    def _count(self) -> int:
        return math.prod(_sizes(self.features))

    @override
    def output_shape(self, shape: Shape[*Lead, Features]) -> Shape[*Lead, Features]:
        return _expect_features(shape, self.features)


@with_suggestions
def rms_norm(
    features: Size,
    *,
    eps: float = 1e-6,
    weight_init: Initializer = ones(),
    dtype: torch.dtype = torch.float32,
) -> RMSNorm[Size]:
    """An `RMSNorm` with a weight, without values: give it some with `initialize`.

    Args:
        features: the size of the input's last axis, or a tuple of the sizes of its last axes.
        eps: added to the mean square.
        weight_init: how to draw the weight; ones by default.
        dtype: the weight's dtype.

    Raises:
        ValueError: a size is less than 1, or eps is negative.

    >>> from fundl import rms_norm
    >>> rms_norm(25)
    RMSNorm(features=25, weight=float32[25])
    """
    _require_sizes("features", features)
    return RMSNorm(features, torch.empty(_sizes(features), dtype=dtype, device="meta"), eps=eps, weight_init=weight_init)


def _sizes(features: int | tuple[int, ...]) -> tuple[int, ...]:
    return features if isinstance(features, tuple) else (features,)


def _expect_features(shape: Shape[*Lead, Features], features: int | tuple[int, ...]) -> Shape[*Lead, Features]:
    sizes = _sizes(features)
    given = shape.trailing(len(sizes))
    for place, (size, wanted) in enumerate(zip(given[-len(sizes) :], sizes, strict=True), start=-len(sizes)):
        expect("features" if place == -1 else f"axis {place}", size, wanted)
    return Shape(*given[: -len(sizes)], *sizes)


# --- Groups of channels ------------------------------------------------------------------------------------------------


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

    def __attrs_post_init__(self) -> None:
        _require_sizes("groups", self.groups)
        require_eps(self.eps)

    @override
    def forward(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
        try:
            return _group_forward(x, self.groups, self.weight, self.bias, self.eps)
        except (RuntimeError, IndexError) as error:
            require_channels("GroupNorm", self.weight, self.bias, x=x, error=error)
            if x.shape[1] % self.groups:
                raise ValueError(
                    f"GroupNorm({self.groups}) expects a multiple of {self.groups} channels, but the input's shape is"
                    f" {tuple(x.shape)}: its axis 1, of the channels, is of size {x.shape[1]}"
                ) from error
            require_dtype("GroupNorm", self.weight if self.weight is not None else self.bias, x, error)
            raise

    @override
    def backward(self, residuals: tuple[Tensor, Tensor, Tensor], grad: Tensor) -> tuple["GroupNorm[Channels]", Tensor]:
        return self._backward(residuals, grad)

    @override
    def backward_params(self, residuals: tuple[Tensor, Tensor, Tensor], grad: Tensor) -> "GroupNorm[Channels]":
        return self._backward(residuals, grad, with_grad_x=False)[0]

    @override
    def backward_input(self, residuals: tuple[Tensor, Tensor, Tensor], grad: Tensor) -> Tensor:
        return self._backward(residuals, grad, with_grads=False)[1]

    def _backward(
        self, residuals: tuple[Tensor, Tensor, Tensor], grad: Tensor, *, with_grads: bool = True, with_grad_x: bool = True
    ) -> tuple["GroupNorm[Channels]", Tensor]:
        mask = (with_grad_x, with_grads and self.weight is not None, with_grads and self.bias is not None)
        grad_x, grad_weight, grad_bias = _group_backward(residuals, grad, self.groups, self.weight, mask)
        grads: GroupNorm[Channels] = GroupNorm(
            self.groups, grad_weight, grad_bias, eps=self.eps, weight_init=self.weight_init, bias_init=self.bias_init
        )
        return grads, grad_x

    @override
    def output_shape(self, shape: Shape[Batch, Channels, *Space]) -> Shape[Batch, Channels, *Space]:
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
        eps: added to the variance.
        weight_init: how to draw the weight; ones by default.
        bias_init: how to draw the bias; zeros by default.
        dtype: the parameters' dtype.

    Raises:
        ValueError: a size is less than 1, the groups do not divide the channels, or eps is negative.

    >>> from fundl import group_norm
    >>> group_norm(4, 32)
    GroupNorm(groups=4, weight=float32[32], bias=float32[32])
    """
    _require_sizes("groups", groups)
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

    Args:
        weight: of shape (channels,), or None, the default, for 1.
        bias: of shape (channels,), or None, the default, for 0.
        eps: added to the variance; 1e-5 by default.
        weight_init: how `initialize` draws the weight; ones by default.
        bias_init: how `initialize` draws the bias; zeros by default.

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

    def __attrs_post_init__(self) -> None:
        require_eps(self.eps)

    @override
    def forward(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
        if math.prod(x.shape[2:]) == 1:
            raise ValueError(
                f"InstanceNorm expects channels of more than one number, but the input's shape is {tuple(x.shape)}: a number"
                " is its own mean, and the output would not depend on it"
            )
        try:
            return _group_forward(x, x.shape[1], self.weight, self.bias, self.eps)
        except (RuntimeError, IndexError) as error:
            require_channels("InstanceNorm", self.weight, self.bias, x=x, error=error)
            require_dtype("InstanceNorm", self.weight if self.weight is not None else self.bias, x, error)
            raise

    @override
    def backward(self, residuals: tuple[Tensor, Tensor, Tensor], grad: Tensor) -> tuple["InstanceNorm[Channels]", Tensor]:
        return self._backward(residuals, grad)

    @override
    def backward_params(self, residuals: tuple[Tensor, Tensor, Tensor], grad: Tensor) -> "InstanceNorm[Channels]":
        return self._backward(residuals, grad, with_grad_x=False)[0]

    @override
    def backward_input(self, residuals: tuple[Tensor, Tensor, Tensor], grad: Tensor) -> Tensor:
        return self._backward(residuals, grad, with_grads=False)[1]

    def _backward(
        self, residuals: tuple[Tensor, Tensor, Tensor], grad: Tensor, *, with_grads: bool = True, with_grad_x: bool = True
    ) -> tuple["InstanceNorm[Channels]", Tensor]:
        mask = (with_grad_x, with_grads and self.weight is not None, with_grads and self.bias is not None)
        grad_x, grad_weight, grad_bias = _group_backward(residuals, grad, residuals[0].shape[1], self.weight, mask)
        grads: InstanceNorm[Channels] = InstanceNorm(
            grad_weight, grad_bias, eps=self.eps, weight_init=self.weight_init, bias_init=self.bias_init
        )
        return grads, grad_x

    @override
    def output_shape(self, shape: Shape[Batch, Channels, Length, *Space]) -> Shape[Batch, Channels, Length, *Space]:
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
        eps: added to the variance.
        weight_init: how to draw the weight; ones by default.
        bias_init: how to draw the bias; zeros by default.
        dtype: the parameters' dtype.

    Raises:
        ValueError: there is no channel, or eps is negative.

    >>> from fundl import instance_norm
    >>> instance_norm(32, bias=False)
    InstanceNorm(weight=float32[32], bias=None)
    """
    weight, shift = scale_and_shift(channels, bias=bias, dtype=dtype)
    return InstanceNorm(weight, shift, eps=eps, weight_init=weight_init, bias_init=bias_init)


def scale_and_shift(channels: int, *, bias: bool, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """A weight and a bias for each channel, without values."""
    _require_sizes("channels", channels)
    weight = torch.empty(channels, dtype=dtype, device="meta")
    return weight, torch.empty_like(weight) if bias else None


def _group_forward(
    x: Tensor, groups: int, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
    batch, channels, space = x.shape[0], x.shape[1], math.prod(x.shape[2:])
    if x.dtype in half.HALF:
        y, (_, mean, rstd) = _group_forward(widened(x), groups, half.alike(x, weight), half.alike(x, bias), eps)
        return narrowed(y, x), (x, mean, rstd)
    dense = _near_zero(x, groups) if _is_channels_last(x) else x.contiguous()
    y, mean, rstd = kernels.group_norm(dense, in_a_row(weight), in_a_row(bias), batch, channels, space, groups, eps)
    return y, (x, mean, rstd)


def _group_backward(
    residuals: tuple[Tensor, Tensor, Tensor], grad: Tensor, groups: int, weight: Tensor | None, mask: tuple[bool, bool, bool]
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    x, mean, rstd = residuals
    require_sizes(grad, x.shape)
    batch, channels, space = x.shape[0], x.shape[1], math.prod(x.shape[2:])
    if x.dtype in half.HALF:
        found = _group_backward((widened(x), mean, rstd), widened(grad), groups, widened(weight), mask)
        return half.rounded(found, x, weight, weight)
    if _is_channels_last(x):
        dense, grad = _near_zero(x, groups), grad.movedim(1, -1).contiguous().movedim(-1, 1)
    else:
        dense, grad = x.contiguous(), grad.contiguous()
    return kernels.group_norm_backward(grad, dense, mean, rstd, in_a_row(weight), batch, channels, space, groups, mask)


def _is_channels_last(x: Tensor) -> bool:
    """Whether the kernels read the tensor as a dense one with the channels behind space: they do on the CPU, of images."""
    return x.is_cpu and x.ndim in {4, 5} and not x.is_contiguous() and x.movedim(1, -1).is_contiguous()


def _near_zero(x: Tensor, groups: int) -> Tensor:
    """A tensor with the channels last, less a number of each group, its first.

    The kernels for this order take a variance to be the mean of squares less the square of the mean, of which nothing is right
    if the mean is far from 0. The mean that they find is that of what is left here, and is kept as such.
    """
    batch, channels = x.shape[:2]
    if not x.numel():
        return x
    first = x[:, :: channels // groups]
    while first.ndim > 2:
        first = first.select(-1, 0)  # (B, groups) in the end
    of_channel = first.unsqueeze(2).expand(batch, groups, channels // groups).reshape(batch, channels, *(1,) * (x.ndim - 2))
    return x - of_channel


# --- What is refused ---------------------------------------------------------------------------------------------------


def _require_sizes(name: str, sizes: int | tuple[int, ...]) -> None:
    if sizes == () or any(size < 1 for size in _sizes(sizes)):
        raise ValueError(f"{name} must be at least 1, not {sizes}")


def require_eps(eps: float) -> None:
    """Raise unless a number can be added to a variance."""
    if not 0 <= eps < math.inf:
        raise ValueError(f"eps is added to the variance, and must be a finite number of 0 or more, not {eps}")


def _require_features(layer: str, features: int | tuple[int, ...], x: Tensor, error: Exception | None = None) -> None:
    sizes = _sizes(features)
    if tuple(x.shape[-len(sizes) :]) != sizes:
        axes = f"its last axis must be of size {sizes[0]}" if len(sizes) == 1 else f"its last axes must be of sizes {sizes}"
        amount = f"features of shape {sizes}" if len(sizes) > 1 else f"{sizes[0]} feature{'s' * (sizes[0] != 1)}"
        raise ValueError(f"{layer} expects {amount}, but the input's shape is {tuple(x.shape)}: {axes}") from error


def require_channels(layer: str, *parameters: Tensor | None, x: Tensor, error: Exception | None = None) -> None:
    """Raise unless the input has the channels of the parameters."""
    shape = tuple(x.shape)
    if x.ndim < 2:
        raise ValueError(f"{layer} expects an input of shape (B, channels, ...), but the input's shape is {shape}") from error
    for parameter in parameters:
        if parameter is not None and parameter.shape[0] != x.shape[1]:
            count = parameter.shape[0]
            raise ValueError(
                f"{layer} expects {count} channel{'s' * (count != 1)}, but the input's shape is {shape}: its axis 1 must be of"
                f" size {count}"
            ) from error


def require_dtype(layer: str, parameter: Tensor | None, x: Tensor, error: Exception | None = None) -> None:
    """Raise unless the input is of the dtype of a parameter."""
    if parameter is not None and x.dtype != parameter.dtype:
        raise TypeError(
            f"{layer}'s parameters are {parameter.dtype}, but the input is {x.dtype}: convert one of them, the input with"
            f" x.to({parameter.dtype}) or the model with tree.cast_to(model, {x.dtype})"
        ) from error
