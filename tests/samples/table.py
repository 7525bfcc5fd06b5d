"""What a row of the table of sample layers is.

A sample is a model, an input, and the formula of its output in plain torch, which autograd differentiates.
"""

from collections.abc import Callable, Mapping
from typing import Final, TypeVar

import attrs
import torch
from torch import Tensor

from fundl import Model, key, random, tree

P = TypeVar("P", bound=Model)
X = TypeVar("X")

TOLERANCES: Final[Mapping[torch.dtype, float]] = {
    torch.float64: 1e-12,
    torch.float32: 1e-5,
    torch.bfloat16: 3e-2,
    torch.float16: 4e-3,
}


@attrs.frozen
class Sample:
    """A model, an input, and the formula of the output."""

    name: str
    model: Model
    x: object
    formula: Callable[[Model, object], object]
    batched: bool
    """Whether the input's first axis is that of a batch, whose size is free."""
    kept: int
    """How many bytes forward keeps for backward, in float64, beside what is there anyway: input, output and model."""
    tolerances: Mapping[torch.dtype, float]
    """The dtypes in which the layer runs, and how near to the formula in float64 it comes in each."""


def sample(
    name: str,
    model: P,
    x: X,
    formula: Callable[[P, X], object],
    *,
    batched: bool = True,
    kept: int = 0,
    tolerances: Mapping[torch.dtype, float] = TOLERANCES,
) -> Sample:
    """A row of the table.

    Args:
        name: of the row, unique.
        model: a layer or a nested tuple of layers. Tensors on the meta device are given random values.
        x: a tensor, or a tuple of them; integers are not differentiated.
        formula: the output, written in torch, given the model and x.
        batched: whether the input's first axis is that of a batch, whose size is free.
        kept: bytes of the residuals in float64, but for tensors that share the memory of the input, the output or the model.
        tolerances: the dtypes in which the layer runs, each with how near to the formula in float64 it comes.
    """

    def formula_of_any(params: Model, x_: object) -> object:
        assert isinstance(params, type(model))
        assert isinstance(x_, type(x))
        return formula(params, x_)

    return Sample(name, with_values(model), x, formula_of_any, batched, kept, tolerances)


def with_values(model: P) -> P:
    """The model in float64, with random values for the tensors on the meta device."""
    keys = iter(random.split(key(1), len(tree.leaves(model))))
    return tree.map(
        lambda leaf: random.normal(next(keys), tuple(leaf.shape), dtype=torch.float64) if leaf.is_meta else leaf, model
    )


def normal(*shape: int) -> Tensor:
    """A random input."""
    return random.normal(key(2), shape, dtype=torch.float64)
