"""Perceptrons of several layers: linear maps, and what is between them."""

from typing import Protocol, TypeAlias

import torch
from typing_extensions import TypeVar

from fundl._common.arguments import said
from fundl._common.suggestions import with_suggestions
from fundl.initializers import Initializer, uniform_fan_in
from fundl.layer import AnyLayer, Layer
from fundl.layers._refusals import require_at_least_one, require_layer
from fundl.layers.activation import ReLU
from fundl.layers.dropout import Dropout
from fundl.layers.linear import Linear, linear

In = TypeVar("In", bound=int)
Out = TypeVar("Out", bound=int)
A = TypeVar("A", bound=int)
B = TypeVar("B", bound=int)

MLP: TypeAlias = tuple[Linear[In, int], *tuple[AnyLayer, ...], Linear[int, Out]]


class MakesNorm(Protocol):
    """A function that makes a layer which normalises so many features, such as `layer_norm` or `batch_norm`."""

    def __call__(self, features: int, /, *, dtype: torch.dtype) -> AnyLayer:
        """The layer."""


@with_suggestions
def mlp(
    in_features: In,
    hidden: int | tuple[int, ...],
    out_features: Out,
    *,
    activation: AnyLayer = ReLU(),  # noqa: B008  # a frozen record
    norm: MakesNorm | None = None,
    dropout: float = 0.0,
    bias: bool = True,
    weight_init: Initializer = uniform_fan_in(),
    bias_init: Initializer = uniform_fan_in(),
    dtype: torch.dtype = torch.float32,
) -> MLP[In, Out]:
    """A multilayer perceptron: linear maps with something between them, y = W3 f(W2 f(W1 x + b1) + b2) + b3.

    It is a composition, no more; values are for `initialize` to give. Behind each linear map but the last come the norm, the
    activation and the dropout, those that there are.

    Args:
        in_features: size of the input's last axis.
        hidden: sizes of the hidden layers, one or more: 25, or (256, 64).
        out_features: size of the output's last axis.
        activation: f, a layer, which stands behind each linear map but the last; ReLU() by default.
        norm: a function that makes a layer which normalises so many features, such as `layer_norm`; None for no norms.
        dropout: the probability to drop a number behind an activation; 0 by default, for no dropout.
        bias: whether the linear maps have biases.
        weight_init: how `initialize` draws the weights, as `linear` has it.
        bias_init: how `initialize` draws the biases, likewise.
        dtype: the parameters' dtype.

    Raises:
        ValueError: a size is less than 1, there is no hidden layer, or the rate of dropout is not in [0, 1).
        TypeError: the activation is not a layer, or the norm makes none.

    >>> from fundl import layer_norm, mlp
    >>> mlp(2, 25, 3)
    (Linear(weight=float32[25, 2], bias=float32[25]), ReLU(), Linear(weight=float32[3, 25], bias=float32[3]))
    >>> [type(layer).__name__ for layer in mlp(2, (25, 8), 3, norm=layer_norm, dropout=0.1)]
    ['Linear', 'LayerNorm', 'ReLU', 'Dropout', 'Linear', 'LayerNorm', 'ReLU', 'Dropout', 'Linear']
    """
    require_layer("activation", activation)
    sizes = hidden if isinstance(hidden, tuple) else (hidden,)
    if not all(type(size) is int for size in sizes):
        raise TypeError(f"hidden must be an int or a tuple of ints, not {hidden!r}")
    if not sizes:
        raise ValueError("hidden must have at least one size: without a hidden layer, a perceptron is linear(...)")
    for size in sizes:
        require_at_least_one(hidden=size)

    def mapped(inputs: A, outputs: B) -> Linear[A, B]:
        return linear(inputs, outputs, bias=bias, weight_init=weight_init, bias_init=bias_init, dtype=dtype)

    between: list[AnyLayer] = []
    for size, following in zip(sizes, (*sizes[1:], None), strict=True):
        between += [] if norm is None else [_norm(norm, size, dtype)]
        between += [activation, *([Dropout(dropout)] if dropout else [])]
        between += [] if following is None else [mapped(size, following)]
    return (mapped(in_features, sizes[0]), *between, mapped(sizes[-1], out_features))


def _norm(norm: MakesNorm, features: int, dtype: torch.dtype) -> AnyLayer:
    if isinstance(norm, Layer) or not callable(norm):
        raise TypeError(f"norm must be a function that makes a layer, such as layer_norm, not {said(norm)}")
    made = norm(features, dtype=dtype)
    require_layer("what norm makes", made, example="layer_norm(8)")
    return made
