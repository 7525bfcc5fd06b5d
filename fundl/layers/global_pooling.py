"""Global pooling: the maximum or the mean of each channel, over however many spatial axes there are."""

import math
from typing import Generic, Self, final

import attrs
from torch import Tensor
from typing_extensions import TypeVar, override

from fundl._common import kernels
from fundl.layer import Layer
from fundl.layers._inside import Sizes
from fundl.layers._layout import Layout, layout_of, require_sizes, stand_in
from fundl.shapes import Batch, Channels, Rest, Shape

Residuals = TypeVar("Residuals")


@attrs.frozen(eq=False, init=False)
class _Global(Layer[Residuals], Generic[Residuals]):
    """What the layers have in common that leave one number of each channel."""

    @override
    def output_shape(self, shape: Shape[Batch, Channels, *Rest]) -> Shape[Batch, Channels]:
        batch, channels, *_ = shape.leading(2)
        return Shape(batch, channels)

    def _require_space(self, x: Tensor) -> None:
        """Say in the layer's words what the kernel would refuse, or take for something else."""
        name = type(self).__name__
        if x.ndim < 3:
            raise ValueError(
                f"{name} takes an input of shape (B, C, ...) with at least one axis after the channels, not {tuple(x.shape)}"
            )
        if 0 in x.shape[1:]:
            raise ValueError(
                f"{name} needs at least one element along each axis but that of the batch, but the input's shape is"
                f" {tuple(x.shape)}"
            )


@final
@attrs.frozen(eq=False)
class GlobalAveragePool(_Global[Sizes]):
    """The mean of each channel: y[b, c] = (1 / n) sum of x[b, c, ...], over n elements.

    Its vjp: grad_x[b, c, ...] = grad[b, c] / n.

    Shape:
        (B, C, ...), with one axis or more after the channels, to (B, C)

    Residuals:
        The sizes of the input: no bytes.

    Raises:
        TypeError: the input is not floating-point.
        ValueError: the input has no axis after the channels, or no element along an axis.

    Source:
        Lin, Chen and Yan, Network in network, 2013.

    >>> import torch
    >>> from fundl import GlobalAveragePool, apply
    >>> apply(GlobalAveragePool(), torch.tensor([[[1.0, 4.0, 2.0, 3.0]]]))
    tensor([[2.5000]])
    """

    @override
    def forward(self, x: Tensor) -> tuple[Tensor, Sizes]:
        if x.ndim < 3 or not x.numel():
            self._require_space(x)
        return x.mean(tuple(range(2, x.ndim))), Sizes(x.shape)

    @override
    def backward(self, residuals: Sizes, grad: Tensor) -> tuple[Self, Tensor]:
        sizes = residuals.sizes
        require_sizes(grad, sizes[:2])
        share = grad / math.prod(sizes[2:])  # (B, C)
        return self, share.reshape(*sizes[:2], *(1,) * len(sizes[2:])).expand(sizes)


@final
@attrs.frozen(eq=False)
class GlobalMaxPool(_Global[tuple[Tensor, Layout, Sizes]]):
    """The maximum of each channel: y[b, c] = max of x[b, c, ...]. NaN is larger than all else.

    Its vjp: grad_x is grad where the maximum is from, the first of them if there are several, else 0.

    Shape:
        (B, C, ...), with one axis or more after the channels, to (B, C)

    Residuals:
        Where each maximum is from, 8 bytes per output element; the input is not kept.

    Raises:
        TypeError: the input is not floating-point.
        ValueError: the input has no axis after the channels, or no element along an axis.

    Source:
        Oquab, Bottou, Laptev and Sivic, Is object localization for free? Weakly-supervised learning with convolutional neural
        networks, 2015.

    >>> import torch
    >>> from fundl import GlobalMaxPool, apply
    >>> apply(GlobalMaxPool(), torch.tensor([[[1.0, 4.0, 2.0, 3.0]]]))
    tensor([[4.]])
    """

    @override
    def forward(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, Layout, Sizes]]:
        if x.ndim < 3 or not x.numel():
            self._require_space(x)
        planes = x.flatten(2).unsqueeze(2)  # (B, C, 1, n)
        output, indices = kernels.adaptive_max_pool[2](planes, 1)
        return output.flatten(1), (indices, layout_of(planes), Sizes(x.shape))

    @override
    def backward(self, residuals: tuple[Tensor, Layout, Sizes], grad: Tensor) -> tuple[Self, Tensor]:
        indices, layout, sizes = residuals
        require_sizes(grad, sizes.sizes[:2])
        planes = kernels.adaptive_max_pool_backward[2](grad[..., None, None], stand_in(layout, grad), indices)
        return self, planes.reshape(sizes.sizes)
