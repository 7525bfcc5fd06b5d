"""Rows that a compiled function puts into what it is given are put there at once; nothing that was there before is missed."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fundl import jit
from fundl._common import graph_operations
from fundl._compiling import lowering
from fundl._compiling.graphs import make_fx

ROWS = torch.tensor([[3], [0]])
FIRST = torch.arange(2).unsqueeze(1)


def put(state: Tensor, x: Tensor) -> Tensor:
    return torch.index_put(state, (FIRST, ROWS), x)


def put_and_read(state: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    after = put(state, x)
    return after, after.sum(1)


def put_and_read_what_was(state: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    return put(state, x), state.sum(1)


def put_twice(state: Tensor, x: Tensor) -> Tensor:
    return torch.index_put(put(state, x), (FIRST, ROWS + 1), x * 2)


def put_what_was(state: Tensor, x: Tensor) -> Tensor:
    return put(state, x + state[:, 1:2])


CASES = (put_and_read, put_and_read_what_was, put_twice)


@pytest.mark.parametrize("function", CASES, ids=lambda function: function.__name__)
def test_what_is_put_is_what_eager_code_puts(function: Callable[[Tensor, Tensor], object]) -> None:
    compiled = jit(function, donate="state")
    state = torch.randn(2, 5, 3)
    own = state.clone()
    for number in range(3):
        x = torch.full((2, 1, 3), float(number)) + state[:, :1]
        expected, found = function(state, x.clone()), compiled(own, x.clone())
        torch.testing.assert_close(found, expected)
        state, own = (result[0] if isinstance(result, tuple) else result for result in (expected, found))  # type: ignore[assignment]  # the state is first


def written(function: Callable[[Tensor, Tensor], object]) -> list[object]:
    """The operations that write, in the graph of a function whose result is written over its state."""
    state, x = torch.randn(2, 5, 3), torch.randn(2, 1, 3)

    def whole(*tensors: Tensor) -> list[Tensor]:
        state, x = tensors
        result = function(state, x)
        after, *others = result if isinstance(result, tuple) else (result,)
        state.copy_(after)
        return others

    module = make_fx(whole, [state, x], {})
    lowering.put_in_place(module)
    return [
        node.target
        for node in module.graph.nodes
        if node.target in {graph_operations.copy_, graph_operations.index_put, graph_operations.index_put_}
    ]


def test_what_nothing_else_reads_is_written_over() -> None:
    assert written(put) == written(put_and_read) == [graph_operations.index_put_]
    for function in (put_and_read_what_was, put_what_was):
        assert written(function) == [graph_operations.index_put, graph_operations.copy_]
