"""The shapes that layers give which are applied one after the other, or side by side.

In types and in bodies they are written alike: ``Through[S, *Layers]`` is ``Through(shape, layers)``.
"""

from collections.abc import Callable, Sequence
from types import EllipsisType
from typing import Generic, NamedTuple, Protocol, TypeAlias, cast

from typing_extensions import TypeVarTuple

from ._changed import S
from ._computed import Product, Sum
from ._sizes import AnyShape, Misfit, Place, Shape, Size, Unknown, expect_same

Layers = TypeVarTuple("Layers")


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
    try:
        return _run(shape, model)[0]
    except Misfit as misfit:
        misfit.taker = misfit.taker or Place((), name_of(model))
        raise


def through(shape: AnyShape, layers: Sequence[object], *, start: int = 0) -> AnyShape:
    """What layers that are applied one after the other make of a shape.

    Args:
        shape: of the input.
        layers: layers, or tuples of them.
        start: how many of them to leave out.

    Raises:
        Misfit: a layer does not take what the one before it gives.
    """
    return _through(shape, layers, start)[0]


def _through(shape: AnyShape, layers: Sequence[object], start: int = 0) -> tuple[AnyShape, Place | None]:
    """The shape that comes out, and the last layer that made another one of it."""
    giver: Place | None = None
    at, step_of_giver = 0, ""
    names: Sequence[str] = getattr(layers, "_fields", ())  # of a named tuple
    for index, layer in enumerate(layers[start:], start=start + 1):
        step = names[index - 1] if names else ""
        try:
            output, place = _run(shape, layer)
        except Misfit as misfit:
            misfit.seen_from(index, name_of(layer), giver and giver.inside(at, step_of_giver), step)
            raise
        if place is not None and output is not shape:
            giver, at, step_of_giver = place, index, step
        shape = output
    return shape, giver and giver.inside(at, step_of_giver)


def _run(shape: AnyShape, layer: object) -> tuple[AnyShape, Place | None]:
    if isinstance(layer, tuple) and not isinstance(layer, Stated):
        return _through(shape, layer)
    output = cast("_Ruled", layer).output_shape(shape)
    return output, None if output is shape else Place((), name_of(layer))


class Through(AnyShape, Generic[S, *Layers]):
    """What layers that are applied one after the other make of the shape S."""

    def __init__(self, shape: S, layers: tuple[*Layers]) -> None:
        super().__init__(*_through(shape, layers)[0].sizes)


class Kept(AnyShape, Generic[S, *Layers]):
    """The shape S, which layers that are applied one after the other must keep."""

    def __init__(self, shape: S, layers: tuple[*Layers]) -> None:
        output, giver = _through(shape, layers)
        try:
            expect_same(output, shape)
        except Misfit as misfit:
            misfit.giver = giver
            raise
        super().__init__(*shape.sizes)


class Folded(AnyShape, Generic[S, *Layers]):
    """What layers make of the shape S, whose first two axes are one to them: (B, T, ...) is (B T, ...), and back."""

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


class Joined(AnyShape, Generic[S, *Layers]):
    """What branches make of the shape S, each for itself, as a sum or put one behind the other along an axis.

    Types do not tell which: fundl_mypy sees it where the branches are put together.
    """

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
            expect_same(output, outputs[0][0], but_for=but_for)
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
