"""Patches of images: what each place of a window sees, side by side, and images put together of such."""

import math
from collections.abc import Mapping
from typing import ClassVar, Generic, Self, final

import attrs
from torch import Tensor
from typing_extensions import TypeVar, override

from fundl._common import kernels
from fundl._common.half import in_float32
from fundl._common.kernels import PerAxis
from fundl.layers._inside import Sizes
from fundl.layers._layout import require_sizes
from fundl.layers._spatial import Dilation, KernelSize, Residuals, Spatial, Stride
from fundl.shapes import AnySize, Batch, Channels, Height, Length, Misfit, Patched, Shape, Unfolded, Width

Padding = TypeVar("Padding", bound=PerAxis, covariant=True, default=AnySize)
OutputSize = TypeVar("OutputSize", bound=PerAxis, covariant=True, default=AnySize)


@attrs.frozen(eq=False, init=False)
class _OfPatches(Spatial[Residuals], Generic[Residuals]):
    """What both share: where a window sees an image."""

    tuples: ClassVar[Mapping[int, str]] = {2: ", or a tuple of 2 integers"}

    def _each_of(self, layer: "Unfold | Fold") -> kernels.Folding:
        each = self._each
        return each(layer.kernel_size), each(layer.dilation), each(layer.padding), each(layer.stride)

    def _require_settings(self, layer: "Unfold | Fold") -> None:
        for field, least in (("kernel_size", 1), ("stride", 1), ("padding", 0), ("dilation", 1)):
            self._require_integers(field, getattr(layer, field), least)


@final
@attrs.frozen(eq=False)
class Unfold(_OfPatches[Sizes], Generic[KernelSize, Stride, Padding, Dilation]):
    """What a window sees that slides over images: its elements at each place become one column.

        y[c k^2 + u k + v, l] = x[c, i s + u d - p, j s + v d - p],    u, v in 0 ... k-1

    where l counts the places (i, j), row by row, with kernel size k, stride s, padding p and dilation d. The padding is 0.

    Its vjp: each element of grad is added to grad_x where it was seen, as by `Fold`.

    Args:
        kernel_size: k, one for both axes or a tuple of one for each.
        stride: s, from one place of the window to the next, likewise; 1 by default.
        padding: p, zeros before each axis and as many behind it, likewise; 0 by default.
        dilation: d, from one element that the window sees to the next, likewise; 1 by default.

    Shape:
        (B, C, H, W) to (B, C k^2, L), with L places, floor((n + 2 p - d (k - 1) - 1) / s) + 1 along an axis of size n; or both
        without B

    Residuals:
        The sizes of the input: no bytes.

    Raises:
        TypeError: a setting is not an integer or a tuple of such; the input is not floating-point.
        ValueError: a setting is too small; the input has other axes, or no place for the window.

    Source:
        Chellapilla, Puri and Simard, High performance convolutional neural networks for document processing, 2006.

    >>> import torch
    >>> from fundl import Unfold, apply
    >>> apply(Unfold((1, 2)), torch.tensor([[[1.0, 4.0, 9.0]]]))
    tensor([[1., 4.],
            [4., 9.]])
    """

    counterpart = "Unfold"
    axes = 2

    kernel_size: PerAxis
    stride: PerAxis = attrs.field(default=1, kw_only=True)
    padding: PerAxis = attrs.field(default=0, kw_only=True)
    dilation: PerAxis = attrs.field(default=1, kw_only=True)

    def __attrs_post_init__(self) -> None:
        self._require_settings(self)

    @override
    def forward(self, x: Tensor) -> tuple[Tensor, Sizes]:
        try:
            return kernels.unfold(x, *self._each_of(self)), Sizes(x.shape)
        except (RuntimeError, IndexError) as error:
            self._explain(x, error)
            raise

    @override
    def backward(self, residuals: Sizes, grad: Tensor) -> tuple[Self, Tensor]:
        *lead, channels, height, width = residuals.sizes
        window = self._each_of(self)
        require_sizes(grad, (*lead, channels * math.prod(window[0]), _places((height, width), window)))
        return self, in_float32(lambda wide: kernels.fold(wide, (height, width), *window), grad)

    @override
    def output_shape(
        self, shape: Shape[Batch, Channels, Height, Width]
    ) -> Unfolded[Batch, Channels, tuple[KernelSize, Stride, Padding, Dilation], Height, Width]:
        batch, channels, *sides = shape.exactly(4)
        return Unfolded(batch, channels, (self.kernel_size, self.stride, self.padding, self.dilation), *sides)

    def _explain(self, x: Tensor, error: Exception) -> None:
        """Say in the layer's words what the kernel refused."""
        self._require_axes(x, error)
        try:
            self.output_shape(Shape(*(1,) * (4 - x.ndim), *x.shape))
        except Misfit as misfit:
            raise ValueError(
                f"{self} finds no place for its window in an input of shape {tuple(x.shape)}: it expects {misfit.expected}, but"
                f" the input has {misfit.given}"
            ) from error
        if 0 in x.shape[-3:]:
            raise ValueError(
                f"Unfold needs at least one element along each axis but that of the batch, but the input's shape is"
                f" {tuple(x.shape)}"
            ) from error


@final
@attrs.frozen(eq=False)
class Fold(_OfPatches[Sizes], Generic[OutputSize, KernelSize, Stride, Padding, Dilation]):
    """Puts images together of what a window saw at each place: what several places saw of an element is added up.

        y[c, m, n] = sum of x[c k^2 + u k + v, l] over all l, u, v that lead to m = i s + u d - p, n = j s + v d - p

    where l counts the places (i, j), row by row, with kernel size k, stride s, padding p and dilation d. What would lie on the
    padding is left out. Behind an `Unfold` of the same settings, each element is there as often as it was seen.

    Its vjp: grad_x is what the window sees of grad, as by `Unfold`.

    Args:
        output_size: the height and width of the images, one for both axes or a tuple of one for each.
        kernel_size: k, likewise.
        stride: s, from one place of the window to the next, likewise; 1 by default.
        padding: p, elements that are left out before each axis and as many behind it, likewise; 0 by default.
        dilation: d, from one element that the window sees to the next, likewise; 1 by default.

    Shape:
        (B, C k^2, L) to (B, C, *output_size), with L places, floor((n + 2 p - d (k - 1) - 1) / s) + 1 along an axis of size n;
        or both without B

    Residuals:
        The sizes of the input: no bytes.

    Raises:
        TypeError: a setting is not an integer or a tuple of such; the input is not floating-point.
        ValueError: a setting is too small, or there is no place for the window; the input has other axes, another number of
            places, or a number of rows that k^2 does not divide.

    Source:
        That of `Unfold`, whose vjp it is.

    >>> import torch
    >>> from fundl import Fold, apply
    >>> apply(Fold((1, 3), (1, 2)), torch.tensor([[1.0, 4.0], [4.0, 9.0]]))
    tensor([[[1., 8., 9.]]])
    """

    counterpart = "Fold"
    axes = 2

    output_size: PerAxis
    kernel_size: PerAxis
    stride: PerAxis = attrs.field(default=1, kw_only=True)
    padding: PerAxis = attrs.field(default=0, kw_only=True)
    dilation: PerAxis = attrs.field(default=1, kw_only=True)

    def __attrs_post_init__(self) -> None:
        self._require_integers("output_size", self.output_size, 1)
        self._require_settings(self)
        try:
            self.output_shape(Shape(None, None, None))
        except Misfit as misfit:
            raise ValueError(
                f"{self} finds no place for its window: it expects {misfit.expected}, but its output_size gives {misfit.given}"
            ) from None

    @override
    def forward(self, x: Tensor) -> tuple[Tensor, Sizes]:
        sizes, window = self._each(self.output_size), self._each_of(self)
        try:
            return in_float32(lambda wide: kernels.fold(wide, sizes, *window), x), Sizes(x.shape)
        except (RuntimeError, IndexError) as error:
            self._explain(x, error)
            raise

    @override
    def backward(self, residuals: Sizes, grad: Tensor) -> tuple[Self, Tensor]:
        *lead, rows, _ = residuals.sizes
        window = self._each_of(self)
        require_sizes(grad, (*lead, rows // math.prod(window[0]), *self._each(self.output_size)))
        return self, kernels.unfold(grad, *window)

    @override
    def output_shape(
        self, shape: Shape[Batch, Channels, Length]
    ) -> Patched[Batch, Channels, Length, OutputSize, tuple[KernelSize, Stride, Padding, Dilation]]:
        batch, rows, places = shape.exactly(3)
        settings = self.kernel_size, self.stride, self.padding, self.dilation
        return Patched(batch, rows, places, self.output_size, settings)

    def _explain(self, x: Tensor, error: Exception) -> None:
        """Say in the layer's words what the kernel refused."""
        if x.ndim not in {2, 3}:
            raise ValueError(
                f"Fold takes an input of shape (B, C k^2, L), or (C k^2, L) without a batch, not {tuple(x.shape)}"
            ) from error
        try:
            self.output_shape(Shape(*(1,) * (3 - x.ndim), *x.shape))
        except Misfit as misfit:
            raise ValueError(
                f"{self} expects {misfit.expected}, but the input has {misfit.given}: its shape is {tuple(x.shape)}"
            ) from error
        if 0 in x.shape[-2:]:
            raise ValueError(f"Fold needs at least one row, but the input's shape is {tuple(x.shape)}") from error


def _places(sides: tuple[int, int], window: kernels.Folding) -> int:
    """How many places a window has in an image."""
    each = zip(sides, *window, strict=True)
    return math.prod((side + 2 * pad - gap * (size - 1) - 1) // step + 1 for side, size, gap, pad, step in each)
