"""Transposed convolution: the vjp of a convolution with respect to its input, as a layer that makes images larger.

What a convolution makes of the larger sizes, a transposed one with the same settings makes larger again.
"""

from collections.abc import Sequence
from typing import Final, Generic, Literal, final

import attrs
import torch
from torch import Tensor
from typing_extensions import TypeVar, override

from fundl._common import kernels
from fundl._common.kernels import PerAxis
from fundl._common.suggestions import with_suggestions
from fundl.initializers import Initializer, VarianceScaling
from fundl.layers._convolution import Convolution, weight_and_bias
from fundl.layers._spatial import Dilation, KernelSize, Stride
from fundl.layers.convolution import Gap, In, InChannels, Kernel, Out, OutChannels, Pad, Padding, Step
from fundl.shapes import AnyShape, AnySize, Batch, Depth, Height, Length, Shape, Spreads, Width

OutputPadding = TypeVar("OutputPadding", bound=PerAxis, covariant=True, default=AnySize)  # as a layer's type states it
More = TypeVar("More", bound=int, default=AnySize)  # as a function is given it

# As torch draws them: up to 1 / sqrt(n), where n is the product of all axes of the weight but the first, its fan out.
_UNIFORM: Final = VarianceScaling(1 / 3, "fan_out", "uniform")


@attrs.frozen(eq=False)
class TransposedConvolution(Convolution):
    """A transposed convolution over any number of spatial axes.

        y[o, {m}] = b[o] + sum over c and all {i}, {u} that lead to {m} of W[c, o, {u}] x[c, {i}]

    where {m = i s + u d - p}, with kernel size k ({u} in 0 ... k-1),
    stride s, padding p and dilation d. The padding is cut off.

    Its vjp: grad_x is a convolution of grad with W, grad_weight a correlation of grad with x.

        grad_x[c, {i}] = sum over o, {u} of W[c, o, {u}] grad[o, {m}]
        grad_weight[c, o, {u}] = sum over the batch and {i} of x[c, {i}] grad[o, {m}]
        grad_bias[o] = sum over the batch and {m} of grad[o, {m}]

    Args:
        weight: W, of shape (in, out / groups, {k}).
        bias: b, of shape (out,), or None.
        stride: s, from one window to the next, one for all axes or a tuple of one for each; 1 by default.
        padding: p, elements that are cut off in front of each axis and as many behind; 0 by default. "same" for as many as make
            each size just the stride times as large, as the way back from a convolution with this padding does; where that is
            an odd number, the one more is behind.
        dilation: d, from one element of a window to the next; 1 by default.
        groups: into how many parts the channels are split; each part of the output's sees one of the input's. 1 by default.
        output_padding: elements that are put behind each axis, less than the stride or the dilation; 0 by default. Convolutions
            with a stride make one size of several: it chooses to which to go back.
        weight_init: how `initialize` draws the weight; by default from U(-1/sqrt(n), 1/sqrt(n)), n = {volume} out / groups.
        bias_init: how `initialize` draws the bias; by default as the weight.

    Shape:
        (B, in, {L}) to (B, out, {L'}), each size n to (n - 1) s - 2 p + d (k - 1) + 1 + output_padding, or to
        n s by "same"; or both without B

    Residuals:
        The input, shared, not copied.

    Raises:
        TypeError: a setting is not an integer or a tuple of such; the input's dtype is not the weight's.
        ValueError: a setting is too small, or the output_padding too large, or not 0 beside "same"; the input has other
            channels or axes, or so few elements that all is cut off.

    Source:
        Zeiler, Krishnan, Taylor and Fergus, Deconvolutional networks, 2010.
    """

    transposed = True

    weight_init: Initializer = attrs.field(default=_UNIFORM, kw_only=True)
    bias_init: Initializer = attrs.field(default=_UNIFORM, kw_only=True)
    output_padding: PerAxis = attrs.field(default=0, kw_only=True)

    @override
    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        self._require_integers("output_padding", self.output_padding, 0)
        most = map(max, self._each(self.stride), self._each(self.dilation))
        if self.padding == "same" and any(self._each(self.output_padding)):
            raise ValueError(
                f"{type(self).__name__}'s padding 'same' makes the sizes what they are to be: leave its output_padding at 0,"
                f" not {self.output_padding}"
            )
        if any(more >= bound for more, bound in zip(self._each(self.output_padding), most, strict=True)):
            raise ValueError(
                f"{type(self).__name__}'s output_padding must be less than the stride or the dilation, not"
                f" {self.output_padding} with a stride of {self.stride} and a dilation of {self.dilation}"
            )

    @override
    def _output_padding(self, x: Tensor) -> tuple[int, ...]:
        if self.padding != "same":
            return self._each(self.output_padding)
        settings = zip(self._kernel_size(), self._each(self.stride), self._each(self.dilation), strict=True)
        return tuple(max(step - gap * (size - 1) - 1, 0) for size, step, gap in settings)

    @override
    def _sides_to_pad(self, x: Tensor) -> Sequence[int]:
        return [side * step for side, step in zip(x.shape[-self.axes :], self._each(self.stride), strict=True)]

    @override
    def _output_sides(self, x: Tensor, padded: Tensor, settings: kernels.ConvolutionSettings) -> list[int]:
        if self.padding == "same":
            return [*self._sides_to_pad(x)]
        strides, paddings, dilations, _, output_paddings, _ = settings
        sides, kernel = padded.shape[-self.axes :], self.weight.shape[-self.axes :]
        each = zip(sides, kernel, strides, paddings, dilations, output_paddings, strict=True)
        return [(side - 1) * step - 2 * cut + gap * (size - 1) + 1 + more for side, size, step, cut, gap, more in each]

    @override
    def _in_and_out(self) -> tuple[int, int]:
        in_channels, out_channels_of_group = self.weight.shape[-self.axes - 2 : -self.axes]
        return in_channels, out_channels_of_group * self.groups

    def _spreads(self, shape: AnyShape) -> Spreads[AnySize, AnySize, AnySize, *tuple[AnySize, ...]]:
        """The rule for any number of axes: what `output_shape` says in types."""
        batch, out_channels, sides = self._expected(shape)
        settings = self._kernel_size(), self.stride, self.padding, self.dilation, self.output_padding
        return Spreads(batch, out_channels, settings, *sides)


@final
@attrs.frozen(eq=False)
class ConvTranspose1d(
    TransposedConvolution, Generic[InChannels, OutChannels, KernelSize, Stride, Padding, Dilation, OutputPadding]
):
    """A window for each element of the input, put side by side to make signals that are larger: the transpose of a `Conv1d`.

    >>> from fundl import ConvTranspose1d, apply
    >>> double = ConvTranspose1d(weight=torch.ones(1, 1, 2), bias=None, stride=2)
    >>> apply(double, torch.tensor([1.0, 4.0]).reshape(1, 1, 2)).flatten()
    tensor([1., 1., 4., 4.])
    """

    counterpart = "ConvTranspose1d"
    axes = 1

    @override
    def output_shape(
        self, shape: Shape[Batch, InChannels, Length]
    ) -> Spreads[Batch, OutChannels, tuple[KernelSize, Stride, Padding, Dilation, OutputPadding], Length]:
        return self._spreads(shape)


@with_suggestions
def conv_transpose1d(
    in_channels: In,
    out_channels: Out,
    kernel_size: Kernel | tuple[int],
    *,
    stride: Step | int | tuple[int] = 1,
    padding: Pad | int | tuple[int] | Literal["same"] = 0,
    dilation: Gap | int | tuple[int] = 1,
    groups: int = 1,
    output_padding: More | int | tuple[int] = 0,
    bias: bool = True,
    weight_init: Initializer = _UNIFORM,
    bias_init: Initializer = _UNIFORM,
    dtype: torch.dtype = torch.float32,
) -> ConvTranspose1d[In, Out, Kernel, Step, Pad, Gap, More]:
    """A `ConvTranspose1d` of the given sizes, without values: give it some with `initialize`.

    Args:
        in_channels: of the input, at least 1, and a multiple of groups.
        out_channels: of the output, likewise.
        kernel_size: of a window, one for all axes or a tuple of one for each.
        bias: whether to add a bias.
        dtype: the parameters' dtype.

    All other options are fields of `ConvTranspose1d`.

    >>> from fundl import apply, conv_transpose1d
    >>> conv_transpose1d(8, 3, kernel_size=5)
    ConvTranspose1d(weight=float32[8, 3, 5], bias=float32[3])
    >>> apply(conv_transpose1d(8, 3, kernel_size=5), torch.empty(2, 8, 6, device="meta")).shape
    torch.Size([2, 3, 10])
    """
    parameters = weight_and_bias(ConvTranspose1d, (in_channels, out_channels), kernel_size, groups, bias=bias, dtype=dtype)
    return ConvTranspose1d(
        *parameters,
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
        output_padding=output_padding,
        weight_init=weight_init,
        bias_init=bias_init,
    )


@final
@attrs.frozen(eq=False)
class ConvTranspose2d(
    TransposedConvolution, Generic[InChannels, OutChannels, KernelSize, Stride, Padding, Dilation, OutputPadding]
):
    """A window for each element of the input, put side by side to make images that are larger: the transpose of a `Conv2d`.

    >>> from fundl import ConvTranspose2d, apply
    >>> double = ConvTranspose2d(weight=torch.ones(1, 1, 1, 2), bias=None, stride=(1, 2))
    >>> apply(double, torch.tensor([1.0, 4.0]).reshape(1, 1, 1, 2)).flatten()
    tensor([1., 1., 4., 4.])
    """

    counterpart = "ConvTranspose2d"
    axes = 2

    @override
    def output_shape(
        self, shape: Shape[Batch, InChannels, Height, Width]
    ) -> Spreads[Batch, OutChannels, tuple[KernelSize, Stride, Padding, Dilation, OutputPadding], Height, Width]:
        return self._spreads(shape)


@with_suggestions
def conv_transpose2d(
    in_channels: In,
    out_channels: Out,
    kernel_size: Kernel | tuple[int, int],
    *,
    stride: Step | int | tuple[int, int] = 1,
    padding: Pad | int | tuple[int, int] | Literal["same"] = 0,
    dilation: Gap | int | tuple[int, int] = 1,
    groups: int = 1,
    output_padding: More | int | tuple[int, int] = 0,
    bias: bool = True,
    weight_init: Initializer = _UNIFORM,
    bias_init: Initializer = _UNIFORM,
    dtype: torch.dtype = torch.float32,
) -> ConvTranspose2d[In, Out, Kernel, Step, Pad, Gap, More]:
    """A `ConvTranspose2d` of the given sizes, without values: give it some with `initialize`.

    Args:
        in_channels: of the input, at least 1, and a multiple of groups.
        out_channels: of the output, likewise.
        kernel_size: of a window, one for all axes or a tuple of one for each.
        bias: whether to add a bias.
        dtype: the parameters' dtype.

    All other options are fields of `ConvTranspose2d`.

    >>> from fundl import apply, conv_transpose2d
    >>> conv_transpose2d(8, 3, kernel_size=5)
    ConvTranspose2d(weight=float32[8, 3, 5, 5], bias=float32[3])
    >>> apply(conv_transpose2d(8, 3, kernel_size=5), torch.empty(2, 8, 28, 28, device="meta")).shape
    torch.Size([2, 3, 32, 32])
    """
    parameters = weight_and_bias(ConvTranspose2d, (in_channels, out_channels), kernel_size, groups, bias=bias, dtype=dtype)
    return ConvTranspose2d(
        *parameters,
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
        output_padding=output_padding,
        weight_init=weight_init,
        bias_init=bias_init,
    )


@final
@attrs.frozen(eq=False)
class ConvTranspose3d(
    TransposedConvolution, Generic[InChannels, OutChannels, KernelSize, Stride, Padding, Dilation, OutputPadding]
):
    """A window for each element of the input, put side by side to make volumes that are larger: the transpose of a `Conv3d`.

    >>> from fundl import ConvTranspose3d, apply
    >>> double = ConvTranspose3d(weight=torch.ones(1, 1, 1, 1, 2), bias=None, stride=(1, 1, 2))
    >>> apply(double, torch.tensor([1.0, 4.0]).reshape(1, 1, 1, 1, 2)).flatten()
    tensor([1., 1., 4., 4.])
    """

    counterpart = "ConvTranspose3d"
    axes = 3

    @override
    def output_shape(
        self, shape: Shape[Batch, InChannels, Depth, Height, Width]
    ) -> Spreads[Batch, OutChannels, tuple[KernelSize, Stride, Padding, Dilation, OutputPadding], Depth, Height, Width]:
        return self._spreads(shape)


@with_suggestions
def conv_transpose3d(
    in_channels: In,
    out_channels: Out,
    kernel_size: Kernel | tuple[int, int, int],
    *,
    stride: Step | int | tuple[int, int, int] = 1,
    padding: Pad | int | tuple[int, int, int] | Literal["same"] = 0,
    dilation: Gap | int | tuple[int, int, int] = 1,
    groups: int = 1,
    output_padding: More | int | tuple[int, int, int] = 0,
    bias: bool = True,
    weight_init: Initializer = _UNIFORM,
    bias_init: Initializer = _UNIFORM,
    dtype: torch.dtype = torch.float32,
) -> ConvTranspose3d[In, Out, Kernel, Step, Pad, Gap, More]:
    """A `ConvTranspose3d` of the given sizes, without values: give it some with `initialize`.

    Args:
        in_channels: of the input, at least 1, and a multiple of groups.
        out_channels: of the output, likewise.
        kernel_size: of a window, one for all axes or a tuple of one for each.
        bias: whether to add a bias.
        dtype: the parameters' dtype.

    All other options are fields of `ConvTranspose3d`.

    >>> from fundl import apply, conv_transpose3d
    >>> conv_transpose3d(8, 3, kernel_size=5)
    ConvTranspose3d(weight=float32[8, 3, 5, 5, 5], bias=float32[3])
    >>> apply(conv_transpose3d(8, 3, kernel_size=5), torch.empty(2, 8, 4, 5, 6, device="meta")).shape
    torch.Size([2, 3, 8, 9, 10])
    """
    parameters = weight_and_bias(ConvTranspose3d, (in_channels, out_channels), kernel_size, groups, bias=bias, dtype=dtype)
    return ConvTranspose3d(
        *parameters,
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
        output_padding=output_padding,
        weight_init=weight_init,
        bias_init=bias_init,
    )
