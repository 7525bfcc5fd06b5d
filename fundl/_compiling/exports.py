"""Graphs that leave for another program: of few kinds of operations, with sizes that may be free.

A function runs once on fake tensors, some of whose sizes are symbols. What it asked of these, and so took for granted, torch
writes down; here it becomes the range of sizes that the graph is for.
"""

import contextlib
import sys
import weakref
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from types import FrameType
from typing import TYPE_CHECKING, Final, Protocol, cast

import attrs
import torch
from torch import Tensor

from fundl._common.looping import Body
from fundl._compiling import torch_private
from fundl._compiling.graphs import Decompositions, programs_forgotten, without_writing, writes
from fundl._compiling.loop_operator import body_of, loops_kept, registered
from fundl._compiling.torch_private import Operation, require_known
from fundl._compiling.tracing import Watch, outputs_of, user_line
from fundl.layer import Layer

if TYPE_CHECKING:
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx import GraphModule, Node
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

NAMES: Final = (
    "torch._decomp.core_aten_decompositions",
    "torch._decomp.decomposition_table",
    "torch._dispatch.python.enable_python_dispatcher",
    "torch._dynamo.source.ConstantSource",
    "torch._ops.OpOverload",
    "torch._subclasses.fake_tensor.FakeTensorMode",
    "torch.fx.experimental.proxy_tensor.make_fx",
    "torch.fx.experimental.symbolic_shapes.DimDynamic",
    "torch.fx.experimental.symbolic_shapes.ShapeEnv",
    "torch.fx.experimental.symbolic_shapes.StatelessSymbolicContext",
    "torch.fx.traceback.preserve_node_meta",
    "torch.fx.traceback.set_stack_trace",
)

_FAR: Final = 2**31  # more rows than anyone has


class SizeError(ValueError):
    """A size cannot be free; the message says why."""


@attrs.frozen
class FreeSize:
    """A size that may differ from call to call, and what the graph takes for granted of it."""

    symbol: str
    axes: tuple[tuple[int, int], ...]  # the inputs and axes that have it
    least: int
    most: int | None
    other_than: tuple[int, ...]


@attrs.frozen(eq=False)
class Exported:
    """A graph, each of whose nodes has the fake tensor that it makes, and where in the program it comes from."""

    module: "GraphModule"
    bodies: "Mapping[int, GraphModule]"  # of its loops, by number: from what is carried, a step's rows, and what is fixed
    result: object  # of the function, with a `Leaf` for each tensor
    sizes: tuple[FreeSize, ...]


class Expression(Protocol):
    """What sympy has for a size that is made of symbols, or for a condition."""

    is_Integer: bool  # noqa: N815  # sympy calls it so
    is_Symbol: bool  # noqa: N815  # likewise
    args: "tuple[Expression, ...]"
    free_symbols: "set[Expression]"

    def subs(self, old: "Expression", new: int) -> "Expression": ...
    def __int__(self) -> int: ...


def symbolic(size: object) -> int | Expression:
    """A size as a number, or as what it is made of."""
    if not isinstance(size, torch.SymInt):
        assert isinstance(size, int)
        return size
    expression: Expression = size.node.expr
    return int(expression) if expression.is_Integer else expression


class _OfTensors(Protocol):
    def __call__(self, *tensors: Tensor) -> list[Tensor]: ...


class _MakeFx(Protocol):
    def __call__(  # type: ignore[explicit-any]  # it returns a function of as many tensors as the one given
        self, function: _OfTensors, table: Decompositions, *, tracing_mode: str, _allow_non_fake_inputs: bool
    ) -> "Callable[..., GraphModule]": ...


@attrs.frozen(eq=False)
class Followed:
    """A function's operations as it calls them, in a graph whose sizes may be free; none writes to a tensor."""

    module: "GraphModule"
    fakes: Sequence[Tensor]  # its inputs
    result: object  # of the function, with a `Leaf` for each tensor
    mode: "FakeTensorMode"
    _environment: "ShapeEnv"
    _examples: Sequence[Tensor]
    _free: Collection[tuple[int, int]]

    def sizes(self) -> tuple[FreeSize, ...]:
        """The sizes that are free, each with the range that all that was made of the graph until now is for.

        Raises:
            SizeError: what should be free is not.
        """
        return _free_sizes(self._environment, self.fakes, self._examples, self._free)

    def remade(self, table: Decompositions) -> "GraphModule":
        """The graph with some operations decomposed into others."""
        module = _make_fx(_replayed(self.module), self.fakes, table)
        module.graph.eliminate_dead_code()
        return module


@contextlib.contextmanager
def followed(
    function: Callable[[Sequence[Tensor]], object], examples: Sequence[Tensor], free: Collection[tuple[int, int]]
) -> Iterator[Followed]:
    """A function's graph, which is of use in the context.

    Args:
        function: from tensors to a tree of tensors.
        examples: tensors of the shapes and dtypes that the function will be called with; their device does not matter.
        free: the number of an example, and its axis, for each size that is free; sizes that are equal in the examples are
            taken to be the same.

    Raises:
        TraceError: what the function does does not fit into a graph.
    """
    require_known(NAMES)
    result: object = None
    seen: list[tuple[weakref.ref[Tensor], str]] = []

    def flat(*inputs: Tensor) -> list[Tensor]:
        nonlocal result
        with Watch(inputs, seen, "exported").mode, torch_private.mode(_remember_where):
            outputs, result = outputs_of(function(inputs), inputs)
        return outputs

    with _sizes_followed(free), programs_forgotten():
        mode, environment = _fake_mode()
        fakes = [_fake(mode, tensor, number, free) for number, tensor in enumerate(examples)]
        module = _make_fx(flat, fakes, {})
        if writes(module):
            module = _make_fx(without_writing(_replayed(module)), fakes, {})
        yield Followed(module, fakes, result, mode, environment, examples, free)


def export(
    function: Callable[[Sequence[Tensor]], object],
    examples: Sequence[Tensor],
    free: Collection[tuple[int, int]],
    decompositions: Decompositions,
    written: Collection[object],
) -> Exported:
    """The graph of a function, for a program that has few operations.

    Args:
        function: from tensors to a tree of tensors.
        examples: of the tensors that it will be called with: see `followed`.
        free: likewise.
        decompositions: for operations that the other program lacks.
        written: the operations that it has.

    Raises:
        SizeError: what should be free cannot be.
        TraceError: what the function does does not fit into a graph.
    """
    table = _table(decompositions, written)
    with loops_kept(), followed(function, examples, free) as graph:
        module = graph.remade(table)
        return Exported(module, _bodies(module, graph.mode, table), graph.result, graph.sizes())


def _make_fx(function: object, fakes: Sequence[Tensor], table: Decompositions) -> "GraphModule":
    from torch.fx.experimental import proxy_tensor
    from torch.fx.traceback import preserve_node_meta

    make_fx = cast("_MakeFx", proxy_tensor.make_fx)
    with preserve_node_meta():
        tracer = make_fx(cast("_OfTensors", function), table, tracing_mode="fake", _allow_non_fake_inputs=True)
        return tracer(*fakes)


def _bodies(module: "GraphModule", mode: "FakeTensorMode", table: Decompositions) -> "dict[int, GraphModule]":
    """The graphs of what is within loops."""
    bodies: dict[int, GraphModule] = {}
    for node in module.graph.find_nodes(op="call_function", target=registered()):
        carried, rows, fixed, number, _ = node.args
        body, counts = body_of(number), (len(carried), len(rows))
        with mode:
            inputs: list[Tensor] = [one.meta["val"] for one in (*carried, *rows, *fixed)]
            of_a_step = [tensor[0] if counts[0] <= place < sum(counts) else tensor for place, tensor in enumerate(inputs)]

        def flat(*tensors: Tensor, body: Body = body, counts: tuple[int, int] = counts) -> list[Tensor]:
            first, second = counts[0], sum(counts)
            after, given = body(tensors[:first], tensors[first:second], tensors[second:])
            return [*after, *given]

        own = _make_fx(flat, of_a_step, {})
        bodies[number] = _make_fx(_replayed(own), of_a_step, table)
        for inner in bodies[number].graph.nodes:
            inner.meta["stack_trace"] = node.meta.get("stack_trace")
        bodies[number].graph.eliminate_dead_code()
    return bodies


def _replayed(module: "GraphModule") -> _OfTensors:
    """A graph as a function that says of each operation where it comes from."""
    from torch.fx import Interpreter

    return cast("_OfTensors", Interpreter(module).run)


def _table(decompositions: Decompositions, written: Collection[object]) -> Decompositions:
    """All decompositions: torch's own, but for what the other program has; and those given."""
    from torch._decomp import core_aten_decompositions, decomposition_table

    theirs = {**decomposition_table, **core_aten_decompositions()}
    kept: dict[object, Callable[..., object]] = {  # type: ignore[explicit-any]  # of any arguments
        key: rule for key, rule in theirs.items() if isinstance(key, torch._ops.OpOverload) and key not in written
    }
    return {**kept, **decompositions}


# --- Where an operation comes from ---------------------------------------------------------------------------------------


def _remember_where(_operation: Operation, _arguments: Sequence[object], run: Callable[[], object]) -> object:
    from torch.fx.traceback import set_stack_trace

    set_stack_trace([f"{_innermost_layer()}{user_line()}"])
    return run()


def _innermost_layer() -> str:
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        owner: object = frame.f_locals.get("self")
        if isinstance(owner, Layer):
            return f"in a {type(owner).__name__}, "
        frame = frame.f_back
    return ""


def origin(node: "Node") -> str:
    """Where in the program a node comes from, in words."""
    return str(node.meta.get("stack_trace") or "in a library")


# --- Sizes --------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _sizes_followed(free: Collection[tuple[int, int]]) -> Iterator[None]:
    """What kernels in C++ do with symbols is done in Python, if there are any."""
    from torch._dispatch.python import enable_python_dispatcher

    with enable_python_dispatcher() if free else contextlib.nullcontext():
        yield


def _fake_mode() -> "tuple[FakeTensorMode, ShapeEnv]":
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    environment = ShapeEnv(specialize_zero_one=True, duck_shape=True)
    return FakeTensorMode(shape_env=environment, allow_non_fake_inputs=True), environment


def _fake(mode: "FakeTensorMode", tensor: Tensor, number: int, free: Collection[tuple[int, int]]) -> Tensor:
    from torch._dynamo.source import ConstantSource
    from torch.fx.experimental.symbolic_shapes import DimDynamic, StatelessSymbolicContext

    sizes = [DimDynamic.DUCK if (number, axis) in free else DimDynamic.STATIC for axis in range(tensor.ndim)]
    context: StatelessSymbolicContext[[], None] = StatelessSymbolicContext(dynamic_sizes=sizes)
    source = ConstantSource(f"input_{number}")
    return mode.from_tensor(tensor.detach().cpu().contiguous(), symbolic_context=context, source=source)


def _free_sizes(
    environment: "ShapeEnv", fakes: Sequence[Tensor], examples: Sequence[Tensor], free: Collection[tuple[int, int]]
) -> tuple[FreeSize, ...]:
    """The sizes that are free, each with the range that the graph is for."""
    places: dict[str, list[tuple[int, int]]] = {}
    found: dict[str, Expression] = {}
    hints: dict[str, int] = {}
    for number, axis in sorted(free):
        expression = _expression(fakes[number].shape[axis])
        if expression is None or not expression.is_Symbol or expression in environment.replacements:
            raise SizeError(_fixed(environment, expression))
        places.setdefault(str(expression), []).append((number, axis))
        found[str(expression)], hints[str(expression)] = expression, examples[number].shape[axis]
    conditions: list[Expression] = [guard.expr for guard in environment.guards]
    return tuple(_range(found[name], hints[name], axes, environment, conditions) for name, axes in places.items())


def _expression(size: object) -> Expression | None:
    return size.node._expr if isinstance(size, torch.SymInt) else None


def _fixed(environment: "ShapeEnv", expression: object) -> str:
    """Why a size is not free."""
    if expression is None:
        return "a size that is free must be 2 or more in the example: 0 and 1 are special"
    guards = [guard for guard in environment.guards if expression in guard.expr.free_symbols]
    where = next((str(guard.sloc) for guard in guards[::-1] if type(guard.expr).__name__ == "Equality"), "")
    value = environment.replacements.get(expression)
    return f"the function asks whether that size is {value}, and goes on as if it were" + f" ({where})" * bool(where)


def _range(
    symbol: Expression, hint: int, axes: list[tuple[int, int]], environment: "ShapeEnv", conditions: Sequence[Expression]
) -> FreeSize:
    own = [condition for condition in conditions if symbol in condition.free_symbols]
    if mixed := [condition for condition in own if len(condition.free_symbols) > 1]:
        raise SizeError(f"the function compares sizes that are free with one another: {mixed[0]}")
    gaps = [condition for condition in own if type(condition).__name__ == "Unequality"]
    rest = [condition for condition in own if type(condition).__name__ != "Unequality"]

    def holds(size: int) -> bool:
        return all(bool(condition.subs(symbol, size)) for condition in rest)

    least, most = _last(holds, hint, 2), _last(holds, hint, _FAR)
    if not all(map(holds, {least, (least + hint) // 2, hint, (hint + most) // 2, most})):
        raise SizeError(f"the function asks of a size that is free more than whether it is in a range: {rest}")
    low, high = _bounds(environment, symbol)
    least, most = max(least, low), min(most, high)
    other_than = [size for size in range(least, min(most, 4096) + 1) if not all(bool(gap.subs(symbol, size)) for gap in gaps)]
    return FreeSize(str(symbol), tuple(axes), least, None if most >= _FAR else most, tuple(other_than))


def _last(holds: Callable[[int], bool], inside: int, end: int) -> int:
    """The last number from one for which conditions hold towards an end, for which they may not."""
    if holds(end):
        return end
    outside = end
    while abs(outside - inside) > 1:
        middle = (inside + outside) // 2
        inside, outside = (middle, outside) if holds(middle) else (inside, middle)
    return inside


def _bounds(environment: "ShapeEnv", symbol: Expression) -> tuple[int, int]:
    known = environment.var_to_range[symbol]
    lower, upper = str(known.lower), str(known.upper)  # a number, or one of several kinds of infinity
    return max(int(lower), 2) if lower.isdecimal() else 2, int(upper) if upper.isdecimal() else _FAR
