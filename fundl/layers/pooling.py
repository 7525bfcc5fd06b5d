"""Pooling: the maximum or the mean of what a sliding window sees, channel by channel."""

import math
from typing import Generic, Literal, Never, final

import attrs
import torch
from torch import Tensor
from typing_extensions import override

from fundl._common import kernels
from fundl._common.half import in_float32
from fundl._common.kernels import PerAxis
from fundl.layers._pooling import CeilMode, OnePerAxis, Padding, Pooled, Windowed
from fundl.layers._spatial import Dilation, KernelSize, Stride
from fundl.shapes import Batch, Channels, Depth, Height, Length, Shape, Width, Windows

# --- Maximum -----------------------------------------------------------------------------------------------------------


@attrs.frozen(eq=False)
class _MaxPool(Windowed[Tensor, OnePerAxis]):
    """The maximum of what a window sees, over any number of axes.

        y[{i}] = max over {u} in 0 ... k-1 of x[{i s + u d}]

    with kernel size k, stride s and dilation d. Around x, where the padding is, all is -inf. NaN is larger than all else.

    Its vjp: each element of grad is added to grad_x where its maximum is from, the first of them if there are several.

    Args:
        kernel_size: k{each}.
        stride: s, from one place of the window to the next{each}; k by default.
        padding: elements of -inf to put before each axis, and as many behind it; 0 by default, at most k / 2. "same" for as
            many as give the window a place for each stride; where that is an odd number, the one more is behind.
        dilation: d, from one element that the window sees to the next; 1 by default.
        ceil_mode: whether there is one more place for the window if it then reaches beyond the padding, but starts before it;
            by default, what is left over at the end is not seen.

    Shape:
        (B, C, {L}) to (B, C, {L'}), each size n to floor((n + 2 padding - d (k - 1) - 1) / s) + 1, with ceil for
        ceil_mode, or to ceil(n / s) by "same"; or both without B

    Residuals:
        Where each maximum is from, 8 bytes per output element; the input is not kept.

    Raises:
        TypeError: an argument is not {integer}; the input is not floating-point.
        ValueError: an argument is too small, or the padding too large; the input has other axes, or no place for the
            window, or one where it would see nothing but padding.

    Source:
        Ranzato, Huang, Boureau and LeCun, Unsupervised learning of invariant feature hierarchies with applications to object
        recognition, 2007.
    """

    dilation: int | OnePerAxis = attrs.field(default=1, kw_only=True)
    ceil_mode: bool = attrs.field(default=False, kw_only=True)

    @override
    def forward(self, x: Tensor) -> tuple[Tensor, Pooled[Tensor]]:
        if self.dilation != 1:
            self._require_sight(x)
        return super().forward(x)

    @override
    def _pool(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return kernels.max_pool[self.axes](self._padded(x, -math.inf), *self._settings())

    @override
    def _spread(self, grad: Tensor, x: Tensor, indices: Tensor) -> Tensor:
        padded = self._like_padded(x, grad)
        return self._without_padding(kernels.max_pool_backward[self.axes](grad, padded, *self._settings(), indices), x)

    def _settings(self) -> tuple[PerAxis, PerAxis, PerAxis, PerAxis, bool]:
        return *self._window(), self._for_kernel(self.dilation, 1), self.ceil_mode

    def _require_sight(self, x: Tensor) -> None:
        """Raise if a window may see nothing but padding: ATen then takes the maximum from outside of the input's memory."""
        paddings, dilations = self._each(1 if self.padding == "same" else self.padding), self._each(self.dilation)
        for size, padding, dilation in zip(x.shape[-self.axes :], paddings, dilations, strict=False):
            if padding and 0 < size < dilation:
                raise ValueError(
                    f"{self} may see nothing but padding in an input of shape {tuple(x.shape)}: an axis of size {size} that is"
                    f" padded takes a dilation of at most {size}, not {dilation}"
                )


@final
@attrs.frozen(eq=False)
class MaxPool1d(_MaxPool[Never], Generic[KernelSize, Stride, Padding, Dilation, CeilMode]):
    """The maximum of what a window sees that slides over sequences, channel by channel.

    >>> import torch
    >>> from fundl import MaxPool1d, apply
    >>> apply(MaxPool1d(2), torch.tensor([[1.0, 4.0, 2.0, 3.0]]))
    tensor([[4., 3.]])
    """

    counterpart = "MaxPool1d"
    axes = 1

    @override
    def output_shape(
        self, shape: Shape[Batch, Channels, Length]
    ) -> Windows[Batch, Channels, tuple[KernelSize, Stride, Padding, Dilation, CeilMode], Length]:
        return self._windows(shape, self.dilation, self.ceil_mode)


@final
@attrs.frozen(eq=False)
class MaxPool2d(_MaxPool[tuple[int, int]], Generic[KernelSize, Stride, Padding, Dilation, CeilMode]):
    """The maximum of what a window sees that slides over images, channel by channel.

    >>> import torch
    >>> from fundl import MaxPool2d, apply
    >>> apply(MaxPool2d(2), torch.tensor([[[1.0, 4.0], [2.0, 3.0]]]))
    tensor([[[4.]]])
    """

    counterpart = "MaxPool2d"
    axes = 2

    @override
    def output_shape(
        self, shape: Shape[Batch, Channels, Height, Width]
    ) -> Windows[Batch, Channels, tuple[KernelSize, Stride, Padding, Dilation, CeilMode], Height, Width]:
        return self._windows(shape, self.dilation, self.ceil_mode)


@final
@attrs.frozen(eq=False)
class MaxPool3d(_MaxPool[tuple[int, int, int]], Generic[KernelSize, Stride, Padding, Dilation, CeilMode]):
    """The maximum of what a window sees that slides over volumes, channel by channel.

    >>> import torch
    >>> from fundl import MaxPool3d, apply
    >>> apply(MaxPool3d(2), torch.arange(8.0).reshape(1, 2, 2, 2))
    tensor([[[[7.]]]])
    """

    counterpart = "MaxPool3d"
    axes = 3

    @override
    def output_shape(
        self, shape: Shape[Batch, Channels, Depth, Height, Width]
    ) -> Windows[Batch, Channels, tuple[KernelSize, Stride, Padding, Dilation, CeilMode], Depth, Height, Width]:
        return self._windows(shape, self.dilation, self.ceil_mode)


# --- Mean --------------------------------------------------------------------------------------------------------------


@attrs.frozen(eq=False)
class _AveragePool(Windowed[None, OnePerAxis]):
    """The mean of what a window sees, over any number of axes.

        y[{i}] = (1 / {volume}) sum over {u} in 0 ... k-1 of x[{i s + u}]

    with kernel size k and stride s. Around x, where the padding is, all is 0.

    Its vjp: each element of grad is divided by {volume}, and added to grad_x wherever the window saw an element of x.

    Args:
        kernel_size: k{each}.
        stride: s, from one place of the window to the next{each}; k by default.
        padding: zeros to put before each axis, and as many behind it; 0 by default, at most k / 2. "same" for as many as give
            the window a place for each stride; where that is an odd number, the one more is behind.
        ceil_mode: whether there is one more place for the window if it then reaches beyond the padding, but starts before it;
            by default, what is left over at the end is not seen. What is beyond the padding never counts.
        count_include_padding: whether the zeros of the padding count as elements that are seen; they do by default.
        divisor: what to divide each sum by, instead of the number of the elements that are seen.

    Shape:
        (B, C, {L}) to (B, C, {L'}), each size n to floor((n + 2 padding - k) / s) + 1, with ceil for ceil_mode, or to
        ceil(n / s) by "same"; or both without B

    Residuals:
        The sizes of the input: no bytes.

    Raises:
        TypeError: an argument is not {integer}; the input is not floating-point.
        ValueError: an argument is too small, or the padding too large; the input has other axes, or no place for the window.

    Source:
        LeCun, Boser, Denker, Henderson, Howard, Hubbard and Jackel, Handwritten digit recognition with a back-propagation
        network, 1989.
    """

    ceil_mode: bool = attrs.field(default=False, kw_only=True)
    count_include_padding: bool = attrs.field(default=True, kw_only=True)
    divisor: int | None = attrs.field(default=None, kw_only=True)

    @override
    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        if self.divisor is not None and self.divisor < 1:
            raise ValueError(f"{type(self).__name__}'s divisor must be at least 1, or None for the mean, not {self.divisor}")

    @override
    def _pool(self, x: Tensor) -> tuple[Tensor, None]:
        pool, settings, shares = kernels.average_pool[self.axes], self._settings(), self._shares(x)
        padded = self._padded(x, 0)
        # The kernel over three axes knows no half precision on the CPU.
        y = in_float32(lambda wide: pool(wide, *settings), padded) if self.axes == 3 else pool(padded, *settings)
        return y if shares is None else y * shares, None

    @override
    def _spread(self, grad: Tensor, x: Tensor, indices: None) -> Tensor:
        shares = self._shares(grad.new_empty(()).expand(x.shape))
        given = grad if shares is None else grad * shares
        return self._without_padding(
            kernels.average_pool_backward[self.axes](given, self._like_padded(x, given), *self._settings()), x
        )

    def _shares(self, x: Tensor) -> Tensor | None:
        """What to multiply the mean of each place by if the zeros of "same" do not count: no kernel knows which they are."""
        if self.padding != "same" or self.count_include_padding or self.divisor is not None:
            return None
        shares = x.new_ones(())
        for axis, (side, size, step, (before, _)) in enumerate(self._same(x), start=-self.axes):
            starts = torch.arange(-(-side // step), device=x.device) * step - before
            seen = (starts + size).clamp(max=side) - starts.clamp(min=0)
            shares = shares * (size / seen.to(x.dtype)).view(-1, *(1,) * (-1 - axis))
        return shares

    def _settings(self) -> tuple[PerAxis, PerAxis, PerAxis, bool, bool, int | None]:
        return *self._window(), self.ceil_mode, self.count_include_padding, self.divisor

    @override
    def _explain(self, x: Tensor, error: Exception | None) -> None:
        super()._explain(x, error)
        sides, kernel = tuple(x.shape[-self.axes :]), self._each(self.kernel_size)
        if any(side < size for side, size in zip(sides, kernel, strict=True)):
            raise ValueError(
                f"{self} takes no axis that is shorter than its window, not even with padding, but the input's shape is"
                f" {tuple(x.shape)}"
            ) from error


@final
@attrs.frozen(eq=False)
class AveragePool1d(_AveragePool[Never], Generic[KernelSize, Stride, Padding, CeilMode]):
    """The mean of what a window sees that slides over sequences, channel by channel.

    >>> import torch
    >>> from fundl import AveragePool1d, apply
    >>> apply(AveragePool1d(2), torch.tensor([[1.0, 4.0, 2.0, 3.0]]))
    tensor([[2.5000, 2.5000]])
    """

    counterpart = "AvgPool1d(count_include_pad=count_include_padding)"
    axes = 1

    @override
    def output_shape(
        self, shape: Shape[Batch, Channels, Length]
    ) -> Windows[Batch, Channels, tuple[KernelSize, Stride, Padding, Literal[1], CeilMode], Length]:
        return self._windows(shape, 1, self.ceil_mode)


@final
@attrs.frozen(eq=False)
class AveragePool2d(_AveragePool[tuple[int, int]], Generic[KernelSize, Stride, Padding, CeilMode]):
    """The mean of what a window sees that slides over images, channel by channel.

    >>> import torch
    >>> from fundl import AveragePool2d, apply
    >>> apply(AveragePool2d(2), torch.tensor([[[1.0, 4.0], [2.0, 3.0]]]))
    tensor([[[2.5000]]])
    """

    counterpart = "AvgPool2d(count_include_pad=count_include_padding, divisor_override=divisor)"
    axes = 2

    @override
    def output_shape(
        self, shape: Shape[Batch, Channels, Height, Width]
    ) -> Windows[Batch, Channels, tuple[KernelSize, Stride, Padding, Literal[1], CeilMode], Height, Width]:
        return self._windows(shape, 1, self.ceil_mode)


@final
@attrs.frozen(eq=False)
class AveragePool3d(_AveragePool[tuple[int, int, int]], Generic[KernelSize, Stride, Padding, CeilMode]):
    """The mean of what a window sees that slides over volumes, channel by channel.

    >>> import torch
    >>> from fundl import AveragePool3d, apply
    >>> apply(AveragePool3d(2), torch.arange(8.0).reshape(1, 2, 2, 2))
    tensor([[[[3.5000]]]])
    """

    counterpart = "AvgPool3d(count_include_pad=count_include_padding, divisor_override=divisor)"
    axes = 3

    @override
    def output_shape(
        self, shape: Shape[Batch, Channels, Depth, Height, Width]
    ) -> Windows[Batch, Channels, tuple[KernelSize, Stride, Padding, Literal[1], CeilMode], Depth, Height, Width]:
        return self._windows(shape, 1, self.ceil_mode)
