"""What all convolutions share: one computation, since ATen's kernels take any number of spatial axes."""

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar, Self

import attrs
import torch
from torch import Tensor
from typing_extensions import override

from fundl._common import half, kernels
from fundl._common.kernels import PerAxis
from fundl.fan import Fans, OwnFans
from fundl.initializers import Initializer, uniform_fan_in
from fundl.layers._layout import require_sizes
from fundl.layers._refusals import require_dtype
from fundl.layers._spatial import Same, Spatial, letters, same_padding
from fundl.shapes import AnyShape, AnySize, Misfit, Shape, Size, Windows, expect


@attrs.frozen(eq=False)
class Convolution(Spatial[Tensor], OwnFans):
    """A convolution over any number of spatial axes.

        y[o, {i}] = b[o] + sum over c, {u} of W[o, c, {u}] x[c, {m}]

    where {m = i s + u d - p}, with kernel size k ({u} in 0 ... k-1),
    stride s, padding p and dilation d. The padding is 0.

    Its vjp: grad_x is a transposed convolution of grad with W, grad_weight a correlation of grad with x.

        grad_x[c, {m}] = sum over o and all {i}, {u} that lead to {m} of W[o, c, {u}] grad[o, {i}]
        grad_weight[o, c, {u}] = sum over the batch and {i} of grad[o, {i}] x[c, {m}]
        grad_bias[o] = sum over the batch and {i} of grad[o, {i}]

    Args:
        weight: W, of shape (out, in / groups, {k}).
        bias: b, of shape (out,), or None.
        stride: s, from one place of the window to the next, one for all axes or a tuple of one for each; 1 by default.
        padding: p, zeros before each axis and as many behind it, one for all axes or a tuple of one for each; 0 by default.
            "same" for as many as give the window a place for each stride, so that a stride of 1 keeps the sizes of the input;
            where that is an odd number, the one more is behind.
        dilation: d, from one element that the window sees to the next; 1 by default.
        groups: into how many parts the channels are split; each part of the output's sees one of the input's. 1 by default.
        weight_init: how `initialize` draws the weight; by default from U(-1/sqrt(n), 1/sqrt(n)), n = {volume} in / groups.
        bias_init: how `initialize` draws the bias; by default as the weight.

    Shape:
        (B, in, {L}) to (B, out, {L'}), each size n to floor((n + 2 p - d (k - 1) - 1) / s) + 1, or to ceil(n / s)
        by "same"; or both without B

    Residuals:
        The input, shared, not copied.

    Raises:
        TypeError: a setting is not an integer or a tuple of such; the input's dtype is not the weight's.
        ValueError: a setting is too small; the input has other channels or axes, or no place for the window.
    """

    transposed: ClassVar[bool] = False
    """Whether it is the vjp of a convolution, seen as a layer."""
    tuples: ClassVar[Mapping[int, str]] = {
        1: ", or a tuple of one",
        2: ", or a tuple of 2, one for each axis",
        3: ", or a tuple of 3, one for each axis",
    }

    weight: Tensor
    bias: Tensor | None
    stride: PerAxis = attrs.field(default=1, kw_only=True)
    padding: PerAxis | Same = attrs.field(default=0, kw_only=True)
    dilation: PerAxis = attrs.field(default=1, kw_only=True)
    groups: int = attrs.field(default=1, kw_only=True)
    weight_init: Initializer = attrs.field(default=uniform_fan_in(), kw_only=True)
    bias_init: Initializer = attrs.field(default=uniform_fan_in(), kw_only=True)

    def __attrs_post_init__(self) -> None:
        name = type(self).__name__
        if self.weight.ndim < self.axes + 2:  # more, if many layers are stacked, to be run as one
            first, second = ("in", "out") if self.transposed else ("out", "in")
            raise ValueError(
                f"{name}'s weight is of shape ({first}, {second} / groups, {letters(self.axes)}), not"
                f" {tuple(self.weight.shape)}"
            )
        self._require_integers("stride", self.stride, 1)
        self._require_integers("dilation", self.dilation, 1)
        if self.groups < 1:
            raise ValueError(f"{name}'s groups must be at least 1, not {self.groups}")
        if self.padding != "same":
            self._require_integers("padding", self.padding, 0, or_same=True)

    @override
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if self.weight.is_meta and not x.is_meta:  # the kernel would read memory that is not there
            raise ValueError(f"{type(self).__name__}'s weight has no values, only a shape: call initialize(key(0), model)")
        try:
            output = self._cut(half.convolution(self._padded(x), self.weight, self.bias, self._settings(x)), x)
            if self.transposed and not output.numel() and x.numel():  # some kernels refuse what nothing is left of, some do not
                self.output_shape(Shape(*self._batch(x).shape))
        except (RuntimeError, Misfit) as error:
            self._explain(x, error)
            raise
        return output if x.ndim == output.ndim else output.squeeze(0), x

    @override
    def backward_params(self, residuals: Tensor, grad: Tensor) -> Self:
        _, grad_weight, grad_bias = self._gradients(residuals, grad, (False, True, self.bias is not None))
        return self.gradient(grad_weight, grad_bias)

    @override
    def backward_input(self, residuals: Tensor, grad: Tensor) -> Tensor:
        grad_x, _, _ = self._gradients(residuals, grad, (True, False, False))
        return self._without_padding(grad_x, residuals)

    @override
    def backward(self, residuals: Tensor, grad: Tensor) -> tuple[Self, Tensor]:
        # The two halves would do, but they call the kernel twice, which takes up to half as long again for small images.
        grad_x, grad_weight, grad_bias = self._gradients(residuals, grad, (True, True, self.bias is not None))
        return self.gradient(grad_weight, grad_bias), self._without_padding(grad_x, residuals)

    # What the kernels are given

    def _gradients(self, x: Tensor, grad: Tensor, mask: kernels.Mask) -> tuple[Tensor, Tensor, Tensor | None]:
        """Those of x as it was padded, weight and bias, as far as the mask asks for them."""
        padded, settings = self._padded(x), self._settings(x)
        require_sizes(grad, (*x.shape[: -self.axes - 1], self._in_and_out()[1], *self._output_sides(x, padded, settings)))
        sizes = None if self.bias is None else self.bias.shape
        return half.convolution_backward(self._uncut(self._batch(grad), x), padded, self.weight, sizes, settings, mask)

    def _output_sides(self, x: Tensor, padded: Tensor, settings: kernels.ConvolutionSettings) -> list[int]:  # noqa: ARG002
        """The sizes of the output's spatial axes for an input, and for what it was padded to."""
        each = zip(padded.shape[-self.axes :], self.weight.shape[-self.axes :], *settings[:3], strict=True)
        return [(side + 2 * pad - gap * (size - 1) - 1) // step + 1 for side, size, step, pad, gap in each]

    def _settings(self, x: Tensor) -> kernels.ConvolutionSettings:
        padding = self._each(self.padding) if self.padding != "same" else tuple(before for before, _ in self._same(x))
        stride, dilation = self._each(self.stride), self._each(self.dilation)
        return stride, padding, dilation, self.transposed, self._output_padding(x), self.groups

    def _output_padding(self, x: Tensor) -> tuple[int, ...]:  # noqa: ARG002  # a transposed one has some
        return (0,) * self.axes

    def _same(self, x: Tensor) -> list[tuple[int, int]]:
        """What "same" puts before and behind each axis of an input."""
        settings = self._kernel_size(), self._each(self.stride), self._each(self.dilation)
        return [same_padding(*each) for each in zip(self._sides_to_pad(x), *settings, strict=True)]

    def _sides_to_pad(self, x: Tensor) -> Sequence[int]:
        return x.shape[-self.axes :]

    def _kernel_size(self) -> tuple[int, ...]:
        return self.weight.shape[-self.axes :]

    def _batch(self, x: Tensor) -> Tensor:
        """A batch of one, if there is an example without a batch."""
        return x.unsqueeze(0) if x.ndim == self.axes + 1 else x

    # By the padding "same", there may be one more element behind than before. No kernel pads so: the input gets it here. Of a
    # transposed convolution, which is the way back, it is cut off from the output.

    def _padded(self, x: Tensor) -> Tensor:
        """The batch that the kernels take: padded by what is odd, if the padding is 'same'."""
        return _longer(self._batch(x), () if self.transposed else self._odd(x))

    def _without_padding(self, grad: Tensor, x: Tensor) -> Tensor:
        """The gradient with respect to x, given that with respect to what x was padded to: the transpose is to cut off."""
        grad = _shorter(grad, () if self.transposed else self._odd(x))
        return grad if grad.ndim == x.ndim else grad.squeeze(0)

    def _cut(self, output: Tensor, x: Tensor) -> Tensor:
        """The output of the kernels, without what is odd of a transposed convolution."""
        return _shorter(output, self._odd(x)) if self.transposed else output

    def _uncut(self, grad: Tensor, x: Tensor) -> Tensor:
        """The gradient with respect to the output of the kernels."""
        return _longer(grad, self._odd(x)) if self.transposed else grad

    def _odd(self, x: Tensor) -> Sequence[int]:
        """How many elements are put before and behind each axis, the last first; nothing if none are."""
        if self.padding != "same":
            return ()
        counts = [count for before, behind in reversed(self._same(x)) for count in (0, behind - before)]
        return counts if any(counts) else ()

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
        self._require_axes(x, error)
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
        require_dtype(f"{name}'s weight is", self.weight, x, error)


def _longer(x: Tensor, counts: Sequence[int]) -> Tensor:
    return torch.constant_pad_nd(x, counts) if counts else x


def _shorter(x: Tensor, counts: Sequence[int]) -> Tensor:
    return torch.constant_pad_nd(x, [-count for count in counts]) if counts else x


def weight_and_bias(
    layer: type[Convolution],
    channels: tuple[int, int],
    kernel_size: PerAxis,
    groups: int,
    *,
    bias: bool,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor | None]:
    """The parameters of a convolution from so many channels to so many, without values."""
    layer._require_integers("kernel_size", kernel_size, 1)
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
