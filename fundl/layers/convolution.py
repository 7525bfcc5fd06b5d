"""Convolution over one, two or three spatial axes: the same weights at every place of a signal, an image or a volume.

The axes of the input are (B, C, *spatial), or (C, *spatial) for one example without a batch. All layers share one
computation, since ATen's kernels take any number of spatial axes.
"""

import math
from collections.abc import Sequence
from typing import ClassVar, Final, Generic, Literal, Self, final

import attrs
import torch
from torch import Tensor
from typing_extensions import TypeVar, override

from fundl import tree
from fundl._common import half, kernels
from fundl._common.kernels import PerAxis
from fundl._common.suggestions import with_suggestions
from fundl.fan import Fans, OwnFans
from fundl.initializers import Initializer, uniform_fan_in
from fundl.layer import Layer
from fundl.layers._layout import require_sizes
from fundl.shapes import AnyShape, AnySize, Misfit, Shape, Size, Windows, expect

# Sizes that a layer's type states
InChannels = TypeVar("InChannels", bound=int, covariant=True, default=AnySize)
OutChannels = TypeVar("OutChannels", bound=int, covariant=True, default=AnySize)
KernelSize = TypeVar("KernelSize", bound=PerAxis, covariant=True, default=AnySize)
Stride = TypeVar("Stride", bound=PerAxis, covariant=True, default=AnySize)
Padding = TypeVar("Padding", bound=PerAxis | Literal["same"], covariant=True, default=AnySize)
Dilation = TypeVar("Dilation", bound=PerAxis, covariant=True, default=AnySize)

# Sizes of the input
Batch = TypeVar("Batch")
Length = TypeVar("Length")
Depth = TypeVar("Depth")
Height = TypeVar("Height")
Width = TypeVar("Width")

# Numbers that a function is given
In = TypeVar("In", bound=int)
Out = TypeVar("Out", bound=int)
Kernel = TypeVar("Kernel", bound=int, default=AnySize)
Step = TypeVar("Step", bound=int, default=AnySize)
Pad = TypeVar("Pad", bound=int, default=AnySize)
Gap = TypeVar("Gap", bound=int, default=AnySize)

SPATIAL: Final = {1: "L", 2: "H, W", 3: "D, H, W"}


# --- What all convolutions share ---------------------------------------------------------------------------------------


@attrs.frozen(eq=False)
class Convolution(Layer[Tensor], OwnFans):
    """A convolution over any number of spatial axes."""

    axes: ClassVar[int]
    """How many spatial axes there are."""
    transposed: ClassVar[bool] = False
    """Whether it is the vjp of a convolution, seen as a layer."""

    weight: Tensor
    bias: Tensor | None
    stride: PerAxis = attrs.field(default=1, kw_only=True)
    padding: PerAxis | Literal["same"] = attrs.field(default=0, kw_only=True)
    dilation: PerAxis = attrs.field(default=1, kw_only=True)
    groups: int = attrs.field(default=1, kw_only=True)
    weight_init: Initializer = attrs.field(default=uniform_fan_in(), kw_only=True)
    bias_init: Initializer = attrs.field(default=uniform_fan_in(), kw_only=True)

    def __attrs_post_init__(self) -> None:
        name = type(self).__name__
        if self.weight.ndim < self.axes + 2:  # more, if many layers are stacked, to be run as one
            first, second = ("in", "out") if self.transposed else ("out", "in")
            raise ValueError(
                f"{name}'s weight is of shape ({first}, {second} / groups, {SPATIAL[self.axes]}), not"
                f" {tuple(self.weight.shape)}"
            )
        require_per_axis(name, "stride", self.stride, 1, self.axes)
        require_per_axis(name, "dilation", self.dilation, 1, self.axes)
        if self.groups < 1:
            raise ValueError(f"{name}'s groups must be at least 1, not {self.groups}")
        if self.padding != "same" or self.transposed:
            require_per_axis(name, "padding", self.padding, 0, self.axes)
        elif set(self._each(self.stride)) != {1}:
            raise ValueError(
                f"{name}'s padding 'same' keeps the sizes of the input, which only a stride of 1 does: with a stride of"
                f" {self.stride}, give the padding in numbers"
            )

    @override
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if self.weight.is_meta and not x.is_meta:  # the kernel would read memory that is not there
            raise ValueError(f"{type(self).__name__}'s weight has no values, only a shape: call initialize(key(0), model)")
        try:
            output = half.convolution(self._padded(x), self.weight, self.bias, self._settings())
            if self.transposed and not output.numel() and x.numel():  # some kernels refuse what nothing is left of, some do not
                self.output_shape(Shape(*self._batch(x).shape))
        except (RuntimeError, Misfit) as error:
            self._explain(x, error)
            raise
        return output if x.ndim == output.ndim else output.squeeze(0), x

    @override
    def backward(self, residuals: Tensor, grad: Tensor) -> tuple[Self, Tensor]:
        grad_x, *grads = self._gradients(residuals, grad, (True, True, self.bias is not None))
        return self._of(grads), self._without_padding(grad_x, residuals)

    @override
    def backward_params(self, residuals: Tensor, grad: Tensor) -> Self:
        _, *grads = self._gradients(residuals, grad, (False, True, self.bias is not None))
        return self._of(grads)

    @override
    def backward_input(self, residuals: Tensor, grad: Tensor) -> Tensor:
        return self._without_padding(self._gradients(residuals, grad, (True, False, False))[0], residuals)

    def _gradients(self, x: Tensor, grad: Tensor, mask: tuple[bool, bool, bool]) -> tuple[Tensor, Tensor, Tensor | None]:
        """The gradients with respect to the input as it was padded, the weight and the bias, those of them that are wanted."""
        padded = self._padded(x)
        require_sizes(
            grad, (*x.shape[: -self.axes - 1], self._in_and_out()[1], *self._output_sides(padded.shape[-self.axes :]))
        )
        sizes = None if self.bias is None else self.bias.shape
        return half.convolution_backward(self._batch(grad), padded, self.weight, sizes, self._settings(), mask)

    def _output_sides(self, sides: Sequence[int]) -> list[int]:
        """The sizes of the output's spatial axes for those of the input as it was padded."""
        settings = zip(sides, self._padding(), self._spans(), self._each(self.stride), strict=True)
        return [(side + 2 * padding - span - 1) // stride + 1 for side, padding, span, stride in settings]

    def _of(self, grads: Sequence[Tensor | None]) -> Self:
        """The gradients in the place of weight and bias, past the constructor, whose checks were done as the layer was made."""
        return tree.with_trainable_leaves(self, [grad for grad in grads if grad is not None])

    # What the kernels are given

    def _settings(self) -> kernels.ConvolutionSettings:
        stride, dilation = self._each(self.stride), self._each(self.dilation)
        return stride, self._padding(), dilation, self.transposed, self._output_padding(), self.groups

    def _padding(self) -> tuple[int, ...]:
        """The padding before and behind each axis."""
        if self.padding == "same":
            return tuple(span // 2 for span in self._spans())
        return self._each(self.padding)

    def _output_padding(self) -> tuple[int, ...]:
        return (0,) * self.axes

    def _each(self, setting: PerAxis) -> tuple[int, ...]:
        """A setting as a number for each axis."""
        return (setting,) * self.axes if isinstance(setting, int) else setting

    def _spans(self) -> Sequence[int]:
        """From the first to the last element that a window sees, for each axis."""
        sizes = zip(self._each(self.dilation), self._kernel_size(), strict=True)
        return [gap * (size - 1) for gap, size in sizes]

    def _kernel_size(self) -> tuple[int, ...]:
        return self.weight.shape[-self.axes :]

    def _batch(self, x: Tensor) -> Tensor:
        """A batch of one, if there is an example without a batch."""
        return x.unsqueeze(0) if x.ndim == self.axes + 1 else x

    # Windows of an even size see one more element behind than before. No kernel pads so: the input gets it here.

    def _padded(self, x: Tensor) -> Tensor:
        """The batch that the kernels take: padded by what is odd, if the padding is 'same'."""
        batch = self._batch(x)
        odd = self._odd() if self.padding == "same" else ()
        return torch.constant_pad_nd(batch, odd) if odd else batch

    def _without_padding(self, grad: Tensor, x: Tensor) -> Tensor:
        """The gradient with respect to x, given that with respect to what x was padded to: the transpose is to cut off."""
        odd = self._odd() if self.padding == "same" else ()
        if odd:
            grad = torch.constant_pad_nd(grad, [-count for count in odd])
        return grad if grad.ndim == x.ndim else grad.squeeze(0)

    def _odd(self) -> Sequence[int]:
        """How many elements are put before and behind each axis, the last first; nothing if none are."""
        spans = self._spans()
        if not any(span % 2 for span in spans):
            return ()
        return [count for span in reversed(spans) for count in (0, span % 2)]

    # Shapes

    @override
    def own_fans(self) -> Fans:
        """The elements of a window in its group's channels; of those that a stride skips, each place sees its share."""
        of_window = math.prod(self._kernel_size())
        narrow, wide = (channels // self.groups * of_window for channels in self._in_and_out())
        places = math.prod(self._each(self.stride))
        return Fans(narrow / places, wide) if self.transposed else Fans(narrow, wide / places)

    def _in_and_out(self) -> tuple[int, int]:
        """The numbers of channels of input and output."""
        out_channels, in_channels_of_group = self.weight.shape[-self.axes - 2 : -self.axes]
        return in_channels_of_group * self.groups, out_channels

    def _windows(self, shape: AnyShape) -> Windows[AnySize, AnySize, AnySize, *tuple[AnySize, ...]]:
        """The rule for any number of axes: what `output_shape` says in types."""
        batch, out_channels, sides = self._expected(shape)
        return Windows(batch, out_channels, (self._kernel_size(), self.stride, self.padding, self.dilation), *sides)

    def _expected(self, shape: AnyShape) -> tuple[Size, int, Sequence[Size]]:
        """The batch of an input, which must have the layer's channels, the channels of the output, and the spatial axes."""
        batch, channels, *sides = shape.exactly(2 + self.axes)
        in_channels, out_channels = self._in_and_out()
        expect("channels", channels, in_channels)
        return batch, out_channels, sides

    def _explain(self, x: Tensor, error: Exception) -> None:
        """Say in the layer's words what the kernel refused: asked only once it has, so that a good input costs nothing."""
        name = type(self).__name__
        if x.ndim not in {self.axes + 1, self.axes + 2}:
            spatial = SPATIAL[self.axes]
            raise ValueError(
                f"{name} takes an input of shape (B, C, {spatial}), or (C, {spatial}) without a batch, not {tuple(x.shape)}"
            ) from error
        try:
            self.output_shape(Shape(*self._batch(x).shape))
        except Misfit as misfit:
            raise ValueError(
                f"{name} expects {misfit.expected}, but the input has {misfit.given}: its shape is {tuple(x.shape)}"
            ) from error
        if 0 in x.shape[-self.axes :]:
            raise ValueError(
                f"{name} needs at least one element along each axis, but the input's shape is {tuple(x.shape)}"
            ) from error
        if x.dtype != self.weight.dtype:
            raise TypeError(
                f"{name}'s weight is {self.weight.dtype}, but the input is {x.dtype}: convert one of them, the input with"
                f" x.to({self.weight.dtype}) or the model with tree.cast_to(model, {x.dtype})"
            ) from error


# --- What all constructors share ---------------------------------------------------------------------------------------


def require_per_axis(name: str, field: str, setting: object, least: int, axes: int) -> None:
    """Raise unless a setting is a number that is large enough, or a tuple of one for each axis."""
    sizes = setting if isinstance(setting, tuple) else (setting,) * axes
    if len(sizes) != axes or not all(isinstance(size, int) for size in sizes):
        each = "or a tuple of one" if axes == 1 else f"or a tuple of {axes}, one for each axis"
        raise TypeError(f"{name}'s {field} is an integer, {each}, not {setting!r}")
    if any(size < least for size in sizes if isinstance(size, int)):
        raise ValueError(f"{name}'s {field} must be at least {least}, not {setting!r}")


def weight_and_bias(
    layer: type[Convolution],
    channels: tuple[int, int],
    kernel_size: PerAxis,
    groups: int,
    *,
    bias: bool,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor | None]:
    """The parameters of a convolution, without values.

    Args:
        layer: the class of the convolution.
        channels: the numbers of channels of input and output.
        kernel_size: one for all axes, or one for each.
        groups: into how many parts the channels are split.
        bias: whether there is one.
        dtype: the parameters' dtype.

    Raises:
        TypeError: the kernel size is neither an integer nor a tuple of one for each axis.
        ValueError: a size is less than 1, or the groups do not divide the channels.
    """
    require_per_axis(layer.__name__, "kernel_size", kernel_size, 1, layer.axes)
    for field, count in zip(("in_channels", "out_channels"), channels, strict=True):
        if count < 1:
            raise ValueError(f"{layer.__name__}'s {field} must be at least 1, not {count}")
        if groups > 0 and count % groups:
            raise ValueError(
                f"{layer.__name__}'s groups divide the channels evenly, but {field} is {count} and groups {groups}"
            )
    first, second = channels if layer.transposed else reversed(channels)
    kernel = (kernel_size,) * layer.axes if isinstance(kernel_size, int) else kernel_size
    weight = torch.empty(first, second // max(groups, 1), *kernel, dtype=dtype, device="meta")
    return weight, torch.empty(channels[1], dtype=dtype, device="meta") if bias else None


# --- Over a signal -----------------------------------------------------------------------------------------------------


@final
@attrs.frozen(eq=False)
class Conv1d(Convolution, Generic[InChannels, OutChannels, KernelSize, Stride, Padding, Dilation]):
    """A window that slides over signals, and sees all channels: a weighted sum at each place, once for each output channel.

        y[o, i] = b[o] + sum over c and u in 0 ... k-1 of W[o, c, u] x[c, i s + u d - p]

    with kernel size k, stride s, padding p and dilation d. The padding is 0.

    Its vjp: grad_x is a transposed convolution of grad with W, grad_weight a correlation of grad with x.

        grad_x[c, m] = sum over o and u of W[o, c, u] grad[o, i],    i s + u d - p = m
        grad_weight[o, c, u] = sum over the batch and i of grad[o, i] x[c, i s + u d - p]
        grad_bias[o] = sum over the batch and i of grad[o, i]

    Args:
        weight: W, of shape (out, in / groups, k).
        bias: b, of shape (out,), or None.
        stride: s, from one place of the window to the next, one for all axes or a tuple of one for each; 1 by default.
        padding: p, zeros before each axis and as many behind it, one for all axes or a tuple of one for each; 0 by default.
            "same" for as many as keep the sizes of the input; where that is an odd number, the one more is behind.
        dilation: d, from one element that the window sees to the next; 1 by default.
        groups: into how many parts the channels are split; each part of the output's sees one of the input's. 1 by default.
        weight_init: how `initialize` draws the weight.
        bias_init: how `initialize` draws the bias.

    Shape:
        (B, in, L) to (B, out, L'), each size n to floor((n + 2 p - d (k - 1) - 1) / s) + 1, or kept by "same";
        or both without B

    Residuals:
        The input, shared, not copied.

    Raises:
        TypeError: a setting is not an integer or a tuple of such; the input's dtype is not the weight's.
        ValueError: a setting is too small, or the stride more than 1 with padding "same"; the input has other channels or
            axes, or no place for the window.

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
        in_channels: of the input, at least 1.
        out_channels: of the output, at least 1.
        kernel_size: of the window, one for all axes or a tuple of one for each.
        stride: from one place of the window to the next.
        padding: zeros before each axis and as many behind it, or "same" for as many as keep the input's sizes.
        dilation: from one element that the window sees to the next.
        groups: into how many parts the channels are split, which must divide both numbers of channels.
        bias: whether to add a bias.
        weight_init: how to draw the weight; by default from U(-1/sqrt(n), 1/sqrt(n)), n = in / groups k.
        bias_init: how to draw the bias; by default as the weight.
        dtype: the parameters' dtype.

    Raises:
        TypeError: a setting is not an integer or a tuple of such.
        ValueError: a size is too small, the groups do not divide the channels, or the stride is more than 1 with "same".

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


# --- Over an image -----------------------------------------------------------------------------------------------------


@final
@attrs.frozen(eq=False)
class Conv2d(Convolution, Generic[InChannels, OutChannels, KernelSize, Stride, Padding, Dilation]):
    """A window that slides over images, and sees all channels: a weighted sum at each place, once for each output channel.

        y[o, i, j] = b[o] + sum over c and u, v in 0 ... k-1 of W[o, c, u, v] x[c, i s + u d - p, j s + v d - p]

    with kernel size k, stride s, padding p and dilation d. The padding is 0.

    Its vjp: grad_x is a transposed convolution of grad with W, grad_weight a correlation of grad with x.

        grad_x[c, m, n] = sum over o, u, v of W[o, c, u, v] grad[o, i, j],    i s + u d - p = m,  j s + v d - p = n
        grad_weight[o, c, u, v] = sum over the batch and i, j of grad[o, i, j] x[c, i s + u d - p, j s + v d - p]
        grad_bias[o] = sum over the batch and i, j of grad[o, i, j]

    Args:
        weight: W, of shape (out, in / groups, k, k).
        bias: b, of shape (out,), or None.
        stride: s, from one place of the window to the next, one for all axes or a tuple of one for each; 1 by default.
        padding: p, zeros before each axis and as many behind it, one for all axes or a tuple of one for each; 0 by default.
            "same" for as many as keep the sizes of the input; where that is an odd number, the one more is behind.
        dilation: d, from one element that the window sees to the next; 1 by default.
        groups: into how many parts the channels are split; each part of the output's sees one of the input's. 1 by default.
        weight_init: how `initialize` draws the weight.
        bias_init: how `initialize` draws the bias.

    Shape:
        (B, in, H, W) to (B, out, H', W'), each size n to floor((n + 2 p - d (k - 1) - 1) / s) + 1, or kept by "same";
        or both without B

    Residuals:
        The input, shared, not copied.

    Raises:
        TypeError: a setting is not an integer or a tuple of such; the input's dtype is not the weight's.
        ValueError: a setting is too small, or the stride more than 1 with padding "same"; the input has other channels or
            axes, or no place for the window.

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
        in_channels: of the input, at least 1.
        out_channels: of the output, at least 1.
        kernel_size: of the window, one for all axes or a tuple of one for each.
        stride: from one place of the window to the next.
        padding: zeros before each axis and as many behind it, or "same" for as many as keep the input's sizes.
        dilation: from one element that the window sees to the next.
        groups: into how many parts the channels are split, which must divide both numbers of channels.
        bias: whether to add a bias.
        weight_init: how to draw the weight; by default from U(-1/sqrt(n), 1/sqrt(n)), n = in / groups k k.
        bias_init: how to draw the bias; by default as the weight.
        dtype: the parameters' dtype.

    Raises:
        TypeError: a setting is not an integer or a tuple of such.
        ValueError: a size is too small, the groups do not divide the channels, or the stride is more than 1 with "same".

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


# --- Over a volume -----------------------------------------------------------------------------------------------------


@final
@attrs.frozen(eq=False)
class Conv3d(Convolution, Generic[InChannels, OutChannels, KernelSize, Stride, Padding, Dilation]):
    """A window that slides over volumes, and sees all channels: a weighted sum at each place, once for each output channel.

        y[o, i] = b[o] + sum over c and u in {0 ... k-1}^3 of W[o, c, u] x[c, i s + u d - p]

    with kernel size k, stride s, padding p and dilation d; i, m and u are of three coordinates. The padding is 0.

    Its vjp: grad_x is a transposed convolution of grad with W, grad_weight a correlation of grad with x.

        grad_x[c, m] = sum over o and u of W[o, c, u] grad[o, i],    i s + u d - p = m
        grad_weight[o, c, u] = sum over the batch and i of grad[o, i] x[c, i s + u d - p]
        grad_bias[o] = sum over the batch and i of grad[o, i]

    Args:
        weight: W, of shape (out, in / groups, k, k, k).
        bias: b, of shape (out,), or None.
        stride: s, from one place of the window to the next, one for all axes or a tuple of one for each; 1 by default.
        padding: p, zeros before each axis and as many behind it, one for all axes or a tuple of one for each; 0 by default.
            "same" for as many as keep the sizes of the input; where that is an odd number, the one more is behind.
        dilation: d, from one element that the window sees to the next; 1 by default.
        groups: into how many parts the channels are split; each part of the output's sees one of the input's. 1 by default.
        weight_init: how `initialize` draws the weight.
        bias_init: how `initialize` draws the bias.

    Shape:
        (B, in, D, H, W) to (B, out, D', H', W'), each size n to floor((n + 2 p - d (k - 1) - 1) / s) + 1, or kept by "same";
        or both without B

    Residuals:
        The input, shared, not copied.

    Raises:
        TypeError: a setting is not an integer or a tuple of such; the input's dtype is not the weight's.
        ValueError: a setting is too small, or the stride more than 1 with padding "same"; the input has other channels or
            axes, or no place for the window.

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
        in_channels: of the input, at least 1.
        out_channels: of the output, at least 1.
        kernel_size: of the window, one for all axes or a tuple of one for each.
        stride: from one place of the window to the next.
        padding: zeros before each axis and as many behind it, or "same" for as many as keep the input's sizes.
        dilation: from one element that the window sees to the next.
        groups: into how many parts the channels are split, which must divide both numbers of channels.
        bias: whether to add a bias.
        weight_init: how to draw the weight; by default from U(-1/sqrt(n), 1/sqrt(n)), n = in / groups k k k.
        bias_init: how to draw the bias; by default as the weight.
        dtype: the parameters' dtype.

    Raises:
        TypeError: a setting is not an integer or a tuple of such.
        ValueError: a size is too small, the groups do not divide the channels, or the stride is more than 1 with "same".

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
