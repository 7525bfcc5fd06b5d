"""A function as a graph of ONNX, with the names of its trees."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Final, TypeAlias, cast

import attrs
from torch import Tensor

from fundl._common.modes import no_grad
from fundl._compiling import exports
from fundl._compiling.loop_operator import registered
from fundl._compiling.trees import Flat, Leaf, explain, flatten, replace
from fundl.interop.onnx._decompositions import TABLE
from fundl.interop.onnx._description import described, renamed, require_strided, size_names, values_of
from fundl.interop.onnx._operations import RULES
from fundl.interop.onnx._operations.loops import loop
from fundl.interop.onnx._writer import Body, Name, Operation, Value, Writer, as_array, needed, value_of, with_names
from fundl.tree import describe
from fundl_onnx import FORMAT, Contents, Named, Size, name_in_graph

_NEXT: Final = "next."

Function: TypeAlias = Callable[[Sequence[object]], object]
"""A function of a list of what it is called with."""


@attrs.frozen(eq=False)
class Argument:
    """What a function is given, by name.

    Args:
        name: of the argument.
        example: of it.
        free: whether the first axes of its tensors may have any size.
        inside: whether its tensors are to be in the file, as they are.
    """

    name: str
    example: object
    free: bool = False
    inside: bool = False


def assembled(
    function: Function,
    arguments: Sequence[Argument],
    results: Sequence[str],
    version: str,
) -> tuple[Body, dict[str, str]]:
    """The graph of a function, and its metadata.

    Args:
        function: from trees of tensors to a tree of tensors.
        arguments: what it is called with.
        results: what it returns is called: one name for all, or one for each part of a tuple.
        version: of fundl.

    Raises:
        ExportError: there is no ONNX for something that the function does.
        TypeError: it is no function of trees of tensors, or returns something else than the results say.
        ValueError: a size that is to be free is not.
    """
    flats = [flatten(argument.example, argument.name) for argument in arguments]
    leaves, paths = [leaf for flat in flats for leaf in flat.leaves], [path for flat in flats for path in flat.paths]
    require_strided(leaves, paths)
    owners = [argument for argument, flat in zip(arguments, flats, strict=True) for _ in flat.leaves]
    traced = _traced(function, arguments, leaves, owners)
    names = size_names(traced.sizes)
    graph = _Graph(
        traced, values_of(paths, traced), {number: leaves[number] for number, one in enumerate(owners) if one.inside}
    )
    parts = _parts(traced.result, results)
    outputs = [graph.outputs_of(flatten(part, name, constants=True)) for name, part in parts]
    given = iter([renamed(value, names) for value in graph.given])
    takes: list[Named] = [
        {"name": one.name, "tree": described(one.example, one.name, given)} for one in arguments if not one.inside
    ]
    gives: list[Named] = [
        {"name": name, "tree": described(part, name, iter([renamed(value, names) for value in own]))}
        for (name, part), own in zip(parts, outputs, strict=True)
    ]
    contents: Contents = {
        "arguments": takes,
        "results": gives,
        "whole": len(results) == 1,
        "carried": _carried(parts, [value for own in outputs for value in own], arguments, graph.given),
        "same": graph.same,
        "sizes": [_described_size(size, names[size.symbol], graph.values) for size in traced.sizes],
    }
    metadata = {"fundl.format": FORMAT, "fundl.version": version, "fundl.function": json.dumps(contents)}
    return graph.body(names), metadata


def _traced(
    function: Function,
    arguments: Sequence[Argument],
    leaves: Sequence[Tensor],
    owners: Sequence[Argument],
) -> exports.Exported:
    examples = [argument.example for argument in arguments]

    def of_leaves(tensors: Sequence[Tensor]) -> object:
        given = iter(tensors)
        with no_grad():
            return function([replace(example, given) for example in examples])

    free = {(number, 0) for number, leaf in enumerate(leaves) if owners[number].free and leaf.ndim}
    try:
        return exports.export(of_leaves, leaves, free, TABLE, {*RULES, registered()})
    except exports.SizeError as error:
        names = ", ".join(argument.name for argument in arguments if argument.free)
        raise ValueError(f"the rows of {names} cannot be free: {error}; with free=() the file is for one size") from error


def _parts(result: object, names: Sequence[str]) -> list[tuple[str, object]]:
    """What the function returned, by name."""
    if len(names) == 1:
        return [(names[0], result)]
    if not isinstance(result, tuple) or len(result) != len(names):
        raise TypeError(f"the function must return a tuple of {', '.join(names)}, not {describe(result)}")
    return [*zip(names, result, strict=True)]


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


def _described_size(size: exports.FreeSize, name: str, values: Sequence[Value]) -> Size:
    return {
        "name": name,
        "axes": [(values[number].name, axis) for number, axis in size.axes],
        "least": size.least,
        "most": size.most,
        "other_than": [*size.other_than],
    }


class _Graph:
    """A graph that is written, and grows outputs.

    Args:
        traced: the graph of ATen's operations.
        values: its inputs.
        inside: those that are to be in the file, by number.
    """

    def __init__(self, traced: exports.Exported, values: Sequence[Value], inside: Mapping[int, Tensor]) -> None:
        self.values = values
        self.given = [value for number, value in enumerate(values) if number not in inside]
        self.same: dict[Name, Name] = {}
        self._writer = Writer({**RULES, registered(): loop}, traced.bodies)
        self._computed = self._writer.write(traced.module, values)
        self._writer.constants |= {values[number].name: as_array(tensor) for number, tensor in inside.items()}
        self._hands_on = not self._computed  # a graph must have an output
        self._outputs: dict[Name, tuple[Name, Value]] = {}  # by the name outside, that inside

    def outputs_of(self, flat: Flat) -> list[Value]:
        """Make the tensors of a result outputs; what the function was given, and hands on, is none."""
        leaves = cast("list[Leaf]", flat.leaves)  # in the place of tensors
        return [self._output(leaf, name_in_graph(path)) for leaf, path in zip(leaves, flat.paths, strict=True)]

    def _output(self, leaf: Leaf, name: Name) -> Value:
        if leaf.kind == "input":
            value = self.values[leaf.index]
            inside, value = value.name, attrs.evolve(value, name=name)
            if inside not in self._writer.constants and not self._hands_on:
                self.same[name] = inside
                return value
        elif leaf.tensor is not None:
            inside, value = self._writer.of_tensor(leaf.tensor), value_of(name, leaf.tensor)
        else:
            inside, example = self._computed[leaf.index]
            value = attrs.evolve(example, name=name)
        if name in self._outputs:
            raise ValueError(f"two tensors would be called {name} in the file: give their dict other keys")
        self._outputs[name] = (inside, value)
        return value

    def body(self, sizes: Mapping[str, str]) -> Body:
        """The graph, without what no output needs."""
        renames: dict[Name, Name] = {}
        made = {output for operation in self._writer.operations for output in operation.outputs}
        copies: list[Operation] = []
        for name, (inside, _) in self._outputs.items():
            if inside in made and inside not in renames:
                renames[inside] = name
            else:
                copies.append(Operation("Identity", (inside,), (name,), {}, "in a library"))
        operations = needed([*self._writer.operations, *copies], [inside for inside, _ in self._outputs.values()], copies)
        operations = [with_names(operation, renames) for operation in operations]
        used = {name for operation in operations for name in operation.uses}
        constants = {name: array for name, array in self._writer.constants.items() if name in used}
        outputs = [renamed(value, sizes) for _, value in self._outputs.values()]
        return Body([renamed(value, sizes) for value in self.given], outputs, operations, constants)
