"""Graphs of ATen's operations: made by make_fx from a function, and changed so that they write to their inputs."""

import copy
import linecache
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias, cast

import attrs
import torch
from torch import Tensor

from fundl._common import exchanges, graph_operations
from fundl._compiling.torch_private import resolved
from fundl._compiling.trees import Leaf

if TYPE_CHECKING:
    from torch.fx import GraphModule, Node

Decompositions: TypeAlias = Mapping[object, Callable[..., object]]  # type: ignore[explicit-any]  # of any arguments
"""For operations, functions that compute the same by other operations."""


@attrs.frozen(eq=False)
class Graph:
    """A graph of operations, from tensors to tensors."""

    module: "GraphModule"

    @property
    def outputs(self) -> int:
        """How many tensors it computes."""
        return len(_outputs(self.module))

    @property
    def operations(self) -> int:
        """How many operations it has."""
        return sum(node.op == "call_function" for node in self.module.graph.nodes)

    @property
    def devices(self) -> "list[torch.device]":
        """Those of what it is given and computes."""
        values = [node.meta.get("val") for node in self.module.graph.nodes]
        return [*dict.fromkeys(value.device for value in values if isinstance(value, Tensor))]

    @property
    def groups(self) -> list[str]:
        """The names of the groups of processes that it exchanges tensors with."""
        return sorted({str(node.args[-1]) for node in _collectives(self.module)})

    @property
    def collectives(self) -> list[str]:
        """What it exchanges with other processes, in order, as text."""
        return [_exchange(node) for node in _collectives(self.module)]

    def write_back(self, writes: Sequence[tuple[int, Leaf]], returns: Sequence[Leaf]) -> "Graph":
        """The graph that writes to inputs, given by number, after all else is computed; and what it still returns."""
        module = copy.deepcopy(self.module)
        graph, inputs, outputs = module.graph, _inputs(module), _outputs(module)
        node = graph.output_node()
        with graph.inserting_before(node):

            def value(leaf: Leaf) -> "Node":
                if leaf.kind == "output":
                    return outputs[leaf.index]
                return graph.call_function(graph_operations.clone, (inputs[leaf.index],))  # as it was before the writing

            written, returned = [value(source) for _, source in writes], [value(source) for source in returns]
            for (place, _), new in zip(writes, written, strict=True):
                graph.call_function(graph_operations.copy_, (inputs[place], new))
        node.args = (returned,)
        module.recompile()
        return Graph(module)

    def with_slots(self, outputs: Sequence[int]) -> "tuple[Graph, list[Tensor]]":
        """The graph with slots, further inputs for some outputs to be written to; and examples of those inputs."""
        module = copy.deepcopy(self.module)
        inputs, values = _inputs(module), [_value(node) for node in _outputs(module)]
        examples: list[Tensor] = []
        for number, output in enumerate(outputs):
            value = values[output]
            with module.graph.inserting_after(inputs[-1]):
                inputs.append(module.graph.placeholder(f"slot_{number}"))
            inputs[-1].meta = {"val": value}
            examples.append(torch.empty(value.shape, dtype=value.dtype, device=value.device))
        return Graph(module), examples

    def is_contiguous(self, output: int) -> bool:
        """Whether an output is."""
        return _value(_outputs(self.module)[output]).is_contiguous()

    def is_like(self, leaf: Leaf, example: Tensor) -> bool:
        """Whether a leaf is an input or output that can be written into a tensor like an example."""
        if leaf.kind not in {"input", "output"}:
            return False
        value = _value((_outputs if leaf.kind == "output" else _inputs)(self.module)[leaf.index])
        return (value.shape, value.dtype, value.device) == (example.shape, example.dtype, example.device)

    def lines(self) -> list[str]:
        """All that it says, as text."""
        return [_described(node) for node in self.module.graph.nodes]


def _inputs(module: "GraphModule") -> "list[Node]":
    return module.graph.find_nodes(op="placeholder")


def _outputs(module: "GraphModule") -> "list[Node]":
    (outputs,) = module.graph.output_node().args
    return [*outputs] if isinstance(outputs, tuple | list) else []


def _collectives(module: "GraphModule") -> "list[Node]":
    """The nodes that exchange tensors with other processes; their last argument is the name of the group."""
    return [node for node in module.graph.nodes if is_collective(node)]


def is_collective(node: "Node") -> bool:
    """Whether a node begins to exchange tensors with other processes."""
    return isinstance(node.target, torch._ops.OpOverload) and (
        node.target.namespace == "_c10d_functional" and node.target is not exchanges.wait
    )


def _exchange(node: "Node") -> str:
    target, value = node.target, _value(node.all_input_nodes[0])
    assert isinstance(target, torch._ops.OpOverload)
    settings = ", ".join(str(setting) for setting in node.args[1:])
    return f"{target._opname} of {str(value.dtype).removeprefix('torch.')}{list(value.shape)} ({settings})"


def _value(node: "Node") -> Tensor:
    """The fake tensor of a node."""
    value: Tensor = node.meta["val"]
    return value


def _described(node: "Node") -> str:
    text = f"{node.op} {node.name} {node.target} {node.args} {node.kwargs}"
    value: object = node.meta.get("val")
    if node.op != "placeholder" or not isinstance(value, Tensor):
        return text
    return f"{text} {value.dtype} {value.device} {tuple(value.shape)} {value.stride()}"


# --- Tracing ------------------------------------------------------------------------------------------------------------


class _OfTensors(Protocol):
    def __call__(self, *tensors: Tensor) -> list[Tensor]: ...


class _MakeFx(Protocol):
    def __call__(  # type: ignore[explicit-any]  # it returns a function of as many tensors as the one given
        self, function: _OfTensors, table: Decompositions, *, tracing_mode: Literal["fake"], _allow_non_fake_inputs: bool
    ) -> "Callable[..., GraphModule]": ...


def trace(function: _OfTensors, examples: Sequence[Tensor]) -> tuple[Graph, list[Tensor]]:
    """The graph of a function, and the tensors that it used without being given them, which are its last inputs.

    The graph writes to no tensor, though the function, or an operation, writes to those of its own making.
    """
    module = make_fx(function, examples, {})
    if writes(module):
        module = make_fx(without_writing(cast("_OfTensors", module)), examples, {})
    constants: list[Tensor] = []
    inputs = _inputs(module)
    for node in module.graph.find_nodes(op="get_attr"):
        value: object = getattr(module, str(node.target))
        if not isinstance(value, Tensor):
            raise TypeError(f"the trace holds a {type(value).__name__}, for which there is no compiler: {node.target}")
        with module.graph.inserting_after(inputs[-1]) if inputs else module.graph.inserting_before():
            inputs.append(module.graph.placeholder(f"constant_{len(constants)}"))
        value = resolved(value)
        inputs[-1].meta = {"val": value}
        node.replace_all_uses_with(inputs[-1])
        module.graph.erase_node(node)
        constants.append(value)
    module.graph.eliminate_dead_code()
    module.recompile()
    return Graph(module), constants


def hold(module: "GraphModule", held: Mapping[int, Tensor]) -> None:
    """Have a graph hold some of its inputs, by number, as they are."""
    inputs = _inputs(module)
    for number, tensor in held.items():
        name = f"held_{number}"
        module.register_buffer(name, tensor)
        with module.graph.inserting_after(inputs[-1]):
            node = module.graph.get_attr(name)
        node.meta = inputs[number].meta
        inputs[number].replace_all_uses_with(node)
    for number in held:
        module.graph.erase_node(inputs[number])
    module.recompile()


def writes(module: "GraphModule") -> bool:
    """Whether an operation of a graph writes to a tensor."""
    targets = (node.target for node in module.graph.nodes)
    return any(isinstance(target, torch._ops.OpOverload) and target._schema.is_mutable for target in targets)


def without_writing(function: _OfTensors) -> _OfTensors:
    """The function as one that makes another tensor wherever it would write to one."""
    return cast("_OfTensors", torch.func.functionalize(function))


def make_fx(function: _OfTensors, examples: Sequence[Tensor], decompositions: Decompositions) -> "GraphModule":
    """The graph of a function of tensors, with some operations decomposed into others."""
    from torch.fx.experimental import proxy_tensor

    tracer = cast("_MakeFx", proxy_tensor.make_fx)(function, decompositions, tracing_mode="fake", _allow_non_fake_inputs=True)
    return tracer(*[tensor.detach() for tensor in examples])  # each by itself, though two of them be the same


@contextmanager
def programs_forgotten() -> Iterator[None]:
    """Forget the programs of the graphs that are made in it: torch would keep them for tracebacks, for ever."""
    from torch.fx import graph_module

    kept: dict[str, str] = graph_module._loader.eval_cache
    before = {*kept}
    try:
        yield
    finally:
        for name in {*kept} - before:
            kept.pop(name, None)
            linecache.cache.pop(name, None)
