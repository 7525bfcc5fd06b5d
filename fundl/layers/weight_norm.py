"""Layers whose weight is normalised, instead of what they compute: around any layer with a field ``weight``."""

from typing import Generic, Self, cast, final

import attrs
import torch
from torch import Tensor
from typing_extensions import TypeVar, override

from fundl._common import half, modes
from fundl._common.suggestions import with_suggestions
from fundl.initializers import Dependent, Initializer, ones
from fundl.layer import AnyLayer
from fundl.layers._inside import Around, forward_inside
from fundl.layers._layout import require_sizes
from fundl.layers._normalizing import require_eps
from fundl.layers._weighted import require_one_layer, weight_of, with_weight
from fundl.shapes import S, Through
from fundl.tree import describe

L = TypeVar("L", bound=AnyLayer)

# --- Weight normalisation ----------------------------------------------------------------------------------------------


@final
@attrs.frozen(eq=False)
class WeightNorm(Around[tuple[Tensor, Tensor]], Dependent, Generic[L]):
    """A layer whose weight is a direction and a length, learnt apart: w = gain v / ||v||, with v the weight of the layer.

    The norm is that of the weights of each output, the slices of v along an axis.

    Its vjp: that of the layer with the weight w; with grad_w, its gradient, and sums over the weights of each output:

        grad_gain = sum of grad_w v / ||v||,    grad_v = gain / ||v|| (grad_w - v / ||v|| grad_gain)

    Weights of zeros have no direction, and w is NaN. The squares of the norms must fit into v's dtype: in float32, norms above
    1e19 are infinite, and w is 0; those below 1e-22 are 0.

    Args:
        layer: any layer with a field ``weight``; best given to `weight_norm`, which makes the gain.
        gain: the norm of the weights of each output, of v's shape, but of size 1 along all other axes.
        axis: of v, that of the outputs; 0 by default.
        gain_init: how `initialize` draws what ||v|| is multiplied by to get the gain; ones by default, for w = v.

    Shape:
        that of the layer

    Residuals:
        Those of the layer; w, and a norm for each output.

    Source:
        Salimans and Kingma, Weight normalization: a simple reparameterization to accelerate training of deep neural networks,
        2016.
    """

    layer: L
    gain: Tensor
    axis: int = attrs.field(default=0, kw_only=True)
    gain_init: Initializer = attrs.field(default=ones(), kw_only=True)

    @property
    @override
    def by_position(self) -> bool:
        return self.layer.by_position

    @override
    def forward(self, x: Tensor) -> tuple[Tensor, tuple[object, tuple[Tensor, Tensor]]]:
        v = weight_of(self.layer)
        self._require_gain(v)
        if (
            self.axis == 0 and not modes.is_in_forward_mode()
        ):  # the kernels, which have no derivative there, read memory as if it were contiguous, and of the right sizes
            weight, norm = half.weight_norm(v.contiguous(), self.gain.contiguous())
        else:
            norm = _norm(v, self.axis)
            weight = v * (self.gain / norm)
        y, residuals = forward_inside(with_weight(self.layer, weight), x)
        return y, (residuals, (weight, norm))

    @override
    def _model(self, own: tuple[Tensor, Tensor]) -> L:
        return with_weight(self.layer, own[0])

    @override
    def _gradient(self, own: tuple[Tensor, Tensor], grads: object) -> Self:
        """The gradients, from those of the layer, whose weight was w."""
        norm = own[1]
        v, grad_weight = weight_of(self.layer), weight_of(grads)
        self._require_gain(v)
        require_sizes(grad_weight, v.shape)
        if self.axis == 0 and not modes.is_in_forward_mode():
            grad_v, grad_gain = half.weight_norm_backward(
                grad_weight.contiguous(), v.contiguous(), self.gain.contiguous(), norm
            )
        else:
            grad_gain = (grad_weight * v).sum(_others(v, self.axis), keepdim=True) / norm
            scale = self.gain / norm
            grad_v = torch.addcmul(grad_weight * scale, v, scale * grad_gain / norm, value=-1)
        return self.gradient(with_weight(cast("L", grads), grad_v), grad_gain)

    def _require_gain(self, v: Tensor) -> None:
        """Raise unless there is a gain for each output."""
        sizes = [1] * v.ndim
        sizes[self.axis] = v.shape[self.axis]
        if self.gain.shape != tuple(sizes):
            raise ValueError(
                f"WeightNorm has a gain for each output, of shape {tuple(sizes)} for a weight of shape {tuple(v.shape)} and"
                f" axis={self.axis}, but its shape is {tuple(self.gain.shape)}: weight_norm(layer) makes one"
            )

    @override
    def output_shape(self, shape: S) -> Through[S, L]:
        return Through(shape, (self.layer,))

    @override
    def with_dependent(self) -> "WeightNorm[L]":
        gain = self.gain * _norm(weight_of(self.layer), self.axis)
        return WeightNorm(self.layer, gain, axis=self.axis, gain_init=self.gain_init)


@with_suggestions
def weight_norm(layer: L, *, axis: int = 0, gain_init: Initializer = ones()) -> WeightNorm[L]:
    """A layer whose weight is a direction and a length, learnt apart. It begins as the layer itself.

    Args:
        layer: any layer with a field ``weight`` of two or more axes, with values or without.
        axis: of the weight, that of the outputs; 0 by default.
        gain_init: how `initialize` draws what the norm of the weights is multiplied by; ones by default.

    Raises:
        TypeError: the layer has no such weight.
        ValueError: the weight has no such axis.

    >>> from fundl import Linear, linear, weight_norm
    >>> weight_norm(Linear(torch.tensor([[3.0, 4.0]]), bias=None)).gain
    tensor([[5.]])
    >>> weight_norm(linear(2, 25))
    WeightNorm(layer=Linear(weight=float32[25, 2], bias=float32[25]), gain=float32[25, 1])
    """
    require_one_layer("weight_norm", layer)
    v = weight_of(layer)
    if not -v.ndim <= axis < v.ndim:
        raise ValueError(f"weight_norm(axis={axis}) needs a weight that has this axis, but the weight is {describe(v)}")
    with modes.no_grad():
        return WeightNorm(layer, _norm(v, axis), axis=axis % v.ndim, gain_init=gain_init)


def _norm(v: Tensor, axis: int) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(v, 2, _others(v, axis), keepdim=True)
    return norm


def _others(v: Tensor, axis: int) -> tuple[int, ...]:
    return tuple(other for other in range(v.ndim) if other != axis % v.ndim)


# --- Weight standardisation --------------------------------------------------------------------------------------------


@final
@attrs.frozen(eq=False)
class WeightStandardization(Around[tuple[Tensor, Tensor, Tensor]], Generic[L]):
    """A layer whose weights of each output have mean 0 and variance 1: w = (v - mean) rstd, with v the weight of the layer.

        rstd = 1 / sqrt(var + eps),    mean and var over the weights of each output, the slices of v along its first axis

    Its vjp: that of the layer with the weight w; with grad_w, its gradient, and means over the weights of each output:

        grad_v = rstd (grad_w - mean of grad_w - w mean of grad_w w)

    Args:
        layer: any layer with a field ``weight``; best given to `weight_standardization`, which checks it.
        eps: added to the variance; 1e-5 by default.

    Shape:
        that of the layer

    Residuals:
        Those of the layer; w, and a mean and an rstd for each output.

    Raises:
        ValueError: eps is negative.

    Source:
        Qiao, Wang, Liu, Shen and Yuille, Micro-batch training with batch-channel normalization and weight standardization,
        2019.
    """

    layer: L
    eps: float = attrs.field(default=1e-5, kw_only=True)

    def __attrs_post_init__(self) -> None:
        require_eps(self.eps)

    @property
    @override
    def by_position(self) -> bool:
        return self.layer.by_position

    @override
    def forward(self, x: Tensor) -> tuple[Tensor, tuple[object, tuple[Tensor, Tensor, Tensor]]]:
        v = weight_of(self.layer)
        rows = v.flatten(1)
        standardized, mean, rstd = half.layer_norm(rows, rows.shape[1:], None, None, self.eps)
        weight = standardized.view(v.shape)
        y, residuals = forward_inside(with_weight(self.layer, weight), x)
        return y, (residuals, (weight, mean, rstd))

    @override
    def _model(self, own: tuple[Tensor, Tensor, Tensor]) -> L:
        return with_weight(self.layer, own[0])

    @override
    def _gradient(self, own: tuple[Tensor, Tensor, Tensor], grads: object) -> Self:
        """The gradients, from those of the layer, whose weight was w."""
        _, mean, rstd = own
        v, grad_weight = weight_of(self.layer), weight_of(grads)
        rows = v.flatten(1)
        grad_rows, _, _ = half.layer_norm_backward(grad_weight.flatten(1), rows, rows.shape[1:], mean, rstd, None, None)
        return self.gradient(with_weight(cast("L", grads), grad_rows.view(v.shape)))

    @override
    def output_shape(self, shape: S) -> Through[S, L]:
        return Through(shape, (self.layer,))


@with_suggestions
def weight_standardization(layer: L, *, eps: float = 1e-5) -> WeightStandardization[L]:
    """A layer whose weights of each output have mean 0 and variance 1; before a `GroupNorm`, say.

    Args:
        layer: any layer with a field ``weight`` of two or more axes.
        eps: added to the variance; 1e-5 by default.

    Raises:
        TypeError: the layer has no such weight.
        ValueError: eps is negative.

    >>> from fundl import Linear, apply, weight_standardization
    >>> layer = weight_standardization(Linear(torch.tensor([[1.0, 3.0]]), bias=None))
    >>> apply(layer, torch.tensor([[0.0, 1.0]]))
    tensor([[1.0000]])
    """
    require_one_layer("weight_standardization", layer)
    weight_of(layer)
    return WeightStandardization(layer, eps=eps)
