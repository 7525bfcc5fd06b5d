"""Sizes of axes, known or not, the shapes that they make up, and what is said where one does not fit."""

from types import EllipsisType
from typing import Any, Generic, NamedTuple, TypeAlias, final

from typing_extensions import TypeVarTuple, Unpack, override

AnySize: TypeAlias = Any  # type: ignore[explicit-any]  # a size fits all others where it is not known, which Any alone does
"""The default of a type variable that stands for a size: so ``Linear`` without sizes means a layer of any."""

Axes = TypeVarTuple("Axes", default=Unpack[tuple[AnySize, ...]])


@final
class Unknown:
    """A size that is not known, or not yet; if `many`, the sizes of any number of axes."""

    def __init__(self, *, many: bool = False) -> None:
        self.many: bool = many
        self.found: tuple[Size, ...] | None = None

    @override
    def __repr__(self) -> str:
        return "..." if self.many else "?"


Size: TypeAlias = int | Unknown


def unknowns(count: int) -> tuple[Unknown, ...]:
    return tuple(Unknown() for _ in range(count))


def as_found(sizes: tuple[Size, ...]) -> tuple[Size, ...]:
    """The sizes as they are known by now: what was found in the place of the unknown."""
    for index, size in enumerate(sizes):
        if isinstance(size, Unknown) and size.found is not None:
            return (*sizes[:index], *as_found(size.found), *as_found(sizes[index + 1 :]))
    return sizes


def numbers_of(sizes: tuple[Size, ...]) -> tuple[int, ...] | None:
    """The sizes as numbers, if all of them are known."""
    found = as_found(sizes)
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
    if size is expected or (isinstance(size, int) and size == expected):  # most are numbers that fit
        return
    (given,), (wanted,) = as_found((size,)), as_found((expected,))
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


class Place(NamedTuple):
    """Where a layer is, counted from 1: (3, 1) is the first layer inside the third; and what messages call each step."""

    path: tuple[int, ...]
    name: str
    steps: tuple[str, ...] = ()

    def inside(self, index: int, step: str = "") -> "Place":
        """The same place, as it is seen from outside of the part at an index, which may have a name."""
        return Place((index, *self.path), self.name, (step or str(index), *self.steps))

    @override
    def __str__(self) -> str:
        return f"layer {'.'.join(self.steps)} ({self.name})" if self.path else self.name


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

    def seen_from(self, index: int, name: str, giver: Place | None = None, step: str = "") -> None:
        """Tell the places as they are seen from outside of the layer at an index, which takes what the giver gives."""
        self.taker = (self.taker or Place((), name)).inside(index, step)
        self.giver = self.giver.inside(index, step) if isinstance(self.giver, Place) else self.giver or giver

    @override
    def __str__(self) -> str:
        giver = f"{self.giver} gives" if isinstance(self.giver, Place) else self.giver or "the input has"
        return f"{self.taker or 'the layer'} expects {self.expected} but {giver} {self.given}"


Misfit.__module__ = "fundl.shapes"  # where users find it: tracebacks say so


class Shape(Generic[*Axes]):
    """The sizes of a tensor's axes, as far as they are known.

    Args:
        sizes: a number for each axis, or None if it is not known; ``...`` in front stands for any number of axes. Sizes
            before such axes could be sizes of these, and are dropped.

    >>> Shape(..., 25)
    Shape(..., 25)
    >>> Shape(..., 25).trailing(2)
    (..., ?, 25)
    """

    def __init__(self, *sizes: Size | EllipsisType | None) -> None:
        found: list[Size] = []
        for size in sizes:
            if isinstance(size, int):
                found.append(size)
            elif not isinstance(size, Unknown | EllipsisType | None):
                raise TypeError(f"Shape takes the size of each axis, an int, None or ..., such as Shape(10, 2), not {size!r}")
            elif size is ... or (size is not None and size.many and found):
                found = [Unknown(many=True)]
            else:
                found.append(Unknown() if size is None else size)
        self._sizes: tuple[Size, ...] = tuple(found)

    @property
    def sizes(self) -> tuple[Size, ...]:
        """The sizes as they are known by now; only the first may stand for any number of axes."""
        return as_found(self._sizes)

    @property
    def front(self) -> Unknown | None:
        """What stands for any number of axes in front, if there is such."""
        return _front(self.sizes)

    def trailing(self, count: int) -> tuple[Size, ...]:
        """The sizes, of which the last `count` are of one axis each: ``*lead, features = shape.trailing(1)``."""
        sizes = self.sizes
        front = _front(sizes)
        missing = count - len(sizes) + (front is not None)
        if missing <= 0:
            return sizes
        if front is None:
            raise Misfit(f"at least {_axes(count)}", _axes(len(sizes)))
        front.found = (Unknown(many=True), *unknowns(missing))
        return self.sizes

    def leading(self, count: int) -> tuple[Size, ...]:
        """The sizes, of which the first `count` are of one axis each: ``batch, *rest = shape.leading(1)``."""
        if self.front is not None:  # what is known may be among the first, or behind them
            return (*unknowns(count), Unknown(many=True))
        return self.trailing(count)

    def exactly(self, count: int) -> tuple[Size, ...]:
        """The sizes, which must be so many: ``batch, channels, height, width = shape.exactly(4)``."""
        sizes = self.sizes
        front = _front(sizes)
        known = len(sizes) - (front is not None)
        if known > count or (known < count and front is None):
            raise Misfit(_axes(count), _axes(known))
        if front is not None:
            front.found = unknowns(count - known)
        return self.sizes

    @override
    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(map(repr, self.sizes))})"


def _front(sizes: tuple[Size, ...]) -> Unknown | None:
    first = sizes[0] if sizes else 0
    return first if isinstance(first, Unknown) and first.many else None


AnyShape: TypeAlias = Shape[*tuple[AnySize, ...]]
"""A shape about which nothing is said."""


def expect_same(given: AnyShape, expected: AnyShape, *, but_for: int = 0) -> None:
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
