"""A graph of ATen's operations rewritten as one of ONNX's; sizes may be symbols."""

from collections.abc import Callable, Mapping, Sequence
from typing import Final, TypeAlias

import attrs
import numpy as np
import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from fundl._compiling.exports import Expression, origin, symbolic
from fundl.interop import _description
from fundl.interop._description import Value
from fundl_onnx import Array

Name: TypeAlias = str
Attribute: TypeAlias = "int | float | str | Sequence[int] | Body"
Number: TypeAlias = float | Node
"""A number, or a node that makes one: a tensor, or a size."""
Rule: TypeAlias = "Callable[..., Name | list[Name]]"  # type: ignore[explicit-any]  # of a writer, a node, and its arguments
Rules: TypeAlias = Mapping[object, Rule]


class ExportError(TypeError):
    """A function cannot become an ONNX file; the message says which operation is why, of which layer, at which line."""


ExportError.__module__ = "fundl.interop.onnx"


@attrs.frozen
class Element:
    """A dtype in ONNX and in numpy."""

    number: int
    numpy: str


ELEMENTS: Final[Mapping[torch.dtype, Element]] = {
    torch.float32: Element(1, "float32"),
    torch.uint8: Element(2, "uint8"),
    torch.int8: Element(3, "int8"),
    torch.int16: Element(5, "int16"),
    torch.int32: Element(6, "int32"),
    torch.int64: Element(7, "int64"),
    torch.bool: Element(9, "bool"),
    torch.float16: Element(10, "float16"),
    torch.float64: Element(11, "float64"),
}


@attrs.frozen(eq=False)
class Operation:
    """A node of ONNX."""

    kind: str
    inputs: tuple[Name, ...]
    outputs: tuple[Name, ...]
    attributes: Mapping[str, Attribute]
    origin: str  # where in the program it comes from

    @property
    def uses(self) -> set[Name]:
        """What it needs, and what a body in it does."""
        bodies = [value for value in self.attributes.values() if isinstance(value, Body)]
        return {*self.inputs}.union(*(body.outside for body in bodies))


@attrs.frozen(eq=False)
class Body:
    """A graph, whole or within a loop."""

    inputs: Sequence[Value]
    outputs: Sequence[Value]
    operations: Sequence[Operation]
    constants: Mapping[Name, Array]

    @property
    def outside(self) -> set[Name]:
        """What it uses of the graph around it."""
        own = {value.name for value in self.inputs} | {*self.constants}
        own |= {name for operation in self.operations for name in operation.outputs}
        return {name for operation in self.operations for name in operation.uses} - own


class Writer:
    """Writes one graph.

    Args:
        rules: for each operation of ATen, what writes it.
        bodies: of the loops, by number.
        prefix: of the names that it makes, which no other graph of the file has.
    """

    def __init__(self, rules: Rules, bodies: Mapping[int, GraphModule], prefix: str = "") -> None:
        self.bodies = bodies
        self.operations: list[Operation] = []
        self.constants: dict[Name, Array] = {}
        self.rules = rules
        self.prefix = prefix
        self.node: Node | None = None  # that is being written
        self._known: dict[tuple[str, tuple[int, ...], bytes], Name] = {}
        self._values: dict[Node, Name | list[Name]] = {}
        self._sizes: dict[str, tuple[Name, int]] = {}  # for a symbol, an input and the axis that has it
        self._asked: dict[str, Name] = {}
        self._count = 0

    # --- Making values ---

    def fresh(self, stem: str = "v") -> Name:
        """A name that nothing has."""
        self._count += 1
        return f"{self.prefix}{stem}{self._count}"

    def add(self, kind: str, inputs: Sequence[Name], outputs: int, **attributes: Attribute) -> list[Name]:
        """An operation of several outputs; their names."""
        names = [self.fresh() for _ in range(outputs)]
        where = origin(self.node) if self.node is not None else "in a library"
        self.operations.append(Operation(kind, tuple(inputs), tuple(names), attributes, where))
        return names

    def op(self, kind: str, *inputs: Name, **attributes: Attribute) -> Name:
        """An operation of one output; its name."""
        return self.add(kind, inputs, 1, **attributes)[0]

    def constant(self, array: Array) -> Name:
        """The name of an array that is part of the file, once."""
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._known:
            self._known[key] = self.fresh("c")
            self.constants[self._known[key]] = array
        return self._known[key]

    def ints(self, *values: int) -> Name:
        """Integers along one axis."""
        return self.constant(np.array(values, np.int64))

    def index(self, value: int) -> Name:
        """An integer without axes."""
        return self.constant(np.array(value, np.int64))

    def of_tensor(self, tensor: Tensor) -> Name:
        """A tensor that the function had from outside."""
        return self.constant(as_array(tensor))

    def full(self, value: Number, dtype: torch.dtype) -> Name:
        """A number, a size, or a tensor's, as one of a dtype, without axes where it has none."""
        if isinstance(value, bool | int | float):
            return self.constant(np.array(bool(value) if dtype is torch.bool else value, element(dtype).numpy))
        return self.cast(self.value(value), dtype_of(value), dtype)

    def cast(self, name: Name, have: torch.dtype, want: torch.dtype) -> Name:
        """A value in another dtype."""
        return name if have == want else self.op("Cast", name, to=element(want).number)

    # --- What nodes stand for ---

    def value(self, node: Node) -> Name:
        """The value of a node that has one."""
        value = self._values[node]
        assert isinstance(value, str)
        return value

    def values(self, node: Node) -> list[Name]:
        """The values of a node that has several."""
        value = self._values[node]
        assert isinstance(value, list)
        return value

    def shape(self, sizes: Sequence[int | Node]) -> Name:
        """Sizes, some of which may be symbols, along one axis."""
        if numbers := _numbers(sizes):
            return self.ints(*numbers)
        parts = [self.ints(size) if isinstance(size, int) else self.along(self.value(size)) for size in sizes]
        return self.op("Concat", *parts, axis=0) if parts else self.ints()

    def along(self, number: Name) -> Name:
        """A number without axes as one along an axis."""
        return self.op("Reshape", number, self.ints(1))

    def shape_of(self, tensor: Tensor) -> Name:
        """The sizes of a result, which has not been computed."""
        if numbers := _numbers(tensor.shape):
            return self.ints(*numbers)
        sizes = map(symbolic, tensor.shape)
        parts = [self.ints(size) if isinstance(size, int) else self.along(self.symbolic(size)) for size in sizes]
        return self.op("Concat", *parts, axis=0) if parts else self.ints()

    def symbolic(self, expression: Expression) -> Name:
        """A size that is made of symbols, an integer without axes."""
        if expression.is_Integer:
            return self.index(int(expression))
        if expression.is_Symbol:
            return self._size(str(expression))
        kinds = {"Add": "Add", "Mul": "Mul", "FloorDiv": "Div", "CleanDiv": "Div", "Max": "Max", "Min": "Min"}
        kind = kinds.get(type(expression).__name__)
        if kind is None:
            raise ExportError(f"no ONNX for the size {expression}, {self.where()}")
        first, *others = map(self.symbolic, expression.args)
        for other in others:
            first = self.op(kind, first, other)
        return first

    def _size(self, symbol: str) -> Name:
        if symbol not in self._asked:
            name, axis = self._sizes[symbol]
            self._asked[symbol] = self.op("Gather", self.op("Shape", name), self.index(axis), axis=0)
        return self._asked[symbol]

    def where(self) -> str:
        """Where in the program the node comes from that is being written."""
        return origin(self.node) if self.node is not None else "in a library"

    # --- The graph ---

    def write(self, module: GraphModule, inputs: Sequence[Value]) -> list[tuple[Name, Value]]:
        """Write a graph.

        Args:
            module: the graph.
            inputs: what it is given.

        Returns:
            What it computes: the names that the writer gave, and values without names.
        """
        computed: list[tuple[Name, Value]] = []
        given = iter(inputs)
        for node in module.graph.nodes:
            self.node = node
            if node.op == "placeholder":
                self._take(node, next(given).name)
            elif node.op == "get_attr":
                self._values[node] = self.of_tensor(getattr(module, str(node.target)))
            elif node.op == "call_function":
                self._values[node] = self._written(node)
            else:
                (outputs,) = node.args
                computed = [(self.value(output), value_of("", output.meta["val"])) for output in outputs]
        return computed

    def _take(self, node: Node, name: Name) -> None:
        self._values[node] = name
        example: Tensor = node.meta["val"]
        for axis, size in enumerate(map(symbolic, example.shape)):
            if not isinstance(size, int) and size.is_Symbol:
                self._sizes.setdefault(str(size), (name, axis))

    def _written(self, node: Node) -> Name | list[Name]:
        rule = self.rules.get(node.target)
        if rule is None:
            raise ExportError(f"there is no ONNX for {name_of(node.target)}, {origin(node)}")
        return rule(self, node, *node.args, **node.kwargs)


def name_of(target: object) -> str:
    """What an operation is called in torch."""
    return str(target).removeprefix("aten.").rpartition(".")[0] if "." in str(target) else str(target)


def _numbers(sizes: Sequence[object]) -> list[int]:
    """Sizes that are all numbers; else nothing."""
    numbers = [size for size in sizes if type(size) is int]
    return numbers if len(numbers) == len(sizes) else []


def value_of(name: Name, example: Tensor) -> Value:
    """A value like a fake tensor, of a dtype that ONNX has."""
    element(example.dtype)
    return _description.value_of(name, example)


def element(dtype: torch.dtype) -> Element:
    """A dtype in ONNX.

    Raises:
        ExportError: onnxruntime's kernels for CPUs are not for it.
    """
    if dtype not in ELEMENTS:
        raise ExportError(
            f"onnxruntime computes on CPUs in float32, float64, float16 and with integers, but here is {dtype}: cast the model"
            " with tree.cast_to(model, torch.float32)"
        )
    return ELEMENTS[dtype]


def dtype_of(node: Node) -> torch.dtype:
    """The dtype of what a node makes; of symbols, those that torch computes with."""
    found: object = node.meta["val"]
    if isinstance(found, Tensor):
        return found.dtype
    return torch.float64 if isinstance(found, float | torch.SymFloat) else torch.int64


def rank_of(node: Node) -> int:
    """How many axes a tensor has."""
    found: Tensor = node.meta["val"]
    return found.ndim


def example_of(node: Node) -> Tensor:
    """The fake tensor that a node makes."""
    found: Tensor = node.meta["val"]
    return found


def as_array(tensor: Tensor) -> Array:
    """The numbers of a tensor."""
    element(tensor.dtype)
    array: Array = tensor.detach().cpu().contiguous().resolve_conj().resolve_neg().numpy()
    return array


# --- Graphs --------------------------------------------------------------------------------------------------------------


def needed(operations: Sequence[Operation], names: Sequence[Name], always: Sequence[Operation] = ()) -> list[Operation]:
    """The operations that some values need, in their order, and some more."""
    wanted = {*names}
    kept: list[Operation] = []
    for operation in reversed(operations):
        if operation in always or not wanted.isdisjoint(operation.outputs):
            kept.append(operation)
            wanted.update(operation.uses)
    return kept[::-1]


def with_names(operation: Operation, names: Mapping[Name, Name]) -> Operation:
    """An operation whose values have other names."""
    inputs, outputs = (tuple(names.get(name, name) for name in of) for of in (operation.inputs, operation.outputs))
    attributes = {key: _body_with_names(value, names) for key, value in operation.attributes.items()}
    return attrs.evolve(operation, inputs=inputs, outputs=outputs, attributes=attributes)


def _body_with_names(value: Attribute, names: Mapping[Name, Name]) -> Attribute:
    if not isinstance(value, Body):
        return value
    return attrs.evolve(value, operations=[with_names(operation, names) for operation in value.operations])
