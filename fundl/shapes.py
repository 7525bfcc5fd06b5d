"""What layers say about sizes: the shapes that they take, and the shapes that they give for them.

A layer's rule is its method `output_shape`, the forward of shapes. Its types say the same as its body:

    def output_shape(self, shape: Shape[*Lead, InFeatures]) -> Shape[*Lead, OutFeatures]:
        *lead, features = shape.trailing(1)
        expect("features", features, self.weight.shape[1])
        return Shape(*lead, self.weight.shape[0])

The bodies serve at run time: whoever composes or initialises a model runs the rules of its layers, one after the other. The
types serve before anything runs: fundl_mypy, the plugin for mypy, reads them, and computes with the classes of this file,
which therefore needs no torch.

A size that nobody has told is unknown, and fits. A rule that expects a number of it finds it out: so layers that see the same
input are held against each other.
"""

import math
from collections.abc import Callable, Sequence
from types import EllipsisType
from typing import Any, Generic, Literal, NamedTuple, Protocol, TypeAlias, cast, final

from typing_extensions import TypeVar, TypeVarTuple, Unpack, override

AnySize: TypeAlias = Any  # type: ignore[explicit-any]  # a size fits all others where it is not known, which Any alone does
"""The default of a type variable that stands for a size: so ``Linear`` without sizes means a layer of any."""

Axes = TypeVarTuple("Axes", default=Unpack[tuple[AnySize, ...]])
Layers = TypeVarTuple("Layers")
S = TypeVar("S", bound="Shape")
Last = TypeVar("Last")


# --- Sizes -------------------------------------------------------------------------------------------------------------


@final
class Unknown:
    """A size that is not known, or not yet; if `many`, the sizes of any number of axes."""

    __slots__ = ("found", "many")

    def __init__(self, *, many: bool = False) -> None:
        self.many: bool = many
        self.found: tuple[Size, ...] | None = None

    @override
    def __repr__(self) -> str:
        return "..." if self.many else "?"


Size: TypeAlias = int | Unknown


def _unknowns(count: int) -> tuple[Unknown, ...]:
    return tuple(Unknown() for _ in range(count))


def _found(sizes: tuple[Size, ...]) -> tuple[Size, ...]:
    """The sizes as they are known by now: what was found in the place of the unknown."""
    for index, size in enumerate(sizes):
        if isinstance(size, Unknown) and size.found is not None:
            return (*sizes[:index], *_found(size.found), *_found(sizes[index + 1 :]))
    return sizes


def _known(sizes: tuple[Size, ...]) -> tuple[int, ...] | None:
    """The sizes as numbers, if all of them are known."""
    found = _found(sizes)
    numbers = tuple(size for size in found if isinstance(size, int))
    return numbers if len(numbers) == len(found) else None


def expect(noun: str, size: Size, expected: Size) -> None:
    """Raise a misfit unless a size is, or may be, the expected one.

    Args:
        noun: what an axis counts, in the plural, such as "features"; or "axis 2" where it has no name.
        size: what is given.
        expected: what the layer expects.

    >>> expect("features", 25, 24)
    Traceback (most recent call last):
    fundl.shapes.Misfit: the layer expects 24 features but the input has 25 features
    """
    (given,), (wanted,) = _found((size,)), _found((expected,))
    if isinstance(given, Unknown):
        if given is not wanted:
            given.found = (wanted,)
    elif isinstance(wanted, Unknown):
        wanted.found = (given,)
    elif given != wanted:
        raise Misfit(_amount(wanted, noun), _amount(given, noun))


def _amount(count: int, noun: str) -> str:
    if noun.startswith("axis "):
        return f"size {count} along {noun}"
    return f"{count} {noun.removesuffix('s') if count == 1 else noun}"


def _axes(count: int) -> str:
    return "1 axis" if count == 1 else f"{count} axes"


# --- Misfits -----------------------------------------------------------------------------------------------------------


class Place(NamedTuple):
    """Where a layer is, counted from 1: (3, 1) is the first layer inside the third."""

    path: tuple[int, ...]
    name: str

    def inside(self, index: int) -> "Place":
        """The same place, as it is seen from outside of the part at an index."""
        return Place((index, *self.path), self.name)

    @override
    def __str__(self) -> str:
        return f"layer {'.'.join(map(str, self.path))} ({self.name})" if self.path else self.name


class Misfit(ValueError):  # noqa: N818  # what it is
    """A layer that does not take what it is given.

    Args:
        expected: what the layer expects: "24 features".
        given: what it is given: "25 features".
        taker: the layer, if it is inside the one whose rule is run.
        giver: who gives, if it is inside the layer whose rule is run: a layer, or how a sentence would go on.
    """

    def __init__(self, expected: str, given: str, *, taker: Place | None = None, giver: Place | str | None = None) -> None:
        super().__init__(expected, given)
        self.expected = expected
        self.given = given
        self.taker = taker
        self.giver = giver

    @property
    def path(self) -> tuple[int, ...]:
        """Where the layer is that does not take what it is given."""
        return self.taker.path if self.taker is not None else ()

    def seen_from(self, index: int, name: str, giver: Place | None = None) -> None:
        """Tell the places as they are seen from outside of the layer at an index, which takes what the giver gives."""
        self.taker = (self.taker or Place((), name)).inside(index)
        self.giver = self.giver.inside(index) if isinstance(self.giver, Place) else self.giver or giver

    @override
    def __str__(self) -> str:
        giver = f"{self.giver} gives" if isinstance(self.giver, Place) else self.giver or "the input has"
        return f"{self.taker or 'the layer'} expects {self.expected} but {giver} {self.given}"


# --- Shapes ------------------------------------------------------------------------------------------------------------


class Shape(Generic[*Axes]):
    """The sizes of a tensor's axes, as far as they are known.

    Args:
        sizes: a number for each axis, or None if it is not known; ``...`` in front stands for any number of axes. What stands
            before such axes cannot be told apart from them, and is forgotten.

    >>> Shape(..., 25)
    Shape(..., 25)
    >>> Shape(..., 25).trailing(2)
    (..., ?, 25)
    """

    __slots__ = ("_sizes",)

    def __init__(self, *sizes: Size | EllipsisType | None) -> None:
        self._sizes: tuple[Size, ...] = ()
        for size in sizes:
            if size is ... or (isinstance(size, Unknown) and size.many and self._sizes):
                self._sizes = (Unknown(many=True),)
            else:
                self._sizes = (*self._sizes, Unknown() if size is None else size)

    @property
    def sizes(self) -> tuple[Size, ...]:
        """The sizes as they are known by now; only the first may stand for any number of axes."""
        return _found(self._sizes)

    @property
    def front(self) -> Unknown | None:
        """What stands for any number of axes in front, if there is such."""
        sizes = self.sizes
        first = sizes[0] if sizes else 0
        return first if isinstance(first, Unknown) and first.many else None

    def trailing(self, count: int) -> tuple[Size, ...]:
        """The sizes, of which the last `count` are of one axis each: ``*lead, features = shape.trailing(1)``."""
        sizes, front = self.sizes, self.front
        missing = count - len(sizes) + (front is not None)
        if missing <= 0:
            return sizes
        if front is None:
            raise Misfit(f"at least {_axes(count)}", _axes(len(sizes)))
        front.found = (Unknown(many=True), *_unknowns(missing))
        return self.sizes

    def leading(self, count: int) -> tuple[Size, ...]:
        """The sizes, of which the first `count` are of one axis each: ``batch, *rest = shape.leading(1)``."""
        if self.front is not None:  # what is known may be among the first, or behind them
            return (*_unknowns(count), Unknown(many=True))
        return self.trailing(count)

    def exactly(self, count: int) -> tuple[Size, ...]:
        """The sizes, which must be so many: ``batch, channels, height, width = shape.exactly(4)``."""
        sizes, front = self.sizes, self.front
        known = len(sizes) - (front is not None)
        if known > count or (known < count and front is None):
            raise Misfit(_axes(count), _axes(known))
        if front is not None:
            front.found = _unknowns(count - known)
        return self.sizes

    @override
    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(map(repr, self.sizes))})"


AnyShape: TypeAlias = Shape[*tuple[AnySize, ...]]
"""A shape about which nothing is said."""


def _expect_same(given: AnyShape, expected: AnyShape, *, but_for: int = 0) -> None:
    """Raise a misfit unless two shapes are, or may be, the same, apart from one axis, counted from 1 at the end."""
    if expected.front is None:
        given.exactly(len(expected.sizes))
    else:
        given.trailing(len(expected.sizes) - 1)
        if given.front is None:
            expected.exactly(len(given.sizes))
        else:
            expected.trailing(len(given.sizes) - 1)
    pairs = list(zip(given.sizes, expected.sizes, strict=True))
    for index, (size, wanted) in enumerate(reversed(pairs), start=1):
        if index != but_for and pairs[-index][0] is not given.front:
            expect(_noun(index, None if given.front else len(pairs)), size, wanted)


def _noun(index: int, axes: int | None) -> str:
    """What an axis counts, by its place, counted from 1 at the end of so many axes: the last of up to three are features."""
    if index == 1 and (axes is None or axes <= 3):
        return "features"
    return f"axis {-index if axes is None else axes - index}"


# --- Sizes that are computed -------------------------------------------------------------------------------------------

# Each of these stands in the types of a rule with its operands: Product[Height, Width]. Its function `of` is the same for
# the sizes themselves, in the rule's body. What is computed from the unknown is unknown.

First = TypeVar("First")
Second = TypeVar("Second")


class Sum(Generic[*Axes]):
    """The sum of sizes."""

    @staticmethod
    def of(*sizes: Size) -> Size:
        """The sum of the sizes.

        >>> Sum.of(3, 4, 1)
        8
        """
        numbers = _known(sizes)
        return Unknown() if numbers is None else sum(numbers)


class Product(Generic[*Axes]):
    """The product of sizes."""

    @staticmethod
    def of(*sizes: Size) -> Size:
        """The product of the sizes.

        >>> Product.of(8, 26, 26)
        5408
        """
        numbers = _known(sizes)
        return Unknown() if numbers is None else math.prod(numbers)


class Difference(Generic[First, Second]):
    """What is left of a size when another is taken away."""

    @staticmethod
    def of(first: Size, second: Size) -> Size:
        """The first size minus the second.

        >>> Difference.of(28, 2)
        26
        """
        numbers = _known((first, second))
        return Unknown() if numbers is None else numbers[0] - numbers[1]


class Quotient(Generic[First, Second]):
    """How many times a size has room for another."""

    @staticmethod
    def of(first: Size, second: Size) -> Size:
        """The first size divided by the second, rounded down.

        >>> Quotient.of(29, 2)
        14
        """
        numbers = _known((first, second))
        return Unknown() if numbers is None or numbers[1] == 0 else numbers[0] // numbers[1]


class Divided(Generic[First, Second]):
    """A size divided into equal parts."""

    @staticmethod
    def of(first: Size, second: Size) -> Size:
        """The first size divided by the second, which must divide it.

        Raises:
            Misfit: it does not.

        >>> Divided.of(28, 2)
        14
        """
        numbers = _known((first, second))
        if numbers is None or numbers[1] == 0:
            return Unknown()
        if numbers[0] % numbers[1]:
            raise Misfit(f"a size that is a multiple of {numbers[1]}", f"one of {numbers[0]}")
        return numbers[0] // numbers[1]


Length = TypeVar("Length")
Kernel = TypeVar("Kernel")
Stride = TypeVar("Stride", default=Literal[1])
Padding = TypeVar("Padding", default=Literal[0])
Dilation = TypeVar("Dilation", default=Literal[1])
CeilMode = TypeVar("CeilMode", default=Literal[False])


class Window(Generic[Length, Kernel, Stride, Padding, Dilation, CeilMode]):
    """How many places a sliding window takes: what convolution and pooling make of a height or a width."""

    @staticmethod
    def of(  # noqa: PLR0917  # its operands stand in types as well, which have no names there
        length: Size,
        kernel: Size,
        stride: Size = 1,
        padding: Size = 0,
        dilation: Size = 1,
        ceil_mode: Size = False,
        *,
        sides: str = "height and width",
    ) -> Size:
        """floor((length + 2 padding - dilation (kernel - 1) - 1) / stride) + 1.

        Args:
            length: of the axis.
            kernel: how many elements the window sees.
            stride: from one place of the window to the next.
            padding: elements that are put before the axis, and as many behind it.
            dilation: from one element that the window sees to the next.
            ceil_mode: whether the last place may reach beyond the padding, as long as it starts before it: ceil, not floor.
            sides: what a message calls the axes that a window slides over.

        Raises:
            Misfit: there is no place for the window.

        >>> Window.of(28, 3), Window.of(28, 2, 2), Window.of(28, 3, 2, 1), Window.of(29, 2, 2, ceil_mode=True)
        (26, 14, 14, 15)
        """
        numbers = _known((length, kernel, stride, padding, dilation, ceil_mode))
        if numbers is None or numbers[2] < 1:
            return Unknown()
        known, seen, step, pad, spread, beyond = numbers
        span = spread * (seen - 1) + 1
        least = span - 2 * pad - (step - 1) * bool(beyond)
        if known < least:
            raise Misfit(f"a {sides} of at least {least}", f"one of {known}")
        if not beyond:
            return (known + 2 * pad - span) // step + 1
        places = -((span - known - 2 * pad) // step) + 1
        return places - ((places - 1) * step >= known + pad)


OutputPadding = TypeVar("OutputPadding", default=Literal[0])


class Spread(Generic[Length, Kernel, Stride, Padding, Dilation, OutputPadding]):
    """How far windows reach that are put side by side, one for each element: what a transposed convolution makes of a side.

    It is the length which has so many places for a `Window`; of several such, the shortest, and longer by the output padding.
    """

    @staticmethod
    def of(  # noqa: PLR0917  # its operands stand in types as well, which have no names there
        length: Size,
        kernel: Size,
        stride: Size = 1,
        padding: Size = 0,
        dilation: Size = 1,
        output_padding: Size = 0,
        *,
        sides: str = "height and width",
    ) -> Size:
        """(length - 1) stride - 2 padding + dilation (kernel - 1) + 1 + output_padding.

        Args:
            length: of the axis: how many windows there are.
            kernel: how many elements each window has.
            stride: from one window to the next.
            padding: elements that are cut off in front, and as many behind.
            dilation: from one element of a window to the next.
            output_padding: elements that are put behind.
            sides: what a message calls the axes that the windows lie along.

        Raises:
            Misfit: nothing is left.

        >>> Spread.of(26, 3), Spread.of(14, 2, 2), Spread.of(14, 3, 2, 1), Spread.of(14, 3, 2, 1, output_padding=1)
        (28, 28, 27, 28)
        """
        numbers = _known((length, kernel, stride, padding, dilation, output_padding))
        if numbers is None or numbers[2] < 1:
            return Unknown()
        known, seen, step, pad, spread, more = numbers
        span = spread * (seen - 1) + 1 + more - 2 * pad
        least = 1 + max(0, -((span - 1) // step))
        if known < least:
            raise Misfit(f"a {sides} of at least {least}", f"one of {known}")
        return (known - 1) * step + span


# --- Shapes whose sizes all change alike -------------------------------------------------------------------------------

Value: TypeAlias = "int | float | tuple[Value, ...] | None"
"""What a layer's field says of axes: one number for all of them, or a tuple of one for each; None if that is not known."""


def _per_axis(value: Value, count: int) -> tuple[Value, ...]:
    return value if isinstance(value, tuple) else (value,) * count


class Resized(AnyShape, Generic[S, First, Second]):
    """The shape S with all axes behind the channels made larger by a factor, or of another size."""

    __slots__ = ()

    def __init__(self, shape: S, factor: Value, size: Value) -> None:
        count = next((len(value) for value in (factor, size) if isinstance(value, tuple)), None)
        batch, channels, *sides = shape.leading(2) if count is None else shape.exactly(2 + count)
        if any(isinstance(side, Unknown) and side.many for side in sides):
            super().__init__(...)
        else:
            values = zip(sides, _per_axis(factor, len(sides)), _per_axis(size, len(sides)), strict=True)
            super().__init__(batch, channels, *(_resized(*each) for each in values))


def _resized(side: Size, factor: Value, size: Value) -> Size:
    if isinstance(size, int):
        return size
    known = _known((side,))
    return Unknown() if known is None or not isinstance(factor, int | float) else math.floor(known[0] * factor)


class Padded(AnyShape, Generic[S, First]):
    """The shape S with so many elements more at each of the last axes: one number for both ends, or one for each."""

    __slots__ = ()

    def __init__(self, shape: S, padding: Value) -> None:
        if isinstance(padding, tuple):
            sizes = shape.trailing(len(padding))
            before = len(sizes) - len(padding)
            pads = map(_both_ends, padding)
            super().__init__(*sizes[:before], *(Sum.of(size, pad) for size, pad in zip(sizes[before:], pads, strict=True)))
        else:
            super().__init__(...)


def _both_ends(pad: Value) -> Size:
    numbers = [number for number in _per_axis(pad, 2) if isinstance(number, int)]
    return sum(numbers) if len(numbers) == 2 else Unknown()


# --- Layers inside layers ----------------------------------------------------------------------------------------------

# The shapes that layers made of layers give. In types and in bodies they are written alike: Through[S, *Layers] is
# Through(shape, layers).


class _Ruled(Protocol):
    """What every layer is, as far as shapes go."""

    def output_shape(self, shape: AnyShape, /) -> AnyShape: ...


class Stated(NamedTuple):
    """A layer of which no more is known than its name and its rule."""

    name: str
    output_shape: Callable[[AnyShape], AnyShape]


def name_of(layer: object) -> str:
    """What messages call a layer: the name of its class."""
    return layer.name if isinstance(layer, Stated) else type(layer).__name__


def of_model(shape: AnyShape, model: object) -> AnyShape:
    """What a layer, or a tuple of them, makes of a shape.

    Raises:
        Misfit: a layer does not take what it is given.
    """
    if isinstance(model, tuple) and not isinstance(model, Stated):
        return through(shape, model)
    try:
        return _run(shape, model)[0]
    except Misfit as misfit:
        misfit.taker = misfit.taker or Place((), name_of(model))
        raise


def through(shape: AnyShape, layers: Sequence[object], *, first: int = 1) -> AnyShape:
    """What layers that are applied one after the other make of a shape.

    Args:
        shape: of the input.
        layers: layers, or tuples of them.
        first: the number of the first of them, for messages.

    Raises:
        Misfit: a layer does not take what the one before it gives.
    """
    return _through(shape, layers, first)[0]


def _through(shape: AnyShape, layers: Sequence[object], first: int = 1) -> tuple[AnyShape, Place | None]:
    """The shape that comes out, and the last layer that made another one of it."""
    giver: Place | None = None
    for index, layer in enumerate(layers, start=first):
        try:
            output, place = _run(shape, layer)
        except Misfit as misfit:
            misfit.seen_from(index, name_of(layer), giver)
            raise
        if output is not shape and place is not None:
            giver = place.inside(index)
        shape = output
    return shape, giver


def _run(shape: AnyShape, layer: object) -> tuple[AnyShape, Place | None]:
    if isinstance(layer, tuple) and not isinstance(layer, Stated):
        return _through(shape, layer)
    return cast("_Ruled", layer).output_shape(shape), Place((), name_of(layer))


class Through(AnyShape, Generic[S, *Layers]):
    """What layers that are applied one after the other make of the shape S."""

    __slots__ = ()

    def __init__(self, shape: S, layers: tuple[*Layers]) -> None:
        super().__init__(*_through(shape, layers)[0].sizes)


class Kept(AnyShape, Generic[S, *Layers]):
    """The shape S, which layers that are applied one after the other must keep."""

    __slots__ = ()

    def __init__(self, shape: S, layers: tuple[*Layers]) -> None:
        output, giver = _through(shape, layers)
        try:
            _expect_same(output, shape)
        except Misfit as misfit:
            misfit.giver = giver
            raise
        super().__init__(*shape.sizes)


class Folded(AnyShape, Generic[S, *Layers]):
    """What layers make of the shape S, whose first two axes are one to them: (B, T, ...) is (B T, ...), and back."""

    __slots__ = ()

    def __init__(self, shape: S, layers: tuple[*Layers]) -> None:
        if shape.front is not None:  # one axis more or less makes no difference to any number of axes
            first: Sequence[Size] = (Unknown(many=True),)
            inside = Shape(*shape.sizes)
        else:
            batch, steps, *rest = shape.leading(2)
            first, inside = (batch, steps), Shape(Product.of(batch, steps), *rest)
        output = _through(inside, layers)[0]
        if output.front is not None:
            super().__init__(*output.sizes)
        else:
            super().__init__(*first, *output.leading(1)[1:])


class Ending(AnyShape, Generic[S, Last]):
    """The shape S with another size of its last axis."""

    __slots__ = ()

    def __init__(self, shape: S, last: Size) -> None:
        super().__init__(*shape.trailing(1)[:-1], last)


class Joined(AnyShape, Generic[S, *Layers]):
    """What branches make of the shape S, each for itself, as a sum or put one behind the other along an axis.

    Types do not tell which: fundl_mypy sees it where the branches are put together.
    """

    __slots__ = ()

    def __init__(self, shape: S, branches: tuple[*Layers], *, join: str | None, axis: int | None) -> None:
        outputs = _outputs(shape, branches)
        sizes: Sequence[Size | EllipsisType] = [...]
        if join == "sum":
            _expect_alike(outputs)
            sizes = outputs[0][0].sizes
        elif join == "concatenate" and axis is not None:
            sizes = _concatenated(outputs, axis)
        super().__init__(*sizes)


_Output: TypeAlias = tuple[AnyShape, Place | None]


def _outputs(shape: AnyShape, branches: Sequence[object]) -> list[_Output]:
    """What each branch makes of the same shape, and where it comes from."""
    outputs: list[_Output] = []
    known = shape.sizes
    for index, branch in enumerate(branches, start=1):
        try:
            output, place = _run(shape, branch)
            outputs.append((output, (place or Place((), name_of(branch))).inside(index)))
        except Misfit as misfit:
            if misfit.giver is None and shape.sizes != known and _takes(branch, known):
                misfit.giver = "the branches before it expect"
            misfit.seen_from(index, name_of(branch))
            raise
    return outputs


def _takes(layer: object, sizes: Sequence[Size]) -> bool:
    """Whether a layer takes the sizes, whatever was found of them since."""
    try:
        _run(Shape(*((... if size.many else None) if isinstance(size, Unknown) else size for size in sizes)), layer)
    except Misfit:
        return False
    return True


def _expect_alike(outputs: Sequence[_Output], *, but_for: int = 0) -> None:
    for output, place in outputs:
        try:
            _expect_same(output, outputs[0][0], but_for=but_for)
        except Misfit as misfit:
            misfit.giver = place
            raise


def _concatenated(outputs: Sequence[_Output], axis: int) -> Sequence[Size | EllipsisType]:
    if axis >= 0 and any(output.front is not None for output, _ in outputs):
        return [...]  # how far the axis is from the end is not known
    from_end = -axis if axis < 0 else len(outputs[0][0].sizes) - axis
    _expect_alike(outputs, but_for=from_end)
    rows = [output.trailing(from_end) for output, _ in outputs]
    after = len(rows[0]) - from_end + 1
    return [*rows[0][: after - 1], Sum.of(*(row[-from_end] for row in rows)), *rows[0][after:]]


Batch = TypeVar("Batch")
Example = TypeVar("Example")


class Reshaped(AnyShape, Generic[Batch, Example, *Axes]):
    """A batch of examples of other sizes, one of which may be -1, made of examples of the given axes."""

    __slots__ = ()

    def __init__(self, batch: Size, sizes: tuple[Size, ...], *axes: Size) -> None:
        super().__init__(batch, *_reshaped(sizes, axes))


def _reshaped(sizes: tuple[Size, ...], axes: tuple[Size, ...]) -> Sequence[Size]:
    numbers, count = _known(sizes), Product.of(*axes)
    if numbers is None:
        return sizes
    known = math.prod(size for size in numbers if size != -1)
    if not isinstance(count, int):
        return [Unknown() if size == -1 else size for size in numbers]
    rest = count // max(known, 1)
    if known * (rest if -1 in numbers else 1) != count:
        raise Misfit(f"a multiple of {known} elements" if -1 in numbers else f"{known} elements", f"{count} elements")
    return [rest if size == -1 else size for size in numbers]


# --- Windows over several axes -----------------------------------------------------------------------------------------

Channels = TypeVar("Channels")
Settings = TypeVar("Settings")

Setting: TypeAlias = Size | tuple[Size, ...] | Literal["same"]
"""What a layer is told about the axes that a window slides over: one number for all of them, or one for each."""

_SIDES = ("length", "height and width", "depth, height and width")


def _along(axes: tuple[Size, ...], settings: tuple[Setting, ...]) -> tuple[str, Sequence[tuple[Size, ...]]]:
    """What the axes are called, and the size and the settings of each."""
    each = [_of_each(setting, len(axes)) for setting in settings]
    return _SIDES[min(len(axes), len(_SIDES)) - 1], list(zip(axes, *each, strict=True))


def _of_each(setting: Setting, axes: int) -> tuple[Size, ...]:
    """A setting as it is for each axis; unknown, if it is not one for each, which whoever makes the layer is told."""
    if isinstance(setting, tuple):
        return setting if len(setting) == axes else _unknowns(axes)
    return _unknowns(axes) if setting == "same" else (setting,) * axes


class Windows(AnyShape, Generic[Batch, Channels, Settings, *Axes]):
    """A batch of so many channels, after a window has slid over the other axes: each is the `Window` of its size.

    The settings are those of `Window`: kernel size, stride, padding and dilation. The padding "same" keeps the sizes.

    >>> Windows(10, 8, ((3, 5), 1, 0, 1), 28, 28)
    Windows(10, 8, 26, 24)
    """

    __slots__ = ()

    def __init__(self, batch: Size, channels: Size, settings: tuple[Setting, ...], *axes: Size) -> None:
        if settings[2:3] != ("same",):
            sides, numbers = _along(axes, settings)
            axes = tuple(Window.of(*each, sides=sides) for each in numbers)
        super().__init__(batch, channels, *axes)


class Spreads(AnyShape, Generic[Batch, Channels, Settings, *Axes]):
    """A batch of so many channels, made of windows side by side: each of the other axes is the `Spread` of its size.

    The settings are those of `Spread`: kernel size, stride, padding, dilation and output padding.

    >>> Spreads(10, 8, (2, 2, 0, 1, (0, 1)), 14, 14)
    Spreads(10, 8, 28, 29)
    """

    __slots__ = ()

    def __init__(self, batch: Size, channels: Size, settings: tuple[Setting, ...], *axes: Size) -> None:
        sides, numbers = _along(axes, settings)
        super().__init__(batch, channels, *(Spread.of(*each, sides=sides) for each in numbers))
