"""What a file says of its function: the trees that it takes and gives, by the names that the graph has for their tensors."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from fundl._compiling.exports import Exported, FreeSize
from fundl._compiling.trees import Leaf, StaticArgument, children
from fundl.interop.onnx._writer import Value, example_of, value_of
from fundl.tree import Record
from fundl_onnx import Description, name_in_graph


def described(tree: object, path: str, values: Iterator[Value]) -> Description:
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
    parts = [(step, described(part, path + step, values)) for step, part in children(tree, path)]
    if isinstance(tree, Record) or hasattr(tree, "_fields"):
        return {"class": type(tree).__name__, "fields": {step.removeprefix("."): part for step, part in parts}}
    if isinstance(tree, dict):
        return {"dict": [[str(key), part] for key, (_, part) in zip(tree, parts, strict=True)]}
    return {"list" if isinstance(tree, list) else "tuple": [part for _, part in parts]}


def values_of(paths: Sequence[str], traced: Exported) -> list[Value]:
    """The inputs of a graph, the leaves of trees, by the names that they get in the graph.

    Raises:
        ValueError: two leaves would have the same name.
    """
    names = [*map(name_in_graph, paths)]
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise ValueError(f"two tensors would be called {twice[0]} in the file: give their dict other keys")
    nodes = traced.module.graph.find_nodes(op="placeholder")
    return [value_of(name, example_of(node)) for name, node in zip(names, nodes, strict=True)]


def size_names(sizes: Sequence[FreeSize]) -> dict[str, str]:
    """Names for the sizes that are free, by their symbols: rows, rows_2, ..."""
    return {size.symbol: "rows" if index == 0 else f"rows_{index + 1}" for index, size in enumerate(sizes)}


def renamed(value: Value, names: Mapping[str, str]) -> Value:
    """A value whose sizes have names."""

    def of(size: int | str) -> int | str:
        return re.sub(r"\w+", lambda found: names.get(found[0], found[0]), size) if isinstance(size, str) else size

    return Value(value.name, value.dtype, tuple(map(of, value.shape)))


def require_strided(tensors: Sequence[Tensor], paths: Sequence[str]) -> None:
    """Raise an error unless all tensors are dense.

    Raises:
        ValueError: one is sparse.
    """
    for tensor, path in zip(tensors, paths, strict=True):
        if tensor.layout is not torch.strided:
            raise ValueError(f"{path} is a sparse tensor, for which ONNX has no place: give tensor.to_dense()")
