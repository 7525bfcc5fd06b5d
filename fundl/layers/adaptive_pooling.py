"""Adaptive pooling: the maximum or the mean of each part of images that are divided into so many, whatever their size."""

import math
from typing import Generic, Never, Self, final

import attrs
from torch import Tensor
from typing_extensions import TypeVar, override

from fundl._common import kernels
from fundl._common.half import in_float32
from fundl._common.kernels import PerAxis
from fundl.layers._layout import require_sizes
from fundl.layers._pooling import Indices, OnePerAxis, Pool, Pooled
from fundl.shapes import AnyShape, AnySize, Batch, Channels, Depth, Height, Length, Resized, Shape, Width

OutputSize = TypeVar("OutputSize", bound=PerAxis, covariant=True, default=AnySize)  # as a layer's type states it


@attrs.frozen(eq=False)
class _Adaptive(Pool[Indices], Generic[Indices, OnePerAxis]):
    """What all layers share that divide each axis into a number of parts."""

    output_size: int | OnePerAxis

    def __attrs_post_init__(self) -> None:
        self._require_integers("output_size", self.output_size, 1)

    def _resized(self, shape: AnyShape) -> Resized[AnyShape, None, AnySize]:
        """The rule for any number of axes: what `output_shape` says in types."""
        return Resized(Shape(*shape.exactly(2 + self.axes)), None, self.output_size)


# --- Mean --------------------------------------------------------------------------------------------------------------


@attrs.frozen(eq=False)
class _AdaptiveAveragePool(_Adaptive[None, OnePerAxis]):
    """The mean of each part, over any number of axes.

    Of an axis of size n, part i of p is from floor(i n / p) up to, but not including, ceil((i + 1) n / p): where p does not
    divide n, neighbours share an element.

    Its vjp: each element of grad is divided by the number of elements of its part, and added to grad_x there.

    Args:
        output_size: p, how many parts to divide an axis into{each}.

    Shape:
        (B, C, {L}) to (B, C, {p}); or both without B

    Residuals:
        The sizes of the input: no bytes.

    Raises:
        TypeError: the output_size is not {integer}; the input is not floating-point.
        ValueError: the output_size is less than 1; the input has other axes, or no element along one.

    Source:
        He, Zhang, Ren and Sun, Spatial pyramid pooling in deep convolutional networks for visual recognition, 2014.
    """

    @override
    def forward(self, x: Tensor) -> tuple[Tensor, Pooled[None]]:
        self._require_axes(x, None)  # of others, ATen takes some, if there is but one part
        return super().forward(x)

    @override
    def backward(self, residuals: Pooled[None], grad: Tensor) -> tuple[Self, Tensor]:
        if math.prod(residuals.output_sizes[-self.axes :]) > 1:
            return super().backward(residuals, grad)
        require_sizes(grad, residuals.output_sizes)
        sizes = residuals.sizes if self.axes > 1 else (*residuals.sizes[:-2], residuals.sizes[-1])
        return self, (grad / math.prod(sizes[-self.axes :])).expand(sizes)

    @override
    def _pool(self, x: Tensor) -> tuple[Tensor, None]:
        pool, size = kernels.adaptive_average_pool[self.axes], self._for_kernel(self.output_size, 1)
        # The kernel over three axes adds up in the dtype of x.
        return (in_float32(lambda wide: pool(wide, size), x) if self.axes == 3 else pool(x, size)), None

    @override
    def _spread(self, grad: Tensor, x: Tensor, indices: None) -> Tensor:
        return kernels.adaptive_average_pool_backward[self.axes](grad, x)


@final
@attrs.frozen(eq=False)
class AdaptiveAveragePool1d(_AdaptiveAveragePool[Never], Generic[OutputSize]):
    """The mean of each part of sequences divided into so many parts, whatever their size, channel by channel.

    >>> import torch
    >>> from fundl import AdaptiveAveragePool1d, apply
    >>> apply(AdaptiveAveragePool1d(2), torch.tensor([[1.0, 4.0, 2.0, 3.0]]))
    tensor([[2.5000, 2.5000]])
    """

    counterpart = "AdaptiveAvgPool1d"
    axes = 1

    @override
    def output_shape(self, shape: Shape[Batch, Channels, Length]) -> Resized[Shape[Batch, Channels, Length], None, OutputSize]:
        return self._resized(shape)


@final
@attrs.frozen(eq=False)
class AdaptiveAveragePool2d(_AdaptiveAveragePool[tuple[int, int]], Generic[OutputSize]):
    """The mean of each part of images divided into so many parts, whatever their size, channel by channel.

    >>> import torch
    >>> from fundl import AdaptiveAveragePool2d, apply
    >>> apply(AdaptiveAveragePool2d((1, 2)), torch.tensor([[[1.0, 4.0, 2.0, 3.0]]]))
    tensor([[[2.5000, 2.5000]]])
    """

    counterpart = "AdaptiveAvgPool2d"
    axes = 2

    @override
    def output_shape(
        self, shape: Shape[Batch, Channels, Height, Width]
    ) -> Resized[Shape[Batch, Channels, Height, Width], None, OutputSize]:
        return self._resized(shape)


@final
@attrs.frozen(eq=False)
class AdaptiveAveragePool3d(_AdaptiveAveragePool[tuple[int, int, int]], Generic[OutputSize]):
    """The mean of each part of volumes divided into so many parts, whatever their size, channel by channel.

    >>> import torch
    >>> from fundl import AdaptiveAveragePool3d, apply
    >>> apply(AdaptiveAveragePool3d(1), torch.arange(8.0).reshape(1, 2, 2, 2))
    tensor([[[[3.5000]]]])
    """

    counterpart = "AdaptiveAvgPool3d"
    axes = 3

    @override
    def output_shape(
        self, shape: Shape[Batch, Channels, Depth, Height, Width]
    ) -> Resized[Shape[Batch, Channels, Depth, Height, Width], None, OutputSize]:
        return self._resized(shape)


# --- Maximum -----------------------------------------------------------------------------------------------------------


@attrs.frozen(eq=False)
class _AdaptiveMaxPool(_Adaptive[Tensor, OnePerAxis]):
    """The maximum of each part, over any number of axes.

    Of an axis of size n, part i of p is from floor(i n / p) up to, but not including, ceil((i + 1) n / p): where p does not
    divide n, neighbours share an element. NaN is larger than all else.

    Its vjp: each element of grad is added to grad_x where its maximum is from, the first of them if there are several.

    Args:
        output_size: p, how many parts to divide an axis into{each}.

    Shape:
        (B, C, {L}) to (B, C, {p}); or both without B

    Residuals:
        Where each maximum is from, 8 bytes per output element; the input is not kept.

    Raises:
        TypeError: the output_size is not {integer}; the input is not floating-point.
        ValueError: the output_size is less than 1; the input has other axes, or no element along one.

    Source:
        He, Zhang, Ren and Sun, Spatial pyramid pooling in deep convolutional networks for visual recognition, 2014.
    """

    @override
    def _pool(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return kernels.adaptive_max_pool[self.axes](x, self._for_kernel(self.output_size, 1))

    @override
    def _spread(self, grad: Tensor, x: Tensor, indices: Tensor) -> Tensor:
        return kernels.adaptive_max_pool_backward[self.axes](grad, x, indices)


@final
@attrs.frozen(eq=False)
class AdaptiveMaxPool1d(_AdaptiveMaxPool[Never], Generic[OutputSize]):
    """The maximum of each part of sequences divided into so many parts, whatever their size, channel by channel.

    >>> import torch
    >>> from fundl import AdaptiveMaxPool1d, apply
    >>> apply(AdaptiveMaxPool1d(2), torch.tensor([[1.0, 4.0, 2.0, 3.0]]))
    tensor([[4., 3.]])
    """

    counterpart = "AdaptiveMaxPool1d"
    axes = 1

    @override
    def output_shape(self, shape: Shape[Batch, Channels, Length]) -> Resized[Shape[Batch, Channels, Length], None, OutputSize]:
        return self._resized(shape)


@final
@attrs.frozen(eq=False)
class AdaptiveMaxPool2d(_AdaptiveMaxPool[tuple[int, int]], Generic[OutputSize]):
    """The maximum of each part of images divided into so many parts, whatever their size, channel by channel.

    >>> import torch
    >>> from fundl import AdaptiveMaxPool2d, apply
    >>> apply(AdaptiveMaxPool2d((1, 2)), torch.tensor([[[1.0, 4.0, 2.0, 3.0]]]))
    tensor([[[4., 3.]]])
    """

    counterpart = "AdaptiveMaxPool2d"
    axes = 2

    @override
    def output_shape(
        self, shape: Shape[Batch, Channels, Height, Width]
    ) -> Resized[Shape[Batch, Channels, Height, Width], None, OutputSize]:
        return self._resized(shape)


@final
@attrs.frozen(eq=False)
class AdaptiveMaxPool3d(_AdaptiveMaxPool[tuple[int, int, int]], Generic[OutputSize]):
    """The maximum of each part of volumes divided into so many parts, whatever their size, channel by channel.

    >>> import torch
    >>> from fundl import AdaptiveMaxPool3d, apply
    >>> apply(AdaptiveMaxPool3d(1), torch.arange(8.0).reshape(1, 2, 2, 2))
    tensor([[[[7.]]]])
    """

    counterpart = "AdaptiveMaxPool3d"
    axes = 3

    @override
    def output_shape(
        self, shape: Shape[Batch, Channels, Depth, Height, Width]
    ) -> Resized[Shape[Batch, Channels, Depth, Height, Width], None, OutputSize]:
        return self._resized(shape)
