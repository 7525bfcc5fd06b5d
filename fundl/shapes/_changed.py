"""Shapes that are made of another by a change of its sizes."""

import math
from collections.abc import Callable, Sequence
from typing import Generic, Literal, TypeAlias

from typing_extensions import TypeVar, TypeVarTuple

from ._computed import Divided, First, Product, Second, Spread, Sum, Window
from ._sizes import AnyShape, AnySize, Axes, Misfit, Shape, Size, Unknown, expect, numbers_of, unknowns

# What the rules of many layers call their input's shape, and its sizes
S = TypeVar("S", bound=Shape)
Batch = TypeVar("Batch")
Steps = TypeVar("Steps")
Channels = TypeVar("Channels")
Depth = TypeVar("Depth")
Height = TypeVar("Height")
Width = TypeVar("Width")
Features = TypeVar("Features", bound=int, covariant=True, default=AnySize)
InFeatures = TypeVar("InFeatures", bound=int, covariant=True, default=AnySize)
OutFeatures = TypeVar("OutFeatures", bound=int, covariant=True, default=AnySize)
Lead = TypeVarTuple("Lead")
Rest = TypeVarTuple("Rest")
Last = TypeVar("Last")

Example = TypeVar("Example")
Settings = TypeVar("Settings")


class Ending(AnyShape, Generic[S, Last]):
    """The shape S with another size of its last axis."""

    def __init__(self, shape: S, last: Size) -> None:
        super().__init__(*shape.trailing(1)[:-1], last)


Value: TypeAlias = "int | float | tuple[Value, ...] | None"
"""What a layer's field says of axes: one number for all of them, or a tuple of one for each; None if that is not known."""


def per_axis(value: Value, count: int) -> tuple[Value, ...]:
    return value if isinstance(value, tuple) else (value,) * count


class Resized(AnyShape, Generic[S, First, Second]):
    """The shape S with all axes behind the channels made larger by a factor, or of another size."""

    def __init__(self, shape: S, factor: Value, size: Value) -> None:
        count = next((len(value) for value in (factor, size) if isinstance(value, tuple)), None)
        batch, channels, *sides = shape.leading(2) if count is None else shape.exactly(2 + count)
        if any(isinstance(side, Unknown) and side.many for side in sides):
            super().__init__(...)
        else:
            values = zip(sides, per_axis(factor, len(sides)), per_axis(size, len(sides)), strict=True)
            super().__init__(batch, channels, *(_resized(*each) for each in values))


def _resized(side: Size, factor: Value, size: Value) -> Size:
    if isinstance(size, int):
        return size
    known = numbers_of((side,))
    return Unknown() if known is None or not isinstance(factor, int | float) else math.floor(known[0] * factor)


class Padded(AnyShape, Generic[S, First]):
    """The shape S with so many elements more at each of the last axes: one number for both ends, or one for each."""

    def __init__(self, shape: S, padding: Value) -> None:
        if isinstance(padding, tuple):
            sizes = shape.trailing(len(padding))
            before = len(sizes) - len(padding)
            pads = map(_both_ends, padding)
            super().__init__(*sizes[:before], *(Sum.of(size, pad) for size, pad in zip(sizes[before:], pads, strict=True)))
        else:
            super().__init__(...)


def _both_ends(pad: Value) -> Size:
    numbers = [number for number in per_axis(pad, 2) if isinstance(number, int)]
    return sum(numbers) if len(numbers) == 2 else Unknown()


class Reshaped(AnyShape, Generic[Batch, Example, *Axes]):
    """A batch of examples of other sizes, one of which may be -1, made of examples of the given axes."""

    def __init__(self, batch: Size, sizes: tuple[Size, ...], *axes: Size) -> None:
        super().__init__(batch, *_reshaped(sizes, axes))


def _reshaped(sizes: tuple[Size, ...], axes: tuple[Size, ...]) -> Sequence[Size]:
    numbers, count = numbers_of(sizes), Product.of(*axes)
    if numbers is None:
        return sizes
    known = math.prod(size for size in numbers if size != -1)
    if not isinstance(count, int):
        return [Unknown() if size == -1 else size for size in numbers]
    rest = count // max(known, 1)
    if known * (rest if -1 in numbers else 1) != count:
        raise Misfit(f"a multiple of {known} elements" if -1 in numbers else f"{known} elements", f"{count} elements")
    return [rest if size == -1 else size for size in numbers]


Setting: TypeAlias = Size | tuple[Size, ...] | Literal["same"]
"""A setting of a layer for the axes that a window slides over: one number for all of them, or one for each."""

_SIDES = ("length", "height and width", "depth, height and width")


def _slid(
    kind: type[Window[Size, Size]] | type[Spread[Size, Size]], axes: tuple[Size, ...], settings: tuple[Setting, ...]
) -> tuple[Size, ...]:
    """What becomes of the axes that windows lie along."""
    each = [_of_each(setting, len(axes)) for setting in settings]
    sides = _SIDES[min(len(axes), len(_SIDES)) - 1]
    return tuple(kind.of(*numbers, sides=sides) for numbers in zip(axes, *each, strict=True))


def _of_each(setting: Setting, axes: int) -> tuple[Size, ...]:
    """A setting for each axis; unknown if it has another number of them, which is an error when the layer is made."""
    if isinstance(setting, tuple):
        return setting if len(setting) == axes else unknowns(axes)
    return unknowns(axes) if setting == "same" else (setting,) * axes


def _same(
    axes: tuple[Size, ...], settings: tuple[Setting, ...], strided: Callable[[Size, Size], Size]
) -> tuple[Size, ...] | None:
    """What becomes of the axes by the padding "same": it depends on the stride alone. None for any other padding."""
    if settings[2:3] != ("same",):
        return None
    strides = _of_each(settings[1], len(axes))
    return tuple(side if stride == 1 else strided(side, stride) for side, stride in zip(axes, strides, strict=True))


def _strides_in(side: Size, stride: Size) -> Size:
    """How many strides it takes through an axis."""
    numbers = numbers_of((side, stride))
    return Unknown() if numbers is None or numbers[1] < 1 else -(-numbers[0] // numbers[1])


class Windows(AnyShape, Generic[Batch, Channels, Settings, *Axes]):
    """A batch of so many channels, after a window has slid over the other axes: each is the `Window` of its size.

    The settings are those of `Window`: kernel size, stride, padding and dilation. By the padding "same", each size is divided
    by the stride, and rounded up.

    >>> Windows(10, 8, ((3, 5), 1, 0, 1), 28, 28)
    Windows(10, 8, 26, 24)
    """

    def __init__(self, batch: Size, channels: Size, settings: tuple[Setting, ...], *axes: Size) -> None:
        super().__init__(batch, channels, *(_same(axes, settings, _strides_in) or _slid(Window, axes, settings)))


class Spreads(AnyShape, Generic[Batch, Channels, Settings, *Axes]):
    """A batch of so many channels, made of windows side by side: each of the other axes is the `Spread` of its size.

    The settings are those of `Spread`: kernel size, stride, padding, dilation and output padding. By the padding "same", each
    size is multiplied by the stride.

    >>> Spreads(10, 8, (2, 2, 0, 1, (0, 1)), 14, 14)
    Spreads(10, 8, 28, 29)
    """

    def __init__(self, batch: Size, channels: Size, settings: tuple[Setting, ...], *axes: Size) -> None:
        super().__init__(batch, channels, *(_same(axes, settings, Product.of) or _slid(Spread, axes, settings)))


class Unfolded(AnyShape, Generic[Batch, Channels, Settings, *Axes]):
    """What a window sees at each of its places, one column each: its elements of all channels, along the last axis the places.

    The settings are those of `Windows`, of which the first is the size of the window.

    >>> Unfolded(10, 3, (2, 2, 0, 1), 28, 28)
    Unfolded(10, 12, 196)
    """

    def __init__(self, batch: Size, channels: Size, settings: tuple[Setting, ...], *axes: Size) -> None:
        kernel = _of_each(settings[0], len(axes))
        super().__init__(batch, Product.of(channels, *kernel), Product.of(*_slid(Window, axes, settings)))


Rows = TypeVar("Rows")
Places = TypeVar("Places")
Sides = TypeVar("Sides")


class Patched(AnyShape, Generic[Batch, Rows, Places, Sides, Settings]):
    """Images of the given height and width, put together of what a window saw at each place: from `Unfolded`, back.

    >>> Patched(10, 12, 196, 28, (2, 2, 0, 1))
    Patched(10, 3, 28, 28)
    """

    def __init__(self, batch: Size, rows: Size, places: Size, sides: Setting, settings: tuple[Setting, ...]) -> None:
        axes, kernel = _of_each(sides, 2), _of_each(settings[0], 2)
        channels = Divided.of(rows, Product.of(*kernel))
        expect("places of the window", places, Product.of(*_slid(Window, axes, settings)))
        super().__init__(batch, channels, *axes)
