"""A function as a graph of ONNX, with the names of its trees."""

import json
from collections.abc import Mapping, Sequence
from typing import cast

import attrs
from torch import Tensor

from fundl._compiling import exports
from fundl._compiling.loop_operator import registered
from fundl._compiling.trees import Flat, Leaf, flatten
from fundl.interop._call import Call, free_axes
from fundl.interop._description import Value, contents, input_names, renamed, same_name, size_names
from fundl.interop.onnx._decompositions import TABLE
from fundl.interop.onnx._operations import RULES
from fundl.interop.onnx._operations.loops import loop
from fundl.interop.onnx._writer import Body, Name, Operation, Writer, as_array, example_of, needed, value_of, with_names
from fundl_onnx import FORMAT, name_in_graph


def assembled(call: Call, version: str) -> tuple[Body, dict[str, str]]:
    """The graph of a function, and its metadata.

    Args:
        call: of the function.
        version: of fundl.

    Raises:
        ExportError: there is no ONNX for something that the function does.
        TypeError: it is no function of trees of tensors, or returns something else than the results say.
        ValueError: a size that is to be free is not.
    """
    leaves, paths, owners = call.leaves()
    try:
        traced = exports.export(call.of_leaves, leaves, free_axes(leaves, owners), TABLE, {*RULES, registered()})
    except exports.SizeError as error:
        raise call.not_free(error) from error
    placeholders = traced.module.graph.find_nodes(op="placeholder")
    values = [value_of(name, example_of(node)) for name, node in zip(input_names(paths), placeholders, strict=True)]
    graph = _Graph(traced, values, {number: leaves[number] for number, one in enumerate(owners) if one.inside})
    parts = call.parts(traced.result)
    outputs = [graph.outputs_of(flatten(part, name, constants=True)) for name, part in parts]
    described = contents(call.arguments, values, parts, outputs, same=graph.same, sizes=traced.sizes)
    metadata = {"fundl.format": FORMAT, "fundl.version": version, "fundl.function": json.dumps(described)}
    return graph.body(size_names(traced.sizes)), metadata


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
            raise same_name(name)
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
