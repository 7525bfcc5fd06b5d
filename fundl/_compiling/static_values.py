"""Static values: what is no tensor, and is a part of what is compiled. Two are alike if no program can tell them apart.

To Python 2, 2.0 and True are equal, and so are 0.0 and -0.0: but a program computes other things with them. A NaN is equal to
nothing, not to itself either, but the same one each time.
"""

import dataclasses
from collections.abc import Callable, Hashable, Iterator
from typing import final

import attrs
from torch import Tensor
from typing_extensions import override


@final
class StaticValue:
    """A static value: equal to those of the same types and numbers, to the bit.

    Args:
        value: the value.
        path: where it is, for messages.

    Raises:
        TypeError: it cannot be hashed, or is a tensor.
    """

    __slots__ = ("_exact", "value")

    def __init__(self, value: object, path: str = "a static value") -> None:
        if isinstance(value, Tensor):
            raise TypeError(
                f"{path} is a tensor, which is no static value: its numbers are not a part of what is compiled; leave it out of"
                " static, or give a number"
            )
        try:
            hash(value)
        except TypeError as error:
            raise TypeError(
                f"{path} is {value!r}, of type {type(value).__name__}, which cannot be hashed ({error}): what is no tensor is a"
                " part of what is compiled, and is looked up by its hash; take a tuple for a list, a frozen record for a dict"
            ) from None
        self.value: object = value
        self._exact = _exact(value)

    @override
    def __eq__(self, other: object) -> bool:
        return isinstance(other, StaticValue) and self._exact == other._exact

    @override
    def __hash__(self) -> int:
        return hash(self._exact)

    @override
    def __repr__(self) -> str:
        return repr(self.value)

    @override
    def __reduce__(self) -> "tuple[type[StaticValue], tuple[object]]":
        return StaticValue, (self.value,)


def _exact(value: object) -> Hashable:
    """Something that is equal only for values that no program can tell apart."""
    match value:
        case float():
            return type(value), float(value).hex()
        case complex():
            return type(value), value.real.hex(), value.imag.hex()
        case tuple():
            return (type(value), *map(_exact, value))
        case frozenset():
            return type(value), frozenset(map(_exact, value))
        case _:
            return (type(value), value, *map(_exact, _compared(value)))  # type: ignore[arg-type]  # a class can be hashed


def _compared(value: object) -> Iterator[object]:
    """The fields that a record is compared by."""
    cls = type(value)
    if cls.__eq__ is object.__eq__:
        return
    if attrs.has(cls):
        yield from (getattr(value, field.name) for field in attrs.fields(cls) if field.eq)
    elif dataclasses.is_dataclass(cls):
        yield from (getattr(value, field.name) for field in dataclasses.fields(cls) if field.compare)


def differs_from(value: object) -> Callable[[object], bool]:
    """A function that tells whether another value differs from this one."""
    static = StaticValue(value)

    def differs(other: object) -> bool:
        try:
            return static != StaticValue(other)
        except TypeError:
            return True

    return differs
