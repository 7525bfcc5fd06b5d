"""What a file says of its function: the trees that it takes and gives, by the names that it has for their tensors."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Final

import attrs
import torch
from torch import Tensor

from fundl._compiling.exports import FreeSize, symbolic
from fundl._compiling.trees import Leaf, StaticArgument, children, explain, flatten
from fundl.interop._call import Argument
from fundl.tree import Record
from fundl_onnx import Description, name_in_graph

if TYPE_CHECKING:
    from fundl_onnx import Contents, Named, Size

_NEXT: Final = "next."


@attrs.frozen(eq=False)
class Value:
    """An input or output: each size a number, or the name of one that is free."""

    name: str
    dtype: torch.dtype
    shape: tuple[int | str, ...]


def value_of(name: str, example: Tensor) -> Value:
    """A value like a tensor, which may be a fake one."""
    sizes = map(symbolic, example.shape)
    return Value(name, example.dtype, tuple(size if isinstance(size, int) else str(size) for size in sizes))


def input_names(paths: Sequence[str]) -> list[str]:
    """The names of inputs, the leaves of trees.

    Raises:
        ValueError: two leaves would have the same name.
    """
    names = [*map(name_in_graph, paths)]
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise same_name(twice[0])
    return names


def same_name(name: str) -> ValueError:
    """The error for two tensors of the same name."""
    return ValueError(f"two tensors would be called {name} in the file: give their dict other keys")


def contents(
    arguments: Sequence[Argument],
    inputs: Sequence[Value],
    parts: Sequence[tuple[str, object]],
    outputs: Sequence[Sequence[Value]],
    *,
    same: Mapping[str, str],
    sizes: Sequence[FreeSize],
) -> "Contents":
    """What a file says of its function.

    Args:
        arguments: of the function.
        inputs: a value for each of their tensors, those that are in the file too.
        parts: of what it returns, by name.
        outputs: a value for each tensor of each part.
        same: what of the outputs is an input as it was, and no output of the file.
        sizes: that are free, of inputs by their numbers.
    """
    names = size_names(sizes)
    owners = [one for one in arguments for _ in flatten(one.example, one.name).leaves]
    given = [value for value, owner in zip(inputs, owners, strict=True) if not owner.inside]
    remaining = iter([renamed(value, names) for value in given])
    takes: list[Named] = [
        {"name": one.name, "tree": _described(one.example, one.name, remaining)} for one in arguments if not one.inside
    ]
    gives: list[Named] = [
        {"name": name, "tree": _described(part, name, iter([renamed(value, names) for value in own]))}
        for (name, part), own in zip(parts, outputs, strict=True)
    ]
    return {
        "arguments": takes,
        "results": gives,
        "whole": len(parts) == 1,
        "carried": _carried(parts, [value for own in outputs for value in own], arguments, given),
        "same": {**same},
        "sizes": [_described_size(size, names[size.symbol], inputs) for size in sizes],
    }


def _described(tree: object, path: str, values: Iterator[Value]) -> Description:
    """A tree in JSON; the values are those of its leaves, from left to right."""
    if isinstance(tree, Tensor | Leaf):
        value = next(values)
        return {"array": value.name, "dtype": str(value.dtype).removeprefix("torch."), "shape": value.shape}
    if tree is None:
        return None
    if isinstance(tree, bool | int | float | str):
        return {"constant": tree}
    if isinstance(tree, StaticArgument | complex | bytes):
        return {"constant": str(tree)}
    parts = [(step, _described(part, path + step, values)) for step, part in children(tree, path)]
    if isinstance(tree, Record) or hasattr(tree, "_fields"):
        return {"class": type(tree).__name__, "fields": {step.removeprefix("."): part for step, part in parts}}
    if isinstance(tree, dict):
        return {"dict": [[str(key), part] for key, (_, part) in zip(tree, parts, strict=True)]}
    return {"list" if isinstance(tree, list) else "tuple": [part for _, part in parts]}


def _carried(
    parts: Sequence[tuple[str, object]], outputs: Sequence[Value], arguments: Sequence[Argument], given: Sequence[Value]
) -> dict[str, str]:
    """For what is called next.x, the tensors of the argument x that it takes the place of."""
    after, before = {value.name: value for value in outputs}, {value.name: value for value in given}
    carried: dict[str, str] = {}
    for name, part in parts:
        argument = next((one for one in arguments if name == f"{_NEXT}{one.name}"), None)
        if argument is None:
            continue
        old, new = flatten(argument.example, argument.name, constants=True), flatten(part, argument.name, constants=True)
        if difference := explain(old.signature, new.signature, argument.name):
            raise TypeError(f"the function must return a {argument.name} like the one that it is given: {difference}")
        for own in map(name_in_graph, old.paths):
            if (after[f"{_NEXT}{own}"].dtype, after[f"{_NEXT}{own}"].shape) != (before[own].dtype, before[own].shape):
                raise TypeError(
                    f"the function must return a {argument.name} like the one that it is given: {own} was"
                    f" {before[own].dtype} of shape {before[own].shape}, and is {after[f'{_NEXT}{own}'].dtype} of shape"
                    f" {after[f'{_NEXT}{own}'].shape}"
                )
            carried[f"{_NEXT}{own}"] = own
    return carried


# --- Sizes --------------------------------------------------------------------------------------------------------------


def _described_size(size: FreeSize, name: str, values: Sequence[Value]) -> "Size":
    return {
        "name": name,
        "axes": [(values[number].name, axis) for number, axis in size.axes],
        "least": size.least,
        "most": size.most,
        "other_than": [*size.other_than],
    }


def size_names(sizes: Sequence[FreeSize]) -> dict[str, str]:
    """Names for the sizes that are free, by their symbols: rows, rows_2, ..."""
    return {size.symbol: "rows" if index == 0 else f"rows_{index + 1}" for index, size in enumerate(sizes)}


def renamed(value: Value, names: Mapping[str, str]) -> Value:
    """A value whose sizes have names."""

    def of(size: int | str) -> int | str:
        return re.sub(r"\w+", lambda found: names.get(found[0], found[0]), size) if isinstance(size, str) else size

    return Value(value.name, value.dtype, tuple(map(of, value.shape)))
