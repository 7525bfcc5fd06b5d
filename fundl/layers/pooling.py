"""Pooling: the maximum or the mean of what a sliding window sees, channel by channel.

The axes of the input are (B, C, *spatial), or (C, *spatial) for one example without a batch. All layers of a kind share one
computation, over one, two or three spatial axes; over one it runs as over two, of which the first is of size 1.

Backward needs no number of the input, only its layout: the input is not kept.
"""

import math
from abc import abstractmethod
from typing import ClassVar, Final, Generic, Literal, Self, final

import attrs
from torch import Tensor
from typing_extensions import TypeVar, TypeVarTuple, override

from fundl._common import kernels
from fundl._common.half import in_float32
from fundl._common.kernels import PerAxis
from fundl.layer import Layer
from fundl.layers._inside import Sizes
from fundl.layers._layout import Layout, layout_of, require_sizes, stand_in
from fundl.shapes import AnyShape, AnySize, Misfit, Resized, Shape, Windows
from fundl.tree import Record

Residuals = TypeVar("Residuals")

# Sizes that a layer's type states, named like the fields that hold them
KernelSize = TypeVar("KernelSize", bound=PerAxis, covariant=True, default=AnySize)
Stride = TypeVar("Stride", bound=PerAxis, covariant=True, default=AnySize)
Padding = TypeVar("Padding", bound=PerAxis, covariant=True, default=AnySize)
Dilation = TypeVar("Dilation", bound=PerAxis, covariant=True, default=AnySize)
OutputSize = TypeVar("OutputSize", bound=PerAxis, covariant=True, default=AnySize)
CeilMode = TypeVar("CeilMode", bound=bool, covariant=True, default=AnySize)

# Sizes of the input
Batch = TypeVar("Batch")
Channels = TypeVar("Channels")
Depth = TypeVar("Depth")
Height = TypeVar("Height")
Width = TypeVar("Width")
Length = TypeVar("Length")
Rest = TypeVarTuple("Rest")

_SPATIAL: Final = {1: "L", 2: "H, W", 3: "D, H, W"}


# --- Two or three axes, or one -----------------------------------------------------------------------------------------


def _each(setting: PerAxis, axes: int) -> tuple[int, ...]:
    """A setting as a number for each axis."""
    return (setting,) * axes if isinstance(setting, int) else setting


def _second(setting: PerAxis, first: int) -> tuple[int, ...]:
    """A setting of one axis as that of the second of two."""
    return (first, *_each(setting, 1))


@attrs.frozen(eq=False, init=False)
class _Spatial(Layer[Residuals], Generic[Residuals]):
    """What all layers have in common that pool parts of the spatial axes."""

    axes: ClassVar[int]

    @abstractmethod
    def _run(self, x: Tensor) -> tuple[Tensor, Residuals]:
        """Forward, over two or three axes."""

    @abstractmethod
    def _run_back(self, residuals: Residuals, grad: Tensor) -> Tensor:
        """The input's gradient, over two or three axes."""

    @abstractmethod
    def _output_sizes(self, residuals: Residuals) -> tuple[int, ...]:
        """The sizes of what `_run` gave."""

    @override
    def forward(self, x: Tensor) -> tuple[Tensor, Residuals]:
        if self.axes == 3 and x.ndim == 4:  # without a batch, the kernels refuse channels that are last in memory
            x = x.contiguous()
        try:
            if self.axes > 1:
                return self._run(x)
            output, residuals = self._run(x.unsqueeze(-2))
        except (RuntimeError, IndexError) as error:
            self._explain(x, error)
            raise
        return output.squeeze(-2), residuals

    @override
    def backward(self, residuals: Residuals, grad: Tensor) -> tuple[Self, Tensor]:
        sizes = self._output_sizes(residuals)
        if self.axes > 1:
            require_sizes(grad, sizes)
            return self, self._run_back(residuals, grad)
        require_sizes(grad, (*sizes[:-2], sizes[-1]))
        return self, self._run_back(residuals, grad.unsqueeze(-2)).squeeze(-2)

    def _require_integers(self, field: str, setting: object, least: int) -> None:
        """Raise unless a setting is an integer, or one for each axis, and none is too small."""
        sizes = setting if isinstance(setting, tuple) else (setting,) * self.axes
        if len(sizes) != self.axes or not all(isinstance(size, int) for size in sizes):
            count = "an integer" if self.axes == 1 else f"an integer, or a tuple of {self.axes} integers"
            raise TypeError(f"{type(self).__name__}'s {field} is {count}, not {setting!r}")
        if any(size < least for size in sizes if isinstance(size, int)):
            raise ValueError(f"{type(self).__name__}'s {field} must be at least {least}, not {setting!r}")

    def _explain(self, x: Tensor, error: Exception | None) -> None:
        """Say in the layer's words what the kernel refused: asked only once it has, so that a good input costs nothing."""
        name, spatial = type(self).__name__, _SPATIAL[self.axes]
        if x.ndim not in {self.axes + 1, self.axes + 2}:
            raise ValueError(
                f"{name} takes an input of shape (B, C, {spatial}), or (C, {spatial}) without a batch, not {tuple(x.shape)}"
            ) from error
        if 0 in x.shape[-self.axes - 1 :]:
            raise ValueError(
                f"{name} needs at least one element along each axis but that of the batch, but the input's shape is"
                f" {tuple(x.shape)}"
            ) from error


# --- Sliding windows ---------------------------------------------------------------------------------------------------


@attrs.frozen(eq=False, init=False)
class _Windowed(_Spatial[Residuals], Generic[Residuals]):
    """What all layers have in common that slide a window over the spatial axes."""

    @property
    @abstractmethod
    def kernel_size(self) -> PerAxis: ...

    @property
    @abstractmethod
    def stride(self) -> PerAxis: ...

    @property
    @abstractmethod
    def padding(self) -> PerAxis: ...

    @property
    @abstractmethod
    def ceil_mode(self) -> bool: ...

    def __attrs_post_init__(self) -> None:
        for field, least in (("kernel_size", 1), ("stride", 1), ("padding", 0), ("dilation", 1)):
            self._require_integers(field, getattr(self, field, 1), least)
        kernel, padding = _each(self.kernel_size, self.axes), _each(self.padding, self.axes)
        if any(pad > size // 2 for size, pad in zip(kernel, padding, strict=True)):
            raise ValueError(
                f"{type(self).__name__}'s padding may be at most half of its kernel_size, so that a window always sees some of"
                f" the input, but the padding is {self.padding} and the kernel_size {self.kernel_size}"
            )

    def _settings(self) -> tuple[PerAxis, PerAxis, PerAxis]:
        """Kernel size, stride and padding, as the kernels take them."""
        if self.axes > 1:
            return self.kernel_size, self.stride, self.padding
        return _second(self.kernel_size, 1), _second(self.stride, 1), _second(self.padding, 0)

    def _windows(self, shape: AnyShape, dilation: PerAxis = 1) -> Windows[AnySize, AnySize, AnySize, *tuple[AnySize, ...]]:
        """The rule for any number of axes: what `output_shape` says in types."""
        batch, channels, *sides = shape.exactly(2 + self.axes)
        return Windows(batch, channels, (self.kernel_size, self.stride, self.padding, dilation, self.ceil_mode), *sides)

    @override
    def _explain(self, x: Tensor, error: Exception | None) -> None:
        super()._explain(x, error)
        try:
            self.output_shape(Shape(*(1,) * (2 + self.axes - x.ndim), *x.shape))
        except Misfit as misfit:
            raise ValueError(
                f"{self} finds no place for its window in an input of shape {tuple(x.shape)}: it expects {misfit.expected}, but"
                f" the input has {misfit.given}"
            ) from error


# --- Maximum -----------------------------------------------------------------------------------------------------------


@attrs.frozen(eq=False, init=False)
class _MaxPool(_Windowed[tuple[Tensor, Layout]]):
    """The maximum of what a window sees, over any number of axes."""

    @property
    @abstractmethod
    def dilation(self) -> PerAxis: ...

    @override
    def forward(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, Layout]]:
        if self.dilation != 1:
            self._require_sight(x)
        return super().forward(x)

    def _require_sight(self, x: Tensor) -> None:
        """Raise if a window may see nothing but padding: ATen then takes the maximum from outside of the input's memory."""
        paddings, dilations = _each(self.padding, self.axes), _each(self.dilation, self.axes)
        for size, padding, dilation in zip(x.shape[-self.axes :], paddings, dilations, strict=False):
            if padding and 0 < size < dilation:
                raise ValueError(
                    f"{self} may see nothing but padding in an input of shape {tuple(x.shape)}: an axis of size {size} that is"
                    f" padded takes a dilation of at most {size}, not {dilation}"
                )

    @override
    def _run(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, Layout]]:
        pool = kernels.max_pool3d if self.axes == 3 else kernels.max_pool2d
        output, indices = pool(x, *self._settings(), self._dilation(), self.ceil_mode)
        return output, (indices, layout_of(x))

    @override
    def _output_sizes(self, residuals: tuple[Tensor, Layout]) -> tuple[int, ...]:
        return residuals[0].shape

    @override
    def _run_back(self, residuals: tuple[Tensor, Layout], grad: Tensor) -> Tensor:
        indices, layout = residuals
        unpool = kernels.max_pool3d_backward if self.axes == 3 else kernels.max_pool2d_backward
        settings = *self._settings(), self._dilation(), self.ceil_mode
        return in_float32(lambda wide: unpool(wide, stand_in(layout, wide), *settings, indices), grad)

    def _dilation(self) -> PerAxis:
        return self.dilation if self.axes > 1 else _second(self.dilation, 1)


@final
@attrs.frozen(eq=False)
class MaxPool2d(_MaxPool, Generic[KernelSize, Stride, Padding, Dilation, CeilMode]):
    """The maximum of what a window sees that slides over images, channel by channel.

        y[i, j] = max over u, v in 0 ... k-1 of x[i s + u d, j s + v d]

    with kernel size k, stride s and dilation d. Around x, where the padding is, all is -inf. NaN is larger than all else.

    Its vjp: each element of grad is added to grad_x where its maximum is from, the first of them if there are several.

    Args:
        kernel_size: k, one for all axes or a tuple of one for each.
        stride: s, from one place of the window to the next, one for all axes or a tuple of one for each; k by default.
        padding: elements of -inf to put before each axis, and as many behind it; 0 by default, at most k / 2.
        dilation: d, from one element that the window sees to the next; 1 by default.
        ceil_mode: whether there is one more place for the window if it then reaches beyond the padding, but starts before it;
            by default, what is left over at the end is not seen.

    Shape:
        (B, C, H, W) to (B, C, H', W'), each size n to floor((n + 2 padding - d (k - 1) - 1) / s) + 1, with ceil for
        ceil_mode; or both without B

    Residuals:
        Where each maximum is from, 8 bytes per output element; the input is not kept.

    Raises:
        TypeError: an argument is not an integer or a tuple of such; the input is not floating-point.
        ValueError: an argument is too small, or the padding too large; the input has other axes, or no place for the
            window, or one where it would see nothing but padding.

    Source:
        Ranzato, Huang, Boureau and LeCun, Unsupervised learning of invariant feature hierarchies with applications to object
        recognition, 2007.

    >>> import torch
    >>> from fundl import MaxPool2d, apply
    >>> apply(MaxPool2d(2), torch.tensor([[[1.0, 4.0], [2.0, 3.0]]]))
    tensor([[[4.]]])
    """

    counterpart = "MaxPool2d"
    axes = 2

    kernel_size: int | tuple[int, int]
    stride: int | tuple[int, int] = attrs.field(
        default=attrs.Factory(lambda self: self.kernel_size, takes_self=True), kw_only=True
    )
    padding: int | tuple[int, int] = attrs.field(default=0, kw_only=True)
    dilation: int | tuple[int, int] = attrs.field(default=1, kw_only=True)
    ceil_mode: bool = attrs.field(default=False, kw_only=True)

    @override
    def output_shape(
        self, shape: Shape[Batch, Channels, Height, Width]
    ) -> Windows[Batch, Channels, tuple[KernelSize, Stride, Padding, Dilation, CeilMode], Height, Width]:
        return self._windows(shape, self.dilation)


@final
@attrs.frozen(eq=False)
class MaxPool1d(_MaxPool, Generic[KernelSize, Stride, Padding, Dilation, CeilMode]):
    """The maximum of what a window sees that slides over sequences, channel by channel.

        y[l] = max over t in 0 ... k-1 of x[l s + t d]

    with kernel size k, stride s and dilation d. Around x, where the padding is, all is -inf. NaN is larger than all else.

    Its vjp: each element of grad is added to grad_x where its maximum is from, the first of them if there are several.

    Args:
        kernel_size: k.
        stride: s, from one place of the window to the next; k by default.
        padding: elements of -inf to put before each axis, and as many behind it; 0 by default, at most k / 2.
        dilation: d, from one element that the window sees to the next; 1 by default.
        ceil_mode: whether there is one more place for the window if it then reaches beyond the padding, but starts before it;
            by default, what is left over at the end is not seen.

    Shape:
        (B, C, L) to (B, C, L'), each size n to floor((n + 2 padding - d (k - 1) - 1) / s) + 1, with ceil for
        ceil_mode; or both without B

    Residuals:
        Where each maximum is from, 8 bytes per output element; the input is not kept.

    Raises:
        TypeError: an argument is not an integer; the input is not floating-point.
        ValueError: an argument is too small, or the padding too large; the input has other axes, or no place for the
            window, or one where it would see nothing but padding.

    Source:
        Ranzato, Huang, Boureau and LeCun, Unsupervised learning of invariant feature hierarchies with applications to object
        recognition, 2007.

    >>> import torch
    >>> from fundl import MaxPool1d, apply
    >>> apply(MaxPool1d(2), torch.tensor([[1.0, 4.0, 2.0, 3.0]]))
    tensor([[4., 3.]])
    """

    counterpart = "MaxPool1d"
    axes = 1

    kernel_size: int
    stride: int = attrs.field(default=attrs.Factory(lambda self: self.kernel_size, takes_self=True), kw_only=True)
    padding: int = attrs.field(default=0, kw_only=True)
    dilation: int = attrs.field(default=1, kw_only=True)
    ceil_mode: bool = attrs.field(default=False, kw_only=True)

    @override
    def output_shape(
        self, shape: Shape[Batch, Channels, Length]
    ) -> Windows[Batch, Channels, tuple[KernelSize, Stride, Padding, Dilation, CeilMode], Length]:
        return self._windows(shape, self.dilation)


@final
@attrs.frozen(eq=False)
class MaxPool3d(_MaxPool, Generic[KernelSize, Stride, Padding, Dilation, CeilMode]):
    """The maximum of what a window sees that slides over volumes, channel by channel.

        y[h, i, j] = max over t, u, v in 0 ... k-1 of x[h s + t d, i s + u d, j s + v d]

    with kernel size k, stride s and dilation d. Around x, where the padding is, all is -inf. NaN is larger than all else.

    Its vjp: each element of grad is added to grad_x where its maximum is from, the first of them if there are several.

    Args:
        kernel_size: k, one for all axes or a tuple of one for each.
        stride: s, from one place of the window to the next, one for all axes or a tuple of one for each; k by default.
        padding: elements of -inf to put before each axis, and as many behind it; 0 by default, at most k / 2.
        dilation: d, from one element that the window sees to the next; 1 by default.
        ceil_mode: whether there is one more place for the window if it then reaches beyond the padding, but starts before it;
            by default, what is left over at the end is not seen.

    Shape:
        (B, C, D, H, W) to (B, C, D', H', W'), each size n to floor((n + 2 padding - d (k - 1) - 1) / s) + 1, with ceil for
        ceil_mode; or both without B

    Residuals:
        Where each maximum is from, 8 bytes per output element; the input is not kept.

    Raises:
        TypeError: an argument is not an integer or a tuple of such; the input is not floating-point.
        ValueError: an argument is too small, or the padding too large; the input has other axes, or no place for the
            window, or one where it would see nothing but padding.

    Source:
        Ranzato, Huang, Boureau and LeCun, Unsupervised learning of invariant feature hierarchies with applications to object
        recognition, 2007.

    >>> import torch
    >>> from fundl import MaxPool3d, apply
    >>> apply(MaxPool3d(2), torch.arange(8.0).reshape(1, 2, 2, 2))
    tensor([[[[7.]]]])
    """

    counterpart = "MaxPool3d"
    axes = 3

    kernel_size: int | tuple[int, int, int]
    stride: int | tuple[int, int, int] = attrs.field(
        default=attrs.Factory(lambda self: self.kernel_size, takes_self=True), kw_only=True
    )
    padding: int | tuple[int, int, int] = attrs.field(default=0, kw_only=True)
    dilation: int | tuple[int, int, int] = attrs.field(default=1, kw_only=True)
    ceil_mode: bool = attrs.field(default=False, kw_only=True)

    @override
    def output_shape(
        self, shape: Shape[Batch, Channels, Depth, Height, Width]
    ) -> Windows[Batch, Channels, tuple[KernelSize, Stride, Padding, Dilation, CeilMode], Depth, Height, Width]:
        return self._windows(shape, self.dilation)


# --- Mean --------------------------------------------------------------------------------------------------------------


@final
@attrs.frozen(eq=False)
class Pooled(Record):
    """What backward of a mean is to know: how the input lay in memory, and the sizes of the output."""

    x: Layout
    sizes: tuple[int, ...]


@attrs.frozen(eq=False, init=False)
class _AveragePool(_Windowed[Pooled]):
    """The mean of what a window sees, over any number of axes."""

    @property
    @abstractmethod
    def count_include_padding(self) -> bool: ...

    @property
    @abstractmethod
    def divisor(self) -> int | None: ...

    @override
    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        if self.divisor is not None and self.divisor < 1:
            raise ValueError(f"{type(self).__name__}'s divisor must be at least 1, or None for the mean, not {self.divisor}")

    @override
    def _run(self, x: Tensor) -> tuple[Tensor, Pooled]:
        pool = kernels.average_pool3d if self.axes == 3 else kernels.average_pool2d
        settings = *self._settings(), self.ceil_mode, self.count_include_padding, self.divisor
        # The kernel over three axes knows no half precision on the CPU.
        output = in_float32(lambda wide: pool(wide, *settings), x) if self.axes == 3 else pool(x, *settings)
        return output, Pooled(layout_of(x), output.shape)

    @override
    def _output_sizes(self, residuals: Pooled) -> tuple[int, ...]:
        return residuals.sizes

    @override
    def _run_back(self, residuals: Pooled, grad: Tensor) -> Tensor:
        unpool = kernels.average_pool3d_backward if self.axes == 3 else kernels.average_pool2d_backward
        settings = *self._settings(), self.ceil_mode, self.count_include_padding, self.divisor
        return in_float32(lambda wide: unpool(wide, stand_in(residuals.x, wide), *settings), grad)

    @override
    def _explain(self, x: Tensor, error: Exception | None) -> None:
        super()._explain(x, error)
        sides, kernel = tuple(x.shape[-self.axes :]), _each(self.kernel_size, self.axes)
        if any(side < size for side, size in zip(sides, kernel, strict=True)):
            raise ValueError(
                f"{self} takes no axis that is shorter than its window, not even with padding, but the input's shape is"
                f" {tuple(x.shape)}"
            ) from error


@final
@attrs.frozen(eq=False)
class AveragePool2d(_AveragePool, Generic[KernelSize, Stride, Padding, CeilMode]):
    """The mean of what a window sees that slides over images, channel by channel.

        y[i, j] = (1 / k^2) sum over u, v in 0 ... k-1 of x[i s + u, j s + v]

    with kernel size k and stride s. Around x, where the padding is, all is 0.

    Its vjp: each element of grad is divided by k^2, and added to grad_x wherever the window saw an element of x.

    Args:
        kernel_size: k, one for all axes or a tuple of one for each.
        stride: s, from one place of the window to the next, one for all axes or a tuple of one for each; k by default.
        padding: zeros to put before each axis, and as many behind it; 0 by default, at most k / 2.
        ceil_mode: whether there is one more place for the window if it then reaches beyond the padding, but starts before it;
            by default, what is left over at the end is not seen. What is beyond the padding never counts.
        count_include_padding: whether the zeros of the padding count as elements that are seen; they do by default.
        divisor: what to divide each sum by, instead of the number of the elements that are seen.

    Shape:
        (B, C, H, W) to (B, C, H', W'), each size n to floor((n + 2 padding - k) / s) + 1, with ceil for ceil_mode; or
        both without B

    Residuals:
        The sizes of the input: no bytes.

    Raises:
        TypeError: an argument is not an integer or a tuple of such; the input is not floating-point.
        ValueError: an argument is too small, or the padding too large; the input has other axes, or no place for the window.

    Source:
        LeCun, Boser, Denker, Henderson, Howard, Hubbard and Jackel, Handwritten digit recognition with a back-propagation
        network, 1989.

    >>> import torch
    >>> from fundl import AveragePool2d, apply
    >>> apply(AveragePool2d(2), torch.tensor([[[1.0, 4.0], [2.0, 3.0]]]))
    tensor([[[2.5000]]])
    """

    counterpart = "AvgPool2d(count_include_pad=count_include_padding, divisor_override=divisor)"
    axes = 2

    kernel_size: int | tuple[int, int]
    stride: int | tuple[int, int] = attrs.field(
        default=attrs.Factory(lambda self: self.kernel_size, takes_self=True), kw_only=True
    )
    padding: int | tuple[int, int] = attrs.field(default=0, kw_only=True)
    ceil_mode: bool = attrs.field(default=False, kw_only=True)
    count_include_padding: bool = attrs.field(default=True, kw_only=True)
    divisor: int | None = attrs.field(default=None, kw_only=True)

    @override
    def output_shape(
        self, shape: Shape[Batch, Channels, Height, Width]
    ) -> Windows[Batch, Channels, tuple[KernelSize, Stride, Padding, Literal[1], CeilMode], Height, Width]:
        return self._windows(shape)


@final
@attrs.frozen(eq=False)
class AveragePool1d(_AveragePool, Generic[KernelSize, Stride, Padding, CeilMode]):
    """The mean of what a window sees that slides over sequences, channel by channel.

        y[l] = (1 / k) sum over t in 0 ... k-1 of x[l s + t]

    with kernel size k and stride s. Around x, where the padding is, all is 0.

    Its vjp: each element of grad is divided by k, and added to grad_x wherever the window saw an element of x.

    Args:
        kernel_size: k.
        stride: s, from one place of the window to the next; k by default.
        padding: zeros to put before each axis, and as many behind it; 0 by default, at most k / 2.
        ceil_mode: whether there is one more place for the window if it then reaches beyond the padding, but starts before it;
            by default, what is left over at the end is not seen. What is beyond the padding never counts.
        count_include_padding: whether the zeros of the padding count as elements that are seen; they do by default.
        divisor: what to divide each sum by, instead of the number of the elements that are seen.

    Shape:
        (B, C, L) to (B, C, L'), each size n to floor((n + 2 padding - k) / s) + 1, with ceil for ceil_mode; or
        both without B

    Residuals:
        The sizes of the input: no bytes.

    Raises:
        TypeError: an argument is not an integer; the input is not floating-point.
        ValueError: an argument is too small, or the padding too large; the input has other axes, or no place for the window.

    Source:
        LeCun, Boser, Denker, Henderson, Howard, Hubbard and Jackel, Handwritten digit recognition with a back-propagation
        network, 1989.

    >>> import torch
    >>> from fundl import AveragePool1d, apply
    >>> apply(AveragePool1d(2), torch.tensor([[1.0, 4.0, 2.0, 3.0]]))
    tensor([[2.5000, 2.5000]])
    """

    counterpart = "AvgPool1d(count_include_pad=count_include_padding)"
    axes = 1

    kernel_size: int
    stride: int = attrs.field(default=attrs.Factory(lambda self: self.kernel_size, takes_self=True), kw_only=True)
    padding: int = attrs.field(default=0, kw_only=True)
    ceil_mode: bool = attrs.field(default=False, kw_only=True)
    count_include_padding: bool = attrs.field(default=True, kw_only=True)
    divisor: int | None = attrs.field(default=None, kw_only=True)

    @override
    def output_shape(
        self, shape: Shape[Batch, Channels, Length]
    ) -> Windows[Batch, Channels, tuple[KernelSize, Stride, Padding, Literal[1], CeilMode], Length]:
        return self._windows(shape)


@final
@attrs.frozen(eq=False)
class AveragePool3d(_AveragePool, Generic[KernelSize, Stride, Padding, CeilMode]):
    """The mean of what a window sees that slides over volumes, channel by channel.

        y[h, i, j] = (1 / k^3) sum over t, u, v in 0 ... k-1 of x[h s + t, i s + u, j s + v]

    with kernel size k and stride s. Around x, where the padding is, all is 0.

    Its vjp: each element of grad is divided by k^3, and added to grad_x wherever the window saw an element of x.

    Args:
        kernel_size: k, one for all axes or a tuple of one for each.
        stride: s, from one place of the window to the next, one for all axes or a tuple of one for each; k by default.
        padding: zeros to put before each axis, and as many behind it; 0 by default, at most k / 2.
        ceil_mode: whether there is one more place for the window if it then reaches beyond the padding, but starts before it;
            by default, what is left over at the end is not seen. What is beyond the padding never counts.
        count_include_padding: whether the zeros of the padding count as elements that are seen; they do by default.
        divisor: what to divide each sum by, instead of the number of the elements that are seen.

    Shape:
        (B, C, D, H, W) to (B, C, D', H', W'), each size n to floor((n + 2 padding - k) / s) + 1, with ceil for ceil_mode; or
        both without B

    Residuals:
        The sizes of the input: no bytes.

    Raises:
        TypeError: an argument is not an integer or a tuple of such; the input is not floating-point.
        ValueError: an argument is too small, or the padding too large; the input has other axes, or no place for the window.

    Source:
        LeCun, Boser, Denker, Henderson, Howard, Hubbard and Jackel, Handwritten digit recognition with a back-propagation
        network, 1989.

    >>> import torch
    >>> from fundl import AveragePool3d, apply
    >>> apply(AveragePool3d(2), torch.arange(8.0).reshape(1, 2, 2, 2))
    tensor([[[[3.5000]]]])
    """

    counterpart = "AvgPool3d(count_include_pad=count_include_padding, divisor_override=divisor)"
    axes = 3

    kernel_size: int | tuple[int, int, int]
    stride: int | tuple[int, int, int] = attrs.field(
        default=attrs.Factory(lambda self: self.kernel_size, takes_self=True), kw_only=True
    )
    padding: int | tuple[int, int, int] = attrs.field(default=0, kw_only=True)
    ceil_mode: bool = attrs.field(default=False, kw_only=True)
    count_include_padding: bool = attrs.field(default=True, kw_only=True)
    divisor: int | None = attrs.field(default=None, kw_only=True)

    @override
    def output_shape(
        self, shape: Shape[Batch, Channels, Depth, Height, Width]
    ) -> Windows[Batch, Channels, tuple[KernelSize, Stride, Padding, Literal[1], CeilMode], Depth, Height, Width]:
        return self._windows(shape)


# --- Parts of equal size -----------------------------------------------------------------------------------------------


@attrs.frozen(eq=False, init=False)
class _Adaptive(_Spatial[Residuals], Generic[Residuals]):
    """What all layers have in common that divide each axis into a number of parts."""

    @property
    @abstractmethod
    def output_size(self) -> PerAxis: ...

    def __attrs_post_init__(self) -> None:
        self._require_integers("output_size", self.output_size, 1)

    def _sizes(self) -> PerAxis:
        """The output's sizes, as the kernels take them."""
        return self.output_size if self.axes > 1 else _second(self.output_size, 1)

    def _resized(self, shape: AnyShape) -> Resized[AnyShape, None, AnySize]:
        """The rule for any number of axes: what `output_shape` says in types."""
        return Resized(Shape(*shape.exactly(2 + self.axes)), None, self.output_size)


@attrs.frozen(eq=False, init=False)
class _AdaptiveAveragePool(_Adaptive[Pooled]):
    """The mean of each part, over any number of axes."""

    @override
    def forward(self, x: Tensor) -> tuple[Tensor, Pooled]:
        if x.ndim not in {self.axes + 1, self.axes + 2}:  # of which ATen takes some, if there is but one part
            self._explain(x, None)
        return super().forward(x)

    @override
    def _run(self, x: Tensor) -> tuple[Tensor, Pooled]:
        pool = kernels.adaptive_average_pool3d if self.axes == 3 else kernels.adaptive_average_pool2d
        # The kernel over three axes adds up in the dtype of x.
        output = in_float32(lambda wide: pool(wide, self._sizes()), x) if self.axes == 3 else pool(x, self._sizes())
        return output, Pooled(layout_of(x), output.shape)

    @override
    def _output_sizes(self, residuals: Pooled) -> tuple[int, ...]:
        return residuals.sizes

    @override
    def _run_back(self, residuals: Pooled, grad: Tensor) -> Tensor:
        axes, sizes = max(self.axes, 2), residuals.x.sizes
        if grad.shape[-axes:].numel() == 1:
            return (grad / math.prod(sizes[-axes:])).expand(sizes)
        unpool = kernels.adaptive_average_pool3d_backward if self.axes == 3 else kernels.adaptive_average_pool2d_backward
        return in_float32(lambda wide: unpool(wide, stand_in(residuals.x, wide)), grad)


@attrs.frozen(eq=False, init=False)
class _AdaptiveMaxPool(_Adaptive[tuple[Tensor, Layout]]):
    """The maximum of each part, over any number of axes."""

    @override
    def _run(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, Layout]]:
        pool = kernels.adaptive_max_pool3d if self.axes == 3 else kernels.adaptive_max_pool2d
        output, indices = pool(x, self._sizes())
        return output, (indices, layout_of(x))

    @override
    def _output_sizes(self, residuals: tuple[Tensor, Layout]) -> tuple[int, ...]:
        return residuals[0].shape

    @override
    def _run_back(self, residuals: tuple[Tensor, Layout], grad: Tensor) -> Tensor:
        indices, layout = residuals
        unpool = kernels.adaptive_max_pool3d_backward if self.axes == 3 else kernels.adaptive_max_pool2d_backward
        return in_float32(lambda wide: unpool(wide, stand_in(layout, wide), indices), grad)


@final
@attrs.frozen(eq=False)
class AdaptiveAveragePool2d(_AdaptiveAveragePool, Generic[OutputSize]):
    """The mean of each part of images divided into so many parts, whatever their size, channel by channel.

    Of an axis of size n, part i of m is from floor(i n / m) up to, but not including, ceil((i + 1) n / m): where m does not
    divide n, neighbours share an element.

    Its vjp: each element of grad is divided by the number of elements of its part, and added to grad_x there.

    Args:
        output_size: m, how many parts to divide each axis into: one number for all axes, or a tuple of one for each.

    Shape:
        (B, C, H, W) to (B, C, m, m); or both without B

    Residuals:
        The sizes of the input: no bytes.

    Raises:
        TypeError: the output_size is not an integer or a tuple of such; the input is not floating-point.
        ValueError: the output_size is less than 1; the input has other axes, or no element along one.

    Source:
        He, Zhang, Ren and Sun, Spatial pyramid pooling in deep convolutional networks for visual recognition, 2014.

    >>> import torch
    >>> from fundl import AdaptiveAveragePool2d, apply
    >>> apply(AdaptiveAveragePool2d((1, 2)), torch.tensor([[[1.0, 4.0, 2.0, 3.0]]]))
    tensor([[[2.5000, 2.5000]]])
    """

    counterpart = "AdaptiveAvgPool2d"
    axes = 2

    output_size: int | tuple[int, int]

    @override
    def output_shape(
        self, shape: Shape[Batch, Channels, Height, Width]
    ) -> Resized[Shape[Batch, Channels, Height, Width], None, OutputSize]:
        return self._resized(shape)


@final
@attrs.frozen(eq=False)
class AdaptiveAveragePool1d(_AdaptiveAveragePool, Generic[OutputSize]):
    """The mean of each part of sequences divided into so many parts, whatever their size, channel by channel.

    Of an axis of size n, part i of m is from floor(i n / m) up to, but not including, ceil((i + 1) n / m): where m does not
    divide n, neighbours share an element.

    Its vjp: each element of grad is divided by the number of elements of its part, and added to grad_x there.

    Args:
        output_size: m, how many parts to divide the axis into.

    Shape:
        (B, C, L) to (B, C, m); or both without B

    Residuals:
        The sizes of the input: no bytes.

    Raises:
        TypeError: the output_size is not an integer; the input is not floating-point.
        ValueError: the output_size is less than 1; the input has other axes, or no element along one.

    Source:
        He, Zhang, Ren and Sun, Spatial pyramid pooling in deep convolutional networks for visual recognition, 2014.

    >>> import torch
    >>> from fundl import AdaptiveAveragePool1d, apply
    >>> apply(AdaptiveAveragePool1d(2), torch.tensor([[1.0, 4.0, 2.0, 3.0]]))
    tensor([[2.5000, 2.5000]])
    """

    counterpart = "AdaptiveAvgPool1d"
    axes = 1

    output_size: int

    @override
    def output_shape(self, shape: Shape[Batch, Channels, Length]) -> Resized[Shape[Batch, Channels, Length], None, OutputSize]:
        return self._resized(shape)


@final
@attrs.frozen(eq=False)
class AdaptiveAveragePool3d(_AdaptiveAveragePool, Generic[OutputSize]):
    """The mean of each part of volumes divided into so many parts, whatever their size, channel by channel.

    Of an axis of size n, part i of m is from floor(i n / m) up to, but not including, ceil((i + 1) n / m): where m does not
    divide n, neighbours share an element.

    Its vjp: each element of grad is divided by the number of elements of its part, and added to grad_x there.

    Args:
        output_size: m, how many parts to divide each axis into: one number for all axes, or a tuple of one for each.

    Shape:
        (B, C, D, H, W) to (B, C, m, m, m); or both without B

    Residuals:
        The sizes of the input: no bytes.

    Raises:
        TypeError: the output_size is not an integer or a tuple of such; the input is not floating-point.
        ValueError: the output_size is less than 1; the input has other axes, or no element along one.

    Source:
        He, Zhang, Ren and Sun, Spatial pyramid pooling in deep convolutional networks for visual recognition, 2014.

    >>> import torch
    >>> from fundl import AdaptiveAveragePool3d, apply
    >>> apply(AdaptiveAveragePool3d(1), torch.arange(8.0).reshape(1, 2, 2, 2))
    tensor([[[[3.5000]]]])
    """

    counterpart = "AdaptiveAvgPool3d"
    axes = 3

    output_size: int | tuple[int, int, int]

    @override
    def output_shape(
        self, shape: Shape[Batch, Channels, Depth, Height, Width]
    ) -> Resized[Shape[Batch, Channels, Depth, Height, Width], None, OutputSize]:
        return self._resized(shape)


@final
@attrs.frozen(eq=False)
class AdaptiveMaxPool2d(_AdaptiveMaxPool, Generic[OutputSize]):
    """The maximum of each part of images divided into so many parts, whatever their size, channel by channel.

    Of an axis of size n, part i of m is from floor(i n / m) up to, but not including, ceil((i + 1) n / m): where m does not
    divide n, neighbours share an element. NaN is larger than all else.

    Its vjp: each element of grad is added to grad_x where its maximum is from, the first of them if there are several.

    Args:
        output_size: m, how many parts to divide each axis into: one number for all axes, or a tuple of one for each.

    Shape:
        (B, C, H, W) to (B, C, m, m); or both without B

    Residuals:
        Where each maximum is from, 8 bytes per output element; the input is not kept.

    Raises:
        TypeError: the output_size is not an integer or a tuple of such; the input is not floating-point.
        ValueError: the output_size is less than 1; the input has other axes, or no element along one.

    Source:
        He, Zhang, Ren and Sun, Spatial pyramid pooling in deep convolutional networks for visual recognition, 2014.

    >>> import torch
    >>> from fundl import AdaptiveMaxPool2d, apply
    >>> apply(AdaptiveMaxPool2d((1, 2)), torch.tensor([[[1.0, 4.0, 2.0, 3.0]]]))
    tensor([[[4., 3.]]])
    """

    counterpart = "AdaptiveMaxPool2d"
    axes = 2

    output_size: int | tuple[int, int]

    @override
    def output_shape(
        self, shape: Shape[Batch, Channels, Height, Width]
    ) -> Resized[Shape[Batch, Channels, Height, Width], None, OutputSize]:
        return self._resized(shape)


@final
@attrs.frozen(eq=False)
class AdaptiveMaxPool1d(_AdaptiveMaxPool, Generic[OutputSize]):
    """The maximum of each part of sequences divided into so many parts, whatever their size, channel by channel.

    Of an axis of size n, part i of m is from floor(i n / m) up to, but not including, ceil((i + 1) n / m): where m does not
    divide n, neighbours share an element. NaN is larger than all else.

    Its vjp: each element of grad is added to grad_x where its maximum is from, the first of them if there are several.

    Args:
        output_size: m, how many parts to divide the axis into.

    Shape:
        (B, C, L) to (B, C, m); or both without B

    Residuals:
        Where each maximum is from, 8 bytes per output element; the input is not kept.

    Raises:
        TypeError: the output_size is not an integer; the input is not floating-point.
        ValueError: the output_size is less than 1; the input has other axes, or no element along one.

    Source:
        He, Zhang, Ren and Sun, Spatial pyramid pooling in deep convolutional networks for visual recognition, 2014.

    >>> import torch
    >>> from fundl import AdaptiveMaxPool1d, apply
    >>> apply(AdaptiveMaxPool1d(2), torch.tensor([[1.0, 4.0, 2.0, 3.0]]))
    tensor([[4., 3.]])
    """

    counterpart = "AdaptiveMaxPool1d"
    axes = 1

    output_size: int

    @override
    def output_shape(self, shape: Shape[Batch, Channels, Length]) -> Resized[Shape[Batch, Channels, Length], None, OutputSize]:
        return self._resized(shape)


@final
@attrs.frozen(eq=False)
class AdaptiveMaxPool3d(_AdaptiveMaxPool, Generic[OutputSize]):
    """The maximum of each part of volumes divided into so many parts, whatever their size, channel by channel.

    Of an axis of size n, part i of m is from floor(i n / m) up to, but not including, ceil((i + 1) n / m): where m does not
    divide n, neighbours share an element. NaN is larger than all else.

    Its vjp: each element of grad is added to grad_x where its maximum is from, the first of them if there are several.

    Args:
        output_size: m, how many parts to divide each axis into: one number for all axes, or a tuple of one for each.

    Shape:
        (B, C, D, H, W) to (B, C, m, m, m); or both without B

    Residuals:
        Where each maximum is from, 8 bytes per output element; the input is not kept.

    Raises:
        TypeError: the output_size is not an integer or a tuple of such; the input is not floating-point.
        ValueError: the output_size is less than 1; the input has other axes, or no element along one.

    Source:
        He, Zhang, Ren and Sun, Spatial pyramid pooling in deep convolutional networks for visual recognition, 2014.

    >>> import torch
    >>> from fundl import AdaptiveMaxPool3d, apply
    >>> apply(AdaptiveMaxPool3d(1), torch.arange(8.0).reshape(1, 2, 2, 2))
    tensor([[[[7.]]]])
    """

    counterpart = "AdaptiveMaxPool3d"
    axes = 3

    output_size: int | tuple[int, int, int]

    @override
    def output_shape(
        self, shape: Shape[Batch, Channels, Depth, Height, Width]
    ) -> Resized[Shape[Batch, Channels, Depth, Height, Width], None, OutputSize]:
        return self._resized(shape)


# --- The whole of each channel -----------------------------------------------------------------------------------------


@attrs.frozen(eq=False, init=False)
class _Global(Layer[Residuals], Generic[Residuals]):
    """What the layers have in common that leave one number of each channel."""

    @override
    def output_shape(self, shape: Shape[Batch, Channels, *Rest]) -> Shape[Batch, Channels]:
        batch, channels, *_ = shape.leading(2)
        return Shape(batch, channels)

    def _explain(self, x: Tensor, error: Exception | None) -> None:
        """Say in the layer's words what the kernel refused, or would take for something else."""
        name = type(self).__name__
        if x.ndim < 3:
            raise ValueError(
                f"{name} takes an input of shape (B, C, ...) with at least one axis after the channels, not {tuple(x.shape)}"
            ) from error
        if 0 in x.shape[1:]:
            raise ValueError(
                f"{name} needs at least one element along each axis but that of the batch, but the input's shape is"
                f" {tuple(x.shape)}"
            ) from error


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
        if x.ndim < 3 or 0 in x.shape[1:]:
            self._explain(x, None)
        try:
            return x.mean(tuple(range(2, x.ndim))), Sizes(x.shape)
        except RuntimeError as error:
            self._explain(x, error)
            raise

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
        if x.ndim < 3:
            self._explain(x, None)
        planes = x.flatten(2).unsqueeze(2)  # (B, C, 1, n)
        try:
            output, indices = kernels.adaptive_max_pool2d(planes, 1)
        except RuntimeError as error:
            self._explain(x, error)
            raise
        return output.flatten(1), (indices, layout_of(planes), Sizes(x.shape))

    @override
    def backward(self, residuals: tuple[Tensor, Layout, Sizes], grad: Tensor) -> tuple[Self, Tensor]:
        indices, layout, sizes = residuals
        require_sizes(grad, sizes.sizes[:2])
        planes = kernels.adaptive_max_pool2d_backward(grad[..., None, None], stand_in(layout, grad), indices)
        return self, planes.reshape(sizes.sizes)
