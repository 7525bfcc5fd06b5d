"""The table of sample layers that drives the generic tests: each layer beside its formula in plain torch.

A sample is a model, an input, and the formula of its output, which autograd differentiates. A new layer gets a line here,
and with it all tests of test_layers.py.
"""

from collections.abc import Callable, Mapping
from typing import Final, TypeVar

import attrs
import torch
import torch.nn.functional as F
from torch import Tensor

from fundl import (
    ELU,
    GELU,
    SELU,
    Dropout,
    Flatten,
    Hardtanh,
    Identity,
    LeakyReLU,
    Linear,
    LogSoftmax,
    Mish,
    Model,
    ReLU,
    Reshape,
    Sigmoid,
    SiLU,
    Softmax,
    Softplus,
    Tanh,
    checkpoint,
    compose,
    key,
    linear,
    parallel,
    random,
    residual,
    tree,
)

P = TypeVar("P", bound=Model)
X = TypeVar("X")

TOLERANCES: Final[Mapping[torch.dtype, float]] = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 5e-2}


@attrs.frozen
class Sample:
    """A model, an input, and the formula of the output."""

    name: str
    model: Model
    x: object
    formula: Callable[[Model, object], object]
    batched: bool
    """Whether the input's first axis is that of a batch, whose size is free."""
    tolerances: Mapping[torch.dtype, float]
    """The dtypes in which the layer runs, and how near to the formula in float64 it comes in each."""


def sample(
    name: str,
    model: P,
    x: X,
    formula: Callable[[P, X], object],
    *,
    batched: bool = True,
    tolerances: Mapping[torch.dtype, float] = TOLERANCES,
) -> Sample:
    """A row of the table.

    Args:
        name: of the row, unique.
        model: a layer or a nested tuple of layers. Tensors on the meta device are given random values.
        x: a tensor, or a tuple of them; integers are not differentiated.
        formula: the output, written in torch, given the model and x.
        batched: whether the input's first axis is that of a batch, whose size is free.
        tolerances: the dtypes in which the layer runs, each with how near to the formula in float64 it comes.
    """

    def formula_of_any(params: Model, x_: object) -> object:
        assert isinstance(params, type(model))
        assert isinstance(x_, type(x))
        return formula(params, x_)

    return Sample(name, with_values(model), x, formula_of_any, batched, tolerances)


def with_values(model: P) -> P:
    """The model in float64, with random values for the tensors on the meta device."""
    keys = iter(random.split(key(1), len(tree.leaves(model))))
    return tree.map(
        lambda leaf: random.normal(next(keys), tuple(leaf.shape), dtype=torch.float64) if leaf.is_meta else leaf, model
    )


def normal(*shape: int) -> Tensor:
    """A random input."""
    return random.normal(key(2), shape, dtype=torch.float64)


def elementwise(name: str, layer: P, function: Callable[[Tensor], Tensor]) -> Sample:
    """The row of a function of each element."""
    return sample(name, layer, normal(5, 4), lambda _, x: function(x))


def affine(p: Linear, x: Tensor) -> Tensor:
    return F.linear(x, p.weight, p.bias)


def dropped(x: Tensor) -> Tensor:
    return x * random.bernoulli(key(3), x.shape, probability=0.6) / 0.6


ELEMENTWISE: Final = (
    elementwise("ReLU", ReLU(), torch.relu),
    elementwise("LeakyReLU", LeakyReLU(), F.leaky_relu),
    elementwise("LeakyReLU, falling", LeakyReLU(negative_slope=-0.3), lambda x: F.leaky_relu(x, -0.3)),
    elementwise("Hardtanh", Hardtanh(), F.hardtanh),
    elementwise("Hardtanh, asymmetric", Hardtanh(low=-0.3, high=0.8), lambda x: F.hardtanh(x, -0.3, 0.8)),
    elementwise("ELU", ELU(), F.elu),
    elementwise("ELU, alpha", ELU(alpha=0.4), lambda x: F.elu(x, 0.4)),
    elementwise("SELU", SELU(), F.selu),
    elementwise("Sigmoid", Sigmoid(), torch.sigmoid),
    elementwise("Tanh", Tanh(), torch.tanh),
    elementwise("Softplus", Softplus(), F.softplus),
    elementwise("Softplus, sharp", Softplus(beta=3.0, threshold=2.0), lambda x: F.softplus(x, 3.0, 2.0)),
    elementwise("GELU", GELU(), F.gelu),
    elementwise("GELU, tanh", GELU(approximate="tanh"), lambda x: F.gelu(x, approximate="tanh")),
    elementwise("SiLU", SiLU(), F.silu),
    elementwise("Mish", Mish(), F.mish),
    elementwise("Identity", Identity(), lambda x: x),
    elementwise("Dropout, no key", Dropout(0.4), lambda x: x),
    elementwise("Dropout", Dropout(0.4, key(3)), dropped),
)

SAMPLES: Final = (
    *ELEMENTWISE,
    sample("Linear", linear(3, 4), normal(5, 3), affine),
    sample("Linear, no bias", linear(3, 4, bias=False), normal(5, 3), affine),
    sample("Linear of a vector", linear(3, 4), normal(3), affine, batched=False),
    sample("Linear of sequences", linear(3, 4), normal(5, 2, 3), affine),
    sample("Softmax", Softmax(), normal(5, 4), lambda p, x: torch.softmax(x, p.axis)),
    sample("Softmax, axis", Softmax(axis=1), normal(5, 4, 3), lambda p, x: torch.softmax(x, p.axis)),
    sample("LogSoftmax", LogSoftmax(), normal(5, 4), lambda p, x: torch.log_softmax(x, p.axis)),
    sample("LogSoftmax, axis", LogSoftmax(axis=-2), normal(5, 4, 3), lambda p, x: torch.log_softmax(x, p.axis)),
    sample("Flatten", Flatten(), normal(5, 2, 3, 2), lambda _, x: x.flatten(1)),
    sample("Flatten, start", Flatten(start=-2), normal(5, 2, 3, 2), lambda _, x: x.flatten(2)),
    sample("Reshape", Reshape((3, -1)), normal(5, 12), lambda _, x: x.reshape(-1, 3, 4)),
    sample(
        "residual",
        residual(linear(3, 3), Tanh()),
        normal(5, 3),
        lambda p, x: x + torch.tanh(affine(p.layers[0], x)),
    ),
    sample(
        "parallel, sum",
        parallel(linear(3, 4), (linear(3, 4, bias=False), Tanh())),
        normal(5, 3),
        lambda p, x: affine(p.branches[0], x) + torch.tanh(affine(p.branches[1][0], x)),
    ),
    sample(
        "parallel, concatenate",
        parallel(linear(3, 4), Identity(), Tanh(), join="concatenate", axis=1),
        normal(5, 3),
        lambda p, x: torch.cat((affine(p.branches[0], x), x, torch.tanh(x)), 1),
    ),
    sample(
        "checkpoint",
        checkpoint(linear(3, 4), Dropout(0.4, key(3)), Tanh()),
        normal(5, 3),
        lambda p, x: torch.tanh(dropped(affine(p.layers[0], x))),
    ),
    sample(
        "compose",
        compose(linear(3, 4), ReLU(), linear(4, 2)),
        normal(5, 3),
        lambda p, x: affine(p[2], torch.relu(affine(p[0], x))),
    ),
    sample(
        "compose, nested",
        compose(Flatten(), compose(linear(6, 3), Tanh()), residual((linear(3, 3), SiLU())), (Softmax(),)),
        normal(5, 2, 3),
        lambda p, x: nested(p[1][0], p[2].layers[0][0], x.flatten(1)),
    ),
)


def nested(first: Linear, second: Linear, x: Tensor) -> Tensor:
    hidden = torch.tanh(affine(first, x))
    return torch.softmax(hidden + F.silu(affine(second, hidden)), -1)
