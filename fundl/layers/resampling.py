"""Resampling: images made larger or smaller, or framed.

The same holds for sequences and volumes: "pixels" may have any number of axes.
"""

import math
from collections.abc import Sequence
from typing import Generic, Literal, Self, final, get_args

import attrs
import torch
from torch import Tensor
from typing_extensions import TypeVar, override

from fundl._common import kernels
from fundl._common.half import in_float32
from fundl.layer import Layer
from fundl.layers._inside import Sizes
from fundl.layers._layout import Layout, layout_of, require_sizes, stand_in
from fundl.shapes import AnySize, Padded, Resized, S

# Sizes that a layer's type states, named like the fields that hold them
Factor = TypeVar("Factor", bound=float | tuple[float, ...] | None, covariant=True, default=AnySize)
Size = TypeVar("Size", bound=int | tuple[int, ...] | None, covariant=True, default=AnySize)
Padding = TypeVar("Padding", bound=tuple[int | tuple[int, int], ...], covariant=True, default=AnySize)


# --- Larger or smaller -------------------------------------------------------------------------------------------------


@final
@attrs.frozen(eq=False)
class Upsample(Layer[Sizes], Generic[Factor, Size]):
    """Images made larger (or smaller) by a factor, or to a size: each pixel is made from the ones that it lies on.

    Over each axis, with f the factor, output i lies at position p of the input:

        nearest:                 y[i] = x[floor(i / f)]
        linear:                  y[i] = (1 - t) x[j] + t x[j + 1],    p = (i + 1/2) / f - 1/2,    j = floor(p),    t = p - j
        linear, corners aligned: the same with p = i (n - 1) / (m - 1), for n pixels made to m

    where a position outside of the input counts as its border. Over several axes, one after the other.

    Its vjp: the transposed map. Each element of grad is added, with the same weights, to what it was made from.

    Args:
        factor: f, a positive number for all spatial axes, or a tuple of one for each; if size is None.
        size: the sizes of the spatial axes to make, a number for all, or a tuple of one for each; if factor is None.
        mode: "nearest", the default, or "linear".
        align_corners: whether the first and the last pixels lie on those of the input; for linear alone.

    Shape:
        (B, C, *spatial), with one to three spatial axes, to (B, C, *larger), each floor(f n), or the size

    Residuals:
        The sizes of the input: no bytes.

    Raises:
        TypeError: the input is not floating-point.
        ValueError: factor and size are both given, or neither; one of them is not positive; the mode is another;
            align_corners is given for nearest; or the input has other axes, or no element along one.

    >>> from fundl import Upsample, apply
    >>> apply(Upsample(2), torch.tensor([[[1.0, 3.0]]]))
    tensor([[[1., 1., 3., 3.]]])
    >>> apply(Upsample(size=3, mode="linear", align_corners=True), torch.tensor([[[1.0, 3.0]]]))
    tensor([[[1., 2., 3.]]])
    """

    factor: float | tuple[float, ...] | None = None
    size: int | tuple[int, ...] | None = attrs.field(default=None, kw_only=True)
    mode: Literal["nearest", "linear"] = attrs.field(default="nearest", kw_only=True)
    align_corners: bool = attrs.field(default=False, kw_only=True)

    def __attrs_post_init__(self) -> None:
        if (self.factor is None) == (self.size is None):
            raise ValueError(f"Upsample takes a factor or a size, one of the two, not {self.factor} and {self.size}")
        settings: Sequence[tuple[str, float | tuple[float, ...] | None, frozenset[type], str, str]] = (
            ("factor", self.factor, frozenset({int, float}), "a number", "a finite number above 0"),
            ("size", self.size, frozenset({int}), "an int", "above 0"),
        )
        for name, setting, kinds, kind, bounds in settings:
            numbers = setting if isinstance(setting, tuple) else (setting,)
            if setting is not None and not all(type(number) in kinds for number in numbers):
                raise TypeError(f"Upsample's {name} must be {kind}, or a tuple of one for each axis, not {setting!r}")
            if any(number is not None and not 0 < number < math.inf for number in numbers):
                raise ValueError(f"Upsample's {name} must be {bounds}, not {setting}")
        if self.mode not in {"nearest", "linear"}:
            raise ValueError(f"Upsample's mode must be 'nearest' or 'linear', not {self.mode!r}")
        if self.align_corners and self.mode == "nearest":
            raise ValueError("Upsample aligns corners in mode='linear' alone: of a nearest pixel there is nothing to align")

    @override
    def forward(self, x: Tensor) -> tuple[Tensor, Sizes]:
        self._require_pixels(x)
        residuals, sizes = Sizes(x.shape), self._sizes(x.shape)
        if not x.shape[0]:  # torch's tracer takes no empty batch: its check of shapes is given a number for a truth
            return x.new_empty((*x.shape[:2], *sizes)), residuals
        asked = self._asked(x.shape, sizes)
        y = kernels.upsample[self.mode, len(sizes)](x, asked, *self._settings(len(sizes)))
        return _with_ends(y, asked, sizes), residuals

    @override
    def backward(self, residuals: Sizes, grad: Tensor) -> tuple[Self, Tensor]:
        before, sizes = residuals.sizes, self._sizes(residuals.sizes)
        require_sizes(grad, (*before[:2], *sizes))
        if not before[0]:
            return self, grad.new_empty(before)
        asked = self._asked(before, sizes)
        grad = _with_ends(grad, sizes, asked)
        return self, kernels.upsample_backward[self.mode, len(sizes)](grad, asked, before, *self._settings(len(sizes)))

    @override
    def output_shape(self, shape: S) -> Resized[S, Factor, Size]:
        return Resized(shape, self.factor, self.size)

    def _settings(self, count: int) -> tuple[float | None, ...]:
        """What the kernels are told besides sizes: whether corners are aligned, if linear, and the factor of each axis."""
        return (self.align_corners, *self._factors(count)) if self.mode == "linear" else self._factors(count)

    def _factors(self, count: int) -> tuple[float | None, ...]:
        """The factor of each axis, as the kernels take them."""
        return self.factor if isinstance(self.factor, tuple) else (self.factor,) * count

    def _sizes(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The sizes of the spatial axes to make."""
        sides = shape[2:]
        if self.size is not None:
            return self.size if isinstance(self.size, tuple) else (self.size,) * len(sides)
        return tuple(math.floor(side * (factor or 1)) for side, factor in zip(sides, self._factors(len(sides)), strict=True))

    def _asked(self, before: tuple[int, ...], sizes: tuple[int, ...]) -> tuple[int, ...]:
        """The sizes that the kernels are asked for.

        A factor of a little more than 1 may leave a size as it is, and moves pixels all the same. The kernels copy such an
        axis, and not all of them in both directions: they are asked for one pixel more, at its end, which is left out.
        """
        if self.factor is None or self.align_corners:
            return sizes
        kept = zip(before[2:], sizes, self._factors(len(sizes)), strict=True)
        return tuple(size + (side == size and factor != 1) for side, size, factor in kept)

    def _require_pixels(self, x: Tensor) -> None:
        """Raise for an input that the kernels would refuse in other words."""
        setting = self.size if self.factor is None else self.factor
        if isinstance(setting, tuple) and x.ndim != len(setting) + 2:
            raise ValueError(
                f"{self} takes an input of shape (B, C, *spatial) with {len(setting)} spatial axes, as many as it has numbers,"
                f" not {tuple(x.shape)}"
            )
        if not 3 <= x.ndim <= 5:
            raise ValueError(
                f"{self} takes an input of shape (B, C, *spatial) with one to three spatial axes, not {tuple(x.shape)}"
            )
        if 0 in x.shape[1:] or 0 in self._sizes(x.shape):
            raise ValueError(f"{self} leaves no pixel of an input of shape {tuple(x.shape)}")


def _with_ends(x: Tensor, before: tuple[int, ...], after: tuple[int, ...]) -> Tensor:
    """A tensor with zeros at the end of its spatial axes, or less there, so that they are of other sizes."""
    if before == after:
        return x
    changes = [size - old for old, size in zip(before, after, strict=True)]
    return torch.constant_pad_nd(x, [pad for change in reversed(changes) for pad in (0, change)])


# --- Frames ------------------------------------------------------------------------------------------------------------

PadMode = Literal["constant", "reflect", "replicate", "circular"]


@final
@attrs.frozen(eq=False)
class Pad(Layer[Sizes], Generic[Padding]):
    """The input with more elements around it, before and behind each of its last axes.

        constant:   a a a | x y z | a a a
        reflect:    . z y | x y z | y x .       the border itself is not repeated
        replicate:  x x x | x y z | z z z
        circular:   x y z | x y z | x y z

    Its vjp: grad_x is the part of grad where the input is, and for all but the constant the other elements are added to where
    they were taken from.

    Args:
        padding: for each of the last axes, in their order, how many elements to put before it and behind it, as a pair, or as
            one number for both: ((1, 2), 3) puts 1 row above images, 2 below, and 3 columns on either side.
        mode: what they are; "constant" by default.
        value: of the constant; 0 by default.

    Shape:
        (..., H, W) to (..., before + H + behind, before + W + behind) for two pairs

    Residuals:
        The sizes of the input: no bytes.

    Raises:
        TypeError: the padding is not a tuple of integers and pairs of them.
        ValueError: a number is negative; the mode is another, or has another value than 0 for no constant; there are more
            than three axes to reflect or to replicate; or an axis of the input is missing, or too short.

    >>> from fundl import Pad, apply
    >>> apply(Pad(((0, 2),)), torch.tensor([[1.0, 2.0]]))
    tensor([[1., 2., 0., 0.]])
    >>> apply(Pad((2,), mode="reflect"), torch.tensor([[1.0, 2.0, 3.0]]))
    tensor([[3., 2., 1., 2., 3., 2., 1.]])
    """

    takes_integers = True

    padding: tuple[int | tuple[int, int], ...]
    mode: PadMode = attrs.field(default="constant", kw_only=True)
    value: float = attrs.field(default=0.0, kw_only=True)

    def __attrs_post_init__(self) -> None:
        padding: object = self.padding
        if (
            not isinstance(padding, tuple)
            or not padding
            or not all(isinstance(pair, int) or _is_pair(pair) for pair in padding)
        ):
            raise TypeError(
                "Pad's padding is a tuple of a pair of integers, or one integer, for each of the last axes, such as"
                f" ((1, 2), 3), not {self.padding!r}"
            )
        if any(pad < 0 for pair in self._pairs() for pad in pair):
            raise ValueError(f"Pad's padding must be 0 or more, not {self.padding}: to leave elements out is not to pad")
        if self.mode not in get_args(PadMode):
            raise ValueError(f"Pad's mode must be one of {', '.join(map(repr, get_args(PadMode)))}, not {self.mode!r}")
        if self.mode != "constant" and self.value != 0:
            raise ValueError(f"Pad has a value in mode='constant' alone, not in {self.mode!r}")
        if self.mode in {"reflect", "replicate"} and len(padding) > 3:
            raise ValueError(f"Pad takes at most three axes in mode={self.mode!r}, not {len(padding)}")

    @override
    def forward(self, x: Tensor) -> tuple[Tensor, Sizes]:
        residuals = Sizes(x.shape)
        try:
            if self.mode == "constant":
                return torch.constant_pad_nd(x, self._last_first(), self.value), residuals
            pad = kernels.pad_circular if self.mode == "circular" else kernels.pad[self.mode, len(self.padding)]
            framed = pad(self._behind_two(x), self._last_first())
        except RuntimeError as error:
            self._explain(x, error)
            raise
        lead = x.shape[: -len(self.padding)]
        return framed if x.ndim == framed.ndim else framed.reshape(*lead, *framed.shape[2:]), residuals

    @override
    def backward(self, residuals: Sizes, grad: Tensor) -> tuple[Self, Tensor]:
        lead, sides = residuals.sizes[: -len(self.padding)], residuals.sizes[-len(self.padding) :]
        framed_sides = (before + side + behind for side, (before, behind) in zip(sides, self._pairs(), strict=True))
        require_sizes(grad, (*lead, *framed_sides))
        if self.mode == "constant":
            return self, self._without(grad)
        framed = self._behind_two(grad)
        grad_x = in_float32(self._unwrapped if self.mode == "circular" else self._unfolded, framed)
        return self, grad_x if framed is grad else grad_x.reshape(*grad.shape[: -len(self.padding)], *grad_x.shape[2:])

    @override
    def output_shape(self, shape: S) -> Padded[S, Padding]:
        return Padded(shape, self.padding)

    def _pairs(self) -> tuple[tuple[int, int], ...]:
        """How many elements to put before and behind each of the last axes."""
        return tuple((pair, pair) if isinstance(pair, int) else pair for pair in self.padding)

    def _last_first(self) -> list[int]:
        """The padding as the kernels take it: the last axis first."""
        return [pad for pair in reversed(self._pairs()) for pad in pair]

    def _behind_two(self, x: Tensor) -> Tensor:
        """A tensor with exactly two axes before those to pad."""
        before = x.ndim - len(self.padding)
        lead, sides = x.shape[:before], x.shape[before:]
        return x if before == 2 else x.reshape(1, math.prod(lead), *sides)

    def _without(self, grad: Tensor) -> Tensor:
        """The part of a gradient where the input is."""
        for axis, (before, behind) in enumerate(self._pairs(), start=-len(self.padding)):
            if before or behind:
                grad = grad.narrow(axis, before, grad.shape[axis] - before - behind)
        return grad

    def _unfolded(self, grad: Tensor) -> Tensor:
        unfold = kernels.pad_backward[self.mode, len(self.padding)]
        inside = zip(grad.shape[2:], self._pairs(), strict=True)
        sizes = (*grad.shape[:2], *(size - before - behind for size, (before, behind) in inside))
        return unfold(grad, stand_in(Layout(sizes, layout_of(grad).channels_last), grad), self._last_first())

    def _unwrapped(self, grad: Tensor) -> Tensor:
        """The gradient with what was wrapped around each axis added to the other end."""
        grad = grad.clone()
        for axis, (before, behind) in enumerate(self._pairs(), start=-len(self.padding)):
            size = grad.shape[axis] - before - behind
            inside = grad.narrow(axis, before, size)
            if before:
                inside.narrow(axis, size - before, before).add_(grad.narrow(axis, 0, before))
            if behind:
                inside.narrow(axis, 0, behind).add_(grad.narrow(axis, before + size, behind))
            grad = inside
        return grad

    def _explain(self, x: Tensor, error: RuntimeError) -> None:
        """Say in the layer's words what the kernel refused: that an axis is missing, or lacks elements to put beside it."""
        if x.ndim < len(self.padding):
            raise ValueError(
                f"{self} needs an input with at least as many axes as it pads, but the input's shape is {tuple(x.shape)}"
            ) from error
        for size, pair in zip(x.shape[x.ndim - len(self.padding) :], self._pairs(), strict=True):
            least = 1 if self.mode == "replicate" else max(pair) + 1 if self.mode == "reflect" else max(1, *pair)
            if size < least:
                raise ValueError(
                    f"{self} takes its elements from the input, of which an axis is too short: it is of size {size}, and must"
                    f" be of at least {least}; the input's shape is {tuple(x.shape)}"
                ) from error


def _is_pair(pair: object) -> bool:
    return isinstance(pair, tuple) and len(pair) == 2 and all(isinstance(pad, int) for pad in pair)
