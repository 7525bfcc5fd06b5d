"""Conversions of modules in every dtype, whose parameters and buffers lie in memory in any way: all numbers are kept."""

from collections.abc import Callable, Sequence
from itertools import product
from typing import Final

import pytest
import torch
from torch import Tensor, nn

from fundl import tree
from fundl.interop import torch_nn
from tests.oracles.drawn import expanded, strided, transposed_in_memory
from tests.test_layers import forward_any
from tests.test_torch_nn import (
    CASES,
    Case,
    assert_same_state,
    assert_same_tree,
    first_of,
    input_of,
    run_module,
    shape_of,
    with_values,
)

pytestmark = [
    pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths"),
    pytest.mark.filterwarnings("ignore:enable_nested_tensor is True"),
]

TOLERANCES: Final = {torch.float64: 1e-8, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 8e-2}
LAYOUTS: Final[tuple[Callable[[Tensor], Tensor], ...]] = (
    transposed_in_memory,
    expanded,
    strided,
    torch.Tensor.contiguous,
)


def laid_out(module: nn.Module, lay: Callable[[Tensor], Tensor], dtype: torch.dtype) -> nn.Module:
    """The module with random parameters and buffers of a dtype, that lie in memory in another way."""
    for tensor in tensors(with_values(module)):
        if tensor.is_floating_point():
            tensor.data = lay(tensor.data.to(dtype))
    return module


def tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]


DIAGONAL: Final = tuple(zip(LAYOUTS, TOLERANCES, strict=True))

every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
diagonal_or_all = pytest.mark.parametrize(
    "combinations",
    [DIAGONAL, pytest.param(tuple(product(LAYOUTS, TOLERANCES)), marks=pytest.mark.slow)],
    ids=["diagonal", "all"],
)
Combinations = Sequence[tuple[Callable[[Tensor], Tensor], torch.dtype]]


@every_case
@diagonal_or_all
def test_tensors_are_kept(case: Case, combinations: Combinations) -> None:
    for lay, dtype in combinations:
        module = laid_out(case.make(), lay, dtype)
        model = torch_nn.from_torch(module)
        again = torch_nn.to_torch(model, shape_of(case.inputs))
        if case.back:
            assert_same_state(again, module)
            assert_same_tree(torch_nn.from_torch(again), model)
        floats = [tensor for tensor in [*tree.leaves(model), *tensors(again)] if tensor.is_floating_point()]
        assert all(tensor.dtype == dtype for tensor in floats)
        require_own_memory(tensors(module), tree.leaves(model), tensors(again))


def require_own_memory(*owners: list[Tensor]) -> None:
    """Raise if two owners share memory, or if an owner but the first has a tensor whose numbers do."""
    memory = [{tensor.untyped_storage().data_ptr() for tensor in owned if tensor.numel()} for owned in owners]
    assert len(set.union(*memory)) == sum(map(len, memory))
    for tensor in (tensor for owned in owners[1:] for tensor in owned):
        assert all(step for step, size in zip(tensor.stride(), tensor.shape, strict=True) if size > 1)


@every_case
@diagonal_or_all
def test_outputs_are_those_in_float64(case: Case, combinations: Combinations) -> None:
    for lay, dtype in combinations:
        if lay is expanded and dtype in {torch.float16, torch.bfloat16}:
            continue  # all features alike: their norms are noise
        module = laid_out(case.make(), lay, dtype)
        inputs = [x.to(dtype) if x.is_floating_point() else x for x in case.inputs]
        model = torch_nn.from_torch(module)
        y = first_of(forward_any(model, input_of(model, tuple(inputs)))[0])
        expected, _, _ = run_module(module.double(), tuple(x.double() if x.is_floating_point() else x for x in inputs))
        assert y.dtype == dtype
        tolerance = TOLERANCES[dtype] * max(1.0, float(expected.abs().max()))
        torch.testing.assert_close(y.double(), expected, rtol=0, atol=tolerance)
