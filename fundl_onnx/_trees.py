"""Trees of arrays: dicts, tuples and lists, as the file describes them.

What is a record or a named tuple in fundl is a dict of its fields here, for who runs a file knows none of their classes.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import TypeAlias

import numpy as np

Array: TypeAlias = "np.ndarray[tuple[int, ...], np.dtype[np.generic[object]]]"
Tree: TypeAlias = "Array | bool | int | float | str | Sequence[Tree] | Mapping[str, Tree] | None"
"""Arrays, in dicts, tuples and lists."""
Description: TypeAlias = "bool | int | float | str | Sequence[Description] | Mapping[str, Description] | None"
"""What the file says of a tree, as JSON has it."""


def arrays_of(tree: object, description: Description, where: str) -> Iterator[tuple[str, Array]]:
    """The arrays of a tree, by the names that the graph has for them.

    Raises:
        TypeError: it is not like the tree that the file describes; the message says where.
    """
    match description:
        case {"array": str(name)}:
            if not isinstance(tree, np.ndarray | np.generic):
                raise TypeError(f"{where} must be an array, not {_described(tree)}")
            yield name, np.asarray(tree)
        case {"fields": Mapping() as fields}:
            yield from _fields_of(tree, fields, where)
        case {"dict": Sequence() as pairs}:
            yield from _fields_of(tree, dict(_pairs(pairs)), where)
        case {"tuple": Sequence() as parts} | {"list": Sequence() as parts}:
            if not isinstance(tree, tuple | list) or len(tree) != len(parts):
                raise TypeError(f"{where} must be a tuple or list of {len(parts)}, not {_described(tree)}")
            for index, (part, of_part) in enumerate(zip(tree, parts, strict=True)):
                yield from arrays_of(part, of_part, f"{where}[{index}]")
        case _:
            return


def _fields_of(tree: object, fields: Mapping[str, Description], where: str) -> Iterator[tuple[str, Array]]:
    if not isinstance(tree, Mapping) or {*map(str, tree)} != {*fields}:
        raise TypeError(f"{where} must be a dict of {', '.join(fields)}, not {_described(tree)}")
    by_name = {str(key): value for key, value in tree.items()}
    for name, of_field in fields.items():
        yield from arrays_of(by_name[name], of_field, f"{where}[{name!r}]")


def _pairs(pairs: Sequence[Description]) -> Iterator[tuple[str, Description]]:
    for pair in pairs:
        assert isinstance(pair, Sequence)
        yield str(pair[0]), pair[1]


def _described(tree: object) -> str:
    if isinstance(tree, Mapping):
        return f"a dict of {', '.join(map(str, tree))}"
    return f"a {type(tree).__name__} of {len(tree)}" if isinstance(tree, tuple | list) else f"{tree!r:.60}"


def filled(description: Description, arrays: Mapping[str, Array]) -> Tree:
    """The tree that the file describes, with arrays in the place of their names."""
    match description:
        case {"array": str(name)}:
            return arrays[name]
        case {"constant": value}:
            assert value is None or isinstance(value, bool | int | float | str)
            return value
        case {"fields": Mapping() as fields}:
            return {name: filled(of_field, arrays) for name, of_field in fields.items()}
        case {"dict": Sequence() as pairs}:
            return {name: filled(of_value, arrays) for name, of_value in _pairs(pairs)}
        case {"tuple": Sequence() as parts}:
            return tuple(filled(of_part, arrays) for of_part in parts)
        case {"list": Sequence() as parts}:
            return [filled(of_part, arrays) for of_part in parts]
        case _:
            return None


def described_arrays(description: Description) -> Iterator[tuple[str, str, tuple[int | str, ...]]]:
    """Name, dtype and shape of each array that a file describes, from left to right."""
    match description:
        case {"array": str(name), "dtype": str(dtype), "shape": Sequence() as shape}:
            yield name, dtype, tuple(size for size in shape if isinstance(size, int | str))
        case {"fields": Mapping() as fields}:
            for of_field in fields.values():
                yield from described_arrays(of_field)
        case {"dict": Sequence() as pairs}:
            for _, of_value in _pairs(pairs):
                yield from described_arrays(of_value)
        case {"tuple": Sequence() as parts} | {"list": Sequence() as parts}:
            for of_part in parts:
                yield from described_arrays(of_part)
        case _:
            return
