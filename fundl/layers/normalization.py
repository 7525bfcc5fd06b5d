"""Normalisation of the features of each example: to mean 0 and variance 1, or by their root mean square.

Squares are taken in the dtype of x, in float32 at least. Where they are infinite, in float32 of numbers beyond 1e18, there is
nothing to divide by: y is 0 or NaN.
"""

import math
from typing import Generic, Self, final

import attrs
import torch
from torch import Tensor
from typing_extensions import TypeVar, override

from fundl._common import half, kernels, modes
from fundl._common.half import narrowed, widened
from fundl._common.suggestions import with_suggestions
from fundl.initializers import Initializer, ones, zeros
from fundl.layer import Layer
from fundl.layers._layout import require_sizes
from fundl.layers._normalizing import require_eps, scale_and_shift
from fundl.layers._refusals import require_dtype
from fundl.shapes import AnySize, Lead, Shape, expect

Features = TypeVar("Features", bound=int | tuple[int, ...], covariant=True, default=AnySize)
Size = TypeVar("Size", bound=int | tuple[int, ...])


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
        _require_features_to_be_there(self.features)
        require_eps(self.eps)

    @property
    @override
    def by_position(self) -> bool:
        return isinstance(self.features, int) or len(self.features) == 1

    @override
    def forward(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
        try:
            y, mean, rstd = half.layer_norm(x, _sizes(self.features), self.weight, self.bias, self.eps)
        except RuntimeError as error:
            _require_features("LayerNorm", self.features, x, error)
            require_dtype("LayerNorm's parameters are", self.weight if self.weight is not None else self.bias, x, error)
            raise
        return y, (x, mean, rstd)

    @override
    def backward(self, residuals: tuple[Tensor, Tensor, Tensor], grad: Tensor) -> tuple[Self, Tensor]:
        x, mean, rstd = residuals
        require_sizes(grad, x.shape)
        sizes = _sizes(self.features)
        grad_x, *grads = half.layer_norm_backward(grad, x, sizes, mean, rstd, self.weight, self.bias)
        return self.gradient(*grads), grad_x

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
        dtype: the parameters' dtype.

    All other options are fields of `LayerNorm`.

    Raises:
        ValueError: a size is less than 1, or eps is negative.

    >>> from fundl import layer_norm
    >>> layer_norm(25)
    LayerNorm(features=25, weight=float32[25], bias=float32[25])
    """
    _require_features_to_be_there(features)
    weight, shift = scale_and_shift(*_sizes(features), bias=bias, dtype=dtype)
    return LayerNorm(features, weight, shift, eps=eps, weight_init=weight_init, bias_init=bias_init)


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
        _require_features_to_be_there(self.features)
        require_eps(self.eps)

    @property
    @override
    def by_position(self) -> bool:
        return isinstance(self.features, int) or len(self.features) == 1

    @override
    def forward(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        _require_features("RMSNorm", self.features, x)  # no kernel does: sizes of 1 would be stretched, and dtypes promoted
        require_dtype("RMSNorm's parameters are", self.weight, x)
        wide = widened(x)
        norm = torch.linalg.vector_norm(wide, 2, self._axes, keepdim=True)
        rstd = norm.square().mul_(1 / self._count).add_(self.eps).rsqrt_()  # (..., 1): the mean of squares, and so on
        normalized = wide * rstd
        y = normalized if self.weight is None else normalized * self.weight
        return y.to(x.dtype), (x, rstd)

    @override
    def backward(self, residuals: tuple[Tensor, Tensor], grad: Tensor) -> tuple[Self, Tensor]:
        x, rstd = residuals
        require_sizes(grad, x.shape)
        of_wide = self._by_formula if modes.is_in_forward_mode() else self._by_kernel
        grad_weight, grad_x = of_wide(widened(grad), widened(x), rstd, widened(self.weight))
        return self.gradient(narrowed(grad_weight, grad)), narrowed(grad_x, grad)

    def _by_kernel(self, grad: Tensor, x: Tensor, rstd: Tensor, weight: Tensor | None) -> tuple[Tensor | None, Tensor]:
        """The vjp by the kernel for LayerNorm: told that the mean is 0, it subtracts rstd times the mean of g too much."""
        there = True, weight is not None, False
        zero = torch.zeros_like(rstd)
        less, grad_weight, _ = kernels.layer_norm_backward(grad, x, _sizes(self.features), zero, rstd, weight, None, there)
        rows = grad.flatten(self._axes[0])
        sums = rows.sum(-1) if weight is None else torch.matmul(rows, weight.flatten())  # of g, for each example
        return grad_weight, less.add(sums.reshape(rstd.shape) * rstd, alpha=1 / self._count)

    def _by_formula(self, grad: Tensor, x: Tensor, rstd: Tensor, weight: Tensor | None) -> tuple[Tensor | None, Tensor]:
        """The vjp as the docstring has it: torch would differentiate the kernel as if its mean were that of x."""
        normalized = x * rstd
        g = grad if weight is None else grad * weight
        grad_x = rstd * (g - normalized * (g * normalized).mean(self._axes, keepdim=True))
        if weight is None:
            return None, grad_x
        product = grad * normalized
        return product.flatten(0, self._axes[0] - 1).sum(0) if grad.ndim > len(self._axes) else product, grad_x

    @property
    def _axes(self) -> tuple[int, ...]:
        return tuple(range(-len(_sizes(self.features)), 0))

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
        dtype: the weight's dtype.

    All other options are fields of `RMSNorm`.

    Raises:
        ValueError: a size is less than 1, or eps is negative.

    >>> from fundl import rms_norm
    >>> rms_norm(25)
    RMSNorm(features=25, weight=float32[25])
    """
    _require_features_to_be_there(features)
    weight, _ = scale_and_shift(*_sizes(features), bias=False, dtype=dtype)
    return RMSNorm(features, weight, eps=eps, weight_init=weight_init)


def _sizes(features: int | tuple[int, ...]) -> tuple[int, ...]:
    return features if isinstance(features, tuple) else (features,)


def _expect_features(shape: Shape[*Lead, Features], features: int | tuple[int, ...]) -> Shape[*Lead, Features]:
    sizes = _sizes(features)
    given = shape.trailing(len(sizes))
    for place, (size, wanted) in enumerate(zip(given[-len(sizes) :], sizes, strict=True), start=-len(sizes)):
        expect("features" if place == -1 else f"axis {place}", size, wanted)
    return Shape(*given[: -len(sizes)], *sizes)


def _require_features_to_be_there(features: int | tuple[int, ...]) -> None:
    if not all(type(size) is int for size in _sizes(features)):
        raise TypeError(f"features must be an int or a tuple of ints, not {features!r}")
    if features == () or any(size < 1 for size in _sizes(features)):
        raise ValueError(f"features must be at least 1, not {features}")


def _require_features(layer: str, features: int | tuple[int, ...], x: Tensor, error: Exception | None = None) -> None:
    sizes = _sizes(features)
    if tuple(x.shape[-len(sizes) :]) != sizes:
        axes = f"its last axis must be of size {sizes[0]}" if len(sizes) == 1 else f"its last axes must be of sizes {sizes}"
        amount = f"features of shape {sizes}" if len(sizes) > 1 else f"{sizes[0]} feature{'s' * (sizes[0] != 1)}"
        raise ValueError(f"{layer} expects {amount}, but the input's shape is {tuple(x.shape)}: {axes}") from error
