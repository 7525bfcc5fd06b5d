"""Convolution over one, two or three spatial axes: the same weights at every place of a signal, an image or a volume."""

from typing import Generic, Literal, final

import attrs
import torch
from typing_extensions import TypeVar, override

from fundl._common.kernels import PerAxis
from fundl._common.suggestions import with_suggestions
from fundl.initializers import Initializer, uniform_fan_in
from fundl.layers._convolution import Convolution, weight_and_bias
from fundl.layers._spatial import Dilation, KernelSize, Stride
from fundl.shapes import AnySize, Batch, Depth, Height, Length, Shape, Width, Windows

# Sizes that a layer's type states
InChannels = TypeVar("InChannels", bound=int, covariant=True, default=AnySize)
OutChannels = TypeVar("OutChannels", bound=int, covariant=True, default=AnySize)
Padding = TypeVar("Padding", bound=PerAxis | Literal["same"], covariant=True, default=AnySize)

# Numbers that a function is given
In = TypeVar("In", bound=int)
Out = TypeVar("Out", bound=int)
Kernel = TypeVar("Kernel", bound=int, default=AnySize)
Step = TypeVar("Step", bound=int, default=AnySize)
Pad = TypeVar("Pad", bound=int, default=AnySize)
Gap = TypeVar("Gap", bound=int, default=AnySize)


@final
@attrs.frozen(eq=False)
class Conv1d(Convolution, Generic[InChannels, OutChannels, KernelSize, Stride, Padding, Dilation]):
    """A window that slides over signals, and sees all channels: a weighted sum at each place, once for each output channel.

    Source:
        Waibel, Hanazawa, Hinton, Shikano and Lang, Phoneme recognition using time-delay neural networks, 1989.

    >>> from fundl import Conv1d, apply
    >>> difference = Conv1d(weight=torch.tensor([-1.0, 1.0]).reshape(1, 1, 2), bias=None)
    >>> apply(difference, torch.tensor([1.0, 4.0, 9.0]).reshape(1, 1, 3)).flatten()
    tensor([3., 5.])
    """

    counterpart = "Conv1d"
    axes = 1

    @override
    def output_shape(
        self, shape: Shape[Batch, InChannels, Length]
    ) -> Windows[Batch, OutChannels, tuple[KernelSize, Stride, Padding, Dilation], Length]:
        return self._windows(shape)


@with_suggestions
def conv1d(
    in_channels: In,
    out_channels: Out,
    kernel_size: Kernel | tuple[int],
    *,
    stride: Step | int | tuple[int] = 1,
    padding: Pad | int | tuple[int] | Literal["same"] = 0,
    dilation: Gap | int | tuple[int] = 1,
    groups: int = 1,
    bias: bool = True,
    weight_init: Initializer = uniform_fan_in(),
    bias_init: Initializer = uniform_fan_in(),
    dtype: torch.dtype = torch.float32,
) -> Conv1d[In, Out, Kernel, Step, Pad, Gap]:
    """A `Conv1d` of the given sizes, without values: give it some with `initialize`.

    Args:
        in_channels: of the input, at least 1, and a multiple of groups.
        out_channels: of the output, likewise.
        kernel_size: of the window, one for all axes or a tuple of one for each.
        bias: whether to add a bias.
        dtype: the parameters' dtype.

    All other options are fields of `Conv1d`.

    >>> from fundl import apply, conv1d
    >>> conv1d(3, 8, kernel_size=5)
    Conv1d(weight=float32[8, 3, 5], bias=float32[8])
    >>> apply(conv1d(3, 8, kernel_size=5), torch.empty(2, 3, 10, device="meta")).shape
    torch.Size([2, 8, 6])
    """
    parameters = weight_and_bias(Conv1d, (in_channels, out_channels), kernel_size, groups, bias=bias, dtype=dtype)
    return Conv1d(
        *parameters,
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
        weight_init=weight_init,
        bias_init=bias_init,
    )


@final
@attrs.frozen(eq=False)
class Conv2d(Convolution, Generic[InChannels, OutChannels, KernelSize, Stride, Padding, Dilation]):
    """A window that slides over images, and sees all channels: a weighted sum at each place, once for each output channel.

    Source:
        LeCun, Boser, Denker, Henderson, Howard, Hubbard and Jackel, Backpropagation applied to handwritten zip code
        recognition, 1989.

    >>> from fundl import Conv2d, apply
    >>> difference = Conv2d(weight=torch.tensor([-1.0, 1.0]).reshape(1, 1, 1, 2), bias=None)
    >>> apply(difference, torch.tensor([1.0, 4.0, 9.0]).reshape(1, 1, 1, 3)).flatten()
    tensor([3., 5.])
    """

    counterpart = "Conv2d"
    axes = 2

    @override
    def output_shape(
        self, shape: Shape[Batch, InChannels, Height, Width]
    ) -> Windows[Batch, OutChannels, tuple[KernelSize, Stride, Padding, Dilation], Height, Width]:
        return self._windows(shape)


@with_suggestions
def conv2d(
    in_channels: In,
    out_channels: Out,
    kernel_size: Kernel | tuple[int, int],
    *,
    stride: Step | int | tuple[int, int] = 1,
    padding: Pad | int | tuple[int, int] | Literal["same"] = 0,
    dilation: Gap | int | tuple[int, int] = 1,
    groups: int = 1,
    bias: bool = True,
    weight_init: Initializer = uniform_fan_in(),
    bias_init: Initializer = uniform_fan_in(),
    dtype: torch.dtype = torch.float32,
) -> Conv2d[In, Out, Kernel, Step, Pad, Gap]:
    """A `Conv2d` of the given sizes, without values: give it some with `initialize`.

    Args:
        in_channels: of the input, at least 1, and a multiple of groups.
        out_channels: of the output, likewise.
        kernel_size: of the window, one for all axes or a tuple of one for each.
        bias: whether to add a bias.
        dtype: the parameters' dtype.

    All other options are fields of `Conv2d`.

    >>> from fundl import apply, conv2d
    >>> conv2d(3, 8, kernel_size=5)
    Conv2d(weight=float32[8, 3, 5, 5], bias=float32[8])
    >>> apply(conv2d(3, 8, kernel_size=5), torch.empty(2, 3, 32, 32, device="meta")).shape
    torch.Size([2, 8, 28, 28])
    """
    parameters = weight_and_bias(Conv2d, (in_channels, out_channels), kernel_size, groups, bias=bias, dtype=dtype)
    return Conv2d(
        *parameters,
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
        weight_init=weight_init,
        bias_init=bias_init,
    )


@final
@attrs.frozen(eq=False)
class Conv3d(Convolution, Generic[InChannels, OutChannels, KernelSize, Stride, Padding, Dilation]):
    """A window that slides over volumes, and sees all channels: a weighted sum at each place, once for each output channel.

    Source:
        Ji, Xu, Yang and Yu, 3D convolutional neural networks for human action recognition, 2010.

    >>> from fundl import Conv3d, apply
    >>> difference = Conv3d(weight=torch.tensor([-1.0, 1.0]).reshape(1, 1, 1, 1, 2), bias=None)
    >>> apply(difference, torch.tensor([1.0, 4.0, 9.0]).reshape(1, 1, 1, 1, 3)).flatten()
    tensor([3., 5.])
    """

    counterpart = "Conv3d"
    axes = 3

    @override
    def output_shape(
        self, shape: Shape[Batch, InChannels, Depth, Height, Width]
    ) -> Windows[Batch, OutChannels, tuple[KernelSize, Stride, Padding, Dilation], Depth, Height, Width]:
        return self._windows(shape)


@with_suggestions
def conv3d(
    in_channels: In,
    out_channels: Out,
    kernel_size: Kernel | tuple[int, int, int],
    *,
    stride: Step | int | tuple[int, int, int] = 1,
    padding: Pad | int | tuple[int, int, int] | Literal["same"] = 0,
    dilation: Gap | int | tuple[int, int, int] = 1,
    groups: int = 1,
    bias: bool = True,
    weight_init: Initializer = uniform_fan_in(),
    bias_init: Initializer = uniform_fan_in(),
    dtype: torch.dtype = torch.float32,
) -> Conv3d[In, Out, Kernel, Step, Pad, Gap]:
    """A `Conv3d` of the given sizes, without values: give it some with `initialize`.

    Args:
        in_channels: of the input, at least 1, and a multiple of groups.
        out_channels: of the output, likewise.
        kernel_size: of the window, one for all axes or a tuple of one for each.
        bias: whether to add a bias.
        dtype: the parameters' dtype.

    All other options are fields of `Conv3d`.

    >>> from fundl import apply, conv3d
    >>> conv3d(3, 8, kernel_size=5)
    Conv3d(weight=float32[8, 3, 5, 5, 5], bias=float32[8])
    >>> apply(conv3d(3, 8, kernel_size=5), torch.empty(2, 3, 8, 9, 10, device="meta")).shape
    torch.Size([2, 8, 4, 5, 6])
    """
    parameters = weight_and_bias(Conv3d, (in_channels, out_channels), kernel_size, groups, bias=bias, dtype=dtype)
    return Conv3d(
        *parameters,
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
        weight_init=weight_init,
        bias_init=bias_init,
    )
