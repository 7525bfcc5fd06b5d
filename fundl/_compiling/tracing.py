"""Tracing: a function runs once on fake tensors, and its operations are recorded as a graph.

What a graph cannot hold is an error that names the line of the program: a decision by the value of a tensor, an input that is
written to, a random number from a hidden state, a tensor that is kept behind the back.
"""

import functools
import gc
import linecache
import sys
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Final, Literal

import attrs
import optree
import torch
from torch import Tensor

from fundl._common import cudnn_recurrent
from fundl._common.fused_lstm import with_lstm_operators
from fundl._common.listed import Listed
from fundl._compiling import corrections, cudnn_operators, graphs, lstm_operators, torch_private
from fundl._compiling.trees import Leaf, flatten, replace

_LIBRARIES: Final = (
    *(str(Path(str(module.__file__)).parent) for module in (torch, attrs, optree)),
    str(Path(__file__).parent.parent),
    "<",
)


class TraceError(TypeError, metaclass=Listed):
    """A function cannot be compiled as one graph; the message names the line of the program that is why."""


TraceError.__module__ = "fundl"  # where users find it: tracebacks say so


@attrs.frozen(eq=False)
class Traced:
    """The result of a trace."""

    graph: graphs.Graph
    constants: list[Tensor]  # that the function used, but was not given: further inputs of the graph
    result: object  # of the function, with a `Leaf` for each tensor


@functools.cache
def prepare() -> None:
    """Do what a first trace does, once: import hundreds of modules, and register operators."""
    lstm_operators.registered()
    cudnn_operators.registered()
    corrections.correct_fake_attention()

    def twice(*tensors: Tensor) -> list[Tensor]:
        return [tensor + tensor for tensor in tensors]

    graphs.trace(twice, [torch.ones(1, device="cpu")])


def trace(function: Callable[[Sequence[Tensor]], object], examples: Sequence[Tensor]) -> Traced:
    """The graph of a function, which runs once on fake tensors.

    Args:
        function: from tensors to a tree of tensors.
        examples: tensors of the shapes, strides, dtypes and devices that the function will be called with.

    Raises:
        TraceError: what it does does not fit into a graph.
    """
    result: object = None
    seen: list[tuple[weakref.ref[Tensor], str]] = []

    def flat(*inputs: Tensor) -> list[Tensor]:
        nonlocal result
        with Watch(inputs, seen).mode:
            value = function(inputs)
            outputs, result = outputs_of(value, inputs)
        return outputs

    with with_lstm_operators(lstm_operators.registered()), cudnn_recurrent.with_operators(cudnn_operators.registered()):
        graph, constants = graphs.trace(flat, examples)
    _require_no_leak(seen)
    return Traced(graph, constants, result)


def outputs_of(result: object, inputs: Sequence[Tensor]) -> tuple[list[Tensor], object]:
    """The tensors that a graph must compute, each with memory of its own, and the result with a leaf for each tensor."""
    places: dict[int, Leaf] = {id(tensor): Leaf("input", index) for index, tensor in enumerate(inputs)}
    memory = {_memory(tensor) for tensor in inputs}
    outputs: list[Tensor] = []
    leaves: list[Leaf] = []
    for tensor in flatten(result, "the result", constants=True).leaves:
        if id(tensor) not in places:
            if torch_private.is_plain(tensor):  # not made in this trace
                places[id(tensor)] = Leaf("constant", 0, tensor)
            else:
                own = tensor if _memory(tensor) not in memory and tensor.layout is torch.strided else tensor.clone()
                memory.add(_memory(own))
                places[id(tensor)] = Leaf("output", len(outputs))
                outputs.append(own)
        leaves.append(places[id(tensor)])
    return outputs, replace(result, iter(leaves))


def _memory(tensor: Tensor) -> int:
    address: int = tensor.untyped_storage()._cdata
    return address


# --- Watching -----------------------------------------------------------------------------------------------------------


class Watch:
    """Sees each operation of a trace before it is recorded.

    Args:
        inputs: of the function.
        seen: where it remembers what tensors were made, and at which line.
        becomes: what the function is to be, for messages.
    """

    def __init__(
        self,
        inputs: Sequence[Tensor],
        seen: list[tuple[weakref.ref[Tensor], str]],
        becomes: Literal["compiled", "exported"] = "compiled",
    ) -> None:
        self.mode = torch_private.mode(self._run)
        self._becomes = becomes
        self._inputs = {_memory(tensor) for tensor in inputs}
        self._seen = seen
        seen[:] = [(weakref.ref(tensor), "an argument") for tensor in inputs]

    def _run(self, operation: torch_private.Operation, arguments: Sequence[object], run: Callable[[], object]) -> object:
        if operation.draws:
            raise TraceError(
                f"{operation.name} draws random numbers from a hidden state, {user_line()}: a function that is"
                f" {self._becomes} is pure; draw with fundl.random, from a key that is an argument"
            )
        for tensor in operation.written(arguments):
            if torch_private.is_plain(tensor) or _memory(tensor) in self._inputs:
                whose = "a tensor from outside" if torch_private.is_plain(tensor) else "an argument"
                raise TraceError(
                    f"{operation.name} writes into {whose}, {user_line()}: a function that is {self._becomes} is pure"
                )
        if not operation.needs_values:
            return self._remembered(run())
        cause: Exception | None = None
        try:
            result = run()
            if not torch_private.is_unknown(result):
                return self._remembered(result)
        except Exception as error:  # there are several kinds, all private
            cause = error
        static = ", or by an argument named in jit(..., static=...)" * (self._becomes == "compiled")
        raise TraceError(
            f"{operation.name} asks for the value of a tensor, {user_line()}: while a function is {self._becomes} tensors have"
            f" shapes, but no values. Decide with torch.where{static}, or do this outside of the {self._becomes} function"
        ) from cause

    def _remembered(self, result: object) -> object:
        line = user_line()
        parts = result if isinstance(result, tuple | list) else (result,)
        made = (part for part in parts if isinstance(part, Tensor) and not torch_private.is_plain(part))
        self._seen += [(weakref.ref(part), line) for part in made]  # one that is plain was there before
        return result


def _require_no_leak(seen: list[tuple[weakref.ref[Tensor], str]]) -> None:
    """Raise if a fake tensor outlived its trace."""
    if any(reference() is not None for reference, _ in seen):
        gc.collect()
    for reference, line in seen:
        if reference() is not None:
            raise TraceError(
                f"a tensor was kept behind the back of a compiled function: {line}. It stands for one that only the compiled"
                " function will compute; return it instead of appending it to a list or setting an attribute"
            )


def user_line() -> str:
    """Where the program is: the innermost line that is not of a library."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename.startswith(_LIBRARIES):
        frame = frame.f_back
    if frame is None:
        return "in a library"
    name, line = frame.f_code.co_filename, frame.f_lineno
    text = linecache.getline(name, line).strip()
    return f"at {name}:{line}" + (f" (`{text}`)" if text else "")
