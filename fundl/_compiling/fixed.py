"""Static values, as a part of what is compiled: they are alike if a program cannot tell them apart.

For Python 2, 2.0 and True are equal, and 0.0 and -0.0: but a program computes other things with them. A NaN is equal to
nothing, and yet it is the same one each time.
"""

import dataclasses
from collections.abc import Callable, Hashable, Iterator
from typing import final

import attrs
from torch import Tensor
from typing_extensions import override


@final
class Fixed:
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
            raise TypeError(f"{path} is a tensor, which is no static value: its numbers are not a part of what is compiled")
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
        return isinstance(other, Fixed) and self._exact == other._exact

    @override
    def __hash__(self) -> int:
        return hash(self._exact)

    @override
    def __repr__(self) -> str:
        return repr(self.value)

    @override
    def __reduce__(self) -> "tuple[type[Fixed], tuple[object]]":
        return Fixed, (self.value,)


def _exact(value: object) -> Hashable:
    """What is equal for those values alone that no program can tell from this one."""
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
    """The fields of a record that is compared by them."""
    cls = type(value)
    if cls.__eq__ is object.__eq__:
        return
    if attrs.has(cls):
        yield from (getattr(value, field.name) for field in attrs.fields(cls) if field.eq)
    elif dataclasses.is_dataclass(cls):
        yield from (getattr(value, field.name) for field in dataclasses.fields(cls) if field.compare)


def unlike(value: object) -> Callable[[object], bool]:
    """A function that tells whether another value is not like this one."""
    fixed = Fixed(value)

    def differs(other: object) -> bool:
        try:
            return fixed != Fixed(other)
        except TypeError:
            return True

    return differs
